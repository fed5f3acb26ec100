"""How close the CPU backend comes to its bounds, with every set of instructions that runs here.

    python -m tests.margins [--seeds 3] [--share 0.8] [-k sk]

A bound is that of tests/compare.py, twice the error of eager PyTorch and a floor, so it depends on
the instructions that torch's own kernels use (ATEN_CPU_CAPABILITY) as the result does on ours
(CHATTN_CPU_ISA). Every combination runs in a process of its own; what takes more than ``--share``
of its bound is listed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
#: Ours, and torch's names of the same; best last.
OURS = ("baseline", "avx2", "avx512")
TORCHS = ("default", "avx2", "avx512")


def found(keyword: str, seeds: int, share: float) -> dict[str, float]:
    """In this process: the share of its bound that each result takes, where above ``share``."""
    from tests.cases import table
    from tests.results import compared

    above = {}
    for parameter in table():
        (case,) = parameter.values
        large = case.config.is_large or case.config.is_huge  # long sums are the same, but longer
        if case.backend != "cpu" or keyword not in case.id or large:
            continue
        for seed in range(seeds):
            for result in compared(case, seed):
                if not result.share() <= share:  # a share that is no number is one too much
                    above[f"{case.id} seed {seed} {result.name}"] = result.share()
    return above


def combinations() -> Iterator[tuple[str, str]]:
    """(ours, torch's), all that this processor has."""
    from chattn_cuda import _native

    module = _native.module()
    if module is None:
        raise SystemExit("the native module was not built")
    ours = OURS[: OURS.index(module.cpu_isa()) + 1]
    torchs = TORCHS[: TORCHS.index(torch.backends.cpu.get_cpu_capability().lower()) + 1]
    return itertools.product(ours, torchs)


def measured(ours: str, torchs: str, keyword: str, seeds: int, share: float) -> dict[str, float]:
    """`found`, in a process that uses no better instructions than these."""
    command = [sys.executable, "-m", "tests.margins", "--here", "-k", keyword]
    done = subprocess.run(
        [*command, "--seeds", str(seeds), "--share", str(share)],
        cwd=ROOT,
        env={**os.environ, "CHATTN_CPU_ISA": ours, "ATEN_CPU_CAPABILITY": torchs},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    shares: dict[str, float] = json.loads(done.stdout)
    return shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3, help="inputs per case (default: 3)")
    parser.add_argument("--share", type=float, default=0.8, help="list above (default: 0.8)")
    parser.add_argument("-k", default="", help="only cases whose name contains this")
    parser.add_argument("--here", action="store_true", help="this process's instructions, as JSON")
    chosen = parser.parse_args()
    if chosen.here:
        print(json.dumps(found(chosen.k, chosen.seeds, chosen.share)))
        return
    for ours, torchs in combinations():
        above = measured(ours, torchs, chosen.k, chosen.seeds, chosen.share)
        print(f"ours {ours}, torch's {torchs}: {len(above)} above {chosen.share:.0%}", flush=True)
        for name, share in sorted(above.items(), key=lambda item: -item[1]):
            print(f"  {share:6.1%}  {name}", flush=True)


if __name__ == "__main__":
    main()
