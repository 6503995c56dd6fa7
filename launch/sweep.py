"""Train a whole grid: `python launch/sweep.py --grid part2`.

On a Slurm cluster it submits and returns; elsewhere it works through the grid on this machine.
The same command again does only what is missing.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if __package__ in (None, ""):  # run as a script: the repository takes the script's folder's place
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from diffuse.runtime import errors

if TYPE_CHECKING:  # everything else is imported when needed: --help answers at once
    from launch.jobs.cluster import Cluster
    from launch.jobs.grid import Grid

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    grid: Annotated[
        str, typer.Option(help="quick, part1, part2, all (configs/grids/), or a .yaml file.")
    ],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of all cells; repeatable."),
    ] = None,
    epochs: Annotated[
        str | None, typer.Option(metavar="20,40", help="The epochs of all cells.")
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="0,1,2", help="The seeds of all cells.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only runs whose name matches.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be done; write nothing.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print runs and cells as one JSON object.")
    ] = False,
    runs_dir: Annotated[Path, typer.Option(help="Where run directories live.")] = Path("runs"),
    data_dir: Annotated[
        Path | None, typer.Option(help="Where mnist.h5 is; default: $DIFFUSE_DATA or ./data.")
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A name under configs/clusters/ or a .yaml file;"
            " default: slurm where there is sbatch, else local."
        ),
    ] = None,
    cluster_set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting of the cluster, such as time=30."),
    ] = None,
    parallel: Annotated[
        int | None,
        typer.Option(min=1, help="Jobs at a time (array_parallelism); local default: one per GPU."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate/--no-evaluate", help="Judge each cell; compare them.")
    ] = True,
    rerun: Annotated[
        bool, typer.Option("--rerun", help="All again, beside what is there: RUNS_DIR/rerun-001.")
    ] = False,
    cancel: Annotated[
        bool,
        typer.Option("--cancel", help="End the grid's jobs on Slurm (or those of --only)."),
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="On Slurm: watch until all have ended.")
    ] = False,
) -> None:
    """Train and evaluate the cells of a grid: preset x orientation x seed x epoch."""
    from diffuse.config.presets import Layer, parse_set
    from launch.jobs.cluster import choose
    from launch.jobs.plan import as_plain, plan, summary

    if cancel:
        if rerun:
            raise errors.UserError(
                "--cancel --rerun: name the rerun to end, --runs-dir RUNS/rerun-001"
            )
        from launch.jobs.grid import grid_name
        from launch.local import display
        from launch.slurm import sweep

        raise typer.Exit(sweep.cancel(runs_dir, grid_name(grid), only, display.console()))
    chosen = _load(grid, set_ or [], epochs, seeds, device)
    if only is not None:
        chosen = chosen.only(only)
    file = choose(cluster)
    typed = [parse_set(cluster_set or [], source="--cluster-set")]
    if parallel is not None:
        typed.append(Layer("--parallel", {"array_parallelism": parallel}))
    settings = file.resolve([chosen.cluster, *typed])
    for run in chosen.runs:
        file.resolve([*run.cluster, *typed])
    again = "the same command"
    if rerun:
        runs_dir = _next_rerun(runs_dir)
        again = f"the same command with --runs-dir {runs_dir} and without --rerun"
    planned = plan(chosen, runs_dir)

    if dry_run:
        if as_json:
            print(json.dumps(as_plain(planned), indent=2))
        else:
            from launch.local.display import console, plan_table

            out = console()
            out.print(f"grid {chosen.name} in {runs_dir}, on {file.name}", soft_wrap=True)
            out.print(plan_table(planned))
            out.print(summary(planned))
        return
    if settings.kind == "slurm":
        from diffuse.rundir.directory import default_data_dir
        from launch.local import display, pool
        from launch.slurm import sweep

        data = (data_dir or default_data_dir()).absolute()
        pool.require_data(data)
        out = display.console(stderr=as_json)
        code = sweep.submit(chosen, file, typed, runs_dir, data, evaluate, out, again)
        if follow:
            from launch import status

            code = status.watch(runs_dir.absolute(), chosen.name, out)
        if as_json:
            print(json.dumps(as_plain(plan(chosen, runs_dir)), indent=2))
        raise typer.Exit(code)
    raise typer.Exit(_here(chosen, settings, runs_dir, data_dir, device, as_json, evaluate, again))


def _next_rerun(runs_dir: Path) -> Path:
    """`RUNS_DIR/rerun-001`, or the first such that is not there yet."""
    number = 1
    while (runs_dir / f"rerun-{number:03d}").exists():
        number += 1
    return runs_dir / f"rerun-{number:03d}"


def _load(
    name: str, assignments: list[str], epochs: str | None, seeds: str | None, device: str | None
) -> Grid:
    """The grid with what the command line says about all its cells."""
    from diffuse.config.presets import parse_set
    from launch.jobs.grid import Overrides, load_grid, parse_numbers

    layers = [parse_set(assignments)]
    if device is not None:
        layers.append(parse_set([f"system.device={device}"], source="--device"))
    overrides = Overrides(
        epochs=None if epochs is None else parse_numbers(epochs, "--epochs", smallest=1),
        seeds=None if seeds is None else parse_numbers(seeds, "--seeds", smallest=0),
        layers=tuple(layers),
    )
    return load_grid(name, overrides)


def _here(
    grid: Grid,
    settings: Cluster,
    runs_dir: Path,
    data_dir: Path | None,
    device: str | None,
    as_json: bool,
    evaluate: bool,
    again: str,
) -> int:
    """Work through the grid on this machine; the exit code."""
    from diffuse.rundir.directory import default_data_dir
    from launch.jobs.ledger import Ledger
    from launch.jobs.plan import as_plain, plan, summary
    from launch.local import display, pool

    out = display.console(stderr=as_json)
    title = f"grid {grid.name} in {runs_dir}"
    data = (data_dir or default_data_dir()).absolute()
    ledger = Ledger(runs_dir.absolute(), grid.name)
    if any(p.is_todo or p.unevaluated for p in plan(grid, runs_dir)):
        pool.require_data(data)  # before anything is written
    with ledger.locked(), pool.Stopper().installed() as stopper:
        planned = plan(grid, ledger.runs_dir)
        out.print(f"{title}: {summary(planned)}", soft_wrap=True)
        ledger.note_runs(run.name for run in grid.runs)
        outcomes = []
        if todo := [p for p in planned if p.is_todo or (evaluate and p.unevaluated)]:
            gpus = pool.visible_gpus(device or "auto")
            parallel = settings.array_parallelism or len(gpus) or 1
            jobs = pool.Pool(ledger, data, gpus, parallel, evaluate)
            with display.Watch(out, title).shown() as watch:
                outcomes = jobs.run(todo, stopper, watch)
    ended = plan(grid, runs_dir)
    if as_json:
        plain = as_plain(ended)
        by_name = {o.planned.name: o for o in outcomes}
        for run in plain["runs"]:
            if outcome := by_name.get(run["name"]):
                log = str(outcome.log) if outcome.log else None
                run.update(outcome=outcome.state, reason=outcome.reason or None, log=log)
        print(json.dumps(plain, indent=2))
    display.ending(out, title, ended, outcomes, again)
    if evaluate and not stopper.signals and any(p.evaluated for p in ended):
        _report(grid, runs_dir, as_json)
    if any(o.state == "failed" for o in outcomes):
        return 1
    if stopper.signals:
        return 130 if stopper.signals[0] == signal.SIGINT else 75
    return 0 if all(p.state == "done" for p in ended) else 75


def _report(grid: Grid, runs_dir: Path, as_json: bool) -> None:
    """The last link of the chain: every run of the grid on one page."""
    from diffuse.runtime import files
    from launch.comparison import page, results

    found = results.read_all(runs_dir / run.name for run in grid.runs)
    path = runs_dir / "report.html"
    files.write_text(path, page.render(found, runs_dir, f"diffuse: {grid.name}"))
    print(f"report: {path}", file=sys.stderr if as_json else sys.stdout)


if __name__ == "__main__":
    errors.run(app)
