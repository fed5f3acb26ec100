"""What is remembered of a module is forgotten when anything that it was read from changes.

Every case runs fused first, so that there is something to forget.
"""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from chattn_cuda import accelerate, backends, functional
from chattn_cuda.functional import checked
from chattn_cuda.modules import (
    EfficientChannelAttention,
    GatherExcite,
    SelectiveKernel,
    SpatialChannelSqueezeExcite,
    SqueezeExcite,
    SqueezeExciteCl,
    memory,
)
from chattn_cuda.modules.selective_kernel import SelectiveKernelForward
from tests import cases
from tests.peers import SELayer, eca_layer

C = 16
X = torch.randn(2, C, 5, 3, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def _needs_cpu() -> None:
    cases.require("cpu")


def is_remembered(module: Any, x: Tensor = X) -> bool:
    if isinstance(module, SelectiveKernelForward):
        return memory.recall(module) is not None
    return module._repeat(x) is not None


def warm(module: Any, x: Tensor = X) -> Any:
    """The module after a call that was remembered."""
    module(x)
    assert is_remembered(module, x)
    return module


def same_as_eager(module: Any, x: Tensor = X) -> None:
    torch.testing.assert_close(module(x), module.eager_forward(x), rtol=1e-5, atol=1e-6)


def se(**arguments: Any) -> Any:
    return SqueezeExcite(C, rd_channels=4, **arguments).eval()


def accelerated(module: nn.Module) -> Any:
    assert accelerate(module, "cpu").changed
    return module.eval()


MODULES: dict[str, Callable[[], Any]] = {
    "SE": se,
    "SE with a norm": lambda: se(norm_layer=nn.BatchNorm2d),
    "SE of Linear": lambda: SqueezeExciteCl(C).eval(),
    "GE": lambda: GatherExcite(C, rd_channels=4).eval(),
    "scSE": lambda: SpatialChannelSqueezeExcite(C, 2).eval(),
    "ECA": lambda: EfficientChannelAttention(C).eval(),
    "SELayer": lambda: accelerated(SELayer(C)),
    "eca_layer": lambda: accelerated(eca_layer(C)),
    "SK": lambda: SelectiveKernel(C, attn_bias=True).eval(),
    "timm SK": lambda: accelerated(pytest.importorskip("timm").layers.SelectiveKernel(C)),
}


def inner(module: Any) -> list[tuple[str, Any]]:
    """Everything that is called inside, by name."""
    return [
        (name, m) for name, m in module.named_modules() if name and not isinstance(m, nn.ModuleList)
    ]


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_a_hook_on_any_layer_runs(name: str) -> None:
    for layer, _ in inner(MODULES[name]()):
        module = MODULES[name]()
        x = X.movedim(1, -1) if isinstance(module, SqueezeExciteCl) else X
        warm(module, x)
        called: list[Any] = []
        handle = module.get_submodule(layer).register_forward_hook(
            lambda *_, called=called: called.append(1)
        )
        same_as_eager(module, x)
        assert len(called) == 2, layer  # by each
        handle.remove()
        warm(module, x)


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_a_forward_on_any_layer_runs(name: str) -> None:
    for layer, _ in inner(MODULES[name]()):
        module = MODULES[name]()
        x = X.movedim(1, -1) if isinstance(module, SqueezeExciteCl) else X
        warm(module, x)
        own = module.get_submodule(layer)
        right = own.forward
        own.forward = lambda *a, right=right: 2 * right(*a)
        same_as_eager(module, x)


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_any_layer_may_be_replaced(name: str) -> None:
    for layer, _ in inner(MODULES[name]()):
        module = MODULES[name]()
        x = X.movedim(1, -1) if isinstance(module, SqueezeExciteCl) else X
        warm(module, x)
        parent, _, child = layer.rpartition(".")
        owner: Any = module.get_submodule(parent)
        setattr(owner, child, nn.Sequential(getattr(owner, child), nn.Tanh()))
        same_as_eager(module, x)


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_any_tensor_may_become_a_plain_one(name: str) -> None:
    """As those that replace weights by computed ones leave it: in an attribute of that name."""
    one = MODULES[name]()
    for path in (*dict(one.named_parameters()), *dict(one.named_buffers())):
        for called_before in (False, True):
            module = MODULES[name]()
            x = X.movedim(1, -1) if isinstance(module, SqueezeExciteCl) else X
            if called_before:
                warm(module, x)
            layer, _, parameter = path.rpartition(".")
            owner = module.get_submodule(layer)
            value = getattr(owner, parameter).detach() + 1
            delattr(owner, parameter)
            setattr(owner, parameter, value)
            same_as_eager(module, x)
            same_as_eager(module, x)


def _weight(m: Any) -> None:
    m.fc1.weight = nn.Parameter(torch.randn(4, C, 1, 1))


def _wider(m: Any) -> None:
    m.fc1, m.fc2 = nn.Conv2d(C, 8, 1), nn.Conv2d(8, C, 1)


def _bias(m: Any) -> None:
    m.fc2.bias = None


def _shared(m: Any) -> None:
    m.act = m.gate


def _class(m: Any) -> None:
    class Doubled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    m.fc1.__class__ = Doubled


def _parametrized(m: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(m.fc1)


def _setting(m: Any) -> None:
    m.fc1.padding = (1, 1)


CHANGES: dict[str, Callable[[Any], None]] = {
    "weight": _weight, "data": lambda m: m.fc1.weight.data.mul_(3), "sizes": _wider, "bias": _bias,
    "shared": _shared, "class": _class, "parametrized": _parametrized,
    "flag": lambda m: setattr(m, "add_maxpool", True), "slope": lambda m: setattr(
        m.act, "negative_slope", 0.5),
    "settings": _setting, "a tensor": lambda m: setattr(m.act, "negative_slope", torch.ones(2)),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed(change: str) -> None:
    module = warm(se(act_layer=nn.LeakyReLU))
    CHANGES[change](module)
    if change in ("settings", "a tensor"):  # its map is not 1x1 any more; no such slope
        assert not is_remembered(module)
        return
    same_as_eager(module)


def test_a_layer_in_two_places_is_looked_at_in_both() -> None:
    module = se(act_layer=nn.Sigmoid)
    module.act = module.gate
    warm(module)
    module.gate = nn.Tanh()
    same_as_eager(module)
    module.act = nn.ReLU()
    same_as_eager(module)


def test_a_norm_is_noticed() -> None:
    module = warm(se(norm_layer=nn.BatchNorm2d))
    module.bn.running_mean.add_(1)
    module.bn.eps = 0.5
    same_as_eager(module)
    warm(module)
    module.train()
    assert not is_remembered(module)
    before = module.bn.running_mean.clone()
    module(X)
    assert not torch.equal(before, module.bn.running_mean)
    warm(module.eval())
    module.bn.running_mean = module.bn.running_var = None
    same_as_eager(module)


def test_a_selective_kernels_settings_are_noticed() -> None:
    module = MODULES["SK"]()
    with torch.no_grad():
        warm(module)
        for bn in (module.paths[1].bn, module.attn.bn):
            bn.running_mean.add_(1)
            bn.eps = 0.5
            same_as_eager(module)
        warm(module)
        module.paths[0].bn.train()
        same_as_eager(module)
        module.eval(), warm(module)
        module.attn.fc_select.weight = nn.Parameter(torch.randn_like(module.attn.fc_select.weight))
        same_as_eager(module)
    module.train()
    x = X.clone().requires_grad_()
    expected = copy.deepcopy(module)
    y, z = module(x), expected.eager_forward(x)
    torch.testing.assert_close(y, z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.attn.bn.running_var, expected.attn.bn.running_var)
    with pytest.raises(ValueError, match="statistics of one sample"):
        module(X[:1])
    with pytest.raises(ValueError, match="x must have shape"):
        module(X[:, 1:])


def test_an_mlp_that_is_added_is_noticed() -> None:
    module = warm(EfficientChannelAttention(C, rd_channels=2))
    module.act, module.conv2 = nn.ReLU(), nn.Conv1d(1, 1, 3, padding=1)
    same_as_eager(module)
    module = warm(EfficientChannelAttention(C))
    module.conv.bias = nn.Parameter(torch.ones(1))
    same_as_eager(module)


def test_the_backend_is_noticed() -> None:
    module = warm(se())
    module.backend = "reference"
    assert not is_remembered(module)
    module.backend = "cuda"
    with pytest.raises(ValueError, match="backend 'cuda' cannot run here"):
        module(X)


def test_types_and_devices_are_noticed() -> None:
    module = warm(se())
    module.double()
    with pytest.raises(ValueError, match="outside autocast"):
        module(X)
    warm(module, X.double())
    module.float().to("meta")
    with pytest.raises(ValueError, match=r"fc1.weight must be on the device of x \(cpu\)"):
        module(X)


def test_errors_are_those_of_a_first_call() -> None:
    module = warm(se())
    for wrong, message in (
        (torch.randn(2, C + 1, 5, 3), "x must have shape"),
        (torch.randn(C), "x must have shape"),
        (X.to(torch.int32), "x must have dtype"),
        (X.to_sparse(), "must be a dense tensor"),
        ([1], "x must be a tensor"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            module(wrong)
    module.fc1.weight = nn.Parameter(torch.randn(4, C + 1, 1, 1))
    with pytest.raises(ValueError, match=r"fc1.weight must have shape \(rd, 16\)"):
        module(X)


def test_autocast_is_noticed() -> None:
    module, x = se(), X.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        warm(module, x)
    with pytest.raises(ValueError, match="outside autocast"):
        module(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert is_remembered(module, x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_transforms_tracing_and_compilation_go_their_own_ways() -> None:
    module = warm(se())
    x = X[None].expand(3, -1, -1, -1, -1)
    torch.testing.assert_close(torch.func.vmap(module)(x)[1], module(X))
    y, dy = torch.func.jvp(module, (X,), (X,))
    torch.testing.assert_close(y, module(X))
    assert "chattn_cuda::" not in str(torch.jit.trace(module, X).inlined_graph)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(module, backend="eager", fullgraph=True)(X), module(X))
    assert is_remembered(module)


def test_functional_call_uses_its_tensors() -> None:
    module = warm(se())
    doubled = {name: 2 * p.detach() for name, p in module.named_parameters()}
    other = copy.deepcopy(module)
    other.load_state_dict(doubled)
    torch.testing.assert_close(torch.func.functional_call(module, doubled, X), other(X))
    same_as_eager(module)


def test_copies_know_nothing_and_share_nothing() -> None:
    module = warm(se())
    before = dict(module.__dict__)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), copy.copy(module)):
        assert memory.recall(other) is None
        warm(other)
        other.backend = "reference"
        assert is_remembered(module) and not is_remembered(other)
    module.__class__ = type("Other", (SqueezeExcite,), {})
    assert memory.recall(module) is None
    assert before == module.__dict__


def test_modules_are_not_kept_alive() -> None:
    gc.collect()
    module = warm(se())
    count, references = len(memory._memories), [weakref.ref(m) for m in module.modules()]
    del module
    gc.collect()
    assert not any(r() for r in references)
    assert len(memory._memories) == count - 1


def test_threads() -> None:
    module, failures = se(), []
    expected = module.eager_forward(X)

    def work() -> None:
        try:
            for i in range(200):
                torch.testing.assert_close(module(X), expected, rtol=1e-5, atol=1e-6)
                if i % 20 == 0:
                    memory._memories.clear()
                    checked._found.clear()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_functions_check_what_is_new() -> None:
    call = functional.squeeze_excite
    w1, w2 = torch.randn(4, C), torch.randn(C, 4)
    y = call(X, w1, None, w2, None)
    assert torch.equal(call(X, w1, None, w2, None), y)
    assert len(call(X, w1, None, w2, None, return_gate=True)) == 2
    assert not torch.equal(call(X, w1, None, w2, None, act="silu"), y)
    assert not torch.equal(call(X, w1, None, w2, None, add_maxpool=True), y)
    last = X.movedim(1, -1)
    assert torch.equal(call(last, w1, None, w2, None, channel_dim=-1).movedim(-1, 1), y)
    for arguments, message in (
        ({"add_maxpool": 1}, "add_maxpool must be True or False"),
        ({"channel_dim": 2}, "channel_dim must be 1 or -1"),
        ({"backend": "gpu"}, "backend must be one of"),
        ({"act": "relus"}, "act is not a known activation"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call(X, w1, None, w2, None, **arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="w2 must have shape"):
        call(X, w1, None, w2[1:], None)
    with pytest.raises(ValueError, match="outside autocast"):
        call(X, w1, None, w2.double(), None)
    assert torch.equal(call(X, w1.T.contiguous().T, None, w2, None), y)


def test_a_selective_kernel_checks_what_is_new() -> None:
    call, other = functional.selective_kernel, X.cos()
    w1, w2 = torch.randn(4, C), torch.randn(2 * C, 4)
    b1 = torch.tensor([-9.0, 9.0, -9.0, 9.0])  # values on both sides of the ReLU
    y = call([X, other], w1, b1, w2, None)
    assert any(key[0][0] == "selective_kernel" for key in checked._found)
    assert torch.equal(call((X, other), w1, b1, w2, None), y)
    strided = [u.contiguous(memory_format=torch.channels_last) for u in (X, other)]
    torch.testing.assert_close(call(strided, w1, b1, w2, None), y)
    assert torch.equal(call([X, other], w1, b1, w2, None, return_gate=True)[0], y)  # type: ignore[index]
    assert not torch.equal(call([X, other], w1, b1, w2, None, act="identity"), y)
    assert not torch.equal(call([X, other], w1, b1, w2, None, norm=torch.tanh), y)
    for branches, message in (
        ([X, other[1:]], "branches"),
        ([X, other.double()], "branches"),
        ([X, other, X], "w_select must have shape"),
        ([X, other.to("meta")], "branches"),
        ([X, other.to_sparse()], "branches"),
        ([X, None], "branches"),
        ([], "branches"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            call(branches, w1, b1, w2, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="w_select must have shape"):
        call([X, other], w1, b1, w2[1:], None)


def test_a_gate_that_changes_is_asked_again() -> None:
    gate = nn.LeakyReLU(0.1)
    w1, w2 = torch.randn(4, C), torch.randn(C, 4)
    first = functional.squeeze_excite(X, w1, None, w2, None, act=gate)
    gate.negative_slope = 0.9
    assert not torch.equal(functional.squeeze_excite(X, w1, None, w2, None, act=gate), first)


def test_another_backend_forgets_choices() -> None:
    functional.efficient_channel_attention(X, torch.randn(1, 1, 3))
    assert checked._found
    backends.register(backends.get("reference"))
    assert not checked._found
