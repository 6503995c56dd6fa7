"""How the runs stand: `python launch/status.py [--grid part2] [--follow]`.

From the run directories and one call each of squeue and sacct; right also without accounting, from
another shell, and after Slurm has forgotten the jobs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if __package__ in (None, ""):  # run as a script: the repository takes the script's folder's place
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from diffuse.runtime import errors

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from launch.inspection.run_status import Standing

app = typer.Typer(add_completion=False, rich_markup_mode=None)
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
GOES_ON = ("queued", "requeued", "running", "evaluating", "unknown")


@app.command()
def main(
    grid: Annotated[str | None, typer.Option(help="Only runs of this grid's sweeps.")] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where run directories live.")] = Path("runs"),
    follow: Annotated[bool, typer.Option("--follow", help="Until all have ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    log: Annotated[
        str | None, typer.Option(metavar="RUN", help="Show this run's newest log instead.")
    ] = None,
) -> None:
    """Show how every run stands."""
    from launch.inspection.run_status import counts, standings

    if not runs_dir.is_dir():
        raise errors.UserError(f"{runs_dir}: no such folder; name it by --runs-dir")
    if log is not None:
        _show_log(runs_dir, log)
        return
    root = runs_dir.absolute()
    rows = standings(root, grid)
    if as_json:
        print(json.dumps({"runs": [row.as_plain() for row in rows]}, indent=2))
        return
    from launch.local.display import console

    out = console()
    if follow:
        watch(root, grid, out)
        return
    out.print(_table(rows, MOST_ROWS))
    out.print(counts(rows) or f"no runs in {runs_dir}")


def watch(root: Path, grid: str | None, out: Console) -> int:
    """Show how the runs under `root` stand until all have ended; 1 where one failed, else 0.

    A live table on a terminal; elsewhere a row whenever something happened.
    """
    from rich.live import Live

    from launch.inspection.run_status import counts, standings

    rows = standings(root, grid)
    if out.is_terminal:
        with Live(_table(rows, out.height - 3), console=out, auto_refresh=False) as live:
            while _lives(rows):
                time.sleep(REFRESH_S)
                rows = standings(root, grid)
                live.update(_table(rows, out.height - 3), refresh=True)
    else:
        out.print(_table(rows, MOST_ROWS))
        while _lives(rows):
            time.sleep(REFRESH_S)
            before, rows = {(r.run, r.state, r.epoch) for r in rows}, standings(root, grid)
            if news := [r for r in rows if (r.run, r.state, r.epoch) not in before]:
                out.print(_table(news, MOST_ROWS))
    out.print(counts(rows) or f"no runs in {root}")
    return int(any(row.state in ("failed", "lost") for row in rows))


def _lives(rows: list[Standing]) -> bool:
    return any(row.state in GOES_ON for row in rows)


def _table(rows: list[Standing], room: int) -> Table:
    """At most `room` rows; where there are more, what runs or went wrong comes first."""
    from rich.table import Table
    from rich.text import Text

    from launch.local.display import duration

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("run", "job", "state", "epoch", "loss", "images/s", "ETA", "evaluated"):
        table.add_column(name, no_wrap=True)
    table.add_column("attempts", no_wrap=True)
    table.add_column("node", no_wrap=True)
    table.add_column("reason", overflow="fold")
    shown = rows
    if len(rows) > room:
        shown = sorted(rows, key=lambda row: _order(row.state))[: max(1, room)]
    for row in shown:
        table.add_row(
            row.run,
            row.job,
            Text(row.state, STYLES.get(row.state, "")),
            "" if row.epoch is None else f"{row.epoch}/{row.epochs}",
            "" if row.loss is None else f"{row.loss:.4f}",
            "" if not row.images_per_s else f"{row.images_per_s:.0f}",
            "" if row.eta_s is None else duration(row.eta_s),
            str(row.evaluated or ""),
            str(row.attempts or ""),
            row.node,
            Text(row.reason),
        )
    if len(rows) > len(shown):
        table.add_row(f"... and {len(rows) - len(shown)} more (--json has all)")
    return table


def _order(state: str) -> int:
    order = (
        "failed",
        "lost",
        "unknown",
        "running",
        "evaluating",
        "interrupted",
        "requeued",
        "queued",
    )
    return order.index(state) if state in order else len(order)


def _show_log(runs_dir: Path, name: str) -> None:
    """Print the newest log of a run; the others are named on standard error."""
    from diffuse.rundir.directory import RunDir
    from launch.jobs.ledger import submissions
    from launch.jobs.logs import newest_log, unheard

    run = RunDir(runs_dir / name)
    jobs = [job for s in submissions(runs_dir) for job in s.jobs if job["run"] == name]
    # What the last job printed where its program could not start, and so has no log
    begun = [job for job in jobs if job["job_id"]]
    path = (unheard(run, begun[-1]) if begun else None) or newest_log(run)
    if path is None:
        known = ", ".join(sorted(p.parent.name for p in runs_dir.glob("*/logs"))[:8])
        raise errors.UserError(f"{run.path}: no log here; runs with logs: {known or 'none'}")
    print(f"{path} (of {len(list(run.logs.glob('*.log')))})", file=sys.stderr)
    sys.stdout.write(path.read_text(errors="replace"))


if __name__ == "__main__":
    errors.run(app)
