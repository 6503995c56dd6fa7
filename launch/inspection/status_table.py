"""The table of `launch/status.py`: the state of every run, once or until all have ended."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from diffuse.config import ranges
from diffuse.runtime import console
from launch.grids.listing import Listing
from launch.grids.selection import Where
from launch.inspection.run_status import RunStatus, counts, run_statuses

REFRESH_S = 5.0
MOST_LINES = 500  # nobody reads more
COLUMNS = (
    *("run", "state", "epoch", "loss", "ETA", "images/s", "evaluated", "job", "node", "attempts"),
    *("settings", "W&B"),
)
DISPENSABLE = ("settings", *(name for name in COLUMNS[5:] if name != "settings"))
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


def watch(root: Path, grid: str | None, out: Console, where: Where | None = None) -> int:
    """Show how the runs under `root` stand until all have ended; 1 where one failed, else 0.

    A live table on a terminal; elsewhere a row whenever something happened.
    """
    rows = run_statuses(root, grid, where)
    if console.is_live(out):
        with Live(listing(rows, out.height - 3), console=out, auto_refresh=False) as live:
            while _is_going_on(rows):
                time.sleep(REFRESH_S)
                rows = run_statuses(root, grid, where)
                live.update(listing(rows, out.height - 3), refresh=True)
    else:
        listing(rows).show(out)
        while _is_going_on(rows):
            time.sleep(REFRESH_S)
            before = {(r.run, r.state, r.epoch) for r in rows}
            rows = run_statuses(root, grid, where)
            if changed := [r for r in rows if (r.run, r.state, r.epoch) not in before]:
                listing(changed).show(out)
    out.print(counts(rows) or f"no runs in {root}")
    return int(any(row.state in ("failed", "lost") for row in rows))


def _is_going_on(rows: list[RunStatus]) -> bool:
    return any(row.state in GOING_ON for row in rows)


def listing(rows: list[RunStatus], room: int = MOST_LINES) -> Listing:
    """The runs in at most `room` lines; where not all fit, running and failed runs come first."""
    shown = Listing(COLUMNS, DISPENSABLE, room, "more (--json has all)")
    for row in rows:
        shown.add(
            {
                "run": row.run,
                "state": Text(row.state, STYLES.get(row.state, "")),
                "epoch": None if row.epoch is None else f"{row.epoch}/{row.epochs}",
                "loss": None if row.loss is None else f"{row.loss:.4f}",
                "ETA": None if row.eta_s is None else console.duration(row.eta_s),
                "images/s": f"{row.images_per_s:.0f}" if row.images_per_s else None,
                "evaluated": ranges.shown(row.evaluated_epochs),
                "node": row.node,
                "job": row.job,
                "attempts": str(row.attempts or ""),
                "settings": row.settings,
                "W&B": row.wandb,
            },
            remark=row.reason,
            rank=ORDER.index(row.state) if row.state in ORDER else len(ORDER),
        )
    return shown
