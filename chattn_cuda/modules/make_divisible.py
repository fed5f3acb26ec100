"""The rounding of channel counts that peers share."""

from __future__ import annotations

__all__ = ["make_divisible"]


def make_divisible(value: float, divisor: int, round_limit: float = 0.0) -> int:
    """``value`` rounded to the nearest multiple of ``divisor``, at least ``divisor``.

    A result below ``round_limit * value`` goes up to the next multiple.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * value else rounded
