"""`SqueezeExcite` is timm's `SEModule`: constructor, parameters, results."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import SqueezeExcite, backends
from tests import cases

timm = pytest.importorskip("timm", reason="timm is not installed")
SEModule = timm.layers.SEModule
FUSED = backends.select("auto", "cpu") != "reference"


def pair(*args: Any, **kwargs: Any) -> tuple[SqueezeExcite, nn.Module]:
    """Our module and timm's, with the same weights."""
    ours, theirs = SqueezeExcite(*args, **kwargs), SEModule(*args, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def maps(channels: int = 24, n: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, channels, 5, 7, generator=generator) + torch.randn(
        1, channels, 1, 1, generator=generator
    )


def assert_same(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def path(module: nn.Module, x: Tensor) -> str:
    return chattn_cuda.explain(module, x).path


def assert_trains_alike(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """Same output, gradients and buffers."""
    results = []
    for module in (ours, theirs):
        leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        module.zero_grad()
        y = module(leaf)
        y.sin().sum().backward()
        results.append((y, leaf.grad, {k: p.grad for k, p in module.named_parameters()}))
    assert_same(results[0], results[1])
    assert_same(dict(ours.named_buffers()), dict(theirs.named_buffers()))


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"rd_ratio": 0.25},
        {"rd_channels": 5},
        {"rd_divisor": 1},
        {"rd_ratio": 1.0},
        {"bias": False},
        {"norm_layer": nn.BatchNorm2d},
        {"norm_layer": nn.BatchNorm2d, "bias": False, "act_layer": "silu"},
        {"act_layer": nn.Hardswish, "gate_layer": nn.Hardsigmoid},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [64, 72, 228, 320])
def test_parameters_and_initialisation_are_timms(channels: int, kwargs: dict[str, Any]) -> None:
    torch.manual_seed(3)
    ours = SqueezeExcite(channels, **kwargs)
    torch.manual_seed(3)
    theirs = SEModule(channels, **kwargs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))
    assert [n for n, _ in ours.named_children()] == [n for n, _ in theirs.named_children()]
    for name in ("fc1", "bn", "fc2"):
        assert type(getattr(ours, name)) is type(getattr(theirs, name))
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())


def test_channels_of_the_reduction() -> None:
    expected = {64: 8, 128: 8, 192: 16, 256: 16, 320: 24, 480: 32, 512: 32, 576: 40, 672: 40}
    expected |= {1056: 64, 1512: 96, 2048: 128}
    assert {c: SqueezeExcite(c).fc1.out_channels for c in expected} == expected


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"bias": False},
        {"add_maxpool": True},
        {"act_layer": "silu", "gate_layer": "hard_sigmoid"},
        {"act_layer": functools.partial(nn.LeakyReLU, 0.2)},
        {"act_layer": functools.partial(nn.GELU, approximate="tanh")},
        {"act_layer": timm.layers.get_act_layer("hard_swish"), "gate_layer": nn.Tanh},
        {"act_layer": timm.layers.activations.GELUTanh},
        {"gate_layer": timm.layers.activations.Sigmoid},
        {"act_layer": "gelu_tanh", "gate_layer": "relu"},
        {"act_layer": "identity", "gate_layer": "identity"},
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_trains_like_timm(kwargs: dict[str, Any], layout: str) -> None:
    ours, theirs = pair(24, rd_channels=6, **kwargs)
    x = cases.LAYOUTS[layout](maps())
    assert_trains_alike(ours, theirs, x)
    assert ours(x).stride() == theirs(x).stride()
    expected = "eager" if "add_maxpool" in kwargs else "fused"
    assert not FUSED or path(ours, x) == expected


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (SqueezeExcite, timm.layers.SEModule),
        (chattn_cuda.EffectiveSqueezeExcite, timm.layers.EffectiveSEModule),
    ],
    ids=["se", "ese"],
)
def test_a_maximum_in_the_squeeze_is_left_to_pytorch(ours: Any, theirs: Any) -> None:
    """The module runs its submodules, the function its formulas; accelerate leaves timm's alone."""
    module, peer = ours(24, add_maxpool=True), theirs(24, add_maxpool=True)
    peer.load_state_dict(module.state_dict())
    assert_trains_alike(module, peer, maps())
    assert path(module, maps()) == "eager"
    report = chattn_cuda.accelerate(nn.Sequential(peer))
    assert type(peer) is theirs and not report.changed
    assert "with the mean alone" in str(report)
    assert "with the mean alone" in str(chattn_cuda.explain(module, maps()))
    for wrong in (torch.randn(2, 24), torch.ones(2, 24, 3, 3, dtype=torch.int64)):
        with pytest.raises((TypeError, ValueError), match="x must"):
            module(wrong)


@pytest.mark.parametrize("name", ["selu", "celu", "quick_gelu", "hard_mish", "prelu"])
def test_activations_that_the_kernels_do_not_know(name: str) -> None:
    ours, theirs = pair(24, rd_channels=6, act_layer=name)
    assert_trains_alike(ours, theirs, maps())
    explanation = chattn_cuda.explain(ours, maps())
    assert explanation.path == "eager" and "act" in explanation.reasons[0]


def test_activation_subclass_is_not_taken_for_its_base() -> None:
    class Double(nn.ReLU):
        def forward(self, z: Tensor) -> Tensor:
            return 2 * super().forward(z)

    ours, theirs = pair(24, rd_channels=6, act_layer=Double)
    assert_trains_alike(ours, theirs, maps())


def test_a_norm_is_not_folded_into_more_weights_than_the_map_has_numbers() -> None:
    ours, theirs = pair(64, rd_channels=16, norm_layer=nn.BatchNorm2d)
    ours.eval(), theirs.eval()
    small, large = torch.randn(1, 64, 3, 3), torch.randn(4, 64, 3, 3)
    for x in (small, large, small):  # whatever is remembered
        for record in (False, True):
            with torch.set_grad_enabled(record):
                torch.testing.assert_close(ours(x), theirs(x))
                few = x is small and not record
                assert ("more weights" in str(chattn_cuda.explain(ours, x))) == few


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm(bias: bool, affine: bool) -> None:
    norm = functools.partial(nn.BatchNorm2d, affine=affine)
    ours, theirs = pair(24, rd_channels=6, norm_layer=norm, bias=bias)
    for module in (ours, theirs):
        torch.manual_seed(1)
        module.bn.running_mean.normal_()
        module.bn.running_var.uniform_(0.5, 2)
        if affine:
            nn.init.normal_(module.bn.weight)
            nn.init.normal_(module.bn.bias)
    assert_trains_alike(ours, theirs, maps(n=4))
    explanation = chattn_cuda.explain(ours, maps())
    assert explanation.path == "eager" and "batch" in explanation.reasons[0]
    assert int(ours.bn.num_batches_tracked) == int(theirs.bn.num_batches_tracked) == 1

    ours.eval()
    theirs.eval()
    assert_trains_alike(ours, theirs, maps(n=4))
    assert not FUSED or path(ours, maps()) == "fused"
    ours.half()
    theirs.half()
    torch.testing.assert_close(ours(maps().half()), theirs(maps().half()), rtol=5e-3, atol=5e-3)


def test_other_norms_run_the_submodules() -> None:
    ours, theirs = pair(24, rd_channels=6, norm_layer=lambda c, **dd: nn.GroupNorm(2, c, **dd))
    assert_trains_alike(ours, theirs, maps())
    assert "GroupNorm" in chattn_cuda.explain(ours, maps()).reasons[0]


class LowRank(nn.Conv2d):
    """A stand-in for adapters: another class, with another result."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.5 * x.mean(1, keepdim=True)


def _replace(m: Any) -> None:
    lora = LowRank(24, 6, 1)
    lora.load_state_dict(m.fc1.state_dict())
    m.fc1 = lora


def _wrap(m: Any) -> None:
    m.fc1 = nn.Sequential(m.fc1, nn.Dropout(0.0))


def _parametrise(m: Any) -> None:
    nn.utils.parametrizations.weight_norm(m.fc2)


def _hook(m: Any) -> None:
    m.fc1.register_forward_hook(lambda module, args, output: 2 * output)


def _pre_hook(m: Any) -> None:
    m.fc2.register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def _act_hook(m: Any) -> None:
    m.act.register_forward_hook(lambda module, args, output: output + 1)


def _backward_hook(m: Any) -> None:
    m.fc2.register_full_backward_hook(lambda module, grad_input, grad_output: (2 * grad_input[0],))


def _own_forward(m: Any) -> None:
    m.fc1.forward = lambda x: 3 * nn.Conv2d.forward(m.fc1, x)


def _norm_hook(m: Any) -> None:
    m.bn.register_forward_hook(lambda module, args, output: output * 0 + 5)


def _own_gate(m: Any) -> None:
    m.gate.forward = torch.tanh


def _gate_backward_hook(m: Any) -> None:
    m.gate.register_full_backward_hook(lambda module, grad_input, grad_output: (2 * grad_input[0],))


@pytest.mark.parametrize(
    "change",
    [
        *(_replace, _wrap, _parametrise, _hook, _pre_hook, _act_hook, _backward_hook),
        *(_own_forward, _norm_hook, _own_gate, _gate_backward_hook),
    ],
    ids=lambda f: f.__name__.strip("_"),
)
def test_changed_submodules_are_called(change: Any) -> None:
    ours, theirs = pair(24, rd_channels=6)
    for module in (ours, theirs):
        change(module)
    assert_trains_alike(ours, theirs, maps())
    assert path(ours, maps()) == "eager"


def test_hooks_of_the_module_itself_fire() -> None:
    module, seen = SqueezeExcite(24), []
    module.register_forward_hook(lambda *args: seen.append(1))
    module(maps())
    assert seen == [1] and (not FUSED or path(module, maps()) == "fused")


def test_autocast_as_timm() -> None:
    ours, theirs = pair(24, rd_channels=6)
    for x in (maps(), maps().bfloat16()):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, expected = ours(x), theirs(x)
        assert y.dtype == expected.dtype
        torch.testing.assert_close(y, expected, rtol=0.02, atol=0.02)


def test_16_bit_module() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        ours, theirs = pair(24, rd_channels=6, dtype=dtype)
        x = maps().to(dtype)
        torch.testing.assert_close(ours(x), theirs(x), rtol=0.02, atol=0.02)


def test_device_and_dtype_arguments() -> None:
    module = SqueezeExcite(24, device="meta", dtype=torch.float64, norm_layer=nn.BatchNorm2d)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float64)}
    assert module.eval()(torch.empty(2, 24, 5, 7, device="meta", dtype=torch.float64)).is_meta


def test_empty_batch_and_empty_planes() -> None:
    ours, theirs = pair(24)
    for shape in ((0, 24, 5, 7), (2, 24, 0, 7)):
        assert ours(torch.randn(shape)).shape == theirs(torch.randn(shape)).shape


def test_backend_can_be_set() -> None:
    module = SqueezeExcite(24, backend="reference")
    assert module.backend == "reference"
    assert path(module, maps()) == "reference"
    expected = module(maps())
    module.backend = "auto"
    assert module.backend == "auto"
    assert_same(module(maps()), expected)
    with pytest.raises(ValueError, match="backend must be one of auto, cuda"):
        module.backend = "gpu"
    assert module.backend == "auto"
