"""The one tolerance rule of the test suite.

A result passes where, against the exact value (float64), ``err <= 2 * err(eager) + floor``, in
max-abs and in relative L2, with err(eager) the error of plain PyTorch in the same dtype. The floor
is there because eager PyTorch can be exact by luck. It allows one rounding to the result's dtype
and 16 units in the last place of the accumulation type (a sum of some hundred terms in another
order), relative to the largest exact value: ``eps(dtype) / 2 + 16 * eps(accumulation type)``, 2e-6
for float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from chattn_cuda.reference import accumulation_dtype

FACTOR = 2.0


def floor(dtype: torch.dtype) -> float:
    return 0.5 * torch.finfo(dtype).eps + 16 * torch.finfo(accumulation_dtype(dtype)).eps


def errors(value: Tensor, exact: Tensor) -> tuple[float, float]:
    """(largest absolute error / largest exact value, relative L2 error) of the finite entries."""
    keep = exact.isfinite()
    exact, value = exact[keep].double(), value[keep].double()
    if exact.numel() == 0:
        return 0.0, 0.0
    difference = (value - exact).abs()
    tiny = torch.finfo(torch.float64).tiny
    return (
        float(difference.max() / exact.abs().max().clamp_min(tiny)),
        float(difference.norm() / exact.norm().clamp_min(tiny)),
    )


def assert_close(
    name: str,
    actual: Tensor,
    exact: Tensor,
    eager: Tensor,
    *,
    dtype: torch.dtype,
    memory_format: torch.memory_format | None = None,
    allow_zero: bool = False,
) -> None:
    """Fail unless ``actual`` is as good as ``eager`` PyTorch.

    Args:
        name: What it is, for the message.
        actual: The result under test.
        exact: The same from the reference in float64.
        eager: The same from plain PyTorch in the dtype of the test.
        dtype: The dtype that ``actual`` must have.
        memory_format: What ``actual`` must be dense in; None leaves it open.
        allow_zero: Accept an exact value of zeros. Otherwise such a case is refused: a result that
            was never written would pass it.
    """
    assert actual.dtype == dtype, f"{name}: dtype {actual.dtype}, expected {dtype}"
    assert actual.shape == exact.shape, (
        f"{name}: shape {tuple(actual.shape)}, expected {tuple(exact.shape)}"
    )
    if memory_format is not None:
        assert actual.is_contiguous(memory_format=memory_format), (
            f"{name}: strides {actual.stride()} are not {memory_format}"
        )
    if exact.numel() == 0:
        return
    actual, exact, eager = (t.detach().cpu() for t in (actual, exact, eager))
    assert allow_zero or exact.count_nonzero() > 0, f"{name}: the exact value is zero everywhere"
    for pattern in (torch.isnan, torch.isposinf, torch.isneginf):
        expected = pattern(exact.to(dtype))
        assert torch.equal(pattern(actual), expected), (
            f"{name}: {pattern.__name__} in {int(pattern(actual).sum())} places, "
            f"expected in {int(expected.sum())}"
        )
    limit = floor(dtype)
    for kind, error, baseline in zip(
        ("max-abs", "relative L2"), errors(actual, exact), errors(eager, exact), strict=True
    ):
        if baseline != baseline:  # eager itself is not finite where the exact value is
            baseline = 0.0
        bound = FACTOR * baseline + limit
        assert error <= bound, (
            f"{name}: {kind} error {error:.3e} > {bound:.3e} = 2 * {baseline:.3e} (eager) "
            f"+ {limit:.1e}"
        )
