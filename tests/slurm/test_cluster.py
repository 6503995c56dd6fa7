"""The tests' own Slurm cluster: the behaviour that tests rely on, and its complete removal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cluster import leftovers
from tests.cluster.cluster import Cluster
from tests.cluster.daemons import wait_until
from tests.conftest import require_slurm
from tests.programs import ROOT

SLEEP = ("sbatch", "--parsable", "--output=/dev/null", "--wrap=sleep 300")


def test_each_node_shows_its_jobs_their_gpus(slurm: Cluster) -> None:
    said = slurm.slurm(
        "srun",
        "-N2",
        "--gpus-per-node=2",
        "sh",
        "-c",
        "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES",
    )
    assert sorted(said.splitlines()) == ["node1 0,1", "node2 0,1"]


def test_a_preempted_job_is_requeued_or_cancelled_as_its_partition_says(slurm: Cluster) -> None:
    requeued, cancelled = (
        slurm.slurm(*SLEEP[:-1], "--requeue", f"-p{name}", "--gpus=4", SLEEP[-1]).strip()
        for name in ("preempt", "cancel")
    )
    slurm.wait_for(requeued, "RUNNING")
    slurm.wait_for(cancelled, "RUNNING")
    urgent = slurm.slurm(*SLEEP[:-1], "-pgpu", "-N2", "--gpus-per-node=4", SLEEP[-1]).strip()
    slurm.wait_for(urgent, "RUNNING")
    assert (slurm.state(requeued), slurm.state(cancelled)) == ("PENDING", "PREEMPTED")


def test_accounting_tells_of_a_job_that_has_ended(slurm: Cluster) -> None:
    job = slurm.slurm("sbatch", "--parsable", "--output=/dev/null", "--wrap=exit 3").strip()
    command = ("sacct", "-nXP", f"--jobs={job}", "--format=State,ExitCode")
    wait_until(lambda: slurm.slurm(*command).strip() == "FAILED|3:0", 30, "sacct to know the job")


def test_a_node_that_dies_is_noticed_and_its_job_starts_again(slurm: Cluster) -> None:
    job = slurm.slurm(*SLEEP[:-1], "--requeue", "-wnode1", SLEEP[-1]).strip()
    slurm.wait_for(job, "RUNNING")
    wait_until(lambda: _has_jobs(slurm, "node1"), 600, "the job's processes")
    slurm.kill_node("node1")
    assert not _has_jobs(slurm, "node1")
    slurm.wait_for(job, "PENDING")
    slurm.start_slurmd("node1")
    slurm.wait_for(job, "RUNNING")


def test_the_controller_comes_back_with_its_jobs(slurm_without_accounting: Cluster) -> None:
    cluster = slurm_without_accounting
    job = cluster.slurm(*SLEEP).strip()
    cluster.wait_for(job, "RUNNING")
    cluster.restart_slurmctld()
    assert cluster.state(job) == "RUNNING"
    with pytest.raises(RuntimeError, match="accounting storage is disabled"):
        cluster.slurm("sacct")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_of_a_cluster_stays_however_its_owner_ends(number: signal.Signals) -> None:
    require_slurm()
    hosts = leftovers.HOSTS.read_text()
    owner = subprocess.Popen(
        [sys.executable, "-m", "tests.cluster", "--no-accounting"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert owner.stdout is not None
        line = owner.stdout.readline().strip()
        conf = Path(line.removeprefix("export SLURM_CONF="))
        folder = conf.parent.parent
        env = {**os.environ, "SLURM_CONF": str(conf)}
        subprocess.run([*SLEEP], env=env, check=True, capture_output=True, cwd=folder)
        time.sleep(1)
        assert "node1" in leftovers.HOSTS.read_text().removeprefix(hosts)
        owner.send_signal(number)
        owner.wait(60)
        wait_until(lambda: not folder.exists(), 30, f"{folder} to go")
        assert not list(leftovers.processes(folder))
        assert folder.name not in leftovers.HOSTS.read_text()
    finally:
        owner.kill()
        owner.wait()


def _has_jobs(cluster: Cluster, node: str) -> bool:
    return any(leftovers.processes(cluster.folder, node))
