"""What gpu_check.py checks beside the tests: the GPU's numbers, CUDA graphs, memory accesses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from gpu_results import emit, left
from torch import Tensor
from variants import device

from chattn_cuda.ops.blocks import BLOCKS as DESCRIBED
from tests.cases import BLOCKS as TABLE
from tests.cases import Block

Random = Callable[..., Tensor]
Tensors = dict[str, Tensor]


# ---- calls --------------------------------------------------------------------------------------
def described_weights(block: Block, c: int, random: Random, variant: bool) -> Tensors:
    """Of a block that is one description; `variant`: of the last of its cases."""
    described = DESCRIBED[block.op]
    shapes = [*block.variants.values()][-1].weights if variant else None
    found = [random(*s) / math.prod(s[1:]) ** 0.5 for s in (shapes or block.weights)(c)]
    _, *weights = block.operator_tensors([None, *found])
    return {w.name: t for w, t in zip(described.weights, weights, strict=False) if t is not None}


def described_call(block: Block, ops: Any, t: Tensors, variant: bool) -> Tensors:
    """Forward and backward through one namespace of operators; `variant`: other constants."""
    described, constants = DESCRIBED[block.op], block.constants[-1 if variant else 0]
    forward, backward = (getattr(ops, f"{block.op}_{way}") for way in ("forward", "backward"))
    y, *saved = forward(t["x"], *(t.get(w.name) for w in described.weights), *constants)
    read = [t.get(w.name) for w in described.weights if not w.is_bias]
    grads = backward(t["dy"], None, t["x"], *saved, *read, *constants, True, True)
    outputs, leaves = (s.name for s in described.outputs), (w.name for w in described.weights)
    names = ("y", *outputs, "dx", *(f"d{name}" for name in leaves))
    return dict(zip(names, (y, *saved, *grads), strict=True))


def sk_call(ops: Any, t: Tensors, variant: bool) -> Tensors:
    """A selective kernel's operators; `variant`: three branches instead of two."""
    branches = [t["x"], t["dy"], 0.5 * t["x"]][: 3 if variant else 2]
    last = not t["x"].is_contiguous()
    pooled = ops.sk_squeeze(branches)
    logits = torch.stack([pooled * m for m in range(len(branches))], 1)
    y = ops.sk_select(branches, logits)
    dlogits = ops.sk_dot(t["dy"], logits, branches)
    grads = ops.sk_gradient(t["dy"], logits, dlogits.sum(1), last, False)
    named = {f"dx{m}": g for m, g in enumerate(grads)}
    return {"pooled": pooled, "y": y, "dlogits": dlogits, **named}


BLOCKS: dict[str, tuple[Callable[..., Tensors], Callable[..., Tensors]]] = {
    **{
        name: (partial(described_weights, block), partial(described_call, block))
        for name, block in TABLE.items()
        if block.op in DESCRIBED
    },
    "sk": (lambda *_: {}, sk_call),  # the layers lie between the operators
}


@dataclass(frozen=True)
class Case:
    """One call; `variant` is the block's own."""

    block: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    layout: str
    variant: bool

    def inputs(self) -> Tensors:
        """The tensors, on the CPU."""
        generator = torch.Generator().manual_seed(0)

        def random(*size: int) -> Tensor:
            return torch.randn(size, generator=generator).to(self.dtype)

        last = self.layout == "channels_last"
        memory_format = torch.channels_last if last else torch.contiguous_format
        maps = {k: random(*self.shape).contiguous(memory_format=memory_format) for k in ("x", "dy")}
        return {**maps, **BLOCKS[self.block][0](self.shape[1], random, self.variant)}

    def call(self, namespace: str, tensors: Tensors) -> Tensors:
        """Results by name."""
        return BLOCKS[self.block][1](getattr(torch.ops, namespace), tensors, self.variant)


def cases(rehearse: bool) -> Iterator[Case]:
    """For comparisons and sanitizers: every kernel once."""
    shapes = [(3, 48, 7, 7), (2, 66, 20, 20), (1, 33, 33, 40)]
    dtypes = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
    if rehearse:
        shapes, dtypes = shapes[:1], dtypes[:2]
    both = (False, True)
    for row in itertools.product(BLOCKS, shapes, dtypes, ("nchw", "channels_last"), both):
        yield Case(*row)


# ---- steps: each prints a line that begins with RESULT, and returns its exit status -------------
def step_sanitized(rehearse: bool) -> int:
    """Every CUDA kernel once; run under compute-sanitizer."""
    import chattn_cuda  # noqa: F401

    count, found = 0, list(cases(rehearse))
    for case in found:
        if left() < 1:
            break
        case.call("chattn_cuda", {k: v.to(device()) for k, v in case.inputs().items()})
        count += 1
    if device() == "cuda":
        torch.cuda.synchronize()
    print(f"RESULT {count} of {len(found)} calls forward and backward")
    return 0


def step_compare(rehearse: bool) -> int:
    """The kernels on the GPU against the same kernels executed on the CPU."""
    import chattn_cuda  # noqa: F401
    from tests import host_backend

    if reason := host_backend.load():
        print(f"RESULT {reason}")
        return 1
    worst, problems, count, found = 0.0, [], 0, list(cases(rehearse))
    for case in found:
        if left() < 2:
            break
        inputs = case.inputs()
        expected = case.call("chattn_cuda_host", inputs)
        tensors = {k: v.to(device()) for k, v in inputs.items()}
        got, again = (case.call("chattn_cuda", tensors) for _ in range(2))
        line = []
        acc = torch.float64 if case.dtype == torch.float64 else torch.float32
        for name, e in expected.items():
            if e is None or e.numel() == 0:
                continue
            g = got[name].cpu()
            if not torch.equal(g, again[name].cpu()):
                problems.append(f"{case}: {name} differs from run to run")
            difference = (g.double() - e.double()).abs().max() / e.double().abs().max()
            # Contraction to FMA and another exp: some units in the last place, then one rounding.
            allowed = 512 * torch.finfo(acc).eps
            if e.dtype != acc:
                allowed += torch.finfo(e.dtype).eps
            if not float(difference) <= allowed:
                problems.append(f"{case}: {name} off by {difference:.1e}, above {allowed:.1e}")
            worst = max(worst, float(difference) / allowed)
            line.append(f"{name} {difference:.1e}")
        print(case, ", ".join(line))
        count += 1
    for problem in problems:
        emit("problem", step="host execution", text=problem)
    print(
        f"RESULT {count} of {len(found)} cases, {len(problems)} problems, at most {worst:.2f} of"
        " the limit"
    )
    return 1 if problems else 0 if count == len(found) else 124


def step_host_build(rehearse: bool) -> int:
    """Builds what `step_compare` executes on the CPU."""
    from tests import host_backend

    print(f"RESULT {host_backend.load() or 'built'}")
    return 0


def _replay_differs(module: Any, capture: bool) -> str | None:
    """Forward and backward captured in a CUDA graph, replayed on other numbers: what is wrong."""

    def run() -> list[Tensor]:
        y = module(x)
        return [y, *torch.autograd.grad(y, [x, *module.parameters()], dy)]

    x = torch.randn(4, 64, 14, 14, device=device()).requires_grad_()
    dy = torch.randn_like(x)
    if not capture:
        run()
        return None
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compiles, looks up the stream, fills the allocator
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    names = ["y", "dx", *(f"d{name}" for name, _ in module.named_parameters())]
    for _ in range(3):  # what one replay leaves in scratch memory must not disturb the next
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
            dy.copy_(torch.randn_like(dy))
        graph.replay()
        torch.cuda.synchronize()
        replayed = [t.clone() for t in captured]
        for name, a, b in zip(names, replayed, run(), strict=True):
            if not torch.equal(a, b):
                return f"{name} of a replay differs"
    return None


def step_graph(rehearse: bool) -> int:
    """CUDA graphs, on every backend that can be captured."""
    from chattn_cuda import backends
    from chattn_cuda.modules import EfficientChannelAttention, SqueezeExcite

    names = [b for b in ("cuda", "triton") if backends.why_not(b, device()) is None]
    if rehearse:
        names = ["cpu"]
    problems = []
    for backend, make in itertools.product(names, (SqueezeExcite, EfficientChannelAttention)):
        module = make(64, backend=backend).to(device())
        if difference := _replay_differs(module, not rehearse):
            problems.append(f"{backend}, {make.__name__}: {difference}")
    fine = f"{', '.join(names) or 'no backend'}: replays equal plain runs"
    print(f"RESULT {'; '.join(problems) or fine}")
    return 1 if problems or not names else 0


STEPS = {
    "graph": step_graph,
    "compare": step_compare,
    "host-build": step_host_build,
    "sanitized": step_sanitized,
}
