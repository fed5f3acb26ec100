"""Whether accelerated models give the numbers of the models that they were made from.

`python -m chattn_cuda verify` and the tests run the same list: models of timm and torchvision with
random weights, in float64, where two correct computations differ by rounding alone.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chattn_cuda import backends
from chattn_cuda.convert import Entry, Report, accelerate
from chattn_cuda.modules.fused import FusedForward
from chattn_cuda.peers import PEERS

__all__ = ["FAMILIES", "SAME", "WITHOUT_ATTENTION", "Family", "Outcome", "check"]

SAME = 1e-9
"""Two correct computations in float64 differ by less, relative to the largest number."""

_BATCH = 2
_SIZE = 64  # at half of it, batch norm over 2 x 1 x 1 values amplifies rounding
_SIZES = {"repvgg_d2se": 33}  # whose last map is of 2 x 2 positions, too


@dataclass(frozen=True)
class Family:
    """One model.

    Attributes:
        library: "timm" or "torchvision".
        model: Its name there.
        size: Height and width of the images.
    """

    library: str
    model: str
    size: int = _SIZE

    @property
    def name(self) -> str:
        """The model's name, with the library where it is not timm."""
        return self.model if self.library == "timm" else f"{self.library} {self.model}"

    def build(self, short: bool = False) -> nn.Module:
        """The model with random weights: nothing is downloaded, and no parameter is zero.

        ``short`` leaves out the blocks of a stage that are like the one before them. On the meta
        device the weights have no numbers.
        """
        if self.library == "timm":
            model = importlib.import_module("timm").create_model(self.model, num_classes=10)
        else:
            models = importlib.import_module("torchvision.models")
            model = models.get_model(self.model, weights=None, num_classes=10)
        if short:
            _shorten(model)
        _randomise(model)
        return model


FAMILIES: tuple[Family, ...] = tuple(
    Family(peer.library, model, _SIZES.get(model, _SIZE))
    for peer in sorted(PEERS, key=lambda peer: peer.library)
    for model in peer.models
)

WITHOUT_ATTENTION: tuple[Family, ...] = tuple(
    Family(library, model)
    for library, models in (
        ("timm", "resnet18 resnext50_32x4d regnetx_002 mobilenetv2_100 repvgg_a0"),
        ("torchvision", "resnet18 regnet_x_400mf mobilenet_v2"),
    )
    for model in models.split()
)
"""Models in which `accelerate` finds tails alone."""


@dataclass(frozen=True)
class Outcome:
    """What a comparison found.

    Attributes:
        changed: The modules that `accelerate` changed. (A report would keep the model alive.)
        left: Those that it knows and did not change.
        fused: How many of the changed modules run the operators, in this mode.
        errors: By kind ("output", "gradients", "statistics"): the largest difference of any tensor,
            relative to its largest number.
        worst: By kind: the name of that tensor.
    """

    changed: tuple[Entry, ...]
    left: tuple[Entry, ...]
    fused: int
    errors: dict[str, float]
    worst: dict[str, str]

    @property
    def same(self) -> bool:
        """Whether something was accelerated, and everything agrees to rounding."""
        return bool(self.changed) and all(error <= SAME for error in self.errors.values())


def check(
    family: Family,
    training: bool,
    backend: str = "auto",
    device: str = "cpu",
    channels_last: bool = False,
    short: bool = False,
    fuse: str = "tail",
) -> Outcome:
    """Compare one training step's numbers, or an evaluation's, before and after `accelerate`.

    Args:
        family: The model.
        training: Train mode: batch statistics, dropout.
        backend: For the accelerated model.
        device: Where both run.
        channels_last: Memory format of the model and the images.
        short: Without the blocks that repeat; see `Family.build`.
        fuse: As for `accelerate`. The maps are small: tails are fused by the backend that "auto"
            is, which does not go by their sizes.

    Returns:
        The differences of the output, of the gradients of all parameters and of the images, and
        (in train mode) of the running statistics.
    """
    torch.manual_seed(0)
    fmt = torch.channels_last if channels_last else torch.contiguous_format
    model = family.build(short).to(device, torch.float64).to(memory_format=fmt).train(training)
    images = torch.randn(_BATCH, 3, family.size, family.size, dtype=torch.float64, device=device)
    images = images.contiguous(memory_format=fmt)
    before = {k: v.clone() for k, v in model.named_buffers()}
    with _exact_hard_sigmoids(model):
        expected = _step(model, images)
    for name, buffer in model.named_buffers():
        buffer.copy_(before[name])
    if fuse == "tail":
        backend = backends.select(backend, torch.device(device).type, torch.float64)
    report = accelerate(model, backend, fuse)
    actual = _step(model, images)
    return _compare(model, report, actual, expected)


def _step(model: nn.Module, images: Tensor) -> dict[str, dict[str, Tensor]]:
    """By kind: the tensors that one step gives, by name."""
    torch.manual_seed(1)  # dropout
    model.zero_grad()
    leaf = images.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = model(leaf)
    y.sin().sum().backward()
    gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
    assert leaf.grad is not None
    kinds = {
        "output": {"output": y.detach()},
        "gradients": {"images": leaf.grad, **{k: g.clone() for k, g in gradients.items()}},
    }
    if model.training:
        statistics = {k: b.clone() for k, b in model.named_buffers() if b.is_floating_point()}
        kinds["statistics"] = statistics
    return kinds


def _compare(
    model: nn.Module,
    report: Report,
    actual: dict[str, dict[str, Tensor]],
    expected: dict[str, dict[str, Tensor]],
) -> Outcome:
    errors, worst = {}, {}
    for kind, tensors in expected.items():
        if set(tensors) != set(actual[kind]):
            errors[kind], worst[kind] = float("inf"), "other tensors"
            continue
        errors[kind], worst[kind] = 0.0, ""
        # What is zero but for rounding has no digits to compare: in train mode, biases before a
        # batch norm (resnest50d's fc1). In units of 1e-6 of the largest gradient, the eager model's
        # own change by 8e-9 from NCHW to channels_last, and skresnext50's fc_reduce by 1e-9; with
        # tails, rexnet_100's features.3.se.fc1 by 1.2e-8 (AVX2).
        least = 1e-4 * max((float(t.abs().max()) for t in tensors.values()), default=0.0)
        for name, tensor in tensors.items():
            difference = float((actual[kind][name] - tensor).abs().max())
            error = difference / max(float(tensor.abs().max()), least, 1e-300)
            if not error <= errors[kind]:  # NaN counts as worse
                errors[kind], worst[kind] = error, name
    changed = [model.get_submodule(entry.name) for entry in report.changed]
    fused = sum(isinstance(m, FusedForward) and _runs_fused(m) for m in changed)
    return Outcome(report.changed, report.left, fused, errors, worst)


def _runs_fused(module: FusedForward) -> bool:
    device = next(module.parameters()).device.type  # type: ignore[attr-defined]
    backend = backends.select(module.backend, device, torch.float64)
    return module.obstacle() is None and backends.get(backend).namespace is not None


def _shorten(model: nn.Module) -> None:
    """Drop what is like its predecessor in a sequence: the third block of a stage and later ones.

    The second one, which keeps its input's shape, differs from the first in timm and torchvision.
    """
    for sequence in [m for m in model.modules() if type(m) is nn.Sequential]:
        before: tuple[Any, ...] = ()
        for name, module in list(sequence.named_children()):
            shapes = [(k, t.shape) for k, t in module.state_dict().items()]
            kind = (type(module), shapes)
            if shapes and kind == before:
                del sequence._modules[name]
            before = kind


def _randomise(model: nn.Module) -> None:
    """Give numbers to what is initialised with zeros and ones, where errors could hide."""
    with torch.no_grad():
        for p in model.parameters():
            if p.is_meta:
                continue
            if p.count_nonzero() == 0:
                p.normal_(0, 0.1)
            elif bool((p == 1).all()):
                p.uniform_(0.5, 1.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0, 0.1)
            elif name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)


class _ExactHardsigmoid(nn.Hardsigmoid):
    def forward(self, input: Tensor) -> Tensor:
        """The gradient of torch's own has a float32 1/6, also in float64."""
        return F.relu6(input + 3) / 6


@contextlib.contextmanager
def _exact_hard_sigmoids(model: nn.Module) -> Iterator[None]:
    found = [m for m in model.modules() if type(m) is nn.Hardsigmoid]
    for m in found:
        m.__class__ = _ExactHardsigmoid
    try:
        yield
    finally:
        for m in found:
            m.__class__ = nn.Hardsigmoid
