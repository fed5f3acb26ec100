"""Efficient channel attention as a function."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from chattn_cuda import activations, reference, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.explanation import register_explainer
from chattn_cuda.functional import checked
from chattn_cuda.functional.common import to_map, why_not_fused
from chattn_cuda.functional.decision import Decision

__all__ = ["efficient_channel_attention"]


@overload
def efficient_channel_attention(
    x: Tensor,
    weight: Tensor,
    *,
    gate: ActivationSpec = ...,
    padding_mode: str = ...,
    channel_dim: int = ...,
    return_gate: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def efficient_channel_attention(
    x: Tensor,
    weight: Tensor,
    *,
    gate: ActivationSpec = ...,
    padding_mode: str = ...,
    channel_dim: int = ...,
    return_gate: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


def efficient_channel_attention(
    x: Tensor,
    weight: Tensor,
    *,
    gate: ActivationSpec = "sigmoid",
    padding_mode: str = "zeros",
    channel_dim: int = 1,
    return_gate: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Efficient channel attention: ``x * gate(conv1d over channels of mean_hw(x))``.

    Wang et al., "ECA-Net: Efficient Channel Attention for Deep Convolutional Neural Networks",
    arXiv 1910.03151; the same result as timm's ``EcaModule`` and, with circular padding,
    ``CecaModule``. Gradients flow to x and the weight (and from the gate, where it is returned);
    they can be differentiated again.

    Args:
        x: The map (N, C, H, W), or (N, C, L), or (N, C, D, H, W), which are views of one: float32,
            float16, bfloat16 or float64; any strides.
        weight: (1, 1, k) as a Conv1d's with k odd, or (C, 1, k): weights of its own for every
            channel (the paper's ECA-NS). It has x's type; under autocast it may have another.
        gate: The gate: "sigmoid", "hard_sigmoid", "tanh", "relu", "identity", or a module class or
            instance, a partial, or any function of a tensor. What the kernels do not know runs the
            formulas in PyTorch; `chattn_cuda.explain` says which path a call takes.
        padding_mode: "zeros" or "circular": what lies beyond the first and the last channel.
        channel_dim: 1, or -1 where x is (N, H, W, C), (N, L, C) or (N, D, H, W, C).
        return_gate: Also return the gate.
        backend: "auto" or one of "cuda", "triton", "cpu", "reference".

    Returns:
        y with x's shape, type and memory format (contiguous or channels_last). With ``return_gate``
        also the gate (N, C), float32 (float64 for a float64 x).

    Raises:
        TypeError: A tensor argument is not a dense floating-point tensor, or a specification is of
            the wrong type.
        ValueError: Wrong shape, device, or type mix; an even k, or one beyond 2 * C + 1 with
            circular padding; unknown activation, padding mode or backend; a named backend that
            cannot run here. (What its kernels do not
            cover runs by the formulas on any backend; `chattn_cuda.explain` says so.)

    Complexity: at most 2 reads and 1 write of x's size forward, 3 reads and 1 write backward; one
    read forward where the map, or the channels around a gate, stay on chip. Kept for the backward:
    x and 2 * N * C numbers.

    Examples:
        >>> y = efficient_channel_attention(torch.randn(2, 64, 8, 8), torch.randn(1, 1, 3))
    """
    call = "eca", backend, gate, padding_mode
    key, repeated = checked.repeat(call, channel_dim, x, weight)
    if repeated is not None:
        return repeated if return_gate else repeated[0]
    decision = _decide(x, weight, gate, padding_mode, channel_dim, backend)
    return decision.finish(x, channel_dim, return_gate, key)


def _decide(
    x: Tensor, weight: Tensor, gate: ActivationSpec, padding_mode: str, channel_dim: int,
    backend: str,
) -> Decision:  # fmt: skip
    m, circular = to_map(x, channel_dim), padding_mode == "circular"
    validation.check_efficient_channel_attention(m, weight, padding_mode)
    given = (weight,)
    weights = validation.unify_dtypes(m, given, ("weight",))
    resolved, uncovered = activations.resolve(gate, "gate"), why_not_fused(m, weights)

    def formulas() -> tuple[Tensor, Tensor]:
        (w,) = weights
        assert w is not None
        function = activations.as_callable(gate, "gate")
        return reference.efficient_channel_attention(m, w, function, circular)

    if resolved is None or not resolved[0].is_gate:
        uncovered = "the kernels do not know this gate"
    codes = () if resolved is None else (resolved[0].code, circular)
    name = "efficient_channel_attention"
    same = weights is given
    return Decision(name, backend, m, uncovered, "eca", weights, codes, formulas, as_given=same)


register_explainer(efficient_channel_attention, _decide)
