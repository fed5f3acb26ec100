"""tools/count_models.py and predict_models.py: bytes of whole models, and what follows of them."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import chattn_cuda
from chattn_cuda import _native
from tests import counted
from tests.cases.calls import Make
from tests.cuda_host.blocks import KERNELS

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import bench_models  # noqa: E402
import count_models  # noqa: E402
import predict_models  # noqa: E402

pytestmark = pytest.mark.skipif(
    not _native.build_info(), reason="needs the operators of the native module"
)
SHAPE = 16, 32, 64, 64  # large enough that all but maps is little
MAP = 2 * 16 * 32 * 64 * 64


def maps() -> Tensor:
    return torch.empty(SHAPE, dtype=torch.bfloat16, device="meta")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(SHAPE[1], device="meta", dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu_(self.bn(x.sigmoid()) + x)


def test_a_model_counted_by_hand() -> None:
    model, x = Residual(), maps().requires_grad_()
    inference = count_models.count(model, x, False).bytes / MAP
    # sigmoid 1 + 1, norm 1 + 1, sum 2 + 1, ReLU 1 + 1
    assert inference == pytest.approx(9, abs=0.01)
    training = count_models.count(model, x, True).bytes / MAP
    # the norm reads twice; the loss 1; back: ReLU 1 + 1, as its gradient is one number; norm 4 + 1,
    # sigmoid 2 + 1, and the sum of the two gradients of x 2 + 1
    assert training == pytest.approx(10 + 1 + 2 + 5 + 3 + 3, abs=0.01)


def test_convolutions_and_views_count_as_nothing() -> None:
    model = nn.Sequential(nn.Conv2d(32, 32, 1), nn.Flatten(), nn.Unflatten(1, SHAPE[1:]))
    model = model.to("meta", torch.bfloat16)
    assert count_models.count(model, maps(), False).bytes == 0


def options() -> Iterator[tuple[str, dict[str, object]]]:
    for block in ("se", "eca", "sk", "sk_block"):
        yield block, {}
    for inner, act, residual in ((0, 1, True), (0, 1, False), (3, 0, False), (3, 3, True)):
        for gate in (True, False):
            for of_batch in (True, False):
                yield "tail", {
                    "inner": inner, "act": act, "residual": residual, "gate": gate,
                    "of_batch": of_batch,
                }  # fmt: skip


@pytest.mark.parametrize(("block", "more"), list(options()))
def test_operators_move_what_their_kernels_do(block: str, more: dict[str, object]) -> None:
    """The same that the planner and the counted kernels say (tests/test_cuda_traffic.py)."""
    kernels = KERNELS[block]
    make = Make(torch.bfloat16, torch.channels_last, device="meta")
    floors = kernels.floors(**more)
    for direction, calls in kernels.calls(make, SHAPE, **more)._asdict().items():
        with count_models.Counter() as counter:
            for name, args in calls:
                getattr(torch.ops.chattn_cuda, name)(*args)
        masks = sum(size for name, args in calls for size in _masks(args))
        if direction == "forward" and more.get("residual") and more["act"] in (1, 2):
            masks = MAP / 16
        moved = (counter.count.bytes - masks) / MAP
        assert moved == pytest.approx(floors[direction].two_pass.passes, abs=0.05), direction


def _masks(args: tuple[object, ...]) -> Iterator[int]:
    for t in args:
        if isinstance(t, Tensor) and t.dtype == torch.uint8:
            yield t.numel()


def test_the_counted_table_agrees() -> None:
    """`two_pass` above is what bench/counted.csv has, where a kernel is not better."""
    for row in counted.read():
        if row["block"] in ("se", "tail", "sk"):
            floors = KERNELS[row["block"]].floors()[row["direction"]]
            assert float(row["maps"]) == floors.two_pass.passes


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ((0, None, None, 0), "norm"),
        ((0, None, None, 1), "norm, line"),
        ((0, None, None, 3), "norm, curve"),
        ((0, None, maps, 1), "norm, residual, line"),
        ((0, maps, maps, 1), "norm, gate, residual, line"),
        ((3, maps, None, 0), "norm, curve, gate"),
    ],
)
def test_kinds_of_tails(arguments: tuple[object, ...], kind: str) -> None:
    assert count_models.kind_of(*arguments) == kind  # type: ignore[arg-type]
    assert kind in count_models.INDUCTOR


def test_tails_take_less_than_what_they_stand_for() -> None:
    """Eager PyTorch's maps less ours, tail by tail, are the difference of both models' bytes."""
    timm = pytest.importorskip("timm")
    model = timm.create_model("resnet18", layers=(1, 1, 1, 1))
    x = torch.empty(16, 3, 96, 96, dtype=torch.bfloat16, device="meta")
    found = count_models.counts(model, x, False)
    assert found["all"] == pytest.approx(found["compiled"], rel=0.01)  # 2, 2 and 3 maps, both
    assert found["compiled"] < found["eager"] == found["tails"]  # where all maps are small
    chattn_cuda.accelerate(fused := copy.deepcopy(model), "auto", "tail")
    with count_models.operators(0):
        tails = count_models.count(fused.to("meta", x.dtype), x, False).tails
    saved = {"norm": 0, "norm, line": 2, "norm, residual, line": 4}  # 2-2, 4-2, 7-3
    assert {kind for kind, _ in tails} == set(saved)
    expected = sum(saved[kind] * size for kind, size in tails)
    assert found["eager"] - found["all"] == pytest.approx(expected, rel=0.01)


def test_what_was_patched_is_put_back() -> None:
    from chattn_cuda import backends
    from chattn_cuda.modules import deferred

    before = backends.names(), dict(deferred.SMALLEST)
    with pytest.raises(ValueError, match="stop"), count_models.operators(1):
        assert backends.select("auto", "meta") == "meta"
        raise ValueError("stop")
    assert (backends.names(), dict(deferred.SMALLEST)) == before
    assert backends.select("auto", "meta") == "reference"


@pytest.mark.parametrize("model", ["mobilenetv3_large_100", "skresnet50"])
def test_the_table_is_what_is_counted(model: str) -> None:
    pytest.importorskip("timm")
    changed = count_models.differences(list(count_models.rows((model,))), predict_models.read())
    assert not changed, "\n".join([*changed, "python tools/count_models.py --write"])


def test_a_change_is_found() -> None:
    before = predict_models.read()
    now = [dict(row) for row in before]
    now[3]["tails"] = "1"
    (line,) = count_models.differences(now, before)
    assert now[3]["model"] in line and "tails" in line and line.endswith("-> 1 bytes")


def test_predictions_of_a_table_by_hand() -> None:
    row = {"eager": "3350000000", "batch": "128", "work": "training", "model": "seresnet50"}
    assert predict_models.ms(row, "eager", "H100 SXM 80 GB") == pytest.approx(1.0)
    plain = {**row, "eager": "1000000000", "model": "resnet50"}
    (first, *_) = predict_models.PUBLISHED
    us = first.predicted([row, plain])
    assert us == pytest.approx(2.35e9 / 128 / 3.35e12 * 1e6)
    assert first.more == pytest.approx((51.3 - 36.0) * 1e3 / 128)


def test_the_page_has_these_tables() -> None:
    page = predict_models.PAGE.read_text()
    begin, end = bench_models.marks(predict_models.SECTION)
    shown = page.partition(begin)[2].partition(end)[0]
    expected = predict_models.markdown(predict_models.read())
    assert shown == f"\n{expected}", "run: python tools/predict_models.py --write"
    worst = f"{min(predict_models.errors(predict_models.read())):+.0%}".replace("-", "\u2212")
    assert worst in shown
