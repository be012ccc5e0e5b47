"""Progress on a terminal: a live bar for people, one line now and then for logs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bharateo.accounting import Row
from bharateo.machine import first_rank

LOG_EVERY_S = 10.0
LINE_WIDTH = 80


class Display:
    """Where the verbs say what they do; ``quiet``: nothing but what begins with ``warning:``."""

    def __init__(self, console: Console | None = None, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = console or Console(highlight=False, soft_wrap=True, quiet=not first_rank())
        if console is None and self.console.is_jupyter:  # where HTML would make every line a cell
            self.console = Console(highlight=False, soft_wrap=True, quiet=self.console.quiet,
                                   force_jupyter=False, force_terminal=False)  # fmt: skip

    def say(self, text: str) -> None:
        """One line, at once."""
        if not self.quiet or text.startswith("warning:"):
            self.console.print(text, markup=False)

    def table(self, title: str, rows: Sequence[Row]) -> None:
        """Quantities with their units and meanings."""
        if self.quiet:
            return
        table = Table("quantity", title=title, title_justify="left", box=SIMPLE_HEAD)
        table.add_column("value", justify="right", no_wrap=True)
        table.add_column("unit")
        table.add_column("meaning", overflow="fold")
        for row in rows:
            table.add_row(row.name, row.shown, row.unit, row.meaning)
        self.console.print(table)

    def columns(
        self, header: Sequence[str], rows: Sequence[Sequence[str | Text]], title: str | None = None
    ) -> None:
        """A table of texts, in which square brackets are square brackets."""
        if self.quiet:
            return
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        for name in header:
            table.add_column(name, overflow="fold")
        for row in rows:
            table.add_row(*(cell if isinstance(cell, Text) else Text(cell) for cell in row))
        self.console.print(table)

    @contextmanager
    def bar(self, name: str) -> Iterator[Bar]:
        """A progress bar on a terminal, lines every ten seconds elsewhere."""
        if self.quiet or not self.console.is_terminal:
            yield Bar(name, self, None)
            return
        columns = (
            TextColumn("{task.fields[title]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console) as progress:
            yield Bar(name, self, progress)


class Bar:
    """One long job under way."""

    def __init__(self, name: str, display: Display, progress: Progress | None) -> None:
        self.name, self.display, self.progress = name, display, progress
        self.task = progress.add_task(name, title=name, note="", total=None) if progress else None
        self.logged = time.monotonic()

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show ``done`` of ``total`` and a short note."""
        if self.progress and self.task is not None:
            self.progress.update(self.task, completed=done, total=total, note=note)
        elif time.monotonic() - self.logged >= LOG_EVERY_S:
            self.logged = time.monotonic()
            self.display.say(fitted(f"{self.name}: {100 * done / max(total, 1):3.0f} %  {note}"))


def fitted(line: str, width: int = LINE_WIDTH) -> str:
    """A line of progress in so many columns: of its parts, which two spaces set apart, the last two
    (how fast, how long) are kept, and those before them go first.
    """
    parts = line.split("  ")
    while len(parts) > 4 and len("  ".join(parts)) > width:
        del parts[-3]
    line = "  ".join(parts)
    return line if len(line) <= width else f"{line[: width - 1]}…"
