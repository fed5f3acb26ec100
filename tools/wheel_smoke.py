"""What a wheel must do where it is installed: forward, backward, accelerate, compile, doctor.

    python tools/wheel_smoke.py        prints a line for each, then "name: value" of what is here

It needs torch and the wheel; with a torchvision that loads, one of its models is accelerated, too.
No compiler is needed: torch.compile runs with "aot_eager", since Inductor's code for a CPU asks for
one.
"""

from __future__ import annotations

import contextlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import chattn_cuda
from chattn_cuda import _native


class HomeMade(nn.Module):
    """Squeeze-and-excitation as people write it themselves."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.reduce = nn.Conv2d(channels, channels // 4, 1)
        self.expand = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.expand(self.reduce(self.pool(x)).relu()).sigmoid()


BLOCKS: dict[str, Callable[[str], nn.Module]] = {
    "SE": lambda backend: chattn_cuda.SqueezeExcite(32, backend=backend),
    "ECA": lambda backend: chattn_cuda.EfficientChannelAttention(32, backend=backend),
    "SK": lambda backend: chattn_cuda.SelectiveKernel(32, 32, backend=backend),
}


def gradients(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """A call's result and all of its gradients."""
    x = x.clone().requires_grad_()
    y = model(x)
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), [x, *parameters])]


def agree(ours: list[torch.Tensor], exact: list[torch.Tensor]) -> None:
    """Raise where one is far from the other: numbers of another, not roundings."""
    for a, b in zip(ours, exact, strict=True):
        scale = b.abs().max().clamp_min(1e-3)
        assert ((a - b).abs().max() / scale) < 1e-3, f"differs by {(a - b).abs().max()} of {scale}"


def forward_and_backward() -> str:
    """Numbers and gradients are those of the formulas."""
    x = torch.randn(2, 32, 14, 14)
    for make in BLOCKS.values():
        ours, formulas = make("cpu"), make("reference")
        formulas.load_state_dict(ours.state_dict())
        agree(gradients(ours, x), gradients(formulas, x))
    return f"{', '.join(BLOCKS)} by the CPU kernels"


def accelerate() -> str:
    """A model keeps its numbers, accelerated and restored."""
    done = []
    for name, model, size in models():
        model.eval()
        x = torch.randn(2, 3, size, size)
        eager = gradients(model, x)
        report = chattn_cuda.accelerate(model)
        assert report.changed, report
        agree(gradients(model, x), eager)
        chattn_cuda.restore(model)
        done.append(f"{name} ({len(report.changed)} blocks)")
    return ", ".join(done)


def models() -> list[tuple[str, nn.Module, int]]:
    """Each with its name and the size of its images."""
    home_made = nn.Sequential(nn.Conv2d(3, 16, 3), HomeMade(16), nn.Conv2d(16, 4, 3))
    found = [("a network with its own SE", home_made, 12)]
    with contextlib.suppress(ImportError, RuntimeError):  # one of another torch does not load
        from torchvision.models import mobilenet_v3_small

        found.append(("mobilenet_v3_small", mobilenet_v3_small(), 64))
    return found


def compile_() -> str:
    """The operators in a graph, without a break."""
    x = torch.randn(2, 32, 14, 14)
    for make in BLOCKS.values():
        layer = make("cpu")
        exact = gradients(layer, x)
        agree(gradients(torch.compile(layer, fullgraph=True, backend="aot_eager"), x), exact)
    return "aot_eager, fullgraph"


def doctor() -> str:
    """It finds nothing broken."""
    command = [sys.executable, "-m", "chattn_cuda", "doctor"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return _native.build_info()["cuda_archs"].replace(";", " ") or "no CUDA kernels"


CHECKS: dict[str, Callable[[], str]] = {
    "forward, backward": forward_and_backward,
    "accelerate": accelerate,
    "compile": compile_,
    "doctor": doctor,
}


if __name__ == "__main__":
    assert Path(sys.prefix) in Path(chattn_cuda.__file__).parents, "that is no installed package"
    assert _native.module() is not None, "the native module is missing"
    names = ("c++", "g++", "cc", "gcc", "clang", "nvcc")
    compilers = [name for name in names if shutil.which(name)]
    print(f"python: {platform.python_version()}")
    print(f"torch: {torch.__version__}, {'CUDA' if torch.version.cuda else 'CPU'} build")
    print(f"compilers on PATH: {', '.join(compilers) or 'none'}")
    for name, check in CHECKS.items():
        torch.manual_seed(0)
        print(f"{name}: {check()}", flush=True)
