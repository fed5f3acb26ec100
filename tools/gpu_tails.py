"""The ends of residual blocks, in eager PyTorch, accelerated, compiled, and both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpu_results import left

if TYPE_CHECKING:
    import variants

TABLE = "tails"
SIZES = ((128, 256, 56), (128, 1024, 14))  # N, C, H = W
TINY = ((2, 32, 7),)
VARIANTS = ("eager", "accelerated", "compiled", "both")


@dataclass(frozen=True)
class Row:
    """A tail, with squeeze-and-excitation or without, and what is done with it."""

    attention: bool
    training: bool
    size: tuple[int, int, int]

    def __str__(self) -> str:
        n, c, h = self.size
        name = "BN+SE+add+ReLU" if self.attention else "BN+add+ReLU"
        return f"{name} {n}x{c}x{h}x{h} {'training' if self.training else 'inference'}"


def rows(rehearse: bool) -> list[Row]:
    """All rows."""
    return [
        Row(attention, training, size)
        for attention in (True, False)
        for training in (False, True)
        for size in (TINY if rehearse else SIZES)
    ]


def subject(row: Row) -> variants.Subject:
    """The tail, in bfloat16 and channels_last on the device."""
    import torch
    from variants import Subject, device

    from chattn_cuda.cli.cases import BLOCKS, forward_backward

    n, c, h = row.size
    block = BLOCKS["tail_a" if row.attention else "tail_plain"]
    torch.manual_seed(0)
    tail = block.make(c).to(device(), torch.bfloat16).train(row.training)
    u, shortcut, dy = (
        torch.randn(n, c, h, h, device=device(), dtype=torch.bfloat16)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_(row.training)
        for _ in range(3)
    )

    def call(module: Any) -> Any:
        if row.training:
            return forward_backward(module, [u, shortcut], dy.detach())
        with torch.inference_mode():
            return [module(u, shortcut)]

    size = 3 * u.numel() * u.element_size()
    # A rehearsal's maps are so small that "auto" would run the layers.
    backend = "auto" if device() == "cuda" else "cpu"
    return Subject(
        TABLE, str(row), "us", tail, call, size, rounds=20, repeat=10, backend=backend,
        fuse=block.fuse,
    )  # fmt: skip


def step(row: Row) -> int:
    """One row, once it is compiled."""
    from gpu_turns import measure_in_turn, ready
    from variants import BOTH, COMPILED, EAGER, OURS, make_ready

    of_row = subject(row)
    made = make_ready(of_row, (COMPILED, BOTH))
    plain = make_ready(of_row, (EAGER, OURS))
    ready()
    done = measure_in_turn(of_row, plain | made, 1.0)
    print(f"RESULT {len(made)} compiled ({COMPILED}), {left():.0f} s left")
    return 0 if done else 124
