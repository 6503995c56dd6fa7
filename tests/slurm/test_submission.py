"""The jobs that a sweep gives to a real Slurm, and those left out. All are held: none runs."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import programs
from tests.cluster.cluster import Cluster
from tests.cluster.daemons import wait_until
from tests.conftest import require_slurm
from tests.lab import DDPM, HOLD, Lab
from tests.programs import ROOT

# Packages that a base install lacks cannot be found.
LIGHT_INSTALL = """
import sys
from importlib.machinery import PathFinder

class Light(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        heavy = ("torch", "torchvision", "torchmetrics", "sklearn", "wandb", "matplotlib")
        return None if name.partition(".")[0] in heavy else super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Light
"""
SEEDS = "runs: [{preset: ddpm/default, epochs: [1], seeds: [%s]}]"


@pytest.fixture(scope="module")
def tight() -> Iterator[Cluster]:
    """A site with short arrays and a short queue."""
    require_slurm()
    with Cluster(accounting=False, settings={"MaxArraySize": 3, "MaxJobCount": 12}) as cluster:
        yield cluster


def arrays(lab: Lab) -> Counter[str]:
    """The number of waiting tasks in each array, by its job's name and id."""
    lines = lab.cluster.slurm("squeue", "-h", "-r", "-o%j %F").splitlines()
    return Counter(line.strip() for line in lines)


def seeds(n: int) -> str:
    return SEEDS % ", ".join(map(str, range(n)))


def test_100_cells_are_three_sbatch_calls_and_little_work(lab: Lab) -> None:
    lab.grid.write_text(seeds(100))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = lab.sweep(HOLD, afresh=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert sorted(arrays(lab).values()) == [1, 100, 100]
    for line in ("train: job ", "evaluate: job ", "report: job "):
        assert line in said
    # The time that sbatch takes depends on the machine; the processor time is the project's.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2


def test_arrays_are_split_and_the_queue_is_not_overfilled(
    tight: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    lab = Lab(tight, seeds(6), tmp_path, data_dir)
    said = lab.sweep(HOLD)
    assert sorted(arrays(lab).values()) == [1, 2, 2, 3, 3]
    assert "1 run is left: Slurm keeps at most 12 jobs here" in said
    done = lab.program("sweep.py", *lab.command(HOLD))
    assert done.returncode == 1
    assert "Slurm keeps no more jobs just now" in done.stderr


def test_sweeps_at_once_submit_no_run_twice_even_of_overlapping_grids(lab: Lab) -> None:
    lab.grid.write_text(seeds(3))
    other = lab.grid.with_name("other.yaml")
    other.write_text(seeds(4))
    sweeps = [
        subprocess.Popen(
            [sys.executable, ROOT / "launch" / "sweep.py", *command, f"--runs-dir={lab.runs}"],
            env=programs.environment(**lab.cluster.env),
            stdout=subprocess.DEVNULL,
        )
        for command in [lab.command(HOLD, grid=grid) for grid in (lab.grid, other, lab.grid)]
    ]
    assert [sweep.wait(120) for sweep in sweeps] == [0, 0, 0]
    names = Counter(name.split()[0].partition("-")[0] for name in arrays(lab).elements())
    assert (names["train"], names["evaluate"]) == (4, 4)

    second = lab.grid.with_name("second.yaml")
    second.write_text(seeds(2))
    assert "nothing to submit" in lab.sweep(HOLD, grid=second)
    shown = lab.program("status.py", "--grid=second")
    assert (shown.returncode, shown.stdout.splitlines()[-1]) == (0, "2 queued"), shown.stderr


def test_a_site_that_refuses_the_report_for_asking_no_gpu_gets_all_the_rest(
    lab: Lab, tmp_path: Path
) -> None:
    lab.grid.write_text(seeds(2))
    (tmp_path / "bin").mkdir()
    picky = tmp_path / "bin" / "sbatch"
    picky.write_text(
        f"""#!/bin/sh
grep -q '^#SBATCH --gpus-per-node=1' "$1" && exec {shutil.which("sbatch")} "$@"
echo 'sbatch: error: this partition is for GPUs' >&2
exit 1
"""
    )
    picky.chmod(0o755)
    path = f"{picky.parent}:{os.environ['PATH']}"
    done = lab.program("sweep.py", *lab.command(HOLD), PATH=path)
    assert done.returncode == 0, done.stderr
    assert "no job for the report (sbatch refused: this partition is for GPUs)" in done.stdout
    assert f"python launch/compare.py --grid grid --runs-dir {lab.runs}" in done.stdout
    assert sorted(arrays(lab).values()) == [2, 2]
    assert "nothing to submit" in lab.sweep(HOLD)


def test_cancel_ends_the_named_jobs_and_no_others(lab: Lab) -> None:
    lab.grid.write_text(
        "runs: [{preset: ddpm/default, epochs: [1]},"
        " {preset: cold/default_7, orientation: row, epochs: [1]}]"
    )
    lab.sweep(HOLD)
    other = lab.grid.with_name("other.yaml")
    other.write_text(DDPM.replace("default", "light") % 1)
    lab.sweep(HOLD, grid=other)
    assert "cancelled 2 jobs" in lab.sweep("--cancel", "--only=cold-*")
    wait_until(lambda: sum(arrays(lab).values()) == 6, 20, "two jobs to go")
    assert "cancelled 3 jobs" in lab.sweep("--cancel")
    left = {name.split()[0] for name in arrays(lab)}
    assert left == {"train-other", "evaluate-other", "report-other"}


def test_a_rerun_lies_beside_and_overwrites_nothing(lab: Lab) -> None:
    lab.grid.write_text(DDPM % 1)
    lab.sweep("--no-evaluate")
    lab.wait_empty()
    (first,) = lab.runs.glob("ddpm-*")
    content = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    said = lab.sweep("--no-evaluate", "--rerun")
    assert "1 new" in said
    assert "rerun-001" in said
    lab.wait_empty()
    again = lab.runs / "rerun-001" / first.name
    assert programs.read_json(again / "status.json")["state"] == "done"
    assert {path: path.read_bytes() for path in content} == content
    said = lab.program("compare.py").stdout
    assert f"rerun-001/{first.name}: weights equal" in said


def test_a_login_node_needs_no_torch_but_its_jobs_then_an_image(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(LIGHT_INSTALL)
    env = {"PYTHONPATH": f"{tmp_path / 'blocked'}:{ROOT}"}
    refused = lab.program("sweep.py", *lab.command(HOLD), afresh=True, **env)
    assert refused.returncode == 2
    assert "no torch; make image and name it, or pip install -e '.[train]'" in refused.stderr
    assert not lab.runs.exists()
    (tmp_path / "image.sif").write_bytes(b"as it is")
    image = f"--cluster-set=image={tmp_path}/image.sif"
    for program, arguments in (
        ("sweep.py", lab.command("--dry-run")),
        ("sweep.py", lab.command(HOLD, image)),
        ("status.py", []),
        ("status.py", ["--json"]),
        ("sweep.py", lab.command("--cancel")),
    ):
        done = lab.program(program, *arguments, afresh=True, **env)
        assert done.returncode == 0, done.stderr


def test_neither_limits_nor_the_job_that_a_sweep_runs_in_reach_its_jobs(lab: Lab) -> None:
    lab.grid.write_text(DDPM % 1)
    enclosing = {
        "SLURM_JOB_ID": "1",
        "SLURM_ARRAY_JOB_ID": "1",
        "SLURM_ARRAY_TASK_ID": "7",
        "SLURM_MEM_PER_CPU": "100",
        "SLURM_CPU_BIND": "mask_cpu:0x1",
        "SBATCH_PARTITION": "nowhere",
        "RANK": "1",
        "WORLD_SIZE": "2",
    }
    settings = ("memory_gb=1", "setup=[ulimit -n >open_files]")
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (333, most))
    try:
        command = lab.command("--no-evaluate", *(f"--cluster-set={s}" for s in settings))
        done = lab.program("sweep.py", *command, afresh=True, **enclosing)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
    assert done.returncode == 0, done.stderr
    lab.wait_empty()
    (row,) = lab.status().values()
    assert row["state"] == "done"
    (log,) = lab.run().logs.glob("*.log")
    assert log.name == f"train-{row['job']}-r00.log"
    (found,) = lab.runs.glob(".launch/grid/jobs-*/*/open_files")
    assert found.read_text().strip() != "333"


def test_jobs_run_the_code_of_their_submission_after_an_edit(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    root = programs.copy_project(tmp_path / "project")
    lab = Lab(slurm, DDPM % 60, tmp_path, data_dir, root)
    lab.warm = False
    lab.sweep("--no-evaluate")
    job = lab.wait_training()
    first = programs.read_json(lab.run().manifest_path)["code"]
    program = root / "diffuse" / "train.py"
    program.write_text("raise SystemExit('edited')\n")
    slurm.slurm("scontrol", "requeue", job)
    lab.wait_empty()
    (row,) = lab.status().values()
    assert (row["state"], row["attempts"]) == ("done", 2)
    assert programs.read_json(lab.run().manifest_path)["code"] == first

    said = lab.sweep("--no-evaluate", "--epochs=61", HOLD)
    assert f"the code changed since its last jobs ({first['snapshot']} -> " in said
    (latest,) = [
        content["code_changed"]
        for path in lab.runs.glob(".launch/grid/submissions/*.json")
        if (content := programs.read_json(path))["code"] != first["snapshot"]
    ]
    assert latest == {row["run"]: first["snapshot"]}
