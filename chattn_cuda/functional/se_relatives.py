"""Relatives of Squeeze-and-Excitation as functions: one layer; a scale and a bias."""

from __future__ import annotations

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
)
from chattn_cuda.functional.se import constants, run_squeeze_excite, why_not_squeeze_excite

__all__ = [
    "effective_squeeze_excite",
    "run_effective_squeeze_excite",
    "squeeze_excite_scale_bias",
]

_SE_WEIGHTS = ("w1", "b1", "w2", "b2")
_IDENTITY: Resolved = (activations.ACTIVATIONS["identity"], 0.0)


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

    Example:
        >>> y = effective_squeeze_excite(torch.randn(2, 8, 4, 4), torch.randn(8, 8), torch.randn(8))
    """
    call = "se", backend, gate, add_maxpool
    key, repeated = checked.repeat(call, channel_dim, x, None, None, weight, bias)
    if repeated is not None:
        return repeated if return_gate else repeated[0]
    m = to_map(x, channel_dim)
    validation.check_effective_squeeze_excite(m, weight, bias)
    validation.check_bool(add_maxpool, "add_maxpool")
    given = weight, bias
    weight, bias = _unify(m, *given)
    name = backends.select(backend, x.device.type, x.dtype)
    resolved = activations.resolve(gate, "gate")
    formula = compiled.takes_formula(backend, x.device.type, (x, weight, bias))
    plain = formula or exported_plainly(backend)
    uncovered = why_not_squeeze_excite(m, (weight, bias), _IDENTITY, resolved, add_maxpool)
    if plain or uncovered is not None:
        function = activations.as_callable(gate, "gate")
        y, s = reference.squeeze_excite(
            m, None, None, weight, bias, gate=function, add_maxpool=add_maxpool
        )
        y = y.contiguous(memory_format=ops.memory_format_of(m))
    else:
        assert resolved is not None
        if weight is given[0] and bias is given[1]:
            checked.remember(key, name, *constants(_IDENTITY, resolved))
        y, s = run_effective_squeeze_excite(name, m, weight, bias, resolved)
    y = from_map(y, x, channel_dim)
    return (y, s) if return_gate else y


def run_effective_squeeze_excite(
    backend: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Resolved,
) -> tuple[Tensor, Tensor]:
    """Returns y and the gate by ``backend``, on arguments that were checked."""
    weights = (None, None, weight, bias)
    return run_squeeze_excite(backend, x, weights, _IDENTITY, gate)


def _unify(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    unified, bias = validation.unify_dtypes(x, (weight, bias), ("weight", "bias"))
    assert unified is not None
    return unified, bias


def _explain_effective(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    gate: ActivationSpec = "hard_sigmoid",
    add_maxpool: bool = False,
    channel_dim: int = 1,
    return_gate: bool = False,
    backend: str = "auto",
) -> Explanation:
    x = to_map(x, channel_dim)
    validation.check_effective_squeeze_excite(x, weight, bias)
    validation.check_bool(add_maxpool, "add_maxpool")
    resolved = activations.resolve(gate, "gate")
    uncovered = why_not_squeeze_excite(x, (weight, bias), _IDENTITY, resolved, add_maxpool)
    device = x.device.type
    note = compiled.note(backend, device, (x, weight, bias))
    return explain_call(
        "effective_squeeze_excite", backend, device, x.dtype, uncovered, "reference", compiled=note
    )


register_explainer(effective_squeeze_excite, _explain_effective)


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

    Example:
        >>> y = squeeze_excite_scale_bias(
        ...     torch.randn(2, 8, 4, 4), torch.randn(2, 8), None, torch.randn(16, 2), None
        ... )
    """
    m = to_map(x, channel_dim)
    validation.check_squeeze_excite(m, w1, b1, w2, b2, outputs=2)
    validation.check_bool(add_maxpool, "add_maxpool")
    unified = validation.unify_dtypes(m, (w1, b1, w2, b2), _SE_WEIGHTS)
    w1_, b1, w2_, b2 = unified
    assert w1_ is not None and w2_ is not None
    backends.select(backend, x.device.type, x.dtype)
    functions = activations.as_callable(act, "act"), activations.as_callable(gate, "gate")
    y, s = reference.squeeze_excite_scale_bias(m, w1_, b1, w2_, b2, *functions, add_maxpool)
    y = y.contiguous(memory_format=ops.memory_format_of(m))
    y = from_map(y, x, channel_dim)
    return (y, s) if return_gate else y


def _explain_scale_bias(
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
) -> Explanation:
    x = to_map(x, channel_dim)
    validation.check_squeeze_excite(x, w1, b1, w2, b2, outputs=2)
    return explain_call(
        "squeeze_excite_scale_bias",
        backend,
        x.device.type,
        x.dtype,
        "the kernels have no gate with a scale and a bias",
        "reference",
    )


register_explainer(squeeze_excite_scale_bias, _explain_scale_bias)
