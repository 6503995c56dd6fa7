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

from diffuse.runtime import errors, options

if TYPE_CHECKING:
    from launch.inspection.site_checks import Check

app = typer.Typer(add_completion=False, rich_markup_mode=None)
STYLES = {"ok": "green", "note": "yellow", "failed": "bold red"}


@app.command()
def main(
    cluster: options.ClusterName = None,
    cluster_set: options.ClusterSettings = None,
    runs_dir: options.RunsDir = options.RUNS,
    data_dir: options.DataDir = options.DATA,
    job: Annotated[
        bool, typer.Option("--job", help="Also check a compute node, by a job of a minute.")
    ] = False,
    wait: Annotated[
        int, typer.Option(min=1, help="Longest wait for the job of --job, in seconds.")
    ] = 600,
    as_json: options.AsJson = False,
) -> None:
    """Check the needs of a training here, and name a remedy for each failure."""
    from diffuse.config.presets import parse_set
    from diffuse.runtime.console import screen
    from launch.grids.cluster import choose
    from launch.inspection import node_probe, site_checks

    file = choose(cluster)
    settings = file.resolve([parse_set(cluster_set or [], source="--cluster-set")])
    place = site_checks.Place(settings, file.source, runs_dir.absolute(), data_dir.absolute())
    out = screen(stderr=as_json)
    found = site_checks.site_checks(place)
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
