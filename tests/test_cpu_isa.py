"""Every instruction set that this processor has, not only the best one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chattn_cuda import _native
from tests import margins
from tests.cases import BLOCKS

ROOT = Path(__file__).resolve().parent.parent
ORDER = margins.OURS
# Of the slow sizes, the number of vectors is all that is new.
LARGE = {c.name for b in BLOCKS.values() for c in b.shapes if c.is_large}


def passes_with(isa: str, of_numerics: str) -> None:
    """Runs those tests in a process that may use no better instructions than ``isa``."""
    module = _native.module()
    if module is None:
        pytest.skip("the native module was not built")
    if ORDER.index(module.cpu_isa()) <= ORDER.index(isa):
        pytest.skip(f"{module.cpu_isa()} is the best that runs here, and is what all tests use")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "tests/test_numerics.py"]
    done = subprocess.run(
        [*command, "-k", of_numerics],
        cwd=ROOT,
        env={**os.environ, "CHATTN_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("isa", ORDER[:-1])
def test_lower_instruction_sets_on_16_bit_numbers(isa: str) -> None:
    """The other cases are those of `test_nothing_is_close_to_its_bound`."""
    passes_with(isa, "every_16_bit_number")


@pytest.mark.slow
@pytest.mark.parametrize("isa", ORDER[:-1])
def test_lower_instruction_sets_on_large_maps(isa: str) -> None:
    passes_with(isa, f"cpu and not cuda and ({' or '.join(sorted(LARGE))})")


@pytest.mark.slow
@pytest.mark.parametrize("torchs", margins.TORCHS)
@pytest.mark.parametrize("ours", margins.OURS)
def test_nothing_is_close_to_its_bound(ours: str, torchs: str) -> None:
    """Bounds follow torch's kernels for this processor: on another, a close result misses them."""
    if _native.module() is None:
        pytest.skip("the native module was not built")
    if (ours, torchs) not in margins.combinations():
        pytest.skip("this processor lacks such instructions")
    assert margins.measured(ours, torchs, keyword="", seeds=1, share=0.8) == {}
