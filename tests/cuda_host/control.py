"""Steers a library that holds the host runtime, and reads what its launches did.

host = HostCuda(library)
with host.options(order="random", seed=3, races=True):
    ...                                     # run operators
host.reset()
...
report = host.report()
report.buffers["x"].load_bytes
"""

from __future__ import annotations

import contextlib
import ctypes
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

#: sm_... that a device profile exists for
PROFILES = (75, 80, 86, 89, 90, 100, 120)
ORDERS = ("depth", "reverse", "random", "prio")


@dataclass(frozen=True)
class LaunchRecord:
    """One launch, in order."""

    kernel: str
    symbol: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int
    cluster: int


@dataclass(frozen=True)
class BufferTraffic:
    """What warps asked of one named buffer; sectors are 32 bytes, counted once per request."""

    load_bytes: int = 0
    load_sectors: int = 0
    load_requests: int = 0
    store_bytes: int = 0
    store_sectors: int = 0
    store_requests: int = 0
    atomics: int = 0

    @property
    def bytes(self) -> int:
        return self.load_bytes + self.store_bytes

    @property
    def sector_efficiency(self) -> float:
        """Bytes asked for over bytes that their sectors move; 1 is perfect coalescing."""
        sectors = self.load_sectors + self.store_sectors
        return self.bytes / (32 * sectors) if sectors else 1.0

    def __add__(self, other: BufferTraffic) -> BufferTraffic:
        return BufferTraffic(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        )


@dataclass(frozen=True)
class Report:
    """Everything since the last reset. Buffers are counted only with the option `counters`."""

    launches: list[LaunchRecord]
    buffers: dict[str, BufferTraffic]
    block_barriers: int
    cluster_barriers: int
    grid_barriers: int
    warp_operations: int
    shared_load_bytes: int
    shared_store_bytes: int
    threads: int
    switches: int

    @classmethod
    def parse(cls, text: str) -> Report:
        """A report from its JSON."""
        data = json.loads(text)
        data["launches"] = [
            LaunchRecord(**{**entry, "grid": tuple(entry["grid"]), "block": tuple(entry["block"])})
            for entry in data["launches"]
        ]
        data["buffers"] = {k: BufferTraffic(**v) for k, v in data["buffers"].items()}
        return cls(**{f.name: data[f.name] for f in fields(cls)})


class HostCuda:
    """The runtime inside one library."""

    def __init__(self, library: Path | str) -> None:
        """Load the library (once more is harmless).

        Args:
            library: made by build.build_library.
        """
        self.library = ctypes.CDLL(str(library))
        self.library.hostcuda_set_option.argtypes = [ctypes.c_char_p, ctypes.c_char_p]
        self.library.hostcuda_counters_json.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
        self.library.hostcuda_counters_json.restype = ctypes.c_size_t

    def set(self, **options: Any) -> None:
        """Set options until they are reset; hostcuda.h lists them.

        Raises:
            ValueError: an unknown name, or a value that it cannot take.
        """
        for name, value in options.items():
            text = value if isinstance(value, str) else repr(float(value))
            if self.library.hostcuda_set_option(name.encode(), text.encode()) != 0:
                raise ValueError(f"host CUDA runtime: no option {name}={value!r}")

    def reset_options(self) -> None:
        """Back to the defaults."""
        self.library.hostcuda_reset_options()

    @contextlib.contextmanager
    def options(self, **options: Any) -> Iterator[None]:
        """Set options for a block of code; afterwards all of them have their defaults."""
        try:
            self.set(**options)
            yield
        finally:
            self.reset_options()

    def reset(self) -> None:
        """Forget launches and counters."""
        self.library.hostcuda_reset_counters()

    def report(self) -> Report:
        """Launches and counters since the last reset."""
        return Report.parse(self.report_text())

    def report_text(self) -> str:
        """The same as JSON, for another process."""
        size = self.library.hostcuda_counters_json(None, 0)
        text = ctypes.create_string_buffer(size)
        self.library.hostcuda_counters_json(text, size)
        return text.value.decode()
