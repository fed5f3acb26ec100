"""Squeeze-and-excitation's CUDA kernels on the host execution layer."""

from __future__ import annotations

from dataclasses import dataclass

from tests.cuda_host.problems import IDENTITY, SIGMOID, SILU, Problem, Shape


@dataclass(frozen=True)
class SeProblem(Problem):
    """Squeeze-and-excitation; rd = 0: effective, with one layer."""

    rd: int

    block = "se"
    plan_fields = (
        "kind", "vec", "warps_per_plane", "reduce_splits", "product_splits", "tile_samples",
        "sample_tiles", "output_tiles", "apply_samples", "apply_parts",
    )  # fmt: skip

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
    def sizes(self) -> list[int]:
        gate = [self.rd, SILU if self.rd else IDENTITY, SIGMOID]
        return [self.n, self.c, self.h * self.w, int(self.channels_last), *gate]


PROBLEMS = (
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
)
