"""What every network does with its arguments, and without the libraries that it needs."""

from __future__ import annotations

import builtins
import importlib
from typing import Any

import pytest

from chattn_cuda import models
from tests.models.common import ECA, SE, SK, build


def test_every_network_is_tested() -> None:
    made = {n for n in models.__all__ if n[0].islower()} - {"gate_profile"}
    assert made == {*SE, *ECA, *SK}


@pytest.mark.parametrize("name", [*SE, *SK[:3]])
@pytest.mark.parametrize(
    ("reduction", "error", "message"),
    [
        (0, ValueError, "reduction must be at least 1, got 0"),
        (321, ValueError, r"reduction must be at most (128|256|320) here, got 321"),
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
    for name in ("se_resnet50", "se_inception", "eca_resnet18", "eca_mobilenetv2", *SK):
        with pytest.raises(ValueError, match="backend must be one of .*; got 'opencl'"):
            build(name, backend="opencl")


@pytest.mark.parametrize(
    ("name", "missing"),
    [
        ("se_resnet50", "timm"),
        ("eca_resnet50", "timm"),
        ("sknet50", "timm"),
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
