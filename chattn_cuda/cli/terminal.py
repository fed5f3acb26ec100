"""Tables, lines and progress on the terminal: with rich where it is installed, else plain text."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import textwrap
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

        rule = "-" * (sum(widths) + 2 * len(widths) - 2)
        lines = [self.line(self.columns, widths), rule]
        return "\n".join([*lines, *(self.line(r, widths) if r else rule for r in self.rows)])

    def line(self, row: Sequence[str | Cell], widths: Sequence[int]) -> str:
        """A row as text, for columns of these widths."""
        texts = [
            str(c).ljust(w) if i < self.left else str(c).rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(texts).rstrip()


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
        columns = os.environ.get("COLUMNS", "")
        width = int(columns) if columns.isdecimal() and int(columns) > 0 else None
        if width is None and sys.stdout.isatty():
            width = os.get_terminal_size(sys.stdout.fileno()).columns or None
        self._width = width  # None: a pipe, which has none of its own
        if importlib.util.find_spec("rich") is not None:
            from rich.console import Console

            self._console = Console(highlight=False, soft_wrap=False)
            if not self._console.is_terminal:  # do not fold tables
                self._console = Console(highlight=False, width=width or _PIPED_WIDTH)

    def line(self, text: str = "", style: str = "", wrap: bool = True) -> None:
        """Print one line; between words, it goes on in the next one where the width ends."""
        if wrap:
            text = self._wrapped(text, len(text) - len(text.lstrip(" -")))
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
            start = f"  {name:<{width}}"
            rest = self._wrapped(f"{start}{value}", len(start))[len(start) :]
            if self._console:
                from rich.text import Text

                line = Text(start, style="dim").append(rest, style=style or "")
                self._console.print(line, soft_wrap=True)
            else:
                print(f"{start}{rest}".rstrip())

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
            # Where the width ends, titles and names go on between words; nothing is cut off.
            cells = [str(row[i]) for row in table.rows if row]
            words = [word for text in [column, *cells] for word in text.split()]
            whole = words if i < table.left else [*words, *cells]
            rich.add_column(
                Text(column),
                justify="left" if i < table.left else "right",
                min_width=max(map(len, whole), default=0),
            )
        for row in table.rows:
            if row is None:
                rich.add_section()
            else:
                rich.add_row(
                    *(Text(str(c), style=c.style if isinstance(c, Cell) else "") for c in row)
                )
        self._console.print(rich, crop=False)

    def _wrapped(self, text: str, indent: int) -> str:
        if self._width is None or len(text) <= self._width:
            return text
        return textwrap.fill(
            text,
            max(self._width, indent + 20),
            subsequent_indent=" " * indent,
            break_long_words=False,
            break_on_hyphens=False,
        )

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
