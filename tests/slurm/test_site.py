"""Sites with habits of their own, on a real Slurm: banners, hidden partitions, variables."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import shlex
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
    options = (f"--data-dir={lab.data_dir}", "--cluster=slurm", "--job", "--wait=300", ONE_CORE)
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
    with pytest.raises(commands.EnvironmentFailed, match=r"^sbatch refused: no account; failed$"):
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
    lab.warm = False
    lab.sweep("--no-evaluate", f"--cluster-set=extra={{export: {export}}}")
    lab.wait_empty()
    (row,) = lab.status().values()
    assert row["state"] == "done", row


def test_the_doctors_job_and_batch_scripts_work_without_an_environment(
    lab: Lab, tmp_path: Path
) -> None:
    settings = ("extra={export: NONE}", "gpus_per_node=0", "cpus_per_task=1")
    options = (f"--data-dir={lab.data_dir}", "--cluster=slurm", "--job", "--wait=300")
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
    job = sbatch(
        lab.cluster,
        tmp_path,
        "train_ddpm.sh",
        *arguments,
        options=options,
        root=project,
        warm=False,
    )
    ended(lab.cluster, tmp_path, job)


def test_packages_of_a_module_are_found_by_every_job_behind_the_code_it_is_to_run(
    lab: Lab, tmp_path: Path
) -> None:
    """A module's PYTHONPATH: its folder also has another `diffuse`, which must not be taken."""
    module = tmp_path / "module"
    (module / "diffuse").mkdir(parents=True)
    (module / "diffuse" / "__init__.py").touch()
    (module / "sitecustomize.py").write_text(
        "import importlib.util, pathlib\n"
        "with (pathlib.Path(__file__).parent / 'seen').open('a') as seen:\n"
        "    print(importlib.util.find_spec('diffuse').origin, file=seen)\n"
    )

    def seen() -> set[Path]:
        lines = (module / "seen").read_text().splitlines()
        (module / "seen").unlink()
        return {Path(line).parent.parent for line in lines}

    lab.grid.write_text(DDPM % 1)
    setup = f"--cluster-set=setup=[export PYTHONPATH={module}]"
    lab.warm = False
    lab.sweep("--no-evaluate", setup)
    lab.wait_empty()
    assert seen() == set(lab.runs.glob(".launch/code/*"))
    options = (f"--data-dir={lab.data_dir}", "--cluster=slurm", "--job", "--wait=300", ONE_CORE)
    doctor(tmp_path, *options, setup, "--cluster-set=gpus_per_node=0", env=lab.cluster.env)
    assert seen() == set(tmp_path.glob(".launch/doctor/code/*"))
    arguments = (*SMALL, "--epochs=1", f"--data-dir={lab.data_dir}")
    options = (f"--export=ALL,PYTHONPATH={module}",)
    job = sbatch(lab.cluster, tmp_path, "train_ddpm.sh", *arguments, options=options, warm=False)
    ended(lab.cluster, tmp_path, job)
    assert seen() == {ROOT}


def in_a_shell(lab: Lab, commands: list[str], folder: Path) -> str:
    """The output for a person who types these commands into `srun -n4 --pty bash`."""
    leader, follower = pty.openpty()
    shell = subprocess.Popen(
        ["srun", "-n4", "--pty", "bash", "--norc"],
        cwd=folder,
        env=programs.environment(**lab.cluster.env),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        start_new_session=True,
    )
    os.close(follower)
    for command in commands:
        os.write(leader, f"{command} </dev/null; echo code=$?\n".encode())
    os.write(leader, b"exit\n")
    shown = b""
    with contextlib.suppress(OSError):  # its end, as Linux has it
        while select.select([leader], [], [], 90)[0] and (more := os.read(leader, 65536)):
            shown += more
    shell.kill()
    shell.wait()
    os.close(leader)
    return shown.decode(errors="replace")


def test_in_a_shell_from_srun_a_training_and_a_sweep_are_one_process_and_srun_gives_ranks(
    lab: Lab, tmp_path: Path
) -> None:
    lab.grid.write_text(DDPM % 1)
    arguments = (*SMALL, "--epochs=1", f"--data-dir={lab.data_dir}")
    train = programs.command("diffuse.train", "--preset=ddpm/default", *arguments)
    sweep = [sys.executable, str(ROOT / "launch" / "sweep.py"), f"--runs-dir={lab.runs}"]
    sweep += [*lab.command("--no-evaluate"), "--cluster=local"]
    ranks = ["srun", "--overlap", "-n2", *train, f"--runs-dir={tmp_path}/two"]
    alone = [*train, f"--runs-dir={tmp_path}/one"]
    shown = in_a_shell(lab, [shlex.join(typed) for typed in (alone, sweep, ranks)], tmp_path)
    codes = re.findall(r"^code=(\d+)", shown, re.MULTILINE)
    assert codes == ["0", "0", "0"], shown
    sizes = [
        programs.read_json(programs.only_run(folder).manifest_path)["environment"]["world_size"]
        for folder in (tmp_path / "one", tmp_path / "two")
    ]
    assert sizes == [1, 2]
    assert lab.run().status()["state"] == "done"
