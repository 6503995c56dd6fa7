"""The states of runs: `python launch/status.py [--grid part2] [--follow]`.

From the run directories and one call each of squeue and sacct; right also without accounting, from
another shell, and after Slurm has forgotten the jobs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):  # run as a script: the repository takes the script's folder's place
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from diffuse.runtime import errors, options

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    grid: options.OfGrid = None,
    where: options.Where = None,
    runs_dir: options.RunsDir = options.RUNS,
    follow: options.Follow = False,
    as_json: options.AsJson = False,
    log: Annotated[
        str | None, typer.Option(metavar="RUN", help="Name of a run: print its newest log instead.")
    ] = None,
) -> None:
    """Show the state of every run."""
    from launch.grids.grid import noted_name
    from launch.grids.selection import Where
    from launch.inspection.run_status import counts, run_statuses

    if not runs_dir.is_dir():
        raise errors.UserError(f"{runs_dir}: no such folder; name it by --runs-dir")
    if log is not None:
        _show_log(runs_dir, log)
        return
    root = runs_dir.absolute()
    grid = grid and noted_name(grid)
    chosen = Where(where) if where else None
    rows = run_statuses(root, grid, chosen)
    if as_json:
        print(json.dumps({"runs": [vars(row) for row in rows]}, indent=2))
        return
    from diffuse.runtime.console import screen
    from launch.inspection import status_table

    out = screen()
    if follow:
        status_table.watch(root, grid, out, chosen)
        return
    status_table.listing(rows).show(out)
    out.print(counts(rows) or f"no runs in {runs_dir}")


def _show_log(runs_dir: Path, name: str) -> None:
    """Print the newest log of a run; the others are named on standard error."""
    from diffuse.rundir.directory import RunDir
    from launch.grids.ledger import submissions
    from launch.jobs.logs import newest_log, startup_output

    run = RunDir(runs_dir / name)
    jobs = [job for s in submissions(runs_dir) for job in s.jobs if job["run"] == name]
    # The last job's output, where its program could not start and so has no log
    begun = [job for job in jobs if job["job_id"]]
    path = (startup_output(run, begun[-1]) if begun else None) or newest_log(run)
    if path is None:
        known = ", ".join(sorted(p.parent.name for p in runs_dir.glob("*/logs"))[:8])
        raise errors.UserError(f"{run.path}: no log here; runs with logs: {known or 'none'}")
    print(f"{path} (of {len(list(run.logs.glob('*.log')))})", file=sys.stderr)
    sys.stdout.write(path.read_text(errors="replace"))


if __name__ == "__main__":
    errors.run(app)
