from __future__ import annotations

import os
import tempfile
from pathlib import Path

# OpenMP reads it when torch is imported. Threads that spin while they wait make several processes
# on few cores up to seven times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Inductor's cache takes code for one width of vectors for that of another, with wrong results.
if capability := os.environ.get("ATEN_CPU_CAPABILITY"):
    caches = Path(tempfile.gettempdir(), f"torchinductor_{os.getuid()}_{capability}")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(caches))

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.triton_interpreter import replace_once_per_kernel  # noqa: E402

if not torch.cuda.is_available():
    # Triton reads it when a kernel is defined: before the first import of the kernels.
    os.environ.setdefault("TRITON_INTERPRET", "1")

GPU_REASON = "needs a CUDA GPU, and there is none here"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA GPU; skipped where there is none")
    config.addinivalue_line("markers", "timeout: of pytest-timeout, which may not be there")
    if os.environ.get("TRITON_INTERPRET") == "1":
        replace_once_per_kernel()
    torch.set_num_threads(2)
    # Convolutions on a GPU keep ten bits of float32 otherwise, and the tests compare float32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    # Fill every new tensor with NaN: what is never written shows. The second is for the operators'.
    torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ.setdefault("CHATTN_FILL_NEW_TENSORS", "1")


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason=GPU_REASON))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    count = sum(GPU_REASON in str(report.longrepr) for report in skipped)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU here"
    terminalreporter.write_line(f"GPU tests skipped: {count} ({where})")
    from chattn_cuda import _native  # not before TRITON_INTERPRET

    built = _native.build_info().get("torch", "none")
    terminalreporter.write_line(f"torch {torch.__version__}, native module built with {built}")


@pytest.fixture
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that the records of tools/gpu_*.py go to."""
    path = tmp_path / "records.jsonl"
    monkeypatch.setenv("GPU_CHECK_RESULTS", str(path))
    for name in ("GPU_CHECK_END", "GPU_CHECK_TURN"):
        monkeypatch.delenv(name, raising=False)
    return path
