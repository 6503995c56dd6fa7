"""Several runs in one job on a real Slurm cluster: a fault of one leaves the others alone."""

from __future__ import annotations

from pathlib import Path

import psutil

from diffuse.rundir.directory import RunDir
from tests.cluster.cluster import Cluster
from tests.cluster.daemons import wait_until
from tests.lab import EPOCHS, HOLD, URGENT, Lab
from tests.programs import assert_same_training


def test_a_preempted_pack_goes_on_with_what_had_not_ended_bitwise_and_is_evaluated(
    slurm: Cluster, tmp_path: Path, data_dir: Path, undisturbed: RunDir
) -> None:
    """Two at a time of four: one that is done, one that fails, and then two that are preempted."""
    seed = undisturbed.config().seed
    grid = f"""
cluster: {{runs_per_job: 4, gpus_per_node: 2, partition: preempt}}
runs:
  - {{preset: ddpm/default, epochs: [1], seeds: [{seed + 1}]}}
  - {{preset: ddpm/default, epochs: [1], set: {{train: {{lr: 1.0e+30}}}}}}
  - {{preset: ddpm/default, epochs: [{EPOCHS}], seeds: [{seed}, {seed + 2}]}}
"""
    lab = Lab(slurm, grid, tmp_path, data_dir)
    lab.warm = False
    said = lab.sweep()
    assert "tasks" not in said and said.count(", 4 runs") == 2, "a job trains, another evaluates"

    def run_of(seed: int, lr: float = 2e-4) -> RunDir:
        runs = [RunDir(path.parent) for path in lab.runs.glob("*/config.yaml")]
        found = [r for r in runs if (r.config().seed, r.config().train.lr) == (seed, lr)]
        return found[0] if found else RunDir(Path("none"))

    wait_until(lambda: run_of(seed).status().get("step", 0) >= 1, 600, "the third run to begin")
    disturbed, failed, done = run_of(seed), run_of(seed, 1e30), run_of(seed + 1)
    wait_until(lambda: done.status().get("state") == "done", 600, "the first run to end")
    process = psutil.Process(disturbed.attempt(1)["pid"])
    assert process.environ()["CUDA_VISIBLE_DEVICES"] in ("0", "1"), "a GPU of its own"
    urgent = slurm.slurm(*URGENT, "--wrap=sleep 300").strip()
    slurm.wait_for(urgent, "RUNNING")
    rows = lab.status()
    assert [rows[run.name]["state"] for run in (disturbed, failed, done)] == [
        *("requeued", "failed", "queued")
    ]
    assert rows[done.name]["reason"] == "evaluation: Dependency"
    slurm.slurm("scancel", urgent)
    lab.wait_empty()
    rows = lab.status()
    assert len({row["job"] for row in rows.values()}) == 1
    states = {name: (row["state"], row["evaluated"]) for name, row in rows.items()}
    assert states.pop(failed.name) == ("failed", 0)
    assert set(states.values()) == {("done", 1)} and len(states) == 3
    assert "the loss became nan" in rows[failed.name]["reason"]
    attempts = [rows[run.name]["attempts"] for run in (disturbed, failed, done)]
    assert attempts == [2, 1, 1], "a run that had ended does not start again"
    assert_same_training(disturbed, undisturbed, EPOCHS)
    logs = sorted(path.name for path in disturbed.logs.glob("train-*.log"))
    assert logs == [f"train-{rows[disturbed.name]['job']}-r0{k}.log" for k in (0, 1)]


def test_packs_are_submitted_once_and_cancelled_by_run_or_whole_and_come_through(
    slurm: Cluster, tmp_path: Path, data_dir: Path
) -> None:
    grid = "runs: [{preset: ddpm/default, epochs: [1], seeds: [0, 1, 2]}]"
    lab = Lab(slurm, grid, tmp_path, data_dir)
    packed = ("--cluster-set=runs_per_gpu=2", "--cluster-set=mps=true")
    assert lab.sweep(HOLD, *packed).count("2 tasks, 3 runs") == 2
    rows = lab.status()
    assert [row["state"] for row in rows.values()] == ["queued"] * 3
    assert "nothing to submit" in lab.sweep(HOLD, *packed)
    pair = next(row["job"] for row in rows.values() if row["job"].endswith("_0"))
    one, other = (name for name, row in rows.items() if row["job"] == pair)
    alone = ("--cancel", f"--only={one}")
    assert f"would cancel {one}, whose jobs go on" in lab.sweep(*alone, "--dry-run")
    assert f"cancelled {one}, whose jobs go on with other runs" in lab.sweep(*alone)
    assert [lab.status()[run]["state"] for run in (one, other)] == ["new", "queued"]
    lab.sweep(HOLD, *packed)
    rows = lab.status()
    assert rows[one]["state"] == "queued" and rows[one]["job"] != pair == rows[other]["job"]
    assert "cancelled 8 jobs" in lab.sweep("--cancel"), "three train, three evaluate, two compare"
    lab.wait_empty()
    lab.sweep(*packed)
    lab.wait_empty()
    rows = lab.status()
    assert {(row["state"], row["evaluated"]) for row in rows.values()} == {("done", 1)}
    assert "nothing to submit" in lab.sweep(*packed)
    outputs = [path.read_text() for path in lab.runs.glob(".launch/grid/jobs-*/01-train/*.out")]
    assert sum("note: no MPS on node" in output for output in outputs) == 2
