"""Sites that differ from ours, on the tests' real Slurm: what its commands print, hide and pass on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.slurm import commands
from tests import programs
from tests.inspection.test_doctor import doctor
from tests.lab import DDPM, Lab
from tests.programs import ROOT
from tests.slurm.test_sbatch import SMALL, ended, sbatch
from tests.slurm.test_submission import HOLD, arrays

ONE_CORE = "--cluster-set=cpus_per_task=1"
BANNER = """#!/bin/sh
printf 'Universit\\351: your job 2026 hours are left\\n4711 of 5000 files\\n'
{sbatch} "$@" || exit
printf 'Bonne journ\\351e\\n'
"""


def wrapped(folder: Path) -> str:
    """A PATH whose sbatch prints more than a job's id."""
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "sbatch"
    wrapper.write_text(BANNER.format(sbatch=shutil.which("sbatch")))
    wrapper.chmod(0o755)
    return f"{wrapper.parent}:{os.environ['PATH']}"


def test_a_name_in_the_queue_may_be_in_any_encoding(lab: Lab) -> None:
    command = ["sbatch", "--hold", "--output=/dev/null", b"--job-name=caf\xe9", "--wrap=true"]
    subprocess.run(command, check=True, env={**os.environ, **lab.cluster.env}, capture_output=True)
    assert "train: job " in lab.sweep(HOLD)
    assert [row["state"] for row in lab.status().values()] == ["queued"]
    assert "cancelled 3 jobs" in lab.sweep("--cancel")
    assert len(lab.cluster.slurm("squeue", "-h", "-o%i").split()) == 1


def test_a_sbatch_that_prints_a_banner_is_understood_by_sweep_and_doctor(
    lab: Lab, tmp_path: Path
) -> None:
    path = wrapped(tmp_path)
    said = lab.program("sweep.py", *lab.command(HOLD), PATH=path)
    assert said.returncode == 0, said.stderr
    ids = {line.split()[1] for line in arrays(lab)}
    assert {line.split()[2] for line in said.stdout.splitlines() if ": job " in line} == ids
    options = (f"--data-dir={lab.data_dir}", "--cluster=slurm", "--job", "--wait=60", ONE_CORE)
    checks = doctor(
        tmp_path, *options, "--cluster-set=gpus_per_node=0", env=lab.cluster.env | {"PATH": path}
    )
    assert checks["job"]["state"] == "ok"


@pytest.mark.parametrize(
    "printed", ["12", "12;hpc", "Submitted batch job 12", "Submitted batch job 12 on cluster hpc"]
)
def test_the_id_is_found_however_sbatch_prints_it(printed: str) -> None:
    assert commands.submit("echo", f"# 7 jobs\n{printed}\nbye") == "12"


def test_a_refusal_is_one_line_with_the_sites_own_reason() -> None:
    script = "echo banner; echo 'sbatch: error: no account' >&2; echo 'sbatch: error: failed' >&2"
    with pytest.raises(commands.EnvironmentFailed, match="^sbatch refused: no account; failed$"):
        commands.submit("sh", "-c", f"{script}; exit 1")
    with pytest.raises(commands.EnvironmentFailed, match="no job's id, but: 'all well'"):
        commands.submit("echo", "all well")


def test_a_hidden_partition_may_be_used_and_an_unknown_one_is_slurms_to_refuse(lab: Lab) -> None:
    lab.cluster.slurm("scontrol", "update", "PartitionName=preempt", "Hidden=YES")
    try:
        said = lab.sweep(HOLD, "--cluster-set=partition=preempt")
    finally:
        lab.cluster.slurm("scontrol", "update", "PartitionName=preempt", "Hidden=NO")
    assert "train: job " in said
    done = lab.program("sweep.py", *lab.command("--cluster-set=partition=gpus", "--seeds=9"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: sbatch refused: ")
    assert "nvalid partition" in line


@pytest.mark.parametrize("export", ["NONE", "HOME"])
def test_jobs_that_are_given_no_environment_train(lab: Lab, export: str) -> None:
    lab.grid.write_text(DDPM % 1)
    lab.sweep("--no-evaluate", f"--cluster-set=extra={{export: {export}}}")
    lab.wait_empty(90)
    (row,) = lab.status().values()
    assert row["state"] == "done", row


def test_the_doctors_job_and_batch_scripts_work_without_an_environment(
    lab: Lab, tmp_path: Path
) -> None:
    settings = ("extra={export: NONE}", "gpus_per_node=0", "cpus_per_task=1")
    options = (f"--data-dir={lab.data_dir}", "--cluster=slurm", "--job", "--wait=60")
    given = [f"--cluster-set={setting}" for setting in settings]
    assert doctor(tmp_path, *options, *given, env=lab.cluster.env)["job"]["state"] == "ok"
    project = programs.copy_project(tmp_path / "project")
    shutil.copytree(ROOT / "slurm", project / "slurm")
    python = project / ".venv" / "bin" / "python"  # which needs no activated environment
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    arguments = (*SMALL, "--epochs=1", f"--data-dir={lab.data_dir}")
    options = ("--export=NONE",)
    job = sbatch(lab.cluster, tmp_path, "train_ddpm.sh", *arguments, options=options, root=project)
    ended(lab.cluster, tmp_path, job)
