"""The drill's command: `python -m tests.drill [--seed N] [PART ...]`, or `make drill`.

It prints the faults that were tried, survived and lost something, and ends with 1 after a loss.
"""

from __future__ import annotations

import os

os.environ.update(OMP_NUM_THREADS="1", NETRC=os.devnull)  # before torch is loaded

import importlib
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from diffuse.data.staging import stage_mnist
from diffuse.runtime import errors, options
from tests.drill import cluster, damage, endurance, kills, signals, storage, tracker
from tests.drill.drill import Drill
from tests.drill.tally import Tally

# Imported late by the programs: loaded here, so that their forks need not.
LOADED = (
    *("torch._dynamo", "torchmetrics.image", "matplotlib.pyplot", "diffuse.evaluation.evaluator"),
    *(
        "diffuse.evaluation.metrics",
        "diffuse.data.download",
        "diffuse.training.pictures",
    ),
    *(
        "launch.compare",
        "launch.comparison.page",
        "launch.comparison.charts",
        "launch.comparison.thumbnails",
        "launch.status",
    ),
    *(
        "diffuse.sampling.prior",
        "diffuse.evaluation.reference_features",
        "diffuse.training.loop",
        "diffuse.sampling.trained_model",
    ),
)
PARTS = {
    "kills": kills.run,
    "signals": signals.run,
    "storage": storage.run,
    "damage": damage.run,
    "W&B": tracker.run,
    "jobs": cluster.run_jobs,
    "submission": cluster.run_submission,
    "endurance": endurance.run,
}


def main(
    parts: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(PARTS)}; default: all.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: a random one, shown.")] = None,
    share: Annotated[float, typer.Option(help="Of the usual number of trials.")] = 1.0,
    minutes: Annotated[
        float,
        typer.Option(envvar="DRILL_MINUTES", help="Go on with the next seeds for so long."),
    ] = 0.0,
    folder: Annotated[Path | None, typer.Option(help="For its files.")] = None,
    data_dir: options.DataDir = options.DATA,
) -> None:
    """Attack small trainings and sweeps with faults; nothing may be lost."""
    chosen = parts or list(PARTS)
    if unknown := set(chosen) - set(PARTS):
        raise errors.UserError(f"{sorted(unknown)[0]!r}: the parts are {', '.join(PARTS)}")
    for name in [name for name in os.environ if name.startswith(("DIFFUSE_", "WANDB_", "SLURM_"))]:
        if name != "DIFFUSE_DATA":
            del os.environ[name]
    torch.set_num_threads(1)
    for name in LOADED:
        importlib.import_module(name)
    seed = random.SystemRandom().randrange(10_000) if seed is None else seed
    data = stage_mnist(data_dir.absolute()).parent
    root = Path(tempfile.mkdtemp(prefix="diffuse-drill-", dir=folder))
    console = Console(width=100 if not sys.stdout.isatty() else None)
    tally = Tally(console)
    start = time.monotonic()
    while True:
        drill = Drill(seed, share, root / str(seed), data, tally)
        drill.folder.mkdir()
        for drill.part in chosen:
            drill.say(f"seed {seed}, {(time.monotonic() - start) / 60:.1f} min")
            PARTS[drill.part](drill)
        if time.monotonic() - start > 60 * minutes:
            break
        seed += 1
    spent = ", ".join(f"{part} {seconds:.0f} s" for part, seconds in tally.seconds.items())
    console.print(tally.table(f"drill, seed {seed}"))
    console.print(f"{(time.monotonic() - start) / 60:.1f} min in all; trials: {spent}")
    if tally.lost:
        raise errors.DiffuseError(f"{tally.lost.total()} lost; their files are in {root}")
    shutil.rmtree(root)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(main)
    errors.run(app)
