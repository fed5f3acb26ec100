"""Tables, lines and progress on the terminal: with rich where it is installed, else plain text."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Cell", "Steps", "Table", "Terminal", "UsageError", "require"]

_PIP_NAMES = {"sklearn": "scikit-learn", "PIL": "pillow"}
_PIPED_WIDTH = 120


class UsageError(Exception):
    """A message for the user about what was asked for; the process ends with exit code 2."""


def require(what: str, modules: Sequence[str]) -> None:
    """Raise unless all ``modules`` are installed.

    Args:
        what: What needs them, for the message.
        modules: Names of importable modules.

    Raises:
        UsageError: Names the missing ones and the pip command that installs them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(_PIP_NAMES.get(name, name) for name in missing)
        raise UsageError(f"{what} needs {', '.join(missing)}: pip install {packages}")


@dataclass(frozen=True)
class Cell:
    """Text with a rich style."""

    text: str
    style: str = ""

    def __str__(self) -> str:
        """The text alone."""
        return self.text


@dataclass
class Table:
    """A titled table; the first ``left`` columns are aligned to the left, the others to the right.

    A row may be None: a line between the rows.
    """

    title: str
    columns: Sequence[str]
    rows: list[Sequence[str | Cell] | None] = field(default_factory=list)
    left: int = 1

    def plain(self) -> str:
        """The table without its title as text."""
        cells = [list(self.columns), *([str(c) for c in row] for row in self.rows if row)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

        def line(row: Sequence[str | Cell]) -> str:
            texts = [
                str(c).ljust(w) if i < self.left else str(c).rjust(w)
                for i, (c, w) in enumerate(zip(row, widths, strict=True))
            ]
            return "  ".join(texts).rstrip()

        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        return "\n".join(
            [line(self.columns), rule, *(line(row) if row else rule for row in self.rows)]
        )


class Steps:
    """Progress over a known number of steps."""

    def __init__(self, total: int, bar: Any = None) -> None:
        self._total, self._done, self._bar = total, 0, bar
        self._task = bar.add_task("", total=total) if bar else None

    def begin(self, text: str) -> None:
        """Say what is being done now; whatever was begun before is done."""
        if self._bar:
            self._bar.update(self._task, description=text, completed=self._done)
        else:
            print(f"[{self._done + 1}/{self._total}] {text}", flush=True)
        self._done += 1

    def detail(self, text: str) -> None:
        """Say what is being done within the step; shown by the bar only."""
        if self._bar:
            self._bar.update(self._task, description=text)


class Terminal:
    """Where a command prints to (stdout)."""

    def __init__(self) -> None:
        self._console: Any = None
        if importlib.util.find_spec("rich") is not None:
            from rich.console import Console

            self._console = Console(highlight=False, soft_wrap=False)
            if not self._console.is_terminal:  # a pipe has no width of its own: do not fold tables
                self._console = Console(highlight=False, width=_PIPED_WIDTH)

    def line(self, text: str = "", style: str = "") -> None:
        """Print one line; long ones are wrapped by the terminal, never cut."""
        if self._console:
            self._console.print(text, style=style or None, markup=False, soft_wrap=True)
        else:
            print(text)

    def heading(self, text: str) -> None:
        """Print a heading."""
        self.line()
        self.line(text, "bold cyan")

    def fields(self, pairs: Sequence[tuple[str, str | Cell]], width: int = 16) -> None:
        """Print ``name  value`` lines."""
        for name, value in pairs:
            style = value.style if isinstance(value, Cell) else ""
            if self._console:
                from rich.text import Text

                line = Text(f"  {name:<{width}}", style="dim").append(str(value), style=style or "")
                self._console.print(line, soft_wrap=True)
            else:
                print(f"  {name:<{width}}{value}".rstrip())

    def table(self, table: Table) -> None:
        """Print a table."""
        if table.title:
            self.heading(table.title)
        if not self._console:
            print(table.plain())
            return
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        rich = RichTable(
            header_style="dim",
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
        )
        for i, column in enumerate(table.columns):
            if i < table.left:
                rich.add_column(Text(column))
            else:
                rich.add_column(Text(column), justify="right", no_wrap=True)
        for row in table.rows:
            if row is None:
                rich.add_section()
            else:
                rich.add_row(
                    *(Text(str(c), style=c.style if isinstance(c, Cell) else "") for c in row)
                )
        self._console.print(rich)

    @contextlib.contextmanager
    def steps(self, total: int) -> Iterator[Steps]:
        """Progress over ``total`` steps: a bar on a terminal, a line per step elsewhere."""
        if not self._console or not self._console.is_terminal or not sys.stdout.isatty():
            yield Steps(total)
            return
        from rich import progress

        with progress.Progress(
            progress.SpinnerColumn(),
            progress.BarColumn(bar_width=28),
            progress.TextColumn("{task.completed}/{task.total}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.description}"),
            console=self._console,
            transient=True,
        ) as bar:
            yield Steps(total, bar)
