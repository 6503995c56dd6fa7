"""Estimates, budgets and probes as a user types them, without Slurm."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests import programs
from tests.programs import TINY, read_json

GRID = "runs: [{preset: ddpm/default, epochs: [1, 2]}]"


class Sweeps:
    """Sweeps of a grid of one tiny run on this machine."""

    def __init__(self, folder: Path, data_dir: Path) -> None:
        self.runs, self.grid = folder / "runs", folder / "mine.yaml"
        self.grid.write_text(GRID)
        place = [f"--grid={self.grid}", f"--runs-dir={self.runs}", f"--data-dir={data_dir}"]
        threads = ("--set=system.threads=1", "--set=samples.images=4")
        self.arguments = [*place, "--cluster=local", *TINY, *threads, "--no-evaluate"]

    def __call__(self, *more: str) -> subprocess.CompletedProcess[str]:
        return programs.run("launch/sweep.py", *self.arguments, *more, warm=True)


@pytest.fixture
def sweep(tmp_path: Path, data_dir: Path) -> Sweeps:
    return Sweeps(tmp_path, data_dir)


def test_probes_make_an_estimate_which_a_sweep_keeps_and_are_no_runs_of_the_user(
    sweep: Sweeps,
) -> None:
    before = sweep("--estimate")
    assert before.returncode == 0 and not sweep.runs.exists(), "nothing is written"
    assert before.stdout.count("no run like it yet: --probe measures it") == 1
    refused = sweep("--budget=5")
    assert refused.returncode == 2 and not sweep.runs.exists()
    assert "use --probe first" in refused.stderr and refused.stderr.count("\n") == 1

    done = sweep("--probe")
    assert done.returncode == 0, done.stderr
    (probe,) = (sweep.runs / ".launch" / "probe").glob("ddpm-*")
    assert read_json(probe / "status.json")["step"] == 40, "of 8 steps an epoch"
    assert "nothing to measure" in sweep("--probe").stderr
    status = programs.run("launch/status.py", f"--runs-dir={sweep.runs}", "--json")
    assert json.loads(status.stdout)["runs"] == []
    compare = programs.run("launch/compare.py", f"--runs-dir={sweep.runs}")
    assert compare.returncode == 2 and "no runs here yet" in compare.stderr
    clean = programs.run("launch/clean.py", f"--runs-dir={sweep.runs}")
    assert probe.name not in clean.stdout

    files = sorted(sweep.runs.rglob("*"))
    found = json.loads(sweep("--estimate", "--json").stdout)
    assert sorted(sweep.runs.rglob("*")) == files, "nothing is written"
    assert [row["steps"] for row in found["runs"]] == [16]
    assert found["wall_s"] == pytest.approx(found["runs"][0]["seconds"])
    assert found["hours"] == pytest.approx(found["wall_s"] / 3600) and found["unit"] == "core"
    refused = sweep("--budget=0")
    assert refused.returncode == 2 and not list(sweep.runs.glob("ddpm-*"))
    assert "more than --budget 0; " in refused.stderr and refused.stderr.count("\n") == 1

    done = sweep(f"--budget={2 * found['hours']}")
    assert done.returncode == 0, done.stderr
    kept = read_json(sweep.runs / ".launch" / "mine" / "estimate.json")["runs"]
    assert {n: (k["steps"], k["hours"]) for n, k in kept.items()} == {
        row["name"]: (16, pytest.approx(row["hours"])) for row in found["runs"]
    }
    assert "nothing to train" in sweep("--estimate").stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--budget=-1",), "--budget"),
        (("--budget=nan",), "--budget"),
        (("--budget=many",), "--budget"),
        (("--probe", "--estimate"), "one at a time: --estimate, --probe"),
        (("--estimate", "--cancel"), "one at a time: --estimate, --cancel"),
        (("--probe", "--budget=3"), "--probe goes without --rerun and --budget"),
        (("--probe", "--rerun"), "--probe goes without --rerun and --budget"),
    ],
)
def test_wrong_options_are_refused_in_one_line(
    options: tuple[str, ...], message: str, sweep: Sweeps
) -> None:
    done = sweep(*options)
    assert done.returncode == 2 and not sweep.runs.exists()
    assert message in done.stderr and done.stderr.count("\n") == 1
