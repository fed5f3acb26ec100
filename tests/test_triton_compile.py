"""The Triton kernels compile for the architectures of data-centre GPUs, and to good code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.cases import BLOCKS

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[1]
Record = dict[str, Any]
TRITON = {name: block.triton for name, block in BLOCKS.items() if block.triton is not None}
READS_ONLY_MAPS = ("fold_kernel",)  # shared by the blocks
WRITES_MAP = {k for kernels in TRITON.values() for k in kernels.writes_map}
SMALL = {k for kernels in TRITON.values() for k in kernels.small}
VECTORS = {"fp32": "v4.b32", "bf16": "v4.b32", "fp16": "v4.b32", "fp64": "v2.b64"}
PROCESSES = 2


def compile_part(arch: int, which: str, part: int) -> list[Record]:
    # A process of its own: under TRITON_INTERPRET, kernels are not compilable objects.
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.triton_aot", str(arch), which, str(part)]
    done = subprocess.run(
        [*command, str(PROCESSES)], env=env, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, f"sm_{arch}: {done.stderr[-4000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


def require_no_spills(records: list[Record]) -> None:
    for record in records:
        # float64 (there for gradcheck) saves registers around the calls of its division routine
        allowed = 8 if record["case"]["dtype"] == "fp64" else 0
        assert record["spills"] <= allowed, record
        # 168 registers leave room for three programs of 128 threads on a multiprocessor
        assert record["registers"] <= 168, record


def require_no_atomics_and_no_reduced_precision(records: list[Record]) -> None:
    assert not [r for r in records if r["forbidden"]]


def require_128_bit_accesses_to_maps(records: list[Record]) -> None:
    checked = set()
    for record in records:
        case, kernel = record["case"], record["kernel"]
        aligned = case["channels_last"] or case["shape"][2] == 56
        if not aligned or case["shape"][1] < 64:
            continue
        vector = VECTORS[case["dtype"]]
        if kernel in READS_ONLY_MAPS:
            others = set(record["loads"]) - {vector}  # a prologue has numbers of its own
            assert vector in record["loads"], record
            numbers = TRITON[case["block"]].folds_numbers or case["options"].get("prologue")
            assert not others or numbers, record
        if kernel in TRITON[case["block"]].writes_map:
            assert vector in record["loads"] and vector in record["stores"], record
        checked.add((kernel, case["dtype"], case["channels_last"]))
    for kernel in (*READS_ONLY_MAPS, *WRITES_MAP):
        for dtype in ("fp32", "bf16"):
            assert {(kernel, dtype, False), (kernel, dtype, True)} <= checked, kernel


# One test per set of kernels: tests of one file may run in several processes, and compiling is what
# takes the time.
@pytest.mark.parametrize(
    ("arch", "which"),
    [
        pytest.param(90, "few"),
        *(pytest.param(a, "all", marks=pytest.mark.slow) for a in (80, 90, 100)),
    ],
)
def test_kernels_compile_to_good_code(arch: int, which: str) -> None:
    with ThreadPoolExecutor(PROCESSES) as pool:
        parts = pool.map(compile_part, [arch] * PROCESSES, [which] * PROCESSES, range(PROCESSES))
        records = [record for part in parts for record in part]
    assert {r["kernel"] for r in records} == WRITES_MAP | SMALL | set(READS_ONLY_MAPS)
    require_no_spills(records)
    require_no_atomics_and_no_reduced_precision(records)
    require_128_bit_accesses_to_maps(records)
