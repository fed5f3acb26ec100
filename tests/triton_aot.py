"""Compiles the Triton kernels ahead of time, as a GPU's first calls would; no GPU needed.

    python tests/triton_aot.py 90

prints one JSON object per kernel compiled for sm_90. The launches are those that `se_forward` and
`se_backward` make for the cases below, with tensors on the meta device. It must run in a process
without TRITON_INTERPRET.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from chattn_cuda.triton import host, se
from chattn_cuda.triton.kernels.activations import codes
from chattn_cuda.triton.launch import WARPS

_POINTEES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
}
_DTYPES = {name: dtype for dtype, name in _POINTEES.items()}


class Case(NamedTuple):
    shape: tuple[int, int, int, int]
    rd: int  # 0: one layer
    dtype: str
    channels_last: bool = False
    add_maxpool: bool = False
    act: int = 1
    gate: int = 10
    bias: bool = True
    weights: str | None = None


# A stage of an SE-ResNet-50 with long rows, the one with short rows and wide weights, odd sizes.
_LONG = ((8, 256, 56, 56), 16)
_SHORT = ((256, 2048, 7, 7), 128)
_ODD = ((3, 17, 19, 19), 3)
_SMALL = ((8, 64, 8, 8), 16)
_HUGE = ((1, 2, 40000, 40000), 1)  # more than 2^31 elements
# The rarer classes are compiled for one architecture.
_ALL_ON = 90


def cases(arch: int) -> Iterator[Case]:
    for channels_last in (False, True):
        for dtype in ("fp32", "bf16"):
            yield Case(*_LONG, dtype, channels_last)
            yield Case(*_SHORT, dtype, channels_last)
        yield Case(*_LONG, "fp64", channels_last)
        yield Case(*_ODD, "fp32", channels_last)
        yield Case(*_SHORT, "bf16", channels_last, add_maxpool=True)
        yield Case(_SMALL[0], 0, "bf16", channels_last, act=0)
    if arch != _ALL_ON:
        return
    for channels_last in (False, True):
        yield Case(*_LONG, "fp16", channels_last)
        yield Case(*_SHORT, "fp64", channels_last)
        yield Case(*_LONG, "fp32", channels_last, add_maxpool=True)
        yield Case(*_ODD, "fp64", channels_last, add_maxpool=True)
        yield Case(*_HUGE, "bf16", channels_last)
    yield Case(*_SMALL, "fp32", bias=False)
    for dtype in ("fp32", "fp64"):
        yield Case(_SMALL[0], 0, dtype, act=0, gate=11, add_maxpool=True)
    yield Case(*_SMALL, "bf16", weights="fp32")
    for dtype in ("fp32", "fp64"):
        for act in codes:
            yield Case(*_SMALL, dtype, act=act)
    for gate in (0, 1, 11, 12):
        yield Case(*_SMALL, "fp32", gate=gate)


def launches(case: Case) -> list[host.Launch]:
    n, c, _, _ = case.shape
    fmt = torch.channels_last if case.channels_last else torch.contiguous_format
    x = torch.empty(case.shape, dtype=_DTYPES[case.dtype], device="meta", memory_format=fmt)
    w2 = x.new_empty((c, case.rd or c), dtype=_DTYPES[case.weights or case.dtype])
    weight = w2.new_empty(case.rd, c) if case.rd else None
    bias = (None, w2.new_empty(c) if case.bias else None)
    if weight is not None and case.bias:
        bias = (w2.new_empty(case.rd), bias[1])
    how = (case.act, 0.01, case.gate, case.add_maxpool)
    out, forward = se.forward_launches(x, weight, bias[0], w2, bias[1], *how)
    dgate = x.new_empty((n, c), dtype=out[4].dtype) if not case.bias else None
    _, backward = se.backward_launches(x, dgate, x, *out[1:], weight, w2, *how, True, True)
    return forward + backward


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


def main(arch: int) -> None:
    done = set()
    for case in cases(arch):
        for launch in launches(case):
            src = source(launch)
            if (key := src.hash()) in done:
                continue
            done.add(key)
            target = GPUTarget("cuda", arch, 32)
            kernel = triton.compile(src, target=target, options={"num_warps": WARPS})
            ptx = kernel.asm["ptx"]
            record = {
                "kernel": launch.kernel.__name__,
                "case": case._asdict(),
                "loads": re.findall(r"\bld\.global\.(\S+)", ptx),
                "stores": re.findall(r"\bst\.global\.(\S+)", ptx),
                "forbidden": re.findall(r"\b(?:atom|red)\.\S+|\bw?g?mma\.\S+", ptx),
                "shared": kernel.metadata.shared,
                **resources(kernel.asm["cubin"]),
            }
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
