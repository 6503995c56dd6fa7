"""The long haul: ten thousand steps; memory, open files, threads and the run's size stay flat."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from diffuse.rundir.directory import RunDir
from tests import programs
from tests.drill import program
from tests.drill.drill import Drill
from tests.drill.program import Child

STEPS_PER_EPOCH = 10
EVALUATIONS = 10
IMAGE_BYTES = 28 * 28


@dataclass(frozen=True)
class Sample:
    """The resources of a process at a moment."""

    step: int
    rss: int  # bytes
    files: int
    threads: int


def run(drill: Drill) -> None:
    """One training of 10,000 steps, evaluated on its way, with a checkpoint at each epoch."""
    epochs = max(100, round(1000 * drill.share))
    every = epochs // EVALUATIONS
    kept = list(range(every, epochs + 1, every))
    with drill.trial(f"{epochs * STEPS_PER_EPOCH:,} steps") as folder:
        child = program.start(
            "diffuse.train",
            "--preset=ddpm/default",
            *programs.TINY,
            "--set=data.limit=80",
            f"--set=train.global_batch={80 // STEPS_PER_EPOCH}",
            "--set=system.log_every=50",
            f"--set=eval.at_epochs={kept}",
            "--set=eval.in_training=40",
            "--set=eval.samplers=ddim-2",
            "--set=samples.images=4",
            f"--epochs={epochs}",
            "--threads=1",
            "--device=cpu",
            f"--runs-dir={folder / 'runs'}",
            f"--data-dir={drill.data_dir}",
            log=folder / "log",
        )
        samples = _watch(child, folder / "runs")
        assert child.wait() == 0, child.said()[-800:]
        run = programs.only_run(folder / "runs")
        # Caches of libraries are warm after the first evaluations.
        warm = [s for s in samples if s.step > epochs * STEPS_PER_EPOCH * 0.3]
        third = len(warm) // 3
        assert third >= 3, f"{len(samples)} samples are too few"
        early, late = warm[:third], warm[-third:]
        # The memory that libraries keep varies by a few percent; a leak of the loop does not.
        for resource, usual, slack in (
            ("rss", statistics.median, early[0].rss // 20),
            ("files", min, 0),  # between two writes
            ("threads", min, 0),
        ):
            before, after = (usual(getattr(s, resource) for s in part) for part in (early, late))
            assert after <= before + slack, f"{resource} grew from {before} to {after}"
        _assert_bounded(run, epochs, kept)
        mib = statistics.median(s.rss for s in late) / 2**20
        files, threads = max(s.files for s in late), max(s.threads for s in late)
        drill.say(
            f"{epochs * STEPS_PER_EPOCH:,} steps at {mib:.0f} MiB, at most {files} files and"
            f" {threads} threads; the run directory has {_size(run.path) / 1e6:.1f} MB"
        )


def _watch(child: Child, runs: Path) -> list[Sample]:
    """The resources of the process, five times a second until it ends."""
    process = psutil.Process(child.pid)
    samples = []
    while child.poll() is None:
        time.sleep(0.2)
        step = max((RunDir(p).status().get("step", 0) for p in runs.glob("*")), default=0)
        try:
            with process.oneshot():
                rss, threads = process.memory_info().rss, process.num_threads()
            files = process.num_fds()
            if process.status() != psutil.STATUS_ZOMBIE:  # it holds nothing any more
                samples.append(Sample(step, rss, files, threads))
        except psutil.Error:
            break
    return samples


def _assert_bounded(run: RunDir, epochs: int, kept: list[int]) -> None:
    """Only the epochs asked for are kept, and the directory is no larger than they are."""
    names = {path.name for path in run.checkpoints.iterdir()}
    asked = {f"epoch_{epoch:04d}.pt" for epoch in (*kept, epochs)}
    assert asked <= names
    assert len(names - asked) <= 1, "one rolling checkpoint at most"
    largest = max(path.stat().st_size for path in run.checkpoints.iterdir())
    lines = run.metrics_path.read_bytes().count(b"\n")
    pictures = len(asked) * 200_000 + 400_000
    bound = largest * len(names) + 300 * lines + pictures
    assert _size(run.path) < bound, f"{_size(run.path):,} bytes, more than {bound:,}"


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
