"""The blocks between SE and ECA that the ECA paper compares (arXiv 1910.03151, table 2).

They differ in how many weights a gate has: SE-Var1 none, SE-Var2 one per channel, SE-Var3 all
C x C, SE-GC those within groups of channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import activations, validation
from chattn_cuda.activations import ActivationSpec
from chattn_cuda.modules.efficient_channel_attention import EfficientChannelAttentionNS
from chattn_cuda.modules.fused import Call, FusedForward, Operands
from chattn_cuda.modules.layers import gate_of
from chattn_cuda.modules.squeeze_excite import SqueezeExciteForward, SqueezeExciteLayers

__all__ = ["SEGC", "SEVar1", "SEVar2", "SEVar3"]


class SEVar1(FusedForward, nn.Module):
    """``x * gate(mean_hw(x))``: no parameters.

    Args:
        gate_layer: The gate: a name, a class or a factory.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: ``gate_layer`` is of the wrong type.
        ValueError: An unknown gate or backend.
    """

    _any_rank = True
    _fusible = True

    def __init__(self, gate_layer: ActivationSpec = "sigmoid", *, backend: str = "auto") -> None:
        super().__init__()
        self.gate = activations.make_layer(gate_layer, "gate_layer")
        self.backend = backend

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        return x * self.gate(x.mean((2, 3), keepdim=True))

    @torch.jit.unused
    def operands(self) -> Operands | str:
        """Those of an ECA block whose one weight is 1, or why the operators do not cover it."""
        gate = gate_of(self.gate)
        if isinstance(gate, str):
            return gate
        return Operands(Call("eca", self.backend, 1, (gate[0].code, False)), (), ("weight",))

    @torch.jit.unused
    def check(self, m: Tensor, tensors: Sequence[Any], names: Sequence[str]) -> None:
        """The weight fits every map."""

    @torch.jit.unused
    def _tensors(self, m: Tensor, found: Operands) -> list[Any]:
        return [m.new_ones((1, 1, 1))]


class SEVar2(EfficientChannelAttentionNS):
    """``x * gate(w * mean_hw(x))`` with a weight per channel: ECA-NS with k = 1.

    Args:
        channels: C of the input.
        gate_layer: The gate: a name, a class or a factory.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: ``channels`` below 1, an unknown gate or backend.
    """

    def __init__(
        self, channels: int, gate_layer: ActivationSpec = "sigmoid", *, backend: str = "auto"
    ) -> None:
        super().__init__(channels, 1, gate_layer, backend=backend)


class SEVar3(SqueezeExciteForward, nn.Module):
    """``x * gate(W mean_hw(x))`` with a full matrix W, in ``fc.weight`` (C, C, 1, 1).

    Effective SE (`EffectiveSqueezeExcite`) without a bias.

    Args:
        channels: C of the input.
        gate_layer: The gate: a name, a class or a factory.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: ``channels`` below 1, an unknown gate or backend.
    """

    _block = ""
    _any_rank = True

    def __init__(
        self, channels: int, gate_layer: ActivationSpec = "sigmoid", *, backend: str = "auto"
    ) -> None:
        super().__init__()
        validation.check_positive(channels, "channels")
        self.fc = nn.Conv2d(channels, channels, kernel_size=1, bias=False)
        self.gate = activations.make_layer(gate_layer, "gate_layer")
        self.backend = backend

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        return x * self.gate(self.fc(x.mean((2, 3), keepdim=True)))

    @torch.jit.unused
    def fused_layers(self) -> SqueezeExciteLayers:
        """The one layer."""
        return SqueezeExciteLayers(None, None, "identity", self.fc, self.gate, names=("", "fc"))


class SEGC(SEVar3):
    """SE-Var3 within groups of channels: C * C / groups weights, in ``fc.weight``.

    It runs its submodules one by one, on every backend.

    Args:
        channels: C of the input.
        groups: How many groups; divides ``channels``.
        gate_layer: The gate: a name, a class or a factory.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: ``channels`` or ``groups`` below 1, ``groups`` does not divide ``channels``, an
            unknown gate or backend.
    """

    def __init__(
        self,
        channels: int,
        groups: int,
        gate_layer: ActivationSpec = "sigmoid",
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(channels, gate_layer, backend=backend)
        validation.check_positive(groups, "groups")
        if channels % groups:
            raise ValueError(f"groups must divide channels ({channels}), got {groups}")
        self.fc = nn.Conv2d(channels, channels, kernel_size=1, groups=groups, bias=False)
