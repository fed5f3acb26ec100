"""Types, mixed precision, memory formats."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

timm = pytest.importorskip("timm", reason="timm is not installed")
pytest.importorskip("torchvision", reason="torchvision is not installed")

from chattn_cuda import accelerate  # noqa: E402
from tests.compat.features import feature  # noqa: E402
from tests.compat.models import assert_same, images, pair, step  # noqa: E402

SECTION = "Precision and memory format"
LOW = {torch.float16: 4e-3, torch.bfloat16: 3e-2}


def types(model: nn.Module) -> tuple[list[torch.dtype], Callable[[], None]]:
    """The types that the blocks are given and return, in order, as the model runs."""
    seen: list[torch.dtype] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        seen.extend((args[0].dtype, y.dtype))

    handles = [m.register_forward_hook(hook) for m in model.blocks]
    return seen, lambda: [h.remove() for h in handles]


@feature(
    SECTION,
    "`torch.autocast`, float16 and bfloat16",
    "yes",
    "maps keep the types that they have in eager PyTorch (GRN's result that of its map); sums and "
    "gates are float32, which is more exact",
)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_autocast(dtype: torch.dtype) -> None:
    fast, plain = pair()
    results = []
    for model in (fast, plain):
        seen, remove = types(model)
        with torch.autocast("cpu", dtype=dtype):
            y = model(images())
        y.float().sin().sum().backward()
        remove()
        results.append((seen, y, {k: p.grad for k, p in model.named_parameters()}))
    (seen, y, grads), (expected_seen, expected, expected_grads) = results
    assert seen == expected_seen and dtype in seen
    assert y.dtype == expected.dtype
    exact, _ = pair()
    truth = step(exact, images())
    # as near to the float32 result as eager PyTorch is, to the type's rounding
    for actual, other, true in (
        (y.detach().float(), expected.detach().float(), truth["output"].detach()),
        *((grads[k], expected_grads[k], truth[k]) for k in grads),
    ):
        assert actual.dtype == other.dtype
        scale = float(true.abs().max())
        error, bound = float((actual - true).abs().max()), float((other - true).abs().max())
        assert error <= 2 * bound + LOW[dtype] * scale


@feature(
    SECTION, "`torch.amp.GradScaler`", "yes", "an overflow skips the step, as in eager PyTorch"
)
def test_grad_scaler() -> None:
    results = []
    for model in pair():
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for factor in (1.0, float("inf"), 1.0):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.float16):
                loss = model(images()).float().sin().sum() * factor
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        results.append((scaler.get_scale(), {k: p.detach() for k, p in model.named_parameters()}))
    (scale, actual), (expected_scale, expected) = results
    assert scale == expected_scale == 2.0**9
    assert_same(actual, expected, LOW[torch.float16])


@feature(SECTION, "`model.half()`, `.bfloat16()`", "yes", "float32 accumulation")
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_16_bit_models(dtype: torch.dtype) -> None:
    fast, plain = pair()
    truth = plain.eval()(images()).detach()
    y = fast.eval().to(dtype)(images(dtype=dtype))
    assert y.dtype == dtype
    assert_same(y.float().detach(), truth, 2 * LOW[dtype])


@feature(SECTION, "`model.double()`", "yes", "float64 throughout")
def test_double() -> None:
    fast, plain = pair()
    x = images(dtype=torch.float64)
    assert_same(step(fast.double(), x), step(plain.double(), x), 1e-12)


@feature(SECTION, "`model.to(device)`", "yes", "nothing is cached; also to `meta` and back")
def test_to_device() -> None:
    fast, plain = pair()
    expected = plain.eval()(images()).detach()
    meta = fast.eval().to("meta")
    assert meta(images().to("meta")).shape == expected.shape
    fast = meta.to_empty(device="cpu")
    fast.load_state_dict(plain.state_dict())
    assert_same(fast(images()).detach(), expected)


@feature(SECTION, "`channels_last`", "yes", "kept through every block")
def test_channels_last() -> None:
    fast, plain = pair()
    x = images().contiguous(memory_format=torch.channels_last)
    formats = []
    for m in fast.blocks:
        m.register_forward_hook(
            lambda module, args, y: formats.append(
                y.is_contiguous(memory_format=torch.channels_last)
            )
        )
    fast, plain = (m.to(memory_format=torch.channels_last) for m in (fast, plain))
    assert_same(step(fast, x), step(plain, x))
    assert formats and all(formats)


@feature(
    SECTION, "maps whose axes are permuted, as by `x.transpose(2, 3)`", "yes",
    "the results of SE, ECA and GRN are NCHW (contiguous), where those of eager PyTorch keep the "
    "permuted strides",
)  # fmt: skip
def test_permuted_maps() -> None:
    x = torch.randn(2, 16, 6, 4).transpose(2, 3)
    grn = functools.partial(timm.layers.grn.GlobalResponseNorm, channels_last=False)
    for make in (timm.layers.SEModule, timm.layers.EcaModule, grn):
        plain = make(16)
        fast = accelerate(copy.deepcopy(plain)).model
        assert_same(fast(x), plain(x))
        assert fast(x).is_contiguous() and plain(x).stride() == x.stride()
