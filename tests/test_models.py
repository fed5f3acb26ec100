"""The networks of the literature: published sizes, the authors' checkpoints, gate profiles."""

from __future__ import annotations

import builtins
import copy
import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import EfficientChannelAttention, SqueezeExcite, functional, models
from chattn_cuda.modules import SEGC, EfficientChannelAttentionNS
from chattn_cuda.modules.fused import FusedForward

timm = pytest.importorskip("timm", reason="timm is not installed")
torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")

SENETS = ("se_resnet50", "se_resnet101", "se_resnet152", "se_resnext50", "senet154")
SE = (*SENETS, "se_inception", "se_inception_resnet_v2")
ECA_K = {18: (3, 5, 7, 7), 34: (3, 3, 5, 7), 50: (3, 5, 5, 7), 101: (3, 3, 5, 7), 152: (3, 3, 5, 7)}
ECA = (*(f"eca_resnet{depth}" for depth in ECA_K), "eca_mobilenetv2")
DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
DEPTHS[152] = (3, 8, 36, 3)
M = 2**20


def build(name: str, **kwargs: Any) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        model: nn.Module = getattr(models, name)(**kwargs)
    return model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def blocks(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, FusedForward)]


# ---- sizes -------------------------------------------------------------------------------------


def test_every_network_is_tested() -> None:
    made = {n for n in models.__all__ if n[0].islower()} - {"gate_profile"}
    assert made == {*SE, *ECA}


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


def multiply_adds(model: nn.Module, side: int) -> float:
    """GFLOPs as the SENet paper counts: multiply-adds, a block's pooling and scaling included."""
    count = 0

    def layer(module: Any, args: Any, y: Tensor) -> None:
        nonlocal count
        count += y.numel() * module.weight[0].numel()

    def block(module: Any, args: Any, y: Tensor) -> None:
        nonlocal count
        count += 2 * y.numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(layer)
        elif isinstance(module, FusedForward):
            module.register_forward_hook(block)
    model.eval()(torch.empty(1, 3, side, side, device="meta"))
    return count / 1e9


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


# ---- results and arguments ---------------------------------------------------------------------


def randomized(model: nn.Module) -> nn.Module:
    """With weights for which every block and every branch shows in the output."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.running_mean, std=0.1, generator=generator)
        elif isinstance(module, EfficientChannelAttention):
            nn.init.normal_(module.conv.weight, std=2.0, generator=generator)
    return model.eval()


@pytest.mark.parametrize("name", ["se_resnet50", "se_resnext50"])
def test_result_and_keys_are_those_of_timm(name: str) -> None:
    theirs = {"se_resnet50": "legacy_seresnet50", "se_resnext50": "legacy_seresnext50_32x4d"}
    torch.manual_seed(0)
    model = randomized(getattr(models, name)(num_classes=10)).double()
    peer = timm.create_model(theirs[name], num_classes=10).double().eval()
    peer.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(model(x), peer(x), rtol=1e-10, atol=1e-10)
    weights = copy.deepcopy(peer.state_dict())
    assert list(model.state_dict()) == list(weights)


def with_backend(model: nn.Module, backend: str) -> nn.Module:
    """A copy whose blocks use ``backend``."""
    copied = copy.deepcopy(model)
    for block in blocks(copied):
        block.backend = backend
    return copied


@pytest.mark.parametrize("name", ["se_inception", "eca_mobilenetv2"])
def test_backends_agree_and_train(name: str) -> None:
    """On maps of odd sizes; every parameter gets a gradient."""
    torch.manual_seed(0)
    model = getattr(models, name)(num_classes=7).double().train()
    x = torch.randn(2, 3, 75, 67, dtype=torch.double)
    expected, fused = [], []
    for backend, results in (("reference", expected), ("cpu", fused)):
        ours = with_backend(model, backend)
        torch.manual_seed(1)  # dropout
        y = ours(x)
        assert y.shape == (2, 7)
        results.append(y.detach())
        results += torch.autograd.grad(y.square().sum(), list(ours.parameters()))
    for a, b in zip(fused, expected, strict=True):
        most = float(b.abs().max())
        assert most > 0
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-7 * most)


def test_backends_agree_on_se_inception_resnet_v2() -> None:
    """Its smallest images, normalised by the batch; without a block the result is another."""
    torch.manual_seed(0)
    model = models.se_inception_resnet_v2(num_classes=7).double().train()
    x = torch.randn(2, 3, 75, 79, dtype=torch.double)
    with torch.no_grad():
        expected = with_backend(model, "reference")(x)
        torch.testing.assert_close(with_backend(model, "cpu")(x), expected, rtol=1e-9, atol=1e-9)
        model.repeat_1[3].conv2d.se = nn.Identity()
        assert (model(x) - expected).abs().max() > 1e-4


def test_weights_of_swapped_blocks_are_those_that_the_library_drew() -> None:
    torch.manual_seed(3)
    ours = models.se_resnet50().state_dict()
    torch.manual_seed(3)
    theirs = timm.create_model("legacy_seresnet50").state_dict()
    key = "layer1.0.se_module.fc1.weight"
    assert torch.equal(ours[key], theirs[key])


@pytest.mark.parametrize("name", SE)
@pytest.mark.parametrize(
    ("reduction", "error", "message"),
    [
        (0, ValueError, "reduction must be at least 1, got 0"),
        (321, ValueError, r"reduction must be at most (256|320) here, got 321"),
        (16.0, TypeError, "reduction must be an integer, got float"),
    ],
)
def test_bad_reduction(name: str, reduction: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        build(name, reduction=reduction)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="kernel_sizes must be of the four stages, got 3"):
        build("eca_resnet50", kernel_sizes=(3, 3, 3))
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        build("eca_resnet50", kernel_sizes=(3, 3, 4, 3))
    for name in ("se_resnet50", "se_inception", "eca_resnet18", "eca_mobilenetv2"):
        with pytest.raises(ValueError, match="backend must be one of .*; got 'opencl'"):
            build(name, backend="opencl")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("se_resnet50", "timm"),
        ("eca_resnet50", "timm"),
        ("se_inception_resnet_v2", "timm"),
        ("se_inception", "torchvision"),
        ("eca_mobilenetv2", "torchvision"),
    ],
)
def test_missing_library(name: str, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(module: str) -> Any:
        if module.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return builtins.__import__(module, fromlist=["_"])

    monkeypatch.setattr(importlib, "import_module", import_module)
    message = f"chattn_cuda.models needs {missing}: pip install {missing}"
    with pytest.raises(ImportError, match=message):
        build(name)


# ---- the ECA authors' checkpoints --------------------------------------------------------------


def official_eca_resnet(depth: int) -> dict[str, Tensor]:
    """A state dict with the keys and shapes of the authors' released ECA-ResNets."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}

    def tensor(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def norm(name: str, c: int) -> None:
        state.update({f"{name}.{k}": tensor(c) for k in ("weight", "bias", "running_mean")})
        state[f"{name}.running_var"] = tensor(c).abs() + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def conv(index: str, o: int, i: int, k: int, *, name: str = "conv", bn: str = "bn") -> None:
        state[f"{name}{index}.weight"] = tensor(o, i, k, k) / (i * k * k) ** 0.5
        norm(f"{bn}{index}", o)

    conv("1", 64, 3, 7)
    channels, expansion = 64, 4 if depth >= 50 else 1
    for stage, (n, k) in enumerate(zip(DEPTHS[depth], ECA_K[depth], strict=True)):
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
    model = models.eca_resnet18()
    model.load_state_dict(copy.deepcopy(model).state_dict())
    nested = nn.Sequential(models.eca_resnet18())
    state = official_eca_resnet(18)
    nested.load_state_dict({f"0.{k}": t for k, t in state.items()})
    assert torch.equal(nested[0].layer4[1].se.conv.weight, state["layer4.1.eca.conv.weight"])
    with pytest.raises(RuntimeError, match="size mismatch for layer1.0.se.conv.weight"):
        models.eca_resnet18((1, 5, 7, 7)).load_state_dict(state)
    del state["layer1.0.eca.conv.weight"]
    with pytest.raises(RuntimeError, match="Missing key.*layer1.0.se.conv.weight"):
        model.load_state_dict(state)


def test_official_weights_give_the_formula() -> None:
    """One bottleneck with loaded weights against its layers written out."""
    model = models.eca_resnet50().eval()
    state = official_eca_resnet(50)
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


# ---- gate profiles -----------------------------------------------------------------------------


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
    "se-maxpool-bn": lambda: SqueezeExcite(16, add_maxpool=True, norm_layer=nn.BatchNorm2d),
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
        assert len(chattn_cuda.accelerate(model).changed) == 3
    return model


@pytest.mark.parametrize("kind", ATTENTION)
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
