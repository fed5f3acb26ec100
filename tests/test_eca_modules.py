"""ECA as modules: timm's constructors and results, the authors' weights, the paper's variants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import (
    CircularEfficientChannelAttention,
    EfficientChannelAttention,
    EfficientChannelAttentionNS,
)
from chattn_cuda.modules import SEGC, SEVar1, SEVar2, SEVar3, adaptive_kernel_size
from tests import cases
from tests.test_modules import FUSED, assert_same, assert_trains_alike, maps, path

timm = pytest.importorskip("timm", reason="timm is not installed")
PEERS = {
    EfficientChannelAttention: timm.layers.EcaModule,
    CircularEfficientChannelAttention: timm.layers.CecaModule,
}
every_peer = pytest.mark.parametrize("cls", PEERS, ids=["eca", "ceca"])


def pair(cls: type[nn.Module], *args: Any, **kwargs: Any) -> tuple[Any, nn.Module]:
    """Our module and timm's, with the same weights."""
    ours, theirs = cls(*args, **kwargs), PEERS[cls](*args, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


# ---- timm's modules ----------------------------------------------------------------------------


@every_peer
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((), {}),
        ((64,), {}),
        ((256,), {"kernel_size": 9}),  # which channels override
        ((512,), {"gamma": 1.5, "beta": 2}),
        ((), {"kernel_size": 1}),
        ((), {"kernel_size": 7, "gate_layer": nn.Hardsigmoid}),
        ((256,), {"act_layer": nn.ReLU}),
    ],
    ids=str,
)
def test_parameters_and_initialisation_are_timms(
    cls: type[nn.Module], args: tuple[int, ...], kwargs: dict[str, Any]
) -> None:
    torch.manual_seed(3)
    ours = cls(*args, **kwargs)
    torch.manual_seed(3)
    theirs = PEERS[cls](*args, **kwargs)
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert [n for n, _ in ours.named_children()] == [n for n, _ in theirs.named_children()]
    assert type(ours.conv) is type(theirs.conv)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


@every_peer
@pytest.mark.parametrize(
    "kwargs",
    [
        {"channels": 24},
        {"kernel_size": 1},
        {"kernel_size": 7, "gate_layer": "hard_sigmoid"},
        {"kernel_size": 5, "gate_layer": nn.Tanh},
        {"kernel_size": 3, "gate_layer": timm.layers.activations.Sigmoid},
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_trains_like_timm(cls: type[nn.Module], kwargs: dict[str, Any], layout: str) -> None:
    ours, theirs = pair(cls, **kwargs)
    x = cases.LAYOUTS[layout](maps())
    assert_trains_alike(ours, theirs, x)
    assert ours(x).stride() == theirs(x).stride()
    assert not FUSED or path(ours, x) == "fused"


def test_mlp_runs_its_submodules() -> None:
    for kwargs in ({}, {"rd_channels": 5, "act_layer": nn.SiLU}, {"rd_ratio": 0.4}):
        ours, theirs = pair(EfficientChannelAttention, 24, use_mlp=True, **kwargs)
        assert_trains_alike(ours, theirs, maps())
        explanation = chattn_cuda.explain(ours, maps())
        assert explanation.path == "eager" and "use_mlp" in explanation.reasons[0]
    for channels in (16, 72, 100, 1000):
        ours, theirs = pair(EfficientChannelAttention, channels, use_mlp=True)
        assert ours.conv.out_channels == theirs.conv.out_channels


def test_convolution_with_a_bias_runs_the_submodules() -> None:
    ours, theirs = pair(CircularEfficientChannelAttention, 24, act_layer=nn.ReLU)
    assert_trains_alike(ours, theirs, maps())
    assert "conv has a bias" in chattn_cuda.explain(ours, maps()).reasons[0]


def test_gates_that_the_kernels_do_not_know() -> None:
    ours, theirs = pair(EfficientChannelAttention, 24, gate_layer="silu")
    assert_trains_alike(ours, theirs, maps())
    assert "gate (SiLU)" in chattn_cuda.explain(ours, maps()).reasons[0]


def _hook(m: Any) -> None:
    m.conv.register_forward_hook(lambda module, args, output: 2 * output)


def _wrap(m: Any) -> None:
    m.conv = nn.Sequential(m.conv, nn.Dropout(0.0))


def _parametrise(m: Any) -> None:
    nn.utils.parametrizations.weight_norm(m.conv)


def _pad_with_copies(m: Any) -> None:
    m.conv = nn.Conv1d(1, 1, 5, padding=2, padding_mode="replicate", bias=False)
    nn.init.ones_(m.conv.weight)


def _dilate(m: Any) -> None:
    m.conv = nn.Conv1d(1, 1, 3, padding=2, dilation=2, bias=False)
    nn.init.ones_(m.conv.weight)


@pytest.mark.parametrize(
    "change", [_hook, _wrap, _parametrise, _pad_with_copies, _dilate], ids=lambda f: f.__name__
)
def test_changed_submodules_are_called(change: Any) -> None:
    ours, theirs = pair(EfficientChannelAttention, 24)
    for module in (ours, theirs):
        change(module)
    assert_trains_alike(ours, theirs, maps())
    assert path(ours, maps()) == "eager"


@every_peer
def test_autocast_as_timm(cls: type[nn.Module]) -> None:
    ours, theirs = pair(cls, 24)
    for x in (maps(), maps().bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, expected = ours(x), theirs(x)
        assert y.dtype == expected.dtype
        torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)


def test_empty_batch_and_empty_planes() -> None:
    """Where timm's modules raise, too."""
    for shape in ((0, 24, 5, 7), (2, 24, 0, 7)):
        x = torch.randn(shape, requires_grad=True)
        for module in (EfficientChannelAttention(24), EfficientChannelAttentionNS(24), SEVar1()):
            for y in (module(x), module.eager_forward(x)):
                assert y.shape == shape
                y.sum().backward()


# ---- the length of the convolution -------------------------------------------------------------


def test_adaptive_kernel_size() -> None:
    expected = {1: 3, 7: 3, 8: 3, 127: 3, 128: 5, 2047: 5, 2048: 7, 32767: 7, 32768: 9}
    assert {c: adaptive_kernel_size(c) for c in expected} == expected
    for c in (16, 100, 228, 640, 3840):
        for gamma, beta in ((2, 1), (1, 1), (1.5, 3)):
            theirs = timm.layers.EcaModule(c, gamma=gamma, beta=beta)
            assert adaptive_kernel_size(c, gamma, beta) == theirs.conv.kernel_size[0]


def test_parameters_of_resnet50_are_those_of_the_paper() -> None:
    """80 weights with k = 3, 5, 5, 7 in the authors' code, 86 by the rule."""
    stages = ((3, 256, 3), (4, 512, 5), (6, 1024, 5), (3, 2048, 7))
    assert sum(n * EfficientChannelAttention(c).conv.weight.numel() for n, c, _ in stages) == 86
    explicit = [(n, EfficientChannelAttention(kernel_size=k)) for n, _, k in stages]
    assert sum(n * m.conv.weight.numel() for n, m in explicit) == 80


# ---- the authors' code -------------------------------------------------------------------------


class AuthorsLayer(nn.Module):
    """Published as ``eca_layer``, with an explicit k."""

    def __init__(self, k_size: int) -> None:
        super().__init__()
        self.avg_pool = nn.AdaptiveAvgPool2d(1)
        self.conv = nn.Conv1d(1, 1, k_size, padding=(k_size - 1) // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.avg_pool(x).squeeze(-1).transpose(-1, -2))
        return x * torch.sigmoid(y.transpose(-1, -2).unsqueeze(-1)).expand_as(x)


class AuthorsNS(nn.Module):
    """Published as ``eca_ns``: an unfolded window for every channel."""

    def __init__(self, channel: int, k_size: int) -> None:
        super().__init__()
        self.k_size = k_size
        self.conv = nn.Conv1d(channel, channel, k_size, bias=False, groups=channel)

    def forward(self, x: Tensor) -> Tensor:
        y = F.adaptive_avg_pool2d(x, 1).transpose(-1, -3)
        y = F.unfold(y, (1, self.k_size), padding=(0, (self.k_size - 1) // 2))
        return x * torch.sigmoid(self.conv(y.transpose(-1, -2)).unsqueeze(-1)).expand_as(x)


@pytest.mark.parametrize("k", [1, 3, 5, 7])
def test_authors_checkpoint_loads(k: int) -> None:
    theirs = AuthorsLayer(k)
    saved = {f"module.layer1.0.eca.{name}": value for name, value in theirs.state_dict().items()}
    assert list(saved) == ["module.layer1.0.eca.conv.weight"]
    model = nn.ModuleDict({"layer1": nn.ModuleList([nn.Module()])})
    model["layer1"][0].eca = EfficientChannelAttention(kernel_size=k)
    model.load_state_dict({name.removeprefix("module."): v for name, v in saved.items()})
    ours = model["layer1"][0].eca
    assert_trains_alike(ours, theirs, maps())


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("backend", [*cases.fused_backends(), "reference"])
def test_weights_of_its_own_for_every_channel(backend: str, k: int) -> None:
    cases.require(backend)
    device = cases.device_of(backend)
    theirs = AuthorsNS(24, k).to(device)
    ours = EfficientChannelAttentionNS(24, k, backend=backend).to(device)
    assert sum(p.numel() for p in ours.parameters()) == 24 * k
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    assert_trains_alike(ours, theirs, maps().to(device))
    assert path(ours, maps().to(device)) == ("reference" if backend == "reference" else "fused")
    assert_same(ours.eager_forward(maps().to(device)), theirs(maps().to(device)))


# ---- the ablation of the paper -----------------------------------------------------------------

C, GROUPS = 24, 4


@pytest.mark.parametrize(
    ("module", "count"),
    [(SEVar1(), 0), (SEVar2(C), C), (SEVar3(C), C * C), (SEGC(C, GROUPS), C * C // GROUPS)],
    ids=["var1", "var2", "var3", "gc"],
)
def test_parameters_of_the_ablation(module: nn.Module, count: int) -> None:
    assert sum(p.numel() for p in module.parameters()) == count


def test_results_of_the_ablation() -> None:
    x, p = maps(), maps().mean((2, 3))
    var2, var3, gc = SEVar2(C), SEVar3(C), SEGC(C, GROUPS)
    size = C // GROUPS
    blocks = torch.block_diag(*gc.fc.weight[:, :, 0, 0].split(size))
    for module, z in {
        SEVar1(): p,
        var2: p * var2.conv.weight[:, 0, 0],
        var3: p @ var3.fc.weight[:, :, 0, 0].T,
        gc: p @ blocks.T,
    }.items():
        assert_same(module(x), x * torch.sigmoid(z)[:, :, None, None])
        assert_same(module.eager_forward(x), module(x))


@pytest.mark.parametrize(
    ("module", "kind", "name"),
    [
        (SEVar1(), "fused", "SEVar1"),
        (SEVar2(C), "fused", "EfficientChannelAttention"),
        (SEVar3(C), "fused", "SEVar3"),
        (SEGC(C, 2), "eager", "SEGC"),
    ],
    ids=["var1", "var2", "var3", "gc"],
)
def test_ablation_says_how_it_runs(module: nn.Module, kind: str, name: str) -> None:
    explanation = chattn_cuda.explain(module, maps())
    assert explanation.path == (kind if FUSED else "eager")
    assert explanation.block == name


def test_ablation_with_a_gate_that_the_kernels_do_not_know() -> None:
    module = SEVar1("silu")
    assert_same(module(maps()), maps() * F.silu(maps().mean((2, 3), keepdim=True)))
    assert path(module, maps()) == "eager"
