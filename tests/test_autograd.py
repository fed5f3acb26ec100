"""Derivatives, transforms, compilation and autocast, on every backend that has operators."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

from chattn_cuda import backends, ops
from chattn_cuda.functional import squeeze_excite
from tests import cases

F64 = torch.float64
fused = pytest.mark.parametrize("backend", cases.fused_backends())
all_backends = pytest.mark.parametrize(
    "backend", [*cases.fused_backends(), pytest.param("reference")]
)
VARIANTS = {
    "relu": {},
    "silu-tanh-gate": {"act": "silu", "gate": "tanh", "return_gate": True},
    "maxpool": {"add_maxpool": True, "act": "gelu", "gate": "hard_sigmoid"},
}


@pytest.fixture(autouse=True)
def _available(request: pytest.FixtureRequest) -> None:
    if "backend" in request.fixturenames:
        cases.require(request.getfixturevalue("backend"))


def make(
    backend: str, shape: tuple[int, ...] = (2, 3, 2, 3), dtype: torch.dtype = F64, rd: int = 2
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    n, c, h, w = shape
    shapes = [(n, c, h, w), (rd, c), (rd,), (c, rd), (c,)]
    tensors = [torch.randn(s, generator=generator, dtype=F64) for s in shapes]
    tensors[2] += 0.5
    device = cases.device_of(backend)
    return [t.to(device, dtype).requires_grad_() for t in tensors]


def assert_same(actual: Any, expected: Any, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@fused
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_gradcheck(backend: str, variant: str, layout: str) -> None:
    def call(x: Tensor, *weights: Tensor) -> Any:
        return squeeze_excite(
            cases.LAYOUTS[layout](x), *weights, backend=backend, **VARIANTS[variant]
        )

    fast = cases.is_slow(backend)
    assert gradcheck(call, make(backend), fast_mode=fast)
    if layout == "nchw":
        assert gradgradcheck(call, make(backend), fast_mode=fast)


@fused
def test_gradient_without_biases(backend: str) -> None:
    x, w1, _, w2, _ = make(backend)
    assert gradcheck(
        lambda x, w1, w2: squeeze_excite(x, w1, None, w2, None, backend=backend),
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
@pytest.mark.parametrize("needed", [(0,), (1,), (2, 4), (0, 3)])
def test_only_needed_gradients_are_computed(backend: str, needed: tuple[int, ...]) -> None:
    tensors = make(backend)
    full = torch.autograd.grad(squeeze_excite(*tensors, backend=backend).sin().sum(), tensors)
    leaves = [t.detach().requires_grad_(i in needed) for i, t in enumerate(tensors)]
    with Recorder() as recorder:
        squeeze_excite(*leaves, backend=backend).sin().sum().backward()
    assert recorder.names == ["se_forward", "se_backward"]
    need_dx, need_dw = recorder.calls[1][1][-2:]
    assert (need_dx, need_dw) == (0 in needed, needed != (0,))
    for i, leaf in enumerate(leaves):
        assert (leaf.grad is not None) == (i in needed)
        if leaf.grad is not None:
            assert_same(leaf.grad, full[i])


@all_backends
@pytest.mark.parametrize("used", ["y", "gate", "both"])
def test_gradient_of_what_is_used(backend: str, used: str) -> None:
    def loss(backend: str, tensors: list[Tensor]) -> Tensor:
        y, gate = squeeze_excite(*tensors, return_gate=True, backend=backend)
        terms = {"y": y.sum(), "gate": gate.sum(), "both": y.sin().sum() + gate.square().sum()}
        return terms[used]

    tensors = make(backend)
    grads = torch.autograd.grad(loss(backend, tensors), tensors)
    assert_same(grads, torch.autograd.grad(loss("reference", tensors), tensors))


@fused
def test_unused_result_leaves_no_gradient(backend: str) -> None:
    tensors = make(backend)
    y, _ = squeeze_excite(*tensors, return_gate=True, backend=backend)
    other = torch.zeros_like(tensors[0], requires_grad=True)
    (other + 0 * y.detach()).sum().backward()
    assert all(t.grad is None for t in tensors)


@fused
def test_third_derivatives(backend: str) -> None:
    def third(backend: str) -> Tensor:
        x, *weights = make(backend)
        value = squeeze_excite(x, *weights, act="silu", backend=backend).sin().sum()
        for _ in range(2):
            (g,) = torch.autograd.grad(value, x, create_graph=True)
            value = g.square().sum()
        return torch.autograd.grad(value, weights[0])[0]

    assert_same(third(backend), third("reference"), 1e-8)


@fused
def test_create_graph_uses_the_kernels_once(backend: str) -> None:
    tensors = make(backend)
    with Recorder() as recorder:
        y = squeeze_excite(*tensors, backend=backend)
        torch.autograd.grad(y.sum(), tensors, create_graph=True)
    assert recorder.names == ["se_forward", "se_backward"]


@fused
def test_backward_keeps_the_map_and_small_tensors_only(backend: str) -> None:
    tensors = make(backend, (4, 16, 8, 8), torch.float32, rd=4)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        squeeze_excite(*tensors, backend=backend)
    weights = sum(t.numel() for t in tensors[1:])
    assert sum(kept) <= tensors[0].numel() + weights + 4 * (3 * 16 + 4)


@fused
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients(backend: str, mode: Any) -> None:
    tensors = make(backend)
    with mode():
        y = squeeze_excite(*tensors, backend=backend)
    assert not y.requires_grad
    assert_same(y, squeeze_excite(*tensors, backend=backend).detach())


@fused
def test_checkpoint(backend: str) -> None:
    tensors = make(backend)

    def call(*tensors: Tensor) -> Tensor:
        return squeeze_excite(*tensors, backend=backend)

    expected = torch.autograd.grad(call(*tensors).sin().sum(), tensors)
    for reentrant in (False, True):
        leaves = [t.detach().requires_grad_() for t in tensors]
        y = torch.utils.checkpoint.checkpoint(call, *leaves, use_reentrant=reentrant)
        y.sin().sum().backward()
        assert_same([t.grad for t in leaves], list(expected))


# ---- torch.func --------------------------------------------------------------------------------


@fused
def test_func_grad_uses_the_kernels(backend: str) -> None:
    tensors = make(backend)

    def loss(*tensors: Tensor) -> Tensor:
        return squeeze_excite(*tensors, backend=backend).sin().sum()

    expected = torch.autograd.grad(loss(*tensors), tensors)
    with Recorder() as recorder:
        grads = torch.func.grad(loss, argnums=(0, 1, 2, 3, 4))(*(t.detach() for t in tensors))
    assert_same(grads, expected)
    assert recorder.names == ["se_forward", "se_backward"]


@all_backends
def test_func_grad_of_grad(backend: str) -> None:
    x, w1, *rest = (t.detach() for t in make(backend))

    def inner(w1: Tensor, backend: str) -> Tensor:
        return squeeze_excite(x, w1, *rest, act="silu", backend=backend).sin().sum()

    def outer(w1: Tensor, backend: str) -> Tensor:
        return torch.func.grad(inner)(w1, backend).sin().sum()

    assert_same(torch.func.grad(outer)(w1, backend), torch.func.grad(outer)(w1, "reference"))


@all_backends
def test_vmap_over_maps_and_over_weights(backend: str) -> None:
    x, *weights = (t.detach() for t in make(backend))
    maps = torch.stack([x, 2 * x, x - 1])

    def call(x: Tensor, *weights: Tensor) -> Tensor:
        return squeeze_excite(x, *weights, backend=backend)

    y = torch.vmap(lambda x: call(x, *weights))(maps)
    assert_same(y, torch.stack([call(x, *weights) for x in maps]))
    several = [torch.stack([w, w / 2, -w]) for w in weights]
    y = torch.vmap(call)(maps, *several)
    assert_same(y, torch.stack([call(*each) for each in zip(maps, *several, strict=True)]))


@all_backends
def test_gradients_per_sample(backend: str) -> None:
    x, w1, *rest = (t.detach() for t in make(backend))

    def loss(w1: Tensor, x: Tensor) -> Tensor:
        return squeeze_excite(x[None], w1, *rest, backend=backend).sin().sum()

    per_sample = torch.vmap(torch.func.grad(loss), (None, 0))(w1, x)
    assert_same(per_sample, torch.stack([torch.func.grad(loss)(w1, sample) for sample in x]))


@fused
def test_jacobian_by_batches_of_gradients(backend: str) -> None:
    x, w1, *rest = (t.detach() for t in make(backend))

    def call(w1: Tensor) -> Tensor:
        return squeeze_excite(x, w1, *rest, backend=backend).sum((2, 3))

    expected = torch.autograd.functional.jacobian(call, w1)
    assert_same(torch.autograd.functional.jacobian(call, w1, vectorize=True), expected)
    assert_same(torch.func.jacrev(call)(w1), expected)


@fused
def test_weights_of_any_strides(backend: str) -> None:
    x, w1, b1, w2, b2 = make(backend)
    strided = (w1.t().contiguous().t(), b1, w2.t().contiguous().t(), b2)
    y = squeeze_excite(x, *strided, backend=backend)
    expected = squeeze_excite(x, w1, b1, w2, b2, backend="reference")
    assert_same(y, expected)
    leaves = (x, w1, b1, w2, b2)
    assert_same(
        torch.autograd.grad(y.sin().sum(), leaves),
        torch.autograd.grad(expected.sin().sum(), leaves),
    )


@fused
def test_vmap_under_autograd(backend: str) -> None:
    x, *weights = make(backend)
    maps = torch.stack([x, 2 * x])
    y = torch.vmap(lambda x: squeeze_excite(x, *weights, backend=backend))(maps)
    expected = torch.stack([squeeze_excite(m, *weights, backend="reference") for m in maps])
    assert_same(
        torch.autograd.grad(y.sin().sum(), weights),
        torch.autograd.grad(expected.sin().sum(), weights),
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # in torch's own tables for forward mode
@all_backends
def test_forward_mode_and_hessian(backend: str) -> None:
    x, w1, *rest = (t.detach() for t in make(backend))

    def loss(w1: Tensor, backend: str) -> Tensor:
        return squeeze_excite(x, w1, *rest, act="silu", backend=backend).sin().sum()

    tangent = torch.ones_like(w1)
    value, derivative = torch.func.jvp(lambda w: loss(w, backend), (w1,), (tangent,))
    assert_same(value, loss(w1, "reference"))
    assert_same(derivative, torch.func.grad(loss)(w1, "reference").sum())
    assert_same(
        torch.func.hessian(loss)(w1, backend), torch.func.hessian(loss)(w1, "reference"), 1e-8
    )


# ---- the operators -----------------------------------------------------------------------------


def operator_samples(backend: str) -> dict[str, list[Tensor]]:
    dense = make(backend, (2, 6, 3, 5), torch.float32, rd=4)
    x, *weights = dense
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


@fused
@pytest.mark.parametrize(
    ("sample", "add_maxpool"),
    [(s, False) for s in SAMPLES] + [(s, True) for s in SAMPLES[:2]],
    ids=lambda v: v if isinstance(v, str) else "maxpool" if v else "mean",
)
def test_opcheck(backend: str, sample: str, add_maxpool: bool) -> None:
    namespace = backends.get(backend).namespace
    operators = getattr(torch.ops, namespace)
    x, w1, b1, w2, b2 = (t.detach() for t in operator_samples(backend)[sample])
    constants = (1, 0.0, 10, add_maxpool)
    arguments = (x, w1, b1, w2, b2, *constants)
    torch.library.opcheck(operators.se_forward.default, arguments)
    torch.library.opcheck(operators.se_forward.default, (x, w1, None, w2, None, *constants))

    y, *saved = operators.se_forward.default(*arguments)
    dgate = torch.ones_like(saved[-1])
    for dy, dgate_, need_dx, need_dw in (
        (torch.ones_like(y), None, True, True),
        (y.new_ones(()).expand(y.shape), dgate, True, False),
        (torch.ones_like(y), None, False, True),
    ):
        torch.library.opcheck(
            operators.se_backward.default,
            (dy, dgate_, x, *saved, w1, w2, *constants, need_dx, need_dw),
        )


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
def test_compile_without_graph_break_or_recompilation(backend: str, layout: str) -> None:
    def call(x: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        y, gate = squeeze_excite(x * 2, *weights, return_gate=True, backend=backend)
        return y + 1, gate

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            tensors = make(backend, (2, 6, 3, 5), torch.float32, rd=4)
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
def test_compile_with_dynamic_shapes(backend: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(squeeze_excite, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n, h, w in ((2, 3, 5), (4, 6, 7), (3, 5, 4)):
            tensors = make(backend, (n, 6, h, w), torch.float32, rd=4)
            y = compiled(*tensors, backend=backend)
            expected = squeeze_excite(*tensors, backend=backend)
            assert_same(y, expected, 1e-5)
            assert_same(
                torch.autograd.grad(y.sum(), tensors),
                torch.autograd.grad(expected.sum(), tensors),
                1e-4,
            )


@fused
def test_compile_in_inference(backend: str) -> None:
    tensors = make(backend, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(squeeze_excite, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same(
            compiled(*tensors, backend=backend), squeeze_excite(*tensors, backend=backend), 1e-5
        )


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_compile_around_torch_func() -> None:
    """Inside torch.compile, transforms must not lose the gradient."""
    backend = backends.select("auto", "cpu")
    x, w1, *rest = (t.detach() for t in make(backend))

    def loss(w1: Tensor, x: Tensor) -> Tensor:
        return squeeze_excite(x, w1, *rest, act="silu", backend=backend).sin().sum()

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
def test_autocast(backend: str, x_dtype: torch.dtype, w_dtype: torch.dtype) -> None:
    """Result types as eager PyTorch's: y has x's, gradients their tensors'."""
    x, *weights = make(backend, (2, 6, 3, 5), torch.float32, rd=4)
    exact = squeeze_excite(x, *weights, backend="reference")
    x = x.detach().to(x_dtype).requires_grad_()
    weights = [w.detach().to(w_dtype).requires_grad_() for w in weights]
    with torch.autocast(cases.device_of(backend), dtype=torch.bfloat16):
        y = squeeze_excite(x, *weights, backend=backend)
    assert y.dtype == x_dtype
    torch.testing.assert_close(y.float(), exact, rtol=0.03, atol=0.03)
    for t, g in zip((x, *weights), torch.autograd.grad(y.sum(), (x, *weights)), strict=True):
        assert g.dtype == t.dtype and g.shape == t.shape


@fused
def test_autocast_is_more_exact_than_eager(backend: str) -> None:
    tensors = make(backend, (2, 6, 3, 5), torch.float32, rd=4)
    with torch.autocast(cases.device_of(backend), dtype=torch.bfloat16):
        y = squeeze_excite(*tensors, backend=backend)
    assert_same(y, squeeze_excite(*tensors, backend="reference"), 1e-5)


@fused
def test_autocast_around_second_derivatives(backend: str) -> None:
    tensors = make(backend, dtype=torch.float32)

    def second(backend: str) -> Tensor:
        y = squeeze_excite(*tensors, act="silu", backend=backend)
        (g,) = torch.autograd.grad(y.sin().sum(), tensors[0], create_graph=True)
        return torch.autograd.grad(g.square().sum(), tensors[1])[0]

    expected = second("reference")
    with torch.autocast(cases.device_of(backend), dtype=torch.bfloat16):
        assert_same(second(backend), expected, 1e-4)


def test_nothing_warns() -> None:
    backend = backends.select("auto", "cpu")
    x, *weights = make(backend, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = squeeze_excite(x, *weights)
        torch.autograd.grad(y.sum(), x, create_graph=True)[0].sum().backward()
