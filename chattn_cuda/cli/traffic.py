"""``python -m chattn_cuda traffic``: what a block's CUDA kernels move, counted without a GPU.

The kernels are executed on the CPU by the host execution layer of the tests, which counts the bytes
and sectors that warps ask for.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from chattn_cuda.cli.bench import quiet
from chattn_cuda.cli.terminal import Cell, Table, Terminal, UsageError

__all__ = ["add_arguments", "run"]

_LAYER = Path("tests", "cuda_host", "traffic.py")
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_STRONG = "bold"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``traffic``."""
    parser.add_argument("--block", default="se", help="default: se")
    parser.add_argument("--shape", type=_shape, default=(8, 256, 56, 56), metavar="N,C,H,W", help="default: 8,256,56,56")  # fmt: skip  # noqa: E501
    parser.add_argument("--dtype", choices=_DTYPES, default="bfloat16", help="default: bfloat16")
    parser.add_argument("--layout", choices=("nchw", "channels_last"), default="nchw", help="default: nchw")  # fmt: skip  # noqa: E501
    parser.add_argument("--rd", type=_positive, help="se: hidden channels (default: as timm, C/16)")
    parser.add_argument("--k", type=_positive, help="eca: length of the convolution (default: as timm)")  # fmt: skip  # noqa: E501
    parser.add_argument("--circular", action="store_true", help="eca: circular padding")
    parser.add_argument("--per-channel", action="store_true", help="eca: weights for every channel")
    parser.add_argument("--branches", type=_positive, help="sk: number of branches (default: 2)")
    parser.add_argument("--sm", type=int, default=90, help="device profile (default: 90)")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    sizes = tuple(_positive(part) for part in text.split(","))
    if len(sizes) != 4:
        raise argparse.ArgumentTypeError(f"expected N,C,H,W, got {text!r}")
    return sizes


# The blocks' own options, by what the layer calls them; it says which block takes which.
_OPTIONS = {
    "rd": "rd",
    "k": "k",
    "circular": "circular",
    "per_channel": "per_channel",
    "m": "branches",
}


def _options(arguments: argparse.Namespace, blocks: dict[str, Any]) -> dict[str, Any]:
    """The block's own options that were given.

    Raises:
        UsageError: one is of another block, or has a value that the kernels do not take.
    """
    takes = {name: inspect.signature(kernels.calls).parameters for name, kernels in blocks.items()}
    given = {o: value for o, name in _OPTIONS.items() if (value := getattr(arguments, name))}
    for option in given:
        if option not in takes[arguments.block]:
            owner = next(name for name, options in takes.items() if option in options)
            flag = _OPTIONS[option].replace("_", "-")
            raise UsageError(f"--{flag} is an option of the block {owner}")
    if arguments.k is not None and arguments.k % 2 == 0:
        raise UsageError(f"--k must be odd, got {arguments.k}")
    if arguments.branches is not None and arguments.branches > 4:
        raise UsageError(f"--branches must be 1 to 4, got {arguments.branches}")
    return given


def run(arguments: argparse.Namespace) -> int:
    """Execute, count and print; returns the exit code."""
    quiet()
    layer = _load_layer()
    if arguments.block not in layer.KERNELS:
        names = ", ".join(layer.KERNELS)
        raise UsageError(f"--block must be one of {names}; got {arguments.block}")
    build, profiles = _module("tests.cuda_host.build"), _module("tests.cuda_host.control").PROFILES
    if arguments.sm not in profiles:
        names = ", ".join(map(str, profiles))
        raise UsageError(f"--sm must be one of {names}; got {arguments.sm}")
    if build.compiler() is None:
        raise UsageError("it compiles the kernels for this CPU, and finds no g++ (CXX, PATH)")
    calls = layer.measure(
        arguments.block,
        arguments.shape,
        getattr(torch, arguments.dtype),
        arguments.layout,
        sm=arguments.sm,
        **_options(arguments, layer.KERNELS),
    )
    terminal = Terminal()
    size = " x ".join(map(str, arguments.shape))
    first = next(iter(calls.values()))
    terminal.line(
        f"{arguments.block}, {size}, {arguments.dtype}, {arguments.layout}, "
        f"planned for sm_{arguments.sm}; one map is {first.map_bytes:,} bytes"
    )
    for direction, call in calls.items():
        _print(terminal, layer, direction, call)
    terminal.line()
    terminal.line(
        "Counted by executing the CUDA kernels on this CPU: what warps ask for, in sectors of "
        "32 bytes. Caches are not modelled."
    )
    return 0


def _load_layer() -> ModuleType:
    """``tests.cuda_host.traffic`` of the checkout that this package lies in.

    Raises:
        UsageError: this package is an installed one.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / _LAYER).is_file():
        raise UsageError(
            "it executes the CUDA sources, which are part of the repository and not of an "
            "installed package; run it in a source checkout"
        )
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return _module("tests.cuda_host.traffic")


def _module(name: str) -> ModuleType:
    return importlib.import_module(name)


def _print(terminal: Terminal, layer: ModuleType, direction: str, call: Any) -> None:
    table = Table(
        direction.capitalize(),
        ["buffer", "loaded", "sectors", "stored", "sectors", "efficiency", "maps"],
    )

    def add(name: str, traffic: Any, style: str = "") -> None:
        cells = [
            name,
            f"{traffic.load_bytes:,}",
            f"{traffic.load_sectors:,}",
            f"{traffic.store_bytes:,}",
            f"{traffic.store_sectors:,}",
            f"{traffic.sector_efficiency:.2f}",
            f"{traffic.bytes / call.map_bytes:.3f}",
        ]
        table.rows.append([Cell(cell, style) for cell in cells])

    for group, name in ((call.maps, "feature maps"), (call.small, "weights, intermediates")):
        for buffer, traffic in group.items():
            add(buffer, traffic)
        add(name, layer.total(group), _STRONG)
        table.rows.append(None)
    table.rows.pop()
    terminal.table(table)

    floors = call.floors
    passes = Table("", ["passes over the map", "reads and writes", "maps", "counted / this"])
    passes.rows.append([Cell("counted", _STRONG), "", Cell(f"{call.passes:.3f}", _STRONG), ""])
    for name, floor in (
        ("single-read floor", floors.single_read),
        ("two-pass floor", floors.two_pass),
        ("eager PyTorch", floors.eager),
    ):
        ratio = f"{call.passes / floor.passes:.2f}"
        passes.rows.append([name, str(floor), str(floor.passes), ratio])
    terminal.table(passes)

    launches = Table("", ["launch", "grid", "block", "shared bytes"])
    for launch in call.report.launches:
        launches.rows.append(
            [
                launch.kernel,
                _extent(launch.grid),
                _extent(launch.block),
                f"{launch.shared_bytes:,}",
            ]
        )
    terminal.table(launches)
    terminal.line(
        f"{len(call.report.launches)} launches; {_barriers(call.report)}; weights and "
        f"intermediates are {100 * call.small_share:.1f} % of the maps' bytes"
    )


def _extent(size: tuple[int, ...]) -> str:
    while len(size) > 1 and size[-1] == 1:
        size = size[:-1]
    return " x ".join(map(str, size))


def _barriers(report: Any) -> str:
    kinds = [f"{report.block_barriers:,} block barriers"]
    if report.cluster_barriers:
        kinds.append(f"{report.cluster_barriers:,} cluster barriers")
    if report.grid_barriers:
        kinds.append(f"{report.grid_barriers:,} grid barriers")
    return ", ".join(kinds)
