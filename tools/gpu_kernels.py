"""Kernel by kernel: microseconds by torch.profiler, beside a copy of the map in the same run.

A call is the forward and backward of timm's module with the package's `cuda` backend, and before
each half the second-level cache is overwritten. Kernels are named by what they do: `reduce SumOp`
is the squeeze whatever the layout, `apply ...Gate` a rescale or a gradient.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable
from statistics import median

import torch
from gpu_results import emit, left
from gpu_turns import turn
from variants import device

from tests.cuda_host.blocks import inputs_of

TABLE = "kernels"
STAGES = ((256, 56), (512, 28), (1024, 14), (2048, 7))
BATCHES = (128, 8)
LAYOUTS = {"channels_last": torch.channels_last, "nchw": torch.contiguous_format}
CALLS = 12
COLD_BYTES = 1 << 27  # more than any second-level cache


def cases(rehearse: bool) -> list[tuple[str, str, int, int, int]]:
    """(block, layout, batch, C, H), those of SE first."""
    stages, batches = (((32, 7),), (2,)) if rehearse else (STAGES, BATCHES)
    found = itertools.product(("se", "eca", "sk", "grn"), LAYOUTS, batches, stages)
    # Two branches of half the channels are as many bytes.
    return [(b, layout, n, c // 2 if b == "sk" else c, h) for b, layout, n, (c, h) in found]


# ---- names --------------------------------------------------------------------------------------
def short_name(name: str) -> str:
    """What a kernel does, from its demangled name."""
    if "chattn" not in name:
        return "others"
    base = re.search(
        r"(\w+)\s*(?:<|\(|$)", name.removeprefix("void ").replace("chattn::cuda::", "")
    )
    found = base[1] if base else name
    found = re.sub(r"^(reduce|apply)_\w+", r"\1", found)  # the layouts' variants
    role = re.search(r"\b(\w+(?:Op|Gate|Rows))<", name)
    return f"{found} {role[1]}" if role else found


def maps_moved(name: str) -> int | None:
    """How many maps a kernel reads and writes; None where it has nothing to do with one."""
    plain = re.sub(r"\b(?:chattn|cuda)::|\((?:int|bool)\)", "", name)
    inputs = inputs_of(plain)
    if inputs is None or re.search(r"\w+Op<", plain):  # which adds numbers up
        return inputs
    spread = re.search(r"\bSpreadGate<\w+, (\d)", plain)
    return inputs + (int(spread[1]) if spread else 1)


# ---- profiles -----------------------------------------------------------------------------------
def profile(call: Callable[[], object]) -> list[tuple[str, float]]:
    """(name, microseconds) of every kernel of several calls; on a CPU, of every operator."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    on_gpu = device() == "cuda"
    for _ in range(3):
        call()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profiler(activities=activities) as seen:
        for _ in range(CALLS):
            call()
        if on_gpu:
            torch.cuda.synchronize()
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [e for e in seen.events() or () if e.device_type == kind]
    return [(e.name, e.time_range.elapsed_us()) for e in events]


def per_call(
    events: Iterable[tuple[str, float]], calls: int
) -> dict[str, tuple[float, int | None]]:
    """Microseconds and maps of a call by short name, in order of appearance."""
    times: dict[str, dict[str, list[float]]] = {}
    for name, us in events:
        if re.search(r"^Memset|FillFunctor|^aten::(?:zero|fill)_$", name):
            continue  # what overwrites the cache
        times.setdefault(short_name(name), {}).setdefault(name, []).append(us)
    found = {}
    for short, kernels in times.items():
        # In every call the same launches; a few more where the profiler began early.
        counts = {name: max(1, round(len(us) / calls)) for name, us in kernels.items()}
        total = sum(median(us) * counts[name] for name, us in kernels.items())
        maps = [maps_moved(name) for name in kernels]
        moved = sum((m or 0) * counts[name] for m, name in zip(maps, kernels, strict=True))
        found[short] = (total, moved or None)
    return found


def measure(block: str, layout: str, n: int, c: int, h: int) -> None:
    """Profile one block on one map, and add a record per kernel."""
    import chattn_cuda
    from chattn_cuda.cli.cases import BLOCKS

    torch.manual_seed(0)
    dtype = torch.bfloat16
    module = BLOCKS[block].make(c).to(device(), dtype)
    chattn_cuda.accelerate(module, "cuda" if device() == "cuda" else "cpu")

    def tensor() -> torch.Tensor:
        values = torch.randn(n, c, h, h, device=device(), dtype=dtype)
        return values.contiguous(memory_format=LAYOUTS[layout])

    maps = [tensor().requires_grad_() for _ in range(BLOCKS[block].maps)]
    dy, target = tensor(), tensor()
    cold = torch.empty(COLD_BYTES if device() == "cuda" else 1, device=device(), dtype=torch.uint8)

    def both_ways() -> None:
        cold.zero_()
        y = module(*maps)
        cold.zero_()
        torch.autograd.grad(y, [*maps, *module.parameters()], dy)

    def copy() -> None:
        cold.zero_()
        target.copy_(dy)

    copies = per_call(profile(copy), CALLS)
    of_copy = sum(us for us, _ in copies.values())
    for name, (us, moved) in per_call(profile(both_ways), CALLS).items():
        emit(
            "kernel", block=block, layout=layout, batch=n, stage=f"{c}x{h}", kernel=name, us=us,
            maps=moved, copy=of_copy,
        )  # fmt: skip


def step(rehearse: bool) -> int:
    """All cases, as far as the time goes."""
    done, found = 0, cases(rehearse)
    with turn(5):
        for case in found:
            if left() < 2:
                break
            try:
                measure(*case)
                done += 1
            except Exception as error:
                text = f"{case}: {type(error).__name__}: {error}"
                emit("problem", step=TABLE, text=text)
            if device() == "cuda":
                torch.cuda.empty_cache()
    print(f"RESULT {done} of {len(found)} maps" + ("" if done == len(found) else ", no time left"))
    return 0 if done == len(found) else 124
