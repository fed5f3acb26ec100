"""What every module of the package shares: the backend, and when its own submodules run.

A block's module keeps its parameters in ordinary submodules. Its forward reads their parameters and
runs the fused operators, unless something makes the result differ from calling the submodules: then
it calls them, as the module that it replaces would.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from chattn_cuda import backends
from chattn_cuda.explanation import Explanation

__all__ = ["FusedForward", "pointwise_obstacle", "submodule_obstacle"]


class FusedForward:
    """Mixin in front of an ``nn.Module`` class; a block adds the methods that raise here."""

    __jit_unused_properties__ = ["backend"]
    _backend = "auto"

    @property
    def backend(self) -> str:
        """The backend to use: "auto" or one of `chattn_cuda.backends.names()`.

        Raises:
            ValueError: On setting an unknown name.
        """
        return self._backend

    @backend.setter
    def backend(self, name: str) -> None:
        backends.check_name(name, auto=True)
        self._backend = name

    def forward(self, x: Tensor) -> Tensor:
        """The block on a map (N, C, H, W); y has x's shape, type and memory format."""
        if torch.jit.is_scripting():
            return self.eager_forward(x)
        return self._fused_or_eager(x)

    def eager_forward(self, x: Tensor) -> Tensor:
        """The block by its submodules, one after the other."""
        raise NotImplementedError

    @torch.jit.unused
    def fused_forward(self, x: Tensor) -> Tensor | None:
        """The block by the operators, or None where `obstacle` has a reason."""
        raise NotImplementedError

    @torch.jit.unused
    def obstacle(self) -> str | None:
        """Why the operators do not cover this module as it is now; None where they do."""
        raise NotImplementedError

    @torch.jit.unused
    def explain(self, x: Tensor) -> Explanation:
        """How ``forward(x)`` would run; see `chattn_cuda.explain`."""
        raise NotImplementedError

    @torch.jit.unused
    def _fused_or_eager(self, x: Tensor) -> Tensor:
        # Graphs that must not depend on this package get the plain operations.
        if isinstance(x, Proxy) or torch.jit.is_tracing():
            return self.eager_forward(x)
        if torch.compiler.is_exporting() and torch.onnx.is_in_onnx_export():
            return self.eager_forward(x)
        y = self.fused_forward(x)
        return self.eager_forward(x) if y is None else y


def submodule_obstacle(module: Any, name: str, *types: type[nn.Module]) -> str | None:
    """Why reading ``module``'s parameters would not be the same as calling it; None where it is.

    Exact types only: LoRA, quantised and parametrised layers are other classes.
    """
    if type(module) not in types:
        return f"{name} is a {type(module).__name__}"
    if (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    ):
        return f"{name} has hooks"
    if "forward" in module.__dict__:
        return f"{name} has a forward of its own"
    return None


def pointwise_obstacle(module: Any, name: str) -> str | None:
    """Why ``module`` is not a plain 1x1 convolution; None where it is one."""
    reason = submodule_obstacle(module, name, nn.Conv2d)
    if reason is None and not (
        module.kernel_size == (1, 1) and module.groups == 1 and module.padding in ((0, 0), "valid")
    ):
        reason = f"{name} is not a 1x1 convolution"
    return reason
