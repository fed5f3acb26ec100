"""The launch plans of the Triton backend, without Triton."""

from __future__ import annotations

import random

import pytest

from chattn_cuda.triton import plan


def _shapes() -> list[tuple[int, int, int]]:
    source = random.Random(0)
    few = [(1, 1, 1), (8, 256, 3136), (256, 2048, 49), (1, 64, 90000), (1, 2, 1_600_000_000)]
    return few + [
        (source.randint(1, 300), source.randint(1, 3000), source.randint(1, 20000))
        for _ in range(200)
    ]


def _is_power_of_two(v: int) -> bool:
    return v > 0 and v & (v - 1) == 0


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize("tiles", [1, 2, 4])
@pytest.mark.parametrize("hidden", [0, 1, 19, 768])
def test_pass_plans(channels_last: bool, itemsize: int, tiles: int, hidden: int) -> None:
    for n, c, length in _shapes():
        p = plan.plan_pass(n, c, length, channels_last, itemsize, tiles, hidden=hidden)
        assert all(map(_is_power_of_two, (p.tile_n, p.tile_c, p.tile_l, p.tile_k, p.align)))
        # everything is covered once: no split is empty, the last step reaches the end
        assert (p.splits - 1) * p.steps * p.tile_l < length <= p.splits * p.steps * p.tile_l
        assert p.splits <= 32
        assert p.c_tiles * p.tile_c >= c > (p.c_tiles - 1) * p.tile_c
        assert p.programs == -(-n // p.tile_n) * p.c_tiles * p.splits < 2**31
        inner, mid = (c, length) if channels_last else (length, c)
        assert (p.units * p.align, p.mid) == (inner, mid)
        # registers
        wide = 2 if itemsize == 8 else 1
        assert p.tile_n * p.tile_c * p.tile_l * tiles * wide <= max(4096, 256 * tiles * wide)
        if hidden:
            assert p.tile_n * p.tile_c * p.tile_k * wide <= 2048


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
def test_tiles_of_whole_bytes_of_bits(channels_last: bool, itemsize: int) -> None:
    """Others are as without this wish."""
    for n, c, length in _shapes():
        plain = plan.plan_pass(n, c, length, channels_last, itemsize, 4)
        p = plan.plan_pass(n, c, length, channels_last, itemsize, 4, least=8)
        assert (p.tile_c if channels_last else p.tile_l) >= 8
        assert p == plain or (c if channels_last else length) < 8


@pytest.mark.parametrize("itemsize", [4, 8])
def test_products_cover_their_results(itemsize: int) -> None:
    for n in (1, 3, 8, 256):
        for cols, depth in ((1, 1), (19, 228), (128, 2048), (768, 3840)):
            for p in (
                plan.plan_mlp(n, cols, depth, itemsize),
                plan.plan_mlp(n, cols, depth, itemsize, min_cols=8),
            ):
                assert p.programs == -(-n // p.tile_n) * -(-cols // p.tile_r)
                assert p.tile_n * p.tile_r * p.tile_k * itemsize <= 2048 * 4
            p = plan.plan_outer(cols, depth, n, itemsize)
            assert p.programs == -(-cols // p.tile_r) * -(-depth // p.tile_k)


def test_products_wait_for_memory_a_few_times_and_share_what_they_read() -> None:
    for n in (1, 8, 128):
        for c, rd in ((256, 16), (512, 32), (1024, 64), (2048, 128)):
            for least in (1, 8):
                p = plan.plan_mlp(n, rd, c, 4, min_cols=least)
                assert -(-c // p.tile_k) <= 16
                read = p.programs * (p.tile_n + p.tile_r) * c * 4  # from the second-level cache
                assert read <= 90e6


def test_a_gate_with_wide_weights_shares_them_between_samples() -> None:
    # rd = 128 weights per channel against 49 elements of the map
    for channels_last in (False, True):
        p = plan.plan_pass(256, 2048, 49, channels_last, 4, hidden=128)
        assert p.tile_n >= 8


def test_large_maps_fill_a_gpu() -> None:
    for channels_last in (False, True):
        for n, c, length in ((8, 256, 3136), (8, 512, 784), (8, 1024, 196), (32, 64, 12544)):
            p = plan.plan_pass(n, c, length, channels_last, 4)
            assert p.programs >= 512


def test_long_rows_are_split_before_tiles_shrink() -> None:
    """Whole tiles are four 128-bit loads per thread, all in flight; splits give the programs."""
    for n, c, length in ((128, 256, 3136), (128, 512, 784), (32, 64, 12544)):
        p = plan.plan_pass(n, c, length, True, 2, max_splits=plan.UNLIMITED)
        assert p.tile_n * p.tile_c * p.tile_l == 4096 == 128 * 4 * 8
        assert p.programs >= 0.75 * plan.FILL
