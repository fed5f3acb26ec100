"""The operators as plain PyTorch operations, for who reads an exported program elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from chattn_cuda import reference
from chattn_cuda.ops.block import activation_of_code, in_format_of
from chattn_cuda.ops.blocks import BLOCKS
from chattn_cuda.ops.calls import operator_of
from chattn_cuda.ops.registration import registered_namespaces

__all__ = ["decompositions"]


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The formulas of this package's operators, for ``ExportedProgram.run_decompositions``.

    Programs that were exported with a named backend call ``torch.ops.chattn_cuda``; whatever does
    not know these operators (ExecuTorch, Core ML, OpenVINO, ``torch.onnx.export`` of a program)
    can read what comes out.

    Returns:
        A new dictionary from operators to functions; merge it with
        ``torch.export.default_decompositions()`` for a program of core ATen operators alone.

    Examples:
        >>> table = torch.export.default_decompositions()
        >>> table.update(chattn_cuda.decompositions())
        >>> program = torch.export.export(model, (x,)).run_decompositions(table)
    """
    found = {}
    for namespace in sorted(registered_namespaces):
        for name, formula in _FORMULAS.items():
            found[operator_of(namespace, name)] = formula
    return found


def _after(
    branches: Sequence[Tensor], prologue: Tensor | None = None, act: int = 1, act_param: float = 0.0
) -> Sequence[Tensor]:
    if prologue is None:
        return branches
    return reference.after_prologue(branches, prologue, activation_of_code(act, act_param))


def _sk_squeeze(branches: Sequence[Tensor], *prologue: Any) -> Tensor:
    return reference.squeeze_branches(_after(branches, *prologue))


def _sk_select(branches: Sequence[Tensor], logits: Tensor, *prologue: Any) -> Tensor:
    y, _ = reference.select_branches(_after(branches, *prologue), logits)
    return in_format_of(branches[0], y)


#: What an exported program calls: gradients come later, from these or from the formulas.
_FORMULAS: dict[str, Callable[..., Any]] = {
    **{f"{block.name}_forward": block.decomposed for block in BLOCKS.values()},
    "sk_squeeze": _sk_squeeze,
    "sk_select": _sk_select,
}
