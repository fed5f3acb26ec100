"""A selective kernel in plain PyTorch, and whether the fused one does the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import functional
from chattn_cuda.modules.inner_network import inner_network
from tests import cases

F64 = torch.float64
C, D = 6, 5


class Plain(nn.Module):
    """The block in plain PyTorch, with the layers of timm's SelectiveKernelAttn."""

    def __init__(
        self, m: int = 2, norm: Any = None, act: Any = nn.ReLU, bias: Sequence[bool] = (True, True)
    ) -> None:
        super().__init__()
        self.m = m
        self.fc_reduce = nn.Conv2d(C, D, 1, bias=bias[0])
        self.bn = nn.Identity() if norm is None else norm()
        self.act = act()
        self.fc_select = nn.Conv2d(D, C * m, 1, bias=bias[1])
        generator = torch.Generator().manual_seed(1)
        for p in self.parameters():
            p.data = torch.randn(p.shape, generator=generator) / 2 + (p.dim() == 1) / 2
        if getattr(self.bn, "running_mean", None) is not None:
            self.bn.running_mean.copy_(torch.randn(D, generator=generator))
            self.bn.running_var.copy_(torch.rand(D, generator=generator) + 0.5)
        self.to(F64)

    def forward(self, *maps: Tensor) -> tuple[Tensor, Tensor]:
        u = torch.stack(maps, 1)
        pooled = u.sum(1).mean((2, 3), keepdim=True)
        z = self.fc_select(self.act(self.bn(self.fc_reduce(pooled))))
        gate = torch.softmax(z.flatten(1).unflatten(1, (self.m, -1)), 1)
        return (u * gate[..., None, None]).sum(1), gate

    def network(self, u: Tensor) -> Callable[[Tensor], Tensor]:
        return inner_network(self, ("fc_reduce", "bn", "act", "fc_select"), self.m, u)

    def fused(self, *maps: Tensor, backend: str) -> tuple[Tensor, Tensor]:
        y, z = functional.run_selective_kernel(backend, maps, self.network(maps[0]))
        return y, torch.softmax(z, 1)


def maps(m: int = 2, n: int = 3, dtype: torch.dtype = F64, device: str = "cpu") -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(n, C, 3, 4, generator=generator, dtype=F64) for _ in range(m)]
    return [u.to(device, dtype).requires_grad_() for u in made]


def is_one_node(y: Tensor) -> bool:
    return y.grad_fn is not None and y.grad_fn.name() == "SelectiveKernelFunctionBackward"


def loss_of(y: Tensor, gate: Tensor, used: str = "both") -> Tensor:
    terms = {"y": y.sin().sum(), "gate": (gate * gate).sin().sum()}
    return terms["y"] + terms["gate"] if used == "both" else terms[used]


def same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12, check_device=False)


def require_like_plain(
    plain: Plain, backend: str, u: list[Tensor], used: str = "both", one_node: bool = True
) -> None:
    """Values, every gradient that is wanted, and the buffers afterwards."""
    ours = copy.deepcopy(plain).to(cases.device_of(backend))
    v = [t.detach().to(cases.device_of(backend)).requires_grad_(t.requires_grad) for t in u]
    y, gate = ours.fused(*v, backend=backend)
    assert is_one_node(y) == one_node
    expected_y, expected_gate = plain(*u)
    same((y, gate), (expected_y, expected_gate))
    loss_of(y, gate, used).backward()
    loss_of(expected_y, expected_gate, used).backward()
    for one, two in zip((*v, *ours.parameters()), (*u, *plain.parameters()), strict=True):
        assert (one.grad is None) == (two.grad is None)
        if two.grad is not None:
            same(one.grad, two.grad)
    same(dict(ours.named_buffers()), dict(plain.named_buffers()))


NORMS: dict[str, Any] = {
    "none": None,
    "plain": lambda: nn.BatchNorm2d(D),
    "momentum": lambda: nn.BatchNorm2d(D, eps=1e-2, momentum=0.7),
    "zero-momentum": lambda: nn.BatchNorm2d(D, momentum=0.0),
    "not-affine": lambda: nn.BatchNorm2d(D, affine=False),
    "not-tracked": lambda: nn.BatchNorm2d(D, track_running_stats=False),
}
