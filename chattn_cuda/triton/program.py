"""What an operator does for one kind of call: worked out once, then repeated.

A block plans its operators with tensors that have no memory: what to allocate and to launch follows
from shapes, strides, types and constants. `Operator` keeps a `Program` for each set of them. The
first call of a program launches through Triton, which compiles; later ones take the way of
`direct.py` where nothing speaks against it.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel

from . import direct, host
from .kernels.activations import INTERPRETED
from .plan import WARPS

__all__ = ["Operator", "Program"]

_MAX_PROGRAMS = 1024  # of an operator; with more kinds of calls it begins anew

Plan = Callable[..., tuple[Any, list[host.Launch]]]


class Operator:
    """An operator, from its plan.

    Attributes:
        plan: ``plan(*args)`` returns the outputs, not yet computed, and the launches that do. It
            gets maps that are dense in one memory format, and other tensors contiguous.
        programs: Those of earlier calls; None where there is nothing to launch.
    """

    def __init__(self, plan: Plan, maps: Sequence[str], like: str) -> None:
        """``maps``: names of the maps, which get the format of ``like``: a map or a flag."""
        self.plan = plan
        self.programs: dict[tuple[Any, ...], Program | None] = {}
        self._maps, self._like = maps, like
        self._parameters = inspect.signature(plan).parameters
        self._defaults = tuple(p.default for p in self._parameters.values())
        self._key = direct.key_function(self._parameters)

    def __call__(self, *args: Any) -> Any:
        """The operator's results."""
        if len(args) < len(self._defaults):  # torch leaves out what has its default
            args += self._defaults[len(args) :]
        key = self._key(*args)
        try:
            program = self.programs[key]
        except KeyError:
            program = self.program(args)
            if len(self.programs) >= _MAX_PROGRAMS:
                self.programs.clear()
            self.programs[key] = program
        return self.plan(*args)[0] if program is None else program.call(*args)

    def program(self, args: Sequence[Any]) -> Program | None:
        """The program for such arguments; None where there is nothing to launch."""
        arguments = dict(zip(self._parameters, args, strict=True))
        like = arguments[self._like]
        if isinstance(like, (list, tuple)):
            like = like[0]
        channels_last = like if isinstance(like, bool) else host.is_channels_last(like)
        inputs: dict[str, Input] = {}

        def dense(expression: str, t: Tensor, is_map: bool) -> Tensor:
            made = inputs[expression] = Input(t, host.memory_format(channels_last and is_map))
            return made.dense

        for name, a in arguments.items():
            is_map = name in self._maps
            if isinstance(a, Tensor):
                arguments[name] = dense(name, a, is_map)
            elif isinstance(a, (list, tuple)):
                arguments[name] = [dense(f"{name}[{i}]", t, is_map) for i, t in enumerate(a)]
        outputs, launches = self.plan(**arguments)
        if not launches:
            return None
        return Program(tuple(self._parameters), inputs, outputs, launches)


class Input:
    """A tensor that an operator is given.

    Attributes:
        device: Where it is.
        memory_format: What to copy it into first; None where it is dense already.
        dense: What the plan sees of it.
    """

    def __init__(self, t: Tensor, memory_format: torch.memory_format) -> None:
        self.device = t.device
        is_dense = t.is_contiguous(memory_format=memory_format)
        self.memory_format = None if is_dense else memory_format
        self.dense = torch.empty_like(t, device="meta", memory_format=memory_format)

    def take(self, t: Tensor) -> Tensor:
        """``t``, or a copy."""
        return t if self.memory_format is None else t.contiguous(memory_format=self.memory_format)


class Program:
    """The calls of one key.

    Attributes:
        call: ``call(*args)`` takes the operator's arguments and returns its results.
        parameters: Their names.
        inputs: The tensors among them, by the expression that names each.
        outputs: What is returned, without memory.
        container: How: ``tuple`` or ``list``, or ``Tensor`` for a lone one.
        scratch: Arrays that only the launches use, without memory.
        launches: With these tensors in place of real ones.
        device: Where it all happens.
    """

    def __init__(
        self,
        parameters: Sequence[str],
        inputs: dict[str, Input],
        outputs: Tensor | Sequence[Tensor],
        launches: Sequence[host.Launch],
    ) -> None:
        self.call: Callable[..., Any] = self.choose
        self.parameters = parameters
        self.inputs = inputs
        self.outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        self.container: Callable[[list[Tensor]], Any] = type(outputs)
        self.launches = launches
        self._places: dict[int, int] = {}
        self.scratch: list[Tensor] = []
        for t in (*(i.dense for i in inputs.values()), *self.outputs):
            self._places[_identity(t)] = len(self._places)
        for launch in launches:
            for t in launch.tensors():
                if _identity(t) not in self._places:
                    self._places[_identity(t)] = len(self._places)
                    self.scratch.append(t)
        self.device = _common_device([i.device for i in inputs.values()])
        self._direct: dict[tuple[bool, ...], Callable[..., Any]] = {}

    def place(self, t: Tensor) -> int:
        """The number of one of the launches' tensors: inputs, then outputs, then scratch."""
        return self._places[_identity(t)]

    def choose(self, *args: Any) -> Any:
        """Launch directly where that was prepared for such addresses, else through Triton."""
        with _running_on(self.device):
            dense, given = self._dense(args)
            prepared = self._direct.get(_alignment(given))
            if prepared is None or self.watched():
                return self.through_triton(*dense)
            return prepared(*dense)

    def through_triton(self, *args: Any) -> Any:
        """Launch by Triton's own means, and prepare for launching directly."""
        _, given = self._dense(args)
        made = [
            torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=self.device)
            for t in (*self.outputs, *self.scratch)
        ]
        tensors = [*given, *made]

        def real(a: Any) -> Any:
            if isinstance(a, tuple):
                return tuple(map(real, a))
            return tensors[self.place(a)] if isinstance(a, Tensor) else a

        kernels = [
            kernel[(programs,)](*map(real, args), num_warps=WARPS)
            for kernel, programs, args in self.launches
        ]
        # They are not in the interpreter, nor where a hook or another thread compiles.
        if all(isinstance(k, CompiledKernel) for k in kernels) and not self.watched():
            aligned = _alignment(given)
            self._direct[aligned] = direct.function(self, aligned, kernels)
            if all(aligned):
                self.call = self._direct[aligned]
        outputs = made[: len(self.outputs)]
        return outputs[0] if self.container is Tensor else self.container(outputs)

    def _dense(self, args: Sequence[Any]) -> tuple[list[Any], list[Tensor]]:
        """The arguments with their tensors dense, and these."""
        dense: list[Any] = []
        tensors: list[Tensor] = []

        def take(expression: str, t: Tensor) -> Tensor:
            tensors.append(self.inputs[expression].take(t))
            return tensors[-1]

        for name, a in zip(self.parameters, args, strict=True):
            if isinstance(a, (list, tuple)):
                dense.append([take(f"{name}[{i}]", t) for i, t in enumerate(a)])
            else:
                dense.append(take(name, a) if isinstance(a, Tensor) else a)
        return dense, tensors

    def watched(self) -> bool:
        """Whether something wants to see launches or memory, or changes what is compiled."""
        runtime = knobs.runtime
        for hook in (runtime.launch_enter_hook, runtime.launch_exit_hook):
            if hook is not None and getattr(hook, "calls", True):
                return True
        for kernel, _, _ in self.launches:
            if kernel.pre_run_hooks:
                return True
        return bool(
            runtime.debug
            or knobs.compilation.instrumentation_mode
            or getattr(runtime, "add_stages_inspection_hook", None)
            or torch._C._get_deterministic_algorithms()  # they may fill new memory
        )


def _identity(t: Tensor) -> int:
    """The same for a tensor and its views: the kernels see no more of them than the address."""
    return t.untyped_storage()._cdata


def _alignment(tensors: Sequence[Tensor]) -> tuple[bool, ...]:
    """Which of the tensors are aligned."""
    return tuple(t.data_ptr() % direct.ALIGNMENT == 0 for t in tensors)


def _common_device(devices: Sequence[torch.device]) -> torch.device:
    """The device of all tensors, on which the kernels must be able to run."""
    device = devices[0]
    for other in devices:
        if other != device:
            raise RuntimeError(
                "chattn_cuda's Triton kernels need all tensors on one device, got "
                f"{device} and {other}"
            )
    if device.type != "cuda" and not INTERPRETED.value:
        raise RuntimeError(
            f"chattn_cuda's Triton kernels run on CUDA tensors, got a tensor on {device}; for "
            "CPU tensors set the environment variable TRITON_INTERPRET=1 before Python starts "
            "(slow, for tests)"
        )
    return device


def _running_on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    if INTERPRETED.value:
        import numpy

        return numpy.errstate(all="ignore")  # Inf and NaN are results here, as on a GPU
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
