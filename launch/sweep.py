"""Train a whole grid: `python launch/sweep.py --grid part2`.

On a Slurm cluster it submits and returns; elsewhere it works through the grid on this machine.
The same command again does only the missing work.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if __package__ in (None, ""):  # run as a script: the repository takes the script's folder's place
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from diffuse.runtime import errors, options

if TYPE_CHECKING:  # everything else is imported when needed: --help answers at once
    from collections.abc import Sequence

    from diffuse.config.validation import Layer
    from launch.grids.cluster import ClusterFile
    from launch.grids.estimate import Estimate
    from launch.grids.grid import Grid
    from launch.grids.plan import Planned
    from launch.slurm.dry_run import DryRun

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    grid: Annotated[
        str,
        typer.Option(
            help="Grid to train: quick, part1, part2, all (configs/grids/) or a .yaml file."
        ),
    ],
    set_: options.Settings = None,
    epochs: Annotated[
        str | None,
        typer.Option(
            metavar="20,40",
            help="Epochs to evaluate, such as 20,40 or 1-100 or 5-100:5; the last ends training."
            " Default: the grid's.",
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(metavar="0,1,2", help="Seeds of every preset. Default: the grid's."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="GLOB",
            help="Pattern of run names, such as 'cold-*-row-*'. Default: all of the grid.",
        ),
    ] = None,
    where: options.Where = None,
    dry_run: options.DryRun = False,
    show_script: Annotated[
        bool,
        typer.Option("--show-script", help="With --dry-run: print each job's batch script, too."),
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Only show steps, hours, time and disk of what is missing, by the speed of runs"
            " that there are; write and send nothing.",
        ),
    ] = False,
    probe: Annotated[
        bool,
        typer.Option("--probe", help="Measure the speeds not known yet by short trainings."),
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="HOURS",
            help="Most GPU hours (without GPUs core hours) by the estimate; else nothing is done.",
        ),
    ] = None,
    as_json: options.AsJson = False,
    runs_dir: options.RunsDir = options.RUNS,
    data_dir: options.DataDir = options.DATA,
    cluster: options.ClusterName = None,
    cluster_set: options.ClusterSettings = None,
    parallel: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Jobs at a time. Default: array_parallelism of the cluster file; on this machine"
            " one for each GPU, or one.",
        ),
    ] = None,
    device: options.DeviceSetting = None,
    evaluate: Annotated[
        bool,
        typer.Option(
            "--evaluate/--no-evaluate", help="Evaluate each epoch of the grid and write a report."
        ),
    ] = True,
    rerun: Annotated[
        bool,
        typer.Option("--rerun", help="Train all runs anew, in RUNS_DIR/rerun-001, to compare."),
    ] = False,
    cancel: Annotated[
        bool,
        typer.Option(
            "--cancel", help="Cancel the grid's Slurm jobs (or those of --only and --where)."
        ),
    ] = False,
    follow: options.Follow = False,
) -> None:
    """Train and evaluate the cells of a grid: preset x axes x orientation x seed x epoch."""
    from diffuse.config.presets import parse_set
    from diffuse.config.validation import Layer
    from diffuse.runtime.console import screen
    from launch.grids.cluster import choose
    from launch.grids.plan import as_plain, plan
    from launch.grids.selection import Where

    selected = Where(where) if where else None
    modes = {"--estimate": estimate, "--probe": probe, "--cancel": cancel}
    if sum(modes.values()) > 1:
        raise errors.UserError(f"one at a time: {', '.join(m for m in modes if modes[m])}")
    if probe and (rerun or budget is not None):
        raise errors.UserError("--probe goes without --rerun and --budget: it is to come before")
    if cancel:
        if rerun:
            raise errors.UserError(
                "--cancel --rerun: name the rerun to end, --runs-dir RUNS/rerun-001"
            )
        from launch.grids.grid import grid_name
        from launch.slurm import sweep as slurm_sweep

        name = grid_name(grid)
        raise typer.Exit(slurm_sweep.cancel(runs_dir, name, only, screen(), selected, dry_run))
    chosen = _load(grid, set_ or [], epochs, seeds, device)
    if only is not None:
        chosen = chosen.only(only)
    if selected is not None:
        chosen = chosen.where(selected)
    file = choose(cluster)
    typed = [parse_set(cluster_set or [], source="--cluster-set")]
    if parallel is not None:
        typed.append(Layer("--parallel", {"array_parallelism": parallel}))
    settings = file.resolve([chosen.cluster, *typed])
    for run in chosen.runs:
        file.resolve([*run.cluster, *typed])
    data, again = data_dir.absolute(), "the same command"
    if rerun:
        runs_dir = _next_rerun(runs_dir)
        again = f"the same command with --runs-dir {runs_dir} and without --rerun"
    if estimate or probe or budget is not None:
        from launch.grids import probe as probing
        from launch.local import display

        found = _estimate(chosen, file, typed, runs_dir, data, device, evaluate)
        if probe:
            chosen, runs_dir = probing.probes(chosen, found), probing.folder(runs_dir)
            typed.insert(0, probing.time_limit(settings))
            evaluate = False
        if estimate:
            title = f"grid {chosen.name} in {runs_dir}, on {file.name}"
            display.show_estimate(found, title, as_json, screen())
        if budget is not None:
            found.require_within(budget, chosen.name)
        if estimate:
            return
    if show_script and not (dry_run and settings.kind == "slurm"):
        raise errors.UserError("--show-script goes with --dry-run, for a cluster of kind slurm")
    if dry_run:
        planned, jobs = plan(chosen, runs_dir), None
        if settings.kind == "slurm":
            from launch.slurm.dry_run import dry_run as jobs_of

            jobs = jobs_of(chosen, planned, file, typed, runs_dir, data, evaluate)
        title = f"grid {chosen.name} in {runs_dir}, on {file.name}"
        _show_plan(title, planned, jobs, as_json, show_script)
        return
    out = screen(stderr=as_json)
    if settings.kind == "local":
        from launch.local import sweep as local_sweep

        code = local_sweep.run(
            chosen, settings, runs_dir, data, device or "auto", as_json, evaluate, out, again
        )
        raise typer.Exit(code)
    from launch.local import pool
    from launch.slurm import sweep as slurm_sweep

    pool.require_data(data)
    code = slurm_sweep.submit(chosen, file, typed, runs_dir, data, evaluate, out, again)
    if follow:
        from launch.inspection import status_table

        code = status_table.watch(runs_dir.absolute(), chosen.name, out)
    if as_json:
        print(json.dumps(as_plain(plan(chosen, runs_dir)), indent=2))
    raise typer.Exit(code)


def _estimate(
    grid: Grid,
    file: ClusterFile,
    typed: Sequence[Layer],
    runs_dir: Path,
    data_dir: Path,
    device: str | None,
    evaluate: bool,
) -> Estimate:
    """The cost of the work that a sweep would do, by the speeds of runs that are known."""
    from launch.grids import estimate, probe
    from launch.grids.plan import plan

    settings, planned = file.resolve([grid.cluster, *typed]), plan(grid, runs_dir)
    if settings.kind == "local":
        from launch.local import sweep as local_sweep

        queues = local_sweep.queues(
            planned, evaluate, *local_sweep.slots(settings, device or "auto")
        )
    else:
        from launch.slurm import pipeline
        from launch.slurm.dry_run import dry_run

        jobs = dry_run(grid, planned, file, typed, runs_dir, data_dir, evaluate)
        queues = pipeline.queues(jobs.arrays)
    return estimate.estimate(queues, probe.speeds(runs_dir.absolute()))


def _show_plan(
    title: str, planned: list[Planned], jobs: DryRun | None, as_json: bool, scripts: bool
) -> None:
    """Print a dry run: the cells done and missing; on a cluster, the jobs for the latter."""
    from diffuse.runtime.console import screen
    from launch.grids.plan import as_plain, summary

    if as_json:
        plain = as_plain(planned)
        for row, p in zip(plain["runs"], planned, strict=True):
            row["settings"] = p.run.config.model_dump(mode="json")
        if jobs is not None:
            plain["jobs"] = jobs.as_plain(scripts)
        print(json.dumps(plain, indent=2))
        return
    from launch.local.display import plan_listing

    out = screen()
    out.print(title, soft_wrap=True)
    plan_listing(planned).show(out)
    out.print(summary(planned))
    if jobs is None:
        return
    if jobs.outage:
        out.print(f"limits and queue not known: {jobs.outage}", soft_wrap=True)
    for name, live in jobs.waiting.items():
        out.print(f"  {name}: {', '.join(map(str, live))}", soft_wrap=True)
    out.print()
    jobs.listing().show(out)
    for array in jobs.arrays if scripts else ():
        print(f"\n# ---- {array.name}\n{jobs.script(array)}")


def _next_rerun(runs_dir: Path) -> Path:
    """`RUNS_DIR/rerun-001`, or the first such that is not there yet."""
    folders = (runs_dir / f"rerun-{number:03d}" for number in itertools.count(1))
    return next(folder for folder in folders if not folder.exists())


def _load(
    name: str, assignments: list[str], epochs: str | None, seeds: str | None, device: str | None
) -> Grid:
    """The grid with the command line's settings for all its cells."""
    from diffuse.config import ranges
    from diffuse.config.presets import parse_set
    from launch.grids.grid import Overrides, load_grid

    layers = [parse_set(assignments)]
    if device is not None:
        layers.append(parse_set([f"system.device={device}"], source="--device"))
    overrides = Overrides(
        epochs=None if epochs is None else ranges.typed(epochs, "--epochs", smallest=1),
        seeds=None if seeds is None else ranges.typed(seeds, "--seeds", smallest=0),
        layers=tuple(layers),
    )
    return load_grid(name, overrides)


if __name__ == "__main__":
    errors.run(app)
