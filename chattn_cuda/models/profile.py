"""What the blocks of a trained network do at different depths: `gate_profile`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from chattn_cuda import activations
from chattn_cuda.modules.fused import FusedForward
from chattn_cuda.modules.selective_kernel import SelectiveKernelAttnForward, SelectiveKernelForward
from chattn_cuda.modules.split_attention import SplitAttnForward

__all__ = ["BlockProfile", "GateProfile", "gate_profile"]


@dataclass(frozen=True)
class BlockProfile:
    """The mean gates of one block.

    Attributes:
        name: Of the block in the model.
        stage: Counted from 1; blocks in a row on maps of one size are a stage.
        gates: Mean gate (classes, C) of every channel by class, float64 on the CPU; of a block that
            selects between M branches (classes, M, C).
    """

    name: str
    stage: int
    gates: Tensor

    @property
    def difference(self) -> Tensor | None:
        """The last branch's mean gates less the first's, (classes, C); None without branches.

        Above 0 where the larger kernel has more weight. Its mean over the channels is what Li et
        al., arXiv 1903.06586, section 4.4, plot by class.
        """
        return self.gates[:, -1] - self.gates[:, 0] if self.gates.dim() == 3 else None


@dataclass(frozen=True)
class GateProfile:
    """The mean gate of every channel by class, block by block; from `gate_profile`.

    Attributes:
        classes: The labels that occurred, in order: the rows of every `BlockProfile.gates`.
        counts: How many samples each had.
        blocks: In the order in which they run.
    """

    classes: tuple[int, ...]
    counts: tuple[int, ...]
    blocks: tuple[BlockProfile, ...]

    @property
    def stages(self) -> tuple[BlockProfile, ...]:
        """The last block of every stage, which the SENet paper shows."""
        return tuple({block.stage: block for block in self.blocks}.values())

    def plot(self, path: str | Path, title: str = "Mean gate of every channel by class") -> Path:
        """Draw the last block of every stage, a line per class, to a PNG or SVG file.

        Of a block with branches the `BlockProfile.difference` is drawn, by channel and, as the SK
        paper does, its mean by class.

        Args:
            path: Where to; the suffix says which format.
            title: Of the figure.

        Returns:
            The absolute path.

        Raises:
            ImportError: matplotlib is not installed.
            OSError: The file cannot be written.
        """
        from chattn_cuda.models.profile_chart import draw

        return draw(Path(path), self, title)


def gate_profile(
    model: nn.Module, loader: Iterable[Any], path: str | Path | None = None
) -> GateProfile:
    """Measure, and plot, the mean gate of every channel by class.

    Hu et al., arXiv 1709.01507, section 7.2 ("The role of excitation"): in early stages the gates
    hardly depend on the class, in later ones they do, and near the end they saturate. Of selective
    kernels and split attention every branch's gate is measured, where the module is called
    (``SelectiveKernelAttn.weigh`` is no call). The model runs in eval mode without gradients and is
    left as it was: mode of every module, statistics, hooks. While it is measured, its blocks run
    their submodules one by one.

    Args:
        model: A network with blocks of this package in it, or an accelerated one.
        loader: Gives (images, labels) batches: images as the model takes them, labels (N,) of
            integers. They are moved to the model's device.
        path: Where to plot it (`GateProfile.plot`); None plots nothing.

    Returns:
        The profile; memory and time beyond the model's own are those of the gates.

    Raises:
        TypeError: ``model`` is no module, or a batch is not (images, labels).
        ValueError: ``model`` has no blocks, a block's gate cannot be told from its submodules, the
            loader gave nothing, or labels are not (N,) of integers.
        ImportError: With ``path``, matplotlib is not installed.

    Examples:
        >>> profile = gate_profile(model, DataLoader(dataset, batch_size=64), "profile.png")
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    gates = _gates(model)
    if not gates:
        raise ValueError(f"{type(model).__name__} has no accelerated blocks or blocks of ours")
    tensor = next(model.parameters(), None)
    device = torch.device("cpu") if tensor is None else tensor.device
    sums: dict[str, _Sums] = {}
    counts: dict[int, int] = {}
    with _evaluated(model), contextlib.ExitStack() as hooks:
        current: list[Tensor] = []
        for name, block in gates.items():
            hooks.enter_context(_recorded(name, block, sums, current))
        for batch in loader:
            images, labels = _check_batch(batch)
            current[:] = [labels]
            for label in labels.tolist():
                counts[label] = counts.get(label, 0) + 1
            model(images.to(device))
    if not counts:
        raise ValueError("loader gave no samples")
    classes = tuple(sorted(counts))
    stage, size, blocks = 0, None, []
    for name, found in sums.items():  # in the order of their first call
        if found.size != size:
            stage, size = stage + 1, found.size
        blocks.append(BlockProfile(name, stage, found.means(classes)))
    if not blocks:
        raise ValueError(f"{type(model).__name__} ran none of its blocks")
    profile = GateProfile(classes, tuple(counts[c] for c in classes), tuple(blocks))
    if path is not None:
        profile.plot(path)
    return profile


class _Sums:
    """Sums of a block's gates by label."""

    def __init__(self, size: tuple[int, ...]) -> None:
        self.size = size
        self._sums: dict[int, Tensor] = {}
        self._counts: dict[int, int] = {}

    def add(self, gates: Tensor, labels: Tensor) -> None:
        gates = gates.detach().double().cpu()
        for label in labels.unique().tolist():
            rows = gates[labels == label]
            self._sums[label] = self._sums.get(label, 0) + rows.sum(0)
            self._counts[label] = self._counts.get(label, 0) + len(rows)

    def means(self, classes: Iterable[int]) -> Tensor:
        return torch.stack([self._sums[c] / self._counts[c] for c in classes])


@dataclass(frozen=True)
class _Block:
    """A block, the submodule whose output is its gate, and how many branches the gate is of."""

    module: nn.Module
    gate: nn.Module
    branches: int | None = None


def _gates(model: nn.Module) -> dict[str, _Block]:
    """The blocks by name."""
    blocks = {n: m for n, m in model.named_modules() if isinstance(m, FusedForward)}
    inside = {id(m.attn) for m in blocks.values() if isinstance(m, SelectiveKernelForward)}
    return {n: _block(n, m) for n, m in blocks.items() if id(m) not in inside}


def _block(name: str, module: Any) -> _Block:
    kind = type(module)  # of which isinstance would make no module for mypy
    if issubclass(kind, SelectiveKernelForward):
        return _Block(module, module.attn, module.num_paths)
    if issubclass(kind, SelectiveKernelAttnForward):
        return _Block(module, module, module.num_paths)
    if issubclass(kind, SplitAttnForward):
        return _Block(module, module.rsoftmax, module.radix)
    # Whatever a class calls it, the gate is the last activation that a block registers.
    last = [m for m in module.modules() if _is_gate(m)]
    if not last:
        raise ValueError(f"{name or type(module).__name__} has no submodule that is its gate")
    return _Block(module, last[-1])


def _is_gate(module: nn.Module) -> bool:
    activation = activations.resolve(module)
    return activation is not None and activation[0].is_gate


@contextlib.contextmanager
def _recorded(
    name: str, block: _Block, sums: dict[str, _Sums], labels: list[Tensor]
) -> Iterator[None]:
    """Add to ``sums[name]`` what the gate returns: with a hook on it, the block calls it."""
    seen: list[Tensor] = []

    def before(module: nn.Module, args: Any) -> None:
        seen.clear()

    def output(module: nn.Module, args: Any, y: Tensor) -> None:
        seen.append(y)

    def after(module: nn.Module, args: Any, y: Tensor) -> None:
        # the gate that SelectiveKernelAttn returns has no size: its branches have
        n, c, *size = args[0][:, 0].shape if y.dim() == 5 else y.shape
        shape = (n, c) if block.branches is None else (n, block.branches, c)
        if len(seen) != 1 or seen[0].numel() != math.prod(shape):
            raise ValueError(f"the gate of {name or type(module).__name__} was not found")
        if name not in sums:
            sums[name] = _Sums(tuple(size))
        sums[name].add(seen[0].reshape(shape), labels[0])

    hooks: list[Callable[[], None]] = [
        block.module.register_forward_pre_hook(before).remove,
        block.gate.register_forward_hook(output).remove,
        block.module.register_forward_hook(after).remove,
    ]
    try:
        yield
    finally:
        for remove in hooks:
            remove()


@contextlib.contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, and afterwards the mode that every module had."""
    training = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, mode in training:
            module.training = mode


def _check_batch(batch: Any) -> tuple[Tensor, Tensor]:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise TypeError(f"loader must give (images, labels), got {type(batch).__name__}")
    images, labels = batch
    if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
        kinds = f"{type(images).__name__}, {type(labels).__name__}"
        raise TypeError(f"loader must give tensors (images, labels), got ({kinds})")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.is_complex():
        raise ValueError(
            f"labels must be ({len(images)},) of integers, got {tuple(labels.shape)} {labels.dtype}"
        )
    return images, labels.cpu()
