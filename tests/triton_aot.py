"""Compiles the Triton kernels ahead of time, as a GPU's first calls would; no GPU needed.

    python -m tests.triton_aot 90 all 0 2

prints one JSON object per kernel compiled for sm_90: of all cases below (or of the "few"), the
first of two halves. The launches are those that the operators make, with tensors on the meta
device. It must run in a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from chattn_cuda.reference import accumulation_dtype
from chattn_cuda.triton import eca, host, se, sk
from chattn_cuda.triton.kernels.activations import codes
from chattn_cuda.triton.plan import WARPS

_POINTEES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
}
_DTYPES = {name: dtype for dtype, name in _POINTEES.items()}


class Case(NamedTuple):
    """A call of a block, forward and backward; the options are those of its function below."""

    block: str
    shape: tuple[int, int, int, int]
    dtype: str
    channels_last: bool = False
    options: dict[str, Any] = {}


# A stage of a ResNet-50 with long rows, the one with short rows and wide weights, odd sizes.
_LONG = (8, 256, 56, 56)
_SHORT = (256, 2048, 7, 7)
_ODD = (3, 17, 19, 19)
_SMALL = (8, 64, 8, 8)
_HUGE = (1, 2, 40000, 40000)  # more than 2^31 elements
# Hidden units of the SE blocks there.
_RD = {_LONG: 16, _SHORT: 128, _ODD: 3, _SMALL: 16, _HUGE: 1}
# The rarer classes are compiled for one architecture.
_ALL_ON = 90
# Activations that are more than a product or a comparison.
_TRANSCENDENTAL = (4, 6, 7, 8, 9)


def few_cases() -> Iterator[Case]:
    """Every kernel, in both layouts and both of the types that matter most."""
    for block in LAUNCHES:
        for channels_last in (False, True):
            yield Case(block, _LONG, "fp32", channels_last)
            yield Case(block, _SHORT if channels_last else _LONG, "bf16", channels_last)


def all_cases(arch: int) -> Iterator[Case]:
    """What users meet."""
    yield from few_cases()
    for channels_last in (False, True):
        yield Case("se", _SMALL, "bf16", channels_last, {"one_layer": True})
        yield Case("sk", _LONG, "bf16", channels_last, {"m": 4, "to_mean": False})
        yield Case("sk", _LONG, "bf16", channels_last, {"with_prologue": True})
    if arch == _ALL_ON:
        yield from _rare_in_every_block()
        yield from _rare_se()
        yield from _rare_eca()
        yield from _rare_sk()


def _rare_in_every_block() -> Iterator[Case]:
    for block in LAUNCHES:
        yield Case(block, _SHORT, "bf16")
        yield Case(block, _LONG, "bf16", True)
        for channels_last in (False, True):
            yield Case(block, _ODD, "fp32", channels_last)
            yield Case(block, _LONG, "fp16", channels_last)
            yield Case(block, _LONG, "fp64", channels_last)
            yield Case(block, _SHORT, "fp32", channels_last)
            yield Case(block, _SHORT, "fp64", channels_last)
            yield Case(block, _HUGE, "bf16", channels_last)


def _rare_se() -> Iterator[Case]:
    yield Case("se", _SMALL, "fp32", options={"bias": False})
    yield Case("se", _SMALL, "bf16", options={"weights": "fp32"})
    for dtype in ("fp32", "fp64"):
        options = {"one_layer": True, "gate": 11}
        yield Case("se", _SMALL, dtype, options=options)
        for act in codes if dtype == "fp32" else _TRANSCENDENTAL:
            yield Case("se", _SMALL, dtype, options={"act": act})
    for gate in (0, 1, 11, 12):
        yield Case("se", _SMALL, "fp32", options={"gate": gate})


def _rare_eca() -> Iterator[Case]:
    for channels_last in (False, True):
        options = {"per_channel": True, "to_gate": True}
        yield Case("eca", _SMALL, "fp32", channels_last, options)
    for options in ({"circular": True}, {"gate": 11}, {"weights": "fp32"}):
        yield Case("eca", _SMALL, "bf16", options=options)


def _rare_sk() -> Iterator[Case]:
    for m in (1, 3, 4):
        for channels_last in (False, True):
            yield Case("sk", _LONG, "fp32", channels_last, {"m": m})
    yield Case("sk", _SHORT, "fp32", options={"m": 4})
    yield Case("sk", _SHORT, "fp32", options={"m": 4, "with_prologue": True})
    yield Case("sk", _ODD, "fp32", True, {"m": 3, "with_prologue": True})
    yield Case("sk", _ODD, "fp64", options={"m": 4, "to_mean": False})


def _se(
    x: Tensor,
    one_layer: bool = False,
    act: int = 1,
    gate: int = 10,
    bias: bool = True,
    weights: str | None = None,
) -> list[host.Launch]:
    n, c = x.shape[:2]
    rd = 0 if one_layer else _RD[tuple(x.shape)]
    w2 = x.new_empty((c, rd or c), dtype=_DTYPES[weights] if weights else x.dtype)
    w1 = w2.new_empty(rd, c) if rd else None
    b1 = w2.new_empty(rd) if rd and bias else None
    b2 = w2.new_empty(c) if bias else None
    how = (0 if one_layer else act, 0.01, gate)
    out, forward = se.forward_launches(x, w1, b1, w2, b2, *how)
    dgate = x.new_empty((n, c), dtype=out[3].dtype) if not bias else None
    _, backward = se.backward_launches(x, dgate, x, *out[1:], w1, w2, *how, True, True)
    return forward + backward


def _eca(
    x: Tensor,
    gate: int = 10,
    circular: bool = False,
    per_channel: bool = False,
    to_gate: bool = False,
    weights: str | None = None,
) -> list[host.Launch]:
    shape = (x.shape[1] if per_channel else 1, 1, 5)
    weight = x.new_empty(shape, dtype=_DTYPES[weights] if weights else x.dtype)
    out, forward = eca.forward_launches(x, weight, gate, circular)
    dgate = out[2] if to_gate else None
    how = (gate, circular, True, True)
    return forward + eca.backward_launches(x, dgate, x, *out[1:], weight, *how)[1]


def _sk(
    x: Tensor, m: int = 2, to_mean: bool = True, with_prologue: bool = False
) -> list[host.Launch]:
    """``to_mean``: the mean has a gradient."""
    branches = [x] * m
    acc = accumulation_dtype(x.dtype)
    prologue = x.new_empty((2, m, x.shape[1]), dtype=acc) if with_prologue else None
    pooled, squeeze = sk.squeeze_launches(branches, prologue)
    logits = pooled.new_empty(x.shape[0], m, x.shape[1])
    _, select = sk.select_launches(branches, logits, prologue)
    if with_prologue:
        return squeeze + select  # the rest is as without
    _, dot = sk.dot_launches(x, logits, branches)
    channels_last = host.is_channels_last(x)
    _, gradient = sk.gradient_launches(x, logits, pooled if to_mean else None, channels_last)
    return squeeze + select + dot + gradient


LAUNCHES: dict[str, Callable[..., list[host.Launch]]] = {"se": _se, "eca": _eca, "sk": _sk}


def launches(case: Case) -> list[host.Launch]:
    fmt = torch.channels_last if case.channels_last else torch.contiguous_format
    x = torch.empty(case.shape, dtype=_DTYPES[case.dtype], device="meta", memory_format=fmt)
    return LAUNCHES[case.block](x, **case.options)


def source(launch: host.Launch) -> ASTSource:
    """What Triton's launcher would compile for these arguments."""
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def describe(parameter: Any, path: tuple[int, ...], value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(describe(parameter, (*path, i), v) for i, v in enumerate(value))
        if value is None or parameter.is_constexpr:
            constants[path] = value
            return "constexpr"
        if isinstance(value, torch.Tensor):  # the allocator aligns to 512 bytes
            attributes[path] = [["tt.divisibility", 16]]
            return "*" + _POINTEES[value.dtype]
        if not parameter.do_not_specialize:
            if value == 1:
                constants[path] = 1
                return "constexpr"
            if value % 16 == 0:
                attributes[path] = [["tt.divisibility", 16]]
        return "i32" if -(2**31) <= value < 2**31 else "i64"

    parameters = launch.kernel.params
    assert len(parameters) == len(launch.args), launch.kernel
    for parameter, value in zip(parameters, launch.args, strict=True):
        signature[parameter.name] = describe(parameter, (parameter.num,), value)
    return ASTSource(launch.kernel, signature, constants, attributes)


def _cuobjdump(cubin: bytes, option: str) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def resources(cubin: bytes) -> dict[str, int]:
    """Registers per thread and spill instructions, from the machine code."""
    found = re.search(r"REG:(\d+) STACK:(\d+)", _cuobjdump(cubin, "-res-usage"))
    assert found is not None
    spills = 0
    if int(found[2]):  # a stack may also be there for the call of a division routine
        spills = len(re.findall(r"\b(?:STL|LDL)\b", _cuobjdump(cubin, "-sass")))
    return {"registers": int(found[1]), "spills": spills}


def sources(cases: Iterable[Case]) -> Iterator[tuple[Case, ASTSource]]:
    """What there is to compile, each once."""
    done = set()
    for case in cases:
        for launch in launches(case):
            src = source(launch)
            if (key := src.hash()) not in done:
                done.add(key)
                yield case, src


def main(arch: int, which: str, part: int, parts: int) -> None:
    cases = few_cases() if which == "few" else all_cases(arch)
    for case, src in itertools.islice(sources(cases), part, None, parts):
        target = GPUTarget("cuda", arch, 32)
        kernel = triton.compile(src, target=target, options={"num_warps": WARPS})
        ptx = kernel.asm["ptx"]
        record = {
            "kernel": src.fn.__name__,
            "case": case._asdict(),
            "loads": re.findall(r"\bld\.global\.(\S+)", ptx),
            "stores": re.findall(r"\bst\.global\.(\S+)", ptx),
            "forbidden": re.findall(r"\b(?:atom|red)\.\S+|\bw?g?mma\.\S+", ptx),
            "shared": kernel.metadata.shared,
            **resources(kernel.asm["cubin"]),
        }
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:5]))
