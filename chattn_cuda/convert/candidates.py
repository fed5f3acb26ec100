"""Which modules are worth a recording: a look at their submodules and code, which costs little."""

from __future__ import annotations

import types
import weakref
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import ParametrizationList

from chattn_cuda.convert.matching import is_own_class
from chattn_cuda.convert.recording import LAYERS, NORMS, features
from chattn_cuda.methods import functions_in

__all__ = ["may_be"]

_MOST = 16  # submodules of a block
_MOST_LAYERS = 8
_MOST_IF_ELSEWHERE = 3  # where a function may pool
_POOLS = (
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d,
    nn.AvgPool2d,
)  # fmt: skip
_POOLINGS = frozenset(
    """
    mean sum einsum amax max std var norm logsumexp avg_pool1d avg_pool2d avg_pool3d max_pool2d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d
    """.split()
)


def may_be(module: Any) -> bool:
    """Whether it may pool, and holds a few layers that take and give about C numbers.

    Or matrices as parameters of its own. Where there are larger convolutions, its own code must
    pool: such blocks are many. Of layers whose sizes the first call decides, nothing is known.
    """
    if type(module).__module__.startswith("torch.nn.") or isinstance(module, LAYERS):
        return False
    sizes: list[tuple[int, int]] = []
    larger = lazy = False
    for i, m in enumerate(module.modules()):
        if i > _MOST or len(sizes) > _MOST_LAYERS:
            return False
        if isinstance(m, ParametrizationList):  # of a layer that was counted
            continue
        lazy = lazy or isinstance(m, LazyModuleMixin)
        if isinstance(m, LAYERS):
            sizes.append(features(m))
            if not larger and isinstance(m, nn.Conv2d) and _is_larger(m):
                larger = True
                if not _pools(module):
                    return False
        elif not is_own_class(m):
            if m._parameters and not isinstance(m, (*NORMS, nn.PReLU)):
                return False
        else:
            sizes += [s for p in m._parameters.values() if p is not None for s in _as_matrix(p)]
    if not sizes or lazy:
        return lazy
    takes = sizes[0][0]  # or mean and maximum, 2C; and gives C, or 2C
    close = (takes, 2 * takes, takes / 2) if len(sizes) > 1 else (takes,)
    if not any(made in close for _, made in sizes):
        return False
    may_call = len(sizes) <= _MOST_IF_ELSEWHERE
    return larger or any(_pools(m) or may_call and _calls_functions(m) for m in module.modules())


def _is_larger(convolution: nn.Conv2d) -> bool:
    return convolution.kernel_size != (1, 1) and convolution.out_channels > 1


def _as_matrix(parameter: Tensor) -> list[tuple[int, int]]:
    """Its sizes as those of a layer, either way round; nothing for vectors."""
    sizes = [size for size in parameter.shape if size > 1]
    return [(sizes[1], sizes[0]), (sizes[0], sizes[1])] if len(sizes) == 2 else []


def _pools(module: Any) -> bool:
    """Whether it is or has a pooling, or its code names one."""
    has_one = any(isinstance(m, _POOLS) for m in (module, *module._modules.values()))
    return has_one or (is_own_class(module) and _look(type(module)).names_pooling)


def _calls_functions(module: Any) -> bool:
    return is_own_class(module) and _look(type(module)).calls_functions


class _Look(NamedTuple):
    """What the code of a class says."""

    forward: Any
    names_pooling: bool
    calls_functions: bool
    """Whether it calls functions, which may pool."""


_LOOKS: weakref.WeakKeyDictionary[Any, _Look] = weakref.WeakKeyDictionary()


def _look(cls: Any) -> _Look:
    code = getattr(cls.forward, "__code__", None)
    known = _LOOKS.get(cls)
    if known is not None and known.forward is code:
        return known
    pooling = functions = False
    for function in functions_in(cls):
        names, scope = function.__code__.co_names, function.__globals__
        pooling |= not _POOLINGS.isdisjoint(names)
        functions |= any(isinstance(scope.get(n), types.FunctionType) for n in names)
    _LOOKS[cls] = _Look(code, pooling, functions)
    return _LOOKS[cls]
