"""Is this site ready? `python launch/doctor.py --cluster slurm`: one screen of checks.

Each failure comes with its remedy. `--job` also submits a short job, since a GPU, the image on a
compute node and the network between ranks can only be seen from there. Exit code 1 where a check
failed.
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

if TYPE_CHECKING:
    from launch.inspection.site_checks import Check

app = typer.Typer(add_completion=False, rich_markup_mode=None)
STYLES = {"ok": "green", "note": "yellow", "failed": "bold red"}


@app.command()
def main(
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A name under configs/clusters/ or a .yaml file;"
            " default: slurm where there is sbatch, else local."
        ),
    ] = None,
    cluster_set: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A setting of the cluster, such as partition=gpu."),
    ] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where run directories live.")] = Path("runs"),
    data_dir: Annotated[
        Path | None, typer.Option(help="Where mnist.h5 is; default: $DIFFUSE_DATA or ./data.")
    ] = None,
    job: Annotated[
        bool, typer.Option("--job", help="Also check on a compute node, by a short job.")
    ] = False,
    wait: Annotated[int, typer.Option(min=1, help="Seconds to wait for that job.")] = 600,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Check what training here needs, and say how to mend what is missing."""
    from diffuse.config.presets import parse_set
    from diffuse.rundir.directory import default_data_dir
    from diffuse.runtime.console import screen
    from launch.inspection import node_probe, site_checks
    from launch.jobs.cluster import choose

    file = choose(cluster)
    settings = file.resolve([parse_set(cluster_set or [], source="--cluster-set")])
    place = site_checks.Place(
        settings, file.source, runs_dir.absolute(), (data_dir or default_data_dir()).absolute()
    )
    out = screen(stderr=as_json)
    found = site_checks.here(place)
    if job and settings.kind == "local":
        raise errors.UserError("--job is for a cluster: name one by --cluster")
    if job:
        if any(check.state == "failed" and check.name == "Slurm" for check in found):
            raise errors.EnvironmentFailed("--job: Slurm does not answer here")
        out.print(f"a job of a minute checks a node of {file.name}; Ctrl-C cancels it")
        found += node_probe.run(place, wait)
    if as_json:
        print(json.dumps({"cluster": file.name, "checks": [vars(check) for check in found]}))
    else:
        out.print(_table(f"cluster {file.name}, {runs_dir}", found))
    failed = sum(check.state == "failed" for check in found)
    out.print(f"{failed} of {len(found)} checks failed" if failed else "ready")
    raise typer.Exit(1 if failed else 0)


def _table(title: str, found: list[Check]) -> object:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for heading in ("", "check", "found"):
        table.add_column(heading, no_wrap=heading != "found", overflow="fold")
    for check in found:
        text = Text(check.detail)
        if check.remedy:
            text.append(f"\n-> {check.remedy}", STYLES[check.state])
        table.add_row(Text(check.state, STYLES[check.state]), check.name, text)
    return table


if __name__ == "__main__":
    errors.run(app)
