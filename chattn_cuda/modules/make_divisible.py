"""The rounding of channel counts that peers share."""

from __future__ import annotations

import math
import warnings

from chattn_cuda import validation

__all__ = ["check_ratio", "make_divisible", "reduced_channels"]


def make_divisible(value: float, divisor: int, round_limit: float = 0.0) -> int:
    """``value`` rounded to the nearest multiple of ``divisor``, at least ``divisor``.

    A result below ``round_limit * value`` goes up to the next multiple.
    """
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * value else rounded


def reduced_channels(
    channels: int,
    rd_ratio: float,
    rd_channels: int | None,
    rd_divisor: int,
    round_limit: float = 0.0,
) -> int:
    """rd: ``rd_channels``, or ``channels * rd_ratio`` rounded to a multiple of ``rd_divisor``.

    Raises:
        TypeError: An argument is not a number of its kind.
        ValueError: An argument is not positive, or ``rd_ratio`` is not finite.
    """
    validation.check_positive(channels, "channels")
    validation.check_positive(rd_divisor, "rd_divisor")
    if rd_channels is not None:
        validation.check_positive(rd_channels, "rd_channels")
        return rd_channels
    if not isinstance(rd_ratio, (int, float)) or isinstance(rd_ratio, bool):
        raise TypeError(f"rd_ratio must be a number, got {type(rd_ratio).__name__}")
    if not (rd_ratio > 0 and math.isfinite(rd_ratio)):
        raise ValueError(f"rd_ratio must be positive and finite, got {rd_ratio}")
    rd = make_divisible(channels * rd_ratio, rd_divisor, round_limit)
    check_ratio(rd_ratio, rd, channels)
    return rd


def check_ratio(rd_ratio: float, rd_channels: int, channels: int) -> None:
    """Warn where a ratio looks like a divisor, as other libraries take one."""
    if rd_ratio > 1:
        warnings.warn(
            f"rd_ratio={rd_ratio} makes {rd_channels} hidden channels of {channels}: it is a "
            f"factor, such as {1 / 16}, not a divisor; rd_channels={rd_channels} says that so many "
            "are meant",
            stacklevel=4,
        )
