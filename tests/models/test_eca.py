"""The networks with ECA blocks: published sizes, results, the authors' checkpoints."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from chattn_cuda import models
from tests.models.common import M, blocks, build, check_training, filled, parameters

ECA_K = {18: (3, 5, 7, 7), 34: (3, 3, 5, 7), 50: (3, 5, 5, 7), 101: (3, 3, 5, 7), 152: (3, 3, 5, 7)}
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
DEPTHS[152] = (3, 8, 36, 3)


@pytest.mark.parametrize(
    ("depth", "published"), [(18, "11.15"), (34, "20.79"), (50, "24.37"), (101, "42.49")]
)
def test_parameters_of_eca_resnet(depth: int, published: str) -> None:
    """The ECA paper's millions are 2**20."""
    assert f"{parameters(build(f'eca_resnet{depth}')) / M:.2f}" == published


@pytest.mark.parametrize("depth", ECA_K)
def test_eca_resnet_adds_its_kernels_only(depth: int) -> None:
    model = build(f"eca_resnet{depth}")
    with torch.device("meta"):
        base = timm.create_model(f"resnet{depth}")
    expected = [k for k, n in zip(ECA_K[depth], DEPTHS[depth], strict=True) for _ in range(n)]
    assert [m.conv.kernel_size[0] for m in blocks(model)] == expected
    assert parameters(model) == parameters(base) + sum(expected)
    if depth == 50:
        assert sum(expected) == 80  # "only 80 parameters" of the paper


def test_parameters_of_eca_mobilenetv2() -> None:
    model = build("eca_mobilenetv2")
    assert f"{parameters(model) / M:.2f}" == "3.34"
    with torch.device("meta"):
        base = parameters(torchvision.models.mobilenet_v2())
    assert parameters(model) == base + 10 * 1 + 7 * 3
    assert parameters(build("eca_mobilenetv2", widest_k1=96)) == base + 13 * 1 + 4 * 3


def test_backends_agree_on_eca_mobilenetv2() -> None:
    """On maps of odd sizes."""
    first = build("eca_mobilenetv2").features[:8]
    assert len(blocks(first)) == 7
    check_training(filled(first).double().train(), torch.randn(2, 3, 65, 37, dtype=torch.double))


# ---- the authors' checkpoints ------------------------------------------------------------------


def official_eca_resnet(
    depth: int, layers: Sequence[int] = (), random: bool = False
) -> dict[str, Tensor]:
    """A state dict with the keys and shapes of the authors' released ECA-ResNets.

    Every tensor has a number of its own, and needs no memory; or random ones.
    """
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def tensor(*shape: int) -> Tensor:
        if random:
            return torch.randn(shape, generator=generator)
        return torch.tensor(len(state) + 1.0).expand(shape)

    def norm(name: str, c: int) -> None:
        for k in ("weight", "bias", "running_mean"):
            state[f"{name}.{k}"] = tensor(c)
        state[f"{name}.running_var"] = tensor(c).abs() + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def conv(index: str, o: int, i: int, k: int, *, name: str = "conv", bn: str = "bn") -> None:
        weight = tensor(o, i, k, k)
        state[f"{name}{index}.weight"] = weight / (i * k * k) ** 0.5 if random else weight
        norm(f"{bn}{index}", o)

    conv("1", 64, 3, 7)
    channels, expansion = 64, 4 if depth >= 50 else 1
    for stage, (n, k) in enumerate(zip(layers or DEPTHS[depth], ECA_K[depth], strict=True)):
        width = 64 * 2**stage
        for i in range(n):
            at = f"layer{stage + 1}.{i}."
            shapes = [(width, channels, 3), (width, width, 3)]
            if expansion == 4:
                shapes = [(width, channels, 1), (width, width, 3), (4 * width, width, 1)]
            for j, shape in enumerate(shapes, 1):
                conv(str(j), *shape, name=f"{at}conv", bn=f"{at}bn")
            state[f"{at}eca.conv.weight"] = tensor(1, 1, k)
            if i == 0 and channels != width * expansion:
                down = f"{at}downsample."
                conv("", width * expansion, channels, 1, name=f"{down}0", bn=f"{down}1")
            channels = width * expansion
    state["fc.weight"], state["fc.bias"] = tensor(1000, channels), tensor(1000)
    return state


@pytest.mark.parametrize(
    ("depth", "prefix"),
    [(18, ""), (34, ""), (50, ""), (50, "module."), (101, "module."), (152, "module.")],
)
def test_official_eca_resnet_loads(depth: int, prefix: str) -> None:
    state = official_eca_resnet(depth)
    assert "layer1.0.eca.conv.weight" in state
    given = {prefix + key: t for key, t in state.items()}
    model = build(f"eca_resnet{depth}").to_empty(device="cpu")
    model.load_state_dict(given)
    assert list(given) == [prefix + key for key in state]  # the caller's dict is left alone
    own = model.state_dict()
    assert len(own) == len(state)
    for key, value in state.items():
        assert torch.equal(own[key.replace(".eca.", ".se.")], value), key


def test_official_eca_mobilenetv2_loads() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = dict(torchvision.models.mobilenet_v2().state_dict())
        channels = [16, 24, 24, *[32] * 3, *[64] * 4, *[96] * 3, *[160] * 3, 320]
        for i, c in enumerate(channels, 1):  # after convolution and batch norm, which are last
            key = f"features.{i}.conv.{3 if i == 1 else 4}.conv.weight"
            state[key] = torch.randn(1, 1, 1 if c < 96 else 3)
    model = models.eca_mobilenetv2()
    model.load_state_dict({f"module.{k}": t for k, t in state.items()})
    own = model.state_dict()
    assert set(own) == set(state)
    assert all(torch.equal(own[k], state[k]) for k in state)


def test_own_and_timms_state_dicts_load_and_wrong_ones_do_not() -> None:
    def empty(*args: Any) -> nn.Module:
        with torch.device("meta"):
            return models.eca_resnet18(*args).to_empty(device="cpu")

    model, state = empty(), official_eca_resnet(18)
    model.load_state_dict(copy.deepcopy(model).state_dict())
    nested = nn.Sequential(empty())
    nested.load_state_dict({f"0.{k}": t for k, t in state.items()})
    assert torch.equal(nested[0].layer4[1].se.conv.weight, state["layer4.1.eca.conv.weight"])
    with pytest.raises(RuntimeError, match="size mismatch for layer1.0.se.conv.weight"):
        empty((1, 5, 7, 7)).load_state_dict(state)
    del state["layer1.0.eca.conv.weight"]
    with pytest.raises(RuntimeError, match="Missing key.*layer1.0.se.conv.weight"):
        model.load_state_dict(state)


def test_official_weights_give_the_formula() -> None:
    """One bottleneck with loaded weights against its layers written out."""
    layers = (1, 2, 1, 1)
    model = build("eca_resnet50", layers=layers).to_empty(device="cpu").eval()
    state = official_eca_resnet(50, layers, random=True)
    model.load_state_dict(state)
    block = model.layer2[1]
    x = torch.randn(2, 512, 5, 5)
    with torch.no_grad():
        y = block.bn3(block.conv3(torch.relu(block.bn2(block.conv2(
            torch.relu(block.bn1(block.conv1(x)))
        )))))  # fmt: skip
        s = torch.nn.functional.conv1d(
            y.mean((2, 3))[:, None], state["layer2.1.eca.conv.weight"], padding=2
        ).sigmoid()
        expected = torch.relu(y * s.transpose(1, 2)[..., None] + x)
        torch.testing.assert_close(block(x), expected)
