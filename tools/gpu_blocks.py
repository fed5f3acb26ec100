"""Single blocks on large and small maps: every backend against eager PyTorch, and right."""

from __future__ import annotations

from gpu_results import Times, emit, emit_row, left

TABLE = "blocks"
SIZES = {
    "se": ((256, 56), (2048, 7)),
    "eca": ((256, 56), (2048, 7)),
    "sk": ((128, 56), (1024, 7)),
    "grn": ((256, 56), (2048, 7)),
}


def rows(rehearse: bool) -> list[tuple[str, tuple[int, int, int, int], str]]:
    """(block, shape, direction)."""
    return [
        (block, (2, 16, 7, 7) if rehearse else (128, sizes[i][0], sizes[i][1], sizes[i][1]), way)
        for i in ((0,) if rehearse else (0, 1))
        for block, sizes in SIZES.items()
        for way in ("forward", "forward+backward")
    ]


def variants(rehearse: bool) -> tuple[str, ...]:
    """Of each row."""
    return ("eager", "cpu") if rehearse else ("eager", "cuda", "triton")


def name_of(block: str, shape: tuple[int, ...], direction: str) -> str:
    """Of the row."""
    return f"{block} {'x'.join(map(str, shape))} {direction}"


def step(rehearse: bool) -> int:
    """All rows."""
    import torch
    from gpu_turns import turn
    from variants import device

    from chattn_cuda.cli.cases import EAGER, Row, fused_backends
    from chattn_cuda.cli.measure import measure

    done = 0
    with turn(5):
        for block, shape, direction in rows(rehearse):
            if left() < 4:
                break
            dtype = torch.float32 if rehearse else torch.bfloat16
            row = Row(block, shape, "channels_last", direction, dtype, device())
            name = name_of(block, shape, direction)
            try:
                result = measure(row, (EAGER, *fused_backends(device())), seconds=0.5)
            except Exception as error:
                emit("problem", step=TABLE, text=f"{name}: {type(error).__name__}: {error}")
                continue
            for implementation, entry in result.entries.items():
                if entry.wrong:
                    emit("problem", step=TABLE, text=f"{name}, {implementation}: {entry.wrong}")
            samples = {k: e.samples for k, e in result.entries.items() if e.samples}
            emit_row(TABLE, name, "us", {k: Times.of(v, 1e3) for k, v in samples.items()})
            done += 1
            del result
            if device() == "cuda":
                torch.cuda.empty_cache()
    print(f"RESULT {done} of {len(rows(rehearse))} rows")
    return 0
