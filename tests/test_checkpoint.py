"""Activation checkpoints: a call and its recomputation save the same tensors, from the first on."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from chattn_cuda import backends
from tests import exported
from tests.exported import assert_same, pair, step

FUSED = backends.select("auto", "cpu")


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", exported.EVERY)
def test_every_step_of_a_new_module(name: str, training: bool, reentrant: bool) -> None:
    """A module remembers what it found out in the first call; the second may go another way."""
    fast, plain = pair(name, FUSED)
    fast.train(training), plain.train(training)

    def checkpointed(network: Any) -> dict[str, Tensor]:
        return step(
            lambda x: checkpoint(network, x, use_reentrant=reentrant), network.named_parameters()
        )

    for _ in range(2):
        assert_same(checkpointed(fast), checkpointed(plain))
        assert_same(dict(fast.named_buffers()), dict(plain.named_buffers()))
