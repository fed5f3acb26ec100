"""Blocks whose batch norms run with what follows them: the same numbers as by their layers."""

from __future__ import annotations

import copy
import functools
import pickle
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import backends
from chattn_cuda.modules import deferred
from tests import cases

timm = pytest.importorskip("timm", reason="timm is not installed")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

FUSED = backends.select("auto", "cpu") != "reference"
pytestmark = pytest.mark.skipif(not FUSED, reason="no fused backend for the CPU")


def _timm_resnet(block: str, down: bool = False, **kwargs: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        cls = getattr(timm.models.resnet, block)
        planes = 8 if block == "Bottleneck" else 32
        if down:
            layer = timm.models.resnet.downsample_conv(32, 4 * planes, 1, 2)
            return cls(32, planes, 2, layer, **kwargs)  # type: ignore[no-any-return]
        return cls(32, planes, **kwargs)  # type: ignore[no-any-return]

    return make


def _efficient(block: str, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: getattr(timm.models._efficientnet_blocks, block)(32, 32, **kwargs)


def _torchvision(path: str, make: Callable[[Any], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: make(getattr(torchvision.models, path))


def _mb(module: Any) -> nn.Module:
    config = module.MBConvConfig(4, 3, 1, 32, 32, 1)
    return module.MBConv(config, 0.3, nn.BatchNorm2d)  # type: ignore[no-any-return]


def _mobile(module: Any) -> nn.Module:
    config = module.InvertedResidualConfig(32, 3, 64, 32, True, "HS", 1, 1, 1.0)
    return module.InvertedResidual(config, nn.BatchNorm2d)  # type: ignore[no-any-return]


SE, ECA, ESE = "se", "eca", "ese"
BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "bottleneck": _timm_resnet("Bottleneck"),
    "bottleneck-se": _timm_resnet("Bottleneck", attn_layer=timm.layers.SEModule),
    "bottleneck-eca": _timm_resnet("Bottleneck", attn_layer=timm.layers.EcaModule),
    "bottleneck-ese": _timm_resnet("Bottleneck", attn_layer=timm.layers.EffectiveSEModule),
    "bottleneck-down-drop": _timm_resnet(
        "Bottleneck", attn_layer=timm.layers.SEModule, down=True,
        drop_path=timm.layers.DropPath(0.4),
    ),
    "bottleneck-silu": _timm_resnet("Bottleneck", act_layer=nn.SiLU),
    "basic-se": _timm_resnet("BasicBlock", attn_layer=timm.layers.SEModule),
    "basic-drop": _timm_resnet("BasicBlock", drop_path=timm.layers.DropPath(0.4)),
    "inverted": _efficient("InvertedResidual", exp_ratio=2.0, drop_path_rate=0.3),
    "inverted-se": _efficient(
        "InvertedResidual", act_layer=nn.SiLU,
        se_layer=timm.models._efficientnet_blocks.SqueezeExcite,
    ),
    "separable": _efficient("DepthwiseSeparableConv"),
    "edge": _efficient("EdgeResidual"),
    "conv-bn-act": _efficient("ConvBnAct", kernel_size=3, skip=True),
    "regnety": lambda: timm.models.regnet.Bottleneck(32, 32, group_size=8),
    "norm-act": lambda: nn.Sequential(timm.layers.BatchNormAct2d(32, act_layer=nn.SiLU)),
    "senet": lambda: timm.models.senet.SEResNeXtBottleneck(32, 8, 2, 4, base_width=64),
    "senet-basic": lambda: timm.models.senet.SEResNetBlock(32, 32, 1, 4),
    "rexnet": lambda: timm.models.rexnet.LinearBottleneck(
        32, 40, 1, exp_ratio=2.0, se_ratio=0.25, drop_path=timm.layers.DropPath(0.3)
    ),
    "vovnet": lambda: timm.models.vovnet.OsaBlock(
        32, 8, 32, 2, residual=True, attn="ese", drop_path=timm.layers.DropPath(0.3)
    ),
    "ghost": lambda: timm.models.ghostnet.GhostBottleneck(32, 16, 32, 3, 2, se_ratio=0.25),
    "tresnet": lambda: timm.models.tresnet.Bottleneck(32, 8),
    "repvgg": lambda: timm.models.byobnet.RepVggBlock(32, 32),
    "mobile-one": lambda: timm.models.byobnet.MobileOneBlock(32, 32),
    "byob": lambda: timm.models.byobnet.BottleneckBlock(32, 32, bottle_ratio=0.25),
    "tv-bottleneck": _torchvision("resnet", lambda m: m.Bottleneck(32, 8)),
    "tv-basic": _torchvision("resnet", lambda m: m.BasicBlock(32, 32)),
    "tv-mobilenetv2": _torchvision("mobilenetv2", lambda m: m.InvertedResidual(32, 32, 1, 2)),
    "tv-mobilenetv3": _torchvision("mobilenetv3", _mobile),
    "tv-efficientnet": _torchvision("efficientnet", _mb),
    "tv-regnet": _torchvision(
        "regnet",
        lambda m: m.ResBottleneckBlock(32, 32, 1, nn.BatchNorm2d, nn.ReLU, 8, 1.0, 0.25),
    ),
}  # fmt: skip


def _randomise(module: nn.Module) -> nn.Module:
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
            if m.running_mean is not None and m.running_var is not None:
                nn.init.normal_(m.running_mean, std=0.3)
                nn.init.uniform_(m.running_var, 0.5, 2.0)
    return module


def _pair(name: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    module = _randomise(BLOCKS[name]()).double()
    fused = copy.deepcopy(module)
    chattn_cuda.accelerate(fused, fuse="tail")
    return module, fused


def _maps(channels_last: bool = False) -> Tensor:
    x = torch.randn(3, 32, 7, 6, dtype=torch.float64) + 0.5
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


def _step(module: nn.Module, x: Tensor, call: Any = None) -> dict[str, Any]:
    """What a training step gives, by ``call`` in the module's place."""
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    torch.manual_seed(7)
    y = (call or module)(leaf)
    y.sin().sum().backward()
    found = {"y": y.detach(), "dx": leaf.grad}
    found |= {f"d{k}": p.grad for k, p in module.named_parameters()}
    return found | {k: b.clone() for k, b in module.named_buffers()}


def _assert_same(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(_step(ours, x), _step(theirs, x), rtol=1e-7, atol=1e-7)


@pytest.fixture(autouse=True)
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The rule's; without it no map is too small, and no tail too simple."""
    rule = deferred.SMALLEST | {"rule": deferred._layers_are_faster}
    monkeypatch.setattr(deferred, "SMALLEST", {})
    monkeypatch.setattr(deferred, "_layers_are_faster", lambda *_: False)
    return rule


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The tails that ran fused, in their order."""
    calls: list[Any] = []

    def apply(namespace: str, tail: Any, *args: Any) -> Any:
        calls.append(tail)
        return apply_tail(namespace, tail, *args)

    apply_tail = deferred.apply_tail
    monkeypatch.setattr(deferred, "apply_tail", apply)
    return calls


@pytest.mark.parametrize("channels_last", [False, True], ids=["nchw", "channels_last"])
@pytest.mark.parametrize("name", BLOCKS)
def test_same_numbers_in_both_modes(name: str, channels_last: bool, fused_calls: list[Any]) -> None:
    """Outputs, gradients, running statistics; training, then inference, then training again."""
    module, fused = _pair(name)
    x = _maps(channels_last)
    for mode in (True, False, True):
        module.train(mode)
        fused.train(mode)
        _assert_same(fused, module, x)
    norms = [k for k, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)]
    norms = [k for k in norms if k != "se.bn"]  # of one number per channel
    assert len(fused_calls) == 3 * len(norms)  # each of them, in every step


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("name", ["resnet18", "skresnet18", "resnest14d"])
def test_checkpoints_from_the_first_step(
    name: str, momentum: float | None, fused_calls: list[Any]
) -> None:
    """A recomputation saves the same tensors, and updates as many statistics."""
    torch.manual_seed(0)
    module = _randomise(timm.create_model(name, num_classes=3)).double()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = momentum
    module.set_grad_checkpointing(True)  # type: ignore[operator]
    fused = copy.deepcopy(module)
    chattn_cuda.accelerate(fused, fuse="tail")
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    for _ in range(2):
        _assert_same(fused, module, x)
    assert fused_calls


def test_small_maps_go_to_the_layers(
    sizes: dict[str, Any], fused_calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the size of the block's input, then of each tail's; a named backend insists.

    With gradients it is half of the size.
    """
    _, fused = _pair("bottleneck-se")
    x = _maps()  # 32,256 bytes; a quarter of it inside
    for gradients in (False, True):
        for smallest, tails in ((32_256, 1), (8_064, 3), (300_000, 0)):
            monkeypatch.setattr(deferred, "SMALLEST", sizes | {"cpu": smallest << gradients})
            fused_calls.clear()
            with torch.set_grad_enabled(gradients):
                fused(x)
            assert len(fused_calls) == tails
    assert "small" in str(chattn_cuda.explain(fused, x))
    chattn_cuda.accelerate(fused, fuse="tail", backend="cpu")
    fused(x)
    assert len(fused_calls) == 3


@pytest.mark.parametrize(
    ("layout", "least", "gradients", "fuses"),
    [
        (torch.channels_last, 16_000, True, False),
        (torch.channels_last, 8_000, True, True),
        (torch.channels_last, 16_000, False, True),
        (torch.contiguous_format, 16_000, True, True),
    ],
)
def test_a_shortcut_and_relu_behind_few_bytes_go_to_the_layers(
    layout: Any, least: int, gradients: bool, fuses: bool, sizes: dict[str, Any],
    fused_calls: list[Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A map of 16,384 bytes is smaller than twice that of a norm and a ReLU alone, or not."""
    block = timm.models.resnet.BasicBlock(16, 16).train().to(memory_format=layout)
    eager = copy.deepcopy(block)
    chattn_cuda.accelerate(block)
    monkeypatch.setattr(deferred, "_layers_are_faster", sizes["rule"])
    monkeypatch.setattr(deferred, "SMALLEST", {"cpu": least})
    x = torch.randn(4, 16, 8, 8).contiguous(memory_format=layout)
    with torch.set_grad_enabled(gradients):
        y = block(x)
    assert len(fused_calls) == 1 + fuses
    torch.testing.assert_close(y, eager(x), rtol=1e-4, atol=1e-4)


def test_a_block_without_norms_is_looked_through_once() -> None:
    block = timm.models.resnet.BasicBlock(16, 16).eval()
    chattn_cuda.accelerate(block)
    block.bn1 = block.bn2 = nn.Identity()
    x = torch.randn(1, 16, 4, 4)
    block(x)
    before = len(weakref.finalize._registry)  # type: ignore[attr-defined]
    block(x), block(x)
    assert len(weakref.finalize._registry) == before  # type: ignore[attr-defined]


def test_a_trace_of_a_small_map_warns_of_nothing() -> None:
    block = timm.models.resnet.BasicBlock(16, 16).eval()
    chattn_cuda.accelerate(block)
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        torch.jit.trace(block, torch.randn(1, 16, 4, 4))


@pytest.mark.parametrize("act", [nn.Hardswish, nn.SiLU, nn.Mish, nn.ELU, nn.ReLU])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_nan_reaches_the_gradients_that_it_reaches_in_eager(act: Any, layout: Any) -> None:
    eager = timm.layers.BatchNormAct2d(16, act_layer=act).eval()
    fused = copy.deepcopy(eager)
    chattn_cuda.accelerate(fused, fuse="tail", backend="cpu")
    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=layout)
    x[0, 3, 4, 5] = torch.nan
    for model in (eager, fused):
        model(x).nansum().backward()
    for a, b in zip(fused.parameters(), eager.parameters(), strict=True):
        assert torch.equal(a.grad.isnan(), b.grad.isnan())


@pytest.mark.parametrize(
    ("dtype", "act", "mode", "nchw", "rows"),
    [
        (torch.float32, nn.ReLU, "frozen", True, True),
        (torch.float32, nn.SiLU, "frozen", True, True),
        (torch.float32, nn.SiLU, "train", True, True),
        (torch.float32, nn.Sigmoid, "train", True, False),
        (torch.float32, nn.Identity, "train", True, False),
        (torch.float32, nn.Identity, "infer", False, False),
        (torch.float32, nn.GELU, "infer", False, False),
        (torch.float32, functools.partial(nn.GELU, "tanh"), "train", True, True),
        (torch.bfloat16, nn.ReLU, "train", True, True),
        (torch.bfloat16, nn.ReLU, "frozen", True, False),
        (torch.bfloat16, nn.Hardswish, "train", True, True),
        (torch.bfloat16, nn.SiLU, "infer", True, True),
        (torch.bfloat16, nn.SiLU, "train", True, True),
        (torch.bfloat16, nn.SiLU, "frozen", True, False),
        (torch.bfloat16, nn.Mish, "frozen", True, True),
    ],
)
def test_simple_tails_that_are_no_faster_go_to_the_layers(
    dtype: torch.dtype, act: Any, mode: str, nchw: bool, rows: bool, sizes: dict[str, Any],
    fused_calls: list[Any], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """By type, layout, activation and mode; a named backend insists."""
    monkeypatch.setattr(deferred, "_layers_are_faster", sizes["rule"])
    for backend, channels in (("auto", 16), ("cpu", 16), ("auto", 15)):
        module = timm.layers.BatchNormAct2d(channels)
        module.act = act()
        chattn_cuda.accelerate(module.to(dtype).train(mode == "train"), backend, fuse="tail")
        for layout, fused in ((torch.contiguous_format, nchw), (torch.channels_last, rows)):
            x = torch.randn(2, channels, 4, 4).to(dtype, memory_format=layout)
            few = channels < 16 and layout == torch.channels_last
            fused_calls.clear()
            with torch.set_grad_enabled(mode != "infer"):
                module(x)
            assert bool(fused_calls) == (backend == "cpu" or (fused and not few))


def test_a_bottleneck_is_three_tails(fused_calls: list[Any]) -> None:
    """The last has all: gate, stochastic depth, residual, activation."""
    _, fused = _pair("bottleneck-down-drop")
    fused.train()(_maps())
    assert [t.gate is not None for t in fused_calls] == [False, False, False, True]
    last = fused_calls[-1]
    assert last.factors is not None and last.act[0] == 1 and last.inner[0] == 0


@pytest.mark.parametrize("momentum", [0.3, None])
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("track", [False, True])
def test_every_kind_of_norm(
    momentum: float | None, affine: bool, track: bool, fused_calls: list[Any]
) -> None:
    """As torch.nn.BatchNorm2d has them."""

    def norm(channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, 1e-3, momentum, affine, track)

    module = torchvision.models.resnet.BasicBlock(32, 32, norm_layer=norm).double()
    fused = copy.deepcopy(module)
    chattn_cuda.accelerate(fused, fuse="tail")
    for mode in (True, True, False):
        _assert_same(fused.train(mode), module.train(mode), _maps())
    assert len(fused_calls) == 6


def test_hooks_see_their_layers(fused_calls: list[Any]) -> None:
    """A layer with a hook runs by itself; the others are as before."""
    module, fused = _pair("bottleneck-se")
    seen: list[Tensor] = []
    for m in (module, fused):
        m.bn3.register_forward_hook(lambda m, args, y: seen.append(y.detach()))  # type: ignore
    _assert_same(fused, module, _maps())
    torch.testing.assert_close(seen[0], seen[1])
    assert len(fused_calls) == 2


def test_what_is_put_in_its_place_runs(fused_calls: list[Any]) -> None:
    """Another norm, or an activation that is not known."""
    module, fused = _pair("bottleneck")
    for m in (module, fused):
        m.bn2 = nn.GroupNorm(4, 8).double()
        m.act1 = nn.Softsign()
    _assert_same(fused, module, _maps())
    assert len(fused_calls) == 2


def test_patched_and_overridden_forwards_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block's own, and those of layers that are known."""
    module, fused = _pair("bottleneck-down-drop")

    def forward(self: Any, x: Tensor) -> Tensor:
        return 2 * x

    monkeypatch.setattr(timm.layers.DropPath, "forward", forward)
    _assert_same(fused, module, _maps())
    monkeypatch.setattr(timm.models.resnet.Bottleneck, "forward", forward)
    x = _maps()
    assert torch.equal(fused(x), 2 * x)


def test_a_single_value_per_channel_has_torchs_error() -> None:
    """And changes what the layer would."""
    found = []
    for module in _pair("norm-act"):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            module.train()(torch.randn(1, 32, 1, 1, dtype=torch.float64))
        found.append(module.state_dict())
    torch.testing.assert_close(found[1], found[0])


def test_second_derivatives() -> None:
    """By the formulas."""
    module, fused = _pair("bottleneck-se")
    found, values = [], _maps()
    for m in (module, fused):
        x = values.clone().requires_grad_()
        (dx,) = torch.autograd.grad(m(x).sin().sum(), x, create_graph=True)
        parameters = list(m.parameters())
        found.append(torch.autograd.grad(dx.square().sum(), [x, *parameters]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-9)


def _whole(name: str = "bottleneck-se") -> tuple[nn.Module, nn.Module, Tensor]:
    module, fused = _pair(name)
    return module.float(), fused.float(), _maps().float()


USES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "compile": lambda m, x: torch.compile(m, backend="aot_eager", fullgraph=True)(x),
    "export": lambda m, x: torch.export.export(m, (x,), strict=True).module()(x),
    "export-loose": lambda m, x: torch.export.export(m, (x,), strict=False).module()(x),
    "trace": lambda m, x: torch.jit.trace(m, x, check_trace=False)(x),
    "script": lambda m, x: torch.jit.script(m)(x),
    "fx": lambda m, x: torch.fx.symbolic_trace(m)(x),
    "vmap": lambda m, x: torch.func.vmap(lambda v: m(v))(x[None])[0],
    "jvp": lambda m, x: torch.func.jvp(m, (x,), (x,))[1],
    "functional_call": lambda m, x: torch.func.functional_call(m, dict(m.named_parameters()), (x,)),
    "inference": lambda m, x: torch.inference_mode()(m)(x).clone(),
    "checkpoint": lambda m, x: torch.utils.checkpoint.checkpoint(m, x, use_reentrant=False),
    "autocast": lambda m, x: torch.autocast("cpu", dtype=torch.bfloat16)(m)(x),
    "bfloat16": lambda m, x: copy.deepcopy(m).bfloat16()(x.bfloat16()),
    "no-samples": lambda m, x: m(x[:0]),
    "expanded": lambda m, x: m(x[:1].expand(3, -1, -1, -1)),
    "wrong-width": lambda m, x: _error(m, x[:, :5]),
    "unbatched": lambda m, x: _error(m, x[0]),
}


def _error(module: nn.Module, x: Tensor) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        module(x)


@pytest.mark.parametrize("use", USES)
def test_uses(use: str) -> None:
    """What works with the block works as before."""
    module, fused, x = _whole()
    found = [USES[use](m.eval(), x) for m in (fused, module)]
    coarse = use in ("autocast", "bfloat16")
    assert (found[0] is None) == (found[1] is None)
    if found[0] is None:
        return
    torch.testing.assert_close(*found, **(dict(rtol=0.05, atol=0.05) if coarse else {}))  # type: ignore


@pytest.mark.parametrize("backend", cases.fused_backends())
@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.Identity])
def test_a_frozen_norm_lets_no_infinite_value_into_the_gradient(act: Any, backend: str) -> None:
    """As of a 16-bit overflow: what the activation stops is finite."""
    cases.require(backend)
    module = timm.layers.BatchNormAct2d(8, act_layer=act).to(cases.device_of(backend)).eval()
    fused = copy.deepcopy(module)
    chattn_cuda.accelerate(fused, backend, fuse="tail")
    x = torch.randn(2, 8, 4, 4, device=cases.device_of(backend))
    x[0, 1, 2, 3] = -torch.inf
    found = []
    for m in (module, fused):
        leaf = x.clone().requires_grad_()
        m(leaf).sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("frozen", [False, True])
def test_autocast_trains(frozen: bool, fused_calls: list[Any]) -> None:
    """Types as in eager PyTorch; batch norm frozen or not."""
    found = []
    for m in _whole()[:2]:
        for norm in m.train().modules():
            if frozen and isinstance(norm, nn.BatchNorm2d):
                norm.eval().requires_grad_(False)
        x = torch.randn(3, 32, 7, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m(x)
        y.float().square().sum().backward()
        found.append((y, x.grad, [p.grad for p in m.parameters()], dict(m.named_buffers())))
    assert found[0][0].dtype == found[1][0].dtype
    torch.testing.assert_close(found[0][3], found[1][3], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0.1, atol=0.1)
    assert [g is None for g in found[0][2]] == [g is None for g in found[1][2]]
    assert len(fused_calls) > 0


def test_restore_pickle_and_copies() -> None:
    """Class, state and results, as of every accelerated module."""
    module, fused = _pair("bottleneck-se")
    x = _maps()
    expected = module.eval()(x)
    for copied in (pickle.loads(pickle.dumps(fused)), copy.deepcopy(fused)):
        assert type(copied).__name__ == type(fused).__name__
        torch.testing.assert_close(copied.eval()(x), expected)
    assert isinstance(fused, type(module)) and list(fused.state_dict()) == list(module.state_dict())
    chattn_cuda.restore(fused)
    assert type(fused) is type(module)


def test_fuse_is_for_all_or_for_blocks() -> None:
    """What was fused goes back to its layers with fuse="block"."""
    _, fused = _pair("bottleneck-se")
    assert chattn_cuda.explain(fused, _maps()).path == "fused"
    report = chattn_cuda.accelerate(fused, fuse="block")
    assert type(fused) is timm.models.resnet.Bottleneck
    assert [e.note for e in report.again] == [
        "its batch norms run by its layers again", "backend is now 'auto'",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="'block' or 'tail'"):
        chattn_cuda.accelerate(fused, fuse="all")


def test_memory_is_that_of_one_map() -> None:
    """A tail keeps its input, and no map besides."""
    kept: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    _, fused = _pair("bottleneck-se")
    x = torch.randn(8, 32, 16, 16, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        fused.train()(x)
    maps = [n for n in kept.values() if n >= 8 * 8 * 16 * 16 * 8]
    # Of the convolutions: x and two activations; of the norms: what the convolutions give.
    assert len(maps) == 6
