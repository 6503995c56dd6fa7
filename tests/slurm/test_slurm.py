"""Sweeps on a real Slurm cluster: submitted, interrupted in every way, and equal in the end."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from diffuse.rundir.directory import RunDir
from launch.jobs import snapshot
from tests import programs
from tests.cluster.cluster import Cluster
from tests.cluster.daemons import wait_until
from tests.lab import DDPM, EPOCHS, HOLD, URGENT, Lab
from tests.programs import assert_same_training


def test_part2_comes_through_with_its_chain_then_nothing_is_submitted_then_more(
    lab: Lab,
) -> None:
    said = lab.sweep("--epochs=1,2", HOLD, grid="part2")
    assert "6 training jobs: 6 new" in said
    queue = lab.cluster.slurm("squeue", "-h", "-r", "-o%j")
    assert (queue.count("train-part2"), queue.count("evaluate-part2")) == (6, 6)
    again = lab.sweep("--epochs=1,2", grid="part2")
    assert "nothing to submit" in again, "a job that waits or runs is not submitted twice"
    lab.cluster.slurm("scontrol", "release", *lab.cluster.slurm("squeue", "-h", "-o%A").split())
    lab.wait_empty()
    rows = lab.status()
    assert len(rows) == 6
    assert {(row["state"], row["evaluated"]) for row in rows.values()} == {("done", 2)}
    assert "nothing to submit" in lab.sweep("--epochs=1,2", grid="part2")
    third = ("--epochs=1,2,3", "--only=*default_7-row*", "--no-evaluate")
    more = lab.sweep(*third, grid="part2")
    assert "1 extend" in more
    lab.wait_empty()
    assert {row["epoch"] for name, row in lab.status().items() if "default_7-row" in name} == {3}


def test_a_job_with_gpus_that_torch_does_not_see_never_trains_on_the_cpu(lab: Lab) -> None:
    lab.sweep("--set=system.device=auto", "--cluster-set=time=5")
    lab.wait_empty()
    (row,) = lab.status().values()
    assert (row["state"], row["epoch"]) == ("failed", None)
    assert "--device cuda: torch sees no GPU here" in row["reason"]
    # by intention it does, and then its evaluation too
    lab.sweep("--set=system.device=cpu", "--cluster-set=time=5")
    lab.wait_empty()
    (row,) = lab.status().values()
    assert (row["state"], row["evaluated"]) == ("done", 1)


def test_a_preempted_training_is_requeued_and_ends_bitwise_equal(
    lab: Lab, undisturbed: RunDir
) -> None:
    lab.warm = False
    lab.sweep("--no-evaluate", "--cluster-set=partition=preempt")
    job = lab.wait_training()
    urgent = lab.cluster.slurm(*URGENT, "--wrap=sleep 300").strip()
    lab.cluster.wait_for(urgent, "RUNNING")
    row = next(iter(lab.status().values()))
    assert (row["state"], row["attempts"]) == ("requeued", 1)
    assert lab.run().status()["state"] == "interrupted"
    lab.cluster.slurm("scancel", urgent)
    lab.wait_empty()
    assert lab.run().attempt_number() == 2
    assert_same_training(lab.run(), undisturbed, EPOCHS)
    logs = sorted(path.name for path in lab.run().logs.glob("*.log"))
    assert logs == [f"train-{job}-r00.log", f"train-{job}-r01.log"]


def test_where_preemption_cancels_the_job_still_requeues_itself(
    lab: Lab, undisturbed: RunDir
) -> None:
    """PreemptMode=CANCEL: Slurm's own requeue does nothing there, the batch script's does."""
    lab.sweep("--no-evaluate", "--cluster-set=partition=cancel")
    lab.wait_training()
    urgent = lab.cluster.slurm(*URGENT, "--wrap=sleep 300").strip()
    lab.cluster.wait_for(urgent, "RUNNING")
    lab.cluster.slurm("scancel", urgent)
    lab.wait_empty()
    assert lab.run().attempt_number() == 2
    assert_same_training(lab.run(), undisturbed, EPOCHS)


def test_where_the_site_forbids_requeueing_the_next_sweep_goes_on(
    lab: Lab, undisturbed: RunDir
) -> None:
    never = "--cluster-set=extra={requeue: false, no-requeue: true}"
    lab.sweep("--no-evaluate", never)
    job = lab.wait_training()
    lab.cluster.slurm("scancel", "--signal=USR2", job)
    lab.wait_empty()
    (row,) = lab.status().values()
    assert row["state"] == "interrupted"
    assert "the next sweep goes on" in row["reason"]
    assert "1 resume" in lab.sweep("--no-evaluate")
    lab.wait_empty()
    assert_same_training(lab.run(), undisturbed, EPOCHS)


def test_a_time_limit_is_met_by_saving_and_requeueing(lab: Lab, undisturbed: RunDir) -> None:
    """The training stands still until Slurm announces the limit, which wakes it, and saves time."""
    lab.warm = False
    lab.sweep("--no-evaluate", "--cluster-set=time=1", "--cluster-set=max_requeues=9")
    lab.wait_training()
    psutil.Process(lab.run().attempt(1)["pid"]).suspend()
    lab.wait_empty()
    (row,) = lab.status().values()
    assert (row["state"], row["epoch"]) == ("done", EPOCHS)
    assert row["attempts"] >= 2
    assert_same_training(lab.run(), undisturbed, EPOCHS)


def test_a_node_that_dies_loses_no_run(lab: Lab, undisturbed: RunDir) -> None:
    lab.warm = False
    lab.sweep("--no-evaluate", "--cluster-set=extra={nodelist: node1}")
    lab.wait_training(3)
    lab.cluster.kill_node("node1")
    wait_until(
        lambda: "PENDING" in lab.cluster.slurm("squeue", "-h", "-o%T"), 600, "NODE_FAIL's requeue"
    )
    lab.cluster.start_slurmd("node1")
    lab.wait_empty()
    assert lab.run().attempt_number() == 2
    assert_same_training(lab.run(), undisturbed, EPOCHS)


def test_a_task_that_always_crashes_leaves_nothing_pending_and_is_named(lab: Lab) -> None:
    lab.sweep("--set=train.lr=1e30", "--epochs=1")
    lab.wait_empty()
    (row,) = lab.status().values()
    assert row["state"] == "failed"
    assert "the loss became nan" in row["reason"]
    assert row["attempts"] == 1
    shown = lab.program("status.py", "--log", row["run"])
    assert "the loss became nan" in shown.stdout


def test_cancel_ends_the_jobs_and_the_next_sweep_goes_on(lab: Lab, undisturbed: RunDir) -> None:
    lab.sweep()
    lab.wait_training()
    assert "cancelled 3 jobs" in lab.sweep("--cancel")
    lab.wait_empty()
    assert lab.run().status()["state"] == "interrupted"
    assert "1 resume" in lab.sweep("--no-evaluate")
    lab.wait_empty()
    assert_same_training(lab.run(), undisturbed, EPOCHS)


def test_two_nodes_of_two_ranks_see_the_batches_of_one_rank(lab: Lab, undisturbed: RunDir) -> None:
    place = ("--cluster-set=nodes=2", "--cluster-set=gpus_per_node=2")
    lab.sweep("--no-evaluate", "--epochs=2", *place)
    lab.wait_empty()
    (run,) = [lab.run()]
    assert programs.read_json(run.path / "manifest.json")["environment"]["world_size"] == 4
    ours = programs.losses(run)
    wanted = programs.losses(undisturbed)[: len(ours)]  # its first epochs
    assert len(ours) == 2 * 16
    assert max(abs(a - b) for a, b in zip(ours, wanted, strict=True)) < 1e-4


def test_status_is_right_without_accounting(
    slurm_without_accounting: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    lab = Lab(slurm_without_accounting, DDPM % 1, tmp_path, data_dir)
    lab.sweep("--no-evaluate")
    lab.wait_empty()
    (row,) = lab.status().values()
    assert (row["state"], row["epoch"], row["attempts"]) == ("done", 1, 1)


def test_a_job_that_ends_before_its_program_says_why_without_accounting_too(
    slurm_without_accounting: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    lab = Lab(slurm_without_accounting, DDPM % 1, tmp_path, data_dir)
    setup = "setup=[\"echo 'error: no module cuda/99' >&2; exit 1\"]"
    lab.sweep("--no-evaluate", f"--cluster-set={setup}")
    lab.wait_empty()
    (row,) = lab.status().values()
    assert (row["state"], row["reason"]) == ("failed", "no module cuda/99")
    assert "no module cuda/99" in lab.program("status.py", "--log", row["run"]).stdout


def test_too_long_a_limit_is_refused_before_anything_is_written(lab: Lab) -> None:
    done = lab.program("sweep.py", *lab.command("--cluster-set=time=6000"))
    assert done.returncode == 2
    assert "more than partition gpu allows (60)" in done.stderr
    assert not lab.runs.exists()


def test_a_snapshot_is_named_by_its_content_and_taken_once(tmp_path: Path) -> None:
    root, code = tmp_path / "root", tmp_path / "code"
    (root / "diffuse").mkdir(parents=True)
    (root / "diffuse" / "a.py").write_text("A = 1\n")
    (root / "diffuse" / "__pycache__").mkdir()
    (root / "diffuse" / "__pycache__" / "a.pyc").write_bytes(b"0")
    first = snapshot.take(code, root)
    made = first.path.stat().st_mtime_ns
    time.sleep(0.01)
    assert snapshot.take(code, root) == first
    assert first.path.stat().st_mtime_ns == made
    assert not list(first.path.rglob("*.pyc"))
    (root / "diffuse" / "a.py").write_text("A = 2\n")
    second = snapshot.take(code, root)
    assert second.hash != first.hash
    assert (first.path / "diffuse" / "a.py").read_text() == "A = 1\n"
