"""Bugs in the passes that blocks share."""

from __future__ import annotations

from tests.cuda_host.mutation import PLACE, in_csrc

_APPLY = "engine/cuda/apply.cuh"
_REDUCE = "engine/cuda/reduce.cuh"
_TILE = "engine/cuda/tile_product.cuh"
_PLAN = "engine/cuda/plan.h"
_ARRIVAL = "engine/cuda/arrival.cuh"

BUGS = (
    # ---- off by one
    in_csrc(
        "tile-reads-past-the-map", _REDUCE,
        "const int vectors = length / V;", "const int vectors = length / V + 1;",
        PLACE + "out-of-bounds (load|shared store)",
    ),
    in_csrc(
        "span-ends-late", _APPLY,
        "if (at < last && e + V <= length)", "if (at < last && e <= length)",
        PLACE + "(race|out-of-bounds|load of shared memory that was never written)",
    ),
    in_csrc(
        "rows-end-late", _APPLY,
        "if (at < last)\n        body(u, at,", "if (at <= last)\n        body(u, at,",
        PLACE + "(race|out-of-bounds|load of shared memory)",
    ),
    in_csrc(
        "one-channel-too-many", _REDUCE,
        "if (c0 + i >= c_count) continue;", "if (c0 + i > c_count) continue;",
        PLACE + "(out-of-bounds|race)",
    ),
    in_csrc(
        "last-chunk-runs-over", _TILE,
        "left_k = k_end - k0 - first.k;", "left_k = k_end - k0 - first.k + 1;",
        PLACE + "(out-of-bounds load|load of 'scratch' at byte .*, which nothing has written)",
    ),
    # ---- alignment
    in_csrc(
        "span-ignores-its-skew", _APPLY,
        "head(static_cast<int>(-base & (V - 1)))", "head(0)",
        PLACE + "misaligned global load of 16 bytes",
    ),
    in_csrc(
        "plane-ignores-its-skew", _REDUCE,
        "const int skew = static_cast<int>((base + begin) % V);", "const int skew = 0;",
        PLACE + "misaligned global load of 16 bytes",
    ),
    in_csrc(
        "vectors-for-any-channels", _PLAN,
        "map.c % most == 0) return most;", "most > 0) return most;",
        PLACE + "misaligned global load of 16 bytes",
    ),
    # ---- something is not written
    in_csrc(
        "last-element-not-written", _APPLY,
        "e < min(stop, length)", "e < min(stop, length) - 1",
        "se_forward: no kernel wrote 'y' at byte",
    ),
    in_csrc(
        "last-position-not-written", _APPLY,
        "if (at < last)\n        body(u, at,", "if (at < last - 1)\n        body(u, at,",
        "se_forward: no kernel wrote 'y' at byte",
    ),
    # ---- races
    in_csrc(
        "two-rows-of-warps-share-a-slot", _REDUCE,
        "partial.st(o * kWarps + warp, s[o]);", "partial.st(o * kWarps + warp / 2, s[o]);",
        PLACE + "race on 'shared memory'",
    ),
    in_csrc(
        "arrival-that-is-not-atomic", _ARRIVAL,
        "const unsigned before = atomic_add(counters + counter, 1u);",
        "const unsigned before = ld(counters + counter);\n"
        "      st(counters + counter, before + 1);",
        PLACE + "race on 'scratch'",
    ),
    in_csrc(
        "finishes-before-the-last-arrival", _ARRIVAL,
        "slot.st(0, before + 1 == static_cast<unsigned>(blocks));",
        "slot.st(0, before + 2 == static_cast<unsigned>(blocks));",
        PLACE + "(race|load of 'scratch' at byte .*, which nothing has written)",
    ),
    in_csrc(
        "counters-not-cleared", _ARRIVAL,
        "if (blockIdx.x == 0 && tid < count) st(counters + tid, 0u);", "(void)tid;",
        PLACE + "atomic of 'scratch' at byte .*, which nothing has written",
    ),
    # ---- warps and blocks out of step
    in_csrc(
        "lanes-leave-before-the-shuffle", _REDUCE,
        "  merge_lanes<Op>(s, 1, kWarp);\n",
        "  if (lane == 31) return;\n  merge_lanes<Op>(s, 1, kWarp);\n",
        PLACE + "(warp operation|a thread exits that others wait for)",
    ),
    in_csrc(
        "idle-lanes-skip-the-shuffle", _REDUCE,
        "merge_lanes<Op>(s, 1, lanes);", "if (p < count) merge_lanes<Op>(s, 1, lanes);",
        PLACE + "(warp operation|a thread exits that others wait for)",
    ),
    in_csrc(
        "barrier-in-a-branch", _TILE,
        "if (count > 0) __syncthreads();", "if (count > 0 && threadIdx.x >= 32) __syncthreads();",
        PLACE + "(divergent barrier|deadlock|race|load of shared)",
    ),
    # ---- launches
    in_csrc(
        "shared-memory-for-one-array", _REDUCE,
        "sizeof(A) * Op::kStaged * plan.tile_planes * hw", "sizeof(A) * plan.tile_planes * hw",
        PLACE + "shared array of .* exceeds the launch's",
        "sk",
    ),
    in_csrc(
        "one-block-short", _REDUCE,
        "blocks_of_threads(plan.blocks, stream)",
        "blocks_of_threads(plan.blocks - (plan.blocks > 1), stream)",
        PLACE + "load of 'scratch' at byte .*, which nothing has written",
    ),
    in_csrc(
        "launch-on-the-default-stream", _APPLY,
        "blocks_of_threads(blocks, stream, shared)",
        "blocks_of_threads(blocks, stream == nullptr ? stream : nullptr, shared)",
        "kernel se_rescale: launch on another stream than the operator's",
    ),
    # ---- traffic
    in_csrc(
        "map-read-twice-in-spans", _APPLY,
        "v[u].load(io, base + e,", "v[u].load(io, base + e, 0), v[u].load(io, base + e,",
        "x: .* bytes in loads, expected",
    ),
    in_csrc(
        "map-read-twice-in-rows", _APPLY,
        "v[u].load(io, offset,", "v[u].load(io, offset, 0), v[u].load(io, offset,",
        "x: .* bytes in loads, expected",
    ),
    in_csrc(
        "map-read-twice-in-tiles", _REDUCE,
        "  const int vectors = length / V;\n",
        "  const int vectors = length / V;\n"
        "  for (int i = tid; i < vectors; i += kThreads)\n"
        "    (void)load_vec<V>(io.in[0] + base + i * V);\n",
        "x: .* bytes in loads, expected",
    ),
)  # fmt: skip
