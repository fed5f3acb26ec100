"""Bugs to plant in the fused tail."""

from __future__ import annotations

from tests.cuda_host.mutation import PLACE, in_csrc

_ELEMENTS, _NUMBERS = "blocks/tail/elements.cuh", "blocks/tail/numbers.cuh"
_ANY, _LAUNCH = "blocks/tail/any.cuh", "blocks/tail/launch.cu"
_APPLY, _MASK = "engine/cuda/apply.cuh", "engine/cuda/mask.cuh"
_WRONG = "(max-abs|relative L2) error"

BUGS = (
    # ---- masks
    in_csrc(
        "mask-bit-of-the-neighbour", _APPLY,
        "mask |= (bit ? 1u : 0u) << k;", "mask |= (bit ? 1u : 0u) << (k ^ 1);",
        f"(dgate|dx): {_WRONG}",
    ),
    in_csrc(
        "halves-of-a-mask's-byte-change-places", _MASK,
        "bits <<= at & 7;", "bits <<= (at + V) & 7;",
        f"(dgate|dx): {_WRONG}",
    ),
    in_csrc(
        "all-threads-write-their-byte-of-the-mask", _MASK,
        "if (lane % kShare != 0) return;", "if (lane > kWarp) return;",
        PLACE + "race on 'mask'",
    ),
    in_csrc(
        "mask-of-the-first-elements-of-a-byte", _MASK,
        "return V >= 8 ? byte : byte >> (at & 7);", "return byte + 0 * (at & 7);",
        f"(dgate|dx): {_WRONG}",
    ),
    in_csrc(
        "mask-shifted-by-a-bit", _ANY,
        "(bit && k < count ? 1u : 0u) << k;", "(bit && k < count ? 2u : 0u) << k;",
        f"(dgate|dx): {_WRONG}",
    ),
    # ---- statistics
    in_csrc(
        "statistics-of-one-sample-too-few", _NUMBERS,
        "const double mean = mean_of(a.of_planes, i, total);",
        "double none[4] = {};\n"
        "      const double mean = mean_of(a.of_planes, i, n > 0 && n + 1 == a.n ? none : total);",
        f"(variance|numbers): {_WRONG}",
    ),
    in_csrc(
        "unshifted-variance", _ELEMENTS,
        "if (s[0] == A(0)) s[1] = x;", "if (s[0] == A(0)) s[1] = A(0);",
        f"(variance|numbers): {_WRONG}",
    ),
    in_csrc(
        "merged-without-the-distance-of-the-first-values", _ELEMENTS,
        "const A d = more[0] == A(0) ? A(0) : more[1] - s[1];", "const A d = 0;",
        f"(variance|numbers): {_WRONG}",
    ),
    in_csrc(
        "first-part-of-a-plane-alone", _NUMBERS,
        "for (int q = 0; q < parts[0].count; ++q)", "for (int q = 0; q < 1; ++q)",
        f"(variance|numbers|pooled): {_WRONG}",
    ),
    in_csrc(
        "samples-apart-without-their-means", _ELEMENTS,
        "s[3] += more[3] + (A(2) * more[2] + more[0] * d) * d;", "s[3] += more[3];",
        f"(variance|numbers): {_WRONG}",
    ),
    in_csrc(
        "last-samples-forgotten", _NUMBERS,
        "r < kTailSamples; ++r", "r < kTailSamples - 1; ++r",
        f"(variance|numbers|dweight|dbias): {_WRONG}",
    ),
    in_csrc(
        "no-room-for-the-norm's-numbers", _LAUNCH,
        "+ sizeof(A) * kNormNumbers", "+ sizeof(A)",
        PLACE + "shared array of 24 elements .* exceeds the launch's",
    ),
    # ---- where planes end
    in_csrc(
        "ragged-planes-end-late", _ANY,
        "if (++in_run < length) return;", "if (++in_run <= length) return;",
        f"y: {_WRONG}|{PLACE}",
    ),
    # ---- gradients
    in_csrc(
        "dx-without-the-slope-term", _ELEMENTS,
        "n[kEach] - lost;", "n[kEach] - 0 * lost;",
        f"dx: {_WRONG}",
    ),
    in_csrc(
        "any-dx-without-the-slope-term", _ANY,
        "- n[kConstant] - lost;", "- n[kConstant] - 0 * lost;",
        f"dx: {_WRONG}",
    ),
    in_csrc(
        "dx-without-the-constant", _LAUNCH,
        "each -= ld(lost + channel);", "each -= 0 * ld(lost + channel);",
        f"dx: {_WRONG}",
    ),
    in_csrc(
        "gradient-of-the-mean-forgotten-by-the-norm", _NUMBERS,
        "dscale += d * (plain ?", "dscale += 0 * d * (plain ?",
        f"(dx|dweight): {_WRONG}",
    ),
    in_csrc(
        "gate's-gradient-without-the-mean", _NUMBERS,
        "dgate *= scale * ld(a.numbers + kTailMean * a.c + c) +", "dgate *=",
        f"dgate: {_WRONG}",
    ),
    in_csrc(
        "sums-of-the-wrong-rows", _LAUNCH,
        "plan.sums > rows ? plan.reduce.splits * planes : 0", "0 * plan.sums",
        f"(dgate|dx|dweight): {_WRONG}",
    ),
    in_csrc(
        "gradient-without-the-residual's-part-of-z", _ANY,
        "f.act.at(n[kGate] * w.value + in[2]).gradient(in[0]);",
        "f.act.at(n[kGate] * w.value).gradient(in[0]);",
        f"(dx|dresidual): {_WRONG}",
    ),
)  # fmt: skip
