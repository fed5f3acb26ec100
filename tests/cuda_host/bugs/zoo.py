"""Bugs in the zoo, in what csrc/ does not use yet."""

from __future__ import annotations

from tests.cuda_host.mutation import ZOO, Mutant


def _zoo(name: str, old: str, new: str, noticed: str) -> Mutant:
    return Mutant(name, ZOO, "correct.cu", old, new, noticed)


BUGS = (
    _zoo(
        "increment-that-is-not-atomic",
        "s.atomic_add(0, t);", "s.st(0, s.ld(0) + t);",
        "kernel integer_atomics, .*race on 'shared memory' at byte 0",
    ),
    _zoo(
        "cluster-leaves-early",
        "  cluster_sync_relaxed();\n", "",
        "kernel cluster_exchange, .*a block exits with no cluster barrier|which has exited",
    ),
    _zoo(
        "cluster-barrier-that-orders-nothing",
        "  cluster_sync();\n  const float left", "  cluster_sync_relaxed();\n  const float left",
        "kernel cluster_exchange, .*race on 'shared memory'",
    ),
    _zoo(
        "block-barrier-for-a-cluster",
        "  cluster_sync();\n  const float left", "  __syncthreads();\n  const float left",
        "kernel cluster_exchange, .*no cluster barrier before",
    ),
)  # fmt: skip
