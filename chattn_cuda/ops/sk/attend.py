"""Which way a selective kernel goes through autograd."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from chattn_cuda import compiled, reference
from chattn_cuda.ops.calls import call, call_with_gradient
from chattn_cuda.ops.derivable import Derivable
from chattn_cuda.ops.sk.block import SelectiveKernelFunction, evaluate, is_whole
from chattn_cuda.ops.sk.carriers import Select, Squeeze
from chattn_cuda.ops.sk.network import Network
from chattn_cuda.ops.sk.operators import (
    select_flat,
    select_formula,
    split,
    squeeze_flat,
    squeeze_formula,
)
from chattn_cuda.ops.sk.prologue import Prologue

__all__ = ["attend", "squeeze", "takes_prologue"]


def takes_prologue(prologue: Prologue, maps: Sequence[Tensor], slices: int) -> bool:
    """Whether `attend` may be given the prologue here: it has no derivative."""
    if torch.is_grad_enabled() or torch._C._are_functorch_transforms_active():
        return False
    return prologue.fits(max(len(maps), slices))


def attend(
    namespace: str,
    maps: Sequence[Tensor],
    slices: int,
    network: Callable[[Tensor], Tensor],
    prologue: Prologue | None = None,
) -> tuple[Tensor, Tensor]:
    """Run the block with its gradients.

    Args:
        namespace: The backend's operator namespace.
        maps: The branches (N, C, H, W) or, with ``slices``, one map (N, slices * C, H, W).
        slices: How many branches lie in one map.
        network: ``network(pooled)``: the logits (N, M, C) for the mean (N, C), in accumulators. A
            `Network` costs the least.
        prologue: What the passes do to the branches first. For where `takes_prologue`.

    Returns:
        y and the logits (N, M, C); the gate is their softmax over M.
    """
    if torch._C._are_functorch_transforms_active():
        branches = split(maps, slices)
        logits = network(squeeze(namespace, branches))
        operator = functools.partial(select_flat, namespace)
        (y,) = Derivable(operator, select_formula, 1 + len(branches))(logits, *branches)
        return y, logits
    recorded = torch.is_grad_enabled()
    if type(network) is Network and maps[0].shape[0] > 0:
        if not is_whole(namespace, network.cardinality):
            network = network.in_type(reference.accumulation_dtype(maps[0].dtype))
        if recorded:
            tensors = network.tensors
            for t in (*tensors, *maps):
                if t is not None and t.requires_grad:
                    return SelectiveKernelFunction.apply(
                        namespace, slices, network, *tensors, *maps
                    )
        return evaluate(namespace, slices, network, maps, prologue)[:2]
    # An exported program has no functions of autograd: its operators have gradients of their own.
    if recorded and any(u.requires_grad for u in maps) and not compiled.is_exporting():
        # The caller keeps pooled no longer than the network does: it counts where memory is short.
        carriers: list[Tensor] = []
        logits = network(_pooled(carriers, *Squeeze.apply(namespace, slices, *maps)))
        return Select.apply(namespace, slices, logits, *carriers, *maps), logits
    branches = split(maps, slices)
    before = () if prologue is None else prologue.arguments(maps[0].dtype)
    run = call_with_gradient if recorded else call
    logits = network(run(namespace, "sk_squeeze", branches, *before))
    return run(namespace, "sk_select", branches, logits, *before), logits


def squeeze(namespace: str, branches: Sequence[Tensor]) -> Tensor:
    """The mean (N, C) of the branches' sum, with its gradient: ``dpooled / HW``, expanded."""
    if torch._C._are_functorch_transforms_active():
        operator = functools.partial(squeeze_flat, namespace)
        return Derivable(operator, squeeze_formula, len(branches))(*branches)[0]
    return call_with_gradient(namespace, "sk_squeeze", list(branches))


def _pooled(carriers: list[Tensor], pooled: Tensor, *others: Tensor) -> Tensor:
    carriers.extend(others)
    return pooled
