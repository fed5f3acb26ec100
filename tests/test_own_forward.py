"""What the operators refuse goes to the forward of the class that was accelerated."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chattn_cuda import accelerate, explain
from tests import peers

timm = pytest.importorskip("timm", reason="timm is not installed")
C = 8


class Tokens(peers.SELayer):
    """Known by its structure; takes tokens and single samples in ways of its own."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 3:
            y: Tensor = x * self.fc(x.mean(1))[:, None]
            return y
        return super().forward(x)


class Casting(nn.Module):
    """Recorded; casts what it squeezed to its weights' type, and leaves other channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(C, 2), nn.Linear(2, C)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != self.one.in_features:
            return x
        s = self.two(torch.relu(self.one(x.mean((2, 3)).to(self.one.weight.dtype))))
        return x * torch.sigmoid(s).to(x.dtype)[:, :, None, None]


def _grn() -> nn.Module:
    module: Any = timm.layers.grn.GlobalResponseNorm(C, channels_last=False)
    nn.init.normal_(module.weight)
    return module


CALLS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], torch.dtype]] = {
    "tokens": (lambda: Tokens(C), (2, 5, C), torch.float32),
    "tokens, C of them": (lambda: Tokens(C), (2, C, C), torch.float32),
    "a map beside them": (lambda: Tokens(C), (2, C, 5, 3), torch.float32),
    "weights of another type": (Casting, (2, C, 5, 3), torch.bfloat16),
    "other channels": (Casting, (2, C + 1, 5, 3), torch.float32),
    "a norm's weights of another type": (_grn, (2, C, 5, 3), torch.bfloat16),
    "planes of one position": (_grn, (17, C, 1, 1), torch.float32),
}


@pytest.mark.parametrize("name", CALLS)
def test_it_is_the_original(name: str) -> None:
    make, shape, dtype = CALLS[name]
    torch.manual_seed(0)
    plain = make()
    fast, x = copy.deepcopy(plain), torch.randn(shape).to(dtype)
    assert accelerate(fast).changed
    for _ in range(2):
        for training in (True, False):
            y, expected = fast.train(training)(x), plain.train(training)(x)
            assert y.dtype == expected.dtype
            torch.testing.assert_close(y, expected)
    assert explain(fast, x).path == ("eager" if name != "a map beside them" else "fused")


class Doubled(torch.Tensor):
    """Weights that a layer multiplies by two."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * result if func in (torch.conv2d, nn.functional.linear) else result


@pytest.mark.parametrize("called_before", [False, True])
def test_weights_that_compute_are_called(called_before: bool) -> None:
    plain = timm.layers.SEModule(16).eval()
    fast, x = copy.deepcopy(plain), torch.randn(2, 16, 5, 3)
    assert accelerate(fast).changed
    if called_before:
        fast(x)
    for module in (fast, plain):
        module.fc1.weight = nn.Parameter(module.fc1.weight.detach().as_subclass(Doubled))
    torch.testing.assert_close(fast(x).as_subclass(Tensor), plain(x).as_subclass(Tensor))


def test_a_named_backend_that_cannot_run_is_refused() -> None:
    module: Any = Casting()
    accelerate(module, "cuda")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="cuda"):
            module(torch.randn(2, C, 5, 3))
