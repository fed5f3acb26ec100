"""Selective kernels as modules: timm's, and split attention on the same operators."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chattn_cuda import activations, backends, functional, ops, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.hooks import are_as_their_classes, class_of, own_behaviour
from chattn_cuda.modules import memory
from chattn_cuda.modules.batch_norm import as_prologue
from chattn_cuda.modules.fused import FusedForward
from chattn_cuda.modules.inner_network import inner_network, network_form
from chattn_cuda.modules.layers import children

__all__ = [
    "SelectiveKernelAttn",
    "SelectiveKernelAttnForward",
    "SelectiveKernelForward",
    "before_norm",
    "decide",
    "fuse",
]

_LAYERS = ("fc_reduce", "bn", "act", "fc_select")
_PATHS = (
    ("chattn_cuda.modules.selective_kernel_blocks", "Path"),
    ("timm.layers.conv_bn_act", "ConvNormAct"),
)


def fuse(
    maps: Sequence[Tensor],
    network: Callable[[Tensor], Tensor],
    backend: str,
    slices: int = 1,
    prologue: ops.Prologue | None = None,
) -> Tensor:
    """Y of branches that a module made; by the formulas where no operator can."""
    name = backends.select(backend, maps[0].device.type, maps[0].dtype)
    # A network of numbers is not made where something is compiled.
    compiling = False if type(network) is ops.Network else torch.compiler.is_compiling()
    if compiling and functional.exported_plainly(backend):
        name = "reference"
    if functional.why_not_fused(maps[0], maps[1:], compiling) is not None:
        name = "reference"
    return functional.run_selective_kernel(name, maps, network, slices, prologue)[0]


def decide(
    name: str, module: Any, x: Tensor, notes: Mapping[str, str] | None = None
) -> functional.Decision:
    """What the forward of a ``module`` of this kind comes to for a map ``x``."""
    uncovered = module.obstacle() or functional.why_not_fused(x, ())
    return functional.Decision(
        name,
        module.backend,
        x,
        uncovered,
        fallback="eager",
        fusible=False,
        notes=lambda: notes or {},
    )


def before_norm(
    stages: Sequence[tuple[Any, Sequence[Any]]], inputs: Sequence[Tensor], slices: int = 1
) -> tuple[list[Tensor], ops.Prologue | None]:
    """What several stages make of their inputs, and the prologue that is left to do.

    In inference, a batch norm and an activation at the end of every stage are left to the passes:
    no map is written for them.

    Args:
        stages: For each a module, and the layers that follow it, as `as_prologue` takes them.
        inputs: One for each.
        slices: How many branches lie in one map.

    Returns:
        The maps, and their prologue; or finished maps and None.
    """
    prologue = None
    if not torch.is_grad_enabled():
        prologue = as_prologue([behind for _, behind in stages], slices)
    maps = []
    for (stage, behind), x in zip(stages, inputs, strict=True):
        u = stage(x)
        # A stage after the other, as the modules would: checkpoints compare what is saved.
        for layer in behind if prologue is None else ():
            u = layer(u)
        maps.append(u)
    return maps, prologue


class SelectiveKernelAttnForward(FusedForward):
    """The forward over the submodules fc_reduce, bn, act, fc_select and the number num_paths."""

    if TYPE_CHECKING:  # as real annotations, TorchScript would read them
        _modules: Any
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
    def _fuse(self, x: Tensor) -> Tensor | None:
        """The gate, with the squeeze by its operator."""
        self._check_stacked(x)
        name = backends.select(self.backend, x.device.type, x.dtype)
        branches = x.unbind(1)
        namespace = backends.get(name).namespace
        if len(branches) > validation.MAX_BRANCHES or namespace is None:
            return None
        if functional.why_not_fused(branches[0], branches[1:]) is not None:
            return None
        z = _attn_network(self, x[:, 0])(ops.sk.squeeze(namespace, branches))
        return torch.softmax(z, 1).to(x.dtype)[:, :, :, None, None]

    @torch.jit.unused
    def weigh(self, branches: Sequence[Tensor]) -> Tensor:
        """Y of the branches, a list of ``num_paths`` maps (N, C, H, W), which are never stacked.

        Raises:
            TypeError: ``branches`` is no list of maps.
            ValueError: Another number of them, different shapes, types or devices; batch
                statistics of one sample.
        """
        validation.check_branches(branches, self._channels())
        if len(branches) != self.num_paths:
            raise ValueError(f"branches must be {self.num_paths} maps, got {len(branches)}")
        return fuse(branches, _attn_network(self, branches[0]), self._backend)

    @torch.jit.unused
    def obstacle(self) -> str | None:
        """Why the operators do not cover this module as it is now; None where they do."""
        if self.num_paths > validation.MAX_BRANCHES:
            return f"the kernels take at most {validation.MAX_BRANCHES} branches"
        return None

    @torch.jit.unused
    def decide(self, x: Tensor) -> functional.Decision:
        """What ``forward(x)`` comes to."""
        self._check_stacked(x)
        return decide("SelectiveKernelAttn", self, x[:, 0])

    @torch.jit.unused
    def _check_stacked(self, x: Tensor) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}")
        if x.dim() != 5 or x.shape[1] != self.num_paths:
            raise ValueError(
                f"x must have shape (N, {self.num_paths}, C, H, W), got {tuple(x.shape)}"
            )
        channels = self._channels()
        if channels is not None and x.shape[2] != channels:
            raise ValueError(f"x must have {channels} channels (axis 2), got {tuple(x.shape)}")

    @torch.jit.unused
    def _channels(self) -> int | None:
        """C, where the first layer tells."""
        layer = self._modules.get("fc_reduce")
        return layer.in_channels if isinstance(layer, nn.Conv2d) else None


def _attn_network(attn: Any, u: Tensor) -> Callable[[Tensor], Tensor]:
    """The network of a `SelectiveKernelAttn`, ours or timm's, for branches like ``u``."""
    return inner_network(attn, _LAYERS, attn.num_paths, u)


class SelectiveKernelForward(FusedForward):
    """The forward over the submodules paths and attn, and the numbers of timm's SelectiveKernel."""

    if TYPE_CHECKING:
        _modules: Any
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

    @torch.jit.unused
    def branches_before_norm(self, x: Tensor) -> tuple[list[Tensor], ops.Prologue | None]:
        """As `before_norm`; the stages are the paths, where their layers are known."""
        stages = None
        if type(self).branches is SelectiveKernelForward.branches and not torch.is_grad_enabled():
            stages = self._stages()
        if stages is None:
            return self.branches(x), None
        if not self.split_input:
            return before_norm(stages, [x] * self.num_paths)
        return before_norm(stages, torch.chunk(x, self.num_paths, 1))

    @torch.jit.unused
    def _stages(self) -> list[tuple[Any, list[Any]]] | None:
        """Of each path the convolution and the layers behind it; None where they are not known."""
        paths = self._modules["paths"]._modules.values()
        if not are_as_their_classes(*paths):
            return None
        stages = []
        for path in paths:
            kind = class_of(path)
            if (kind.__module__, kind.__qualname__) not in _PATHS:
                return None
            own, layers = path._modules, []
            for name in ("bn", "drop", "act", "aa"):
                if name in own:
                    layers.append(own[name])
            stages.append((own["conv"], layers))
        return stages

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
        attn: Any = self._modules.get("attn")
        kind = type(attn)
        base = kind.__dict__.get("_accelerated_from", kind)
        known = ("timm.layers.selective_kernel", "SelectiveKernelAttn")
        if kind is not SelectiveKernelAttn and (base.__module__, base.__qualname__) != known:
            return f"attn is a {kind.__name__}"
        if not attn.num_paths == self.num_paths == len(self._modules["paths"]):
            return f"num_paths is {self.num_paths}, and that of attn {attn.num_paths}"
        return None if are_as_their_classes(attn) else f"attn {own_behaviour(attn)}"

    @torch.jit.unused
    def _fuse(self, x: Tensor) -> Tensor | None:
        """The block, with what follows the paths by the operators."""
        validation.check_map(x, self.in_channels)
        if self.obstacle() is not None:
            backends.select(self._backend, x.device.type)
            return ops.in_format_of(x, self.eager_forward(x))  # stacked maps lose it
        branches, prologue = self.branches_before_norm(x)
        network = _attn_network(self._modules["attn"], branches[0])
        if type(network) is ops.Network:
            self._remember_layers()
        return fuse(branches, network, self._backend, prologue=prologue)

    @torch.jit.unused
    def _remember_layers(self) -> None:
        """Let `_repeat` run for as long as the layers are these; see `memory`."""
        layers = children(self._modules["attn"], *_LAYERS)
        form = network_form(*layers)
        if form is None or type(self).branches is not SelectiveKernelForward.branches:
            return
        places = form.places(*layers)
        eps: tuple[float, ...] = ()
        act = None
        stages = self._stages()
        if stages is not None and (prologue := as_prologue([behind for _, behind in stages])):
            eps, act = tuple(norm[-1] for norm in prologue.norms), prologue.act
            for _, (norm, *_) in stages:
                places += ((norm, "weight"), (norm, "bias"))
                places += ((norm, "running_mean"), (norm, "running_var"))
        memory.remember(self, places, ("in_channels", "num_paths", "split_input"), (form, eps, act))

    @torch.jit.unused
    def _repeat(self, x: Any) -> Tensor | None:
        """The block by what an earlier call found; in inference as `before_norm`."""
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return None
        known = memory.recall(self)
        if known is None or not isinstance(x, Tensor):
            return None
        validation.check_map(x, self.in_channels)
        ((form, eps, act), tensors), count = known, self.num_paths
        maps = list(torch.chunk(x, count, 1) if self.split_input else [x] * count)
        paths, prologue = self._modules["paths"]._modules.values(), None
        first = len(tensors) - 4 * len(eps)  # of the paths' norms
        # Without running statistics a norm takes those of the batch.
        tracked = all(t is not None for i in (2, 3) for t in tensors[first + i :: 4])
        if eps and tracked and not torch.is_grad_enabled():
            norms: list[ops.Norm] = []
            for m, path in enumerate(paths):
                maps[m] = path._modules["conv"](maps[m])
                weight, bias, mean, var = tensors[first + 4 * m : first + 4 * m + 4]
                norms.append((weight, bias, mean, var, eps[m]))
            prologue = ops.Prologue(None, norms, act)
        else:
            for m, path in enumerate(paths):
                maps[m] = path(maps[m])
        u = maps[0]
        network = form.network(count, u.shape[0], u.dtype, *tensors[:first])
        if network is None:
            return fuse(maps, _attn_network(self._modules["attn"], u), self._backend, 1, prologue)
        return fuse(maps, network, self._backend, 1, prologue)

    @torch.jit.unused
    def decide(self, x: Tensor) -> functional.Decision:
        """What ``forward(x)`` comes to."""
        validation.check_map(x, self.in_channels)
        return decide("SelectiveKernel", self, x)


class SelectiveKernelAttn(SelectiveKernelAttnForward, nn.Module):
    """Fuse and select with the constructor, parameters and result of timm's SelectiveKernelAttn.

    Li et al., arXiv 1903.06586. ``weigh(branches)`` gives y; called with the stacked branches
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

    Examples:
        >>> y = SelectiveKernelAttn(64).eval().weigh([torch.randn(2, 64, 8, 8) for _ in range(2)])
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
