"""The networks with SE blocks: published sizes and counts, results, arguments."""

from __future__ import annotations

import copy
import math

import pytest
import timm
import torch
from torch import nn

from chattn_cuda import SqueezeExcite, models
from chattn_cuda.modules.fused import FusedForward
from tests.models.common import (
    SE,
    M,
    blocks,
    build,
    check_training,
    filled,
    multiply_adds,
    parameters,
    with_backend,
)


@pytest.mark.parametrize(
    ("name", "count", "published"),
    [
        ("se_resnet50", 28_088_024, "28.1"),  # the paper, table 10
        ("se_resnet101", 49_326_872, "49.33"),  # timm's results, as the next three
        ("se_resnet152", 66_821_848, "66.82"),
        ("se_resnext50", 27_559_896, "27.56"),
        ("senet154", 115_088_984, "115.09"),
    ],
)
def test_parameters_of_se_networks(name: str, count: int, published: str) -> None:
    total = parameters(build(name))
    digits = len(published.partition(".")[2])
    assert (total, f"{total / 1e6:.{digits}f}") == (count, published)


@pytest.mark.parametrize(
    ("name", "mebibytes"),
    [
        ("se_inception", 46),
        ("se_resnet50", 107),
        ("se_resnet101", 189),
        ("se_resnext50", 105),
        ("senet154", 440),
    ],
)
def test_size_of_the_authors_files(name: str, mebibytes: int) -> None:
    """Their table 1, but for SE-ResNet-152: 255.5 MiB of numbers in a file of 256 MiB."""
    state = build(name).state_dict().values()
    floats = sum(t.numel() for t in state if t.is_floating_point())
    assert round(4 * floats / M) == mebibytes


@pytest.mark.parametrize(
    ("r", "published"), [(2, 45.7), (4, 35.7), (8, 30.7), (16, 28.1), (32, 26.9), (None, 25.6)]
)
def test_parameters_at_every_reduction(r: int | None, published: float) -> None:
    """The SENet paper's table 10, which rounds up."""
    model = build("se_resnet50", reduction=r or 16)
    total = parameters(model) - (0 if r else sum(map(parameters, blocks(model))))
    assert math.ceil(total / 1e5) / 10 == published
    channels = [256] * 3 + [512] * 4 + [1024] * 6 + [2048] * 3
    if r:
        assert total == 25_557_032 + sum(2 * c * c // r + c // r + c for c in channels)


@pytest.mark.parametrize("name", SE)
def test_reduction_reaches_every_block(name: str) -> None:
    found = blocks(build(name, reduction=8, backend="cpu"))
    assert all(type(m) is SqueezeExcite and m.backend == "cpu" for m in found)
    assert all(m.fc1.out_channels == m.fc1.in_channels // 8 for m in found)
    number = {"se_resnet50": 16, "se_resnext50": 16, "se_resnet101": 33, "se_inception": 10}
    assert len(found) == {**number, "se_inception_resnet_v2": 43}.get(name, 50)


@pytest.mark.parametrize(
    ("name", "plain", "se"),
    [("se_resnet50", "3.86", "3.87"), ("se_inception", "2.03", "2.04")],
)
def test_multiply_adds(name: str, plain: str, se: str) -> None:
    """The SENet paper's table 2."""
    assert f"{multiply_adds(build(name), 224):.2f}" == se
    base = build(name)
    for path, module in list(base.named_modules()):
        if isinstance(module, FusedForward):
            base.set_submodule(path, nn.Identity())
    assert f"{multiply_adds(base, 224):.2f}" == plain


def test_se_inception_is_bn_inception() -> None:
    """11,295,240 parameters as published for the released weights, whose convolutions have biases.

    The channels of the blocks and their hidden values are those of the authors' prototxt.
    """
    model = build("se_inception")
    found = blocks(model)
    biases = sum(m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d))
    biases -= sum(m.fc1.out_channels + m.fc2.out_channels for m in found)
    assert parameters(model) - sum(map(parameters, found)) + biases == 11_295_240
    assert [(m.fc1.in_channels, m.fc1.out_channels) for m in found] == [
        (256, 16),
        (320, 20),
        *[(576, 36)] * 3,
        *[(608, 38)] * 2,
        (1056, 66),
        *[(1024, 64)] * 2,
    ]


def test_se_inception_resnet_v2_is_timms_with_blocks() -> None:
    model = build("se_inception_resnet_v2")
    found = blocks(model)
    with torch.device("meta"):
        base = timm.create_model("inception_resnet_v2")
    assert parameters(model) - sum(map(parameters, found)) == parameters(base) == 55_843_464
    assert parameters(model) == 65_092_718
    channels = [m.fc1.in_channels for m in found]
    assert {c: channels.count(c) for c in channels} == {320: 11, 1088: 21, 2080: 11}


@pytest.mark.parametrize("name", ["se_resnet50", "se_resnext50"])
def test_result_and_keys_are_those_of_timm(name: str) -> None:
    theirs = {"se_resnet50": "legacy_seresnet50", "se_resnext50": "legacy_seresnext50_32x4d"}
    short = {"num_classes": 10, "layers": (1, 2, 1, 1)}
    model = filled(build(name, **short)).double().eval()
    peer = timm.create_model(theirs[name], **short).double().eval()
    peer.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(model(x), peer(x), rtol=1e-10, atol=1e-10)
    weights = copy.deepcopy(peer.state_dict())
    assert list(model.state_dict()) == list(weights)


def test_backends_agree_on_se_inception() -> None:
    """On maps of odd sizes."""
    model = filled(build("se_inception", num_classes=7)).double()
    check_training(model.train(), torch.randn(2, 3, 65, 37, dtype=torch.double))


def test_backends_agree_on_se_inception_resnet_v2() -> None:
    """Its smallest images, normalised by the batch; without a block the result is another."""
    torch.manual_seed(0)
    model = build("se_inception_resnet_v2", num_classes=7)
    for repeat in (model.repeat, model.repeat_1, model.repeat_2):
        del repeat[2:]  # all alike
    model = filled(model).double().train()
    x = torch.randn(2, 3, 75, 79, dtype=torch.double)
    with torch.no_grad():
        expected = with_backend(model, "reference")(x)
        torch.testing.assert_close(with_backend(model, "cpu")(x), expected, rtol=1e-9, atol=1e-9)
        model.repeat_1[1].conv2d.se = nn.Identity()
        assert (model(x) - expected).abs().max() > 1e-4


def test_weights_of_swapped_blocks_are_those_that_the_library_drew() -> None:
    torch.manual_seed(3)
    ours = models.se_resnet50(layers=(1, 1, 1, 1)).state_dict()
    torch.manual_seed(3)
    theirs = timm.create_model("legacy_seresnet50", layers=(1, 1, 1, 1)).state_dict()
    key = "layer1.0.se_module.fc1.weight"
    assert torch.equal(ours[key], theirs[key])
