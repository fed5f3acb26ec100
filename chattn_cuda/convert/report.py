"""What `accelerate` and `restore` did."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

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
    """What `accelerate` or `restore` did; ``print`` it. The model was changed in place.

    Attributes:
        model: The model itself.
        action: "accelerated" or "restored".
        changed: The modules that were changed.
        left: The modules of known classes that were not, and why.
        again: The modules that had been accelerated before, whose backend was set.
        notes: What to know before the first call.
    """

    model: nn.Module
    action: str
    changed: tuple[Entry, ...]
    left: tuple[Entry, ...]
    again: tuple[Entry, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A line per group of alike modules."""
        if not self.changed and not self.left and not self.again:
            return f"0 modules {self.action}: {self._why_none()}"
        before = f", {len(self.again)} had been before" * bool(self.again)
        left = f", {len(self.left)} left as they are" * bool(self.left or not self.again)
        count = len(self.changed)
        lines = [f"{count} module{'s' * (count != 1)} {self.action}{before}{left}"]
        groups = (self.action, "changed"), ("before", "again"), ("left", "left")
        for title, attribute in groups:
            lines += self._lines(title, attribute)
        lines += [f"  note: {note}" for note in self.notes]
        if self.left and self.action == "accelerated":
            lines.append("  how to port what was left: docs/porting.md")
        if self.action == "accelerated" and (self.changed or self.again):
            lines.append(
                "  pruning needs chattn_cuda.restore(model) first; so does quantisation, where the "
                "backend is a named one"
            )
        return "\n".join(lines)

    def _lines(self, title: str, attribute: str) -> list[str]:
        groups: dict[tuple[str, str], list[str]] = {}
        for e in getattr(self, attribute):
            groups.setdefault((e.cls, e.note), []).append(e.name or "(the model itself)")
        lines = []
        for (cls, note), found in groups.items():
            shown = ", ".join(found[:3])
            if len(found) > 3:
                shown += f", ... ({len(found)}; all are in report.{attribute})"
            lines.append(f"  {title}: {cls} {shown}: {note}")
        return lines

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise: what was meant is the model."""
        raise TypeError(f"this is a report, not the model: {self._in_place()}")

    def __getattr__(self, name: str) -> Any:
        """Raise, with a hint for what a model has."""
        known = hasattr(nn.Module, name) and not name.startswith("__")
        hint = f"; {self._in_place()}" if known else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

    def _in_place(self) -> str:
        verb = self.action.removesuffix("d")
        return f"{verb}(model) works in place; go on with the model (or report.model)"

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
