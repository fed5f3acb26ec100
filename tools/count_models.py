"""Bytes that whole models move outside of their convolutions on a GPU, counted without one.

    python tools/count_models.py             compares bench/counted_models.csv with what is counted
    python tools/count_models.py --write     writes it

A model runs on tensors without memory (device "meta"), and every operator that it calls counts
with the tensors that it reads and writes: eager PyTorch; accelerated, with tails where
`backend="auto"` takes them on a GPU ("tails"); and with a tail wherever there can be one ("all").
Convolutions and products of matrices count as nothing, they are the same in all. Of torch.compile
only the tails are known, as maps by kind (`INDUCTOR`): a compiled model has those in the place of
ours, and the rest as eager PyTorch has it.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from predict_models import BESIDE, MODELS, ROOT, TABLE, VARIANTS, Row, read
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BATCH, SIDE, DTYPE = 128, 224, torch.bfloat16
COUNTED = tuple(VARIANTS)
COLUMNS = ("model", "work", "batch", "dtype", *COUNTED)

# Maps, in inference and in training, that the kernels move which Inductor generates for these:
# counted in its code for sm_90 (torch 2.14.1, bfloat16, channels_last, one tail by itself).
INDUCTOR = {
    "norm": (2.0, 8.0),
    "norm, line": (2.0, 9.5),
    "norm, curve": (2.0, 15.0),
    "norm, residual": (3.0, 9.0),
    "norm, residual, line": (3.0, 12.0),
    "norm, gate, residual, line": (5.0, 15.0),
    "norm, line, gate": (4.0, 15.0),
    "norm, curve, gate": (6.0, 20.0),
    "selective kernel": (9.0, 27.0),  # in inference with the norms in front
}

# Operators that move nothing, or nothing that is compared.
_LEFT_OUT = ("convolution", "mm", "empty", "_unsafe_view", "zeros", "ones", "scalar_tensor")
_LINES = (0, 1, 2)  # identity, ReLU, ReLU6: the derivative is a bit


def _norm_reads(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool,
                *_: Any) -> list[Tensor]:  # fmt: skip
    return [x] if training else []


def _squeezed(x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, running: Any,
              momentum: float, eps: float, inner: int, param: float, pool: bool,
              ) -> list[Tensor]:  # fmt: skip
    """All that tail_squeeze reads: nothing by running statistics and without a gate."""
    return [x] * ((mean is None or (pool and inner == 0)) + (pool and inner != 0))


#: By operator, what is read once more than there are arguments: in the second pass.
AGAIN: dict[str, Callable[..., Sequence[Tensor]]] = {
    "native_batch_norm": _norm_reads,
    "native_batch_norm_backward": lambda dy, x, *_: [dy, x],
    "se_forward": lambda x, *_: [x],
    "se_backward": lambda dy, *_: [dy],
    "eca_forward": lambda x, *_: [x],
    "eca_backward": lambda dy, *_: [dy],
    "sk_forward": lambda branches, *_: branches,
    "sk_backward": lambda dy, *_: [dy],
}


@dataclass
class Count:
    """What a model moves.

    Attributes:
        bytes: Of all operators.
        of_tails: Those of tails and selective kernels among them.
        tails: Of each, what it is, and the bytes of its map.
    """

    bytes: int = 0
    of_tails: int = 0
    tails: list[tuple[str, int]] = field(default_factory=list)

    def compiled(self, training: bool) -> int:
        """Bytes with Inductor's kernels in the place of the tails."""
        maps = sum(INDUCTOR[kind][training] * map_bytes for kind, map_bytes in self.tails)
        return self.bytes - self.of_tails + round(maps)


def size(t: Tensor) -> int:
    """Bytes of a tensor's places in memory: an expanded dimension counts once."""
    lengths = (n for n, stride in zip(t.shape, t.stride(), strict=True) if stride)
    return math.prod(lengths) * t.element_size()


class Counter(TorchDispatchMode):
    """Counts the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = Count()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func._schema.name.partition("::")[2]
        aliases = [a.alias_info.is_write for a in func._schema.arguments if a.alias_info]
        is_view = bool(aliases) and not any(aliases)
        if not is_view and not any(part in name for part in _LEFT_OUT):
            self._add(name, args, kwargs, out)
        return out

    def _add(self, name: str, args: Any, kwargs: Any, out: Any) -> None:
        read = [*tree_leaves((args, kwargs)), *(AGAIN[name](*args) if name in AGAIN else ())]
        if name in ("copy_", "fill_", "zero_"):  # what was there is not read
            read = read[1:]
        if name == "tail_squeeze":
            read = _squeezed(*args)
        moved = sum(size(t) for t in (*read, *tree_leaves(out)) if isinstance(t, Tensor))
        self.count.bytes += moved
        if name.startswith(("tail_", "sk_")):
            self.count.of_tails += moved
        if name == "tail_apply":
            x, residual, _, gate, inner, _, act, *_ = args
            self.count.tails.append((kind_of(inner, gate, residual, act), size(x)))
        if name == "sk_forward":
            self.count.tails.append(("selective kernel", size(args[0][0])))


def kind_of(inner: int, gate: Tensor | None, residual: Tensor | None, act: int) -> str:
    """A tail in words; an activation is a line or a curve, by its derivative."""
    words = ["norm"]
    for code, there, word in ((inner, gate, "gate"), (0, residual, "residual"), (act, None, "")):
        words += ["line" if code in _LINES else "curve"] * (code != 0)
        words += [word] * (there is not None)
    return ", ".join(words)


@contextlib.contextmanager
def operators(smallest: int) -> Iterator[None]:
    """Have `backend="auto"` take the operators for tensors without memory.

    Args:
        smallest: Bytes of the smallest map that a tail reads.
    """
    from chattn_cuda import backends
    from chattn_cuda.modules import deferred

    known = dict(backends._BACKENDS)
    ours = backends.Backend("meta", "chattn_cuda", ("meta",), lambda device: None)
    backends._BACKENDS.clear()
    backends._BACKENDS.update({"meta": ours, **known})  # before the one that takes everything
    deferred.SMALLEST["meta"] = smallest
    backends.forget()
    try:
        yield
    finally:
        backends._BACKENDS.clear()
        backends._BACKENDS.update(known)
        del deferred.SMALLEST["meta"]
        backends.forget()


def count(model: nn.Module, x: Tensor, training: bool) -> Count:
    """What one step moves: a forward, or forward, loss and backward."""
    model.train(training)
    with Counter() as counter, torch.set_grad_enabled(training):
        y = model(x)
        if training:
            y.sum().backward()
    model.zero_grad(set_to_none=True)
    return counter.count


def counts(model: nn.Module, x: Tensor, training: bool) -> dict[str, int]:
    """Bytes by variant.

    Args:
        model: Stays as it is.
        x: Without memory.
        training: Whether a step has a backward.
    """
    import chattn_cuda
    from chattn_cuda.modules import deferred

    ours = copy.deepcopy(model)
    chattn_cuda.accelerate(ours, "auto", "tail")
    plain, ours = (m.to("meta", x.dtype) for m in (copy.deepcopy(model), ours))
    with operators(deferred.SMALLEST["cuda"]):
        by_rule = count(ours, x, training)
    with operators(0):
        everywhere = count(ours, x, training)
    return {
        "eager": count(plain, x, training).bytes,
        "compiled": everywhere.compiled(training),
        "tails": by_rule.bytes,
        "all": everywhere.bytes,
    }


def rows(models: Sequence[str] = (*MODELS, *BESIDE)) -> Iterator[Row]:
    """What is counted now."""
    import timm

    x = torch.empty(BATCH, 3, SIDE, SIDE, dtype=DTYPE, device="meta")
    for name in models:
        with torch.device("meta"):
            model = timm.create_model(name)
        for training in (False, True):
            found = counts(model, x, training)
            work = "training" if training else "inference"
            values = (name, work, BATCH, "bfloat16", *(found[variant] for variant in COUNTED))
            yield dict(zip(COLUMNS, map(str, values), strict=True))


def differences(now: Sequence[Row], before: Sequence[Row]) -> list[str]:
    """A line for every figure that is not the committed one."""
    old = {(row["model"], row["work"]): row for row in before}
    lines = []
    for row in now:
        was = old.get((row["model"], row["work"]), {})
        for name in COUNTED:
            if was.get(name) != row[name]:
                title = f"{row['model']} {row['work']}, {name}"
                lines.append(f"{title}: {was.get(name, 'nothing')} -> {row[name]} bytes")
    return lines


def main() -> int:
    """Compare, or write the table; returns the exit code."""
    sys.path.append(str(ROOT))
    from tests.tables import settle

    now = list(rows())
    return settle(TABLE, COLUMNS, now, differences(now, read()))


if __name__ == "__main__":
    sys.exit(main())
