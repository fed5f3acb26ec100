"""Bugs in efficient channel attention."""

from __future__ import annotations

from tests.cuda_host.mutation import PLACE, in_csrc

_STAGE = "blocks/eca/stage.cuh"
_RESIDENT = "engine/cuda/resident.cuh"
_CONV = "blocks/eca/gate.cuh"

BUGS = (
    in_csrc(
        "resident-run-ignores-its-skew", _RESIDENT,
        "skew = static_cast<int>(base % V);", "skew = 0;",
        PLACE + "misaligned global load of 16 bytes",
    ),
    in_csrc(
        "resident-run-loads-past-its-end", _RESIDENT,
        "{tid < body, ends[1] < length}", "{tid < body, ends[1] <= length}",
        PLACE + "out-of-bounds load of 4 bytes at byte .* of buffer 'x'",
    ),
    in_csrc(
        "one-mean-too-many", _STAGE,
        "if (p >= 0 && p < channels) st(a.pooled", "if (p >= 0 && p <= channels) st(a.pooled",
        PLACE + "(out-of-bounds store|race on 'pooled')",
    ),
    in_csrc(
        "mean-not-written", _STAGE,
        "if (p >= 0 && p < channels) st(a.pooled + plane + p, sum / conv.hw);", "",
        "eca_forward: no kernel wrote 'pooled' at byte 0",
    ),
    in_csrc(
        "own-mean-for-a-neighbour's", _STAGE,
        "means.at_rank(rank).ld(", "means.ld(",
        PLACE + "load of shared memory that was never written",
    ),
    in_csrc(
        "block-barrier-before-the-exchange", _STAGE,
        "cluster_sync();\n\n  const Shared<A> gates", "__syncthreads();\n\n  const Shared<A> gates",
        PLACE + "access to the shared memory of block rank .*, which may not have started",
    ),
    in_csrc(
        "exchange-that-publishes-nothing", _STAGE,
        "cluster_sync();\n\n  const Shared<A> gates",
        "cluster_sync_relaxed();\n\n  const Shared<A> gates",
        PLACE + "race on 'shared memory'",
    ),
    in_csrc(
        "leaves-while-others-read", _STAGE,
        "cluster_sync();\n\n  own.template emit",
        "__syncthreads();\n\n  own.template emit",
        PLACE + "(a block exits with no cluster barrier|access to the shared .*, which has exited)",
    ),
    in_csrc(
        "map-read-twice-in-stage", _STAGE,
        "  own.load(a.x);\n", "  own.load(a.x);\n  own.load(a.x);\n",
        "x: .* bytes in loads, expected",
    ),
    in_csrc(
        "window-one-short", _CONV,
        "width = p.channels + steps - 1;", "width = p.channels + steps - 2;",
        PLACE + "(load of shared memory that was never written|race on 'shared memory')",
    ),
    in_csrc(
        "no-room-for-taps", _CONV,
        "kConvShared = kApplySamples * kConvWindow + kTapsAtOnce",
        "kConvShared = kApplySamples * kConvWindow",
        PLACE + "out-of-bounds shared store",
    ),
    in_csrc(
        "last-tap-not-written", _CONV,
        "if (tid < taps) {", "if (tid < taps - 1) {",
        PLACE + "load of 'scratch' at byte .*, which nothing has written",
    ),
)  # fmt: skip
