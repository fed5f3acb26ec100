"""`accelerate` on the classes of timm, torchvision, and on modules built like other libraries'."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import accelerate, backends, restore
from tests import cases, peers

timm = pytest.importorskip("timm", reason="timm is not installed")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
FUSED = backends.select("auto", "cpu") != "reference"
EffNetSE = timm.models._efficientnet_blocks.SqueezeExcite
LegacySE = timm.models.senet.SEModule
ClSE = timm.layers.squeeze_excite.SqueezeExciteCl
VisionSE = torchvision.ops.misc.SqueezeExcitation
MAP = (2, 24, 5, 7)

BUILD: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "timm-se": (functools.partial(timm.layers.SEModule, 24, rd_channels=6), MAP),
    "timm-ese": (functools.partial(timm.layers.EffectiveSEModule, 24), MAP),
    "timm-efficientnet": (functools.partial(EffNetSE, 24, act_layer=nn.SiLU), MAP),
    "timm-mobilenet": (functools.partial(EffNetSE, 24, gate_layer="hard_sigmoid"), MAP),
    "timm-legacy": (functools.partial(LegacySE, 24, 4), MAP),
    "timm-cl": (functools.partial(ClSE, 24, rd_channels=6), (2, 5, 7, 24)),
    "timm-eca": (functools.partial(timm.layers.EcaModule, 24), MAP),
    "timm-ceca": (functools.partial(timm.layers.CecaModule, 24), MAP),
    "timm-rexnet": (
        functools.partial(timm.layers.SEModule, 24, rd_channels=6, norm_layer=nn.BatchNorm2d),
        MAP,
    ),
    "torchvision": (functools.partial(VisionSE, 24, 6), MAP),
    "torchvision-mobilenet": (
        functools.partial(
            VisionSE,
            24,
            6,
            activation=functools.partial(nn.SiLU, inplace=True),
            scale_activation=nn.Hardsigmoid,
        ),
        MAP,
    ),
    **peers.BUILD,
}


def maps(shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64) + 0.5


def run(module: nn.Module, x: Tensor) -> list[Tensor]:
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    y = module(leaf)
    y.sin().sum().backward()
    buffers = [b.clone() for b in module.buffers()]
    return [y.detach(), leaf.grad, *(p.grad for p in module.parameters()), *buffers]


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.fixture(params=list(BUILD))
def peer(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    build, shape = BUILD[request.param]
    return build().double(), maps(shape)


def exact(module: nn.Module) -> nn.Module:
    """A copy with a gradient of the hard sigmoid that is exact in float64; torch's is not."""
    plain = copy.deepcopy(module)
    for name, child in list(plain.named_children()):
        if isinstance(child, nn.Hardsigmoid):
            setattr(plain, name, peers.HSigmoid())
    return plain


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", ["dense", "channels_last"])
def test_same_numbers(peer: tuple[nn.Module, Tensor], layout: str, training: bool) -> None:
    module, x = peer
    if layout == "channels_last" and x.dim() > 3:
        last = {4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()]
        x = x.contiguous(memory_format=last)
    module.train(training)
    plain = exact(module)
    keys = list(module.state_dict())
    report = accelerate(module)
    assert len(report.changed) == 1 and not report.left, str(report)
    assert list(module.state_dict()) == keys and isinstance(module, type(plain))
    if FUSED and not (training and isinstance(getattr(module, "bn", None), nn.BatchNorm2d)):
        assert chattn_cuda.explain(module, x).path == "fused"
    assert_same(run(module, x), run(plain, x))
    if x.is_contiguous() or x.shape[1] == 24:  # a permuted NHWC tensor comes back dense
        assert module(x).stride() == plain(x).stride()
    restore(module)
    assert type(module) is type(plain)
    assert_same(run(exact(module), x), run(plain, x))


@pytest.mark.parametrize("backend", cases.fused_backends())
def test_every_backend(peer: tuple[nn.Module, Tensor], backend: str) -> None:
    cases.require(backend)
    device = cases.device_of(backend)
    module, x = peer[0].eval().to(device), peer[1].to(device)
    expected = run(exact(module), x)
    accelerate(module, backend)
    explanation = chattn_cuda.explain(module, x)
    assert (explanation.path, explanation.backend) == ("fused", backend)
    assert_same(run(module, x), expected)


class FlaggedConvModule(peers.ConvModule):
    def __init__(self, c_in: int, c_out: int, act: nn.Module, bias: bool) -> None:
        super().__init__(c_in, c_out, act, bias)
        self.with_activation, self.with_norm = True, False

    def forward(self, x: Tensor) -> Tensor:
        return self.activate(self.conv(x)) if self.with_activation else self.conv(x)


def test_an_activation_that_is_switched_off_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ConvModule", FlaggedConvModule)
    module, x = peers.MMSELayer(24).double(), torch.randn(2, 24, 5, 7, dtype=torch.float64)
    plain = exact(module)
    assert accelerate(module).changed
    module(x)
    for m in (module, plain):
        m.conv1.with_activation = False
    assert chattn_cuda.explain(module, x).path == "eager"
    assert_same(run(module, x), run(plain, x))


def test_copies_and_pickles(peer: tuple[nn.Module, Tensor]) -> None:
    module, x = peer
    module.eval()
    expected = module(x).detach()
    accelerate(module)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(other) is type(module)
        assert_same(other(x).detach(), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_graphs_of_plain_operations(peer: tuple[nn.Module, Tensor]) -> None:
    module, x = peer
    module.eval()
    expected = module(x).detach()
    accelerate(module)
    traced = torch.jit.trace(module, x)
    assert "chattn_cuda::" not in str(traced.inlined_graph)
    assert_same(traced(x).detach(), expected)
    if not isinstance(module, peers.ChannelSELayer):  # whose own forward fx cannot trace
        assert_same(torch.fx.symbolic_trace(nn.Sequential(module))(x).detach(), expected)


@pytest.mark.parametrize(
    "name", [n for n in BUILD if not n.startswith(("monai", "timm-cl", "lukemelas"))]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_script(name: str) -> None:
    """The own forwards of MONAI, SqueezeExciteCl and MBConvBlock are no TorchScript."""
    build, shape = BUILD[name]
    module = build().double().eval()
    expected = module(maps(shape)).detach()
    scripted = torch.jit.script(accelerate(module).model)
    assert_same(scripted(maps(shape)).detach(), expected)


# ---- what only looks like a block ---------------------------------------------------------------


class Renamed(nn.Module):
    """The structure of an SELayer under another class name, among other modules."""

    def __init__(self) -> None:
        super().__init__()
        self.avg_pool, self.fc = nn.AdaptiveAvgPool2d(1), peers.SELayer(24).fc

    forward = peers.SELayer.forward


def test_structure_decides_and_not_the_name() -> None:
    model = nn.Sequential(nn.Conv2d(3, 24, 1), Renamed())
    assert [e.name for e in accelerate(model).changed] == ["1"]


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: peers.MaxPooled(24), "squeezes with amax, not the mean"),
        (lambda: peers.Squared(24), "its forward calls pow"),
        (lambda: peers.Detached(24), "its forward calls detach"),
        (lambda: peers.Refusing(24), "fails on a small map: maps are 224 x 224"),
        (lambda: peers.AfterProjection(24, 24), "computes something else"),
        (lambda: peers.Unasked(24, 24), "computes something else"),
    ],
    ids=["max", "squared", "detached", "refusing", "after-projection", "unasked"],
)
def test_another_forward_is_left_alone(build: Callable[[], nn.Module], reason: str) -> None:
    module = build()
    cls = type(module)
    report = accelerate(nn.Sequential(module))
    assert not report.changed and type(module) is cls
    assert reason in report.left[0].note and reason in str(report)


@pytest.mark.parametrize("build", [peers.MaxPooled, peers.SELayer])
def test_zero_weights_do_not_hide_what_is_computed(build: Callable[[int], nn.Module]) -> None:
    module = build(24)
    for p in module.parameters():
        nn.init.zeros_(p)
    assert bool(accelerate(module).changed) == (build is peers.SELayer)


def _deepen(m: Any) -> None:
    m.fc = nn.Sequential(*m.fc, nn.Linear(24, 24))


def _pool(m: Any) -> None:
    m.avg_pool = nn.AdaptiveAvgPool2d(2)


@pytest.mark.parametrize("change", [_deepen, _pool])
def test_other_structures_are_not_blocks(change: Callable[[Any], None]) -> None:
    module = peers.SELayer(24)
    change(module)
    report = accelerate(module)
    assert not report.changed


def _replace(m: Any) -> None:
    m.fc[0] = nn.Sequential(m.fc[0])


def _extend(m: Any) -> None:
    m.norm = nn.Identity()


def _gate(m: Any) -> None:
    m.fc[3] = nn.Hardsigmoid()


@pytest.mark.parametrize("change", [_replace, _extend, _gate])
def test_structures_that_differ_where_it_does_not_matter(change: Callable[[Any], None]) -> None:
    module = peers.SELayer(24)
    change(module)
    assert accelerate(module).changed


def test_activation_that_the_kernels_do_not_know() -> None:
    prelu, hard = peers.SELayer(24), peers.MMSELayer(24)
    prelu.fc[1] = nn.PReLU()
    hard.conv2.activate = peers.HSigmoid(bias=1.0, divisor=2.0)
    report = accelerate(nn.Sequential(prelu, hard))
    assert not report.changed
    assert [e.note for e in report.left] == [
        "the kernels do not know act (PReLU)",
        "the kernels do not know gate (HSigmoid)",
    ]


def block_and_copy() -> tuple[Any, Any]:
    torch.manual_seed(0)
    block = peers.MBConvBlock(24, 24, 2).double()
    return accelerate(copy.deepcopy(block)).model, block


def test_mbconv_keeps_its_own_stochastic_depth() -> None:
    fast, plain = block_and_copy()
    x = maps((6, 24, 5, 7))
    results = []
    for block in (fast, plain):
        torch.manual_seed(1)
        results.append(block(x, drop_connect_rate=0.5))
    assert_same(*results)
    assert not torch.allclose(results[0], plain(x))


def test_mbconv_is_as_it_was_from_outside() -> None:
    fast, plain = block_and_copy()
    assert fast.has_se is True and type(fast._project_conv) is peers.Conv2dStaticSamePadding
    assert fast.get_submodule("_project_conv") is fast._project_conv
    calls: list[str] = []
    fast._project_conv.register_forward_hook(lambda *args: calls.append("project"))
    fast._se_expand.register_forward_hook(lambda *args: calls.append("expand"))
    x = maps(MAP)
    assert chattn_cuda.explain(fast, x).path == "eager"
    assert_same(fast(x), plain(x))
    assert calls == ["expand", "project"]
    fast.has_se = plain.has_se = False  # of no effect on one of them would show
    assert_same(fast(x), plain(x))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda m: setattr(m, "_swish", nn.PReLU()), "the kernels do not know act (PReLU)"),
        (
            lambda m: setattr(m, "_se_reduce", peers.LowRank(48, 6, 1)),
            "_se_reduce is a LowRank",
        ),
    ],
)
def test_mbconv_with_other_layers(change: Callable[[Any], None], note: str) -> None:
    block = peers.MBConvBlock(24, 24, 2)
    change(block)
    report = accelerate(block)
    assert not report.changed and [e.note for e in report.left] == [note]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("training", [True, False])
def test_mbconv_of_any_type_and_device(training: bool, device: str) -> None:
    """The copy that is tried out has statistics of its own."""
    with torch.device(device):
        block = peers.MBConvBlock(24, 24, 2).half().train(training)
    assert accelerate(block).changed
    if device == "cpu":
        assert block._bn1.running_mean.dtype == torch.half and not block._bn1.running_mean.any()


def test_mbconv_without_se_is_no_block() -> None:
    block = peers.MBConvBlock(24, 24, 2)
    block.has_se = False
    report = accelerate(block)
    assert not report.changed and not report.left


@pytest.mark.parametrize("training", [True, False])
def test_mbconv_compiles_to_one_graph(training: bool) -> None:
    torch._dynamo.reset()
    fast, plain = block_and_copy()
    x = maps(MAP)
    compiled = torch.compile(fast.train(training), backend="aot_eager", fullgraph=True)
    assert_same(compiled(x), plain.train(training)(x))


def test_trying_out_leaves_no_trace() -> None:
    module = peers.SELayer(24).half().requires_grad_(False)
    calls: list[int] = []
    module.register_forward_hook(lambda *args: calls.append(1))
    module.fc.register_forward_pre_hook(lambda *args: calls.append(2))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    state = torch.get_rng_state()
    assert accelerate(module).changed
    assert torch.equal(torch.get_rng_state(), state) and not calls
    for k, v in module.state_dict().items():
        assert torch.equal(v, before[k]) and v.dtype == torch.float16
    assert all(p.grad is None and not p.requires_grad for p in module.parameters())


def test_on_the_meta_device_and_without_gradients() -> None:
    with torch.device("meta"):
        module = peers.SELayer(24)
    with torch.no_grad():
        assert accelerate(module).changed
    with torch.inference_mode():
        assert accelerate(peers.eca_layer(24)).changed


# ---- subclasses of known classes -----------------------------------------------------------------


class OwnScale(VisionSE):
    def _scale(self, input: Tensor) -> Tensor:
        return 2 * super()._scale(input)


class OwnEca(timm.layers.EcaModule):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class OnlyNamed(EffNetSE):
    pass


class Explains(timm.layers.SEModule):
    def explain(self) -> str:
        return "the user's own"


def test_subclasses() -> None:
    model = nn.ModuleDict(
        {
            "scale": OwnScale(24, 6),
            "eca": OwnEca(24),
            "named": OnlyNamed(24),
            "explains": Explains(24),
            "quantised": torchvision.models.quantization.mobilenetv3.QuantizableSqueezeExcitation(
                24, 6
            ),
        }
    )
    model["attribute"] = timm.layers.SEModule(24)
    model["attribute"].fused_layers = nn.Identity()
    report = accelerate(model)
    assert [e.name for e in report.changed] == ["named"]
    assert {e.name: e.note for e in report.left} == {
        "scale": "it overrides the _scale of SqueezeExcitation",
        "eca": "it overrides the forward of EcaModule",
        "explains": "it has an attribute 'explain' of its own",
        "quantised": "it overrides the forward of SqueezeExcitation",
        "attribute": "it has an attribute 'fused_layers' of its own",
    }
    assert model["explains"].explain() == "the user's own"


# ---- bad input -----------------------------------------------------------------------------------


def test_scripted_traced_and_exported() -> None:
    model = nn.Sequential(nn.Conv2d(3, 24, 1), timm.layers.SEModule(24))
    x = torch.randn(1, 3, 4, 4)
    with pytest.warns((DeprecationWarning, FutureWarning)):
        scripted, traced = torch.jit.script(model), torch.jit.trace(model, x)
    for module in (scripted, traced):
        report = accelerate(module)
        assert not report.changed and not report.left
        assert "is scripted or traced; accelerate the model first" in str(report)
    program = torch.export.export(model, (x,))
    with pytest.raises(TypeError, match=r"got an ExportedProgram: accelerate the model before"):
        accelerate(program)
    for graph in (program.module(), torch.fx.symbolic_trace(model)):
        report = accelerate(graph)
        if not report.changed:  # fx keeps the submodules that it calls
            assert "is a graph whose blocks are gone" in str(report)
        torch.testing.assert_close(graph(x), model(x))


def test_compiled_model() -> None:
    torch._dynamo.reset()
    model = nn.Sequential(nn.Conv2d(3, 24, 1), timm.layers.SEModule(24)).eval()
    x = torch.randn(2, 3, 4, 4)
    compiled = torch.compile(model, backend="aot_eager")
    expected = compiled(x).detach()
    report = accelerate(compiled)
    assert [e.name for e in report.changed] == ["_orig_mod.1"]
    torch.testing.assert_close(compiled(x).detach(), expected)


def test_data_parallel_wrapper() -> None:
    model = nn.DataParallel(nn.Sequential(timm.layers.SEModule(24)))
    assert [e.name for e in accelerate(model).changed] == ["module.0"]


def test_hooks_on_inner_layers_run() -> None:
    module = accelerate(peers.SELayer(24)).model
    calls: list[int] = []
    module.fc.register_forward_hook(lambda *args: calls.append(1))
    x = maps(MAP).float()
    assert chattn_cuda.explain(module, x).path == "eager"
    module(x)
    assert calls == [1]
