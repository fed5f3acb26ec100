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

pytest.importorskip("triton", reason="triton is not installed")

ROOT = Path(__file__).resolve().parents[1]
ARCHITECTURES = (80, 90, 100)
KERNELS = {
    "squeeze_kernel",
    "mlp_hidden_kernel",
    "mlp_rescale_kernel",
    "reduce_kernel",
    "mlp_dhidden_kernel",
    "mlp_dweight_kernel",
    "mlp_spread_kernel",
}
WRITES_MAP = ("mlp_rescale_kernel", "mlp_spread_kernel")
READS_ONLY_MAPS = ("squeeze_kernel", "reduce_kernel")


def compile_all(arch: int) -> list[dict[str, Any]]:
    # A process of its own: under TRITON_INTERPRET, kernels are not compilable objects.
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    env["PYTHONPATH"] = os.pathsep.join([str(ROOT), env.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tests.triton_aot", str(arch)]
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, f"sm_{arch}: {done.stderr[-4000:]}"
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def compiled() -> dict[int, list[dict[str, Any]]]:
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(ARCHITECTURES, pool.map(compile_all, ARCHITECTURES), strict=True))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_without_spills(
    compiled: dict[int, list[dict[str, Any]]], arch: int
) -> None:
    records = compiled[arch]
    assert {r["kernel"] for r in records} == KERNELS
    for record in records:
        # float64 (there for gradcheck) saves registers around the calls of its division routine
        allowed = 8 if record["case"]["dtype"] == "fp64" else 0
        assert record["spills"] <= allowed, record
    # 168 registers leave room for three programs of 128 threads on a multiprocessor
    assert max(r["registers"] for r in records) <= 168


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_atomics_and_no_reduced_precision(
    compiled: dict[int, list[dict[str, Any]]], arch: int
) -> None:
    assert not [r for r in compiled[arch] if r["forbidden"]]


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_streaming_passes_use_128_bit_accesses(
    compiled: dict[int, list[dict[str, Any]]], arch: int
) -> None:
    vectors = {"fp32": "v4.b32", "bf16": "v4.b32", "fp16": "v4.b32", "fp64": "v2.b64"}
    checked = set()
    for record in compiled[arch]:
        case = record["case"]
        aligned = case["channels_last"] or case["shape"][2] == 56
        if not aligned or case["shape"][1] < 64:
            continue
        vector, kernel = vectors[case["dtype"]], record["kernel"]
        if kernel in READS_ONLY_MAPS and not case["add_maxpool"]:
            assert set(record["loads"]) == {vector}, record
        if kernel in WRITES_MAP:
            assert vector in record["loads"] and vector in record["stores"], record
        if kernel in READS_ONLY_MAPS or kernel in WRITES_MAP:
            checked.add((kernel, case["dtype"], case["channels_last"]))
    for kernel in (*READS_ONLY_MAPS, *WRITES_MAP):
        for dtype in ("fp32", "bf16"):
            assert {(kernel, dtype, False), (kernel, dtype, True)} <= checked
