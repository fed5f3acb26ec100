"""The comparator must reject what it exists to reject."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.compare import assert_close, floor


@pytest.fixture
def exact() -> Tensor:
    return torch.randn(2, 3, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def noisy(exact: Tensor, size: float) -> Tensor:
    noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(1), dtype=exact.dtype)
    return (exact + size * noise).float()


def check(actual: Tensor, exact: Tensor, eager: Tensor, **options: object) -> None:
    assert_close("t", actual, exact, eager, dtype=torch.float32, **options)


def test_accepts_eagers_own_error_and_twice_of_it(exact: Tensor) -> None:
    check(noisy(exact, 1e-4), exact, noisy(exact, 1e-4))
    check(noisy(exact, 1.9e-4), exact, noisy(exact, 1e-4))


def test_rejects_three_times_eagers_error(exact: Tensor) -> None:
    with pytest.raises(AssertionError, match="error"):
        check(noisy(exact, 3e-4), exact, noisy(exact, 1e-4))


def test_rejects_an_error_in_one_element_only(exact: Tensor) -> None:
    actual = exact.float()
    actual[0, 0, 0, 0] += 1e-4
    with pytest.raises(AssertionError, match="max-abs"):
        check(actual, exact, exact.float())


def test_rejects_a_small_error_everywhere() -> None:
    exact = torch.full((1000,), 1e-3, dtype=torch.float64)
    exact[0] = 1.0
    actual = exact.float() + 4e-7
    with pytest.raises(AssertionError, match="relative L2"):
        check(actual, exact, exact.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_floor_is_one_rounding_and_a_little(dtype: torch.dtype, exact: Tensor) -> None:
    rounded = exact.to(dtype)
    assert_close("t", rounded, exact, rounded, dtype=dtype)
    assert floor(dtype) < 17 * torch.finfo(dtype).eps


def test_rejects_a_gradient_that_was_never_written(exact: Tensor) -> None:
    with pytest.raises(AssertionError, match="max-abs"):
        check(torch.zeros_like(exact).float(), exact, exact.float())


def test_refuses_an_exact_gradient_of_zeros(exact: Tensor) -> None:
    zero = torch.zeros_like(exact)
    with pytest.raises(AssertionError, match="zero everywhere"):
        check(zero.float(), zero, zero.float())
    check(zero.float(), zero, zero.float(), allow_zero=True)


def test_rejects_a_transposed_layout(exact: Tensor) -> None:
    right = exact.float()
    wrong = right.contiguous(memory_format=torch.channels_last)
    check(right, exact, right, memory_format=torch.contiguous_format)
    with pytest.raises(AssertionError, match="strides"):
        check(wrong, exact, right, memory_format=torch.contiguous_format)
    with pytest.raises(AssertionError, match="strides"):
        check(right, exact, right, memory_format=torch.channels_last)


def test_rejects_transposed_values(exact: Tensor) -> None:
    square = exact[:, :, :5, :5].contiguous()
    with pytest.raises(AssertionError, match="error"):
        check(square.float().transpose(2, 3), square, square.float())


def test_rejects_another_dtype_or_shape(exact: Tensor) -> None:
    with pytest.raises(AssertionError, match="dtype"):
        check(exact, exact, exact.float())
    with pytest.raises(AssertionError, match="shape"):
        check(exact.float()[:1], exact, exact.float())


def test_compares_where_values_are_not_finite(exact: Tensor) -> None:
    exact[0, 0, 0, 0] = torch.nan
    exact[0, 0, 0, 1] = torch.inf
    good = exact.float()
    check(good, exact, good)
    for wrong in (0.0, torch.inf, -torch.inf):
        bad = good.clone()
        bad[0, 0, 0, 0] = wrong
        with pytest.raises(AssertionError, match="isnan"):
            check(bad, exact, good)
    bad = good.clone()
    bad[1, 1, 1, 1] = torch.nan
    with pytest.raises(AssertionError, match="isnan"):
        check(bad, exact, good)
    bad = good.clone()
    bad[0, 0, 0, 1] = -torch.inf
    with pytest.raises(AssertionError, match="inf"):
        check(bad, exact, good)


def test_an_eager_result_that_is_not_finite_excuses_nothing(exact: Tensor) -> None:
    with pytest.raises(AssertionError, match="error"):
        check(noisy(exact, 1e-3), exact, torch.full_like(exact, torch.nan).float())
