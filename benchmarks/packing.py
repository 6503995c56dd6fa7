"""Twelve tiny runs packed by four against one run a job, on a Slurm of their own.

    python -m benchmarks.packing

It starts the tests' Slurm cluster (its GPUs are pretended, so all trains on this machine's cores):
the difference is the cost of jobs, not the gain of sharing a GPU.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from diffuse.data.staging import stage_mnist
from diffuse.runtime import errors, options
from tests.cluster.cluster import Cluster
from tests.lab import Lab

RUNS = 12
GRID = f"runs: [{{preset: ddpm/default, epochs: [2], seeds: 0-{RUNS - 1}}}]"
WAYS = {"one run a job": (), "packed by four": ("--cluster-set=runs_per_gpu=4",)}


def main(
    data_dir: options.DataDir = options.DATA,
    rounds: Annotated[int, typer.Option(min=1, help="Sweeps of each kind, in turn.")] = 2,
) -> None:
    """Print the jobs and the wall time of both ways, from the sweep to an empty queue."""
    data = stage_mnist(data_dir.absolute()).parent
    table = Table(title=f"{RUNS} runs, trained and evaluated")
    for heading in ("way", "jobs", "seconds"):
        table.add_column(heading)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    jobs: dict[str, int] = {}
    with Cluster() as cluster, tempfile.TemporaryDirectory() as folder:
        for k in range(rounds):
            for way, packed in WAYS.items():
                place = Path(folder) / f"{k}-{way}"
                place.mkdir()
                lab = Lab(cluster, GRID, place, data)
                start = time.monotonic()
                lab.sweep(*packed)
                jobs[way] = len(cluster.slurm("squeue", "-h", "-r", "-o%i").splitlines())
                lab.wait_empty(1800)
                seconds[way].append(time.monotonic() - start)
                rows = lab.status().values()
                if {(row["state"], row["evaluated"]) for row in rows} != {("done", 1)}:
                    raise errors.DiffuseError(f"{way}: not all runs are done")
    for way, found in seconds.items():
        table.add_row(way, str(jobs[way]), ", ".join(f"{one:.0f}" for one in found))
    Console().print(table)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    errors.run(app)
