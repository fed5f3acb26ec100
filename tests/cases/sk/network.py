"""The selective kernel as one operator, with its network, on the host execution layer."""

from __future__ import annotations

from dataclasses import dataclass

from tests.cuda_host.problems import Problem, Shape

NO_NORM, FIXED, OF_BATCH = range(3)


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
    norm: int

    frozen = ("mean", "var")

    block = "sk_block"
    plan_fields = ("hidden_splits", "logits_splits", "hidden_grad_splits", "pooled_grad_splits")

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
    def sizes(self) -> list[int]:
        return [self.n, self.c, self.h * self.w, int(self.channels_last), self.m, self.d, self.norm]

    def is_zero(self, name: str) -> bool:
        return name == "db_reduce" and self.norm == OF_BATCH


PROBLEMS = (
    SkBlockProblem("no_norm", 3, 10, 5, 5, 2, 6, NO_NORM),
    SkBlockProblem("fixed", 2, 36, 4, 4, 3, 12, FIXED, channels_last=True),
    SkBlockProblem("of_batch", 35, 12, 3, 3, 2, 9, OF_BATCH),
    SkBlockProblem("of_many", 140, 20, 2, 1, 4, 20, OF_BATCH),
    SkBlockProblem("split", 3, 520, 2, 2, 1, 72, OF_BATCH),
    SkBlockProblem("split_without_clusters", 3, 520, 2, 2, 2, 72, FIXED, sm=80),
)
