"""Global response normalisation as a module: timm's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import validation
from chattn_cuda.functional import Decision
from chattn_cuda.functional.grn import check_eps, check_global_response_norm
from chattn_cuda.modules.fused import Call, FusedForward, Operands
from chattn_cuda.modules.layers import parameter

__all__ = ["GlobalResponseNorm", "GlobalResponseNormForward", "eps_obstacle"]


_MOST_SAMPLES = 16  # with planes of one position


def eps_obstacle(module: Any) -> str | None:
    """Why the operators cannot take the module's eps; None where they can."""
    eps = module.eps
    return None if type(eps) in (int, float) else f"eps is a {type(eps).__name__}"


class GlobalResponseNormForward(FusedForward):
    """The forward over the module's own weight and bias, for channels at ``channel_dim``."""

    __jit_unused_properties__ = ["backend", "_channel_dim"]
    _block = "GlobalResponseNorm"
    _reads: tuple[str, ...] = ("eps", "channel_dim")
    _fusible = True

    @property
    def _channel_dim(self: Any) -> int:  # type: ignore[override]
        return -1 if self.channel_dim == -1 else 1

    @torch.jit.unused
    def operands(self: Any) -> Operands | str:
        """What the operators take of the module, or why they do not cover it."""
        if (reason := eps_obstacle(self)) is not None:
            return reason
        places = (self, "weight"), (self, "bias")
        call = Call("grn", self.backend, 2, (float(self.eps),))
        return Operands(call, places, ("weight", "bias"), parameter(self, "weight").shape[0])

    @torch.jit.unused
    def _is_left(self: Any, x: Any) -> bool:
        """Whether PyTorch is faster: on a CPU, for many samples whose planes have one position."""
        if self._backend != "auto" or not isinstance(x, Tensor) or x.dim() != 4:
            return False
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
            return False
        n, c = x.shape[0], x.shape[self._channel_dim]
        return x.device.type == "cpu" and n > _MOST_SAMPLES and x.numel() == n * c

    @torch.jit.unused
    def _fused_or_eager(self: Any, x: Tensor) -> Tensor:
        run = self.eager_forward if self._is_left(x) else super()._fused_or_eager
        y: Tensor = run(x)
        return y

    @torch.jit.unused
    def _decide(self: Any, x: Tensor, found: Operands | str) -> Decision:
        if self._is_left(x):
            found = (
                f"PyTorch is faster for more than {_MOST_SAMPLES} planes of one position, on a CPU"
            )
        decision: Decision = super()._decide(x, found)
        return decision

    @torch.jit.unused
    def check(self, m: Tensor, tensors: Sequence[Any], names: Sequence[str]) -> None:
        """Raise unless the weights fit the map ``m``."""
        check_global_response_norm(m, tensors[0], tensors[1])


class GlobalResponseNorm(GlobalResponseNormForward, nn.Module):
    """Global response normalisation with the constructor and result of timm's GlobalResponseNorm.

    Woo et al., arXiv 2301.00808. State dicts load both ways.

    Args:
        dim: C of the input.
        eps: Added to the mean norm.
        channels_last: Whether the input is (N, H, W, C) and not (N, C, H, W).
        device: Of the parameters.
        dtype: Of the parameters.
        backend: "auto" or one of `chattn_cuda.backends.names()`; may be set later.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: ``dim`` below 1, an unknown backend.

    Examples:
        >>> y = GlobalResponseNorm(64)(torch.randn(2, 8, 8, 64))
    """

    def __init__(
        self,
        dim: int,
        eps: float = 1e-6,
        channels_last: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        validation.check_positive(dim, "dim")
        validation.check_bool(channels_last, "channels_last")
        check_eps(eps)
        self.eps = float(eps)
        self.channel_dim = -1 if channels_last else 1
        self.weight = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(dim, device=device, dtype=dtype))
        self.backend = backend

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block in plain PyTorch."""
        if self.channel_dim == 1:
            g = x.norm(p=2, dim=[2, 3], keepdim=True)
            shape = [1, -1, 1, 1]
        else:
            g = x.norm(p=2, dim=[1, 2], keepdim=True)
            shape = [1, 1, 1, -1]
        s = g / (g.mean(dim=self.channel_dim, keepdim=True) + self.eps)
        return x + torch.addcmul(self.bias.view(shape), self.weight.view(shape), x * s)
