"""Every operator by itself, as a graph of others calls it, has its gradient or refuses one.

`torch.library.opcheck` does not see where a gradient gets lost: an operator without a kernel for
autograd returns tensors that require none.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from chattn_cuda import backends
from chattn_cuda.ops import tail
from chattn_cuda.ops.blocks import BLOCKS
from tests import cases
from tests.test_sk_block import backward_arguments, forward_arguments

N, C, M = 2, 4, 2
#: with derivatives of any order
DERIVABLE = (
    *(f"{name}_forward" for name in BLOCKS), *tail.WHOLE[::2], "sk_squeeze", "sk_select",
)  # fmt: skip
#: their operands are results of the forward operator, which has the derivatives of any order
REFUSE = (
    *(f"{name}_backward" for name in BLOCKS), *tail.WHOLE[1::2], "sk_forward", "sk_backward",
    *tail.FAKES,
)  # fmt: skip


def numbers(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def samples(ops: Any) -> dict[str, tuple[Any, ...]]:
    """Arguments for each operator."""
    x, dy = numbers(N, C, 3, 2), numbers(N, C, 2, 3).mT
    u = [x, numbers(N, C, 2, 3).mT]
    logits, pooled = numbers(N, M, C), numbers(N, C)
    found: dict[str, tuple[Any, ...]] = {
        "sk_squeeze": (u, None, 1, 0.0),
        "sk_select": (u, logits, None, 1, 0.0),
        "sk_dot": (dy, logits, u),
        "sk_gradient": (dy, logits, pooled, False, False),
    }
    of_norm, functions = (numbers(C), numbers(C)), (0, 0.0, 4, 0.0)
    rows, gate, sums = numbers(4, C), numbers(N, C), numbers(N, 2, C)
    maps = dy, x, u[1], None, rows, gate
    found |= {
        "tail_squeeze": (x, *of_norm, None, None, [], 0.0, 1e-3, 0, 0.0, True),
        "tail_apply": (x, u[1], rows, gate, *functions, False),
        "tail_reduce": (*maps, *functions, True),
        "tail_gradient": (
            *maps, sums, pooled, gate, of_norm[0], None, *functions, True, True, True, True
        ),
    }  # fmt: skip
    for gate in (None, *tail.GATES):
        weights, constants, at = [], (), "tail"
        if gate is not None:
            block, at = cases.BLOCKS[gate], f"tail_{gate}"
            weights, constants = [numbers(*s) for s in block.weights(C)], block.constants[-1]
        tensors, end = (x, u[1], *of_norm, *weights), (*functions, *constants)
        found[f"{at}_forward"] = forward = (*tensors, None, None, None, 1e-3, *end)
        _, rows, _, means, pools, *saved = getattr(ops, f"{at}_forward")(*forward)
        read = [w for i, w in enumerate(weights, 1) if gate and i not in BLOCKS[gate].biases]
        kept = x, u[1], of_norm[0], *read, rows, means, pools, *saved
        found[f"{at}_backward"] = (dy, *kept, None, True, *end, [True] * len(tensors))
    for name, described in BLOCKS.items():
        block = cases.BLOCKS[name]
        weights, constants = [numbers(*s) for s in block.weights(C)], block.constants[-1]
        found[f"{name}_forward"] = forward = (x, *weights, *constants)
        saved = getattr(ops, f"{name}_forward")(*forward)[1:]
        operands = described.operands([x, *weights], saved)
        found[f"{name}_backward"] = (dy, None, *operands, *constants, True, True)
    if hasattr(ops, "sk_forward"):
        forward = {k: as_double(v) for k, v in forward_arguments(u, "of batch").items()}
        found["sk_forward"] = tuple(forward.values())
        found["sk_backward"] = tuple(backward_arguments(ops, forward).values())
    return found


def as_double(value: Any) -> Any:
    if isinstance(value, list):
        return [as_double(v) for v in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def names_of(namespace: str) -> list[str]:
    prefix = f"{namespace}::"
    every = torch._C._dispatch_get_all_op_names()
    return sorted(name.removeprefix(prefix) for name in every if name.startswith(prefix))


def variables_of(schema: Any, args: Any) -> list[Tensor]:
    """The numbers among the arguments that are not changed in place."""
    found: list[Tensor] = []
    for argument, value in zip(schema.arguments, args, strict=True):
        if argument.alias_info is None:
            found += value if isinstance(value, list) else [value]
    return [t for t in found if isinstance(t, Tensor) and t.is_floating_point()]


def flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [t for o in outputs for t in flat(o)]


@pytest.mark.filterwarnings(
    "error", "ignore:Conversion of an array:DeprecationWarning"
)  # Triton 3.6
@pytest.mark.parametrize("backend", cases.fused_backends())
def test_every_operator_has_its_gradient_or_refuses_one(backend: str) -> None:
    cases.require(backend)
    namespace = str(backends.get(backend).namespace)
    ops, device = getattr(torch.ops, namespace), cases.device_of(backend)
    given = {k: on(device, args) for k, args in samples(ops).items()}
    assert names_of(namespace) == sorted(given)
    for name, args in given.items():
        operator = getattr(ops, name).default
        variables = variables_of(operator._schema, args)
        leaves = {id(t): t.requires_grad_() for t in variables}

        def call(*values: Tensor, name: str = name, args: Any = args, at: Any = leaves) -> Any:
            replaced = dict(zip(at, values, strict=True))
            outputs = getattr(ops, name)(*replace(args, replaced))
            return tuple(t for t in flat(outputs) if t.requires_grad)

        results = call(*leaves.values())
        assert results, f"{name} loses the gradient"
        if name not in REFUSE:
            fast = cases.is_slow(backend)
            assert torch.autograd.gradcheck(call, tuple(leaves.values()), fast_mode=fast), name
            continue
        for result in results:
            with pytest.raises(NotImplementedError, match=name):
                result.sum().backward(retain_graph=True)


def on(device: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(on(device, v) for v in value)
    return value.to(device) if isinstance(value, Tensor) else value


def replace(value: Any, replaced: dict[int, Tensor]) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(replace(v, replaced) for v in value)
    return replaced.get(id(value), value) if isinstance(value, Tensor) else value


@pytest.mark.parametrize("backend", cases.fused_backends())
def test_second_derivatives_of_the_forward_operators(backend: str) -> None:
    cases.require(backend)
    ops = getattr(torch.ops, str(backends.get(backend).namespace))
    given = {k: on(cases.device_of(backend), args) for k, args in samples(ops).items()}
    for name in DERIVABLE:
        operator, args = getattr(ops, name).default, given[name]
        leaves = {id(t): t.requires_grad_() for t in variables_of(operator._schema, args)}

        def call(*values: Tensor, run: Any = operator, args: Any = args, at: Any = leaves) -> Any:
            return flat(run(*replace(args, dict(zip(at, values, strict=True)))))[0]

        fast = cases.is_slow(backend)
        assert torch.autograd.gradgradcheck(call, tuple(leaves.values()), fast_mode=fast), name
