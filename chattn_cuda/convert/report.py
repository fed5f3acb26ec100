"""What `accelerate` and `restore` did."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

__all__ = ["Entry", "Report"]


@dataclass(frozen=True)
class Entry:
    """One module in a `Report`: its name in the model, its class, and what happened to it."""

    name: str
    cls: str
    note: str


@dataclass(frozen=True)
class Report:
    """What `accelerate` or `restore` did; ``print`` it.

    Attributes:
        model: The model, changed in place.
        action: "accelerated" or "restored".
        changed: The modules that were changed.
        left: The modules of known classes that were not, and why.
    """

    model: nn.Module
    action: str
    changed: tuple[Entry, ...]
    left: tuple[Entry, ...]

    def __str__(self) -> str:
        """A line per group of alike modules."""
        if not self.changed and not self.left:
            return f"0 modules {self.action}: {self._why_none()}"
        lines = [f"{len(self.changed)} modules {self.action}, {len(self.left)} left as they are"]
        for title, entries in ((self.action, self.changed), ("left", self.left)):
            groups: dict[tuple[str, str], list[str]] = {}
            for e in entries:
                groups.setdefault((e.cls, e.note), []).append(e.name or "(the model itself)")
            for (cls, note), found in groups.items():
                shown = ", ".join(found[:3]) + (f", ... ({len(found)})" if len(found) > 3 else "")
                lines.append(f"  {title}: {cls} {shown}: {note}")
        return "\n".join(lines)

    def _why_none(self) -> str:
        name = type(self.model).__name__
        if self.action == "restored":
            return f"{name} holds no accelerated block"
        if any(isinstance(m, torch.jit.ScriptModule) for m in self.model.modules()):
            return f"{name} is scripted or traced; accelerate the model first, then script it"
        if any(isinstance(m, torch.fx.GraphModule) for m in self.model.modules()):
            return f"{name} is a graph whose blocks are gone; accelerate the model first"
        return (
            f"{name} holds no channel attention block that chattn_cuda knows: the classes of timm "
            "and torchvision, and those built like them (docs/compatibility.md)"
        )
