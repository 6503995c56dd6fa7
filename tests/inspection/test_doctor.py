"""`launch/doctor.py` on a real cluster, without one, and where something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster
from tests.programs import ROOT, environment


def doctor(
    runs: Path, *options: str, code: int = 0, env: dict[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """The checks by name."""
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "launch" / "doctor.py"),
            f"--runs-dir={runs}",
            "--json",
            *options,
        ],
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


def states(checks: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: check["state"] for name, check in checks.items()}


def test_a_site_that_is_ready_passes_every_check(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    checks = doctor(tmp_path, f"--data-dir={data_dir}", "--cluster=slurm", env=slurm.env)
    assert set(states(checks).values()) == {"ok"}
    assert "gpu* (60 min)" in checks["Slurm"]["detail"]
    assert not list(tmp_path.iterdir())


def test_a_job_checks_the_node_itself(slurm: Cluster, tmp_path: Path, data_dir: Path) -> None:
    options = (
        f"--data-dir={data_dir}",
        "--cluster=slurm",
        "--job",
        "--cluster-set=cpus_per_task=1",
    )
    cpu = doctor(
        tmp_path,
        *options,
        "--cluster-set=nodes=2",
        "--cluster-set=gpus_per_node=0",
        env=slurm.env,
    )
    assert set(states(cpu).values()) == {"ok"}
    assert cpu["ranks"]["detail"].startswith("2 ranks summed by gloo")
    # handed in as a sweep's jobs are: by submitit, with a snapshot of the code
    (script,) = (tmp_path / ".launch" / "doctor").glob("*_submission.sh")
    assert "submitit.core._submit" in script.read_text()
    assert f"PYTHONPATH={tmp_path}/.launch/doctor/code/" in script.read_text()
    # the pretended GPUs are no GPUs, and the doctor says so
    pretended = doctor(tmp_path, *options, code=1, env=slurm.env)
    assert [name for name, state in states(pretended).items() if state == "failed"] == ["GPU"]
    assert "--nv" in pretended["GPU"]["remedy"]
    assert pretended["ranks"]["detail"].startswith("2 ranks summed by gloo"), "one GPU for the two"
    assert not slurm.slurm("squeue", "-h")


def test_a_job_that_fails_before_its_program_says_why(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    setup = "--cluster-set=setup=[\"echo 'error: module load failed'; exit 1\"]"
    options = (f"--data-dir={data_dir}", "--cluster=slurm", "--job", setup)
    checks = doctor(tmp_path, *options, code=1, env=slurm.env)
    assert checks["job"]["detail"].endswith(": module load failed")
    assert Path(checks["job"]["remedy"].removeprefix("its log: ")).is_file()


def test_a_job_that_cannot_start_is_cancelled_and_reported(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    all_nodes = ("-N2", "--exclusive", "--output=/dev/null", "--wrap=sleep 60")
    busy = slurm.slurm("sbatch", "--parsable", *all_nodes).strip()
    slurm.wait_for(busy, "RUNNING")
    options = (f"--data-dir={data_dir}", "--cluster=slurm", "--job", "--wait=2")
    checks = doctor(tmp_path, *options, code=1, env=slurm.env)
    assert "still pending after 2 s" in checks["job"]["detail"]
    assert slurm.slurm("squeue", "-h", "-o%i").split() == [busy]


def test_without_accounting_it_is_a_note(
    slurm_without_accounting: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    env = slurm_without_accounting.env
    checks = doctor(tmp_path, f"--data-dir={data_dir}", "--cluster=slurm", env=env)
    assert checks["accounting"]["state"] == "note"


def test_each_failure_has_its_remedy(slurm: Cluster, tmp_path: Path) -> None:
    checks = doctor(
        tmp_path,
        f"--data-dir={tmp_path}",
        "--cluster=slurm",
        "--cluster-set=partition=fast",
        "--cluster-set=image=none.sif",
        code=1,
        env=slurm.env,
    )
    failed = {name for name, state in states(checks).items() if state == "failed"}
    assert failed == {"sbatch --test-only", "image", "data"}
    assert "nvalid partition" in checks["sbatch --test-only"]["detail"]
    assert checks["image"]["remedy"] == "build it: make image"
    assert "python -m diffuse.prepare" in checks["data"]["detail"]


def test_without_slurm_it_checks_this_machine(tmp_path: Path, data_dir: Path) -> None:
    nowhere = {"PATH": "/nonexistent"}
    place = f"--data-dir={data_dir}"
    local = doctor(tmp_path, place, "--cluster=local", env=nowhere)
    assert set(states(local).values()) == {"ok"}
    assert "Slurm" not in local
    absent = doctor(tmp_path, place, "--cluster=slurm", code=1, env=nowhere)
    assert absent["Slurm"]["state"] == "failed"
    assert absent["Slurm"]["remedy"]
    assert "limits" not in absent
