"""Whether a module that looks like a block computes that block: tried out, on a copy."""

from __future__ import annotations

import collections
import contextlib
import copy
import functools
import math
import random
import sys
import threading
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chattn_cuda import methods

__all__ = [
    "LARGER",
    "LAZY",
    "NoCopy",
    "POOLS",
    "as_key",
    "configuration",
    "difference",
    "is_lazy",
    "plain_copy",
    "sizes",
    "undisturbed",
]

_Result = TypeVar("_Result")

_SIZES = {1: ((6,), (13,)), 2: ((3, 2), (1, 11)), 3: ((3, 2, 2), (1, 9, 10))}
LARGER = ((9, 7), (5, 12))  # for a block with convolutions
# Samples, and a plane: more of both than in the other trials, a single sample, a single position.
_POSITION = (1, 1)
_ELSEWHERE = (9, (33, 34)), (1, (8, 9)), (2, _POSITION)
# Of many channels a fifth of the numbers.
_ELSEWHERE_WIDE = (9, (8, 9)), (1, (33, 34)), (2, _POSITION)
_WIDE = 256
_SCALES = (1.0, 6.0)  # of the numbers: gates in the middle of their range, and at its ends
_LONGEST = 60  # seconds of a trial
POOLS = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3}

_FOUND: weakref.WeakKeyDictionary[Any, dict[Any, str | None]] = weakref.WeakKeyDictionary()
"""What was found out, by class; there by adapter and configuration, and by that without sizes."""

_ONE_AT_A_TIME = threading.Lock()
_here = threading.local()

_PERIOD = 4093  # a prime: rows of any usual length differ

LAZY = "its parameters get their sizes in the first call: accelerate after it"


class NoCopy(Exception):
    """A module cannot be copied."""


def is_lazy(module: Any) -> bool:
    """Whether it holds a parameter or buffer without a size, such as nn.LazyLinear's."""
    return any(map(nn.parameter.is_lazy, (*module.parameters(), *module.buffers())))


def difference(module: Any, accelerated: Any) -> str | None:
    """Why ``module`` does not compute what it would as an ``accelerated`` one; None: it does.

    A float64 copy with random weights runs both ways on some small maps, in eval and in train mode;
    outputs, gradients and buffers must agree, nothing may be left in an attribute, and the input
    may not change. Then once more with another type, more samples and a larger map, without
    gradients: a forward may look at those. Neither the module nor the global random state changes,
    and no hook runs. Modules of one class that differ in their numbers alone are tried out once;
    those that differ in sizes, too, in float64 on one small map in each mode that they ask for.
    """
    if is_lazy(module):
        return LAZY
    configured = configuration(module)
    if configured is None:
        return _tried(module, accelerated, brief=False)
    key = accelerated._accelerated_as, configured
    found = _FOUND.setdefault(accelerated._accelerated_from, {})
    alike = "alike", _without_sizes(configured, _sizes_of(module))
    if key not in found:
        brief = alike in found
        found[key] = _tried(module, accelerated, brief)
        if found[key] is None:
            found[alike] = None
    return found[key]


def undisturbed(function: Callable[..., _Result]) -> Callable[..., _Result]:
    """Let ``function`` run as in a new process, whatever modes it is called in.

    A thread of its own has none of its caller's: autocast, gradients, default device, modes for
    functions and dispatch. It computes on one thread, which is faster for small maps. What it sets
    for all threads it sets back; so there is but one at a time, and those that it calls itself.
    """

    @functools.wraps(function)
    def alone(*arguments: Any, **options: Any) -> _Result:
        nested = getattr(_here, "undisturbed", False)
        with contextlib.nullcontext() if nested else _ONE_AT_A_TIME:
            thread = futures.ThreadPoolExecutor(1)
            try:
                return thread.submit(_run_as_usual, function, arguments, options).result(_LONGEST)
            except futures.TimeoutError:  # it may wait for what its caller is importing
                raise TimeoutError(f"it takes longer than {_LONGEST} s") from None
            finally:
                thread.shutdown(wait=False)

    return alone


def _run_as_usual(function: Any, arguments: Any, options: Any) -> Any:
    """Without what is set for all threads: default type, warnings, float32 in 16 bits."""
    _here.undisturbed = True
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    with (
        warnings.catch_warnings(),
        torch.random.fork_rng(devices=[]),
        _other_random_numbers_kept(),
        torch.autograd.set_detect_anomaly(False),
    ):
        warnings.simplefilter("ignore")
        with torch.backends.mkldnn.flags(enabled=False):
            try:
                torch.default_generator.manual_seed(0)
                torch.set_num_threads(1)
                torch.set_default_dtype(torch.float32)
                return function(*arguments, **options)
            finally:
                torch.set_default_dtype(dtype)
                torch.set_num_threads(threads)


@contextlib.contextmanager
def _other_random_numbers_kept() -> Iterator[None]:
    """Those of Python and NumPy."""
    numpy, state = sys.modules.get("numpy"), random.getstate()
    numpys = None if numpy is None else numpy.random.get_state()
    try:
        yield
    finally:
        random.setstate(state)
        if numpy is not None:
            numpy.random.set_state(numpys)


def _tried(module: Any, accelerated: Any, brief: bool) -> str | None:
    try:
        return _try_out(module, accelerated, brief)
    except TimeoutError as error:
        return f"it is built like the block, but cannot be tried out: {error}"


@undisturbed
def _try_out(module: Any, accelerated: Any, brief: bool) -> str | None:
    try:
        plain = plain_copy(module)
        fused = copy.deepcopy(plain)
        fused.__class__ = accelerated
        fused.__dict__["_backend"] = "reference"  # past a __setattr__ of the class
    except NoCopy as error:
        return f"it is built like the block, but {error}"
    try:
        return _difference(plain, fused, brief)
    except Exception as error:
        return f"it is built like the block, but fails on a small map: {error}"


def _difference(plain: Any, fused: Any, brief: bool) -> str | None:
    channels = max(p.shape[0] for p in plain.parameters())
    if hasattr(fused, "fused_layers"):
        channels = fused.fused_layers().second.weight.shape[0]
    planes, count = sizes(plain), 1 if brief else len(_SCALES)
    if hasattr(fused, "probe_channels"):  # the input has others than the gate
        channels, planes = fused.probe_channels(), planes if brief else LARGER
    before = _attributes(plain)
    for training in methods.modes_of(plain) if brief else (False, True):
        plain.train(training), fused.train(training)
        for size, scale in tuple(zip(planes, _SCALES, strict=True))[:count]:
            x = scale * _randn(2, channels, *size)
            with _ExactGradients():  # fused, it may run its own forward, too
                state = _random_state()
                expected = _run(plain, x)
                if _random_state() != state and _draws(copy.deepcopy(plain), x):
                    return "it is built like the block, but its forward draws random numbers"
                found = _run(fused, x)
            if unused := [name for name, value in expected.items() if value is None]:
                return f"it is built like the block, but its output does not depend on {unused[0]}"
            if not all(_is_close(found[k], v, rtol=1e-9, atol=1e-12) for k, v in expected.items()):
                return "it is built like the block, but computes something else"
        planes = planes[::-1]
    if not brief:
        if _differs_elsewhere(plain, fused, channels, planes):
            return "it is built like the block, but computes something else for other maps"
        if _has_another_type(plain, channels, planes[0]):
            type(fused)._mixes_types = True
    for name, value in _attributes(plain).items():
        if name not in before or before[name] is not value:
            return f"it is built like the block, but its forward sets {name}"
    return None


def _differs_elsewhere(
    plain: Any, fused: Any, channels: int, planes: tuple[tuple[int, ...], ...]
) -> bool:
    """In float32: on more samples, a larger map, one sample (in training, too), and one position.

    The one sample is channels_last; the output must have the memory format of the module's own.
    """
    plain.eval().float(), fused.eval().float()
    rank = len(planes[0])
    for samples, plane in _ELSEWHERE if channels <= _WIDE else _ELSEWHERE_WIDE:
        size = plane if rank == 2 else planes[0]
        if plane == _POSITION:
            if LARGER[0] in planes:  # convolutions may need more
                continue
            size = (1,) * rank
        x = _randn(samples, channels, *size).float()
        if samples == 1 and rank == 2:
            x = x.contiguous(memory_format=torch.channels_last)
        given = x.clone()
        for training in (False, True) if samples == 1 else (False,):
            plain.train(training), fused.train(training)
            with torch.no_grad():
                try:
                    expected = plain(given)
                except ValueError:  # a batch norm of one number
                    if training:
                        continue
                    raise
                found = fused(x)
            if not _is_close(found, expected, rtol=1e-3, atol=1e-4) or not torch.equal(given, x):
                return True
            if plane != _POSITION and found.stride() != expected.stride():
                return True
    return False


def _has_another_type(plain: Any, channels: int, plane: tuple[int, ...]) -> bool:
    """Whether the result has not the map's type under autocast, where weights are in float32."""
    plain.eval()
    x = _randn(2, channels, *plane).bfloat16()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        return bool(plain(x).dtype != torch.bfloat16)


def _draws(module: Any, x: Tensor) -> bool:
    """Whether the forward draws numbers: every time, for other threads may draw now and then."""
    for _ in range(3):
        state = _random_state()
        with torch.no_grad():
            module(x)
        if _random_state() == state:
            return False
    return True


def _random_state() -> tuple[Any, ...]:
    """Of torch, Python and NumPy."""
    found = torch.default_generator.get_state().tolist(), random.getstate()
    if (numpy := sys.modules.get("numpy")) is None:
        return found
    _, keys, *place = numpy.random.get_state()
    return *found, keys.tolist(), *place


def _is_close(actual: Any, expected: Tensor, rtol: float, atol: float) -> bool:
    """As torch.allclose, in a quarter of its time; not for infinite numbers."""
    if actual is None or (actual.shape, actual.dtype) != (expected.shape, expected.dtype):
        return False
    excess = (actual - expected).abs_().sub_(expected.abs(), alpha=rtol)
    return excess.numel() == 0 or bool(excess.max() <= atol)


def _randn(*shape: int) -> Tensor:
    """Random numbers, of which many repeat: it is these that take their time."""
    count = math.prod(shape)
    values = torch.randn(min(count, _PERIOD), dtype=torch.float64)
    return values.repeat(-(-count // _PERIOD))[:count].view(shape)


class _ExactGradients(TorchFunctionMode):
    """Torch's hard sigmoid has a gradient with a float32 1/6."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.hardsigmoid:
            return F.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


def _attributes(module: Any) -> dict[str, Any]:
    """What its modules hold that is no parameter, buffer, submodule, hook or mode."""
    return {
        f"{prefix}.{name}".lstrip("."): value
        for prefix, m in module.named_modules()
        for name, value in m.__dict__.items()
        if name not in methods.OF_EVERY_MODULE
    }


def configuration(module: Any) -> Any:
    """All that the outcome depends on beside the class itself; None where that cannot be told."""
    parts: list[Any] = [
        (name, None if m is module else weakref.ref(type(m))) for name, m in module.named_modules()
    ]
    try:
        parts += [(name, as_key(value)) for name, value in _attributes(module).items()]
        parts += [methods.key_of(cls) for cls in classes_inside(module)]
    except TypeError:  # what may change, or a method that is no function
        return None
    for name, t in (*module.named_parameters(), *module.named_buffers()):
        parts.append((name, as_key(tuple(t.shape)), t.is_floating_point()))
    return tuple(parts)


def classes_inside(module: Any) -> list[Any]:
    """Those of a module and all in it that are not torch's, each once."""
    return [c for c in dict.fromkeys(map(type, module.modules())) if not methods.is_fixed(c)]


def _sizes_of(module: Any) -> set[int]:
    """Of its parameters, and their ratios, as a reduction is."""
    found = {size for p in module.parameters() for size in p.shape}
    return found | {a // b for a in found for b in found if b > 1 and a % b == 0}


def _without_sizes(key: Any, sizes: set[int]) -> Any:
    """A configuration without the whole numbers that are sizes: the same for other widths."""
    if isinstance(key, tuple):
        if key[:1] == (int,):
            return "a size" if key[1] in sizes else key
        return tuple(_without_sizes(part, sizes) for part in key)
    return key


def as_key(value: Any) -> Any:
    """A key for a setting.

    Raises:
        TypeError: It may change, or hold anything.
    """
    if isinstance(value, (tuple, list)):
        return type(value), *map(as_key, value)
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return type(value), value
    if isinstance(value, (types.FunctionType, types.BuiltinFunctionType)):
        return weakref.ref(value)
    raise TypeError


def _numbers(shape: Any) -> Tensor:
    """Random ones for a parameter, of the size that layers start with."""
    return _randn(*shape).div_(max(1, math.prod(shape[1:])) ** 0.5)


def plain_copy(module: Any, numbers: Callable[[Any], Tensor] = _numbers) -> Any:
    """The module without hooks, on the CPU in float64, with random or other ``numbers``."""
    memo: dict[int, Any] = {}
    for m in module.modules():
        for name, value in m.__dict__.items():
            if "_hooks" in name and isinstance(value, dict):
                memo[id(value)] = collections.OrderedDict()
            elif isinstance(value, Tensor) and value.is_floating_point():  # as of weight_norm
                memo[id(value)] = value.detach().to("cpu", torch.float64)
    for p in module.parameters():
        memo[id(p)] = nn.Parameter(numbers(p.shape))
    for b in module.buffers():  # statistics, that is: 0.5 to 1.5 is good for means and variances
        values = torch.rand(b.shape, dtype=torch.float64) + 0.5
        memo[id(b)] = values if b.is_floating_point() else torch.zeros(b.shape, dtype=b.dtype)
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise NoCopy(f"no copy can be made to try it out: {error}") from error


def sizes(module: Any) -> tuple[tuple[int, ...], ...]:
    """Of the planes of some small maps that it may take."""
    return _SIZES[next((POOLS[type(m)] for m in module.modules() if type(m) in POOLS), 2)]


def _run(module: Any, x: Tensor) -> dict[str, Any]:
    """The output, its gradients (None: it does not depend on that) and the buffers afterwards."""
    leaf = x.clone().requires_grad_()
    y = module(leaf)
    leaves = {"the map": leaf, **dict(module.named_parameters())}
    grads = torch.autograd.grad(y.sin().sum(), [*leaves.values()], allow_unused=True)
    buffers = {f"buffer {name}": b.double() for name, b in module.named_buffers()}
    return {"the output": y, **dict(zip(leaves, grads, strict=True)), **buffers}
