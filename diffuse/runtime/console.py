"""Screens: long work as a bar with rate and ETA (plain lines in a log file), tables, durations."""

from __future__ import annotations

import os
import sys
import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

LINE_EVERY_S = 30.0
UNLIMITED = 10_000  # cells of a line in a file or a pipe


class Meter:
    """Shows steps of one task. Silent where `shown` is false (all ranks but the first)."""

    def __init__(self, title: str, total: int, done: int = 0, shown: bool = True) -> None:
        self.title, self.total, self.shown = title, total, shown
        self.bar: Progress | None = None
        self.last_line = time.monotonic()
        console = Console(stderr=True)
        if shown and is_live(console):
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}  {task.fields[facts]}"),
                console=console,
            )
            self.task = self.bar.add_task(title, total=total, completed=done, facts="")

    def __enter__(self) -> Meter:
        if self.bar:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar:
            self.bar.stop()

    def update(self, done: int, facts: str, total: int | None = None) -> None:
        """Show `done` steps (of a `total` found out by now); in a log file every 30 s at most."""
        self.total = total or self.total
        if self.bar:
            self.bar.update(self.task, completed=done, total=self.total, facts=facts)
        elif self.shown and time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.say(f"{self.title}  {done}/{self.total}  {facts}")

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self.bar:
            self.bar.console.print(line, highlight=False, markup=False)
        elif self.shown:
            print(line, flush=True)
            self.last_line = time.monotonic()


def is_live(console: Console) -> bool:
    """Whether it can be drawn over: rich takes FORCE_COLOR for a terminal, in a log file too."""
    return console.file.isatty() and console.is_interactive


def note(line: str) -> None:
    """A remark on standard error."""
    print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`42s`, `3m05s`, `2h07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def screen(stderr: bool = False) -> Console:
    """A console that never wraps or cuts anything in a file or a pipe."""
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else UNLIMITED
    return Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table without lines, its columns not wrapped."""
    empty = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        empty.add_column(column, no_wrap=True)
    return empty
