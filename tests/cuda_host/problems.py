"""Small calls, forward and backward, that together reach every path through the launchers.

For direct.py; test_cuda_host_mutations.py checks that they do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

Shape = tuple[int, ...]

IDENTITY, SILU = 0, 4
KINDS = ("tiles", "planes", "rows")


@dataclass(frozen=True)
class Problem:
    """One size of a block, in float32.

    Attributes:
        name: Of the test.
        channels_last: The maps' layout.
        sm: Device profile.
    """

    name: str
    n: int
    c: int
    h: int
    w: int
    channels_last: bool = field(default=False, kw_only=True)
    sm: int = field(default=90, kw_only=True)

    block: ClassVar[str]

    @property
    def map_shape(self) -> Shape:
        return (self.n, self.c, self.h, self.w)

    @property
    def map_bytes(self) -> int:
        return 4 * self.n * self.c * self.h * self.w

    @property
    def inputs(self) -> dict[str, Shape]:
        """The arrays that a call is given."""
        raise NotImplementedError

    @property
    def outputs(self) -> dict[str, Shape]:
        """The arrays that it fills."""
        raise NotImplementedError

    @property
    def options(self) -> dict[str, Any]:
        """What is neither shape nor array, by the names that csrc/blocks/<block>/params.h reads."""
        raise NotImplementedError

    #: inputs that have no gradient
    frozen: ClassVar[tuple[str, ...]] = ()

    def is_zero(self, name: str) -> bool:
        """Whether an output is zero whatever the inputs are."""
        return False

    @property
    def shapes(self) -> dict[str, Shape]:
        """All arrays, inputs first."""
        return {**self.inputs, **self.outputs}


@dataclass(frozen=True)
class SeProblem(Problem):
    """Squeeze-and-excitation; rd = 0: effective, with one layer."""

    rd: int

    block = "se"

    @property
    def inputs(self) -> dict[str, Shape]:
        c, rd, size = self.c, self.rd, self.map_shape
        first = {"w1": (rd, c), "b1": (rd,)} if rd else {}
        return {"x": size, "dy": size, **first, "w2": (c, rd or c), "b2": (c,)}

    @property
    def outputs(self) -> dict[str, Shape]:
        n, c, rd, size = self.n, self.c, self.rd, self.map_shape
        hidden = {"hidden": (n, rd)} if rd else {}
        weights = {f"d{k}": v for k, v in self.inputs.items() if k not in ("x", "dy")}
        return {"y": size, "pooled": (n, c), **hidden, "gate": (n, c), "dx": size, **weights}

    @property
    def options(self) -> dict[str, Any]:
        return {"rd": self.rd, "act": SILU if self.rd else IDENTITY}


@dataclass(frozen=True)
class EcaProblem(Problem):
    """Efficient channel attention."""

    taps: int
    per_channel: bool = False
    circular: bool = False

    block = "eca"

    @property
    def inputs(self) -> dict[str, Shape]:
        size = self.map_shape
        return {"x": size, "dy": size, "weight": (self.c if self.per_channel else 1, 1, self.taps)}

    @property
    def outputs(self) -> dict[str, Shape]:
        planes, size = (self.n, self.c), self.map_shape
        gradients = {"dx": size, "dweight": self.inputs["weight"]}
        return {"y": size, "pooled": planes, "gate": planes, **gradients}

    @property
    def options(self) -> dict[str, Any]:
        return {"k": self.taps, "per_channel": self.per_channel, "circular": self.circular}


@dataclass(frozen=True)
class SkProblem(Problem):
    """The selective kernel behind given logits; h and w are a branch's, c its channels.

    Attributes:
        m: Branches.
        slices: Whether they lie in one map.
        to_mean: Whether the mean gets a gradient.
        prologue: Whether the forward reads them through one. The backward, which has none, is that
            of the branches themselves.
    """

    m: int
    slices: bool = False
    to_mean: bool = True
    prologue: bool = False

    frozen = ("prologue",)

    block = "sk"

    @property
    def _maps(self) -> dict[str, Shape]:
        if self.slices:
            return {"x": (self.n, self.m * self.c, self.h, self.w)}
        return {f"x{m}": self.map_shape for m in range(self.m)}

    @property
    def inputs(self) -> dict[str, Shape]:
        gates = (self.n, self.m, self.c)
        small = {"dpooled": (self.n, self.c)} if self.to_mean else {}
        prologue = {"prologue": (2, self.m, self.c)} if self.prologue else {}
        return {"dy": self.map_shape, **small, "logits": gates, **self._maps, **prologue}

    @property
    def outputs(self) -> dict[str, Shape]:
        gates = (self.n, self.m, self.c)
        forward = {"pooled": (self.n, self.c), "y": self.map_shape}
        return {**forward, "dlogits": gates, **{f"d{k}": v for k, v in self._maps.items()}}

    @property
    def options(self) -> dict[str, Any]:
        return {"branches": self.m}

    def is_zero(self, name: str) -> bool:
        return name == "dlogits" and self.m == 1  # a softmax of one number is 1


NO_NORM, FIXED, OF_BATCH = "none", "fixed", "batch"


@dataclass(frozen=True)
class SkBlockProblem(Problem):
    """The selective kernel with its network.

    Attributes:
        m: Branches.
        d: Hidden units.
        norm: Of the hidden values: NO_NORM, FIXED or OF_BATCH.
    """

    m: int
    d: int
    norm: str

    frozen = ("mean", "var")

    block = "sk_block"

    @property
    def inputs(self) -> dict[str, Shape]:
        d, rows, of_unit = self.d, self.m * self.c, (self.d,)
        maps = {f"x{m}": self.map_shape for m in range(self.m)}
        layers = {"w_reduce": (d, self.c), "b_reduce": of_unit, "w_select": (rows, d),
                  "b_select": (rows,)}  # fmt: skip
        affine = {"weight": of_unit, "bias": of_unit} if self.norm != NO_NORM else {}
        fixed = {"mean": of_unit, "var": of_unit} if self.norm == FIXED else {}
        given = {"dy": self.map_shape, "dlogits": (self.n, self.m, self.c)}
        return {**given, **maps, **layers, **affine, **fixed}

    @property
    def outputs(self) -> dict[str, Shape]:
        units = (self.n, self.d)
        before = {"hidden": units} if self.norm != NO_NORM else {}
        batch = {"batch_mean": (self.d,), "batch_var": (self.d,)} if self.norm == OF_BATCH else {}
        forward = {"pooled": (self.n, self.c), **before, **batch, "activated": units,
                   "logits": (self.n, self.m, self.c), "y": self.map_shape}  # fmt: skip
        leaves = {k: v for k, v in self.inputs.items() if k[0] != "d" and k not in self.frozen}
        return {**forward, **{f"d{k}": v for k, v in leaves.items()}}

    @property
    def options(self) -> dict[str, Any]:
        return {"branches": self.m, "hidden": self.d, "norm": self.norm, "eps": 1e-3}

    def is_zero(self, name: str) -> bool:
        return name == "db_reduce" and self.norm == OF_BATCH


PROBLEMS: dict[str, tuple[Problem, ...]] = {
    "se": (
        SeProblem("tiles", 2, 33, 7, 5, 40),
        SeProblem("tiles_by_word", 3, 64, 9, 9, 8),
        SeProblem("planes_by_block", 1, 6, 40, 40, 3),
        SeProblem("planes_in_parts", 1, 2, 95, 97, 2),
        SeProblem("planes_by_warp", 1, 11, 23, 23, 4),
        SeProblem("rows", 2, 36, 9, 9, 5, channels_last=True),
        SeProblem("rows_by_element", 2, 33, 7, 9, 7, channels_last=True),
        SeProblem("wide", 2, 520, 3, 3, 70),
        SeProblem("batch", 70, 20, 2, 2, 6),
        SeProblem("batch_wide", 66, 260, 1, 2, 34),
        SeProblem("batch_rows", 33, 12, 3, 1, 6, channels_last=True),
        SeProblem("deep", 2, 1100, 1, 1, 8),
        SeProblem("without_clusters", 20, 72, 2, 2, 70, sm=80),
        SeProblem("parts", 2, 64, 24, 24, 16, channels_last=True),
        SeProblem("parts_batch", 17, 32, 28, 28, 4, channels_last=True, sm=80),
        SeProblem("one_layer", 3, 70, 9, 9, 0),
        SeProblem("one_layer_rows", 2, 36, 24, 24, 0, channels_last=True),
    ),
    "eca": (
        EcaProblem("block", 3, 20, 7, 5, 5),
        EcaProblem("cluster", 2, 70, 9, 9, 3),
        EcaProblem("cluster_circular", 1, 70, 9, 9, 3, per_channel=True, circular=True),
        EcaProblem("sides", 2, 70, 9, 9, 3, sm=80),
        EcaProblem("sides_circular", 1, 70, 9, 9, 3, circular=True, sm=80),
        EcaProblem("many_taps", 2, 70, 6, 6, 41),
        EcaProblem("many_taps_each", 1, 70, 5, 5, 37, per_channel=True, circular=True),
        EcaProblem("planes_in_parts", 1, 2, 130, 131, 1),
        EcaProblem("rows", 40, 66, 3, 3, 9, per_channel=True, channels_last=True),
        EcaProblem("batch_rows", 96, 356, 1, 1, 3, channels_last=True),
    ),
    "sk": (
        SkProblem("one", 2, 9, 7, 5, 1),
        SkProblem("tiles", 3, 10, 9, 9, 4, to_mean=False),
        SkProblem("tiles_slices", 2, 52, 9, 9, 3, slices=True),
        SkProblem("wide", 2, 140, 3, 3, 2),
        SkProblem("planes_by_warp_slices", 2, 4, 23, 23, 3, slices=True),
        SkProblem("planes_by_block_slices", 2, 4, 33, 33, 2, slices=True, to_mean=False),
        SkProblem("planes_in_parts", 1, 2, 95, 97, 2),
        SkProblem("rows", 2, 36, 9, 9, 3, to_mean=False, channels_last=True),
        SkProblem("rows_by_element", 2, 33, 9, 9, 2, channels_last=True),
        SkProblem("rows_slices", 2, 68, 9, 9, 4, slices=True, channels_last=True),
        SkProblem("prologue_tiles", 3, 10, 9, 9, 4, prologue=True),
        SkProblem("prologue_tiles_slices", 2, 52, 9, 9, 3, slices=True, prologue=True),
        SkProblem("prologue_planes_by_warp", 2, 4, 23, 23, 2, prologue=True),
        SkProblem("prologue_planes_in_parts", 1, 2, 95, 97, 2, prologue=True),
        SkProblem("prologue_rows", 2, 36, 9, 9, 3, channels_last=True, prologue=True),
        SkProblem("prologue_rows_by_element", 2, 33, 9, 9, 2, channels_last=True, prologue=True),
    ),
    "sk_block": (
        SkBlockProblem("no_norm", 3, 10, 5, 5, 2, 6, NO_NORM),
        SkBlockProblem("fixed", 2, 36, 4, 4, 3, 12, FIXED, channels_last=True),
        SkBlockProblem("of_batch", 35, 12, 3, 3, 2, 9, OF_BATCH),
        SkBlockProblem("of_many", 140, 20, 2, 1, 4, 20, OF_BATCH),
        SkBlockProblem("split", 3, 520, 2, 2, 1, 72, OF_BATCH),
        SkBlockProblem("split_without_clusters", 3, 520, 2, 2, 2, 72, FIXED, sm=80),
    ),
}
