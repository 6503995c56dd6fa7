"""Benchmarks of programs' starts: a training, and a look at a sweep."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.in_turn import in_turn, seconds
from diffuse import ROOT
from diffuse.config.schema import Config


def start(config: Config, data_dir: Path, precision: str, rounds: int) -> tuple[str, ...]:
    """Seconds of a training of two steps, and of a script with one step of torch.optim.Adam."""
    script = (
        "import torch; p = torch.nn.Parameter(torch.zeros(1)); p.grad = torch.ones(1);"
        " torch.optim.Adam([p]).step()"
    )

    images = 2 * config.train.global_batch

    def train() -> None:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "diffuse.train", "--preset=ddpm/default"]
            command += [f"--set=data.limit={images}", "--set=samples.at_epochs=[]"]
            command += ["--epochs=1", f"--data-dir={data_dir}", f"--runs-dir={folder}"]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)

    ours, other = in_turn(train, python(script), rounds, repeats=(1, 1))
    least = statistics.median(seconds(python("import torch")) for _ in range(rounds))
    return (
        "diffuse.train with two steps, to its end, against a script with one of torch.optim.Adam",
        f"{ours:.1f} s",
        f"{other:.1f} s",
        f"{ours / other:.2f}",
        f"{least / other:.2f}, importing torch alone",
    )


def dry_run(config: Config, data_dir: Path, precision: str, rounds: int) -> tuple[str, ...]:
    """Seconds of `launch/sweep.py --grid part2 --dry-run` and of an empty Python."""
    sweep = [sys.executable, str(ROOT / "launch/sweep.py"), "--grid", "part2", "--dry-run"]
    ours, empty = in_turn(
        lambda: subprocess.run(sweep, check=True, capture_output=True),
        python("pass"),
        rounds,
        repeats=(2, 2),
    )
    return (
        "launch/sweep.py --dry-run against an empty Python",
        f"{ours:.2f} s",
        f"{empty:.2f} s",
        f"{ours / empty:.1f}",
        "1; the rest is importing pydantic, typer and rich",
    )


def python(code: str) -> Callable[[], object]:
    """A program of one line."""
    return lambda: subprocess.run([sys.executable, "-c", code], check=True)
