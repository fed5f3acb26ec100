"""What an accelerated class stands for: patches, missing attributes, signatures, its lifetime."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import io
import pickle
import sys
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import accelerate, restore
from chattn_cuda.peers import PEERS
from tests import exported, peers

timm = pytest.importorskip("timm", reason="timm is not installed")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
SqueezeExcitation = torchvision.ops.misc.SqueezeExcitation
selective_kernel, split_attn = timm.layers.selective_kernel, timm.layers.split_attn


class CopiedSE(peers.SELayer):
    """Somebody's copy, known by its structure."""


class ScaledSE(nn.Module):
    """A structure whose forward calls a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.avg_pool, self.fc = nn.AdaptiveAvgPool2d(1), peers.SELayer(16).fc

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale(x)

    def scale(self, x: Tensor) -> Tensor:
        return self.fc(self.avg_pool(x).flatten(1))[:, :, None, None]


BUILD: dict[str, Callable[[], nn.Module]] = {
    peer.path: functools.partial(exported.make, peer.load(), peer.path, 16) for peer in PEERS
}
STRUCTURES: dict[str, Callable[[], nn.Module]] = {
    "avg_pool, fc": lambda: CopiedSE(16),
    "method": ScaledSE,
    "avg_pool, f_ex": lambda: peers.SE(16, 4),
    "global_avgpool, conv1, conv2": lambda: peers.MMSELayer(16),
    "avg_pool, conv, sigmoid": lambda: peers.eca_layer(16),
    "_depthwise_conv, _se_reduce, _se_expand": lambda: peers.MBConvBlock(16, 16),
}
ALL = {**BUILD, **STRUCTURES}


def maps(name: str = "") -> Tensor:
    x = torch.randn(2, 16, 5, 7, generator=torch.Generator().manual_seed(0))
    if name.endswith("KernelAttn"):
        return torch.stack([x, x + 1], 1)
    last = name in BUILD and exported.channel_dim(BUILD[name]()) == -1
    return x.permute(0, 2, 3, 1) if last else x


@pytest.fixture(params=list(ALL))
def block(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return ALL[request.param]().eval(), maps(request.param)


def patched_forward(self: Any, x: Tensor, *others: Any) -> Tensor:
    return x + 42


def runs_patched(module: nn.Module, x: Tensor) -> bool:
    return torch.equal(module(x), x + 42)


# ---- patched classes -----------------------------------------------------------------------------


def test_a_patch_after_accelerate_runs(
    block: tuple[Any, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = block
    cls, expected = type(module), module(x)
    assert accelerate(module).changed
    fast = type(module)
    with monkeypatch.context() as patch:
        patch.setattr(cls, "forward", patched_forward)
        assert runs_patched(module, x)
        copies = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
        assert all(runs_patched(other, x) for other in copies)
        assert "forward" in explained(module, x)
        report = accelerate(module)
        assert type(module) is cls and runs_patched(module, x)
        assert "" not in [e.name for e in report.changed]
    torch.testing.assert_close(module(x), expected)
    for other in copies:  # a structure is tried out where it is loaded, and was another one there
        assert type(other) is (fast if fast.__dict__["_accelerated_as"] in BUILD else cls)
    assert accelerate(module).changed
    torch.testing.assert_close(module(x), expected)


def explained(module: nn.Module, x: Tensor) -> str:
    explanation = chattn_cuda.explain(module, x)
    assert explanation.path == "eager"
    return str(explanation)


def test_a_patch_before_accelerate_runs(
    block: tuple[Any, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = block
    cls, expected = type(module), module(x)
    with monkeypatch.context() as patch:
        patch.setattr(cls, "forward", patched_forward)
        report = accelerate(module)
        assert type(module) is cls and runs_patched(module, x)
        if f"{cls.__module__}.{cls.__qualname__}" in BUILD:
            assert report.left[0].note == f"the forward of {cls.__name__} was replaced"
    assert accelerate(module).changed
    torch.testing.assert_close(module(x), expected)


def test_a_patch_that_was_accelerated_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A structure's class is what it is when it is tried out; later it may be another one."""
    module = CopiedSE(16)
    x = maps()
    with monkeypatch.context() as patch:
        patch.setattr(CopiedSE, "forward", lambda self, x: x * self.gate(x), raising=True)
        patch.setattr(CopiedSE, "gate", ScaledSE.scale, raising=False)
        assert accelerate(module).changed
    monkeypatch.setattr(CopiedSE, "forward", patched_forward)
    assert runs_patched(module, x)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(
    ("build", "method"),
    [(lambda: SqueezeExcitation(16, 4), "_scale"), (ScaledSE, "scale")],
    ids=["torchvision", "structure"],
)
def test_a_patched_method_runs(
    build: Callable[[], nn.Module], method: str, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = build(), maps()
    if order == "after":
        assert accelerate(module).changed
    monkeypatch.setattr(type(module), method, lambda self, x: torch.full_like(x, 3.0))
    assert torch.equal(module(x), 3 * x)
    assert not accelerate(module).changed
    assert torch.equal(module(x), 3 * x)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("build", [lambda: SqueezeExcitation(16, 4), ScaledSE])
def test_a_method_of_an_instance_runs(build: Callable[[], Any], order: str) -> None:
    module, x = build(), maps()
    name = "_scale" if isinstance(module, SqueezeExcitation) else "scale"
    if order == "after":
        assert accelerate(module).changed
    setattr(module, name, lambda x: torch.full_like(x, 3.0))
    accelerate(module)
    assert torch.equal(module(x), 3 * x)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(
    ("build", "part"),
    [
        (lambda: selective_kernel.SelectiveKernel(16), selective_kernel.SelectiveKernelAttn),
        (lambda: selective_kernel.SelectiveKernel(16), timm.layers.conv_bn_act.ConvNormAct),
        (lambda: selective_kernel.SelectiveKernel(16), timm.layers.norm_act.BatchNormAct2d),
        (lambda: split_attn.SplitAttn(16), split_attn.RadixSoftmax),
    ],
    ids=["attn", "path", "norm", "softmax"],
)
def test_a_patched_part_runs(
    build: Callable[[], nn.Module], part: Any, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module, x = build().eval(), maps()
    own, plain = part.forward, copy.deepcopy(module)
    if order == "after":
        assert accelerate(module).changed
    monkeypatch.setattr(part, "forward", lambda self, x: 2 * own(self, x))
    accelerate(module)
    with torch.no_grad():
        torch.testing.assert_close(module(x), plain(x))


def test_a_patched_base_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Named(timm.layers.SEModule):
        pass

    module, x = Named(16), maps()
    assert accelerate(module).changed
    monkeypatch.setattr(timm.layers.SEModule, "forward", patched_forward)
    assert runs_patched(module, x)


def test_a_wrapper_is_a_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    """One with functools.wraps, and a method of another class of the same library."""
    own = timm.layers.EcaModule.forward

    @functools.wraps(own)
    def counted(self: Any, x: Tensor) -> Tensor:
        return own(self, x)

    for forward in (counted, timm.layers.CecaModule.forward):
        monkeypatch.setattr(timm.layers.EcaModule, "forward", forward)
        assert not accelerate(timm.layers.EcaModule(16)).changed


def test_a_compiled_patch_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    module, x = accelerate(timm.layers.EcaModule(16)).model, maps()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    monkeypatch.setattr(timm.layers.EcaModule, "forward", patched_forward)
    torch._dynamo.reset()
    assert torch.equal(compiled(x), x + 42)


def test_a_loaded_structure_is_tried_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = CopiedSE(16), maps()
    file = io.BytesIO()
    torch.save(accelerate(module).model, file)
    del module
    gc.collect()
    file.seek(0)
    monkeypatch.setattr(CopiedSE, "forward", patched_forward)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded) is CopiedSE and runs_patched(loaded, x)


# ---- missing attributes: all or nothing ---------------------------------------------------------

_LACKING = [
    ("timm.layers.squeeze_excite.SEModule", "gate"),
    ("timm.layers.squeeze_excite.SEModule", "bn"),
    ("timm.layers.squeeze_excite.SEModule", "add_maxpool"),
    ("timm.layers.squeeze_excite.EffectiveSEModule", "gate"),
    ("timm.layers.squeeze_excite.EffectiveSEModule", "add_maxpool"),
    ("timm.layers.squeeze_excite.SqueezeExciteCl", "gate"),
    ("timm.models._efficientnet_blocks.SqueezeExcite", "gate"),
    ("timm.models.senet.SEModule", "sigmoid"),
    ("timm.layers.eca.EcaModule", "gate"),
    ("timm.layers.eca.EcaModule", "conv2"),
    ("timm.layers.eca.CecaModule", "padding"),
    ("timm.layers.selective_kernel.SelectiveKernelAttn", "bn"),
    ("timm.layers.selective_kernel.SelectiveKernel", "split_input"),
    ("timm.layers.split_attn.SplitAttn", "drop"),
    ("torchvision.ops.misc.SqueezeExcitation", "avgpool"),
]


@pytest.mark.parametrize(("name", "attribute"), _LACKING)
def test_what_lacks_something_is_left_alone(name: str, attribute: str) -> None:
    lacking = BUILD[name]()
    delattr(lacking, attribute)
    model = nn.Sequential(timm.layers.SEModule(16), lacking, timm.layers.SEModule(16))
    report = accelerate(model, fuse="block")
    assert [e.name for e in report.changed if e.name != "1.attn"] == ["0", "2"]
    assert [e.note for e in report.left] == [f"it has no {attribute}"]


def test_an_inner_module_lacks_something() -> None:
    module = selective_kernel.SelectiveKernel(16)
    del module.attn.bn
    assert [e.note for e in accelerate(module).left] == ["it has no bn", "it has no bn"]


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_that_lack_something(name: str) -> None:
    for attribute in [*dict(STRUCTURES[name]().named_children())]:
        module = STRUCTURES[name]()
        delattr(module, attribute)
        assert not accelerate(nn.Sequential(module)).changed


def test_all_or_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = accelerate(timm.layers.EcaModule(16), "reference").model
    model = nn.Sequential(first, timm.layers.SEModule(16), timm.layers.SEModule(16))
    here: Any = sys.modules["chattn_cuda.convert.accelerate"]
    own, changed = here._set, []

    def interrupted(module: Any, cls: Any, backend: Any) -> None:
        if module is model[2] and backend == "cpu" and len(changed) == 2:
            raise KeyboardInterrupt
        changed.append(backend) if backend == "cpu" else None
        own(module, cls, backend)

    monkeypatch.setattr(here, "_set", interrupted)
    with pytest.raises(KeyboardInterrupt):
        accelerate(model, "cpu")
    assert len(changed) == 2
    assert first.backend == "reference"
    assert all(type(m) is timm.layers.SEModule and "_backend" not in vars(m) for m in model[1:])


# ---- signatures ---------------------------------------------------------------------------------


def test_signatures_are_those_of_the_class(block: tuple[Any, Tensor]) -> None:
    module, x = block
    own, expected = inspect.signature(type(module).forward), module(x)
    name = list(own.parameters)[1]
    assert accelerate(module).changed
    assert inspect.signature(type(module).forward) == own
    torch.testing.assert_close(module(**{name: x}), expected)
    state = dict(module.named_parameters())
    torch.testing.assert_close(torch.func.functional_call(module, state, (), {name: x}), expected)
    others = dict.fromkeys(list(own.parameters)[2:])
    graph = torch.fx.symbolic_trace(module, concrete_args=others).graph
    assert next(n.target for n in graph.nodes if n.op == "placeholder") == name
    shapes = {name: {0: torch.export.Dim("batch")}}
    for strict in (False, True) if isinstance(module, SqueezeExcitation) else (False,):
        program = torch.export.export(module, (x,), dynamic_shapes=shapes, strict=strict)
        assert program.graph_signature.user_inputs[0] == name
        torch.testing.assert_close(program.module()(x), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_signature() -> None:
    module, x = SqueezeExcitation(16, 4), maps()
    expected = module(x)
    scripted = torch.jit.script(accelerate(module).model)
    torch.testing.assert_close(scripted(input=x), expected)


class PositionalOnly(peers.SELayer):
    def forward(self, features: Tensor, /) -> Tensor:
        return super().forward(features)


class Masked(peers.SELayer):
    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return super().forward(x) if mask is None else super().forward(x * mask)


def test_more_arguments() -> None:
    module, x = PositionalOnly(16), maps()
    expected = module(x)
    assert accelerate(module).changed
    torch.testing.assert_close(module(x), expected)
    with pytest.raises(TypeError, match="positional-only"):
        module(features=x)
    masked = Masked(16)
    assert accelerate(masked).left[0].note == "its forward takes (x, mask=None)"
    assert not masked(x, torch.zeros(())).any()


# ---- trying out, and lifetime -------------------------------------------------------------------


def test_thirty_blocks_take_two_seconds() -> None:
    widths = [64] * 6 + [128] * 8 + [256] * 12 + [512] * 4
    model = nn.Sequential(*(peers.SELayer(c, 16) for c in widths))
    start = time.process_time()
    assert len(accelerate(model).changed) == 30
    assert time.process_time() - start < 2


def test_alike_blocks_are_tried_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def count() -> None:
        calls.append(torch.get_num_threads())

    class Counted(peers.SELayer):
        def forward(self, x: Tensor) -> Tensor:
            count()
            return super().forward(x)

    class Refused(Counted):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.factor

        factor = 2

    threads = torch.get_num_threads()
    for cls in (Counted, Refused):
        counts = []
        for n in (1, 5):
            calls.clear()
            report = accelerate(nn.Sequential(*(cls(16) for _ in range(n))))
            assert len(report.changed if cls is Counted else report.left) == n
            counts.append(len(calls))
        assert counts[0] <= 10 and counts[1] <= counts[0]
        assert set(calls) <= {1}
    assert torch.get_num_threads() == threads


def test_blocks_with_other_settings_are_tried_out_each() -> None:
    class Scaled(peers.SELayer):
        def __init__(self, factor: float) -> None:
            super().__init__(16)
            self.factor = factor

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.factor

    report = accelerate(nn.Sequential(Scaled(1), Scaled(3), Scaled(1), nn.Sequential()))
    assert [e.name for e in report.changed] == ["0", "2"]
    other = Scaled(1)
    other.fc[1] = nn.GELU()
    changed = Scaled(1)
    changed.fc[3].forward = F.relu
    report = accelerate(nn.Sequential(Scaled(1), other, changed))
    assert [e.name for e in report.changed] == ["0", "1"]


@pytest.mark.parametrize("base", [timm.layers.SEModule, peers.SELayer, SqueezeExcitation])
def test_classes_die_with_their_modules(base: Any) -> None:
    class Mine(base):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    if base is not peers.SELayer:
        del Mine.forward
    arguments = (16, 4) if base is SqueezeExcitation else (16,)
    model = accelerate(Mine(*arguments)).model
    assert type(model) is not Mine
    references = weakref.ref(Mine), weakref.ref(type(model))
    restore(model)
    model(maps())
    del model
    del Mine
    gc.collect()
    assert [r() for r in references] == [None, None]


def test_a_class_is_the_same_while_it_is_in_use() -> None:
    one, other = accelerate(CopiedSE(16)).model, accelerate(CopiedSE(16)).model
    assert type(one) is type(other)


# ---- copies that cannot be made -----------------------------------------------------------------


def test_what_cannot_be_copied_is_said_to_be_so() -> None:
    module = peers.SELayer(16)
    module.lock = threading.Lock()
    note = accelerate(module).left[0].note
    assert "no copy can be made to try it out: cannot pickle" in note and "map" not in note


class _Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(16, 4), nn.Linear(4, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        s = self.b(torch.relu(self.a(x.mean((2, 3))))).sigmoid()
        return x * s[:, :, None, None]


class _Final(_Layers):
    def __init_subclass__(cls) -> None:
        raise TypeError("final")


def test_a_class_that_is_final_stays_so() -> None:
    """Also for its second module, and in a second call."""
    model = nn.Sequential(_Final(), _Final())
    for _ in range(2):
        report = accelerate(model)
        assert [e.note for e in report.left] == ["its class cannot be extended: final"] * 2
        assert [type(m) for m in model] == [_Final, _Final]


# ---- classes that take few attributes -----------------------------------------------------------


class _Sealed(_Layers):
    allowed = frozenset(("training", "a", "b"))

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self.allowed and not name.startswith("_"):
            raise AttributeError(f"no setting {name}")
        super().__setattr__(name, value)


def _refuse(self: Any, name: str, value: object) -> None:
    if name == "_backend":
        raise RuntimeError(f"no setting {name}")
    nn.Module.__setattr__(self, name, value)


class _SealedSE(timm.layers.SEModule):
    __setattr__ = _refuse


class _SealedResidual(timm.models.resnet.BasicBlock):
    __setattr__ = _refuse


class _Deaf(_Layers):
    def __setattr__(self, name: str, value: object) -> None:
        if name != "__class__":
            super().__setattr__(name, value)


class _Closing(_Layers):
    closed = False

    def __setattr__(self, name: str, value: object) -> None:
        if self.__dict__.get("closed"):
            raise TypeError("closed")
        super().__setattr__(name, value)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_Sealed, "no setting backend"),
        (lambda: _SealedSE(16), "no setting _backend"),
        (lambda: _SealedResidual(16, 16), "no setting _backend"),
        (_Deaf, "it ignores what is set"),
    ],
)
def test_a_class_that_takes_few_attributes_is_left(make: Any, reason: str, backend: str) -> None:
    module = make()
    before = {**module.__dict__}
    model = nn.Sequential(module, timm.layers.SEModule(16))
    for again in (False, True):
        report = accelerate(model, backend)
        assert [e.name for e in (report.again if again else report.changed)] == ["1"]
        assert [e.note for e in report.left] == [f"its class cannot be extended: {reason}"]
        assert type(module).__name__ == report.left[0].cls and module.__dict__ == before
    assert [e.name for e in restore(model).changed] == ["1"]


def test_a_module_that_takes_nothing_later_is_restored() -> None:
    module = _Closing()
    assert accelerate(module).changed
    module.closed = True
    accelerate(module, "reference")
    assert module.backend == "reference"
    restore(module)
    assert type(module) is _Closing
