"""What a call comes to, decided once: the forward runs it, and `explain` prints it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from chattn_cuda import backends, compiled, ops
from chattn_cuda.explanation import Explanation, explain_call
from chattn_cuda.functional import checked
from chattn_cuda.functional.common import exported_plainly, from_map, run

__all__ = ["Decision"]


class Decision(NamedTuple):
    """A call whose arguments were checked.

    Attributes:
        name: Of the function or module, in explanations.
        requested: The ``backend=`` argument.
        x: The map (N, C, H, W).
        uncovered: Why the operators do not cover the call; None where they do.
        block: Of the operators.
        tensors: What they take beside the map, in a type that they take.
        constants: And behind these.
        formulas: ``formulas()`` gives y and the gate in plain PyTorch.
        fallback: What runs a call that is not covered: "reference", the formulas, or "eager", the
            module's own submodules.
        fusible: Whether the rule of `chattn_cuda.compiled` is for it.
        notes: ``notes()`` gives, by backend, what it does besides.
        as_given: Whether the tensors are those of the caller, in their own type.
    """

    name: str
    requested: str
    x: Tensor
    uncovered: str | None
    block: str = ""
    tensors: Sequence[Tensor | None] = ()
    constants: tuple[Any, ...] = ()
    formulas: Callable[[], tuple[Tensor, Tensor]] | None = None
    fallback: str = "reference"
    fusible: bool = True
    notes: Callable[[], Mapping[str, str]] | None = None
    as_given: bool = False

    @property
    def backend(self) -> str:
        """The name of the backend.

        Raises:
            ValueError: None by that name, or it cannot run here.
        """
        return backends.select(self.requested, self.x.device.type, self.x.dtype)

    @property
    def takes_formulas(self) -> bool:
        """Whether the formulas run, or are what a graph gets that is being made."""
        if self.uncovered is not None or exported_plainly(self.requested):
            return True
        tensors = (self.x, *self.tensors)
        return self.fusible and compiled.takes_formula(self.requested, self.x.device.type, tensors)

    def finish(
        self, x: Tensor, channel_dim: int, return_gate: bool, key: checked.Key | None = None
    ) -> Any:
        """Run the call; what a function returns for the ``x`` that it was given.

        Args:
            x: Of any rank.
            channel_dim: Where its channels are.
            return_gate: Whether the gate is returned, too.
            key: Under which `checked` may keep what was found.
        """
        backend = self.backend
        if self.takes_formulas:
            assert self.formulas is not None
            y, gate = self.formulas()
            y = ops.in_format_of(self.x, y)
        else:
            if key is not None and self.as_given:
                checked.remember(key, backend, *self.constants)
            y, gate = run(self.block, backend, self.x, self.tensors, self.constants)
        y = from_map(y, x, channel_dim)
        return (y, gate) if return_gate else y

    def explain(self) -> Explanation:
        """What `chattn_cuda.explain` says."""
        device, note = self.x.device.type, None
        if self.fusible:
            note = compiled.note(self.requested, device, (self.x, *self.tensors))
        return explain_call(
            self.name, self.requested, device, self.x.dtype, self.uncovered, self.fallback,
            self.notes and self.notes(), note,
        )  # fmt: skip
