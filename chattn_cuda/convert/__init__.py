"""Acceleration of existing models: `accelerate` and `restore`.

A module is accelerated by giving it another class: a subclass of its own, with the fused forward in
front. Its parameters, buffers, hooks, state_dict keys and ``isinstance`` relations stay what they
are.

`adapter` says what an adapter is. Those of `chattn_cuda.peers` are found by their classes' names,
the others by what a forward computes (`dataflow`); where that is more than SE or ECA (`structural`,
`efficientnet`), by what a module consists of, which the recorded forward must confirm.
"""

from __future__ import annotations

from chattn_cuda.convert import efficientnet, structural
from chattn_cuda.convert.accelerate import accelerate, restore
from chattn_cuda.convert.adapter import ADAPTERS, STRUCTURES, Adapter
from chattn_cuda.convert.report import Entry, Report

__all__ = ["ADAPTERS", "STRUCTURES", "Adapter", "Entry", "Report", "accelerate", "restore"]

STRUCTURES.update(structural.STRUCTURES)
STRUCTURES.update(efficientnet.STRUCTURES)
