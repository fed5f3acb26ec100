"""Relatives of Squeeze-and-Excitation as functions: one layer; a scale and a bias."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from chattn_cuda import activations, reference, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.explanation import register_explainer
from chattn_cuda.functional import checked
from chattn_cuda.functional.common import to_map
from chattn_cuda.functional.decision import Decision
from chattn_cuda.functional.se import decide_squeeze_excite

__all__ = ["effective_squeeze_excite", "squeeze_excite_scale_bias"]


@overload
def effective_squeeze_excite(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    gate: ActivationSpec = ...,
    add_maxpool: bool = ...,
    channel_dim: int = ...,
    return_gate: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def effective_squeeze_excite(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = ...,
    *,
    gate: ActivationSpec = ...,
    add_maxpool: bool = ...,
    channel_dim: int = ...,
    return_gate: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


def effective_squeeze_excite(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gate: ActivationSpec = "hard_sigmoid",
    add_maxpool: bool = False,
    channel_dim: int = 1,
    return_gate: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Effective squeeze-and-excitation: ``x * gate(weight @ mean_hw(x) + bias)``, one full layer.

    Lee and Park, "CenterMask: Real-Time Anchor-Free Instance Segmentation", arXiv 1911.06667,
    equation 5; the same result as timm's ``EffectiveSEModule`` and, with gate="sigmoid" and no
    bias, as SE-Var3 of the ECA paper. Gradients flow to x, the weight and the bias (and from the
    gate, where it is returned); they can be differentiated again.

    Args:
        x: As in `squeeze_excite`.
        weight: (C, C) as a Linear's weight or (C, C, 1, 1) as a 1x1 convolution's.
        bias: (C,) or None.
        gate: As in `squeeze_excite`.
        add_maxpool: As in `squeeze_excite`.
        channel_dim: As in `squeeze_excite`.
        return_gate: Also return the gate.
        backend: "auto" or one of "cuda", "triton", "cpu", "reference".

    Returns:
        As `squeeze_excite`.

    Raises:
        TypeError: As `squeeze_excite`.
        ValueError: As `squeeze_excite`.

    Complexity: passes over the map as `squeeze_excite`, and N * C * C multiplications. Kept for the
    backward: x and at most 2 * N * C numbers.

    Examples:
        >>> y = effective_squeeze_excite(torch.randn(2, 8, 4, 4), torch.randn(8, 8), torch.randn(8))
    """
    call, given = ("se", backend, gate, add_maxpool), (None, None, weight, bias)
    key, repeated = checked.repeat(call, channel_dim, x, *given)
    if repeated is not None:
        return repeated if return_gate else repeated[0]
    decision = _decide_effective(x, weight, bias, gate, add_maxpool, channel_dim, backend)
    return decision.finish(x, channel_dim, return_gate, key)


def _decide_effective(
    x: Tensor, weight: Tensor, bias: Tensor | None, gate: ActivationSpec, add_maxpool: bool,
    channel_dim: int, backend: str,
) -> Decision:  # fmt: skip
    m = to_map(x, channel_dim)
    validation.check_effective_squeeze_excite(m, weight, bias)
    return decide_squeeze_excite(
        "effective_squeeze_excite", m, (None, None, weight, bias), ("", "", "weight", "bias"),
        "identity", gate, add_maxpool, backend,
    )  # fmt: skip


register_explainer(effective_squeeze_excite, _decide_effective)


@overload
def squeeze_excite_scale_bias(
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
def squeeze_excite_scale_bias(
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


def squeeze_excite_scale_bias(
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
    """Squeeze-and-Excitation whose second layer gives a scale and a bias for every channel.

    ``(z, b) = w2 @ act(w1 @ mean_hw(x) + b1) + b2`` and ``y = gate(z) * x + b``, as in Leela Chess
    Zero's networks. The kernels have no such gate: it runs the formulas in PyTorch on every
    backend, and `chattn_cuda.explain` says so.

    Args:
        x: As in `squeeze_excite`.
        w1: (rd, C) or (rd, C, 1, 1).
        b1: (rd,) or None.
        w2: (2C, rd) or (2C, rd, 1, 1): the rows of the scale, then those of the bias.
        b2: (2C,) or None.
        act: As in `squeeze_excite`.
        gate: Of the scale; as in `squeeze_excite`.
        add_maxpool: Squeeze with the mean of the mean and the maximum.
        channel_dim: As in `squeeze_excite`.
        return_gate: Also return the scale (N, C).
        backend: "auto" or one of "cuda", "triton", "cpu", "reference"; checked, then not needed.

    Returns:
        As `squeeze_excite`.

    Raises:
        TypeError: As `squeeze_excite`.
        ValueError: As `squeeze_excite`.

    Complexity: that of eager PyTorch, with the map in the accumulation type.

    Examples:
        >>> y = squeeze_excite_scale_bias(
        ...     torch.randn(2, 8, 4, 4), torch.randn(2, 8), None, torch.randn(16, 2), None
        ... )
    """
    decision = _decide_scale_bias(x, w1, b1, w2, b2, act, gate, add_maxpool, channel_dim, backend)
    return decision.finish(x, channel_dim, return_gate)


def _decide_scale_bias(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, act: ActivationSpec,
    gate: ActivationSpec, add_maxpool: bool, channel_dim: int, backend: str,
) -> Decision:  # fmt: skip
    m, given = to_map(x, channel_dim), (w1, b1, w2, b2)
    validation.check_squeeze_excite(m, *given, outputs=2)
    validation.check_bool(add_maxpool, "add_maxpool")
    weights = validation.unify_dtypes(m, given, ("w1", "b1", "w2", "b2"))

    def formulas() -> tuple[Tensor, Tensor]:
        w1_, b1_, w2_, b2_ = weights
        assert w1_ is not None and w2_ is not None
        functions = activations.as_callable(act, "act"), activations.as_callable(gate, "gate")
        return reference.squeeze_excite_scale_bias(m, w1_, b1_, w2_, b2_, *functions, add_maxpool)

    reason = "the kernels have no gate with a scale and a bias"
    name = "squeeze_excite_scale_bias"
    return Decision(name, backend, m, reason, tensors=weights, formulas=formulas)


register_explainer(squeeze_excite_scale_bias, _decide_scale_bias)
