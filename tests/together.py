"""One process of several, started by test_sync_batch_norm: tails whose statistics are those of all.

Every process makes the same numbers and takes its samples of them.
"""

from __future__ import annotations

import copy
import functools
import itertools
import sys
from dataclasses import dataclass
from typing import Any

import timm
import torch
import torch.distributed as dist
import torch.utils.checkpoint
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import activations, backends
from chattn_cuda.modules import deferred, views
from chattn_cuda.ops.tail import Gate, Norm, Tail, Together, apply_tail
from tests.compat.distributed import leave

CODES = {name: a.code for name, a in activations.ACTIVATIONS.items()}
EPS, MOMENTUM, CHANNELS, HW = 1e-3, 0.3, 9, (5, 4)
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}

#: Samples of each process; a process without some takes part.
SPLITS = {"two": (2, 3), "three": (1, 3, 2), "one-empty": (3, 0, 2)}


@dataclass(frozen=True)
class Case:
    """A tail."""

    gate: str | None = None
    residual: bool = False
    inner: str = "identity"
    act: str = "identity"
    affine: bool = True
    drop: bool = False

    def tail(self, norm: Norm, factors: Tensor | None) -> Tail:
        """As the operators know it."""
        gate = None
        if self.gate == "se":
            gate = Gate("se", (CODES["relu"], 0.0, CODES["sigmoid"]))
        elif self.gate == "eca":
            gate = Gate("eca", (CODES["sigmoid"], False))
        given = factors if self.drop else None
        return Tail(norm, gate, (CODES[self.inner], 0.0), (CODES[self.act], 0.0), given)

    def tensors(self, samples: int, dtype: torch.dtype) -> tuple[list[Any], Tensor, Tensor]:
        """Of a tail and its gate; dy; factors of the samples."""
        generator, c = torch.Generator().manual_seed(0), CHANNELS

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

        size = samples, c, *HW
        # Samples far from each other, so that it matters whose statistics they are.
        x = random(*size) + 2 * torch.arange(samples).to(dtype)[:, None, None, None]
        residual, weight, bias, dy = random(*size), random(c), random(c), random(*size)
        weights = []
        if self.gate == "se":
            weights = [random(3, c), random(3), random(c, 3) / 3, random(c)]
        elif self.gate == "eca":
            weights = [random(1, 1, 3)]
        of_norm = (weight, bias) if self.affine else (None, None)
        factors = 2.0 * (torch.arange(samples) % 3 != 1).to(dtype)[:, None]
        return [x, residual if self.residual else None, *of_norm, *weights], dy, factors


CASES = {
    "A-se": Case("se", True, act="relu"),
    "A-se-drop": Case("se", True, act="relu", drop=True),
    "A-eca-smooth": Case("eca", True, act="silu", affine=False),
    "plain": Case(residual=True, act="relu"),
    "plain-drop": Case(residual=True, act="relu6", drop=True),
    "B-se": Case("se", inner="silu"),
    "B-se-residual": Case("se", True, inner="silu", act="relu"),
    "pair": Case(act="silu"),
}
DTYPES = (torch.float64, torch.float32)


# ---- planted bugs
class OwnCount(Together):
    """As if all positions were this process'."""

    def _joined(self, own: Tensor, eps: float) -> Any:
        found = super()._joined(own, eps)
        self.count = own[-1]
        return found


class OwnSums(Together):
    """Without the others' sums behind what all positions lose."""

    def lost(self, own: Tensor, numbers: Tensor) -> Tensor:
        super().lost(own, numbers)
        total = own.to(numbers.dtype, copy=True)
        total[1] *= numbers[3].square()
        return total * (numbers[0] / self.count)


class Unweighted(Together):
    """As if all had as many samples."""

    def _joined(self, own: Tensor, eps: float) -> Any:
        count, own = own[-1].clone(), own.clone()
        own[-1] = 1
        found = super()._joined(own, eps)
        dist.all_reduce(count, group=self.group)
        self.count = count
        return found


BUGS = {"own-count": OwnCount, "own-sums": OwnSums, "unweighted": Unweighted}


# ---- the functions
def step(tail: Tail, tensors: list[Any], dy: Tensor, layout: str, namespace: str) -> dict[str, Any]:
    """What a step gives, by the operators."""
    fmt = LAYOUTS[layout]
    leaves = [
        t if t is None else t.clone(memory_format=fmt if t.dim() == 4 and i < 2 else
                                    torch.contiguous_format).requires_grad_()
        for i, t in enumerate(tensors)
    ]  # fmt: skip
    y = apply_tail(namespace, tail, *leaves)[0]
    y.backward(dy)
    return {"y": y.detach(), "grads": [None if t is None else t.grad for t in leaves]}


def of_functions(
    group: Any, split: str, layout: str, kind: type[Together] = Together, dtypes: Any = DTYPES
) -> dict[str, Any]:
    """Every case by this process' samples."""
    sizes, rank = SPLITS[split], dist.get_rank(group)
    samples = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    found = {}
    for (name, case), dtype in itertools.product(CASES.items(), dtypes):
        tensors, dy, factors = case.tensors(sum(sizes), dtype)
        tensors[:2] = (t if t is None else t[samples] for t in tensors[:2])
        c = CHANNELS
        running = [torch.zeros(c, dtype=dtype), torch.ones(c, dtype=dtype), torch.tensor(4)]
        norm = Norm(None, None, EPS, running, MOMENTUM, kind(group))
        namespace = str(backends.get("cpu").namespace)
        tail = case.tail(norm, factors[samples])
        result = step(tail, tensors, dy[samples], layout, namespace)
        found[name, dtype] = result | {"running": running}
    return found


# ---- blocks
class _Layer(torch.autograd.Function):
    """What torch.nn.SyncBatchNorm exchanges and computes on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, norm: Any) -> Tensor:
        group, c = norm.process_group or dist.group.WORLD, x.shape[1]
        own = x.new_zeros(2 * c + 1)
        if x.numel() > 0:
            var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
            count = x.new_tensor([x.numel() / c])
            own = torch.cat([mean, torch.rsqrt(var + norm.eps), count])
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, own, group)
        means, inverses, counts = torch.stack([p for p in parts if p[-1] > 0]).split([c, c, 1], 1)
        total = counts.sum()
        mean = (means * counts).sum(0) / total
        squares = inverses**-2 - norm.eps + (means - mean) ** 2
        var = (squares * counts).sum(0) / total
        norm.num_batches_tracked += 1
        momentum = norm.momentum or 1 / int(norm.num_batches_tracked)
        norm.running_mean.lerp_(mean, momentum)
        norm.running_var.lerp_(var * total / (total - 1), momentum)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(var + norm.eps), total)
        ctx.group = group
        scale = weight * torch.rsqrt(var + norm.eps)
        return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]

    @staticmethod
    def backward(ctx: Any, dy: Any) -> Any:
        x, weight, mean, inverse, total = ctx.saved_tensors
        d = x - mean[:, None, None]
        own = torch.cat([dy.sum((0, 2, 3)), (dy * d).sum((0, 2, 3))])
        c, everything = len(mean), own.clone()
        dist.all_reduce(everything, group=ctx.group)
        constant, slope = (everything / total).view(2, c)
        shared = constant[:, None, None] + d * (slope * inverse**2)[:, None, None]
        dx = (dy - shared) * (weight * inverse)[:, None, None]
        return dx, own[c:] * inverse, own[:c], None


def by_layers(model: nn.Module) -> nn.Module:
    """Its norms run as they are, and as they do on a GPU."""

    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = _Layer.apply(x, m.weight, m.bias, m)
        return m.act(y) if hasattr(m, "act") else y  # type: ignore[no-any-return]

    for m in model.modules():
        if isinstance(m, nn.SyncBatchNorm):
            m.forward = functools.partial(forward, m)  # type: ignore[assignment]
    return model


def _bottleneck(**kwargs: Any) -> nn.Module:
    resnet = timm.models.resnet
    layer = resnet.downsample_conv(16, 32, 1, 1)
    return resnet.Bottleneck(16, 8, 1, layer, **kwargs)  # type: ignore[no-any-return]


BLOCKS = {
    "bottleneck": lambda: _bottleneck(),
    "bottleneck-se": lambda: _bottleneck(attn_layer=timm.layers.SEModule),
    "inverted-se": lambda: timm.models._efficientnet_blocks.InvertedResidual(
        16, 16, act_layer=nn.SiLU, se_layer=timm.models._efficientnet_blocks.SqueezeExcite
    ),
    "repvgg": lambda: timm.models.byobnet.RepVggBlock(16, 16),
    "mobile-one": lambda: timm.models.byobnet.MobileOneBlock(16, 16),
    "conv-bn-act": lambda: timm.models._efficientnet_blocks.ConvBnAct(16, 16, 3, skip=True),
}
#: Which processes run the layers instead.
WAYS = {"fused": (), "first": (0,), "all": (0, 1), "checkpoint": (), "checkpoint-all": (0, 1)}
RUNS = [
    *itertools.product(BLOCKS, ("fused", "first")),
    *itertools.product(("bottleneck-se",), ("all", "checkpoint", "checkpoint-all")),
]


def block(name: str) -> nn.Module:
    """With batch norms, in float64; momentum None where statistics are averages."""
    torch.manual_seed(0)
    module: nn.Module = BLOCKS[name]().double()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
            m.momentum = None if name == "repvgg" else 0.3
    return module


def images(samples: int) -> Tensor:
    """For a block."""
    x = torch.randn(samples, 16, 6, 5, generator=torch.Generator().manual_seed(3)).double()
    return x + torch.arange(samples)[:, None, None, None]


def train(module: nn.Module, x: Tensor, checkpointed: bool = False) -> dict[str, Any]:
    """Two steps' gradients, values and statistics."""
    found: list[Tensor] = []
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        module.zero_grad()
        if checkpointed:
            y = torch.utils.checkpoint.checkpoint(module, leaf, use_reentrant=False)
        else:
            y = module(leaf)
        y.sin().sum().backward()
        found += y.detach(), leaf.grad
    grads = {k: p.grad for k, p in module.named_parameters()}
    return {"maps": found, "grads": grads, "buffers": dict(module.named_buffers())}


def of_blocks(group: Any) -> dict[str, Any]:
    """Every block, with what calls of tails it made; in some ways one process runs the layers."""
    calls: list[Any] = []

    def apply(*args: Any) -> Any:
        calls.append(args[1].norm.together)
        return apply_tail(*args)

    deferred.apply_tail = apply
    deferred.SMALLEST = {}
    deferred._layers_are_faster = lambda *_: False
    views.TOGETHER = ("cpu",)
    rank, sizes, found = dist.get_rank(group), SPLITS["two"], {}
    for name, way in RUNS:
        module = timm.layers.convert_sync_batchnorm(block(name), group)
        if rank in WAYS[way]:
            by_layers(module)
        else:
            chattn_cuda.accelerate(module, fuse="tail")
        calls.clear()
        x = images(sum(sizes)).split(sizes)[rank]
        result = train(module, x, way.startswith("checkpoint"))
        found[name, way] = result | {"calls": sum(c is not None for c in calls)}
    return found


def errors(group: Any) -> list[str]:
    """What is said: of CPU maps, as PyTorch; of second derivatives."""
    said = []
    views.TOGETHER = ("cuda",)
    module = nn.SyncBatchNorm.convert_sync_batchnorm(block("bottleneck"), group)
    chattn_cuda.accelerate(module, fuse="tail")
    try:
        module(images(2))
    except ValueError as e:
        said.append(str(e))
    views.TOGETHER = ("cpu",)
    x = images(2).requires_grad_()
    (dx,) = torch.autograd.grad(module(x).sin().sum(), x, create_graph=True)
    said.append(f"gradient: {dx.shape}")
    try:
        dx.sum().backward()
    except RuntimeError as e:
        said.append(str(e))
    return said


def main(rank: str, world: str, file: str, out: str) -> None:
    """Take part, and save what this process found."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{file}", rank=int(rank), world_size=int(world)
    )
    pair = dist.new_group([0, 1])
    found: dict[str, Any] = {}
    for split, sizes in SPLITS.items():
        group = pair if len(sizes) == 2 else dist.group.WORLD
        if int(rank) < len(sizes):
            for layout in LAYOUTS:
                found[f"{split}-{layout}"] = of_functions(group, split, layout)
    if int(rank) < 2:
        for bug, kind in BUGS.items():
            found[bug] = of_functions(pair, "two", "nchw", kind, DTYPES[:1])
        found["blocks"] = copy.deepcopy(of_blocks(pair))
        found["errors"] = errors(pair)
    torch.save(found, out)


if __name__ == "__main__":
    main(*sys.argv[1:])
    leave()
