"""Train a whole grid: `python launch/sweep.py --grid part2`.

On a Slurm cluster it submits and returns; elsewhere it works through the grid on this machine.
The same command again does only what is missing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

if __package__ in (None, ""):  # run as a script: the repository takes the script's folder's place
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from diffuse.runtime import errors

if TYPE_CHECKING:  # everything else is imported when needed: --help answers at once
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
    from diffuse.rundir.directory import default_data_dir
    from diffuse.runtime.console import screen
    from launch.jobs.cluster import choose
    from launch.jobs.plan import as_plain, plan, summary

    if cancel:
        if rerun:
            raise errors.UserError(
                "--cancel --rerun: name the rerun to end, --runs-dir RUNS/rerun-001"
            )
        from launch.jobs.grid import grid_name
        from launch.slurm import sweep as slurm_sweep

        raise typer.Exit(slurm_sweep.cancel(runs_dir, grid_name(grid), only, screen()))
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
            from launch.local.display import plan_table

            out = screen()
            out.print(f"grid {chosen.name} in {runs_dir}, on {file.name}", soft_wrap=True)
            out.print(plan_table(planned))
            out.print(summary(planned))
        return
    from launch.local import pool

    data = (data_dir or default_data_dir()).absolute()
    out = screen(stderr=as_json)
    if settings.kind == "local":
        from launch.local import sweep as local_sweep

        code = local_sweep.run(
            chosen, settings, runs_dir, data, device or "auto", as_json, evaluate, out, again
        )
        raise typer.Exit(code)
    from launch.slurm import sweep as slurm_sweep

    pool.require_data(data)
    code = slurm_sweep.submit(chosen, file, typed, runs_dir, data, evaluate, out, again)
    if follow:
        from launch.inspection import status_table

        code = status_table.watch(runs_dir.absolute(), chosen.name, out)
    if as_json:
        print(json.dumps(as_plain(plan(chosen, runs_dir)), indent=2))
    raise typer.Exit(code)


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


if __name__ == "__main__":
    errors.run(app)
