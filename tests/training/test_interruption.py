"""The rarer interruptions on a real Slurm cluster: several ranks, orphans, requeues in vain."""

from __future__ import annotations

import re
from pathlib import Path

import psutil

from diffuse.rundir.directory import RunDir
from tests import programs
from tests.cluster.daemons import wait_until
from tests.lab import SMALL, URGENT, Lab
from tests.programs import assert_same_training


def alone(tmp_path: Path, data_dir: Path, epochs: int, ranks: int = 1) -> RunDir:
    """The same training without Slurm or interruption."""
    folder = tmp_path / "undisturbed"
    done = programs.run(
        "diffuse.train",
        "--preset=ddpm/default",
        f"--epochs={epochs}",
        *SMALL,
        "--threads=1",
        f"--runs-dir={folder}",
        f"--data-dir={data_dir}",
        ranks=ranks,
    )
    assert done.returncode == 0, done.stderr
    return programs.only_run(folder)


def job_output(lab: Lab) -> str:
    """The output of batch scripts and submitit, before and around the programs' own logs."""
    return "".join(path.read_text() for path in lab.runs.glob(".launch/grid/jobs-*/*/*.out"))


def test_four_ranks_on_two_nodes_end_together_and_go_on_bitwise(
    lab: Lab, tmp_path: Path, data_dir: Path
) -> None:
    resources = ("partition=preempt", "nodes=2", "gpus_per_node=2")
    lab.sweep("--no-evaluate", "--epochs=8", *(f"--cluster-set={r}" for r in resources))
    lab.wait_training(3)
    urgent = lab.cluster.slurm(*URGENT, "--wrap=sleep 300").strip()
    lab.cluster.wait_for(urgent, "RUNNING")
    assert lab.run().status()["state"] == "interrupted"
    # A rank that ends with an error before rank 0 has saved would take rank 0 with it.
    bad_ends = re.findall(r"tasks? ([\d,-]+): Exited with exit code (\d+)", job_output(lab))
    assert bad_ends[0] == ("0", "75"), "the others end after it, killed by srun or not"
    lab.cluster.slurm("scancel", urgent)
    undisturbed = alone(tmp_path, data_dir, epochs=8, ranks=4)
    lab.wait_empty()
    assert lab.run().attempt_number() == 2
    assert_same_training(lab.run(), undisturbed, 8)


def test_an_attempt_that_outlives_its_node_publishes_nothing_more(
    lab: Lab, tmp_path: Path, data_dir: Path
) -> None:
    """kill -9 of a slurmd; its training sleeps, and wakes when another node has taken over."""
    lab.warm = False
    lab.sweep("--no-evaluate", "--epochs=8")
    job = lab.wait_training(3)
    node = lab.status()[lab.run().name]["node"]
    orphan = psutil.Process(lab.run().attempt(1)["pid"])
    orphan.suspend()
    lab.cluster.kill_slurmd(node)
    try:
        wait_until(lambda: lab.run().attempt_number() == 2, 300, "the job on another node")
        orphan.resume()
        psutil.wait_procs([orphan], timeout=600)
        lab.wait_empty()
    finally:
        lab.cluster.start_slurmd(node)
    log = (lab.run().logs / f"train-{job}-r00.log").read_text()
    assert "took over" in log
    attempts = [line["attempt"] for line in programs.metric_lines(lab.run())]
    assert attempts == sorted(attempts), "nothing of attempt 1 after attempt 2 began"
    assert lab.run().attempt_number() == 2, "the orphan's script requeued nobody"
    assert_same_training(lab.run(), alone(tmp_path, data_dir, epochs=8), 8)


def test_requeues_without_progress_come_to_an_end_that_is_explained(lab: Lab) -> None:
    lab.warm = False  # starts so slow that the job is requeued before its first checkpoint
    lab.sweep("--cluster-set=max_requeues=1")
    job = ""
    for attempt in range(2):
        pattern = f"*/logs/train-*-r{attempt:02d}.json"  # before the first step
        wait_until(lambda p=pattern: any(lab.runs.glob(p)), 600, "the job's start")  # type: ignore[misc]
        job = next(iter(lab.status().values()))["job"]
        lab.cluster.slurm("scontrol", "requeue", job)
    lab.wait_empty()
    (row,) = lab.status().values()
    assert row["state"] == "failed"
    assert "1 requeue in a row without a new checkpoint" in row["reason"]
    assert sorted(path.name for path in lab.run().logs.glob("train-*.log")) == [
        f"train-{job}-r{attempt:02d}.log" for attempt in range(3)
    ]
