"""The table of `launch/status.py`: the state of every run, once or until all have ended."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from diffuse.runtime import console
from launch.inspection.run_status import RunStatus, counts, run_statuses

REFRESH_S = 5.0
MOST_ROWS = 500  # nobody reads more, and laying them out takes seconds
STYLES = {
    "done": "green",
    "running": "cyan",
    "evaluating": "cyan",
    "failed": "bold red",
    "lost": "red",
    "interrupted": "yellow",
    "requeued": "yellow",
    "unknown": "yellow",
}
GOING_ON = ("queued", "requeued", "running", "evaluating", "unknown")
# The states that want attention first.
ORDER = ("failed", "lost", "unknown", "running", "evaluating", "interrupted", "requeued", "queued")


def watch(root: Path, grid: str | None, out: Console) -> int:
    """Show how the runs under `root` stand until all have ended; 1 where one failed, else 0.

    A live table on a terminal; elsewhere a row whenever something happened.
    """
    rows = run_statuses(root, grid)
    if console.is_live(out):
        with Live(table(rows, out.height - 3), console=out, auto_refresh=False) as live:
            while _is_going_on(rows):
                time.sleep(REFRESH_S)
                rows = run_statuses(root, grid)
                live.update(table(rows, out.height - 3), refresh=True)
    else:
        out.print(table(rows, MOST_ROWS))
        while _is_going_on(rows):
            time.sleep(REFRESH_S)
            before, rows = {(r.run, r.state, r.epoch) for r in rows}, run_statuses(root, grid)
            if changed := [r for r in rows if (r.run, r.state, r.epoch) not in before]:
                out.print(table(changed, MOST_ROWS))
    out.print(counts(rows) or f"no runs in {root}")
    return int(any(row.state in ("failed", "lost") for row in rows))


def _is_going_on(rows: list[RunStatus]) -> bool:
    return any(row.state in GOING_ON for row in rows)


def table(rows: list[RunStatus], room: int) -> Table:
    """At most `room` rows; of more, running and failed runs come first."""
    made = console.table(
        "run", "job", "state", "epoch", "loss", "images/s", "ETA", "evaluated", "attempts", "node"
    )
    made.add_column("reason", overflow="fold")
    shown = rows
    if len(rows) > room:
        shown = sorted(rows, key=lambda row: _order(row.state))[: max(1, room)]
    for row in shown:
        made.add_row(
            row.run,
            row.job,
            Text(row.state, STYLES.get(row.state, "")),
            "" if row.epoch is None else f"{row.epoch}/{row.epochs}",
            "" if row.loss is None else f"{row.loss:.4f}",
            "" if not row.images_per_s else f"{row.images_per_s:.0f}",
            "" if row.eta_s is None else console.duration(row.eta_s),
            str(row.evaluated or ""),
            str(row.attempts or ""),
            row.node,
            Text(row.reason),
        )
    if len(rows) > len(shown):
        made.add_row(f"... and {len(rows) - len(shown)} more (--json has all)")
    return made


def _order(state: str) -> int:
    return ORDER.index(state) if state in ORDER else len(ORDER)
