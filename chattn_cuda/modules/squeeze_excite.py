"""Squeeze-and-Excitation as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from chattn_cuda import activations, functional, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.hooks import own_behaviour
from chattn_cuda.modules.batch_norm import BATCH_NORMS
from chattn_cuda.modules.fused import Call, FusedForward, Operands
from chattn_cuda.modules.layers import (
    child,
    is_global_average_pool,
    parameter,
    pointwise_obstacle,
    submodule_obstacle,
)
from chattn_cuda.modules.make_divisible import reduced_channels

__all__ = [
    "SqueezeExcite",
    "SqueezeExciteForward",
    "SqueezeExciteLayers",
    "pooled",
]


class SqueezeExciteLayers(NamedTuple):
    """What a block of the SE family computes with, wherever its class keeps it."""

    first: Any  # a 1x1 Conv2d or a Linear; None: the gate has one layer
    norm: Any  # a batch norm, an Identity or None
    act: ActivationSpec
    second: Any
    gate: ActivationSpec
    add_maxpool: bool = False
    names: tuple[str, str] = ("fc1", "fc2")
    around: tuple[Any, ...] = ()  # other submodules that are called, and whose hooks count
    kinds: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)  # that first and second may be of
    pool: Any = None  # the module that squeezes, where there is one
    changed: str | None = None  # why these are not the layers of the block any more

    def why_never_fused(self) -> str | None:
        """What will not go away by itself, as hooks and batch statistics can; None: nothing."""
        if (reason := self._why_another_block()) is not None:
            return reason
        for layer, name in zip((self.first, self.second), self.names, strict=True):
            if layer is not None and type(layer) not in self.kinds:
                return submodule_obstacle(layer, name, *self.kinds)
        norm = type(self.norm)
        if norm not in (type(None), *self._norms()):
            return f"bn is a {norm.__name__}"
        resolved = self.activations()
        return resolved if isinstance(resolved, str) else None

    def why_not_fused(self) -> str | None:
        """Why the operators do not cover the layers as they are now; None where they do."""
        if (reason := self._why_another_block()) is not None:
            return reason
        for layer, name in zip((self.first, self.second), self.names, strict=True):
            reason = None if layer is None else pointwise_obstacle(layer, name, self.kinds)
            if reason is not None:
                return reason
        if (reason := self._why_others_called()) is not None:
            return reason
        norm = self.norm
        if norm is None:
            return None
        reason = submodule_obstacle(norm, "bn", *self._norms())
        if reason is not None or type(norm) is nn.Identity:
            return reason
        if norm.training or norm.running_mean is None:
            return "bn normalises with the statistics of the batch"
        return None

    def _norms(self) -> tuple[type[nn.Module], ...]:
        """Those that take what ``first`` gives, and can be folded into it."""
        linear = type(self.first) is nn.Linear
        return nn.Identity, *((nn.BatchNorm1d, nn.SyncBatchNorm) if linear else BATCH_NORMS)

    def why_others_not_fused(self) -> str | None:
        """`why_not_fused` for all but the layers, the norm and the activations."""
        return self._why_another_block() or self._why_others_called()

    def _why_others_called(self) -> str | None:
        for module in self.around if self.pool is None else (*self.around, self.pool):
            if (own := own_behaviour(module)) is not None:
                return f"a {type(module).__name__} in it {own}"
        return None

    def _why_another_block(self) -> str | None:
        if self.add_maxpool:
            return functional.MAXIMUM
        if self.pool is not None and not is_global_average_pool(self.pool):
            return f"it pools with a {type(self.pool).__name__}"
        return self.changed

    def activations(self) -> str | tuple[functional.Resolved, functional.Resolved]:
        """The activation and the gate as the operators know them, or why they do not."""
        act, gate = activations.resolve(self.act), activations.resolve(self.gate)
        if act is None:
            return _why_unknown(self.act, "act")
        if gate is None or not gate[0].is_gate:
            return _why_unknown(self.gate, "gate")
        return act, gate

    def places(self) -> list[tuple[Any, str]]:
        """Where the tensors are: w1, b1, w2, b2; and, of a norm, weight, bias, mean, variance."""
        names = ("weight", "bias")
        places = [(layer, name) for layer in (self.first, self.second) for name in names]
        if self.is_normalised():
            places += [(self.norm, name) for name in (*names, "running_mean", "running_var")]
        return places

    def is_normalised(self) -> bool:
        """Whether there is a normalisation."""
        return self.norm is not None and type(self.norm) is not nn.Identity

    def weight_names(self) -> tuple[str, str, str, str]:
        """What error messages call the weights."""
        first, second = self.names
        return f"{first}.weight", f"{first}.bias", f"{second}.weight", f"{second}.bias"


def _why_unknown(spec: Any, name: str) -> str:
    own = own_behaviour(spec) if isinstance(spec, nn.Module) else None
    kind = spec if isinstance(spec, str) else type(spec).__name__
    return f"the kernels do not know {name} ({kind})" if own is None else f"{name} {own}"


def _check_samples(norm: Any) -> None:
    """Raise where torch would for one sample, with what to do."""
    if type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d) and norm.training:
        raise ValueError(
            "bn cannot normalise with the statistics of one sample; train with N >= 2, set "
            "bn.eval(), or build the module without it: norm_layer=None"
        )


def pooled(x: Tensor, add_maxpool: bool) -> Tensor:
    """The squeeze (N, C, 1, 1), by torch's operations."""
    s = x.mean((2, 3), keepdim=True)
    return 0.5 * s + 0.5 * x.amax((2, 3), keepdim=True) if add_maxpool else s


class SqueezeExciteForward(FusedForward):
    """The forward of the SE family over `SqueezeExciteLayers`."""

    if TYPE_CHECKING:  # as real annotations, TorchScript would read them
        fc1: nn.Conv2d
        bn: Any
        act: nn.Module
        fc2: nn.Conv2d
        gate: nn.Module
        add_maxpool: bool

    _block = "SqueezeExcite"
    _reads = ("add_maxpool",)
    _fusible = True

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        """The layers; here those of timm's SEModule."""
        names = ("fc1", "bn", "act", "fc2", "gate")
        fc1, bn, act, fc2, gate = (child(self, name) for name in names)
        return SqueezeExciteLayers(fc1, bn, act, fc2, gate, self.add_maxpool)

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        s = self.fc2(self.act(self.bn(self.fc1(pooled(x, self.add_maxpool)))))
        return x * self.gate(s)

    @torch.jit.unused
    def operands(self) -> Operands | str:
        """What the operators take of the layers, or why they do not cover them."""
        layers = self.fused_layers()
        if (reason := layers.why_not_fused()) is not None:
            return reason
        resolved = layers.activations()
        if isinstance(resolved, str):
            return resolved
        eps = layers.norm.eps if layers.is_normalised() else None
        folded = 0 if eps is None else parameter(layers.first, "weight").numel()
        call = Call("se", self.backend, 4, functional.constants(*resolved), eps, folded)
        channels = parameter(layers.second, "weight").shape[0]
        takes = parameter(layers.first or layers.second, "weight").shape[1]
        if channels == 1 and takes > 1:
            return "its gate is one number for all channels"
        return Operands(call, layers.places(), layers.weight_names(), channels)

    @torch.jit.unused
    def check(self, m: Tensor, tensors: Sequence[Any], names: Sequence[str]) -> None:
        """Raise unless the weights fit the map ``m``."""
        w1, b1, w2, b2 = tensors
        if w1 is None:
            validation.check_effective_squeeze_excite(m, w2, b2, names[2:])
        else:
            validation.check_squeeze_excite(m, w1, b1, w2, b2, names)

    @torch.jit.unused
    def _check_eagerly(self, x: Tensor, obstacle: str) -> None:
        if x.dim() == 4 and x.shape[0] == 1:
            _check_samples(self.fused_layers().norm)
        if obstacle == functional.MAXIMUM:
            validation.check_map(x, any_rank=self._any_rank, channel_dim=self._channel_dim)


class SqueezeExcite(SqueezeExciteForward, nn.Module):
    """Squeeze-and-Excitation with the constructor, parameters and result of timm's ``SEModule``.

    Hu et al., arXiv 1709.01507. State dicts load both ways. The parameters stay in ``nn.Conv2d``
    submodules, which the fused path reads without calling: where they have hooks, or are replaced
    by other classes (LoRA, quantisation), the module calls them one after the other instead. The
    input is (N, C, H, W), or (N, C, L) or (N, C, D, H, W), which timm's module does not take.

    Args:
        channels: C of the input.
        rd_ratio: rd = channels * rd_ratio, rounded to a multiple of rd_divisor.
        rd_channels: rd itself, instead.
        rd_divisor: See rd_ratio.
        add_maxpool: Squeeze with the mean of the mean and the maximum, by the submodules.
        bias: Whether the two layers have biases.
        act_layer: Activation between the layers: a name, a class or a factory.
        norm_layer: Normalisation between fc1 and the activation. A BatchNorm2d in eval mode is
            folded into fc1; with batch statistics, and for other classes, the submodules run one by
            one.
        gate_layer: The gate: a name, a class or a factory.
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: ``channels``, ``rd_channels`` or ``rd_divisor`` below 1, an unknown activation
            or backend. The forward raises as `chattn_cuda.functional.squeeze_excite` does.

    Examples:
        >>> y = SqueezeExcite(64)(torch.randn(2, 64, 8, 8))
    """

    _any_rank = True

    def __init__(
        self,
        channels: int,
        rd_ratio: float = 1.0 / 16,
        rd_channels: int | None = None,
        rd_divisor: int = 8,
        add_maxpool: bool = False,
        bias: bool = True,
        act_layer: ActivationSpec = nn.ReLU,
        norm_layer: Any = None,
        gate_layer: ActivationSpec = "sigmoid",
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        rd_channels = reduced_channels(channels, rd_ratio, rd_channels, rd_divisor)
        factory = {"device": device, "dtype": dtype}
        validation.check_bool(add_maxpool, "add_maxpool")
        if norm_layer is not None and not callable(norm_layer):
            raise TypeError(
                f"norm_layer must be a class or a factory, got {type(norm_layer).__name__}"
            )
        self.add_maxpool = add_maxpool
        self.fc1 = nn.Conv2d(channels, rd_channels, kernel_size=1, bias=bias, **factory)
        self.bn = norm_layer(rd_channels, **factory) if norm_layer else nn.Identity()
        self.act = activations.make_layer(act_layer, "act_layer", inplace=True)
        self.fc2 = nn.Conv2d(rd_channels, channels, kernel_size=1, bias=bias, **factory)
        self.gate = activations.make_layer(gate_layer, "gate_layer")
        self.backend = backend
