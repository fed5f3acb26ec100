"""Names of methods that other libraries call by convention stay free, on every module."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from chattn_cuda import accelerate, modules
from chattn_cuda.modules.fused import FusedForward

timm = pytest.importorskip("timm", reason="timm is not installed")

#: What timm, torch.ao, torchvision, peft and repositories around them look for on every module.
CONVENTIONS = frozenset(
    """fuse fuse_model fuse_forward reparameterize switch_to_deploy get_equivalent_kernel_bias
    deploy merge unmerge safe_merge merge_and_unload get_base_layer base_layer update_layer
    adapter_layer_names get_delta_weight set_adapter enable_adapters
    reset_parameters init_weights zero_init_last _init_weights init_non_persistent_buffers
    no_weight_decay group_matcher get_parameter_groups parameter_groups set_grad_checkpointing
    get_classifier reset_classifier load_pretrained prune_intermediate_layers set_input_size
    set_distilled_training no_sync feat_mult local_init gain stddev
    from_float from_observed from_reference to_float convert prepare prepare_qat qconfig
    weight_fake_quant activation_post_process is_dynamic quantize dequantize id_tensor small_conv
    flops macs complexity get_flops extra_repr_flops
    weight bias out_channels in_features out_features num_features feature_info stem head
    meta module device dtype config export""".split()
)


def _all(cls: type) -> Iterator[type]:
    yield cls
    for sub in cls.__subclasses__():
        yield from _all(sub)


@pytest.mark.parametrize("cls", sorted(set(_all(FusedForward)), key=lambda c: c.__qualname__))
def test_conventions_stay_free(cls: type) -> None:
    own = {name for name in dir(cls) if not hasattr(nn.Module, name)}
    if "_accelerated_from" in cls.__dict__:  # made by another test: the class's own names count not
        own -= set(dir(cls.__dict__["_accelerated_from"]))
    assert not own & CONVENTIONS


@pytest.mark.parametrize("name", ["SelectiveKernel", "SelectiveKernelAttn", "SKNet", "SplitAttn"])
def test_timm_reparameterizes_own_modules(name: str) -> None:
    block: Any = getattr(modules, name)(16)
    again = timm.utils.reparameterize_model(nn.Sequential(block).eval())
    assert list(again.state_dict()) == [f"0.{k}" for k in block.state_dict()]


def test_timm_reparameterizes_an_accelerated_model() -> None:
    model = timm.create_model("skresnet18", num_classes=3).eval()
    x = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(x)
        assert accelerate(model).changed
        torch.testing.assert_close(timm.utils.reparameterize_model(model)(x), expected)
