"""Global response normalisation as a function."""

from __future__ import annotations

from typing import Literal, overload

from torch import Tensor

from chattn_cuda import ops, validation
from chattn_cuda.explanation import register_explainer
from chattn_cuda.functional import checked
from chattn_cuda.functional.common import to_map, why_not_fused
from chattn_cuda.functional.decision import Decision

__all__ = ["check_eps", "check_global_response_norm", "global_response_norm"]


def check_eps(eps: object) -> None:
    """Raise unless ``eps`` is a number.

    Raises:
        TypeError: It is none.
    """
    if not isinstance(eps, (int, float)) or isinstance(eps, bool):
        raise TypeError(f"eps must be a number, got {type(eps).__name__}")


def check_global_response_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6) -> None:
    """Raise unless weight and bias fit the map ``x``, and ``eps`` is a number.

    Raises:
        TypeError: A weight is not a dense floating-point tensor, or ``eps`` not a number.
        ValueError: One has the wrong shape or is on another device.
    """
    check_eps(eps)
    for w, name in ((weight, "weight"), (bias, "bias")):
        validation.check_weight(x, w, name)
        if tuple(w.shape) != (x.shape[1],):
            raise ValueError(f"{name} must have shape ({x.shape[1]},), got {tuple(w.shape)}")


@overload
def global_response_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = ...,
    channel_dim: int = ...,
    return_gate: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...


@overload
def global_response_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = ...,
    channel_dim: int = ...,
    return_gate: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...


def global_response_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    eps: float = 1e-6,
    channel_dim: int = 1,
    return_gate: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Global response normalisation: ``x + weight * x * s + bias``, s the norm over its mean.

    Woo et al., "ConvNeXt V2", arXiv 2301.00808, equations 1 to 3: ``g[n, c]`` is the Euclidean norm
    of a plane and ``s = g / (mean_c g + eps)``; the same result as timm's ``GlobalResponseNorm``.

    Args:
        x: The map, as in `efficient_channel_attention`.
        weight: (C,).
        bias: (C,).
        eps: Added to the mean norm.
        channel_dim: 1, or -1 where x is (N, H, W, C), (N, L, C) or (N, D, H, W, C).
        return_gate: Also return s, (N, C).
        backend: "auto" or one of "cuda", "triton", "cpu", "reference".

    Returns:
        As `efficient_channel_attention`.

    Raises:
        TypeError: As `efficient_channel_attention`.
        ValueError: As `efficient_channel_attention`.

    Examples:
        >>> y = global_response_norm(torch.randn(2, 8, 4, 4), torch.randn(8), torch.randn(8))
    """
    key, repeated = checked.repeat(("grn", backend, eps), channel_dim, x, weight, bias)
    if repeated is not None:
        return repeated if return_gate else repeated[0]
    decision = _decide(x, weight, bias, eps, channel_dim, backend)
    return decision.finish(x, channel_dim, return_gate, key)


def _decide(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float, channel_dim: int, backend: str
) -> Decision:
    m, given = to_map(x, channel_dim), (weight, bias)
    check_global_response_norm(m, *given, eps)
    weights = validation.unify_dtypes(m, given, ("weight", "bias"))

    def formulas() -> tuple[Tensor, Tensor]:
        return ops.BLOCKS["grn"].formulas(m, *weights, eps)

    return Decision(
        "global_response_norm", backend, m, why_not_fused(m, weights), "grn", weights,
        (float(eps),), formulas, as_given=weights is given,
    )  # fmt: skip


register_explainer(global_response_norm, _decide)
