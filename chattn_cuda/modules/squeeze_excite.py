"""Squeeze-and-Excitation as a module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from chattn_cuda import activations, backends, functional, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.explanation import Explanation, explain_call
from chattn_cuda.modules.fused import FusedForward, pointwise_obstacle, submodule_obstacle
from chattn_cuda.modules.make_divisible import make_divisible

__all__ = ["SqueezeExcite", "SqueezeExciteForward"]

_WEIGHTS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")


class SqueezeExciteForward(FusedForward):
    """The forward over the submodules fc1, bn, act, fc2, gate and the flag add_maxpool."""

    if TYPE_CHECKING:  # as real annotations, TorchScript would read them
        fc1: nn.Conv2d
        bn: Any
        act: nn.Module
        fc2: nn.Conv2d
        gate: nn.Module
        add_maxpool: bool

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        s = x.mean((2, 3), keepdim=True)
        if self.add_maxpool:
            s = 0.5 * s + 0.5 * x.amax((2, 3), keepdim=True)
        s = self.fc2(self.act(self.bn(self.fc1(s))))
        return x * self.gate(s)

    @torch.jit.unused
    def obstacle(self) -> str | None:
        """Why the operators do not cover this module as it is now; None where they do."""
        found = self._activations()
        return found if isinstance(found, str) else None

    @torch.jit.unused
    def _activations(self) -> str | tuple[functional.Resolved, functional.Resolved]:
        """The activation and the gate, or what `obstacle` returns."""
        reason = pointwise_obstacle(self.fc1, "fc1") or pointwise_obstacle(self.fc2, "fc2")
        if reason is not None:
            return reason
        bn = self.bn
        if type(bn) is not nn.Identity:
            reason = submodule_obstacle(bn, "bn", nn.BatchNorm2d, nn.SyncBatchNorm)
            if reason is not None:
                return reason
            if bn.training or bn.running_mean is None:
                return "bn normalises with the statistics of the batch"
        act, gate = activations.resolve(self.act), activations.resolve(self.gate)
        if act is None:
            return f"the kernels do not know act ({type(self.act).__name__})"
        if gate is None or not gate[0].is_gate:
            return f"the kernels do not know gate ({type(self.gate).__name__})"
        return act, gate

    @torch.jit.unused
    def fused_forward(self, x: Tensor) -> Tensor | None:
        """The block by the operators, or None where it must run its submodules."""
        found = self._activations()
        if isinstance(found, str):
            if isinstance(x, Tensor):
                backends.select(self.backend, x.device.type)
            return None
        fc1, fc2 = self.fc1, self.fc2
        validation.check_map(x, fc1.in_channels)
        w1, b1, w2, b2 = fc1.weight, fc1.bias, fc2.weight, fc2.bias
        validation.check_squeeze_excite(x, w1, b1, w2, b2, _WEIGHTS)
        weights: Sequence[Tensor | None] = (w1, b1, w2, b2)
        name = backends.select(self.backend, x.device.type, x.dtype)
        if name == "reference" and self.backend == "auto":
            return None
        if functional.why_not_fused(x, weights) is not None:
            return None
        weights = validation.unify_dtypes(x, weights, _WEIGHTS)
        if type(self.bn) is not nn.Identity:
            weights = fold_batch_norm(self.bn, *weights)
        return functional.run_squeeze_excite(name, x, weights, *found, self.add_maxpool)[0]

    @torch.jit.unused
    def explain(self, x: Tensor) -> Explanation:
        """How ``forward(x)`` would run; see `chattn_cuda.explain`."""
        validation.check_map(x)
        uncovered = self.obstacle()
        if uncovered is None:
            weights = (self.fc1.weight, self.fc1.bias, self.fc2.weight, self.fc2.bias)
            uncovered = functional.why_not_fused(x, weights)
        if uncovered is None and self.backend == "auto":
            if backends.select("auto", x.device.type, x.dtype) == "reference":
                uncovered = "no fused backend can run here"
        return explain_call(
            "SqueezeExcite", self.backend, x.device.type, x.dtype, uncovered, "eager"
        )


class SqueezeExcite(SqueezeExciteForward, nn.Module):
    """Squeeze-and-Excitation with the constructor, parameters and result of timm's ``SEModule``.

    Hu et al., arXiv 1709.01507. State dicts load both ways. The parameters stay in ``nn.Conv2d``
    submodules, which the fused path reads without calling: where they have hooks, or are replaced
    by other classes (LoRA, quantisation), the module calls them one after the other instead.

    Args:
        channels: C of the input.
        rd_ratio: rd = channels * rd_ratio, rounded to a multiple of rd_divisor.
        rd_channels: rd itself, instead.
        rd_divisor: See rd_ratio.
        add_maxpool: Squeeze with the mean of the mean and the maximum.
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

    Example:
        >>> y = SqueezeExcite(64)(torch.randn(2, 64, 8, 8))
    """

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
        validation.check_positive(channels, "channels")
        validation.check_positive(rd_divisor, "rd_divisor")
        if not rd_channels:
            rd_channels = make_divisible(channels * rd_ratio, rd_divisor)
        validation.check_positive(rd_channels, "rd_channels")
        factory = {"device": device, "dtype": dtype}
        self.add_maxpool = add_maxpool
        self.fc1 = nn.Conv2d(channels, rd_channels, kernel_size=1, bias=bias, **factory)
        self.bn = norm_layer(rd_channels, **factory) if norm_layer else nn.Identity()
        self.act = activations.make_layer(act_layer, "act_layer", inplace=True)
        self.fc2 = nn.Conv2d(rd_channels, channels, kernel_size=1, bias=bias, **factory)
        self.gate = activations.make_layer(gate_layer, "gate_layer")
        self.backend = backend


def fold_batch_norm(
    bn: Any, w1: Tensor | None, b1: Tensor | None, w2: Tensor | None, b2: Tensor | None
) -> Sequence[Tensor | None]:
    """The SE weights with a normalisation by running statistics folded into the first layer.

    Differentiable in the weights and in bn's. Computed in float32 for 16-bit weights, and then all
    four are float32, which the operators take with a 16-bit map.
    """
    assert w1 is not None and w2 is not None
    acc = torch.float64 if w1.dtype == torch.float64 else torch.float32
    scale = torch.rsqrt(bn.running_var.to(acc) + bn.eps)
    if bn.weight is not None:
        scale = scale * bn.weight.to(acc)
    shift = -bn.running_mean.to(acc) if b1 is None else b1.to(acc) - bn.running_mean.to(acc)
    shift = shift * scale
    if bn.bias is not None:
        shift = shift + bn.bias.to(acc)
    return (
        w1.to(acc) * scale[:, None, None, None],
        shift,
        w2.to(acc),
        None if b2 is None else b2.to(acc),
    )
