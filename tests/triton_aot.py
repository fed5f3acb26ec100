"""Compiles the Triton kernels ahead of time, as a GPU's first calls would; no GPU needed.

    python -m tests.triton_aot 90 all 0 2

prints one JSON object per kernel compiled for sm_90: of all cases (or of the "few"), the
first of two halves. The launches are those that the operators make, with tensors on the meta
device. It must run in a process without TRITON_INTERPRET.
"""

from __future__ import annotations

import importlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from chattn_cuda.triton import host
from chattn_cuda.triton.plan import WARPS
from chattn_cuda.triton.program import Operator
from tests.cases import BLOCKS
from tests.cases.calls import Call, Make
from tests.cases.triton import HUGE, LONG, ODD, SHORT, Compiled, Shape

_POINTEES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float64: "fp64",
    torch.uint8: "u8",
    torch.int64: "i64",
}
_DTYPES = {name: dtype for dtype, name in _POINTEES.items()}
TRITON = {name: block.triton for name, block in BLOCKS.items() if block.triton is not None}
# The rarer classes are compiled for one architecture.
_ALL_ON = 90


def few_cases() -> Iterator[Compiled]:
    """Every kernel, in both layouts and both of the types that matter most."""
    for block in TRITON:
        for channels_last in (False, True):
            yield Compiled(block, LONG, "fp32", channels_last)
            yield Compiled(block, SHORT if channels_last else LONG, "bf16", channels_last)


def all_cases(arch: int) -> Iterator[Compiled]:
    """What users meet."""
    yield from few_cases()
    for kernels in TRITON.values():
        yield from kernels.usual
    if arch == _ALL_ON:
        yield from _rare_in_every_block()
        for kernels in TRITON.values():
            yield from kernels.rare


def _rare_in_every_block() -> Iterator[Compiled]:
    for block in TRITON:
        yield Compiled(block, SHORT, "bf16")
        yield Compiled(block, LONG, "bf16", True)
        for channels_last in (False, True):
            yield Compiled(block, ODD, "fp32", channels_last)
            yield Compiled(block, LONG, "fp16", channels_last)
            yield Compiled(block, LONG, "fp64", channels_last)
            yield Compiled(block, SHORT, "fp32", channels_last)
            yield Compiled(block, SHORT, "fp64", channels_last)
            yield Compiled(block, HUGE, "bf16", channels_last)


def operators(block: str) -> dict[str, Operator]:
    """Those of a block that plan launches."""
    module = importlib.import_module(f"chattn_cuda.triton.{block}")
    return {name: v for name, v in vars(module).items() if isinstance(v, Operator)}


def calls_of(block: str, make: Make, shape: Shape, **options: Any) -> list[Call]:
    """What a block calls, by the names of `operators` and with the arguments of their plans."""
    kernels, known = TRITON[block], operators(block)
    made = kernels.calls(make, shape, **{**kernels.options(shape), **options})
    calls = []
    for name, args in itertools.chain(*made):
        name = kernels.operators.get(name, name)
        calls.append(Call(name, args[: len(known[name]._parameters)]))
    return calls


def launches(case: Compiled) -> list[host.Launch]:
    make = Make(
        _DTYPES[case.dtype],
        torch.channels_last if case.channels_last else torch.contiguous_format,
        weights=_DTYPES[case.weights] if case.weights else None,
        device="meta",
    )
    known = operators(case.block)
    calls = calls_of(case.block, make, case.shape, **case.options)
    return [launch for name, args in calls for launch in known[name].plan(*args)[1]]


def source(launch: host.Launch) -> ASTSource:
    """What Triton's launcher would compile for these arguments."""
    signature: dict[str, Any] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}

    def describe(parameter: Any, path: tuple[int, ...], value: Any) -> Any:
        if value is None or parameter.is_constexpr:
            constants[path] = value
            return "constexpr"
        if isinstance(value, tuple):
            return tuple(describe(parameter, (*path, i), v) for i, v in enumerate(value))
        if isinstance(value, torch.Tensor):  # the allocator aligns to 512 bytes
            attributes[path] = [["tt.divisibility", 16]]
            return "*" + _POINTEES[value.dtype]
        if isinstance(value, float):
            return "fp32"
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


def sources(cases: Iterable[Compiled]) -> Iterator[tuple[Compiled, ASTSource]]:
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
