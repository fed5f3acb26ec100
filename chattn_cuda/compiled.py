"""What a block hands to torch.compile: its operator, or its formula for Inductor to fuse.

To Inductor an operator is a wall: a batch norm in front of it is written to memory, and what
follows reads the result again. The formula of squeeze-and-excitation and its relatives falls apart
into a reduction that joins what comes before and a product that joins what comes after.
docs/design.md has the counts and the measurements behind `RULE`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

__all__ = ["RULE", "RULE_OF_TAILS", "has_gradients", "is_exporting", "note", "takes_formula"]

RULE: dict[tuple[str, bool], str | None] = {
    ("cuda", False): "Inductor fuses it with what stands around it, and moves fewer maps",
    ("cuda", True): None,
    ("cpu", False): "Inductor fuses it with what stands around it",
    ("cpu", True): None,
}
"""By device type, and whether gradients are recorded: why the formula, or None for the operator.

It holds for blocks whose formula reads one map, SE, ECA and effective SE. The branches of selective
kernels and of split attention are read and written fewer times by the operators, fused or not. It
holds for batch norms, too, which wait for what follows them, but for those in front of a gate."""

RULE_OF_TAILS: dict[tuple[str, bool], str | None] = {
    ("cuda", False): None,
    ("cuda", True): None,
    ("cpu", False): "Inductor fuses it with what stands around it",
    ("cpu", True): None,
}
"""The same for a batch norm with the gate behind it, of which no map between them is written."""


def is_exporting() -> bool:
    """Whether torch.export makes a program, strict or not.

    torch.compiler.is_exporting is true under every torch.compile of torch 2.11.
    """
    return bool(torch.compiler._is_exporting_flag)


def takes_formula(
    requested: str, device_type: str, tensors: Iterable[Tensor | None],
    rule: Mapping[tuple[str, bool], str | None] = RULE,
) -> bool:  # fmt: skip
    """Whether a call that torch.compile traces is to be its formula.

    Args:
        requested: The ``backend=`` argument: only "auto" leaves the choice to the rule.
        device_type: Where the map is.
        tensors: What the call takes; looked at only where something is compiled.
        rule: That of the block.

    Returns:
        Whether it is; False where nothing is compiled, and for export.
    """
    if requested != "auto" or not torch.compiler.is_compiling() or is_exporting():
        return False
    return rule.get((device_type, has_gradients(tensors))) is not None


def has_gradients(tensors: Iterable[Tensor | None]) -> bool:
    """Whether autograd records a call that takes these tensors."""
    if not torch.is_grad_enabled():
        return False
    for t in tensors:  # torch.compile traces no generator in any()
        if t is not None and t.requires_grad:
            return True
    return False


def note(
    requested: str, device_type: str, tensors: Iterable[Tensor | None],
    rule: Mapping[tuple[str, bool], str | None] = RULE, what: str = "it",
) -> str | None:  # fmt: skip
    """What `chattn_cuda.explain` says of the call, or of a part of it, under torch.compile."""
    gradients = has_gradients(tensors)
    if (device_type, gradients) not in rule:
        return None
    if requested != "auto":
        return f"under torch.compile too, backend={requested!r} insists on the operator"
    reason = rule[device_type, gradients]
    mode = "with gradients" if gradients else "without gradients"
    if reason is None:
        return f"under torch.compile, {mode}, {what} is the operator, too"
    return f"under torch.compile, {mode}, {what} is the formula in PyTorch: {reason}"
