"""How a block is tried out: the same whatever the caller has set, and quickly."""

from __future__ import annotations

import contextlib
import copy
import importlib
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from chattn_cuda import accelerate
from chattn_cuda.convert import dataflow, probe
from tests import peers

C = 256  # small products would not be in 16 bits


class Mine(nn.Module):
    """An SE block whose forward warns, as old functions do."""

    def __init__(self, channels: int = C, reduction: int = 4) -> None:
        super().__init__()
        self.channels = channels
        self.one = nn.Conv2d(channels, channels // reduction, 1)
        self.two = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        warnings.warn("an old function", DeprecationWarning, stacklevel=2)
        s = torch.relu(self.one(x.mean((2, 3)).view(-1, self.channels, 1, 1)))
        return x * torch.sigmoid(self.two(s))


# ---- what the caller has set --------------------------------------------------------------------


class _Functions(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.sigmoid:
            raise RuntimeError("sigmoid in the caller's mode")
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} in the caller's mode")


@contextlib.contextmanager
def _set(setter: Callable[[Any], Any], value: Any, before: Any) -> Iterator[None]:
    setter(value)
    try:
        yield
    finally:
        setter(before)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def _precision(name: str) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = name
    torch.backends.mkldnn.conv.fp32_precision = name


SURROUNDINGS: dict[str, Callable[[], Any]] = {
    "default dtype float64": lambda: _set(
        torch.set_default_dtype, torch.float64, torch.get_default_dtype()
    ),
    "default dtype bfloat16": lambda: _set(
        torch.set_default_dtype, torch.bfloat16, torch.get_default_dtype()
    ),
    "default device": lambda: _set(torch.set_default_device, "meta", None),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "deterministic": lambda: _set(torch.use_deterministic_algorithms, True, False),
    "anomaly mode": torch.autograd.detect_anomaly,
    "float32 in 16 bits": lambda: _set(_precision, "bf16", "none"),
    "warnings as errors": _errors,
    "function mode": _Functions,
    "dispatch mode": _Operators,
    "fake tensors": FakeTensorMode,
    "saved tensors": lambda: torch.autograd.graph.saved_tensors_hooks(
        lambda t: t.clone().zero_(), lambda t: t
    ),
}


def _state() -> list[Any]:
    return [
        torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.is_anomaly_enabled(), torch.backends.mkldnn.matmul.fp32_precision,
        torch._C._get_mkldnn_enabled(), list(warnings.filters),
    ]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("base", [Mine, peers.SELayer])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_the_callers_modes_do_not_matter(name: str, base: Any) -> None:
    """The verdict would last."""
    taken, refused = type("Taken", (base,), {})(C), peers.MaxPooled(C)
    random = torch.get_rng_state()
    with SURROUNDINGS[name]():
        before = _state()
        report, left = accelerate(taken), accelerate(refused).left
        assert _state() == before
    assert report.changed and not report.left, str(report)
    assert len(left) == 1 and torch.equal(random, torch.get_rng_state())


def test_copies_are_made_in_any_mode() -> None:
    """A structure is tried out again where it is copied."""
    module = accelerate(peers.SELayer(C)).model
    for context in (torch.autocast("cpu", torch.bfloat16), torch.no_grad()):
        with context:
            assert type(copy.deepcopy(module)) is type(module)


# ---- blocks of many widths ----------------------------------------------------------------------


class WideOnly(Mine):
    """Another block where it is wide: in one mode, or for its gradients."""

    def __init__(self, channels: int, what: str) -> None:
        super().__init__(channels)
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if x.shape[1] < 64:
            return y
        if self.what == "gradients":
            return y + (x - x.detach())
        return y + x if self.training == (self.what == "train") else y


@pytest.mark.parametrize("wide_first", [False, True])
@pytest.mark.parametrize("what", ["train", "eval", "gradients"])
@pytest.mark.filterwarnings("ignore:an old function")
def test_every_width_is_tried_out(what: str, wide_first: bool) -> None:
    class Fresh(WideOnly):
        pass

    widths = [64, 128, 16, 32] if wide_first else [16, 32, 64, 128]
    report = accelerate(nn.Sequential(*(Fresh(c, what) for c in widths)))
    assert [int(e.name) for e in report.changed] == [i for i, c in enumerate(widths) if c < 64]
    assert len(report.left) == 2


class Least(Mine):
    """Looks at so many positions."""

    def __init__(self, most: int) -> None:
        super().__init__(16)
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        s = x.flatten(2)[..., : self.most].mean(2)[:, :, None, None]
        return x * torch.sigmoid(self.two(torch.relu(self.one(s))))


class Reduced(Mine):
    """Knows its reduction, which follows from the sizes."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, 4)
        self.reduction, self.groups = 4, 1

    def forward(self, x: Tensor) -> Tensor:
        s = x.mean((2, 3)).view(-1, self.channels * self.groups, 1, 1)
        s = self.one(s).view(-1, self.channels // self.reduction, 1, 1)
        return x * torch.sigmoid(self.two(torch.relu(s)))


def test_other_whole_numbers_are_no_widths() -> None:
    report = accelerate(nn.Sequential(Least(10**6), Least(64), Least(10**6)))
    assert [e.name for e in report.changed] == ["0", "2"]


@pytest.mark.parametrize(
    "build",
    [Mine, Reduced, lambda c: peers.SELayer(c, 16), lambda c: peers.MMSELayer(c, 16)],
    ids=["dataflow", "reduction", "linear", "conv modules"],
)
@pytest.mark.parametrize(
    "widths", [range(32, 992, 32), range(192, 2112, 64), [2048]], ids=["32-960", "192-2048", "2048"]
)
@pytest.mark.filterwarnings("ignore:an old function")
def test_many_widths_take_two_seconds(build: Callable[[int], nn.Module], widths: Any) -> None:
    model = nn.Sequential(*map(build, widths))
    start = time.process_time()
    assert len(accelerate(model).changed) == len(widths)
    assert time.process_time() - start < (2 if len(widths) > 1 else 0.5)


def test_numbers_of_a_trial_are_random_where_they_repeat() -> None:
    values = probe._randn(64, 128)
    assert len(values.unique()) == probe._PERIOD
    assert len(torch.unique(values, dim=0)) == 64
    assert torch.linalg.matrix_rank(values) == 64
    assert probe._randn(0, 3).shape == (0, 3) and probe._randn().shape == ()


def test_a_forward_that_imports_what_is_being_imported_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread waits for the importing one, which waits for the trial."""
    (tmp_path / "importing_block.py").write_text(
        """
from torch import nn
from chattn_cuda import accelerate
from tests import peers

class Block(peers.SELayer):
    def forward(self, x):
        import importing_block
        return super().forward(x)

model = nn.Sequential(Block(16))
report = accelerate(model)
"""
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(probe, "_LONGEST", 0.5)
    before = threading.enumerate()
    found = importlib.import_module("importing_block")
    for thread in set(threading.enumerate()) - set(before):
        thread.join(20)  # the trial goes on, and sets back what it set
    assert not found.report.changed
    assert "takes longer than 0.5 s" in found.report.left[0].note


class Slow(peers.SELayer):
    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.01)
        return super().forward(x)


@pytest.mark.parametrize("what", ["accelerate", "deepcopy"])
def test_threads_leave_the_default_type(what: str) -> None:
    """The second starts within the first, and ends behind it."""
    models = [type("Fresh", (Slow,), {})(C) for _ in range(2)]
    act: Callable[[Any], Any] = accelerate
    if what == "deepcopy":
        for m in models:
            accelerate(m)
        probe._FOUND.clear(), dataflow._SEEN.clear()
        act = copy.deepcopy
    threads = [threading.Thread(target=act, args=(m,)) for m in models]
    with _set(torch.set_default_dtype, torch.float64, torch.get_default_dtype()):
        before = _state()
        for thread in threads:
            thread.start()
            time.sleep(0.03)
        for thread in threads:
            thread.join()
        assert _state() == before


class Drawing(peers.SELayer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1 + 0 * random.random() + 0 * numpy.random.random())


def test_random_numbers_of_python_and_numpy_stay() -> None:
    state, numpys = random.getstate(), numpy.random.get_state()
    assert accelerate(Drawing(C)).left
    assert random.getstate() == state
    assert numpy.random.get_state()[1].tolist() == numpys[1].tolist()
    assert numpy.random.get_state()[2] == numpys[2]


class HoldsBlock(peers.SELayer):
    """A copy of it, for a trial, makes copies of an accelerated block."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.inner = accelerate(Mine(channels)).model


@pytest.mark.filterwarnings("ignore:an old function")
def test_a_trial_within_a_trial_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    module = HoldsBlock(C)
    probe._FOUND.clear(), dataflow._SEEN.clear()
    monkeypatch.setattr(probe, "_LONGEST", 10)
    assert "takes longer" not in str(accelerate(module))
