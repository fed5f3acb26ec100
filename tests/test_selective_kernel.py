"""Selective kernels: the operators, and the modules against timm's."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import backends, functional
from chattn_cuda.modules import (
    SelectiveKernel,
    SelectiveKernelAttn,
    SelectiveKernelConv,
    SKConv,
    SKNet,
    SKUnit,
)
from tests import cases

timm = pytest.importorskip("timm")
timm_sk = pytest.importorskip("timm.layers.selective_kernel")
SplitAttn = pytest.importorskip("timm.layers.split_attn").SplitAttn

on_fused = pytest.mark.parametrize("backend", cases.fused_backends())


def branches_of(m: int = 2, shape: Any = (2, 6, 3, 5), dtype: Any = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(m)]


# ---- the operators
def samples() -> dict[str, Callable[[], list[Tensor]]]:
    def slices(memory_format: torch.memory_format) -> list[Tensor]:
        stacked = torch.cat(branches_of(2, (2, 8, 3, 5)), 1).contiguous(memory_format=memory_format)
        return list(stacked.chunk(2, 1))

    return {
        "two": branches_of,
        "four": lambda: branches_of(4),
        "one": lambda: branches_of(1),
        "half": lambda: branches_of(3, dtype=torch.half),
        "empty": lambda: branches_of(2, (0, 6, 3, 5)),
        "channels_last": lambda: [
            u.contiguous(memory_format=torch.channels_last) for u in branches_of(3)
        ],
        "mixed": lambda: [cases.LAYOUTS["nhwc"](branches_of()[0]), branches_of()[1]],
        "slices": lambda: slices(torch.contiguous_format),
        "slices_channels_last": lambda: slices(torch.channels_last),
        "expanded": lambda: [u[:, :, :1].expand(u.shape) for u in branches_of()],
    }


@on_fused
@pytest.mark.parametrize("sample", samples())
def test_opcheck(backend: str, sample: str) -> None:
    cases.require(backend)
    operators = getattr(torch.ops, str(backends.get(backend).namespace))
    device = cases.device_of(backend)
    branches = [u.to(device) for u in samples()[sample]()]
    (n, c), m = branches[0].shape[:2], len(branches)
    logits = torch.randn(n, m, c, device=device)
    torch.library.opcheck(operators.sk_squeeze.default, (branches,))
    torch.library.opcheck(operators.sk_select.default, (branches, logits))
    y = operators.sk_select(branches, logits)
    torch.library.opcheck(operators.sk_dot.default, (y, logits, branches))
    torch.library.opcheck(operators.sk_dot.default, (y, logits.mT.contiguous().mT, branches))
    dy = y.new_ones(()).expand(y.shape)
    channels_last = sample.endswith("channels_last")
    for dpooled, grad in ((None, dy), (torch.randn(n, c, device=device), y)):
        arguments = (grad, logits, dpooled, channels_last, "slices" in sample)
        torch.library.opcheck(operators.sk_gradient.default, arguments)


@on_fused
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    "hw", [(1, 1), (7, 7), (23, 24), pytest.param((40, 40), marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_slices_are_as_good_as_maps(
    backend: str, layout: str, hw: tuple[int, int], dtype: torch.dtype
) -> None:
    """The same bits, whether the branches lie in one map or in three."""
    cases.require(backend)
    branches = branches_of(3, (2, 16, *hw), dtype)
    stacked = cases.LAYOUTS[layout](torch.cat(branches, 1)).to(cases.device_of(backend))
    w1, w2 = torch.randn(4, 16).to(stacked), torch.randn(48, 4).to(stacked)

    def logits(pooled: Tensor) -> Tensor:
        return (pooled @ w1.to(pooled).T @ w2.to(pooled).T).unflatten(1, (3, -1))

    def run(maps: list[Tensor], slices: int) -> tuple[Tensor, ...]:
        for u in maps:
            u.requires_grad_()
        y, z = functional.run_selective_kernel(backend, maps, logits, slices)
        grads = torch.autograd.grad(y.sin().sum() + z.square().sum(), maps)
        if slices == 1:
            grads = (torch.cat(grads, 1),)
        return y, z, *grads

    lists = [cases.LAYOUTS[layout](u.clone()) for u in stacked.chunk(3, 1)]
    for one, other in zip(run([stacked], 3), run(lists, 1), strict=True):
        assert torch.equal(one, other)
        assert one.shape == other.shape


@pytest.mark.parametrize("backend", [*cases.fused_backends(), pytest.param("reference")])
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_gates_of_the_branches_add_up_to_one(backend: str, m: int) -> None:
    cases.require(backend)
    device = cases.device_of(backend)
    u = [t.to(device) for t in branches_of(m)]
    w1, w2 = torch.randn(3, 6, device=device), 20 * torch.randn(6 * m, 3, device=device)
    _, gate = functional.selective_kernel(u, w1, None, w2, None, return_gate=True, backend=backend)
    assert gate.shape == (2, m, 6)
    torch.testing.assert_close(gate.sum(1), torch.ones_like(gate[:, 0]), rtol=0, atol=3e-7)


@on_fused
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("m", [2, 3, 4])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_large_logits_do_not_overflow(backend: str, layout: str, m: int, sign: float) -> None:
    """Neither one far above the others, nor all of them far from 0, forward and backward."""
    cases.require(backend)
    device = cases.device_of(backend)
    u = [cases.LAYOUTS[layout](t).to(device).requires_grad_() for t in branches_of(m)]
    far = torch.full((2, m, 6), -1e4, device=device)
    far[:, m - 1] = 1e4
    y, _ = functional.run_selective_kernel(backend, u, lambda pooled: far)
    torch.testing.assert_close(y, u[m - 1], rtol=0, atol=0)
    near = torch.randn(2, m, 6, device=device).requires_grad_()
    y, _ = functional.run_selective_kernel(backend, u, lambda pooled: near + sign * 1e3)
    expected, _ = functional.run_selective_kernel("reference", u, lambda _: near + sign * 1e3)
    torch.testing.assert_close(y, expected)
    grads = torch.autograd.grad(y.sin().sum(), [near, *u])
    wanted = torch.autograd.grad(expected.sin().sum(), [near, *u])
    torch.testing.assert_close(grads, wanted, rtol=1e-4, atol=1e-5)


def test_second_use_of_the_graph() -> None:
    """retain_graph: the backward keeps nothing on the side."""
    u = [t.requires_grad_() for t in branches_of()]
    w1, w2 = torch.randn(3, 6), torch.randn(12, 3)
    y = functional.selective_kernel(u, w1, None, w2, None)
    first = torch.autograd.grad(y.sin().sum(), u, retain_graph=True)
    torch.autograd.grad(y.sum(), u, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(y.sin().sum(), u)))


# ---- modules against timm
def randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    for p in module.parameters():
        p.data.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def compare(ours: Any, theirs: Any, x: Tensor, **tolerance: float) -> None:
    x, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(x), theirs(other)
    torch.testing.assert_close(y, expected, **tolerance)
    grads = torch.autograd.grad(y.sin().sum(), [x, *ours.parameters()])
    wanted = torch.autograd.grad(expected.sin().sum(), [other, *theirs.parameters()])
    torch.testing.assert_close(grads, wanted, **tolerance)
    for one, two in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"kernel_size": [3, 5, 7], "split_input": False}, {"stride": 2, "groups": 2},
     {"keep_3x3": False, "rd_channels": 7}, {"out_channels": 24, "act_layer": nn.SiLU}],
    ids=str,
)  # fmt: skip
def test_selective_kernel_matches_timm(options: dict[str, Any], training: bool) -> None:
    theirs = timm_sk.SelectiveKernel(12, **options).double().train(training)
    randomise(theirs)
    theirs.attn.act = nn.SiLU() if "act_layer" in options else theirs.attn.act
    ours = SelectiveKernel(12, **options).double().train(training)
    ours.load_state_dict(theirs.state_dict())
    copy.deepcopy(theirs).load_state_dict(ours.state_dict())
    x = torch.randn(3, 12, 9, 8, dtype=torch.float64)
    assert chattn_cuda.explain(ours, x).path == "fused"
    compare(ours, theirs, x)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_accelerated_timm(training: bool, memory_format: torch.memory_format) -> None:
    x = torch.randn(3, 12, 8, 8, dtype=torch.float64).contiguous(memory_format=memory_format)
    for make in (
        lambda: timm_sk.SelectiveKernel(12),
        lambda: SplitAttn(12, radix=2, norm_layer=nn.BatchNorm2d),
        lambda: SplitAttn(12, 24, radix=3, groups=2),
    ):
        theirs = make().double().train(training)
        randomise(theirs)
        ours = copy.deepcopy(theirs)
        report = chattn_cuda.accelerate(ours, "cpu", fuse="block")
        assert report.changed and not report.left
        assert chattn_cuda.explain(ours, x).path == "fused"
        compare(ours, theirs, x)
        if make().__class__.__name__ == "SelectiveKernel":
            assert ours(x).is_contiguous(memory_format=memory_format)
        chattn_cuda.restore(ours)
        assert type(ours) is type(theirs)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "arguments",
    [
        {"norm_layer": nn.BatchNorm2d},
        {"out_channels": 24, "radix": 3, "groups": 2, "bias": True},
        {"radix": 4, "rd_channels": 5, "stride": 2, "act_layer": nn.SiLU},
        {"radix": 1, "norm_layer": nn.BatchNorm2d},
        {"out_channels": 96, "rd_ratio": 0.9, "padding": 0, "kernel_size": 1},
    ],
    ids=["default", "cardinality", "radix4", "radix1", "wide"],
)
def test_split_attention_is_timms(arguments: dict[str, Any], training: bool) -> None:
    theirs = SplitAttn(12, **arguments).double().train(training)
    randomise(theirs)
    ours = chattn_cuda.SplitAttn(12, **arguments).double().train(training)
    ours.load_state_dict(theirs.state_dict())
    copy.deepcopy(theirs).load_state_dict(ours.state_dict())
    x = torch.randn(3, 12, 9, 8, dtype=torch.float64)
    fused = arguments.get("radix") != 1
    assert chattn_cuda.explain(ours, x).path == ("fused" if fused else "eager")
    compare(ours, theirs, x)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"radix": 0}, "radix must be"), ({"groups": 5}, "divisible"), ({"rd_channels": 0}, "rd_ch")],
)
def test_split_attention_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chattn_cuda.SplitAttn(12, **arguments)


@on_fused
def test_explain_says_who_copies_slices(backend: str) -> None:
    cases.require(backend)
    x = torch.randn(2, 8, 6, 6, device=cases.device_of(backend))
    block = nn.ModuleList([SplitAttn(8, radix=2)]).to(x.device)
    chattn_cuda.accelerate(block, backend)
    wide, w = torch.cat([x, x], 1), (x.new_ones(4, 8), None, x.new_ones(16, 4), None)
    call = functools.partial(chattn_cuda.explain, functional.selective_kernel, backend=backend)
    explanations = [chattn_cuda.explain(block[0], x), call(wide.chunk(2, 1), *w), call([x, x], *w)]
    assert all(e.path == "fused" and e.backend == backend for e in explanations)
    copied = ["copies branches that are slices of one map" in str(e) for e in explanations]
    assert copied == [backend == "triton", backend == "triton", False]
    if backend == "triton":
        from chattn_cuda.triton import sk

        program = sk.sk_squeeze.program((wide.chunk(2, 1), None, 1, 0.0))
        assert all(u.memory_format is torch.contiguous_format for u in program.inputs.values())


def test_radix_of_one_is_left() -> None:
    report = chattn_cuda.accelerate(SplitAttn(16, radix=1))
    assert not report.changed and "2 to 4" in report.left[0].note


@pytest.mark.parametrize("m", [1, 2, 4, 5])
def test_attn_returns_the_gate_of_a_stacked_map(m: int) -> None:
    theirs = timm_sk.SelectiveKernelAttn(12, m, 5).double()
    randomise(theirs)
    ours = SelectiveKernelAttn(12, m, 5).double()
    ours.load_state_dict(theirs.state_dict())
    u = torch.randn(3, m, 12, 4, 5, dtype=torch.float64)
    compare(ours, theirs, u)
    if m <= 4:
        ours.eval(), theirs.eval()
        expected = (u * theirs(u)).sum(1)
        torch.testing.assert_close(ours.weigh(list(u.unbind(1))), expected)


def test_hooks_on_the_layers_between_run() -> None:
    block, seen = SelectiveKernel(8), []
    block.attn.fc_select.register_forward_hook(lambda *_: seen.append(1))
    block(torch.randn(2, 8, 4, 4)).sum().backward()
    block.attn.register_forward_hook(lambda *_: seen.append(2))
    assert chattn_cuda.explain(block, torch.randn(2, 8, 4, 4)).path == "eager"
    block(torch.randn(2, 8, 4, 4)).sum().backward()
    assert seen == [1, 1, 2]


def test_one_sample_in_training() -> None:
    x = torch.randn(1, 32, 5, 5)
    with pytest.raises(ValueError, match=r"fc='plain'"):
        SKConv(32, 5, 2, 8, 2)(x)
    SKConv(32, 5, 2, 8, 2, fc="plain")(x).sum().backward()
    SelectiveKernel(32, attn_norm_layer=None)(x).sum().backward()
    SelectiveKernelAttn(32, norm_layer=None).weigh([x, x]).sum()
    block = SelectiveKernel(32)
    block.attn.bn.eval()
    block(x).sum().backward()


def test_paper_constructor() -> None:
    block = SelectiveKernelConv(64, branches=3, groups=32, reduction=16, min_channels=32)
    assert block.attn.fc_reduce.weight.shape == (32, 64, 1, 1)
    assert block.attn.fc_select.weight.shape == (192, 32, 1, 1)
    assert [p.conv.dilation for p in block.paths] == [(1, 1), (2, 2), (3, 3)]
    assert {p.conv.kernel_size for p in block.paths} == {(3, 3)}
    assert block.attn.fc_reduce.bias is None and type(block.attn.bn) is nn.BatchNorm2d


def test_widely_copied_signatures() -> None:
    x = torch.randn(2, 64, 10, 12)
    assert SKConv(64, 32, 3, 8, 2)(x).shape == x.shape
    assert SKConv(64, 32, 2, 8, 2, 2, 16)(x).shape == (2, 64, 5, 6)
    assert SKUnit(64, 128, 32, 2, 8, 2, stride=2)(x).shape == (2, 128, 5, 6)
    net = SKNet(10)
    logits = net(torch.randn(2, 3, 40, 40))
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel_size": 4}, "odd"),
        ({"kernel_size": (3, 2)}, "odd"),
        ({"kernel_size": (3, 5, 7)}, "multiple of the 3 branches"),
        ({"out_channels": -3}, "out_channels must be at least 1"),
        ({"stride": 0}, "stride must be at least 1"),
        ({"rd_divisor": 0}, "rd_divisor must be at least 1"),
    ],
)
def test_constructor_says_what_is_wrong(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SelectiveKernel(8, **options)


def test_stacked_maps_of_other_channels() -> None:
    with pytest.raises(ValueError, match="must have 6 channels"):
        SelectiveKernelAttn(6)(torch.randn(2, 2, 7, 3, 5))


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_vmap_of_a_module(backend: str) -> None:
    module = SelectiveKernel(8, backend=backend).eval()
    x = torch.randn(3, 2, 8, 4, 5)
    expected = torch.stack([module(sample) for sample in x])
    torch.testing.assert_close(torch.func.vmap(module)(x), expected)


def hooked(block: nn.Module) -> nn.Module:
    block.rsoftmax.register_forward_hook(lambda *_: None)
    return block


@pytest.mark.parametrize(
    "module",
    [
        lambda: SelectiveKernel(10, kernel_size=(3, 5, 7, 9, 11)),
        lambda: hooked(chattn_cuda.accelerate(SplitAttn(8)).model),
        lambda: chattn_cuda.SplitAttn(8, radix=1),
    ],
)
def test_submodules_keep_the_format(module: Callable[[], nn.Module]) -> None:
    """Where the operators do not cover the block."""
    block = module().eval()
    x = torch.randn(2, getattr(block, "in_channels", 8), 5, 6)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        y = block(x.contiguous(memory_format=memory_format))
        assert y.is_contiguous(memory_format=memory_format)


U = branches_of()
W1, W2 = torch.randn(3, 6), torch.randn(12, 3)
ERRORS = {
    "no list": ((U[0], W1, None, W2, None), TypeError, "branches must be a list or tuple"),
    "none": (([], W1, None, W2, None), ValueError, "1 to 4 maps, got 0"),
    "five": ((U * 3, W1, None, W2, None), ValueError, "1 to 4 maps, got 6"),
    "shapes": (([U[0], U[1][:, :, :2]], W1, None, W2, None), ValueError, "shape of branches"),
    "types": (([U[0], U[1].half()], W1, None, W2, None), ValueError, "dtype of branches"),
    "rank": (([U[0][0]], W1, None, W2, None), ValueError, "branches.0. must have shape"),
    "w_reduce": ((U, W2, None, W2, None), ValueError, "w_reduce must have shape"),
    "w_select": ((U, W1, None, W1, None), ValueError, "w_select must have shape"),
    "b_select": ((U, W1, None, W2, W1[0]), ValueError, "b_select must have shape"),
    "weights": ((U, None, None, W2, None), TypeError, "w_reduce must be a tensor"),
    "mixed": ((U, W1.half(), None, W2, None), ValueError, "w_reduce must have the dtype of x"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    arguments, error, words = ERRORS[name]
    with pytest.raises(error, match=words):
        functional.selective_kernel(*arguments)
    with pytest.raises(error) as info:
        functional.selective_kernel(*arguments, backend="reference")
    assert words.split(" ")[0].split(".")[0] in str(info.value)


def test_whole_model() -> None:
    model = timm.create_model("skresnet18", num_classes=7).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        report = chattn_cuda.accelerate(model, fuse="block")
        assert len(report.changed) == 16 and not report.left
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
