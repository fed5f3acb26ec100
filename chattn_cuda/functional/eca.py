"""Efficient channel attention as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

from torch import Tensor

from chattn_cuda import activations, backends, compiled, ops, reference, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.explanation import Explanation, explain_call, register_explainer
from chattn_cuda.functional import checked
from chattn_cuda.functional.common import (
    Resolved,
    exported_plainly,
    from_map,
    to_map,
    why_not_fused,
)

__all__ = ["efficient_channel_attention", "run_efficient_channel_attention"]


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

    Example:
        >>> y = efficient_channel_attention(torch.randn(2, 64, 8, 8), torch.randn(1, 1, 3))
    """
    call = "eca", backend, gate, padding_mode
    key, repeated = checked.repeat(call, channel_dim, x, weight)
    if repeated is not None:
        return repeated if return_gate else repeated[0]
    m = to_map(x, channel_dim)
    validation.check_efficient_channel_attention(m, weight, padding_mode)
    (unified,) = validation.unify_dtypes(m, (weight,), ("weight",))
    assert unified is not None
    name = backends.select(backend, x.device.type, x.dtype)
    resolved = activations.resolve(gate, "gate")
    circular = padding_mode == "circular"
    formula = compiled.takes_formula(backend, x.device.type, (x, weight))
    plain = formula or exported_plainly(backend)
    if plain or _why_not_fused(m, unified, resolved) is not None:
        y, s = _formulas(m, unified, activations.as_callable(gate, "gate"), circular)
    else:
        assert resolved is not None
        if unified is weight:
            checked.remember(key, name, resolved[0].code, circular)
        y, s = run_efficient_channel_attention(name, m, unified, resolved, circular)
    y = from_map(y, x, channel_dim)
    return (y, s) if return_gate else y


def run_efficient_channel_attention(
    backend: str, x: Tensor, weight: Tensor, gate: Resolved, circular: bool
) -> tuple[Tensor, Tensor]:
    """Returns y and the gate by ``backend``, on arguments that were checked."""
    namespace = backends.get(backend).namespace
    if namespace is None:
        return _formulas(x, weight, gate[0].with_param(0.0), circular)
    return ops.apply("eca", namespace, x, weight.contiguous(), gate[0].code, circular)


def _formulas(
    x: Tensor, weight: Tensor, gate: Callable[[Tensor], Tensor], circular: bool
) -> tuple[Tensor, Tensor]:
    y, s = reference.efficient_channel_attention(x, weight, gate, circular)
    return y.contiguous(memory_format=ops.memory_format_of(x)), s


def _why_not_fused(x: Tensor, weight: Tensor, gate: Resolved | None) -> str | None:
    if gate is None or not gate[0].is_gate:
        return "the kernels do not know this gate"
    return why_not_fused(x, (weight,))


def _explain(
    x: Tensor,
    weight: Tensor,
    *,
    gate: ActivationSpec = "sigmoid",
    padding_mode: str = "zeros",
    channel_dim: int = 1,
    return_gate: bool = False,
    backend: str = "auto",
) -> Explanation:
    x = to_map(x, channel_dim)
    validation.check_efficient_channel_attention(x, weight, padding_mode)
    uncovered = _why_not_fused(x, weight, activations.resolve(gate, "gate"))
    device = x.device.type
    note = compiled.note(backend, device, (x, weight))
    return explain_call(
        "efficient_channel_attention", backend, device, x.dtype, uncovered, "reference",
        compiled=note,
    )  # fmt: skip


register_explainer(efficient_channel_attention, _explain)
