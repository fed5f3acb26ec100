"""Launching without Triton's look at every argument.

What Triton compiles depends on the types of a launch's arguments, on the values of some, and on
which addresses are multiples of 16. All but the addresses is part of a program's key. So once a
call has gone through Triton, the next ones need to check the addresses only, and can hand the same
compiled kernels to the driver. They do so in a function written for the program, because at this
rate (a launch takes the host some microseconds) a loop over descriptions of tensors and launches
is what costs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from triton.runtime.driver import driver

if TYPE_CHECKING:
    from .program import Program

__all__ = ["ALIGNMENT", "function", "key_function"]

ALIGNMENT = 16  # of addresses, as far as Triton specialises on it
_FILE = "of chattn_cuda.triton"  # in tracebacks and profiles
_SEGMENT = 256  # where the arrays in the scratch memory start


def key_function(parameters: Mapping[str, inspect.Parameter]) -> Callable[..., tuple[Any, ...]]:
    """``key(*args)``: all that a plan, and what Triton compiles for it, depend on but addresses."""
    tensor = "({0}.shape, {0}.stride(), {0}.dtype, {0}.device)"
    parts = []
    for name, parameter in parameters.items():
        if parameter.annotation == "Tensor":
            parts.append(tensor.format(name))
        elif parameter.annotation == "Tensor | None":
            parts.append(f"None if {name} is None else {tensor.format(name)}")
        elif parameter.annotation == "Sequence[Tensor]":
            parts.append(f"tuple([{tensor.format('t')} for t in {name}])")
        else:  # a number or a flag
            parts.append(name)
    source = f"lambda {', '.join(parameters)}: ({', '.join(parts)},)"
    key: Callable[..., tuple[Any, ...]] = eval(compile(source, f"<key {_FILE}>", "eval"))
    return key


def function(
    program: Program, aligned: Sequence[bool], kernels: Sequence[Any]
) -> Callable[..., Any]:
    """What ``program`` does for inputs of this alignment, with the kernels compiled for it."""
    return _Writer(program, aligned, kernels).function


class _Writer:
    def __init__(self, program: Program, aligned: Sequence[bool], kernels: Sequence[Any]) -> None:
        self.names: dict[str, Any] = {
            "choose": program.choose,
            "through_triton": program.through_triton,
            "watched": program.watched,
            "empty": _allocator(program.device),
            "byte": torch.uint8,
            "current_device": torch.cuda.current_device,
            "current_stream": driver.active.get_current_stream,
        }
        self.lines: list[str] = []
        self.addresses: dict[int, str] = {}  # by place
        self.program = program
        parameters = ", ".join(program.parameters)
        if program.device.index is not None:
            self.lines += [
                f"if current_device() != {program.device.index}:",
                f"    return choose({parameters})",
            ]
        used = {program.place(t) for launch in program.launches for t in launch.tensors()}
        self._check_inputs(used, aligned, f"choose({parameters})")
        self._allocate(used, f"through_triton({parameters})")
        self._launch(kernels)
        results = "".join(f"_o{i}, " for i in range(len(program.outputs)))
        brackets: dict[Any, str] = {Tensor: "_o0", tuple: f"({results})", list: f"[{results}]"}
        self.lines.append(f"return {brackets[program.container]}")

        self.source = "\n    ".join([f"def call({parameters}):", *self.lines]) + "\n"
        exec(compile(self.source, f"<program {_FILE}>", "exec"), self.names)
        self.function: Callable[..., Any] = self.names["call"]
        self.function.__doc__ = self.source

    def _name(self, value: Any) -> str:
        """How the source spells a value."""
        if value is None or isinstance(value, (bool, int)):
            return repr(value)
        for name, known in self.names.items():
            if known is value:
                return name
        name = f"v{len(self.names)}"
        self.names[name] = value
        return name

    def _check_inputs(self, used: set[int], aligned: Sequence[bool], otherwise: str) -> None:
        for i, (expression, given) in enumerate(self.program.inputs.items()):
            if i not in used:
                continue
            self.lines.append(f"_t{i} = {expression}")
            if given.memory_format is not None:
                memory_format = self._name(given.memory_format)
                self.lines.append(f"_t{i} = _t{i}.contiguous(memory_format={memory_format})")
            self.lines.append(f"_a{i} = _t{i}.data_ptr()")
            self.addresses[i] = f"_a{i}"
        # Only `choose` comes here with addresses that are not aligned, and it has looked.
        checked = " | ".join(a for i, a in self.addresses.items() if aligned[i]) or "0"
        self.lines += [f"if ({checked}) % {ALIGNMENT} or watched():", f"    return {otherwise}"]

    def _allocate(self, used: set[int], otherwise: str) -> None:
        first = len(self.program.inputs)
        made = []
        for i, t in enumerate(self.program.outputs):
            how = f"{tuple(t.shape)}, {t.stride()}, {self._name(t.dtype)}"
            self.lines.append(f"_o{i} = empty({how})")
            if first + i in used:
                made.append(f"_b{i}")
                self.lines.append(f"_b{i} = _o{i}.data_ptr()")
                self.addresses[first + i] = f"_b{i}"
        size = 0
        for t in self.program.scratch:
            self.addresses[self.program.place(t)] = f"_m + {size}"
            size += -(-t.numel() * t.element_size() // _SEGMENT) * _SEGMENT
        if size:
            made.append("_m")
            self.lines += [f"_memory = empty(({size},), (1,), byte)", "_m = _memory.data_ptr()"]
        # Memory of torch's allocators is aligned, but others can be plugged in.
        self.lines += [f"if ({' | '.join(made)}) % {ALIGNMENT}:", f"    return {otherwise}"]

    def _launch(self, kernels: Sequence[Any]) -> None:
        self.lines.append(f"_stream = current_stream({self.program.device.index})")
        for (_, programs, args), kernel in zip(self.program.launches, kernels, strict=True):
            self._name(kernel)  # it must outlive the function: it unloads its code when it goes
            compiled = f"{kernel.function}, {self._name(kernel.packed_metadata)}"
            hooks = "None, None, None"
            given = ", ".join(map(self._argument, args))
            self.lines.append(
                f"{self._name(kernel.run)}({programs}, 1, 1, _stream, {compiled}, {hooks}, {given})"
            )

    def _argument(self, a: Any) -> str:
        if isinstance(a, Tensor):
            return self.addresses[self.program.place(a)]
        if isinstance(a, tuple):
            return f"({''.join(self._argument(v) + ', ' for v in a)})"
        return self._name(a)


def _allocator(device: torch.device) -> Callable[..., Tensor]:
    """``empty(shape, stride, dtype)`` on the current device of this type.

    Inductor's, where torch has it: it takes half as long, for want of the dispatcher.
    """
    guards = getattr(torch._C._dynamo, "guards", None)
    quick: Callable[..., Tensor] | None = getattr(guards, f"_empty_strided_{device.type}", None)
    if quick is not None:
        return quick
    return lambda shape, stride, dtype: torch.empty_strided(
        shape, stride, dtype=dtype, device=device
    )
