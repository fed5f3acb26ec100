"""The command line: ``python -m chattn_cuda doctor | demo | verify | bench | traffic``.

Each command is a module with ``add_arguments(parser)`` and ``run(arguments) -> exit code``.
Exit codes: 0 success; 1 something is broken or results disagree; 2 wrong use, or a package that the
command needs is not installed.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from chattn_cuda._version import __version__
from chattn_cuda.cli.terminal import UsageError

__all__ = ["main"]

_COMMANDS = {
    "doctor": "what is installed, built and usable here, and why something is not",
    "demo": "SE-ResNet-50 on two photographs: eager, compiled and accelerated, checked and timed",
    "verify": "models of timm and torchvision, accelerated, against themselves, in float64",
    "bench": "the blocks against eager PyTorch and torch.compile",
    "traffic": "what the CUDA kernels of a block move, counted without a GPU",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog="python -m chattn_cuda", description="Fused channel attention for PyTorch."
    )
    parser.add_argument("--version", action="version", version=f"chattn_cuda {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command", required=True)
    for name, text in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        importlib.import_module(f"chattn_cuda.cli.{name}").add_arguments(command)
    arguments = parser.parse_args(argv)
    try:
        code: int = importlib.import_module(f"chattn_cuda.cli.{arguments.command}").run(arguments)
    except UsageError as error:
        print(f"chattn_cuda {arguments.command}: {error}", file=sys.stderr)
        return 2
    except ImportError as error:  # the native module says how to rebuild it
        print(f"chattn_cuda {arguments.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"chattn_cuda {arguments.command}: stopped", file=sys.stderr)
        return 130
    return code
