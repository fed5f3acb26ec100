"""What reaches the driver, without a GPU: run by test_triton_launches in a process of its own.

Triton's binding and specialisation are real; compiling and launching are not: a compiled kernel is
an object that stands for its specialisation, and a launch is written down. So what the operators
launch directly can be compared with what Triton would launch for the same arguments: the same
object, grid, stream and arguments. Tensors are on the CPU, at addresses of the test's choice.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import sys
import threading
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import triton.compiler
from torch import Tensor
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import CompiledKernel
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from chattn_cuda.triton import direct, host, program, se
from chattn_cuda.triton.plan import WARPS
from tests import triton_aot
from tests.cases import calls as described
from tests.triton_aot import TRITON

OPERATORS = {name: op for block in TRITON for name, op in triton_aot.operators(block).items()}
NCHW, NHWC = torch.contiguous_format, torch.channels_last


class Launched(NamedTuple):
    device: int
    kernel: Kernel
    grid: tuple[int, int, int]
    stream: int
    function: int
    metadata: Any
    hooks: tuple[Any, ...]
    args: tuple[Any, ...]


class Kernel(CompiledKernel):
    """What Triton compiles for one specialisation."""

    handles = itertools.count(1000)

    def __init__(self, src: Any, options: dict[str, Any]) -> None:
        self.src, self.options, self.module = src, options, None
        self.name = src.fn.__name__
        self.packed_metadata = (options["num_warps"], options["num_ctas"], 0)
        self.function = next(self.handles)

    def launch_metadata(self, grid: Any, stream: int, *args: Any) -> Any:
        hook = knobs.runtime.launch_enter_hook
        return {"name": self.name} if hook is not None else None

    @property
    def run(self) -> Callable[..., None]:
        return self._launch

    def _launch(self, x: int, y: int, z: int, stream: int, function: int, *rest: Any) -> None:
        metadata, launch_metadata, enter, leave, *args = rest
        hooks = tuple(h for h in (enter, leave) if h is not None and getattr(h, "calls", True))
        for hook in hooks:
            hook(launch_metadata)
        for path, attributes in self.src.attrs.items():  # what the compiler was told to rely on
            if ["tt.divisibility", 16] in attributes:
                value = functools.reduce(operator.getitem, path, args)
                address = value.data_ptr() if isinstance(value, Tensor) else value
                assert address % 16 == 0, (self.name, path)
        where = Machine.now.device
        grid = (x, y, z)
        log().append(Launched(where, self, grid, stream, function, metadata, hooks, tuple(args)))


_logs = threading.local()


def log() -> list[Launched]:
    if not hasattr(_logs, "launches"):
        _logs.launches = []
    return _logs.launches


class Machine:
    """The state of the GPU that is not there."""

    now: Machine
    device = 0
    stream = 7
    bound = 0  # launches that Triton looked at


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = Machine.now = Machine()
    gpu = types.SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: made.device,
        get_current_stream=lambda device: made.stream + 100 * (device or 0),
    )
    bind = JITFunction.run

    def counted(*args: Any, **kwargs: Any) -> Any:
        made.bound += 1
        return bind(*args, **kwargs)

    torch.use_deterministic_algorithms(False)  # as users have it; then memory is not filled
    driver.set_active(gpu)
    monkeypatch.setattr(
        triton.compiler, "compile", lambda src, target, options, **_: Kernel(src, options)
    )
    monkeypatch.setattr(JITFunction, "run", counted)
    monkeypatch.setattr(program, "_common_device", lambda devices: torch.device("cpu"))
    forget()
    yield made
    forget()


def forget() -> None:
    """As in a new process."""
    for op in OPERATORS.values():
        op.programs.clear()
    modules = [m for name, m in sys.modules.items() if name.startswith("chattn_cuda.triton.")]
    for f in itertools.chain.from_iterable(vars(module).values() for module in modules):
        if isinstance(f, JITFunction):
            f.device_caches.clear()


# ---- calls -------------------------------------------------------------------------------------


SHAPE = (2, 24, 6, 5)


class Call(described.Call):
    def __call__(self) -> Any:
        return OPERATORS[self.operator](*self.args)


def calls_of(
    block: str,
    shape: tuple[int, int, int, int] = SHAPE,
    dtype: torch.dtype = torch.float32,
    fmt: torch.memory_format = NCHW,
    weights: torch.dtype | None = None,
    at: dict[str, int] | None = None,
    **options: Any,
) -> list[Call]:
    """Forward and backward; ``at`` says which tensors begin how far behind an aligned address."""
    make = described.Make(dtype, fmt, weights=weights, at=at)
    return [Call(*call) for call in triton_aot.calls_of(block, make, shape, **options)]


se_calls = functools.partial(calls_of, "se")


SHAPES = [
    SHAPE,
    (3, 24, 6, 5),
    (16, 24, 6, 5),
    (1, 24, 6, 5),
    (2, 16, 6, 5),
    (2, 17, 6, 5),
    (2, 1, 6, 5),
    (2, 24, 1, 1),
    (2, 24, 1, 5),
    (2, 24, 6, 1),
    (1, 1, 1, 1),
    (8, 256, 56, 56),
]
WAYS: dict[str, tuple[str, dict[str, Any]]] = {}
for _block, _triton in TRITON.items():
    for _shape, _fmt in itertools.product(SHAPES, (NCHW, NHWC)):
        _name = f"{'x'.join(map(str, _shape))}-{'nhwc' if _fmt is NHWC else 'nchw'}"
        WAYS[f"{_block}-{_name}"] = _block, {"shape": _shape, "fmt": _fmt}
    for _dtype in (torch.float16, torch.bfloat16, torch.float64):
        WAYS[f"{_block}-{str(_dtype)[6:]}"] = _block, {"dtype": _dtype}
    for _name, _options in _triton.ways.items():
        WAYS[f"{_block}-{_name}"] = _block, _options


def calls_in(way: str) -> list[Call]:
    block, options = WAYS[way]
    return calls_of(block, **options)


# ---- what Triton would launch ------------------------------------------------------------------


def dense(op: program.Operator, args: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments as a plan wants them, by the rules of the docstrings."""
    given = dict(zip(op._parameters, args, strict=True))
    like = given[op._like]
    like = like[0] if isinstance(like, list) else like
    channels_last = like if isinstance(like, bool) else host.is_channels_last(like)
    for name, a in given.items():
        fmt = NHWC if channels_last and name in op._maps else NCHW
        if isinstance(a, Tensor):
            given[name] = a.contiguous(memory_format=fmt)
        elif isinstance(a, list):
            given[name] = [t.contiguous(memory_format=fmt) for t in a]
    return given


def by_triton(call: Call) -> list[Launched]:
    op = OPERATORS[call.operator]
    outputs, launches = op.plan(**dense(op, call.args))
    log().clear()
    for kernel, programs, args in launches:
        kernel[(programs,)](*args, num_warps=WARPS)
    return named(log(), call.args)


def by_operator(call: Call) -> list[Launched]:
    log().clear()
    outputs = call()
    assert outputs is not None
    return named(log(), call.args)


def named(launches: list[Launched], args: tuple[Any, ...]) -> list[Launched]:
    """With names for tensors and addresses: an argument's, or a number by first appearance."""
    flat = [t for a in args for t in (a if isinstance(a, list) else [a])]
    names: dict[int, str] = {}
    for i, t in enumerate(flat):
        if isinstance(t, Tensor) and t.numel():
            names.setdefault(t.data_ptr(), f"argument {i}")

    def name(parameter: Any, a: Any) -> Any:
        if isinstance(a, tuple):
            return tuple(name(parameter, v) for v in a)
        if isinstance(a, Tensor) or (isinstance(a, int) and a > 2**32):
            address = a.data_ptr() if isinstance(a, Tensor) else a
            new = sum(n.startswith("new") for n in names.values())
            return names.setdefault(address, f"new {new}")
        return a

    result = []
    for launch in launches:
        parameters = launch.kernel.src.fn.params
        assert len(parameters) == len(launch.args)
        made = tuple(name(p, a) for p, a in zip(parameters, launch.args, strict=True))
        result.append(launch._replace(args=made))
    return result


# ---- tests -------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_launches_what_triton_would(way: str, machine: Machine) -> None:
    for call in calls_in(way):
        want = by_triton(call)
        bound = machine.bound
        first = by_operator(call)
        assert machine.bound == bound + len(want)
        for _ in range(2):  # now without Triton
            assert by_operator(call) == want == first
        assert machine.bound == bound + len(want)
        assert not any(launch.hooks for launch in want)


def test_calls_do_not_disturb_each_other(machine: Machine) -> None:
    """All ways in one process, forwards and backwards."""
    calls = [call for way in WAYS for call in calls_in(way)]
    want = [by_triton(call) for call in calls]
    for _ in range(2):
        for call, launches in itertools.chain(
            zip(calls, want, strict=True), reversed(list(zip(calls, want, strict=True)))
        ):
            assert by_operator(call) == launches
    bound = machine.bound
    for call, launches in zip(calls, want, strict=True):
        assert by_operator(call) == launches
    assert machine.bound == bound


@pytest.mark.parametrize("name", ["x", "w1", "b1", "w2", "b2"])
def test_other_alignment_is_another_kernel(name: str) -> None:
    aligned = se_calls()[0]
    shifted = se_calls(at={name: 1})[0]
    for call in (aligned, shifted, aligned, shifted):
        call()
    kernels = [{launch.kernel for launch in by_operator(call)} for call in (aligned, shifted)]
    assert kernels[0] != kernels[1]
    pointers = ["".join(sorted(str(k.src.attrs) for k in ks)) for ks in kernels]
    assert pointers[0].count("divisibility") > pointers[1].count("divisibility")


@pytest.mark.parametrize(
    "changed",
    [
        {"dtype": torch.bfloat16},
        {"weights": torch.float64},
        {"rd": 1},
        {"rd": 16},
        {"shape": (2, 16, 6, 5)},
        {"shape": (2, 1, 6, 5)},
        {"shape": (2, 24, 6, 6)},
        {"fmt": NHWC},
        {"act": 4},
        {"act": 3, "act_param": 0.5},
        {"gate": 11},
        {"bias": False},
        {"rd": 0},
    ],
    ids=str,
)
def test_other_specialisation_is_another_kernel(changed: dict[str, Any]) -> None:
    kernels = []
    for calls in (se_calls(), se_calls(**changed)):
        calls[0]()
        kernels.append({launch.kernel for launch in by_operator(calls[0])})
    assert kernels[0] != kernels[1]


def test_copies_what_is_not_dense(machine: Machine) -> None:
    """Maps in the other format or with gaps, weights transposed: launched are dense copies."""
    x, w1, b1, w2, b2 = se_calls()[0].args[:5]
    strange = [
        (x, w1.t().contiguous().t(), b1, w2, b2),
        (torch.empty(2, 24, 8, 8)[:, :, 1:7, 2:7], w1, b1, w2, b2),
        (torch.empty(2, 48, 6, 5)[:, ::2], w1, torch.empty(8)[::2], w2, torch.empty(48)[::2]),
        (torch.empty(2, 6, 5, 30).permute(0, 3, 1, 2)[:, :24], w1, b1, w2, b2),
        (torch.empty(1, 24, 1, 1).expand(2, 24, 6, 5), w1, b1, w2, b2),
    ]
    for tensors in strange:
        call = Call("se_forward", (*tensors, 1, 0.0, 10))
        want = by_triton(call)
        for _ in range(3):
            assert by_operator(call) == want
        x, y = tensors[0], call()[0]
        assert y.is_contiguous(memory_format=NHWC if host.is_channels_last(x) else NCHW)


def test_results_are_new_every_time() -> None:
    for way in ("se-silu", "eca-3", "sk-4"):
        for call in calls_in(way):
            results = [call() for _ in range(4)]
            flat = [[r] if isinstance(r, Tensor) else list(r) for r in results]
            assert len({type(r) for r in results}) == 1
            addresses = [t.data_ptr() for ts in flat for t in ts if t.numel()]
            assert len(set(addresses)) == len(addresses)
            for ts in flat[1:]:
                for t, first in zip(ts, flat[0], strict=True):
                    assert (t.shape, t.stride(), t.dtype) == (
                        first.shape, first.stride(), first.dtype,
                    )  # fmt: skip


def test_inference_mode_makes_inference_tensors() -> None:
    call = se_calls()[0]
    for _ in range(3):
        with torch.inference_mode():
            assert all(t.is_inference() for t in call())
        assert not any(t.is_inference() for t in call())


def test_the_current_stream_of_each_call(machine: Machine) -> None:
    call = se_calls()[0]
    for stream in (7, 7, 9, 7, 11):
        machine.stream = stream
        assert [launch.stream for launch in by_operator(call)] == [stream] * 3


def test_each_device_has_its_own_kernels(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Torch:
        """torch whose GPUs are the CPU."""

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

        @staticmethod
        def empty_strided(shape: Any, stride: Any, dtype: Any, device: torch.device) -> Tensor:
            return torch.empty_strided(shape, stride, dtype=dtype)

    @contextlib.contextmanager
    def device(which: torch.device) -> Iterator[None]:
        before, machine.device = machine.device, which.index
        yield
        machine.device = before

    where = [0]
    monkeypatch.setattr(program, "torch", Torch())
    monkeypatch.setattr(program, "_common_device", lambda _: torch.device("cuda", where[0]))
    monkeypatch.setattr(direct, "_allocator", lambda _: torch._C._dynamo.guards._empty_strided_cpu)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: machine.device)
    seen: dict[int, set[Kernel]] = {}
    call = se_calls()[0]
    programs = {}
    for where[0] in (0, 1):  # the key holds the device: on a machine with two, two programs
        call()
        (programs[where[0]],) = se.se_forward.programs.values()
        se.se_forward.programs.clear()
    for current, wanted in itertools.product((0, 1), (0, 1, 0)):
        machine.device = current
        log().clear()
        programs[wanted].call(*call.args)
        assert machine.device == current
        assert [launch.stream for launch in log()] == [7 + 100 * wanted] * 3
        assert [launch.device for launch in log()] == [wanted] * 3
        seen.setdefault(wanted, {launch.kernel for launch in log()})
        assert seen[wanted] == {launch.kernel for launch in log()}
    assert not seen[0] & seen[1]


def test_the_key_holds_the_device() -> None:
    x, *rest = se_calls()[0].args
    meta = [t.to("meta") if isinstance(t, Tensor) else t for t in rest]
    keys = {se.se_forward._key(*a) for a in ((x, *rest), (x, *meta), (x.to("meta"), *meta))}
    assert len(keys) == 3


def test_hooks_see_every_launch(machine: Machine) -> None:
    call = se_calls()[0]
    for _ in range(2):
        call()
    seen = []
    enter, leave = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    for hook in (enter, leave):
        hook.add(seen.append)
        call()
        assert len(seen) == 3 and seen[0]["name"] == "fold_kernel"
        hook.remove(seen.append)
        seen.clear()
        call()
        assert not seen
    with knobs.runtime.scope():
        knobs.runtime.launch_enter_hook = seen.append  # a function in place of the chain
        call()
        assert len(seen) == 3
    bound = machine.bound
    call()
    assert machine.bound == bound and len(seen) == 3


def test_kernels_of_a_watched_first_call_are_not_kept(machine: Machine) -> None:
    call = se_calls()[0]
    with knobs.runtime.scope():
        knobs.runtime.debug = True
        for _ in range(2):
            assert all(launch.kernel.options["debug"] for launch in by_operator(call))
    assert not any(launch.kernel.options["debug"] for launch in by_operator(call))
    bound = machine.bound
    assert not any(launch.kernel.options["debug"] for launch in by_operator(call))
    assert machine.bound == bound
    with knobs.runtime.scope():
        knobs.runtime.debug = True
        assert all(launch.kernel.options["debug"] for launch in by_operator(call))


def test_other_ways_to_change_a_launch(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    call = se_calls()[0]
    for _ in range(2):
        call()

    def through_triton() -> bool:
        before = machine.bound
        call()
        return machine.bound > before

    assert not through_triton()
    with knobs.compilation.scope():
        knobs.compilation.instrumentation_mode = "fpsan"
        assert through_triton()
    seen = []
    host.passes.fold_kernel.add_pre_run_hook(lambda *args, **kwargs: seen.append(args))
    try:
        assert through_triton() and seen
    finally:
        host.passes.fold_kernel.pre_run_hooks.clear()
    torch.use_deterministic_algorithms(True)
    try:
        assert through_triton()
        assert call()[0].isnan().all()  # new memory is filled
    finally:
        torch.use_deterministic_algorithms(False)
    assert not through_triton()


def test_without_inductors_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch._C._dynamo.guards, "_empty_strided_cpu")
    call = se_calls()[0]
    want = by_triton(call)
    for _ in range(3):
        assert by_operator(call) == want


def test_memory_that_is_not_aligned(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    """An allocator that was plugged in may give any address: Triton must look at it."""

    def empty(shape: Any, stride: Any, dtype: torch.dtype) -> Tensor:
        size = 1 + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        return torch.empty(size + 1, dtype=dtype)[1:].as_strided(shape, stride)

    monkeypatch.setattr(direct, "_allocator", lambda device: empty)
    call = se_calls()[0]
    want = by_triton(call)
    for _ in range(3):
        bound = machine.bound
        assert by_operator(call) == want
        assert machine.bound > bound


def test_threads(machine: Machine) -> None:
    """Many threads with few kinds of calls, from an empty cache, and with small time slices."""
    ways = ["se-silu", "se-x-at-1", "se-2x24x6x5-nhwc", "sk-4", "eca-3", "se-bfloat16"]
    calls = [call for way in ways for call in calls_in(way)]
    want = [by_triton(call) for call in calls]
    errors: list[str] = []

    def work(seed: int) -> None:
        try:
            for i in range(200):
                k = (seed * 7 + i * (seed + 1)) % len(calls)
                if by_operator(calls[k]) != want[k]:
                    errors.append(f"{k}")
        except Exception as error:
            errors.append(repr(error))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(3):
            for op in OPERATORS.values():
                op.programs.clear()
            threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert not errors
    finally:
        sys.setswitchinterval(interval)


def test_as_many_programs_as_kinds_of_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_MAX_PROGRAMS", 4)
    for h in range(1, 12):
        call = se_calls(shape=(2, 24, h, 5))[0]
        want = by_triton(call)
        for _ in range(3):
            assert by_operator(call) == want
        assert len(se.se_forward.programs) <= 4


@pytest.mark.parametrize("name", OPERATORS)
def test_few_python_calls(name: str) -> None:
    """What the host does for a call: a handful of Python functions, not one per argument."""
    every = [call for block in TRITON for call in calls_of(block)]
    (call,) = (c for c in every if c.operator == name)
    for _ in range(2):
        call()
    counted = []

    def count(frame: Any, event: str, arg: Any) -> None:
        if event == "call" and frame.f_code.co_filename not in (__file__, "<string>"):
            counted.append(f"{frame.f_code.co_filename}:{frame.f_code.co_name}")

    sys.setprofile(count)
    call()
    sys.setprofile(None)
    assert len(counted) <= 5, counted  # "<string>" is NamedTuple's
