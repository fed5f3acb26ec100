"""Derivatives, transforms, compilation and autocast, on every backend that has operators."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from chattn_cuda import backends, ops
from tests import cases
from tests.cases import BLOCKS, Block, Variant

F64 = torch.float64
on_fused = pytest.mark.parametrize("backend", cases.fused_backends())
on_all = pytest.mark.parametrize("backend", [*cases.fused_backends(), pytest.param("reference")])
FUNCTIONS = {name: block for name, block in BLOCKS.items() if block.function is not None}
every_block = pytest.mark.parametrize("block", FUNCTIONS.values(), ids=list(FUNCTIONS))
# Blocks of one operator forward and one backward.
PAIRS = [block for block in FUNCTIONS.values() if not block.operators]


def fused(test: Any) -> Any:
    """Every block, on every backend that has operators."""
    return every_block(on_fused(test))


def all_backends(test: Any) -> Any:
    return every_block(on_all(test))


@pytest.fixture(autouse=True)
def _available(request: pytest.FixtureRequest) -> None:
    if "backend" in request.fixturenames:
        cases.require(request.getfixturevalue("backend"))


def make(
    block: Block,
    backend: str,
    shape: tuple[int, ...] = (2, 3, 2, 3),
    dtype: torch.dtype = F64,
    weights: Any = None,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [shape, *(weights or block.weights)(shape[1])]
    tensors = [torch.randn(s, generator=generator, dtype=F64) for s in shapes]
    tensors = [t + 0.5 if t.dim() == 1 else t for t in tensors]
    device = cases.device_of(backend)
    return [t.to(device, dtype).requires_grad_() for t in tensors]


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@on_fused
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize(
    ("block", "variant"),
    [
        pytest.param(block, variant, id=f"{block.name}-{name}")
        for block in FUNCTIONS.values()
        for name, variant in block.variants.items()
    ],
)
def test_gradcheck(block: Block, variant: Variant, backend: str, layout: str) -> None:
    def call(x: Tensor, *weights: Tensor) -> Any:
        return block.function(
            cases.LAYOUTS[layout](x), *weights, backend=backend, **variant.keywords
        )

    fast = cases.is_slow(backend)
    tensors = make(block, backend, weights=variant.weights)
    assert gradcheck(call, tensors, fast_mode=fast)
    if layout == "nchw":
        assert gradgradcheck(call, tensors, fast_mode=fast)


@on_fused
def test_gradient_without_biases(backend: str) -> None:
    block = BLOCKS["se"]
    x, w1, _, w2, _ = make(block, backend)
    assert gradcheck(
        lambda x, w1, w2: block.function(x, w1, None, w2, None, backend=backend),
        (x, w1, w2),
        fast_mode=True,
    )


class Recorder(TorchDispatchMode):
    """The calls of this package's operators, as (name, arguments)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith("chattn_cuda"):
            self.calls.append((func._schema.name.split("::")[1], args))
        return func(*args, **(kwargs or {}))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


@fused
@pytest.mark.parametrize("needed", [(0,), (1,), (-1, 2), (0, -1)])
def test_only_needed_gradients_are_computed(
    block: Block, backend: str, needed: tuple[int, ...]
) -> None:
    tensors = make(block, backend)
    needed = tuple({i % len(tensors) for i in needed if i < len(tensors)})
    full = torch.autograd.grad(block.function(*tensors, backend=backend).sin().sum(), tensors)
    leaves = [t.detach().requires_grad_(i in needed) for i, t in enumerate(tensors)]
    with Recorder() as recorder:
        block.function(*leaves, backend=backend).sin().sum().backward()
    if not block.operators:
        assert recorder.names == block.calls(backend)
        need_dx, need_dw = recorder.calls[1][1][-2:]
        assert (need_dx, need_dw) == (0 in needed, needed != (0,))
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in needed)
        if leaf.grad is not None:
            assert_same(leaf.grad, full[i])


@all_backends
@pytest.mark.parametrize("used", ["y", "gate", "both"])
def test_gradient_of_what_is_used(block: Block, backend: str, used: str) -> None:
    def loss(backend: str, tensors: list[Tensor]) -> Tensor:
        y, gate = block.function(*tensors, return_gate=True, backend=backend)
        terms = {"y": y.sum(), "gate": gate.sum(), "both": y.sin().sum() + gate.square().sum()}
        return terms[used]

    def gradients(backend: str, tensors: list[Tensor]) -> Any:
        # Zeros for weights that a gate does not depend on.
        return torch.autograd.grad(loss(backend, tensors), tensors, materialize_grads=True)

    tensors = make(block, backend)
    assert_same(gradients(backend, tensors), gradients("reference", tensors))


@fused
def test_unused_result_leaves_no_gradient(block: Block, backend: str) -> None:
    tensors = make(block, backend)
    y, _ = block.function(*tensors, return_gate=True, backend=backend)
    other = torch.zeros_like(tensors[0], requires_grad=True)
    (other + 0 * y.detach()).sum().backward()
    assert all(t.grad is None for t in tensors)


@fused
def test_third_derivatives(block: Block, backend: str) -> None:
    def third(backend: str) -> Tensor:
        x, *weights = make(block, backend)
        value = block.function(x, *weights, **block.smooth, backend=backend).sin().sum()
        for _ in range(2):
            (g,) = torch.autograd.grad(value, x, create_graph=True)
            value = g.square().sum()
        return torch.autograd.grad(value, weights[0])[0]

    assert_same(third(backend).cpu(), third("reference"), 1e-8)


@fused
def test_create_graph_uses_the_kernels_once(block: Block, backend: str) -> None:
    tensors = make(block, backend)
    with Recorder() as recorder:
        y = block.function(*tensors, backend=backend)
        torch.autograd.grad(y.sum(), tensors, create_graph=True)
    assert recorder.names == block.calls(backend)


@fused
def test_backward_keeps_the_map_and_small_tensors_only(block: Block, backend: str) -> None:
    tensors = make(block, backend, (4, 16, 8, 8), torch.float32)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        block.function(*tensors, backend=backend)
    weights = sum(t.numel() for t in tensors[1:])
    # x itself is kept by what makes the other branches of it
    maps = block.maps + (block.maps > 1)
    assert sum(kept) <= maps * tensors[0].numel() + weights + 4 * (3 * 16 + 4)


@fused
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(block: Block, backend: str, mode: Any) -> None:
    tensors = make(block, backend)
    with mode():
        y = block.function(*tensors, backend=backend)
    assert not y.requires_grad
    assert_same(y, block.function(*tensors, backend=backend).detach())


@fused
def test_checkpoint(block: Block, backend: str) -> None:
    tensors = make(block, backend)

    def call(*tensors: Tensor) -> Tensor:
        return block.function(*tensors, backend=backend)

    expected = torch.autograd.grad(call(*tensors).sin().sum(), tensors)
    for reentrant in (False, True):
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = torch.utils.checkpoint.checkpoint(call, *leaves, use_reentrant=reentrant)
        y.sin().sum().backward()
        assert_same([t.grad for t in leaves], list(expected))


# ---- torch.func --------------------------------------------------------------------------------


@fused
def test_func_grad_uses_the_kernels(block: Block, backend: str) -> None:
    tensors = make(block, backend)

    def loss(*tensors: Tensor) -> Tensor:
        return block.function(*tensors, backend=backend).sin().sum()

    expected = torch.autograd.grad(loss(*tensors), tensors)
    with Recorder() as recorder:
        grads = torch.func.grad(loss, argnums=tuple(range(len(tensors))))(
            *(t.detach() for t in tensors)
        )
    assert_same(grads, expected)
    # Where the derivatives are the formulas', only the forward is the kernels'.
    parts = list(block.operators[: block.forward_operators])
    assert recorder.names == (parts or block.calls(backend))


@all_backends
def test_func_grad_of_grad(block: Block, backend: str) -> None:
    x, w1, *rest = (t.detach() for t in make(block, backend))

    def inner(w1: Tensor, backend: str) -> Tensor:
        return block.function(x, w1, *rest, **block.smooth, backend=backend).sin().sum()

    def outer(w1: Tensor, backend: str) -> Tensor:
        return torch.func.grad(inner)(w1, backend).sin().sum()

    assert_same(torch.func.grad(outer)(w1, backend), torch.func.grad(outer)(w1, "reference"))


@all_backends
def test_vmap_over_maps_and_over_weights(block: Block, backend: str) -> None:
    x, *weights = (t.detach() for t in make(block, backend))
    maps = torch.stack([x, 2 * x, x - 1])

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        return block.function(x, *weights, backend=backend)

    y = torch.vmap(lambda x: call(x, *weights))(maps)
    assert_same(y, torch.stack([call(x, *weights) for x in maps]))
    several = [torch.stack([w, w / 2, -w]) for w in weights]
    y = torch.vmap(call)(maps, *several)
    assert_same(y, torch.stack([call(*each) for each in zip(maps, *several, strict=True)]))
    assert torch.vmap(lambda x: call(x, *weights))(maps[:0]).shape == maps[:0].shape


@all_backends
def test_gradients_per_sample(block: Block, backend: str) -> None:
    x, w1, *rest = (t.detach() for t in make(block, backend))

    def loss(w1: Tensor, x: Tensor) -> Tensor:
        return block.function(x[None], w1, *rest, backend=backend).sin().sum()

    with Recorder() as recorder:
        per_sample = torch.vmap(torch.func.grad(loss), (None, 0))(w1, x)
    assert not recorder.calls  # there would be one for each sample
    assert_same(per_sample, torch.stack([torch.func.grad(loss)(w1, sample) for sample in x]))


@fused
def test_jacobian_by_batches_of_gradients(block: Block, backend: str) -> None:
    x, w1, *rest = (t.detach() for t in make(block, backend))

    def call(w1: Tensor) -> Tensor:
        return block.function(x, w1, *rest, backend=backend).sum((2, 3))

    expected = torch.autograd.functional.jacobian(call, w1)
    assert_same(torch.autograd.functional.jacobian(call, w1, vectorize=True), expected)
    assert_same(torch.func.jacrev(call)(w1), expected)


@fused
def test_weights_of_any_strides(block: Block, backend: str) -> None:
    leaves = make(block, backend)
    x, *weights = leaves
    y = block.function(x, *(torch.stack([w, w], -1)[..., 0] for w in weights), backend=backend)
    expected = block.function(x, *weights, backend="reference")
    assert_same(y, expected)
    assert_same(
        torch.autograd.grad(y.sin().sum(), leaves),
        torch.autograd.grad(expected.sin().sum(), leaves),
    )


@fused
def test_vmap_under_autograd(block: Block, backend: str) -> None:
    x, *weights = make(block, backend)
    maps = torch.stack([x, 2 * x])
    y = torch.vmap(lambda x: block.function(x, *weights, backend=backend))(maps)
    expected = torch.stack([block.function(m, *weights, backend="reference") for m in maps])
    assert_same(
        torch.autograd.grad(y.sin().sum(), weights),
        torch.autograd.grad(expected.sin().sum(), weights),
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # in torch's own tables for forward mode
@all_backends
def test_forward_mode_and_hessian(block: Block, backend: str) -> None:
    x, w1, *rest = (t.detach() for t in make(block, backend))

    def loss(w1: Tensor, backend: str) -> Tensor:
        return block.function(x, w1, *rest, **block.smooth, backend=backend).sin().sum()

    tangent = torch.ones_like(w1)
    value, derivative = torch.func.jvp(lambda w: loss(w, backend), (w1,), (tangent,))
    assert_same(value, loss(w1, "reference"))
    assert_same(derivative, torch.func.grad(loss)(w1, "reference").sum())
    assert_same(
        torch.func.hessian(loss)(w1, backend), torch.func.hessian(loss)(w1, "reference"), 1e-8
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@fused
def test_forward_mode_through_a_backward(block: Block, backend: str) -> None:
    """Of a graph that was made before: products with a Hessian, forward over reverse."""

    def tangents(backend: str) -> list[Tensor | None]:
        tensors = make(block, backend)
        y = block.function(*tensors, backend=backend).sin()
        v, t = torch.ones_like(y), torch.full_like(y, 2).cumsum(1)
        with forward_ad.dual_level():
            grads = torch.autograd.grad(y, tensors, forward_ad.make_dual(v, t))
            return [forward_ad.unpack_dual(g).tangent for g in grads]

    assert_same(tangents(backend), tangents("reference"))


# ---- the operators -----------------------------------------------------------------------------


def operator_samples(block: Block, backend: str) -> dict[str, list[Tensor]]:
    dense = make(block, backend, (2, 6, 3, 5), torch.float32)
    x, *weights = dense
    # Linear layers as 1x1 convolutions
    conv = [w[..., None, None] if w.dim() == 2 else w for w in weights]
    return {
        "contiguous": dense,
        "channels_last": [x.contiguous(memory_format=torch.channels_last), *conv],
        "nhwc_channel_slice": [cases.LAYOUTS["nhwc_channel_slice"](x), *weights],
        "crop": [cases.LAYOUTS["crop"](x), *weights],
        "expanded": [x[:, :, :1, :1].expand(x.shape), *weights],
        "empty": [x[:0], *weights],
        "half": [x.half(), *(w.half() for w in weights)],
        "half_float": [x.half(), *weights],
    }


SAMPLES = (
    "contiguous",
    "channels_last",
    "nhwc_channel_slice",
    "crop",
    "expanded",
    "empty",
    "half",
    "half_float",
)


@pytest.mark.parametrize("block", PAIRS, ids=lambda block: block.name)
@on_fused
@pytest.mark.parametrize(
    ("sample", "number"),
    [(s, 0) for s in SAMPLES] + [(s, 1) for s in SAMPLES[:2]],
    ids=lambda v: v if isinstance(v, str) else f"constants{v}",
)
def test_opcheck(block: Block, backend: str, sample: str, number: int) -> None:
    namespace = backends.get(backend).namespace
    forward = getattr(getattr(torch.ops, namespace), f"{block.op}_forward").default
    backward = getattr(getattr(torch.ops, namespace), f"{block.op}_backward").default
    tensors = [t.detach() for t in operator_samples(block, backend)[sample]]
    tensors = block.operator_tensors(tensors)
    constants = block.constants[number]
    torch.library.opcheck(forward, (*tensors, *constants))
    if block.name == "se":
        x, w1, _, w2, _ = tensors
        torch.library.opcheck(forward, (x, w1, None, w2, None, *constants))

    y, *saved = forward(*tensors, *constants)
    operands = ops.BLOCKS[block.op].operands(tensors, saved)
    dgate = torch.ones_like(saved[-1])
    for dy, dgate_, need_dx, need_dw in (
        (torch.ones_like(y), None, True, True),
        (y.new_ones(()).expand(y.shape), dgate, True, False),
        (torch.ones_like(y), None, False, True),
    ):
        torch.library.opcheck(backward, (dy, dgate_, *operands, *constants, need_dx, need_dw))


def test_memory_format_is_what_eager_returns() -> None:
    x = torch.randn(2, 6, 3, 5)
    for name, layout in cases.LAYOUTS.items():
        t = layout(x)
        eager = t * torch.ones(2, 6, 1, 1)
        expected = torch.contiguous_format
        if eager.is_contiguous(memory_format=torch.channels_last):
            expected = torch.channels_last
        assert ops.memory_format_of(t) == expected, name
    for shape in ((2, 1, 3, 5), (2, 6, 1, 1), (1, 1, 1, 1), (0, 6, 3, 5)):
        assert ops.memory_format_of(torch.randn(shape)) == torch.contiguous_format


# ---- torch.compile -----------------------------------------------------------------------------


@fused
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_compile_without_graph_break_or_recompilation(
    block: Block, backend: str, layout: str
) -> None:
    def call(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        y, gate = block.function(x * 2, *weights, return_gate=True, backend=backend)
        return y + 1, gate

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            tensors = make(block, backend, (2, 6, 3, 5), torch.float32)
            with torch.no_grad():
                tensors[0] += seed
            tensors[0] = cases.LAYOUTS[layout](tensors[0].detach()).requires_grad_()
            y, gate = compiled(*tensors)
            expected_y, expected_gate = call(*tensors)
            assert y.stride() == expected_y.stride()
            assert_same((y, gate), (expected_y, expected_gate), 1e-5)
            grads = torch.autograd.grad((y.sin() + gate.sum()).sum(), tensors)
            loss = (expected_y.sin() + expected_gate.sum()).sum()
            assert_same(grads, torch.autograd.grad(loss, tensors), 1e-4)


@fused
def test_compile_with_dynamic_shapes(block: Block, backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(block.function, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        # Sizes that no weight has, which would be taken for the same one.
        for n, h, w in ((2, 5, 7), (4, 6, 8), (3, 7, 5)):
            tensors = make(block, backend, (n, 6, h, w), torch.float32)
            y = compiled(*tensors, backend=backend)
            expected = block.function(*tensors, backend=backend)
            assert_same(y, expected, 1e-5)
            assert_same(
                torch.autograd.grad(y.sum(), tensors),
                torch.autograd.grad(expected.sum(), tensors),
                1e-4,
            )


@fused
def test_compile_two_blocks_with_dynamic_shapes(block: Block, backend: str) -> None:
    """What both are given, a slope of 0.0 for instance, must not become an input of the first."""

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        y = block.function(x, *weights, backend=backend)
        return block.function(y, *weights, backend=backend)

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    tensors = make(block, backend, (2, 6, 5, 7), torch.float32)
    y, expected = compiled(*tensors), call(*tensors)
    assert_same(y, expected, 1e-5)
    assert_same(
        torch.autograd.grad(y.sum(), tensors), torch.autograd.grad(expected.sum(), tensors), 1e-4
    )


@fused
def test_compile_in_inference(block: Block, backend: str) -> None:
    tensors = make(block, backend, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(block.function, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same(
            compiled(*tensors, backend=backend), block.function(*tensors, backend=backend), 1e-5
        )


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@every_block
def test_compile_around_torch_func(block: Block) -> None:
    """Inside torch.compile, transforms must not lose the gradient."""
    backend = backends.select("auto", "cpu")
    x, w1, *rest = (t.detach() for t in make(block, backend))

    def loss(w1: Tensor, x: Tensor) -> Tensor:
        return block.function(x, w1, *rest, **block.smooth, backend=backend).sin().sum()

    transforms = {
        "grad": torch.func.grad(loss),
        "vmap": torch.vmap(torch.func.grad(loss), (None, 0)),
        "jvp": lambda w1, x: torch.func.jvp(lambda w: loss(w, x), (w1,), (w1,))[1],
    }
    for name, function in transforms.items():
        maps = x[:, None] if name == "vmap" else x
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        assert_same(compiled(w1, maps), function(w1, maps))


# ---- autocast ----------------------------------------------------------------------------------


@all_backends
@pytest.mark.parametrize("x_dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("w_dtype", [torch.float32, torch.bfloat16])
def test_autocast(block: Block, backend: str, x_dtype: torch.dtype, w_dtype: torch.dtype) -> None:
    """Result types as eager PyTorch's: y has x's, gradients their tensors'."""
    x, *weights = make(block, backend, (2, 6, 3, 5), torch.float32)
    exact = block.function(x, *weights, backend="reference")
    x = x.detach().to(x_dtype).requires_grad_()
    weights = [w.detach().to(w_dtype).requires_grad_() for w in weights]
    with torch.autocast(cases.device_of(backend), dtype=torch.bfloat16):
        y = block.function(x, *weights, backend=backend)
    assert y.dtype == x_dtype
    torch.testing.assert_close(y.float(), exact, rtol=0.03, atol=0.03)
    for t, g in zip((x, *weights), torch.autograd.grad(y.sum(), (x, *weights)), strict=True):
        assert g.dtype == t.dtype and g.shape == t.shape


@fused
def test_autocast_is_more_exact_than_eager(block: Block, backend: str) -> None:
    tensors = make(block, backend, (2, 6, 3, 5), torch.float32)
    with torch.autocast(cases.device_of(backend), dtype=torch.bfloat16):
        y = block.function(*tensors, backend=backend)
    assert_same(y, block.function(*tensors, backend="reference"), 1e-5)


@all_backends
def test_compile_under_autocast(block: Block, backend: str) -> None:
    """No graph break where the types are unified, and the formulas stay in float32."""
    x, *weights = make(block, backend, (2, 6, 3, 5), torch.float32)
    x = x.detach().bfloat16().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(block.function, fullgraph=True, backend="aot_eager")
    with torch.autocast(cases.device_of(backend), dtype=torch.bfloat16):
        y = compiled(x, *weights, backend=backend)
        expected = block.function(x, *weights, backend=backend)
    assert_same(y, expected, 1e-2)
    grads = torch.autograd.grad(y.sum(), (x, *weights))
    assert_same(grads, torch.autograd.grad(expected.sum(), (x, *weights)), 2e-2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@every_block
def test_compile_of_the_formulas(block: Block, device: str) -> None:
    """Also on a device without autocast, about which most questions raise."""
    tensors = [t.detach().to(device) for t in make(block, "reference", (2, 6, 3, 5))]
    torch._dynamo.reset()
    compiled = torch.compile(block.function, fullgraph=True, backend="aot_eager")
    y = compiled(*tensors, backend="reference")
    assert y.device.type == device
    expected = block.function(*tensors, backend="reference")
    assert y.shape == expected.shape and y.stride() == expected.stride()
    if device == "cpu":
        assert_same(y, expected)


@pytest.mark.parametrize("block", PAIRS, ids=lambda block: block.name)  # others have layers inside
@on_fused
def test_autocast_around_second_derivatives(block: Block, backend: str) -> None:
    tensors = make(block, backend, dtype=torch.float32)

    def second(backend: str) -> Tensor:
        y = block.function(*tensors, **block.smooth, backend=backend)
        (g,) = torch.autograd.grad(y.sin().sum(), tensors[0], create_graph=True)
        return torch.autograd.grad(g.square().sum(), tensors[1])[0]

    expected = second("reference")
    with torch.autocast(cases.device_of(backend), dtype=torch.bfloat16):
        assert_same(second(backend), expected, 1e-4)


@every_block
def test_nothing_warns(block: Block) -> None:
    backend = backends.select("auto", "cpu")
    x, *weights = make(block, backend, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = block.function(x, *weights)
        torch.autograd.grad(y.sum(), x, create_graph=True)[0].sum().backward()
