"""Changed copies of csrc/ and of the zoo: every barrier deleted in turn, and bugs planted by hand.

for mutant in [*barriers(CSRC), *BUGS]:
    library = direct.build(mutant.block, mutant.apply())
"""

from __future__ import annotations

import functools
import hashlib
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from tests.cuda_host import build, direct
from tests.cuda_host.problems import PROBLEMS

CSRC = build.ROOT / "csrc"
ZOO = build.HERE / "zoo"
FOLDER = build.BUILD / "mutants"

BARRIER = re.compile(
    r"(?<!\w)(?:__syncthreads|__syncwarp|__threadfence|(?:cluster|grid)_sync\w*)\([^()]*\)"
)
#: the device API for nvcc: it makes the barriers out of instructions, and g++ does not compile it
NOT_COMPILED = ("device.cuh", "device_cuda.cuh", "device_grid.cuh")
#: what the runtime says of a fault: kernel, file and line, block and thread
PLACE = r"kernel \w+, [\w.]+:\d+, block \(.*\), thread \(.*\): "


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        name: Of the test.
        tree: The folder that is copied, CSRC or ZOO.
        file: The file, relative to the tree.
        old: The text to replace; the test fails if the file no longer holds it.
        new: What takes its place.
        noticed: A regular expression that the error must match.
        offset: Where `old` begins; None if it occurs once.
    """

    name: str
    tree: Path
    file: str
    old: str
    new: str
    noticed: str
    offset: int | None = None

    def text(self) -> str:
        """The changed file."""
        source = (self.tree / self.file).read_text()
        at = self.offset
        if at is None:
            count = source.count(self.old)
            assert count == 1, (
                f"{self.file} holds {count} times, not once, the text that the mutant "
                f"{self.name!r} replaces; adapt tests/cuda_host/mutation.py:\n{self.old}"
            )
            at = source.index(self.old)
        assert source.startswith(self.old, at), f"{self.file} has changed since the test began"
        return source[:at] + self.new + source[at + len(self.old) :]

    @property
    def block(self) -> str:
        """The first block whose kernels include the file: it is the one that shows the bug."""
        for block in PROBLEMS:
            if self.tree / self.file in includes(direct.kernels(block, self.tree), self.tree):
                return block
        raise AssertionError(f"no block in tests/cuda_host/problems.py includes {self.file}")

    def apply(self) -> Path:
        """A copy of the tree with the change; the same place for the same contents."""
        return copy_of(self.tree, {self.file: self.text()})


@functools.cache
def includes(source: Path, tree: Path) -> frozenset[Path]:
    """A file of a tree and all of the tree's that it includes."""
    found, new = {source}, [source]
    while new:
        names = re.findall(r'^#include "(.+?)"', new.pop().read_text(), re.MULTILINE)
        more = {tree / name for name in names if (tree / name).exists()} - found
        found |= more
        new += more
    return frozenset(found)


def copy_of(tree: Path, changed: dict[str, str]) -> Path:
    """A copy of a tree with other contents of some files."""
    files = {str(p.relative_to(tree)): p for p in sorted(tree.rglob("*")) if p.is_file()}
    contents = {n: changed.get(n, "").encode() or p.read_bytes() for n, p in files.items()}
    digest = hashlib.sha256()
    for name, content in contents.items():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    target = FOLDER / f"{tree.name}-{digest.hexdigest()[:12]}"
    if not target.exists():
        partial = target.with_name(target.name + ".part")
        shutil.rmtree(partial, ignore_errors=True)
        for name, content in contents.items():
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            (partial / name).write_bytes(content)
        partial.rename(target)
    target.touch()
    return target


def remove_old_copies() -> None:
    """Forget the copies that no test has asked for lately."""
    for path in FOLDER.glob("*-*") if FOLDER.exists() else ():
        if time.time() - path.stat().st_mtime > 24 * 3600:
            shutil.rmtree(path)


# ---- barriers -----------------------------------------------------------------------------------
def _without_comments(source: str) -> str:
    """The same length, with spaces for comments."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return re.sub(r"//[^\n]*|/\*.*?\*/", blank, source, flags=re.S)


def barriers(tree: Path, pattern: str = "**/*") -> list[Mutant]:
    """A mutant per barrier that the files of a tree hold."""
    found = []
    for path in sorted(tree.glob(pattern)):
        if path.suffix not in (".cu", ".cuh", ".h", ".cpp") or path.name in NOT_COMPILED:
            continue
        for match in BARRIER.finditer(_without_comments(source := path.read_text())):
            line = source.count("\n", 0, match.start()) + 1
            name = f"{path.name}-{line}-{match[0].split('(')[0]}"
            file = str(path.relative_to(tree))
            # A block may also come to read what others have not written yet.
            place = rf"{PLACE}|which nothing has written|no kernel wrote"
            found.append(Mutant(name, tree, file, match[0], "(void)0", place, match.start()))
    return found


# ---- bugs ---------------------------------------------------------------------------------------
def _csrc(name: str, file: str, old: str, new: str, noticed: str) -> Mutant:
    return Mutant(name, CSRC, file, old, new, noticed)


_APPLY, _REDUCE = "engine/cuda/apply.cuh", "engine/cuda/reduce.cuh"
_MATMUL, _PLAN, _MLP = "engine/cuda/matmul.cuh", "engine/cuda/plan.h", "gates/mlp_cuda.cuh"
_ARRIVAL, _SE = "engine/cuda/arrival.cuh", "gates/se_cuda_impl.cuh"
_STAGE, _CONV = "gates/eca_stage_cuda.cuh", "gates/conv1d_cuda.cuh"

#: One line each, as a tired person types them.
BUGS = (
    # ---- off by one
    _csrc(
        "tile-reads-past-the-map", _REDUCE,
        "const int vectors = length / V;", "const int vectors = length / V + 1;",
        PLACE + "out-of-bounds (load|shared store)",
    ),
    _csrc(
        "span-ends-late", _APPLY,
        "i < e + V && i < length; ++i", "i < e + V && i <= length; ++i",
        PLACE + "(race|out-of-bounds|load of shared memory that was never written)",
    ),
    _csrc(
        "rows-end-late", _APPLY,
        "i < end; i += kRows", "i <= end; i += kRows",
        PLACE + "(race|out-of-bounds)",
    ),
    _csrc(
        "one-sample-too-many", _MLP,
        "{ return n0 + m < shape.n && j0 + j < shape.rd; }",
        "{ return n0 + m <= shape.n && j0 + j < shape.rd; }",
        PLACE + "(out-of-bounds|race)",
    ),
    _csrc(
        "one-hidden-unit-too-many", _MLP,
        "{ return n0 + m < shape.n && j0 + j < shape.rd; }",
        "{ return n0 + m < shape.n && j0 + j <= shape.rd; }",
        PLACE + "(out-of-bounds|race)",
    ),
    _csrc(
        "one-channel-too-many", _REDUCE,
        "if (c0 + i >= c_count) continue;", "if (c0 + i > c_count) continue;",
        PLACE + "(out-of-bounds|race)",
    ),
    _csrc(
        "last-chunk-runs-over", _MATMUL,
        "if (k0 + k < k_end && operand.has(i)) next[q] += operand.part(i, k0 + k, part);",
        "if (k0 + k <= k_end && operand.has(i)) next[q] += operand.part(i, k0 + k, part);",
        PLACE + "(out-of-bounds load|load of 'scratch' at byte .*, which nothing has written)",
    ),
    # ---- alignment
    _csrc(
        "span-ignores-its-skew", _APPLY,
        "const int skew = static_cast<int>(base % V);", "const int skew = 0;",
        PLACE + "misaligned global load of 16 bytes",
    ),
    _csrc(
        "plane-ignores-its-skew", _REDUCE,
        "const int skew = static_cast<int>((base + begin) % V);", "const int skew = 0;",
        PLACE + "misaligned global load of 16 bytes",
    ),
    _csrc(
        "vectors-for-any-channels", _PLAN,
        "if (!map.channels_last || map.c % widest == 0) return widest;", "return widest;",
        PLACE + "misaligned global load of 16 bytes",
    ),
    # ---- something is not written
    _csrc(
        "last-element-not-written", _APPLY,
        "i < e + V && i < length; ++i", "i < e + V && i < length - 1; ++i",
        "se_forward: no kernel wrote 'y' at byte",
    ),
    _csrc(
        "last-position-not-written", _APPLY,
        "i < end; i += kRows", "i < end - 1; i += kRows",
        "se_forward: no kernel wrote 'y' at byte",
    ),
    _csrc(
        "peak-not-written", _MLP,
        "if (store) st(peak + i, t);", "",
        "se_forward: no kernel wrote 'peak' at byte 0",
    ),
    _csrc(
        "bias-gradient-of-first-tile-only", _MLP,
        "if (c0 + i < c && j0 == 0) a.db2.put(c0 + i, v);",
        "if (c0 + i < c && j0 == 0 && c0 == 0) a.db2.put(c0 + i, v);",
        "se_backward: no kernel wrote 'db2' at byte [1-9]",
    ),
    _csrc(
        "reads-partial-sums-that-nobody-left", _MLP,
        "const Partials<A> left{parts, splits, stride};",
        "const Partials<A> left{parts, splits + 1, stride};",
        PLACE + "(race on 'scratch'|load of 'scratch' at byte)",
    ),
    # ---- races
    _csrc(
        "every-tile-writes-pooled", _MLP,
        "rows.store = j0 == 0;", "rows.store = true;",
        PLACE + "race on '(pooled|dz|scratch)'",
    ),
    _csrc(
        "two-rows-of-warps-share-a-slot", _REDUCE,
        "partial.st(o * kWarps + warp, s[o]);", "partial.st(o * kWarps + warp / 2, s[o]);",
        PLACE + "race on 'shared memory'",
    ),
    _csrc(
        "arrival-that-is-not-atomic", _ARRIVAL,
        "const unsigned before = atomic_add(counters + counter, 1u);",
        "const unsigned before = ld(counters + counter);\n"
        "      st(counters + counter, before + 1);",
        PLACE + "race on 'scratch'",
    ),
    _csrc(
        "finishes-before-the-last-arrival", _ARRIVAL,
        "slot.st(0, before + 1 == static_cast<unsigned>(blocks));",
        "slot.st(0, before + 2 == static_cast<unsigned>(blocks));",
        PLACE + "(race|load of 'scratch' at byte .*, which nothing has written)",
    ),
    _csrc(
        "counters-not-cleared", _ARRIVAL,
        "if (blockIdx.x == 0 && tid < count) st(counters + tid, 0u);", "(void)tid;",
        PLACE + "atomic of 'scratch' at byte .*, which nothing has written",
    ),
    # ---- warps and blocks out of step
    _csrc(
        "lanes-leave-before-the-shuffle", _REDUCE,
        "  if (me < end - tail) fold_one(tail + me);\n",
        "  if (me < end - tail) fold_one(tail + me);\n  if (lane == 31) return;\n",
        PLACE + "(warp operation|a thread exits that others wait for)",
    ),
    _csrc(
        "idle-lanes-skip-the-shuffle", _REDUCE,
        "merge_lanes<Op>(s, 1, lanes);", "if (p < count) merge_lanes<Op>(s, 1, lanes);",
        PLACE + "(warp operation|a thread exits that others wait for)",
    ),
    _csrc(
        "barrier-in-a-branch", _MATMUL,
        "      __syncthreads();\n      if (Prefetch", "      if (tid >= 32) __syncthreads();\n"
        "      if (Prefetch",
        PLACE + "(divergent barrier|deadlock|race|load of shared)",
    ),
    # ---- launches
    _csrc(
        "shared-memory-for-one-array", _REDUCE,
        "sizeof(A) * Op::kStaged * plan.tile_planes * hw", "sizeof(A) * plan.tile_planes * hw",
        PLACE + "shared array of .* exceeds the launch's",
    ),
    _csrc(
        "one-block-short", _REDUCE,
        "config.grid = dim3(static_cast<unsigned>(plan.blocks));",
        "config.grid = dim3(static_cast<unsigned>(plan.blocks - (plan.blocks > 1)));",
        PLACE + "load of 'scratch' at byte .*, which nothing has written",
    ),
    _csrc(
        "launch-on-the-default-stream", _APPLY,
        "  config.stream = stream;\n", "  (void)stream;\n",
        "kernel se_rescale: launch on another stream than the operator's",
    ),
    # ---- wrong numbers, seen by the comparison only
    _csrc(
        "mean-of-two-maxima", _MLP,
        "v = A(0.5) * (v + t);", "v = A(0.5) * (t + t);",
        "pooled: max-abs error",
    ),
    _csrc(
        "ties-of-the-maximum-not-shared", _MLP,
        "dp / count.sum(plane)", "dp / (count.sum(plane) + 1)",
        "dx: max-abs error",
    ),
    # ---- traffic
    _csrc(
        "map-read-twice-in-spans", _APPLY,
        "v[q] = load_stream<V>(io.in[q] + from + e);",
        "v[q] = load_stream<V>(io.in[q] + from + e), v[q] = load_stream<V>(io.in[q] + from + e);",
        "x: .* bytes in loads, expected",
    ),
    _csrc(
        "map-read-twice-in-rows", _APPLY,
        "v[q] = load_stream<V>(io.in[q] + offset + io.skipped_in(row));",
        "v[q] = load_stream<V>(io.in[q] + offset), v[q] = load_stream<V>(io.in[q] + offset);",
        "x: .* bytes in loads, expected",
    ),
    _csrc(
        "map-read-twice-in-tiles", _REDUCE,
        "  const int vectors = length / V;\n",
        "  const int vectors = length / V;\n"
        "  for (int i = tid; i < vectors; i += kThreads)\n"
        "    (void)load_vec<V>(io.in[0] + base + i * V);\n",
        "x: .* bytes in loads, expected",
    ),
    # ---- efficient channel attention
    _csrc(
        "stage-ignores-its-skew", _STAGE,
        "skew = static_cast<int>(base % V);", "skew = 0;",
        PLACE + "misaligned global load of 16 bytes",
    ),
    _csrc(
        "stage-loads-past-its-end", _STAGE,
        "q < length; ++q)\n          words.st", "q <= length; ++q)\n          words.st",
        PLACE + "out-of-bounds load of 4 bytes at byte .* of buffer 'x'",
    ),
    _csrc(
        "one-mean-too-many", _STAGE,
        "if (p >= 0 && p < channels) st(a.pooled", "if (p >= 0 && p <= channels) st(a.pooled",
        PLACE + "(out-of-bounds store|race on 'pooled')",
    ),
    _csrc(
        "mean-not-written", _STAGE,
        "if (p >= 0 && p < channels) st(a.pooled + plane + p, sum / conv.hw);", "",
        "eca_forward: no kernel wrote 'pooled' at byte 0",
    ),
    _csrc(
        "own-mean-for-a-neighbour's", _STAGE,
        "means.at_rank(rank).ld(", "means.ld(",
        PLACE + "load of shared memory that was never written",
    ),
    _csrc(
        "block-barrier-before-the-exchange", _STAGE,
        "cluster_sync();\n\n  const Shared<A> gates", "__syncthreads();\n\n  const Shared<A> gates",
        PLACE + "access to the shared memory of block rank .*, which may not have started",
    ),
    _csrc(
        "exchange-that-publishes-nothing", _STAGE,
        "cluster_sync();\n\n  const Shared<A> gates",
        "cluster_sync_relaxed();\n\n  const Shared<A> gates",
        PLACE + "race on 'shared memory'",
    ),
    _csrc(
        "leaves-while-others-read", _STAGE,
        "cluster_sync();\n\n  for (int i = tid; i < own.count()",
        "__syncthreads();\n\n  for (int i = tid; i < own.count()",
        PLACE + "(a block exits with no cluster barrier|access to the shared .*, which has exited)",
    ),
    _csrc(
        "map-read-twice-in-stage", _STAGE,
        "  own.load(a.x);\n", "  own.load(a.x);\n  own.load(a.x);\n",
        "x: .* bytes in loads, expected",
    ),
    _csrc(
        "window-one-short", _CONV,
        "width = p.channels + steps - 1;", "width = p.channels + steps - 2;",
        PLACE + "(load of shared memory that was never written|race on 'shared memory')",
    ),
    _csrc(
        "no-room-for-taps", _CONV,
        "kConvShared = kApplySamples * kConvWindow + kTapsAtOnce",
        "kConvShared = kApplySamples * kConvWindow",
        PLACE + "out-of-bounds shared store",
    ),
    _csrc(
        "last-tap-not-written", _CONV,
        "if (tid < taps) {", "if (tid < taps - 1) {",
        PLACE + "load of 'scratch' at byte .*, which nothing has written",
    ),
)  # fmt: skip


def _zoo(name: str, old: str, new: str, noticed: str) -> Mutant:
    return Mutant(name, ZOO, "correct.cu", old, new, noticed)


#: The same for what csrc/ does not use yet.
ZOO_BUGS = (
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
