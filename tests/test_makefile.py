"""Makefile: what is built for which target, and when again. Python and pip are a script."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CPU, FULL = "CHATTN_BUILD_CUDA=0", "CHATTN_BUILD_CUDA="

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")

PYTHON = """#!/bin/sh
case "$*" in
    *--editable*) echo "CHATTN_BUILD_CUDA=$CHATTN_BUILD_CUDA" >> builds ;;
    *"-m chattn_cuda"* | *pytest* | *tools/*) echo "$*" >> runs ;;
esac
"""


class Checkout:
    """A copy of the Makefile, with two sources."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copy(ROOT / "Makefile", folder)
        for name in ("setup.py", "pyproject.toml", "csrc/kernels.cpp", ".venv/bin/python"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(PYTHON)
        (folder / ".venv/bin/python").chmod(0o755)

    def make(self, *words: str) -> list[str]:
        """What that built."""
        builds = self.folder / "builds"
        builds.unlink(missing_ok=True)
        environ = {k: v for k, v in os.environ.items() if k not in ("CHATTN_BUILD_CUDA", "DRIVER")}
        done = subprocess.run(
            ["make", *words], cwd=self.folder, env=environ, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return builds.read_text().split() if builds.exists() else []

    def change_a_source(self) -> None:
        time.sleep(0.02)  # file systems tell times no better
        (self.folder / "csrc/kernels.cpp").touch()


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.mark.parametrize("target", ["demo", "bench", "bench-models", "doctor"])
def test_what_can_run_here_is_built(checkout: Checkout, target: str) -> None:
    assert checkout.make(target, "DRIVER=") == [CPU]
    assert checkout.make(target, "DRIVER=") == []


def test_nothing_is_built_for_the_report(checkout: Checkout) -> None:
    assert checkout.make("report", "DRIVER=") == []
    assert (checkout.folder / "runs").read_text() == "tools/bench_report.py\n"


def test_the_demo_builds_all_with_a_driver_or_on_request(checkout: Checkout) -> None:
    assert checkout.make("demo", "DRIVER=/dev/nvidiactl") == [FULL]
    checkout.change_a_source()
    assert checkout.make("demo", "DRIVER=", "CHATTN_BUILD_CUDA=1") == ["CHATTN_BUILD_CUDA=1"]


def test_tests_build_cuda_kernels_behind_a_demo(checkout: Checkout) -> None:
    assert checkout.make("demo", "DRIVER=") == [CPU]
    assert checkout.make("test", "DRIVER=") == [FULL]
    assert checkout.make("test", "DRIVER=") == []


def test_the_demo_leaves_a_full_build_alone(checkout: Checkout) -> None:
    assert checkout.make("test", "DRIVER=") == [FULL]
    assert checkout.make("demo", "DRIVER=") == []
    assert checkout.make("test", "DRIVER=") == []


def test_a_build_of_cpu_kernels_alone_is_not_taken_for_a_full_one(checkout: Checkout) -> None:
    assert checkout.make("test", "DRIVER=") == [FULL]
    checkout.change_a_source()
    assert checkout.make("demo", "DRIVER=") == [CPU]
    assert checkout.make("test", "DRIVER=") == [FULL]
    assert checkout.make("demo", "DRIVER=") == []


def test_clean_forgets_both_builds(checkout: Checkout) -> None:
    checkout.make("test", "DRIVER=")
    checkout.make("clean")
    assert checkout.make("demo", "DRIVER=") == [CPU]


def test_documents_need_no_build(checkout: Checkout) -> None:
    assert checkout.make("docs", "DRIVER=") == []
    assert checkout.make("test", "DRIVER=") == [FULL]
