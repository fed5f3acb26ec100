"""The selective kernel as a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import activations, backends, ops, reference, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.explanation import register_explainer
from chattn_cuda.functional import checked
from chattn_cuda.functional.common import why_not_fused
from chattn_cuda.functional.decision import Decision
from chattn_cuda.hooks import own_behaviour

__all__ = ["COPIES_OF_SLICES", "run_selective_kernel", "selective_kernel"]

#: for `explain`: by backend, what happens to branches that lie in one map
COPIES_OF_SLICES = {
    "triton": "the Triton backend copies branches that are slices of one map before it reads them, "
    "and their gradients behind"
}

#: for `explain`: where the activation of a prologue is none of the kernels'
UNFUSED_PROLOGUE = "the prologue runs by PyTorch's operations: the kernels have no such activation"

_WEIGHTS = ("w_reduce", "b_reduce", "w_select", "b_select")


def selective_kernel(
    branches: Sequence[Tensor],
    w_reduce: Tensor,
    b_reduce: Tensor | None,
    w_select: Tensor,
    b_select: Tensor | None,
    *,
    norm: Callable[[Tensor], Tensor] | None = None,
    act: ActivationSpec = "relu",
    prologue: tuple[Tensor, Tensor] | None = None,
    prologue_act: ActivationSpec = "relu",
    return_gate: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Weigh M branches against each other: the fuse and select of a selective kernel.

    ``h = act(norm(w_reduce @ mean_hw(sum_m branches[m]) + b_reduce))``;
    ``s[m] = softmax_m(w_select @ h + b_select)``; ``y = sum_m s[m] * branches[m]``.
    Li et al., "Selective Kernel Networks", arXiv 1903.06586, equations 1 to 6; the same result as
    timm's ``SelectiveKernelAttn`` on the stacked branches, which are not stacked or added up here.
    Gradients flow to the branches and the weights (and from the gate, where it is returned); they
    can be differentiated again.

    Args:
        branches: 1 to 4 maps (N, C, H, W) of one shape, type and device: float32, float16, bfloat16
            or float64. Any strides; slices of the channels of one map are read in place (Triton
            copies them, and `chattn_cuda.explain` says so).
        w_reduce: (d, C) as a Linear's weight or (d, C, 1, 1) as a 1x1 convolution's.
        b_reduce: Its bias (d,), or None.
        w_select: (M * C, d) or (M * C, d, 1, 1): the rows of the first branch first.
        b_select: Its bias (M * C,), or None.
        norm: A function of the hidden values (N, d) in the accumulation type, such as an
            ``nn.BatchNorm1d``; None for none. Batch statistics need N >= 2.
        act: Activation behind it: a name, a module class or instance, a partial, or any function of
            a tensor.
        prologue: scale and shift, each (M, C): ``prologue_act(scale[m] * u + shift[m])`` takes the
            place of branch u, as a batch norm by running statistics and an activation would make
            it. The passes compute it while they read, where no gradients are recorded.
        prologue_act: Its activation, named as ``act``. Before more than two branches the passes
            compute ReLU alone.
        return_gate: Also return the gate.
        backend: "auto" or one of "cuda", "triton", "cpu", "reference".

    The weights have the branches' type; under autocast they may have another. What lies between
    the mean and the logits runs in PyTorch, in float32 (float64 for float64 branches).

    Returns:
        y with a branch's shape and type and the memory format of the first (contiguous or
        channels_last). With ``return_gate`` also the gate (N, M, C), float32 (float64 for float64
        branches), which adds up to 1 over the branches.

    Raises:
        TypeError: ``branches`` is no sequence, an argument is not a dense floating-point tensor, or
            a specification is of the wrong type.
        ValueError: No or more than 4 branches, wrong shape, device, or type mix; unknown activation
            or backend; a named backend that cannot run here. (What its kernels do not
            cover runs by the formulas on any backend; `chattn_cuda.explain` says so.)

    Complexity: 2 * M reads and 1 write of a branch's size forward, M + 2 reads and M writes
    backward. Memory besides the results: (M + 1) * N * C numbers at once and the hidden values; in
    training they are kept for the backward, with the branches.

    Examples:
        >>> u = [torch.randn(2, 64, 8, 8) for _ in range(2)]
        >>> y = selective_kernel(u, torch.randn(32, 64), None, torch.randn(128, 32), None)
    """
    layers = w_reduce, b_reduce, w_select, b_select
    key = found = None
    if norm is None and prologue is None and _may_be_known(branches, act, backend):
        call = "selective_kernel", len(branches), act, backend
        key, found = checked.find(call, branches[0], layers, branches[1:])
    if found is not None:
        known = ops.Network(len(branches), *layers, None, *found[1])
        y, z = ops.sk.attend(found[0], branches, 1, known)
        return (y, torch.softmax(z, 1)) if return_gate else y
    decision = _decide(branches, *layers, norm, act, prologue, prologue_act, backend)
    x, name = decision.x, decision.backend
    network = _network(len(branches), x, decision.tensors, norm, act)
    if type(network) is ops.Network and decision.as_given and not decision.takes_formulas:
        checked.remember(key, name, network.relu)
    before = None
    if prologue is not None:
        acc = reference.accumulation_dtype(x.dtype)
        numbers = torch.stack([t.to(acc).flatten() for t in prologue])
        covered = activations.resolve(prologue_act, "prologue_act")
        if covered is None:
            behind = activations.as_callable(prologue_act, "prologue_act")
            branches = reference.after_prologue(branches, numbers, behind)
        else:
            before = ops.Prologue(numbers, act=(covered[0].code, covered[1]))
    if decision.takes_formulas:
        name = "reference"
    y, z = run_selective_kernel(name, branches, network, prologue=before)
    return (y, torch.softmax(z, 1)) if return_gate else y


def _decide(
    branches: Sequence[Tensor], w_reduce: Tensor, b_reduce: Tensor | None, w_select: Tensor,
    b_select: Tensor | None, norm: Any, act: ActivationSpec,
    prologue: tuple[Tensor, Tensor] | None, prologue_act: ActivationSpec, backend: str,
) -> Decision:  # fmt: skip
    validation.check_branches(branches)
    x, given = branches[0], (w_reduce, b_reduce, w_select, b_select)
    validation.check_selective_kernel(branches, *given, prologue)
    weights = validation.unify_dtypes(x, given, _WEIGHTS)
    covered = activations.resolve(prologue_act, "prologue_act")

    def notes() -> Mapping[str, str]:
        memory_format = ops.memory_format_of(x)
        dense = all(u.is_contiguous(memory_format=memory_format) for u in branches)
        found = {} if dense else COPIES_OF_SLICES
        if prologue is None or covered is not None:
            return found
        notes = {name: [UNFUSED_PROLOGUE] for name in backends.names()}
        for name, note in found.items():
            notes[name].append(note)
        return {name: "; ".join(of_backend) for name, of_backend in notes.items()}

    uncovered = why_not_fused(x, (*branches[1:], *weights))
    return Decision(
        "selective_kernel", backend, x, uncovered, tensors=weights, fusible=False, notes=notes,
        as_given=weights is given,
    )  # fmt: skip


def _may_be_known(branches: Any, act: Any, backend: Any) -> bool:
    """Whether `checked` may know a call: nothing that may change is in its key."""
    if torch.compiler.is_compiling() or not (type(act) is str and type(backend) is str):
        return False
    return type(branches) in (list, tuple) and 0 < len(branches) <= validation.MAX_BRANCHES


def _network(
    m: int,
    x: Tensor,
    weights: Sequence[Tensor | None],
    norm: Callable[[Tensor], Tensor] | None,
    act: ActivationSpec,
) -> Callable[[Tensor], Tensor]:
    covered = activations.resolve(act, "act")
    w1, b1, w2, b2 = weights
    assert w1 is not None and w2 is not None
    if norm is None and covered is not None and covered[0].name in ("relu", "identity"):
        if not torch.compiler.is_compiling():
            return ops.Network(m, w1, b1, w2, b2, None, covered[0].name == "relu")
    act_function = activations.as_callable(act, "act")

    def network(pooled: Tensor) -> Tensor:
        with reference.no_autocast(x.device.type):
            h = _normalised(norm, pooled, w1, b1)
            h = act_function(h)
            return _linear(h, w2, b2).unflatten(1, (m, -1))

    return network


def _normalised(
    norm: Callable[[Tensor], Tensor] | None, pooled: Tensor, w: Tensor, b: Tensor | None
) -> Tensor:
    """The hidden values behind ``norm``.

    A batch norm by the batch's statistics takes away what the samples have in common. Without it
    to begin with, their small differences keep their digits.
    """
    if type(norm) is not nn.BatchNorm1d or norm.running_mean is not None or own_behaviour(norm):
        h = _linear(pooled, w, b)
        return h if norm is None else norm(h)
    return norm(_linear(pooled - pooled.detach().mean(0), w, b))


def _linear(s: Tensor, w: Tensor, b: Tensor | None) -> Tensor:
    return reference.linear(s, w, b)


def run_selective_kernel(
    backend: str,
    branches: Sequence[Tensor],
    network: Callable[[Tensor], Tensor],
    slices: int = 1,
    prologue: ops.Prologue | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns y and the logits by ``backend``, on arguments that were checked.

    Args:
        backend: Its name.
        branches: M maps (N, C, H, W) or, with ``slices``, one map (N, slices * C, H, W).
        network: ``network(pooled)``: the logits (N, M, C) for the mean (N, C), both in the
            accumulation type.
        slices: How many branches lie in one map.
        prologue: What is done to the branches first. Part of the passes, but not where gradients
            are recorded.
    """
    namespace = backends.get(backend).namespace
    if prologue is not None and not (
        namespace and ops.sk.takes_prologue(prologue, branches, slices)
    ):
        numbers, code, param = prologue.arguments(branches[0].dtype)
        act = ops.activation_of_code(code, param)
        branches = reference.after_prologue(branches, numbers, act)
        prologue = None
    if namespace is not None:
        return ops.sk.attend(namespace, branches, slices, network, prologue)
    x = branches[0]
    if slices > 1:
        branches = x.chunk(slices, 1)
    device = x.device.type
    with reference.no_autocast(device):
        pooled = reference.squeeze_branches(branches)
    z = network(pooled)
    with reference.no_autocast(device):
        y, _ = reference.select_branches(branches, z)
    return ops.in_format_of(x, y), z


register_explainer(selective_kernel, _decide)
