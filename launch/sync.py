"""Upload runs to W&B from where there is a network: `python launch/sync.py --grid part2`.

Compute nodes often have none, so their runs are recorded offline. W&B is asked for the rows it has
of each run and gets the rest from the run directory: each line once, also after an upload that was
cut off. The same command again sends only new rows. Needs W&B's client here: `pip install
'diffuse[track]'`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if __package__ in (None, ""):  # run as a script: the repository takes the script's folder's place
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from diffuse.runtime import errors, options

if TYPE_CHECKING:
    from diffuse.rundir.directory import RunDir

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    grid: options.OfGrid = None,
    runs_dir: options.RunsDir = options.RUNS,
    timeout: Annotated[
        float, typer.Option(min=1, help="Longest time for a run, in seconds.")
    ] = 900.0,
    dry_run: options.DryRun = False,
) -> None:
    """Upload the rows that W&B lacks, run by run, oldest first."""
    runs = _runs(grid, runs_dir)
    todo = [run for run in runs if _unsent(run)]
    if not dry_run and todo:
        _require_wandb()
    failed = 0
    for run in todo:
        if dry_run:
            print(f"{run.name}: {_unsent(run)} events to send")
            continue
        problem = _upload(run, timeout)
        failed += problem is not None
        outcome = f"FAILED: {problem}" if problem else f"{_online(run).get('sent', 0)} rows sent"
        print(f"{run.name}: {outcome}")
    if not todo:
        print(f"nothing to send: W&B has all {len(runs)} runs of {runs_dir}")
    raise typer.Exit(1 if failed else 0)


def _runs(grid: str | None, runs_dir: Path) -> list[RunDir]:
    """The run directories, oldest first; those that asked for no tracking are left out."""
    from diffuse.rundir.directory import RunDir
    from diffuse.runtime import files

    if not runs_dir.is_dir():
        raise errors.UserError(f"{runs_dir}: not found; name the runs' folder by --runs-dir")
    chosen = [RunDir(path.parent) for path in runs_dir.glob("*/metrics.jsonl")]
    if grid is not None:
        from launch.grids.grid import load_grid, noted_name

        # Runs that a sweep began may have settings of its command line, and so other names.
        grids = {run.name: files.read_json(run.manifest_path).get("grid") for run in chosen}
        names = {name for name, begun_by in grids.items() if begun_by == noted_name(grid)}
        try:
            names.update(run.name for run in load_grid(grid).runs)
        except errors.UserError:  # a file elsewhere, of which only the name was typed
            if not names:
                raise
        chosen = [run for run in chosen if run.name in names]
    if not chosen:
        scope = f"no run of grid {grid}" if grid else "no run"
        raise errors.UserError(f"{runs_dir}: {scope} has been started there")
    tracked = [run for run in chosen if run.config().tracking.mode != "disabled"]
    return sorted(tracked, key=lambda run: str(run.attempt(1).get("started")))


def _unsent(run: RunDir) -> int:
    """The number of events written since W&B last had all of them."""
    with run.metrics_path.open("rb") as file:
        written = sum(line.endswith(b"\n") for line in file)
    return max(0, written - int(_online(run).get("line", 0)))


def _online(run: RunDir) -> dict[str, Any]:
    """The record of the last mirror that W&B confirmed: its last line and the rows sent."""
    from diffuse.runtime import files

    return files.read_json(run.path / "wandb" / "online.json")


def _require_wandb() -> None:
    """Say once, before any run, why nothing can be sent from here."""
    from importlib.util import find_spec

    if find_spec("wandb") is None:
        raise errors.EnvironmentFailed(
            "W&B's client is not installed here; pip install 'diffuse[track]'"
        )
    from diffuse.tracking import connection, uploader

    try:
        mode, why = connection.settle("online", uploader.client_settings())
    except uploader.NotStarted as error:
        raise errors.EnvironmentFailed(f"cannot upload: {error}") from None
    if mode != "online":
        raise errors.EnvironmentFailed(f"cannot upload: {why}")


def _upload(run: RunDir, timeout: float) -> str | None:
    """Bring one run up to date; the problem, or None."""
    import subprocess

    from diffuse.tracking import mirror

    job: mirror.Job = "evaluate" if run.evaluated_epochs() else "train"
    process = subprocess.Popen(
        [*mirror.command(run, job, "online", timeout), "strict"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=mirror.environment(),
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=timeout + 10)
    except subprocess.TimeoutExpired:
        return f"not done after {timeout:.0f} s"
    finally:
        mirror.end(process)
    if process.returncode == 0:
        return None
    lines = [line for line in output.splitlines() if line.startswith("W&B")]
    return lines[-1].removeprefix("W&B ") if lines else f"exit code {process.returncode}"


if __name__ == "__main__":
    errors.run(app)
