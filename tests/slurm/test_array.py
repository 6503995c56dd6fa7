"""An array of two trainings on a real Slurm cluster: a fault of one leaves the other alone."""

from __future__ import annotations

from pathlib import Path

from diffuse.rundir.directory import RunDir
from tests.cluster.cluster import Cluster
from tests.cluster.daemons import wait_until
from tests.lab import EPOCHS, Lab
from tests.programs import assert_same_training


def test_of_an_array_the_preempted_task_alone_is_requeued_and_both_are_evaluated(
    slurm: Cluster, tmp_path: Path, data_dir: Path, undisturbed: RunDir
) -> None:
    seed = undisturbed.config().seed
    grid = f"runs: [{{preset: ddpm/default, epochs: [{EPOCHS}], seeds: [{seed}, {seed + 1}]}}]"
    lab = Lab(slurm, grid, tmp_path, data_dir)
    # Of such memory a node has enough for one: the two run on a node each.
    lab.sweep("--cluster-set=partition=preempt", "--cluster-set=memory_gb=10")
    wait_until(lambda: len(_under_way(lab)) == 2, 300, "both trainings to begin")
    disturbed = next(run for run in _under_way(lab) if run.config().seed == seed)
    row = lab.status()[disturbed.name]
    assert "_" in row["job"], "a task of an array"
    urgent = ("sbatch", "--parsable", "--output=/dev/null", f"-w{row['node']}", "-pgpu")
    job = slurm.slurm(*urgent, "--gpus-per-node=4", "--wrap=sleep 300").strip()
    slurm.wait_for(job, "RUNNING")
    assert lab.status()[disturbed.name]["state"] == "requeued"
    slurm.slurm("scancel", job)
    lab.wait_empty()
    rows = lab.status()
    assert {name: row["attempts"] for name, row in rows.items()} == {
        name: 2 if name == disturbed.name else 1 for name in rows
    }
    assert {(row["state"], row["evaluated"]) for row in rows.values()} == {("done", 1)}
    assert_same_training(disturbed, undisturbed, EPOCHS)
    outputs = [path.read_text() for path in lab.runs.glob(".launch/grid/jobs-*/*/*.out")]
    assert not any("did not requeue" in output for output in outputs)


def test_of_an_array_one_that_fails_leaves_its_evaluation_alone_undone(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    grid = """
runs:
  - {preset: ddpm/default, epochs: [1]}
  - {preset: ddpm/default, epochs: [1], set: {train: {lr: 1.0e+30}}}
"""
    lab = Lab(slurm, grid, tmp_path, data_dir)
    said = lab.sweep()
    assert "train: job" in said
    assert said.count("2 tasks") == 2, "one array of trainings, one of evaluations"
    lab.wait_empty()
    rows = lab.status().values()
    assert sorted((row["state"], row["evaluated"]) for row in rows) == [("done", 1), ("failed", 0)]
    assert "the loss became nan" in next(r["reason"] for r in rows if r["state"] == "failed")
    assert (lab.runs / "report.html").exists()


def _under_way(lab: Lab) -> list[RunDir]:
    runs = [RunDir(path.parent) for path in lab.runs.glob("*/status.json")]
    return [run for run in runs if run.status().get("step", 0) >= 1]
