"""Selective kernels as modules: timm's, and split attention on the same operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chattn_cuda import activations, backends, functional, ops, reference, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.explanation import Explanation, explain_call
from chattn_cuda.modules.fused import FusedForward, pointwise_obstacle, submodule_obstacle

__all__ = [
    "SelectiveKernelAttn",
    "SelectiveKernelAttnForward",
    "SelectiveKernelForward",
    "SplitAttnForward",
    "fuse",
]

_BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def fuse(
    maps: Sequence[Tensor],
    logits: Callable[[Tensor], Tensor],
    backend: str,
    slices: int = 1,
) -> tuple[Tensor, Tensor]:
    """(y, gate) of branches that a module made; by the formulas where no operator can."""
    name = backends.select(backend, maps[0].device.type, maps[0].dtype)
    if functional.why_not_fused(maps[0], maps[1:]) is not None:
        name = "reference"
    return functional.run_selective_kernel(name, maps, logits, slices)


def small_layer(module: Any, name: str, s: Tensor) -> Tensor:
    """A 1x1 convolution on (N, K) numbers, in their type where nothing else asks to be called."""
    if pointwise_obstacle(module, name) is None:
        bias = None if module.bias is None else module.bias.to(s.dtype)
        return F.linear(s, module.weight.flatten(1).to(s.dtype), bias)
    return called(module, s)


def called(module: Any, s: Tensor) -> Tensor:
    """Any module of (N, K, 1, 1) maps, on (N, K) numbers, in its parameters' type."""
    first = next(module.parameters(), None)
    x = s if first is None else s.to(first.dtype)
    return module(x[:, :, None, None]).flatten(1).to(s.dtype)


def inner_norm(module: Any, name: str, s: Tensor) -> Tensor:
    """The normalisation of the hidden values (N, d).

    Raises:
        ValueError: Statistics of a batch of one sample.
    """
    if type(module) is nn.Identity:
        return s
    if isinstance(module, _BATCH_NORMS) and module.training and s.shape[0] == 1:
        raise ValueError(
            f"{name} cannot normalise with the statistics of one sample; train with N >= 2, set "
            f"{name}.eval(), or build the module without it (norm_layer=None, attn_norm_layer=None "
            "or fc='plain')"
        )
    return called(module, s)


class SelectiveKernelAttnForward(FusedForward):
    """The forward over the submodules fc_reduce, bn, act, fc_select and the number num_paths."""

    if TYPE_CHECKING:  # as real annotations, TorchScript would read them
        fc_reduce: nn.Conv2d
        bn: Any
        act: nn.Module
        fc_select: nn.Conv2d
        num_paths: int

    def eager_forward(self, x: Tensor) -> Tensor:
        """The gate (N, M, C, 1, 1) of stacked branches (N, M, C, H, W), by the submodules."""
        s = x.sum(1).mean((2, 3), keepdim=True)
        z = self.fc_select(self.act(self.bn(self.fc_reduce(s))))
        return torch.softmax(z.view(x.shape[0], self.num_paths, x.shape[2], 1, 1), dim=1)

    @torch.jit.unused
    def fused_forward(self, x: Tensor) -> Tensor | None:
        """The gate, with the squeeze by its operator."""
        self._check_stacked(x)
        name = backends.select(self.backend, x.device.type, x.dtype)
        branches = x.unbind(1)
        namespace = backends.get(name).namespace
        if len(branches) > validation.MAX_BRANCHES or namespace is None:
            return None
        if functional.why_not_fused(branches[0], branches[1:]) is not None:
            return None
        with reference.no_autocast(x.device.type):
            z = attn_logits(self, ops.sk.squeeze(namespace, branches))
            return torch.softmax(z, 1).to(x.dtype)[:, :, :, None, None]

    @torch.jit.unused
    def fuse(self, branches: Sequence[Tensor]) -> Tensor:
        """Y of the branches, a list of ``num_paths`` maps (N, C, H, W), which are never stacked.

        Raises:
            TypeError: ``branches`` is no list of maps.
            ValueError: Another number of them, different shapes, types or devices; batch
                statistics of one sample.
        """
        validation.check_branches(branches, self.fc_reduce.weight.shape[1])
        if len(branches) != self.num_paths:
            raise ValueError(f"branches must be {self.num_paths} maps, got {len(branches)}")

        def logits(pooled: Tensor) -> Tensor:
            with reference.no_autocast(pooled.device.type):
                return attn_logits(self, pooled)

        return fuse(branches, logits, self.backend)[0]

    @torch.jit.unused
    def obstacle(self) -> str | None:
        """Why the operators do not cover this module as it is now; None where they do."""
        if self.num_paths > validation.MAX_BRANCHES:
            return f"the kernels take at most {validation.MAX_BRANCHES} branches"
        return None

    @torch.jit.unused
    def explain(self, x: Tensor) -> Explanation:
        """How ``forward(x)`` would run; see `chattn_cuda.explain`."""
        self._check_stacked(x)
        uncovered = self.obstacle() or functional.why_not_fused(x[:, 0], ())
        return explain_call(
            "SelectiveKernelAttn", self.backend, x.device.type, x.dtype, uncovered, "eager"
        )

    @torch.jit.unused
    def _check_stacked(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        if x.dim() != 5 or x.shape[1] != self.num_paths:
            raise ValueError(
                f"x must have shape (N, {self.num_paths}, C, H, W), got {tuple(x.shape)}"
            )


def attn_logits(attn: Any, pooled: Tensor) -> Tensor:
    """The logits (N, M, C) by the submodules of a `SelectiveKernelAttn`, ours or timm's."""
    h = inner_norm(attn.bn, "bn", small_layer(attn.fc_reduce, "fc_reduce", pooled))
    z = small_layer(attn.fc_select, "fc_select", attn.act(h))
    return z.unflatten(1, (attn.num_paths, -1))


class SelectiveKernelForward(FusedForward):
    """The forward over the submodules paths and attn, and the numbers of timm's SelectiveKernel."""

    if TYPE_CHECKING:
        paths: nn.ModuleList
        attn: Any
        num_paths: int
        in_channels: int
        split_input: bool

    def branches(self, x: Tensor) -> list[Tensor]:
        """The maps that are weighed, by the paths."""
        if self.split_input:
            parts = torch.split(x, self.in_channels // self.num_paths, 1)
            return [path(parts[i]) for i, path in enumerate(self.paths)]
        return [path(x) for path in self.paths]

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        return self._weighed(self.branches(x))

    def _weighed(self, branches: list[Tensor]) -> Tensor:
        u = torch.stack(branches, dim=1)
        return (u * self.attn(u)).sum(1)

    @torch.jit.unused
    def obstacle(self) -> str | None:
        """Why the operators do not cover this module as it is now; None where they do."""
        if self.num_paths > validation.MAX_BRANCHES:
            return f"the kernels take at most {validation.MAX_BRANCHES} branches"
        attn = type(self.attn)
        known = "timm.layers.selective_kernel.SelectiveKernelAttn"
        base = attn.__dict__.get("_accelerated_from", attn)
        if attn is SelectiveKernelAttn or f"{base.__module__}.{base.__qualname__}" == known:
            return submodule_obstacle(self.attn, "attn", attn)
        return f"attn is a {attn.__name__}"

    @torch.jit.unused
    def fused_forward(self, x: Tensor) -> Tensor | None:
        """The block, with what follows the paths by the operators."""
        validation.check_map(x, self.in_channels)
        backends.select(self.backend, x.device.type)
        branches = self.branches(x)
        if self.obstacle() is not None:
            return self._weighed(branches)  # the paths run once

        def logits(pooled: Tensor) -> Tensor:
            with reference.no_autocast(pooled.device.type):
                return attn_logits(self.attn, pooled)

        return fuse(branches, logits, self.backend)[0]

    @torch.jit.unused
    def explain(self, x: Tensor) -> Explanation:
        """How ``forward(x)`` would run; see `chattn_cuda.explain`."""
        validation.check_map(x, self.in_channels)
        uncovered = self.obstacle() or functional.why_not_fused(x, ())
        return explain_call(
            "SelectiveKernel", self.backend, x.device.type, x.dtype, uncovered, "eager"
        )


class SplitAttnForward(FusedForward):
    """The forward over conv, bn0, drop, act0, fc1, bn1, act1, fc2, rsoftmax and radix.

    Zhang et al., arXiv 2004.08955. The branches are slices of the convolution's map: they are read
    in place, and their gradients are written into one map (by Triton with copies of both).
    """

    if TYPE_CHECKING:
        conv: nn.Conv2d
        bn0: nn.Module
        drop: nn.Module
        act0: nn.Module
        fc1: nn.Conv2d
        bn1: Any
        act1: nn.Module
        fc2: nn.Conv2d
        rsoftmax: Any
        radix: int

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        return self._weighed(self.act0(self.drop(self.bn0(self.conv(x)))))

    def _weighed(self, u: Tensor) -> Tensor:
        n, _, h, w = u.shape
        u = u.reshape(n, self.radix, -1, h, w)
        s = u.sum(1).mean((2, 3), keepdim=True)
        z = self.fc2(self.act1(self.bn1(self.fc1(s))))
        gate = self.rsoftmax(z).view(n, self.radix, -1, 1, 1)
        return (u * gate).sum(1).contiguous()

    @torch.jit.unused
    def obstacle(self) -> str | None:
        """Why the operators do not cover this module as it is now; None where they do."""
        if not 1 < self.radix <= validation.MAX_BRANCHES:
            return f"the kernels take a radix of 2 to {validation.MAX_BRANCHES}"
        return submodule_obstacle(self.rsoftmax, "rsoftmax", type(self.rsoftmax))

    @torch.jit.unused
    def fused_forward(self, x: Tensor) -> Tensor | None:
        """The block, with what follows act0 by the operators."""
        validation.check_map(x)
        backends.select(self.backend, x.device.type)
        u = self.act0(self.drop(self.bn0(self.conv(x))))
        if self.obstacle() is not None:
            return self._weighed(u)

        def logits(pooled: Tensor) -> Tensor:
            with reference.no_autocast(pooled.device.type):
                h = inner_norm(self.bn1, "bn1", small_layer(self.fc1, "fc1", pooled))
                z = small_layer(self.fc2, "fc2", self.act1(h))
            # Rows of fc2: cardinal groups, in each the radix, in each the channels.
            z = z.unflatten(1, (self.rsoftmax.cardinality, self.radix, -1))
            return z.transpose(1, 2).flatten(2)

        return fuse([u], logits, self.backend, self.radix)[0]

    @torch.jit.unused
    def explain(self, x: Tensor) -> Explanation:
        """How ``forward(x)`` would run; see `chattn_cuda.explain`."""
        validation.check_map(x)
        uncovered = self.obstacle() or functional.why_not_fused(x, ())
        return explain_call(
            "SplitAttn",
            self.backend,
            x.device.type,
            x.dtype,
            uncovered,
            "eager",
            functional.COPIES_OF_SLICES,
        )


class SelectiveKernelAttn(SelectiveKernelAttnForward, nn.Module):
    """Fuse and select with the constructor, parameters and result of timm's SelectiveKernelAttn.

    Li et al., arXiv 1903.06586. ``fuse(branches)`` gives y; called with the stacked branches
    (N, M, C, H, W) it returns the gate (N, M, C, 1, 1), as timm's does. The layers between the
    passes are ordinary submodules: hooks on them run, and other classes may replace them.

    Args:
        channels: C of a branch.
        num_paths: M. More than 4 run by the submodules.
        attn_channels: d, the hidden size.
        act_layer: Activation: a name, a class or a factory.
        norm_layer: Normalisation of the hidden values, or None: a BatchNorm2d in training needs a
            batch of two.
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.
        bias: Whether the two layers have biases.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: A size below 1, an unknown activation or backend.

    Example:
        >>> y = SelectiveKernelAttn(64).eval().fuse([torch.randn(2, 64, 8, 8) for _ in range(2)])
    """

    def __init__(
        self,
        channels: int,
        num_paths: int = 2,
        attn_channels: int = 32,
        act_layer: ActivationSpec = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
        bias: bool = False,
    ) -> None:
        super().__init__()
        for value, name in (
            (channels, "channels"), (num_paths, "num_paths"), (attn_channels, "attn_channels"),
        ):  # fmt: skip
            validation.check_positive(value, name)
        factory = {"device": device, "dtype": dtype}
        self.num_paths = num_paths
        self.fc_reduce = nn.Conv2d(channels, attn_channels, 1, bias=bias, **factory)
        self.bn = norm_layer(attn_channels, **factory) if norm_layer else nn.Identity()
        self.act = activations.make_layer(act_layer, "act_layer", inplace=True)
        self.fc_select = nn.Conv2d(attn_channels, channels * num_paths, 1, bias=bias, **factory)
        self.backend = backend
