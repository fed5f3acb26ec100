"""Modules whose parts were replaced, or that do more than the block: the numbers stay theirs."""

from __future__ import annotations

import copy
import functools
import io
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import accelerate, explain, models
from chattn_cuda.modules import SelectiveKernel, SelectiveKernelAttn, SpatialChannelSqueezeExcite
from tests.peers import SELayer, eca_layer

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

X = torch.randn(2, 16, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def accelerated(module: nn.Module) -> nn.Module:
    report = accelerate(module.double(), "cpu")
    assert report.changed and not report.left
    return module


class Warm(timm.layers.split_attn.RadixSoftmax):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / 10)


def torchvision_se() -> nn.Module:
    return accelerated(torchvision.ops.SqueezeExcitation(16, 4))


REPLACED: dict[str, tuple[Callable[[], nn.Module], str, Callable[[Any], nn.Module]]] = {
    "torchvision's pool": (torchvision_se, "avgpool", lambda m: nn.AdaptiveMaxPool2d(1)),
    "moskomule's pool": (
        lambda: accelerated(SELayer(16)), "avg_pool", lambda m: nn.AdaptiveMaxPool2d(1),
    ),
    "moskomule's layers": (
        lambda: accelerated(SELayer(16)), "fc", lambda m: nn.Sequential(*m.fc, nn.Tanh()),
    ),
    "ECANet's pool": (
        lambda: accelerated(eca_layer(16)), "avg_pool", lambda m: nn.AdaptiveMaxPool2d(1),
    ),
    "a softmax": (
        lambda: accelerated(timm.layers.SplitAttn(16)), "rsoftmax", lambda m: Warm(2, 1),
    ),
    "scSE's layers": (
        lambda: SpatialChannelSqueezeExcite(16, 2).double(), "cSE",
        lambda m: nn.Sequential(*m.cSE, nn.Tanh()),
    ),
    "scSE's pool": (
        lambda: SpatialChannelSqueezeExcite(16, 2).double(), "cSE",
        lambda m: nn.Sequential(nn.AdaptiveMaxPool2d(1), *list(m.cSE)[1:]),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REPLACED)
def test_a_replaced_part_runs(name: str) -> None:
    make, attribute, new = REPLACED[name]
    module: Any = make()
    setattr(module, attribute, new(module).double())
    torch.testing.assert_close(module(X), module.eager_forward(X), rtol=0, atol=0)
    assert explain(module, X).path == "eager"


def test_a_forward_of_an_instance_runs() -> None:
    module: Any = torchvision_se()
    module.avgpool.forward = lambda x: x.amax((2, 3), keepdim=True)
    torch.testing.assert_close(module(X), module.eager_forward(X), rtol=0, atol=0)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("layer", ["fc1", "gate"])
def test_a_hook_behind_the_first_call_runs(layer: str, own: bool) -> None:
    """A call is remembered, and a hook comes."""
    module: Any = chattn_cuda.SqueezeExcite(16) if own else timm.layers.SEModule(16)
    accelerate(module.double())
    module(X)
    handle = module.get_submodule(layer).register_forward_hook(lambda m, x, y: 3 * y)
    torch.testing.assert_close(module(X), module.eager_forward(X), rtol=0, atol=0)
    assert not torch.allclose(module(X), (handle.remove(), module(X))[1])


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize(
    ("make", "layer"),
    [
        (lambda: timm.layers.SEModule(16), "fc1"),
        (lambda: timm.layers.EffectiveSEModule(16), "fc"),
        (lambda: timm.layers.EcaModule(16), "conv"),
        (lambda: timm.layers.SplitAttn(16), "fc1"),
        (lambda: timm.layers.SelectiveKernel(16), "attn.fc_select"),
    ],
    ids=["SE", "ESE", "ECA", "SplitAttn", "SK"],
)
def test_a_convolution_of_an_instance_runs(
    make: Callable[[], nn.Module], layer: str, remembered: bool
) -> None:
    module: Any = accelerated(make().eval())
    before = module(X) if remembered else None
    conv: Any = module.get_submodule(layer)
    theirs = conv._conv_forward
    conv._conv_forward = lambda *args: 3 * theirs(*args)
    torch.testing.assert_close(module(X), module.eager_forward(X), rtol=1e-12, atol=0)
    assert before is None or not torch.allclose(module(X), before)


@pytest.mark.parametrize("split_input", [False, True])
def test_norms_that_lost_their_statistics(split_input: bool) -> None:
    """Behind a call that is remembered."""
    module: Any = accelerated(timm.layers.SelectiveKernel(16, split_input=split_input).eval())
    with torch.no_grad():
        module(X)
        for path in module.paths:
            path.bn.running_mean = path.bn.running_var = None
        torch.testing.assert_close(module(X), module.eager_forward(X))


@pytest.mark.parametrize("radix", [1, 4])
def test_a_softmax_of_another_radix(radix: int) -> None:
    module: Any = timm.layers.SplitAttn(16, groups=2, norm_layer=nn.BatchNorm2d).eval()
    accelerated(module).rsoftmax.radix = radix
    torch.testing.assert_close(module(X), module.eager_forward(X), rtol=0, atol=0)
    assert explain(module, X).path == "eager"


def weights(*shape: int) -> Callable[[Any], None]:
    return lambda module: setattr(module.conv, "weight", nn.Parameter(torch.randn(shape).double()))


def paths(count: int) -> Callable[[Any], None]:
    return lambda module: setattr(module.attn, "num_paths", count)


MISFITS: dict[str, tuple[Callable[[], nn.Module], Callable[[Any], None]]] = {
    "timm's ECA, a wider weight": (lambda: timm.layers.EcaModule(16), weights(1, 1, 5)),
    "timm's ECA, of every channel": (lambda: timm.layers.EcaModule(16), weights(16, 1, 3)),
    "timm's ECA, an even weight": (lambda: timm.layers.EcaModule(16), weights(1, 1, 4)),
    "timm's circular ECA": (lambda: timm.layers.CecaModule(16), weights(1, 1, 5)),
    "the authors' ECA": (lambda: eca_layer(16), weights(1, 1, 5)),
    "too few paths": (lambda: timm.layers.SelectiveKernel(16, 16), paths(1)),
    "too many paths": (lambda: timm.layers.SelectiveKernel(16, 16), paths(4)),
}


@pytest.mark.parametrize("when", ["before accelerate", "before the first call", "later"])
@pytest.mark.parametrize("name", MISFITS)
def test_numbers_that_do_not_fit_raise_as_in_eager_pytorch(name: str, when: str) -> None:
    make, spoil = MISFITS[name]
    module, wide = make().double(), timm.layers.EcaModule(kernel_size=5).double()
    accelerate(wide)
    wide(X)  # whose calls look alike, but for the padding
    if when == "before accelerate":
        spoil(module)
    accelerate(module)
    if when != "before accelerate":
        if when == "later":
            module(X)
        spoil(module)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        module(X)


@pytest.mark.parametrize("name", ["SEModule", "EffectiveSEModule", "torchvision's"])
def test_one_gate_for_all_channels_is_eager_pytorchs(name: str) -> None:
    module: Any = {
        "SEModule": lambda: timm.layers.SEModule(16),
        "EffectiveSEModule": lambda: timm.layers.EffectiveSEModule(16),
        "torchvision's": lambda: torchvision.ops.SqueezeExcitation(16, 8),
    }[name]().double()
    plain = copy.deepcopy(module)
    accelerate(module)
    module(X)
    layer = "fc" if name == "EffectiveSEModule" else "fc2"
    for m in (module, plain):
        old = getattr(m, layer)
        torch.manual_seed(0)
        setattr(m, layer, nn.Conv2d(old.in_channels, 1, 1).double())
    torch.testing.assert_close(module(X), plain(X))
    assert explain(module, X).path == "eager"


def test_a_number_of_paths_that_nobody_reads_is_none() -> None:
    module: Any = timm.layers.SelectiveKernel(16, 16, split_input=False).double().eval()
    module.num_paths = 3
    expected = module(X)
    accelerate(module)
    torch.testing.assert_close(module(X), expected)


def test_accelerate_leaves_another_pool() -> None:
    module = torchvision.ops.SqueezeExcitation(16, 4)
    module.avgpool = nn.AdaptiveMaxPool2d(1)
    report = accelerate(module)
    assert not report.changed and "AdaptiveMaxPool2d" in report.left[0].note


class Dropping(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        s = F.dropout(self.fc(self.avg_pool(x).flatten(1)), 0.5, self.training)
        return x * s[:, :, None, None]


class Clamped(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(self.avg_pool(x).flatten(1)).clamp(0.05, 0.95)[:, :, None, None]


class Counting(SELayer):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("usage", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        s = self.fc(self.avg_pool(x).flatten(1))
        self.usage.mul_(0.9).add_(s.detach().mean(0))
        return x * s[:, :, None, None]


class Remembering(SELayer):
    def forward(self, x: Tensor) -> Tensor:
        self.last = self.fc(self.avg_pool(x).flatten(1))
        return x * self.last[:, :, None, None]


@pytest.mark.parametrize("cls", [Dropping, Clamped, Counting, Remembering])
def test_accelerate_leaves_what_does_more(cls: Any) -> None:
    report = accelerate(cls(16).eval())
    assert not report.changed and re.search("(built|looks) like the block", report.left[0].note)


def test_accelerate_leaves_classes_that_cannot_be_extended() -> None:
    class Keyed(timm.layers.SEModule):
        def __init_subclass__(cls, *, key: str) -> None:
            super().__init_subclass__()

    class Listed(timm.layers.SEModule):
        def __init_subclass__(cls) -> None:
            raise ValueError(f"{cls.__name__} is in no list")

    report = accelerate(nn.Sequential(Keyed(16), Listed(16), timm.layers.SEModule(16)))
    assert len(report.changed) == 1
    assert all("cannot be extended" in entry.note for entry in report.left)


def test_properties_that_scripts_leave_out_are_left_out() -> None:
    class Described(timm.layers.SEModule):
        __jit_unused_properties__ = ["text"]

        @property
        def text(self) -> str:
            return repr({name: (lambda: None) for name, _ in self.named_parameters()})

    module = accelerate(Described(16)).model.eval()
    x = torch.randn(2, 16, 4, 4)
    torch.testing.assert_close(torch.jit.script(module)(x), module(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_layers_between_get_their_type(dtype: torch.dtype) -> None:
    x = torch.randn(2, 16, 5, 5, dtype=dtype)
    for module in (
        SelectiveKernel(16, act_layer="prelu", norm_layer=None),
        chattn_cuda.SplitAttn(16, act_layer="prelu"),
        chattn_cuda.SqueezeExcite(16, act_layer="prelu"),
    ):
        assert module.to(dtype)(x).dtype == dtype
    norm = functools.partial(nn.BatchNorm2d, affine=False)
    attn = SelectiveKernelAttn(16, norm_layer=norm)
    assert attn.to(dtype).eval()(torch.stack([x, x], 1)).dtype == dtype
    w = torch.randn(4, 16, dtype=dtype), None, torch.randn(16, 4, dtype=dtype), None
    y = chattn_cuda.functional.squeeze_excite(x, *w, act=nn.PReLU().to(dtype))
    assert y.dtype == dtype


class Adapted(nn.Module):
    """As LoRA on a convolution: two of other types, under autocast."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base.bfloat16()
        self.low = nn.Conv2d(base.in_channels, base.out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.low(x)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_replaced_layers_run_under_autocast(backend: str) -> None:
    block: Any = SelectiveKernel(16, backend=backend)
    block.attn.fc_reduce = Adapted(block.attn.fc_reduce)
    with torch.autocast("cpu", torch.bfloat16):
        assert block(X.float()).isfinite().all()


def test_fx_traces_what_timm_traces() -> None:
    block = SelectiveKernel(16).double().eval()
    traced = torch.fx.symbolic_trace(block)
    torch.testing.assert_close(traced(X), block(X))


def test_own_branches_of_a_subclass_are_used() -> None:
    class Doubled(SelectiveKernel):
        def branches(self, x: Tensor) -> list[Tensor]:
            return [2 * u for u in super().branches(x)]

    block = Doubled(16).double().eval()
    with torch.no_grad():
        torch.testing.assert_close(block(X), block.eager_forward(X))


@pytest.mark.parametrize("make", [models.eca_resnet18, models.sknet26])
def test_whole_networks_are_saved(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(x), again(x))


def test_synchronised_statistics_of_one_sample_are_left_to_torch() -> None:
    class Fixed(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var)

    attn: Any = SelectiveKernelAttn(16).train()
    attn.bn = Fixed(attn.bn.num_features)
    assert attn.weigh([torch.randn(1, 16, 4, 4)] * 2).isfinite().all()


@pytest.mark.parametrize("arguments", [{"padding_mode": "reflect"}, {"rd_divisor": 64}])
def test_split_attention_has_timms_keys(arguments: dict[str, Any]) -> None:
    theirs = timm.layers.SplitAttn(16, **arguments).double()
    ours = chattn_cuda.SplitAttn(16, **arguments).double()
    ours.load_state_dict(theirs.state_dict())
    torch.testing.assert_close(ours(X), theirs(X))
