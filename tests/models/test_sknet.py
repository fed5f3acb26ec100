"""The networks of selective kernels: published sizes and counts, results, settings."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import nn

import chattn_cuda
from chattn_cuda import SelectiveKernel, models
from tests.models.common import (
    blocks,
    build,
    check_training,
    filled,
    multiply_adds,
    parameters,
)

LAYERS = {"sknet26": (2, 2, 2, 2), "sknet50": (3, 4, 6, 3), "sknet101": (3, 4, 23, 3)}
SHORT = {"layers": (1, 2, 1, 1), "num_classes": 10}  # for `timm.create_model`


@pytest.mark.parametrize(
    ("name", "count", "rounded", "published"),
    [
        ("sknet26", 16_746_408, "16.7", "16.8"),
        ("sknet50", 27_479_784, "27.5", "27.5"),
        ("sknet101", 48_736_040, "48.7", "48.9"),
    ],
)
def test_parameters(name: str, count: int, rounded: str, published: str) -> None:
    """The paper's counts are those with a bias in every convolution, which the network has not."""
    model = build(name)
    assert (parameters(model), f"{parameters(model) / 1e6:.1f}") == (count, rounded)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.bias is None for m in convolutions)
    biases = sum(m.out_channels for m in convolutions)
    assert f"{(count + biases) / 1e6:.1f}" == published


@pytest.mark.parametrize(("name", "published"), [("sknet50", "4.47"), ("sknet101", "8.46")])
def test_multiply_adds(name: str, published: str) -> None:
    """The paper's table 2."""
    assert f"{multiply_adds(build(name), 224):.2f}" == published


@pytest.mark.parametrize("name", LAYERS)
def test_sizes_of_the_attention(name: str) -> None:
    """d is 32, 32, 32 and 64 in the four stages of the authors' prototxt."""
    found = blocks(build(name, backend="cpu"))
    channels = [
        c for c, n in zip((128, 256, 512, 1024), LAYERS[name], strict=True) for _ in [0] * n
    ]
    assert [m.out_channels for m in found] == channels
    for block in found:
        assert type(block) is SelectiveKernel and block.backend == "cpu"
        assert block.attn.fc_reduce.out_channels == (64 if block.out_channels == 1024 else 32)
        assert [path.conv.dilation for path in block.paths] == [(1, 1), (2, 2)]
        assert [path.conv.groups for path in block.paths] == [32, 32]
        assert [path.conv.kernel_size for path in block.paths] == [(3, 3)] * 2


@pytest.mark.parametrize("options", [{}, {"output_stride": 8, "act_layer": "silu"}], ids=str)
def test_result_and_keys_are_those_of_timm(options: dict[str, Any]) -> None:
    model = filled(build("sknet50", **SHORT, **options)).double().eval()
    peer = timm.create_model("skresnext50_32x4d", **SHORT, **options).double().eval()
    for block, theirs in zip(blocks(model), (m.conv2 for m in units(peer)), strict=True):
        theirs.attn.act = block.attn.act  # timm's is a ReLU, whatever act_layer says
    peer.load_state_dict(model.state_dict())
    assert list(model.state_dict()) == list(peer.state_dict())
    x = torch.randn(2, 3, 40, 32, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(model(x), peer(x), rtol=1e-10, atol=1e-10)


def units(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if type(m).__name__ == "SelectiveKernelBottleneck"]


def test_weights_are_drawn_as_timm_draws_them() -> None:
    torch.manual_seed(3)
    weight = models.sknet26(layers=(1, 1, 1, 1)).layer4[0].conv2.paths[1].conv.weight.detach()
    assert float(weight.std()) == pytest.approx((2 / (9 * 1024)) ** 0.5, rel=0.01)  # fan out


def test_settings_reach_every_block() -> None:
    found = blocks(build("sknet50", reduction=8, branches=3, groups=16, min_channels=24, **SHORT))
    assert len(found) == 5
    for block in found:
        c = block.out_channels
        assert block.attn.fc_reduce.out_channels == max(c // 8, 24)
        assert block.attn.fc_select.out_channels == 3 * c
        assert [p.conv.weight.shape for p in block.paths] == [(c, c // 16, 3, 3)] * 3
        assert [p.conv.dilation[0] for p in block.paths] == [1, 2, 3]
    assert [m.out_channels for m in found] == [128, 256, 256, 512, 1024]


@pytest.mark.parametrize("branches", [2, 3])
def test_backends_agree(branches: int) -> None:
    """On maps of odd sizes."""
    model = build("sknet26", branches=branches, **SHORT)
    first = filled(nn.Sequential(model.conv1, model.bn1, model.act1, model.layer1, model.layer2))
    check_training(first.double().train(), torch.randn(2, 3, 25, 19, dtype=torch.double))


def test_cifar() -> None:
    model = build("sknet_cifar")
    expected = 3 * 64 * 9 + 2 * 64 + 1024 * 10 + 10  # stem and classifier
    cin = 64
    for out, c in ((256, 128), (512, 256), (1024, 512)):
        for _ in range(3):
            select = 2 * (c * c // 8 * 9 + 2 * c) + c * (c // 2) + 2 * (c // 2) + 2 * c * (c // 2)
            expected += cin * c + 2 * c + select + c * out + 2 * out
            expected += cin * out + 2 * out if cin != out else 0
            cin = out
    assert parameters(model) == expected == 8_364_234
    assert [(m.num_paths, m.out_channels) for m in blocks(model)] == [
        *[(2, 128)] * 3,
        *[(2, 256)] * 3,
        *[(2, 512)] * 3,
    ]
    with torch.device("meta"):
        assert model.eval()(torch.empty(2, 3, 32, 32)).shape == (2, 10)
    assert build("sknet_cifar", num_classes=100).classifier.out_features == 100
    first = filled(nn.Sequential(model.stem, model.stages[:4])).double().train()
    check_training(first, torch.randn(2, 3, 20, 12, dtype=torch.double))


def test_more_branches_than_the_kernels_take() -> None:
    model = filled(build("sknet26", branches=5, layers=(1, 1, 1, 1), num_classes=3)).eval()
    x = torch.randn(1, 3, 32, 32)
    block = blocks(model)[0]
    assert chattn_cuda.explain(block, torch.randn(1, 128, 8, 8)).path == "eager"
    assert model(x).shape == (1, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"groups": 48}, ValueError, "groups must divide 128, got 48"),
        ({"groups": 0}, ValueError, "groups must be at least 1, got 0"),
        ({"branches": 0}, ValueError, "branches must be at least 1, got 0"),
        ({"branches": 2.0}, TypeError, "branches must be an integer, got float"),
        ({"min_channels": 0}, ValueError, "min_channels must be at least 1, got 0"),
        ({"reduction": 129}, ValueError, "reduction must be at most 128 here, got 129"),
    ],
)
def test_bad_settings(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        build("sknet50", **arguments)


def test_bad_arguments_of_cifar() -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        build("sknet_cifar", num_classes=0)
    with pytest.raises(ValueError, match="fc must be 'paper' or 'plain', got 'linear'"):
        build("sknet_cifar", fc="linear")
