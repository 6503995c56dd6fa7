"""Small real trainings, and the part of a run that no fault may change by a bit."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py

from diffuse.rundir import checkpoints
from diffuse.rundir.directory import RunDir
from tests import programs
from tests.drill import program
from tests.programs import TINY

EPOCHS = 3
TIMES = {"seconds", "drawing"}  # fields of figures that may differ
TIMEOUT_S = 20.0  # of a collective
SMALL = (
    *TINY,
    f"--epochs={EPOCHS}",
    "--threads=1",
    "--device=cpu",
    "--set=eval.at_epochs=1",
    f"--set=samples.at_epochs={EPOCHS}",
    "--set=samples.images=4",
    "--set=samples.steps=2",
    "--set=checkpoint.every_minutes=0.0001",  # nearly every step: many writes to die in
    f"--set=system.collective_timeout_s={TIMEOUT_S}",
)
PRESETS = {
    "ddpm": ("--preset=ddpm/default",),
    "cold": ("--preset=cold/default_28", "--orientation=row"),
}
EVALUATION = {"ddpm": "ddim-2", "cold": "direct,unconditional"}


@dataclass
class Specimen:
    """A training of one preset on `ranks` ranks, and an undisturbed twin to compare with."""

    kind: str
    ranks: int
    folder: Path  # of the twin
    data_dir: Path
    more: tuple[str, ...] = ()
    twin: dict[str, Any] = field(default_factory=dict)
    twin_judged: dict[str, Any] = field(default_factory=dict)
    events: int = 0  # that a kill can be aimed at
    seconds: float = 0.0  # that the twin took

    @classmethod
    def make(
        cls, kind: str, ranks: int, folder: Path, data_dir: Path, more: tuple[str, ...] = ()
    ) -> Specimen:
        """Train and evaluate the twin."""
        specimen = cls(kind, ranks, folder, data_dir, more)
        folder.mkdir(parents=True)
        seen = folder / "events"
        start = time.monotonic()
        specimen.finish(folder, before=program.count_events(folder / "runs", seen))
        specimen.seconds = time.monotonic() - start
        specimen.events = int(seen.read_text() or 0)
        run = programs.only_run(folder / "runs")
        specimen.twin = what_counts(run)
        specimen.evaluate(folder)
        specimen.twin_judged = what_was_judged(run)
        return specimen

    def arguments(self, folder: Path) -> list[str | Path]:
        """Of diffuse.train, for a run in `folder`."""
        where = (f"--runs-dir={folder / 'runs'}", f"--data-dir={self.data_dir}")
        return [*PRESETS[self.kind], *SMALL, *self.more, *where]

    def with_data(self, data_dir: Path) -> Specimen:
        """The same training, and twin, on data elsewhere."""
        return replace(self, data_dir=data_dir)

    def start(
        self, folder: Path, before: Callable[[], Any] | None = None, victim: int = 0
    ) -> list[program.Child]:
        """Start its ranks; `before` goes into one of them, `victim`."""
        port = str(random.SystemRandom().randrange(20_000, 32_000))
        start = sum(1 for _ in folder.glob("rank0-*.log"))
        children = []
        for rank in range(self.ranks):
            env: dict[str, str] = {}
            if self.ranks > 1:
                env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(self.ranks)}
                env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            children.append(
                program.start(
                    "diffuse.train",
                    *self.arguments(folder),
                    log=folder / f"rank{rank}-{start:02d}.log",
                    before=before if rank == victim else None,
                    **env,
                )
            )
        return children

    def finish(self, folder: Path, before: Callable[[], Any] | None = None) -> None:
        """Train to the end, which must be good."""
        children = self.start(folder, before)
        for child in children:
            code = child.wait()
            assert code == 0, f"exit code {code}: {child.said()[-800:]}"

    def evaluation(self, folder: Path) -> list[str | Path]:
        """Arguments of diffuse.evaluate for all epochs of the run in `folder`."""
        run = programs.only_run(folder / "runs")
        few = ("-n", "60", f"--samplers={EVALUATION[self.kind]}")
        return [run.path, *few, "--device=cpu", f"--data-dir={self.data_dir}"]

    def evaluate(self, folder: Path) -> None:
        """Evaluate to the end, which must be good."""
        log = folder / "evaluate.log"
        program.finish("diffuse.evaluate", *self.evaluation(folder), log=log)

    def assert_equal(self, folder: Path, gaps: bool = False) -> None:
        """All that counts equals the twin's.

        Args:
            gaps: losses were removed from the disk, and cannot come back. Those that are there are
                the twin's, and the run has said how many are missing.
        """
        counted = what_counts(programs.only_run(folder / "runs"))
        if gaps and counted["events"] != self.twin["events"]:
            assert any("are missing or damaged" in p.read_text() for p in folder.glob("rank0*.log"))
            true = {event["step"]: event for event in self.twin["events"]["step"]}
            for event in counted["events"]["step"]:
                assert event == true[event["step"]], "a loss has changed"
            counted["events"] = self.twin["events"]
        programs.assert_same(counted, self.twin, "")

    def assert_survived(self, folder: Path, gaps: bool = False) -> RunDir:
        """Go on to the end where need be; all that counts equals the twin's."""
        self.finish(folder)
        run = programs.only_run(folder / "runs")
        assert run.status()["state"] == "done"
        self.assert_equal(folder, gaps)
        left = [path.name for path in run.path.rglob(".*.tmp")]
        assert not left, f"left behind: {left}"
        return run

    def assert_judged(self, folder: Path) -> None:
        """Evaluate to the end; images and figures equal the twin's."""
        self.evaluate(folder)
        run = programs.only_run(folder / "runs")
        programs.assert_same(what_was_judged(run), self.twin_judged, "")


def what_counts(run: RunDir) -> dict[str, Any]:
    """Weights, average, optimizer, losses and samples of a trained run, as plain values."""
    contents = {}
    for epoch in (1, EPOCHS):
        content = checkpoints.read(run.checkpoint_path(epoch))
        for name in ("environment", "config"):
            del content[name]
        contents[epoch] = content
    events = ("step", "epoch", "samples")
    return {
        "checkpoints": contents,
        "events": {event: programs.strip(run.metrics(event)) for event in events},
        "samples": datasets(run.samples / f"epoch_{EPOCHS:04d}.h5"),
    }


def what_was_judged(run: RunDir) -> dict[str, Any]:
    """Images and figures of an evaluated run, as plain values."""
    images = sorted(run.samples.glob("epoch_*_seed_*.h5"))
    figures = {}
    for path in sorted(run.evaluations.glob("*.json")):
        found = json.loads(path.read_text())["figures"]
        figures[path.name] = [{k: v for k, v in f.items() if k not in TIMES} for f in found]
    return {"images": {path.name: datasets(path) for path in images}, "figures": figures}


def datasets(path: Path) -> dict[str, Any]:
    """The content of an HDF5 file."""
    with h5py.File(path) as file:
        return {name: file[name][()].tolist() for name in file}
