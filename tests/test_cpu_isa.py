"""Every instruction set that this processor has, not only the best one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chattn_cuda import _native

ROOT = Path(__file__).resolve().parent.parent
ORDER = ("baseline", "avx2", "avx512")


@pytest.mark.parametrize("isa", ORDER[:-1])
def test_lower_instruction_sets(isa: str) -> None:
    module = _native.module()
    if module is None:
        pytest.skip("the native module was not built")
    if ORDER.index(module.cpu_isa()) <= ORDER.index(isa):
        pytest.skip(f"{module.cpu_isa()} is the best that runs here, and is what all tests use")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "tests/test_numerics.py",
            "-k",
            "cpu and not cuda",
        ],
        cwd=ROOT,
        env={**os.environ, "CHATTN_CPU_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
