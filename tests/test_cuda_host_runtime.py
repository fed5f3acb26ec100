"""The runtime that executes CUDA kernels on the CPU: right results, and errors that explain."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cuda_host import build
from tests.cuda_host import kernel_zoo as zoo
from tests.cuda_host.control import ORDERS, BufferTraffic
from tests.cuda_host.kernel_zoo import ERROR, RIGHT, Fault, Zoo

pytestmark = pytest.mark.skipif(build.compiler() is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def loaded() -> Zoo:
    return Zoo()


@pytest.fixture
def host(loaded: Zoo) -> Iterator[Zoo]:
    loaded.reset()
    yield loaded
    loaded.reset_options()


def name_of(value: object) -> str | None:
    return value.kernel if isinstance(value, Fault) else None


# ---- correct kernels ----------------------------------------------------------------------------
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("kernel", zoo.correct_kernels())
def test_correct_kernel(host: Zoo, kernel: str, order: str) -> None:
    for seed in range(1 if order in ("depth", "reverse") else 4):
        for preempt in (0, 0.05):
            with host.options(order=order, seed=seed, preempt=preempt, races=True):
                assert host.run(kernel) == (RIGHT, "")
        with host.options(order=order, seed=seed, counters=True):
            assert host.run(kernel) == (RIGHT, "")


# ---- broken kernels -----------------------------------------------------------------------------
@pytest.mark.parametrize("fault", zoo.faults("FAULT"), ids=name_of)
def test_fault_is_reported(host: Zoo, fault: Fault) -> None:
    outcome, text = host.run(fault.kernel)
    assert outcome == ERROR
    # kernel NAME, FILE:LINE, block (x,y,z), thread (x,y,z): what
    place = rf"kernel {fault.kernel}, {re.escape(fault.where)}, block \(.*\), thread \(.*\): "
    assert re.match(place, text)
    assert fault.text in text
    outcome, text = host.run("tree_reduction")
    assert (outcome, text) == (RIGHT, ""), "a failed launch must not harm the next one"


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", zoo.faults("FAULT"), ids=name_of)
def test_fault_is_an_error_in_any_order(host: Zoo, fault: Fault, order: str) -> None:
    for seed in range(3):
        with host.options(order=order, seed=seed):
            assert host.run(fault.kernel)[0] == ERROR


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", zoo.faults("RACE"), ids=name_of)
def test_race_is_reported(host: Zoo, fault: Fault, order: str) -> None:
    for seed in range(3):
        # Whoever comes too early also reads what is not written yet; here the race is to be named.
        with host.options(order=order, seed=seed, races=True, uninitialized=False):
            outcome, text = host.run(fault.kernel)
        assert outcome == ERROR
        # The order decides which of the two accesses comes second and is reported as the place.
        assert f"kernel {fault.kernel}, " in text
        assert any(f.where in text for f in zoo.faults("RACE") if f.kernel == fault.kernel)
        assert fault.text.split(" at byte")[0] in text


def test_thread_order_shows_in_results_of_a_race(host: Zoo) -> None:
    seen = set()
    for order in ORDERS:
        with host.options(order=order):
            seen.add(host.run("missing_barrier"))
    assert len(seen) >= 3


def test_preemption_loses_updates(host: Zoo) -> None:
    with host.options(order="random", preempt=0.2):
        assert host.run("shared_increment") != (RIGHT, f"sum {256 * 256:.6f}")


def test_first_error_does_not_depend_on_workers(host: Zoo) -> None:
    texts = set()
    for workers in (1, 2, 2, 2):
        with host.options(workers=workers):
            texts.add(host.run("store_past_end"))
    assert len(texts) == 1


def test_checks_can_be_switched_off(host: Zoo) -> None:
    with host.options(uninitialized=False):
        outcome, text = host.run("never_written")
        assert outcome == RIGHT
        assert "nan" in text, "shared memory starts as NaN"
    with host.options(bounds=False):
        assert host.run("store_to_input")[0] == RIGHT


# ---- device profiles ----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("sm", "kib"), [(75, 64), (80, 163), (86, 99), (89, 99), (90, 227), (100, 227), (120, 99)]
)
def test_shared_memory_limit(host: Zoo, sm: int, kib: int) -> None:
    with host.options(sm=sm, multiprocessors=7):
        assert host.device() == (sm, 7, 1024 * kib)
        outcome, text = host.run("large_shared")  # 100 KiB
    if kib >= 100:
        assert (outcome, text) == (RIGHT, "")
    else:
        assert outcome == ERROR
        assert f"102400 bytes of shared memory, more than the {1024 * kib} of sm_{sm}" in text


def test_clusters_need_sm_90(host: Zoo) -> None:
    with host.options(sm=80):
        outcome, text = host.run("cluster_exchange")
        assert outcome == ERROR
        assert "a cluster of 4 blocks on sm_80" in text
        assert host.run("cluster_of_one") == (RIGHT, "")


def test_cooperative_grid_must_fit(host: Zoo) -> None:
    with host.options(multiprocessors=0):
        outcome, text = host.run("grid_exchange")
    assert outcome == ERROR
    assert "a cooperative grid larger than the device holds at once" in text


# ---- counters and log ---------------------------------------------------------------------------
@pytest.mark.parametrize("order", ORDERS)
def test_counters_are_exact(host: Zoo, order: str) -> None:
    with host.options(order=order, counters=True):
        assert host.run("vectors") == (RIGHT, "")
    report = host.report()
    # 256 threads load 16 bytes twice and store 16 bytes; 16 sectors per request of a warp.
    assert report.buffers["in"] == BufferTraffic(8192, 256, 16)
    assert report.buffers["out"] == BufferTraffic(0, 0, 0, 4096, 128, 8)
    assert report.buffers["in"].sector_efficiency == 1
    assert (report.shared_store_bytes, report.shared_load_bytes) == (4096, 2048)
    assert report.threads == 256


def test_sector_efficiency_of_strided_access(host: Zoo) -> None:
    with host.options(counters=True):
        host.run("strided")
    report = host.report()
    assert report.buffers["in"] == BufferTraffic(1024, 256, 8)
    assert report.buffers["in"].sector_efficiency == 1 / 8
    assert report.buffers["out"].sector_efficiency == 1


def test_counters_do_not_depend_on_workers(host: Zoo) -> None:
    reports = []
    for workers in (1, 2):
        host.reset()
        with host.options(workers=workers, counters=True):
            assert host.run("many_blocks") == (RIGHT, "")
        reports.append(host.report())
    assert reports[0] == reports[1]
    assert reports[0].block_barriers == 16


def test_launch_log(host: Zoo) -> None:
    host.run("cluster_exchange")
    host.run("three_dimensions")
    first, second = host.report().launches
    assert (first.kernel, first.grid, first.block) == ("cluster_exchange", (8, 1, 1), (256, 1, 1))
    assert (first.shared_bytes, first.cluster) == (1024, 4)
    assert (second.kernel, second.grid, second.block) == (
        "three_dimensions", (2, 3, 2), (4, 8, 2),
    )  # fmt: skip
    assert host.report().cluster_barriers == 4
    host.reset()
    assert host.report().launches == []


def test_unknown_options_are_errors(host: Zoo) -> None:
    for option in ({"ordre": "depth"}, {"order": "sideways"}, {"sm": 70}, {"seed": "many"}):
        with pytest.raises(ValueError, match="no option"):
            host.set(**option)


# ---- the build ----------------------------------------------------------------------------------
def test_compiler_errors_are_shown(tmp_path: Path) -> None:
    source = tmp_path / "static_shared.cu"
    source.write_text(
        '#include "common/device.cuh"\n'
        "CHATTN_KERNEL(32) k() { __shared__ float a[32]; a[threadIdx.x] = 0; }\n"
    )
    with pytest.raises(build.BuildError, match=r"use.* shared<T>\(\) instead of __shared__"):
        build.build_library("static_shared", [source])


def test_a_failed_build_is_reported_once_and_fast(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every test of the case table asks for the operators, and a build takes a minute."""
    broken = [tmp_path / f"broken{i}.cpp" for i in range(8)]
    for source in broken:
        source.write_text("int f() { return no_such_name; }\n")
    commands = []
    run = build._run
    monkeypatch.setattr(build, "_run", lambda command: commands.append(command) or run(command))
    with pytest.raises(build.BuildError, match="no_such_name") as first:
        build.build_library("broken", broken)
    assert len(commands) <= 2 * build.JOBS, "what had not begun is not compiled"
    commands.clear()
    for _ in range(2):
        with pytest.raises(build.BuildError) as again:
            build.build_library("broken", broken)
        assert "did not build, as reported before" in str(again.value)
        assert "no_such_name" in str(again.value)
        assert len(str(again.value).splitlines()) == 1 < len(str(first.value).splitlines())
    assert commands == []


def test_failed_launches_cannot_go_unnoticed(tmp_path: Path) -> None:
    source = tmp_path / "dropped.cu"
    source.write_text(
        '#include "common/device.cuh"\n'
        "CHATTN_KERNEL(32) k() {}\n"
        'void f() { chattn::launch("k", k, {}); }\n'
    )
    with pytest.raises(build.BuildError, match="nodiscard"):
        build.build_library("dropped", [source])


def test_build_is_cached_by_content(tmp_path: Path) -> None:
    header, source = tmp_path / "answer.h", tmp_path / "answer.cpp"
    source.write_text('#include "answer.h"\nextern "C" int answer() { return ANSWER; }\n')
    header.write_text("#define ANSWER 1\n")
    first = build.build_library("answer", [source])
    inode = first.stat().st_ino
    header.touch()
    assert build.build_library("answer", [source]) == first
    assert first.stat().st_ino == inode
    header.write_text("#define ANSWER 2\n")
    assert build.build_library("answer", [source]) != first


@pytest.mark.slow
def test_portable_stack_switch() -> None:
    program = build.build_program(
        "zoo", zoo.SOURCES, variant="ucontext", defines=["CHATTN_ZOO_MAIN"]
    )
    names = ",".join(zoo.correct_kernels())
    result = subprocess.run([program, names], capture_output=True, text=True)
    assert result.returncode == RIGHT, result.stdout + result.stderr


# ---- nvcc ---------------------------------------------------------------------------------------
def nvcc() -> str | None:
    home = os.environ.get("CUDA_HOME")
    return shutil.which(Path(home, "bin", "nvcc") if home else "nvcc")


def run_nvcc(*arguments: str | Path) -> str:
    command = [str(nvcc()), "-std=c++20", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"]
    command += [f"-I{build.ROOT / 'csrc'}", f"-I{build.ROOT / 'tests'}", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


needs_nvcc = pytest.mark.skipif(nvcc() is None, reason="needs nvcc (CUDA_HOME or PATH)")


@pytest.mark.slow
@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
@pytest.mark.parametrize("source", ["correct.cu", "clusters.cu", "races.cu"])
def test_zoo_compiles_with_nvcc(tmp_path: Path, source: str, arch: str) -> None:
    run_nvcc(f"-arch={arch}", "-c", zoo.FOLDER / source, "-o", tmp_path / "zoo.o")


@needs_nvcc
@pytest.mark.parametrize("arch", ["sm_75", "sm_90"])
def test_device_api_vanishes(tmp_path: Path, arch: str) -> None:
    """The API's kernels become the instructions that plain CUDA becomes."""
    ptx = tmp_path / "vanish.ptx"
    run_nvcc(f"-arch={arch}", "-ptx", zoo.FOLDER / "vanish.cu", "-o", ptx)
    bodies: dict[str, list[str]] = {}
    for name, body in re.findall(r"\.entry (\w+)\(.*?\)\s.*?\{(.*?)\n\}", ptx.read_text(), re.S):
        lines = [line.strip() for line in body.splitlines()]
        bodies[name] = [x for x in lines if x and x[0] not in "./" and not x.endswith(":")]
    kernels = {"copy", "reduce"} | ({"cluster"} if arch == "sm_90" else set())
    assert set(bodies) == {f"{k}_{kind}" for k in kernels for kind in ("api", "raw")}
    for kernel in kernels:
        assert opcodes(bodies[f"{kernel}_api"]) == opcodes(bodies[f"{kernel}_raw"])


def opcodes(body: list[str]) -> list[str]:
    """Sorted instruction names, without what the assembler ignores: order, and kinds of 32 bits."""
    names = (re.sub(r"^@!?%\w+\s+", "", line).split()[0] for line in body)
    return sorted(re.sub(r"\.[usfb](\d+)", r".b\1", name) for name in names)
