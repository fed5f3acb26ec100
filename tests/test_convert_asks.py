"""Home-made blocks whose code asks for more than numbers: seen where it changes, or left, named."""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.backends.cudnn as cudnn
import torch.nn.functional as F
from torch import Tensor, nn
from torch import get_num_threads as threads

from chattn_cuda import accelerate, backends, explain
from tests.test_convert_left import Block, with_forward

timm = pytest.importorskip("timm")
FUSED = backends.select("auto", "cpu") != "reference"
X = torch.randn(2, 16, 5, 4, generator=torch.Generator().manual_seed(0))
HOLDER = types.ModuleType("holder")
HOLDER.torch = torch  # type: ignore[attr-defined]
HOLDER.inner = types.ModuleType("inner")  # type: ignore[attr-defined]
HOLDER.inner.told_so = lambda: torch.is_anomaly_enabled()  # type: ignore[attr-defined]

Forward = Callable[[Any, Tensor], Any]


def tries(self: Any, x: Tensor) -> Tensor:
    try:
        return x if x.skip else 2 * x  # type: ignore[attr-defined]
    except AttributeError:
        return x * self.gate(x)  # type: ignore[no-any-return]


def tries_anything(self: Any, x: Tensor) -> Tensor:
    try:
        return x if x.skip else 2 * x  # type: ignore[attr-defined]
    except:  # noqa: E722
        return x * self.gate(x)  # type: ignore[no-any-return]


def suppresses(self: Any, x: Tensor) -> Tensor:
    with contextlib.suppress(AttributeError):
        return x if x.skip else 2 * x  # type: ignore[attr-defined]
    return x * self.gate(x)  # type: ignore[no-any-return]


def imports(self: Any, x: Tensor) -> Tensor:
    import platform

    return x * self.gate(x) if platform.system() else x  # type: ignore[no-any-return]


def renames(self: Any, x: Tensor) -> Tensor:
    other = torch
    return x * self.gate(x) if other.get_num_threads() else x  # type: ignore[no-any-return]


def surrounded() -> Forward:
    count = torch.get_num_threads
    return lambda self, x: x * self.gate(x) if count() else x


def told(x: Tensor) -> Any:
    return x.grad


# Of a map, or of a parameter.
OF_TENSORS: dict[str, tuple[Forward, str]] = {
    "an attribute": (lambda self, x: getattr(x, "skip", False), "attributes of x (getattr)"),
    "whether there is one": (lambda self, x: hasattr(x, "skip"), "attributes of x (hasattr)"),
    "a parameter's": (
        lambda self, x: getattr(self.fc1.weight, "skip", False),
        "attributes of self.fc1.weight (getattr)",
    ),
    "its kind": (lambda self, x: isinstance(x, nn.Parameter), "whether a tensor is a Parameter"),
    "a parameter's kind": (
        lambda self, x: not isinstance(self.fc1.weight, nn.Parameter),
        "whether a tensor is a Parameter",
    ),
    "its class": (lambda self, x: type(x) is not Tensor, "its own class"),
    "its variables": (lambda self, x: "skip" in vars(x), "vars"),
    "its identity": (lambda self, x: id(x) == 0, "id"),
    "a view": (lambda self, x: x._is_view(), "calls is_view"),
    "of what": (lambda self, x: x._base is not None, "reads _base"),
    "its gradient": (lambda self, x: x.grad is not None, "reads grad"),
    "by a helper": (lambda self, x: told(x) is not None, "reads grad"),
    "a parameter's gradient": (lambda self, x: self.fc1.weight.grad is not None, "reads grad"),
    "its node": (lambda self, x: x.grad_fn is not None, "reads grad_fn"),
    "its version": (lambda self, x: x._version > 9, "reads _version"),
    "now and then": (lambda self, x: len(x) > 99 and x._version > 9, "reads _version"),
    "shared memory": (lambda self, x: x.is_shared(), "calls is_shared"),
    "a leaf": (lambda self, x: not x.is_leaf, "reads is_leaf"),
    "gradients": (lambda self, x: x.requires_grad and x.mean() > 9, "reads requires_grad"),
    "a device": (lambda self, x: x.is_cuda, "reads is_cuda"),
    "a device by name": (lambda self, x: x.device.type == "cuda", "something is cuda"),
    "a size in bytes": (lambda self, x: x.dtype.itemsize == 2, "reads itemsize"),
    "a type": (lambda self, x: x.dtype == torch.float16, "something is float16"),
    "a parameter's number": (lambda self, x: self.fc1.weight[0, 0].item() == 9, "calls item"),
    "hooks": (lambda self, x: len(self._forward_hooks) > 9, "reads _forward_hooks"),
}  # fmt: skip

# Of the process.
SETTINGS: dict[str, tuple[Forward, str]] = {
    "cuDNN's": (
        lambda self, x: torch.backends.cudnn.benchmark, "reads torch.backends.cudnn.benchmark",
    ),
    "by another name": (lambda self, x: cudnn.benchmark, "reads cudnn.benchmark"),
    "cuBLAS's": (
        lambda self, x: torch.backends.cuda.matmul.allow_tf32,
        "reads torch.backends.cuda.matmul.allow_tf32",
    ),
    "anomalies": (lambda self, x: torch.is_anomaly_enabled(), "torch.is_anomaly_enabled()"),
    "threads": (lambda self, x: torch.get_num_threads() > 999, "torch.get_num_threads()"),
    "threads, imported": (lambda self, x: threads() > 999, "reads torch.get_num_threads()"),
    "in another module": (
        lambda self, x: HOLDER.torch.get_num_threads() > 999, "HOLDER.torch.get_num_threads()",
    ),
    "by its name": (
        lambda self, x: getattr(torch, "get_num_threads")() > 999,  # noqa: B009
        "attributes of torch (getattr)",
    ),
    "rounding": (
        lambda self, x: torch.get_float32_matmul_precision() == "medium",
        "torch.get_float32_matmul_precision()",
    ),
    "compilers": (lambda self, x: torch.compiler.is_compiling(), "torch.compiler.is_compiling()"),
    "timm's": (
        # or the global behind it, where timm is not among what is installed
        lambda self, x: timm.layers.is_exportable(), "_exportable",
    ),
    "of a module's module": (
        lambda self, x: HOLDER.inner.told_so(), "reads torch.is_anomaly_enabled()",
    ),
    "a GPU": (lambda self, x: torch.cuda.device_count() > 99, "torch.cuda.device_count()"),
    "the thread": (
        lambda self, x: threading.main_thread() is None, "reads threading.main_thread()",
    ),
    "modules": (lambda self, x: "nothing" in sys.modules, "reads the global sys.modules"),
    "the environment": (lambda self, x: os.environ.get("NO"), "reads the global os.environ"),
    "the environment, called": (lambda self, x: os.getenv("NO"), "reads os.getenv()"),
}  # fmt: skip

CODE: dict[str, tuple[Forward, str]] = {
    "tries": (tries, "reads what fails inside it (except)"),
    "tries anything": (tries_anything, "reads what fails inside it (except)"),
    "suppresses": (suppresses, "reads suppress"),
    "imports": (imports, "reads the module platform"),
    "renames": (renames, "reads the module torch"),
    "a variable around it": (surrounded(), "reads torch.get_num_threads()"),
}


def asking(condition: Forward) -> nn.Module:
    """A block that asks in its own forward, not in a function around it."""
    body = {"forward": if_asked, "asked": condition, "__module__": __name__}
    module: nn.Module = type("Asking", (Block,), body)()
    return module


def if_asked(self: Any, x: Tensor) -> Tensor:
    return 2 * x if self.asked(x) else x * self.gate(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", [*OF_TENSORS, *SETTINGS])
def test_a_forward_that_asks_is_left_and_named(name: str) -> None:
    condition, reason = {**OF_TENSORS, **SETTINGS}[name]
    module = asking(condition)
    for _ in range(2):
        report = accelerate(nn.Sequential(module))
        assert not report.changed and reason.lower() in report.left[0].note.lower()
        assert type(module).__name__ == "Asking"


@pytest.mark.parametrize("name", CODE)
def test_code_that_may_do_anything_is_left_and_named(name: str) -> None:
    forward, reason = CODE[name]
    report = accelerate(nn.Sequential(with_forward(forward)))
    assert not report.changed and reason in report.left[0].note


def test_a_function_of_the_process_in_an_attribute() -> None:
    module: Any = asking(lambda self, x: self.count() > 999)
    module.count = torch.get_num_threads
    assert "reads torch.get_num_threads()" in accelerate(nn.Sequential(module)).left[0].note


def test_functions_that_the_forward_does_not_name_are_no_reason() -> None:
    module: Any = asking(lambda self, x: False)
    module.start = nn.init.kaiming_normal_
    assert accelerate(nn.Sequential(module)).changed


HARMLESS: dict[str, Forward] = {
    "a tensor": lambda self, x: not isinstance(x, Tensor),
    "a list": lambda self, x: isinstance(x, (list, tuple)),
    "a layer": lambda self, x: not isinstance(self.fc1, nn.Linear),
    "an attribute of its own": lambda self, x: getattr(self, "skip", False),
    "an attribute of a layer": lambda self, x: hasattr(self.fc1, "skip"),
    "a function by its name": lambda self, x: getattr(F, "relu") is None,  # noqa: B009
    "sizes": lambda self, x: x.dim() != 4 or x.shape[1] != 16 or x.is_complex(),
    "an assertion": lambda self, x: torch._assert(x.dim() == 4, "a map"),
    "a version": lambda self, x: torch.__version__ < "1.7",
    "a script": lambda self, x: torch.jit.is_scripting(),
    "a trace": lambda self, x: torch.jit.is_tracing(),
    "an operator": lambda self, x: torch.ops.aten.mul is None,
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_cannot_change_is_no_reason(name: str) -> None:
    module = asking(HARMLESS[name])
    expected = module(X)
    assert accelerate(nn.Sequential(module)).changed
    torch.testing.assert_close(module(X), expected)
    if FUSED:
        assert explain(module, X).path == "fused"


class Scripted(Block):
    def forward(self, x: Tensor) -> Tensor:
        s = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))[:, :, None, None]
        if torch.jit.is_scripting():
            return 2 * x
        return 3 * x if torch.jit.is_tracing() else x * s


@pytest.mark.filterwarnings("ignore")
def test_a_script_and_a_trace_are_those_of_the_forward() -> None:
    module = Scripted()
    assert accelerate(module).changed
    module(X)
    torch.testing.assert_close(torch.jit.trace(module, X)(X), 3 * X)
    torch.testing.assert_close(torch.jit.script(module)(X), 2 * X)


# ---- layers and parameters that a forward asks for ----------------------------------------------
def no_bias(module: Any) -> None:
    module.fc1.bias = None


def wider(module: Any) -> None:
    module.fc1, module.fc2 = nn.Linear(16, 8), nn.Linear(8, 16)


def wider_in_place(module: Any) -> None:
    for layer, *sizes in ((module.fc1, 8, 16), (module.fc2, 16, 8)):
        layer.weight, layer.bias = (
            nn.Parameter(torch.randn(*sizes)),
            nn.Parameter(torch.randn(sizes[0])),
        )


def one_more(module: Any) -> None:
    module.fc1.register_parameter("more", nn.Parameter(torch.ones(1)))


def one_of_its_own(module: Any) -> None:
    module.scale = nn.Parameter(torch.ones(1))


def a_buffer(module: Any) -> None:
    weight = module.fc1.weight.detach()
    del module.fc1.weight
    module.fc1.register_buffer("weight", weight)


def another_activation(module: Any) -> None:
    module.act = nn.SiLU()


WATCHED: dict[str, tuple[Forward, Callable[[Any], None]]] = {
    "a bias": (lambda self, x: self.fc1.bias is None, no_bias),
    "a bias by name": (lambda self, x: getattr(self.fc1, "bias", None) is None, no_bias),
    "rows": (lambda self, x: self.fc1.weight.shape[0] != 4, wider),
    "rows, in place": (lambda self, x: self.fc1.weight.shape[0] != 4, wider_in_place),
    "numbers": (lambda self, x: self.fc1.weight.numel() != 64, wider_in_place),
    "all numbers": (lambda self, x: sum(p.numel() for p in self.parameters()) != 148, wider),
    "how many": (lambda self, x: len(list(self.parameters())) != 4, no_bias),
    "how many, more": (lambda self, x: len(list(self.parameters())) != 4, one_more),
    "how many, of its own": (lambda self, x: len(list(self.parameters())) != 4, one_of_its_own),
    "their names": (
        lambda self, x: "fc1.weight" not in dict(self.named_parameters()), a_buffer,
    ),
    "an activation": (lambda self, x: not isinstance(self.act, nn.ReLU), another_activation),
}  # fmt: skip


class Layered(Block):
    def __init__(self) -> None:
        super().__init__()
        self.act = nn.ReLU()

    def gate(self, x: Tensor) -> Tensor:
        s = self.fc2(self.act(self.fc1(x.mean((2, 3)))))
        return torch.sigmoid(s)[:, :, None, None]


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("name", WATCHED)
def test_layers_that_a_forward_asks_for_are_watched(name: str, called: bool) -> None:
    condition, change = WATCHED[name]
    alike: Any = Layered()  # whose calls look alike, and are remembered
    accelerate(alike)
    alike(X), change(alike), alike(X)
    body = {"forward": if_asked, "asked": condition, "__module__": __name__}
    cls: Any = type("Asking", (Layered,), body)
    module = cls()
    assert accelerate(module).changed
    other = copy.deepcopy(module)
    if FUSED:
        assert explain(module, X).path == "fused"
    if called:
        module(X), module(X)
    for m in (module, other):
        change(m)
        torch.testing.assert_close(m(X), 2 * X)
        assert explain(m, X).path == "eager"
    assert accelerate(module).again and torch.equal(module(X), 2 * X)


def test_a_forward_that_asks_for_a_bias_is_compiled() -> None:
    module = asking(lambda self, x: self.fc1.bias is None)
    expected = module(X)
    assert accelerate(module).changed
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(X), expected)
    no_bias(module)
    torch.testing.assert_close(compiled(X), 2 * X)
