"""`models.gate_profile`: against the gates that the blocks apply, and what it draws."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import (
    EfficientChannelAttention,
    SelectiveKernel,
    SqueezeExcite,
    functional,
    models,
)
from chattn_cuda.modules import SEGC, EfficientChannelAttentionNS

timm = pytest.importorskip("timm", reason="timm is not installed")


class Net(nn.Module):
    """Two stages, of two blocks and of one; ``scale`` keeps planes from being all alike."""

    def __init__(self, *attention: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.one, self.two, self.three = attention
        self.drop = nn.Dropout(0.5)
        self.down = nn.Conv2d(16, 16, 3, stride=2)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.one(self.bn(self.stem(x))).relu())
        return self.three(self.down(self.drop(x))).mean((2, 3))


def loader(classes: int = 3) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for n in (5, 7, 1):
        labels = torch.randint(0, classes, (n,), generator=generator)
        x = torch.randn(n, 1, 9, 8, generator=generator)
        yield x * (1 + labels[:, None, None, None]), labels


ATTENTION = {
    "se": lambda: SqueezeExcite(16, rd_channels=4),
    "se-bn": lambda: SqueezeExcite(16, norm_layer=nn.BatchNorm2d),
    "se-hard": lambda: SqueezeExcite(16, gate_layer="hard_sigmoid"),
    "eca": lambda: EfficientChannelAttention(kernel_size=3),
    "eca-ns": lambda: EfficientChannelAttentionNS(16),
    "se-gc": lambda: SEGC(16, 4),
    "timm-se": lambda: timm.layers.SEModule(16),
    "timm-eca": lambda: timm.layers.EcaModule(16),
    "timm-ceca": lambda: timm.layers.CecaModule(16),
}


def net(kind: str) -> Net:
    torch.manual_seed(0)
    model = Net(*(ATTENTION[kind]() for _ in range(3)))
    for p in model.parameters():
        nn.init.normal_(p, std=0.7)
    if kind.startswith("timm"):
        assert len(chattn_cuda.accelerate(model, fuse="block").changed) == (
            6 if kind == "timm-sk" else 3
        )
    return model


@pytest.mark.parametrize("kind", list(ATTENTION))
def test_gate_profile_is_the_mean_gate(kind: str) -> None:
    """Against y / x of the blocks as they run without the profile."""
    model = net(kind).double()
    batches = [(x.double(), labels) for x, labels in loader()]
    profile = models.gate_profile(model, batches)
    assert [(b.name, b.stage) for b in profile.blocks] == [("one", 1), ("two", 1), ("three", 2)]
    assert [b.name for b in profile.stages] == ["two", "three"]
    assert profile.classes == (0, 1, 2) and sum(profile.counts) == 13

    maps: dict[str, list[Tensor]] = {}
    for name in ("one", "two", "three"):

        def keep(module: nn.Module, args: Any, y: Tensor, name: str = name) -> None:
            (x,) = args
            # Where a plane of the rectified map is 0, its gate is seen on a map with other values.
            maps.setdefault(name, []).append((x * y).sum((2, 3)) / (x * x).sum((2, 3)))

        model.get_submodule(name).register_forward_hook(keep)
    with torch.no_grad():
        model.eval()
        for x, _ in batches:
            model(x)
    labels = torch.cat([labels for _, labels in batches])
    for block in profile.blocks:
        gates = torch.cat(maps[block.name])
        for row, label in enumerate(profile.classes):
            expected = gates[labels == label].mean(0)
            known = expected.isfinite()
            assert known.sum() >= 8
            torch.testing.assert_close(block.gates[row][known], expected[known])
        assert block.gates.dtype == torch.double and block.gates.shape == (3, 16)
        assert block.gates.std(0).max() > 1e-3  # the classes differ


@pytest.mark.parametrize("kind", ["se", "timm-eca"])
def test_gate_profile_leaves_the_model_alone(kind: str) -> None:
    model = net(kind).train()
    model.bn.eval()
    hooks = [model.one.register_forward_hook(lambda *_: None)]
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    rng = torch.random.get_rng_state()
    model.seen = []
    models.gate_profile(model, loader())
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(t, before[k]) for k, t in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(p.grad is None for p in model.parameters())
    hooks[0].remove()
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    x = torch.randn(2, 16, 5, 5)
    assert chattn_cuda.explain(model.one, x).backend != "eager"  # fused again

    def broken() -> Iterator[tuple[Tensor, Tensor]]:
        yield next(loader())
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        models.gate_profile(model, broken())
    assert [m.training for m in model.modules()] == modes
    assert not model.one._forward_hooks and not model.one.gate._forward_hooks


def test_gate_profile_of_a_shared_block_counts_both_calls() -> None:
    shared = SqueezeExcite(16)
    torch.manual_seed(0)
    model = Net(shared, shared, EfficientChannelAttention(kernel_size=1)).double().eval()
    x, labels = next(loader())
    profile = models.gate_profile(model, [(x.double(), labels)])
    assert [b.name for b in profile.blocks] == ["one", "three"]
    m = model.bn(model.stem(x.double()))
    w = (shared.fc1.weight, shared.fc1.bias, shared.fc2.weight, shared.fc2.bias)
    y, first = functional.squeeze_excite(m, *w, return_gate=True)
    _, second = functional.squeeze_excite(y.relu(), *w, return_gate=True)
    expected = torch.stack([((first + second) / 2)[labels == c].mean(0) for c in profile.classes])
    torch.testing.assert_close(profile.blocks[0].gates, expected)


# ---- selective kernels -------------------------------------------------------------------------

SELECTIVE = {
    "sk": lambda: SelectiveKernel(16, rd_channels=8),
    "sk-3": lambda: SelectiveKernel(16, kernel_size=(3, 5, 7), rd_channels=8, split_input=False),
    "timm-sk": lambda: timm.layers.SelectiveKernel(16),
    "timm-splat": lambda: timm.layers.SplitAttn(16, groups=2, norm_layer=nn.BatchNorm2d),
}
ATTENTION.update(SELECTIVE)


def apply_gates(block: Any, x: Tensor, gates: Tensor) -> Tensor:
    """What a block that selects makes of ``x`` with the gates (N, M, C)."""
    if isinstance(block, timm.layers.SplitAttn):
        u = block.act0(block.drop(block.bn0(block.conv(x)))).chunk(block.radix, 1)
    else:
        u = block.branches(x)
    return sum(g[:, :, None, None] * v for g, v in zip(gates.unbind(1), u, strict=True))


@pytest.mark.parametrize("kind", SELECTIVE)
def test_gate_profile_of_branches(kind: str) -> None:
    """A single image's gates, applied to the branches, give what the block gives."""
    model = net(kind).double().eval()
    inputs: dict[str, tuple[Tensor, Tensor]] = {}
    x, labels = next(loader(5))
    x, labels = x[:1].double(), labels[:1]
    hooks = [
        model.get_submodule(n).register_forward_hook(
            lambda m, args, y, n=n: inputs.update({n: (args[0], y)})
        )
        for n in ("one", "two", "three")
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    profile = models.gate_profile(model, [(x, labels)])
    assert [(b.name, b.stage) for b in profile.blocks] == [("one", 1), ("two", 1), ("three", 2)]
    branches = 3 if kind == "sk-3" else 2
    for block in profile.blocks:
        assert block.gates.shape == (1, branches, 16)
        torch.testing.assert_close(block.gates.sum(1), torch.ones(1, 16).double())
        given, y = inputs[block.name]
        with torch.no_grad():
            actual = apply_gates(model.get_submodule(block.name), given, block.gates)
        torch.testing.assert_close(actual, y)
        assert block.difference is not None
        torch.testing.assert_close(block.difference, block.gates[:, -1] - block.gates[:, 0])
        assert block.difference.abs().max() > 1e-3


@pytest.mark.parametrize("kind", SELECTIVE)
def test_gate_profile_of_branches_is_the_mean(kind: str) -> None:
    """Of the profiles of single images; and the block is fused again afterwards."""
    model = net(kind).double().eval()
    batches = [(x.double(), labels) for x, labels in loader()]
    profile = models.gate_profile(model, batches)
    single: dict[int, list[Tensor]] = {}
    for x, labels in batches:
        for image, label in zip(x, labels, strict=True):
            (_, _, last) = models.gate_profile(model, [(image[None], label[None])]).blocks
            single.setdefault(int(label), []).append(last.gates[0])
    expected = torch.stack([torch.stack(single[c]).mean(0) for c in profile.classes])
    torch.testing.assert_close(profile.blocks[2].gates, expected)
    assert chattn_cuda.explain(model.one, torch.randn(2, 16, 5, 5).double()).path != "eager"


def test_stages_are_told_by_what_a_block_puts_out() -> None:
    model = nn.Sequential(
        SelectiveKernel(1, 8, split_input=False, rd_channels=4),
        SelectiveKernel(8, 8, stride=2, rd_channels=4),
        SqueezeExcite(8),
        nn.AdaptiveAvgPool2d(1),
    )
    profile = models.gate_profile(model, loader())
    assert [(b.name, b.stage) for b in profile.blocks] == [("0", 1), ("1", 2), ("2", 2)]
    assert [b.name for b in profile.stages] == ["0", "2"]
    assert profile.blocks[2].difference is None


def test_gate_profile_of_a_bare_attention() -> None:
    """timm's SelectiveKernelAttn on stacked branches, in a module that nobody knows."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = timm.layers.selective_kernel.SelectiveKernelAttn(8, attn_channels=4)

        def forward(self, x: Tensor) -> Tensor:
            u = torch.stack([x.expand(-1, 8, -1, -1), x.expand(-1, 8, -1, -1).sin()], 1)
            return (u * self.attn(u)).sum(1)

    model = Own().eval()
    x, labels = next(loader())
    u = torch.stack([x.expand(-1, 8, -1, -1), x.expand(-1, 8, -1, -1).sin()], 1)
    with torch.no_grad():
        gates = model.attn(u).flatten(2).double()
    chattn_cuda.accelerate(model)
    profile = models.gate_profile(model, [(x, labels)])
    expected = torch.stack([gates[labels == c].mean(0) for c in profile.classes])
    torch.testing.assert_close(profile.blocks[0].gates, expected, rtol=1e-5, atol=1e-6)


def test_gate_profile_plots_differences(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    models.gate_profile(net("sk-3"), loader(), tmp_path / "profile.svg")
    text = (tmp_path / "profile.svg").read_text()
    for words in ("Stage 1: two", "Stage 2: three, all channels", "mean gate, branch 3 less 1"):
        assert words in text
    assert "class 2" in text


# ---- what it says and draws --------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_gate_profile_plots(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    path = tmp_path / "deep" / f"profile.{suffix}"
    profile = models.gate_profile(net("se"), loader(), path)
    content = path.read_bytes()
    assert profile.plot(path, "Another title") == path.resolve()
    assert path.read_bytes() != content
    profile.plot(path)
    assert path.read_bytes() == content  # the same data make the same file
    if suffix == "svg":
        text = content.decode()
        assert all(s in text for s in ("Stage 1: two", "Stage 2: three", "class 2", "mean gate"))
        assert "Stage 1: one" not in text


@pytest.mark.parametrize(
    ("model", "batches", "error", "message"),
    [
        (3, [], TypeError, "model must be a torch.nn.Module, got int"),
        (nn.Conv2d(1, 1, 1), [], ValueError, "Conv2d has no accelerated blocks or blocks of ours"),
        (None, [], ValueError, "loader gave no samples"),
        (None, [torch.zeros(2, 1, 9, 8)], TypeError, r"must give \(images, labels\), got Tensor"),
        (None, [(torch.zeros(2, 1, 9, 8), [0, 1])], TypeError, r"got \(Tensor, list\)"),
        (
            None,
            [(torch.zeros(2, 1, 9, 8), torch.zeros(2))],
            ValueError,
            r"labels must be \(2,\) of integers, got \(2,\) torch.float32",
        ),
        (
            None,
            [(torch.zeros(2, 1, 9, 8), torch.zeros(3, dtype=torch.long))],
            ValueError,
            r"labels must be \(2,\) of integers, got \(3,\) torch.int64",
        ),
    ],
)
def test_gate_profile_bad_input(model: Any, batches: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        models.gate_profile(net("se") if model is None else model, batches)


def test_gate_profile_says_when_a_gate_cannot_be_seen() -> None:
    model = net("se")
    model.one.gate = nn.PReLU()
    with pytest.raises(ValueError, match="the gate of one was not found"):
        models.gate_profile(model, loader())
