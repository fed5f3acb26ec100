"""The demo's check: a model, accelerated, against itself in float64."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chattn_cuda.cli.cases import forward_backward
from chattn_cuda.cli.measure import compare, errors
from chattn_cuda.cli.terminal import Cell, Table
from chattn_cuda.convert import accelerate

__all__ = ["Check", "check_model", "check_table"]

_SAME = 1e-10  # what two correct computations in float64 differ by at most


@dataclass
class Check:
    """One comparison with the eager model in float64.

    Attributes:
        what: What was compared.
        eager: The distance of eager PyTorch in float32, where that is the yardstick.
        ours: The distance of the accelerated model.
        wrong: What is wrong, if anything is.
    """

    what: str
    eager: float | None
    ours: float
    wrong: str | None = None


def check_model(
    model: nn.Module, images: Tensor, labels: Tensor, backend: str
) -> tuple[list[Check], str]:
    """Compare the accelerated model with the eager one; also says what was accelerated.

    The gradients of the whole model are compared in float64: in float32, rounding flips ReLUs near
    zero, which moves the gradients of such a network by up to a percent whoever computes them. In
    float32, each block is compared on the activations and gradients that reach it in the model, and
    may be `FACTOR` times as far from float64 as eager PyTorch is; so may the model's outputs.
    """
    ours = copy.deepcopy(model)
    report = accelerate(ours, backend, fuse="block")
    names = [entry.name for entry in report.changed]
    exact_model, tails = (copy.deepcopy(model).double() for _ in range(2))
    accelerate(tails, backend)
    eager, fused = _outputs(model, images), _outputs(ours, images)
    exact = _outputs(exact_model, images.double())
    gradients = _gradients(exact_model, images.double(), labels)
    checks = []
    for m, what in ((copy.deepcopy(ours).double(), ""), (tails, " with tails")):
        checks.append(_double_check(f"outputs{what}", _outputs(m, images.double()), exact))
        found = _gradients(m, images.double(), labels)
        checks.append(_double_check(f"gradients{what}", found, gradients))
    error, wrong = compare(("outputs",), (fused,), (exact,), (eager,))
    checks.append(Check("float32: outputs", errors(eager, exact)[0], error, wrong))
    inputs = _capture(model, names, images, labels)
    return [*checks, *_check_blocks(model, ours, inputs)], str(report).splitlines()[0]


def _double_check(what: str, value: Tensor, exact: Tensor) -> Check:
    error = errors(value, exact)[1]
    wrong = None if error <= _SAME else f"{what} in float64 differ by {error:.1e} > {_SAME:.0e}"
    return Check(f"float64: {what}", None, error, wrong)


def _outputs(model: nn.Module, images: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        outputs: Tensor = model(images)
    return outputs


def _gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """All gradients of a training step in one vector."""
    model.train()
    loss = F.cross_entropy(model(images), labels)
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])


def _capture(
    model: nn.Module, names: Sequence[str], images: Tensor, labels: Tensor
) -> dict[str, list[Tensor]]:
    """What reaches the named blocks in a training step: the input and the output's gradient."""
    captured: dict[str, list[Tensor]] = {name: [] for name in names}
    handles = []
    for name in names:

        def hook(module: nn.Module, args: Any, y: Tensor, name: str = name) -> None:
            captured[name].append(args[0].detach())
            y.register_hook(captured[name].append)

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    _gradients(model, images, labels)
    for handle in handles:
        handle.remove()
    return captured


def _check_blocks(
    model: nn.Module, ours: nn.Module, inputs: dict[str, list[Tensor]]
) -> list[Check]:
    """Every block alone, forward and backward, on what reaches it in the model."""
    title = f"float32, its {len(inputs)} SE blocks one by one"
    checks = [Check(f"{title}: {what}", 0.0, 0.0) for what in ("outputs", "gradients")]
    for block, (x, dy) in inputs.items():
        module, fused = model.get_submodule(block), ours.get_submodule(block)
        double = copy.deepcopy(module).double()
        names = ("y", "d x", *(f"d {name}" for name, _ in module.named_parameters()))
        exact = forward_backward(double, [x.double().requires_grad_()], dy.double())
        eager, values = (
            forward_backward(m, [x.clone().requires_grad_()], dy) for m in (module, fused)
        )
        for check, part in zip(checks, (slice(0, 1), slice(1, None)), strict=True):
            error, wrong = compare(names[part], values[part], exact[part], eager[part])
            baseline, _ = compare(names[part], eager[part], exact[part], eager[part])
            check.eager, check.ours = max(check.eager or 0.0, baseline), max(check.ours, error)
            check.wrong = check.wrong or (wrong and f"{block}: {wrong}")
    return checks


def check_table(name: str, checks: Sequence[Check]) -> Table:
    """What `check_model` found of the model ``name``."""
    table = Table(
        f"{name}: errors against eager PyTorch in float64", ["", "eager", "chattn_cuda", ""]
    )
    for check in checks:
        verdict = Cell("DISAGREE", "bold red") if check.wrong else Cell("agree", "green")
        eager = "" if check.eager is None else f"{check.eager:.0e}"
        table.rows.append([check.what, eager, f"{check.ours:.0e}", verdict])
    return table
