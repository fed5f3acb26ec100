"""Calls like one that was checked before are not checked again.

Whether the operators take a call, and which backend, follows from what its tensors are, not from
their numbers: types, devices, layouts, the weights' shapes and the map's channels. Those are the
key under which a call that passed every check leaves what was found. A call that finds nothing
there goes through the checks, which say what is wrong.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from chattn_cuda import backends, ops, reference

__all__ = ["find", "remember", "repeat"]

Key = tuple[Any, ...]

Found = tuple[str, tuple[Any, ...]]
"""The namespace of the operators and their constants."""

_MOST = 4096
_KEPT = frozenset((str, bool, float))
_found: dict[Key, Found] = {}
backends.when_registered(_found.clear)


def repeat(
    call: tuple[Any, ...], channel_dim: int, x: Tensor, *tensors: Tensor | None
) -> tuple[Key | None, tuple[Tensor, Tensor] | None]:
    """Run a call of a function, if one like it was checked before.

    Args:
        call: The block, and what users say that is no tensor. Objects that may change, such as
            modules, are not kept.
        channel_dim: Of x. Views of other tensors are not kept.
        x: The map.
        *tensors: The others.

    Returns:
        The key for `remember`, or None; y and the gate, or None.
    """
    if torch.compiler.is_compiling() or channel_dim != 1:
        return None, None
    for value in call:
        if type(value) not in _KEPT:
            return None, None
    key, found = find(call, x, tensors)
    if found is None:
        return key, None
    return key, ops.apply_eagerly(call[0], found[0], x, *tensors, *found[1])


def find(
    call: Hashable, x: Tensor, tensors: Sequence[Any], maps: Sequence[Any] = ()
) -> tuple[Key | None, Found | None]:
    """What was found for a call like this one.

    Not for where something is compiled.

    Args:
        call: The block with everything that is no tensor.
        x: The map.
        tensors: The others, or None.
        maps: Others like x, of any strides.

    Returns:
        The key, None where calls of this kind are not kept: subclasses of tensors, transforms of
        torch.func, forward-mode differentiation, weights with gaps or on another device, other
        ranks, empty planes, maps that differ. And what was kept under it, or None.
    """
    kind = type(x)
    if (kind is not Tensor and kind is not nn.Parameter) or x.is_nested:
        return None, None
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return None, None
    shape, dtype, device, strided = x.shape, x.dtype, x.device, torch.strided
    if len(shape) != 4 or shape[2] == 0 or shape[3] == 0 or x.layout is not strided:
        return None, None
    for u in maps:
        kind = type(u)
        if (kind is not Tensor and kind is not nn.Parameter) or u.is_nested:
            return None, None
        if u.shape != shape or u.dtype is not dtype or u.device != device:
            return None, None
        if u.layout is not strided:
            return None, None
    key, mixed = [call, dtype, device, shape[1]], False
    for t in tensors:
        if t is None:
            key.append(None)
            continue
        kind = type(t)
        if kind is not nn.Parameter and kind is not Tensor:
            return None, None
        if t.layout is not strided or not t.is_contiguous() or t.device != device:
            return None, None
        key.append(t.shape)
        if t.dtype is not dtype:
            mixed = True
            key.append(t.dtype)
    if mixed:  # the checks accept some under autocast only
        key.append(reference.autocast_enabled(device.type))
    whole = tuple(key)
    return whole, _found.get(whole)


def remember(key: Key | None, backend: str, *constants: Any) -> None:
    """Keep under the key that `find` gave what the checks of a call found.

    For where they found that ``backend`` takes the tensors as they are.
    """
    namespace = backends.get(backend).namespace
    if key is not None and namespace is not None:
        if len(_found) >= _MOST:
            _found.clear()
        _found[key] = namespace, constants
