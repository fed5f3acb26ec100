"""The selective kernel's passes on the host execution layer."""

from __future__ import annotations

from dataclasses import dataclass

from tests.cuda_host.problems import Problem, Shape


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
    plan_fields = (
        "kind", "vec", "warps_per_plane", "reduce_splits", "squeeze_tile", "dot_tile",
        "apply_parts", "channel_tiles",
    )  # fmt: skip

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
    def sizes(self) -> list[int]:
        branches = [self.m, int(self.slices), int(self.to_mean), int(self.prologue)]
        return [self.n, self.c, self.h * self.w, int(self.channels_last), *branches]

    def is_zero(self, name: str) -> bool:
        return name == "dlogits" and self.m == 1  # a softmax of one number is 1


PROBLEMS = (
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
)
