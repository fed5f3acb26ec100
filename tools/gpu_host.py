"""What a call costs the host, on a map so small that no kernel takes longer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gpu_results import Times, emit, emit_row, left

if TYPE_CHECKING:
    import torch

TABLE = "host"
SHAPE = (1, 64, 7, 7)
SK_SHAPE = (2, 64, 7, 7)  # whose batch norm takes no single sample in training
CALLS = 50  # in a sample
WAYS = ("inference", "inference, autocast", "training")


def rows() -> list[str]:
    """What is measured."""
    return [f"{block} {way}" for block in ("se", "eca", "sk", "grn") for way in WAYS]


def variants(rehearse: bool) -> tuple[str, ...]:
    """Of each row."""
    return ("eager", "cpu") if rehearse else ("eager", "cuda", "triton")


def call_of(module: Any, maps: list[torch.Tensor], dy: torch.Tensor, way: str) -> Callable[[], Any]:
    """One call as users make it; under autocast the map has 16 bits and the weights 32."""
    import torch
    from gpu_turns import device

    from chattn_cuda.cli.cases import forward_backward

    if way == "training":
        return lambda: forward_backward(module, maps, dy)
    half = [x.detach().bfloat16() for x in maps]

    def inference() -> Any:
        with torch.inference_mode():
            if way == "inference":
                return module(*maps)
            with torch.autocast(device(), torch.bfloat16):
                return module(*half)

    return inference


def step(rehearse: bool) -> int:
    """All rows."""
    import torch
    from gpu_turns import turn
    from variants import device

    import chattn_cuda
    from chattn_cuda.cli.cases import BLOCKS
    from chattn_cuda.cli.measure import time_calls

    def measure(row: str) -> None:
        block, _, way = row.partition(" ")
        torch.manual_seed(0)
        shape = SK_SHAPE if block == "sk" else SHAPE
        peer = BLOCKS[block].make(shape[1]).to(device()).train(way == "training")
        training = way == "training"
        maps = [
            torch.randn(shape, device=device()).requires_grad_(training)
            for _ in range(BLOCKS[block].maps)
        ]
        calls = {}
        for name in variants(rehearse):
            module = copy.deepcopy(peer)
            try:
                if name != "eager":
                    chattn_cuda.accelerate(module, name)
                calls[name] = call_of(module, maps, torch.randn_like(maps[0]), way)
                calls[name]()
            except Exception as error:
                calls.pop(name, None)
                emit("problem", step=TABLE, text=f"{row}, {name}: {type(error).__name__}: {error}")
        samples = time_calls(
            calls, device(), seconds=1.0, max_rounds=15, repeat=CALLS, hide_launches=False
        )
        times = {name: Times.of(values, 1e3) for name, values in samples.items()}
        emit_row(TABLE, row, "us", times)

    done = 0
    with turn(5):
        for row in rows():
            if left() < 2:
                break
            measure(row)
            done += 1
    print(f"RESULT {done} of {len(rows())} rows")
    return 0
