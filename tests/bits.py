"""The bits of every result of the case table, to compare two versions of the kernels.

    python -m tests.bits cpu cuda_host > before.txt

prints a line for every result of these backends: case, name, digest. `diff` says what changed. The
order in which threads run does not matter: tests/test_cuda_host_orders.py holds the bits to that.
"""

from __future__ import annotations

import hashlib
import sys

import torch
from torch import Tensor

from tests import cases
from tests.results import results


def digest(t: Tensor) -> str:
    """Of the numbers' bits, in index order."""
    numbers = t.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:16]


def main(backends: list[str]) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    if not backends:
        raise SystemExit(__doc__)
    for backend in backends:
        if (reason := cases.unavailable(backend)) is not None:
            raise SystemExit(f"{backend}: {reason}")
    for parameter in cases.table():
        (case,) = parameter.values
        if case.backend not in backends:
            continue
        inputs = cases.make_inputs(case)
        x, weights, dy = inputs.to(case.dtype, case.device)
        outputs = cases.BLOCKS[case.block].run(x, weights, case.config.options, case.backend)
        for name, value in results(outputs, x, weights, dy, inputs.dgate).items():
            print(case.id, name, digest(value), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
