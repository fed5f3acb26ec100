"""What a block costs the host: its calls with kernels that do not run.

    python tools/host_time.py [--models] [--rounds 300]

The CUDA kernels are those of the tests' host layer, whose launches are recorded and not executed:
what is left is Python, torch's dispatcher, checks, allocation and the planner, as in front of a
GPU, but for the driver's share of a launch. A loop over one block has all of it in the caches;
--models shows the blocks inside timm's networks, where it is not.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import chattn_cuda
from chattn_cuda.modules import EfficientChannelAttention, SelectiveKernelAttn, SqueezeExcite
from chattn_cuda.modules.fused import FusedForward
from tests import host_backend
from tests.cuda_host import operators

C, H = 64, 7
MODELS = {"SE": "seresnet18", "ECA": "ecaresnet26t", "SK": "skresnet18"}


def maps(count: int, grad: bool) -> list[Tensor]:
    """Small maps; two samples where a batch norm takes their statistics."""
    return [torch.randn(1 + grad, C, H, H, requires_grad=grad) for _ in range(count)]


def blocks() -> dict[str, tuple[nn.Module, int, Callable[..., Tensor]]]:
    """By name: the module, how many maps it takes, and the call."""
    backend = host_backend.NAME
    se, eca = SqueezeExcite(C, backend=backend), EfficientChannelAttention(C, backend=backend)
    sk = SelectiveKernelAttn(C, backend=backend)
    return {
        "SE": (se, 1, se.__call__),
        "ECA": (eca, 1, eca.__call__),
        "SK": (sk, 2, lambda *u: sk.weigh(u)),
    }


def microseconds(call: Callable[[], Any], rounds: int) -> float:
    """The median of `rounds` calls, after a few."""
    times = []
    for i in range(rounds + 20):
        before = time.perf_counter()
        call()
        if i >= 20:
            times.append(time.perf_counter() - before)
    return 1e6 * statistics.median(times)


def python_calls(call: Callable[[], Any]) -> int:
    """Functions of Python that one call enters."""
    call()
    entered = 0

    def count(frame: Any, event: str, argument: Any) -> None:
        nonlocal entered
        entered += event == "call"

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return entered - 1  # `call` itself


@contextlib.contextmanager
def stubs() -> Iterator[Any]:
    """Launches that run nothing."""
    host = operators.load()
    with host.options(execute=False):
        yield host


def alone(rounds: int) -> None:
    """Print the table of single blocks."""
    print(f"{'one block':10} {'inference':>18} {'training':>18}   us (Python calls of a forward)")
    with stubs():
        for name, (module, count, call) in blocks().items():
            cells = []
            for grad in (False, True):
                module.train(grad)
                u = maps(count, grad)
                leaves = [*u, *module.parameters()]

                def forward(call: Any = call, u: Any = u) -> Any:
                    return call(*u)

                def step(call: Any = call, u: Any = u, leaves: Any = leaves) -> None:
                    y = call(*u)
                    torch.autograd.grad(y, leaves, y.detach())

                with torch.set_grad_enabled(grad):
                    entered = python_calls(forward)
                    cells.append(
                        f"{microseconds(step if grad else forward, rounds):9.1f} ({entered})"
                    )
            print(f"{name:10} {cells[0]:>18} {cells[1]:>18}")


class Shares:
    """Time inside a model's fused blocks that is not their submodules'."""

    def __init__(self) -> None:
        self.inside = 0.0
        self.times: list[float] = []

    def __enter__(self) -> Shares:
        self.original = original = nn.Module.__call__

        def timed(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            outer, self.inside = self.inside, 0.0
            begin = time.perf_counter()
            result = original(module, *args, **kwargs)
            taken = time.perf_counter() - begin
            if isinstance(module, FusedForward):
                self.times.append(taken - self.inside)
            self.inside = outer + taken
            return result

        nn.Module.__call__ = timed  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: Any) -> None:
        nn.Module.__call__ = self.original  # type: ignore[method-assign]


def in_models(rounds: int) -> None:
    """Print the table of blocks inside networks."""
    import timm

    print(
        f"\n{'in a model':24} {'inference':>10} {'autocast':>10}",
        "  us a block, without its submodules",
    )
    x = torch.randn(1, 3, 64, 64)
    with stubs(), torch.inference_mode():
        for name, architecture in MODELS.items():
            model = timm.create_model(architecture).eval()
            chattn_cuda.accelerate(model, host_backend.NAME)
            shares = {False: Shares(), True: Shares()}
            for i in range(rounds):
                for mixed, share in shares.items():
                    if i == 3:
                        share.times.clear()
                    with torch.autocast("cpu", torch.bfloat16, enabled=mixed), share:
                        model(x)
            plain, cast = (1e6 * statistics.median(share.times) for share in shares.values())
            print(f"{name + ', ' + architecture:24} {plain:10.1f} {cast:10.1f}")


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", action="store_true", help="also inside timm's networks")
    parser.add_argument("--rounds", type=int, default=300)
    options = parser.parse_args()
    host_backend.register()
    if (reason := host_backend.load()) is not None:
        sys.exit(reason)
    torch.set_num_threads(1)
    alone(options.rounds)
    if options.models:
        in_models(max(5, options.rounds // 20))


if __name__ == "__main__":
    main()
