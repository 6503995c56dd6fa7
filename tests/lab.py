"""A user at the tests' cluster: a grid, a runs folder, and the launcher's programs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from diffuse.rundir.directory import RunDir
from tests import programs
from tests.cluster.cluster import Cluster
from tests.cluster.daemons import wait_until
from tests.programs import ROOT, TINY

DDPM = "runs: [{preset: ddpm/default, epochs: [%d]}]"
SMALL = (*TINY, "--set=samples.at_epochs=[]", "--set=eval.images=20", "--set=data.limit=256")
EPOCHS = 40  # of 16 steps: long enough to be interrupted on a fast machine
HOLD = "--cluster-set=extra={hold: true}"
URGENT = ("sbatch", "--parsable", "--output=/dev/null", "-pgpu", "-N2", "--gpus-per-node=4")


class Lab:
    """A grid, its runs folder, and the programs on this cluster.

    Args:
        root: whose launch/ is used.
        warm: the programs of its jobs are forks (tests/warm_python.py): a process of the job hands
            its signals on to each. Else the programs run in the job's own processes.
        settings: of its trainings.
    """

    def __init__(
        self,
        cluster: Cluster,
        grid: str,
        folder: Path,
        data_dir: Path,
        root: Path = ROOT,
        warm: bool = True,
        settings: tuple[str, ...] = SMALL,
    ) -> None:
        self.cluster, self.runs, self.data_dir = cluster, folder / "runs", data_dir
        self.root, self.warm, self.settings = root, warm, settings
        self.grid = folder / "grid.yaml"
        self.grid.write_text(grid)

    def program(
        self, name: str, *arguments: str, afresh: bool = False, **env: str
    ) -> subprocess.CompletedProcess[str]:
        path = f"{self.root}/launch/{name}"
        around = {**self.cluster.env, **env}
        runs = f"--runs-dir={self.runs}"
        return programs.run(path, *arguments, runs, afresh=afresh, warm=self.warm, **around)

    def command(self, *arguments: str, grid: str | Path | None = None) -> list[str]:
        """Arguments of a sweep of small trainings."""
        place = [f"--grid={grid or self.grid}", f"--data-dir={self.data_dir}", "--cluster=slurm"]
        return [*place, *self.settings, "--cluster-set=cpus_per_task=1", *arguments]

    def sweep(self, *arguments: str, grid: str | Path | None = None, afresh: bool = False) -> str:
        done = self.program("sweep.py", *self.command(*arguments, grid=grid), afresh=afresh)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def status(self) -> dict[str, dict[str, Any]]:
        done = self.program("status.py", "--json")
        assert done.returncode == 0, done.stderr
        return {row["run"]: row for row in json.loads(done.stdout)["runs"]}

    def run(self) -> RunDir:
        (path,) = [path.parent for path in self.runs.glob("*/logs")]
        return RunDir(path)

    def wait_training(self, step: int = 1) -> str:
        """Wait until the only run is under way; its job."""
        wait_until(
            lambda: any(
                RunDir(p.parent).status().get("step", 0) >= step
                for p in self.runs.glob("*/status.json")
            ),
            600,
            "the training to begin",
        )
        return str(next(iter(self.status().values()))["job"])

    def wait_empty(self, seconds: float = 600) -> None:
        self.cluster.wait_empty(seconds)
