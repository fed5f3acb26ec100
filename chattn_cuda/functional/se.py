"""Squeeze-and-Excitation as a function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

from torch import Tensor

from chattn_cuda import activations, reference, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.explanation import register_explainer
from chattn_cuda.functional import checked
from chattn_cuda.functional.common import MAXIMUM, Resolved, to_map, why_not_fused
from chattn_cuda.functional.decision import Decision

__all__ = ["constants", "decide_squeeze_excite", "squeeze_excite"]

_WEIGHTS = ("w1", "b1", "w2", "b2")


@overload
def squeeze_excite(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    act: ActivationSpec = ...,
    gate: ActivationSpec = ...,
    add_maxpool: bool = ...,
    channel_dim: int = ...,
    return_gate: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def squeeze_excite(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    act: ActivationSpec = ...,
    gate: ActivationSpec = ...,
    add_maxpool: bool = ...,
    channel_dim: int = ...,
    return_gate: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


def squeeze_excite(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    *,
    act: ActivationSpec = "relu",
    gate: ActivationSpec = "sigmoid",
    add_maxpool: bool = False,
    channel_dim: int = 1,
    return_gate: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Squeeze-and-Excitation: ``x * gate(w2 @ act(w1 @ mean_hw(x) + b1) + b2)``.

    Hu et al., "Squeeze-and-Excitation Networks", arXiv 1709.01507, equations 2 to 4; the same
    result as timm's ``SEModule``. Gradients flow to x, the weights and the biases (and from the
    gate, where it is returned); they can be differentiated again.

    Args:
        x: The map (N, C, H, W), or (N, C, L), or (N, C, D, H, W), which are views of one: float32,
            float16, bfloat16 or float64; any strides.
        w1: First layer, (rd, C) as a Linear's weight or (rd, C, 1, 1) as a 1x1 convolution's.
        b1: Its bias (rd,), or None.
        w2: Second layer, (C, rd) or (C, rd, 1, 1).
        b2: Its bias (C,), or None.
        act: Activation between the layers: a name ("relu", "silu", "hard_swish", ...), a module
            class or instance, a partial, or any function of a tensor.
        gate: The gate: "sigmoid", "hard_sigmoid", "tanh", "relu", "identity" or as above.
        add_maxpool: Squeeze with the mean of the mean and the maximum; by the formulas in PyTorch.
        channel_dim: 1, or -1 where x is (N, H, W, C), (N, L, C) or (N, D, H, W, C).
        return_gate: Also return the gate.
        backend: "auto" or one of "cuda", "triton", "cpu", "reference".

    The weights have x's type; under autocast they may have another. Activations that the kernels do
    not know and `add_maxpool` run the formulas in PyTorch; `chattn_cuda.explain` says which path a
    call takes. Forward-mode differentiation and tensor subclasses run the formulas too.

    Returns:
        y with x's shape, type and memory format (contiguous or channels_last). With ``return_gate``
        also the gate (N, C), float32 (float64 for a float64 x).

    Raises:
        TypeError: A tensor argument is not a dense floating-point tensor, or a specification is of
            the wrong type.
        ValueError: Wrong shape, device, or type mix; unknown activation or backend; a named backend
            that cannot run here. (What its kernels do not cover runs by the formulas on any
            backend; `chattn_cuda.explain` says so.)

    Complexity: at most 2 reads and 1 write of x's size forward, 3 reads and 1 write backward. Kept
    for the backward: x and at most N * (2 * C + rd) numbers.

    Examples:
        >>> x = torch.randn(2, 64, 8, 8)
        >>> w1, w2 = torch.randn(4, 64), torch.randn(64, 4)
        >>> y = squeeze_excite(x, w1, None, w2, None)
    """
    given = w1, b1, w2, b2
    key, repeated = checked.repeat(("se", backend, act, gate, add_maxpool), channel_dim, x, *given)
    if repeated is not None:
        return repeated if return_gate else repeated[0]
    decision = _decide(x, *given, act, gate, add_maxpool, channel_dim, backend)
    return decision.finish(x, channel_dim, return_gate, key)


def _decide(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, act: ActivationSpec,
    gate: ActivationSpec, add_maxpool: bool, channel_dim: int, backend: str,
) -> Decision:  # fmt: skip
    m, given = to_map(x, channel_dim), (w1, b1, w2, b2)
    validation.check_squeeze_excite(m, *given)
    name = "squeeze_excite"
    return decide_squeeze_excite(name, m, given, _WEIGHTS, act, gate, add_maxpool, backend)


def decide_squeeze_excite(
    name: str,
    x: Tensor,
    given: Sequence[Tensor | None],
    names: Sequence[str],
    act: ActivationSpec,
    gate: ActivationSpec,
    add_maxpool: bool,
    backend: str,
) -> Decision:
    """The decision for a gate of one or two layers, whose shapes were checked.

    Args:
        name: Of the function.
        x: The map (N, C, H, W).
        given: w1, b1, w2, b2. Without w1 the gate has one layer, and ``act`` is the identity.
        names: Of those, in messages.
        act: As `squeeze_excite`.
        gate: As `squeeze_excite`.
        add_maxpool: As `squeeze_excite`.
        backend: As `squeeze_excite`.
    """
    validation.check_bool(add_maxpool, "add_maxpool")
    weights = validation.unify_dtypes(x, given, names)
    resolved = activations.resolve(act, "act"), activations.resolve(gate, "gate")

    def formulas() -> tuple[Tensor, Tensor]:
        w1, b1, w2, b2 = weights
        assert w2 is not None
        functions = activations.as_callable(act, "act"), activations.as_callable(gate, "gate")
        return reference.squeeze_excite(x, w1, b1, w2, b2, *functions, add_maxpool)

    uncovered = _why_not_covered(*resolved, add_maxpool) or why_not_fused(x, weights)
    codes = () if None in resolved else constants(*resolved)  # type: ignore[arg-type]
    same = weights is given
    return Decision(name, backend, x, uncovered, "se", weights, codes, formulas, as_given=same)


def constants(act: Resolved, gate: Resolved) -> tuple[int, float, int]:
    """The operators' arguments behind the tensors."""
    return act[0].code, act[1], gate[0].code


def _why_not_covered(act: Resolved | None, gate: Resolved | None, add_maxpool: bool) -> str | None:
    if act is None:
        return "the kernels do not know this act"
    if gate is None or not gate[0].is_gate:
        return "the kernels do not know this gate"
    return MAXIMUM if add_maxpool else None


register_explainer(squeeze_excite, _decide)
