"""Memory layouts of a map."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _dense(x: Tensor) -> Tensor:
    return x.contiguous()


def _nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _channel_slice(x: Tensor) -> Tensor:
    return torch.cat([x, x, x], 1)[:, x.shape[1] : 2 * x.shape[1]]


def _nhwc_channel_slice(x: Tensor) -> Tensor:
    return _nhwc(torch.cat([x, x, x], 1))[:, x.shape[1] : 2 * x.shape[1]]


def _crop(x: Tensor) -> Tensor:
    return F.pad(x, (1, 2, 2, 1))[:, :, 2 : 2 + x.shape[2], 1 : 1 + x.shape[3]]


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous().transpose(2, 3)


def _expanded(x: Tensor) -> Tensor:
    return x[:, :, :1].expand(x.shape)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "nchw": _dense,
    "nhwc": _nhwc,
    "channel_slice": _channel_slice,
    "nhwc_channel_slice": _nhwc_channel_slice,
    "crop": _crop,
    "transposed": _transposed,
    "expanded": _expanded,
}
