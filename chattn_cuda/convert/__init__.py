"""Acceleration of existing models: `accelerate` and `restore`.

A module is accelerated by giving it another class: a subclass of its own, with the fused forward in
front. Its parameters, buffers, hooks, state_dict keys and ``isinstance`` relations stay what they
are.

`adapter` says what an adapter is; there is one file of adapters per family: `timm`,
`selective_kernel` (timm's, too) and `torchvision`, found by their classes' names, and `structural`
and `efficientnet`, found by what a module consists of.
"""

from __future__ import annotations

from chattn_cuda.convert import efficientnet, selective_kernel, structural, timm, torchvision
from chattn_cuda.convert.accelerate import accelerate, restore
from chattn_cuda.convert.adapter import ADAPTERS, STRUCTURES, Adapter
from chattn_cuda.convert.report import Entry, Report

__all__ = ["ADAPTERS", "STRUCTURES", "Adapter", "Entry", "Report", "accelerate", "restore"]

ADAPTERS.update(timm.ADAPTERS)
ADAPTERS.update(selective_kernel.ADAPTERS)
ADAPTERS.update(torchvision.ADAPTERS)
STRUCTURES.update(structural.STRUCTURES)
STRUCTURES.update(efficientnet.STRUCTURES)
