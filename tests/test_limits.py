"""What the CUDA kernels cannot count, they refuse: by the arithmetic alone, without such a map."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cuda_host import build

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")

PROGRAM = """
#include <cstdio>
#include <cstdlib>

#include "engine/cuda/limits.h"

int main(int, char** of) {
  chattn::MapShape map;
  map.n = std::atoll(of[1]);
  map.c = std::atoll(of[2]);
  map.hw = std::atoll(of[3]);
  std::puts(chattn::cuda::check_counts(map, {{"weights", std::atoll(of[4])}}).text);
}
"""
LIMIT = 2**31 - 4096


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("limits") / "limits.cpp"
    source.write_text(PROGRAM)
    return build.build_program("limits", [source])


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ((1, 2048, 49, 128), ""),
        ((1, 1, LIMIT - 1, LIMIT - 1), ""),
        ((2**15, 2**16, 1, 0), f"planes; got {2**31} (N 32768, C 65536, HW 1)"),
        ((1, 1, LIMIT, 0), f"positions; got {LIMIT} (N 1, C 1, HW {LIMIT})"),
        ((1, 2**16, 1, 2**32), f"weights; got {2**32} (N 1, C 65536, HW 1)"),
    ],
)
def test_counts(program: Path, sizes: tuple[int, ...], problem: str) -> None:
    done = subprocess.run([program, *map(str, sizes)], capture_output=True, text=True, check=True)
    expected = f"the CUDA kernels take fewer than {LIMIT} {problem}" if problem else ""
    assert done.stdout.strip() == expected
