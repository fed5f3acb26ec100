"""The one tolerance rule of the test suite.

A result passes where, against the exact value (float64), ``err <= 2 * err(eager) + floor``, in
max-abs and in relative L2, with err(eager) the error of plain PyTorch in the same dtype. The floor
is there because eager PyTorch can be exact by luck. It allows one rounding to the result's dtype
and 16 units in the last place of the accumulation type (a sum of some hundred terms in another
order), relative to the largest exact value: ``eps(dtype) / 2 + 16 * eps(accumulation type)``, 2e-6
for float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from chattn_cuda.reference import accumulation_dtype

FACTOR = 2.0


def floor(dtype: torch.dtype) -> float:
    return 0.5 * torch.finfo(dtype).eps + 16 * torch.finfo(accumulation_dtype(dtype)).eps


def errors(value: Tensor, exact: Tensor) -> tuple[float, float]:
    """(largest absolute error / largest exact value, relative L2 error) of the finite entries."""
    finite = exact.isfinite()
    if not finite.all():
        exact, value = exact[finite], value[finite]
    if exact.numel() == 0:
        return 0.0, 0.0
    exact, tiny = exact.double(), torch.finfo(torch.float64).tiny
    difference, norm = value.double() - exact, torch.linalg.vector_norm

    def relative(order: float) -> float:
        return float(norm(difference, order)) / max(float(norm(exact, order)), tiny)

    return relative(torch.inf), relative(2)


@dataclass(frozen=True)
class Share:
    """An error and what is allowed."""

    kind: str
    error: float
    eager: float
    floor: float

    @property
    def bound(self) -> float:
        return FACTOR * self.eager + self.floor

    @property
    def of_bound(self) -> float:
        return self.error / self.bound

    def __str__(self) -> str:
        return (
            f"{self.kind} error {self.error:.3e} > {self.bound:.3e} = {FACTOR:g} * "
            f"{self.eager:.3e} (eager) + {self.floor:.1e}"
        )


def shares(actual: Tensor, exact: Tensor, eager: Tensor, dtype: torch.dtype) -> list[Share]:
    """The errors of ``actual``, max-abs and relative L2, beside those of eager PyTorch."""
    actual, exact, eager = (t.detach().cpu() for t in (actual, exact, eager))
    pairs = zip(
        ("max-abs", "relative L2"), errors(actual, exact), errors(eager, exact), strict=True
    )
    return [
        # Eager itself may not be finite where the exact value is.
        Share(kind, error, baseline if baseline == baseline else 0.0, floor(dtype))
        for kind, error, baseline in pairs
    ]


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
    assert allow_zero or exact.any(), f"{name}: the exact value is zero everywhere"
    rounded = exact.to(dtype)
    finite = bool(actual.isfinite().all() and rounded.isfinite().all())
    for pattern in () if finite else (torch.isnan, torch.isposinf, torch.isneginf):
        expected = pattern(rounded)
        assert torch.equal(pattern(actual), expected), (
            f"{name}: {pattern.__name__} in {int(pattern(actual).sum())} places, "
            f"expected in {int(expected.sum())}"
        )
    for share in shares(actual, exact, eager, dtype):
        assert share.error <= share.bound, f"{name}: {share}"
