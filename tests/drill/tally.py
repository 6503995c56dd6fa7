"""The trials and their outcomes."""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table


class Tally:
    """Counts trials by part and fault; keeps the files of those that failed."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.tried: Counter[tuple[str, str]] = Counter()
        self.lost: Counter[tuple[str, str]] = Counter()
        self.left_out: dict[str, str] = {}  # part -> why
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def trial(self, part: str, fault: str, folder: Path, faults: int) -> Iterator[None]:
        """One trial of `faults` faults, whose files lie in `folder`: they go where it survives.

        Whatever the block raises counts as a loss, is shown with its traceback, and ends there.
        """
        self.tried[part, fault] += faults
        start = time.monotonic()
        folder.mkdir(parents=True)
        try:
            yield
        except Exception:
            self.lost[part, fault] += 1
            self.console.print(f"LOST  {part}: {fault}; its files: {folder}", style="red")
            self.console.print(traceback.format_exc(), markup=False, highlight=False)
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            self.seconds[part] = self.seconds.get(part, 0) + time.monotonic() - start

    def table(self, title: str) -> Table:
        """A line for each fault."""
        table = Table(title=title, box=box.SIMPLE)
        for name in ("part", "fault"):
            table.add_column(name)
        for name in ("tried", "survived", "lost"):
            table.add_column(name, justify="right")
        before = None
        for (part, fault), tried in self.tried.items():
            lost = self.lost[part, fault]
            style = "red" if lost else None
            shown = "" if part == before else part
            before = part
            table.add_row(shown, fault, str(tried), str(tried - lost), str(lost), style=style)
        for part, why in self.left_out.items():
            table.add_row(part, f"left out: {why}", "0", "", "")
        table.add_section()
        tried, lost = self.tried.total(), self.lost.total()
        table.add_row("all", "", str(tried), str(tried - lost), str(lost))
        return table
