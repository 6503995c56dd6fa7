"""`launch/clean.py`: the files that go, and above all those that stay."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from diffuse.config.presets import load_config
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from launch.grids.ledger import Ledger, Submission
from tests.cluster.cluster import Cluster
from tests.programs import ROOT, environment


def clean(
    runs: Path, *options: str, code: int = 0, env: dict[str, str] | None = None
) -> dict[str, Any]:
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "launch" / "clean.py"),
            f"--runs-dir={runs}",
            "--json",
            *options,
        ],
        env=environment(**(env or {})),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if not code else {"error": done.stderr}


def names(found: dict[str, Any], runs: Path) -> set[str]:
    return {str(Path(item["path"]).relative_to(runs)) for item in found["items"]}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A finished run as two attempts of one job leave it, with a checkpoint nobody asked for."""
    config = load_config("ddpm/default")
    config = config.model_copy(
        update={
            "eval": config.eval.model_copy(update={"at_epochs": (2,)}),
            "train": config.train.model_copy(update={"epochs": 4}),
        }
    )
    run = RunDir(tmp_path / config.run_name)
    run.write_config(config)
    files.write_json(run.status_path, {"state": "done", "steps_per_epoch": 400})
    for age, name in enumerate(("epoch_0002", "step_00000900", "epoch_0003", "epoch_0004")):
        path = run.checkpoints / f"{name}.pt"
        files.write_text(path, "weights")
        os.utime(path, (1e9 + age, 1e9 + age))
    files.write_json(run.evaluations / "epoch_0002.json", {})
    for name in ("train-7_1-r00.log", "train-7_1-r00.json", "train-7_1-r01.log", "train-9-r00.log"):
        files.write_text(run.logs / name, "said")
    return run


def submitted(run: RunDir, code: str, job_id: str = "7_1") -> None:
    ledger = Ledger(run.path.parent, "grid")
    (ledger.code_dir / code).mkdir(parents=True, exist_ok=True)
    (ledger.code_dir / code / "about.json").write_text("{}")
    job = {"run": run.name, "program": "train", "job_id": job_id, "epochs": [4]}
    count = len(list(ledger.path.glob("submissions/*")))
    ledger.record(Submission(f"{count}", "grid", "slurm", code, None, [], [job]))


def everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*") if path.is_file()}


def test_it_shows_first_and_removes_only_with_yes_and_never_a_result(run: RunDir) -> None:
    runs = run.path.parent
    before = everything(runs)
    gone = {
        f"{run.name}/checkpoints/step_00000900.pt",
        f"{run.name}/checkpoints/epoch_0003.pt",
        f"{run.name}/logs/train-7_1-r00.log",
        f"{run.name}/logs/train-7_1-r00.json",
    }
    assert names(clean(runs), runs) == gone
    assert everything(runs) == before
    clean(runs, "--yes")
    assert before - everything(runs) == {str(runs / name) for name in gone}
    assert names(clean(runs), runs) == set()


def test_a_run_that_trains_or_will_resume_keeps_its_files(run: RunDir) -> None:
    runs = run.path.parent
    files.write_json(run.status_path, {"state": "running"})
    assert names(clean(runs), runs) == set()
    files.write_json(run.status_path, {"state": "interrupted", "steps_per_epoch": 400})
    # the two newest stay, and the logs, which may tell why
    assert names(clean(runs), runs) == {f"{run.name}/checkpoints/step_00000900.pt"}


def test_old_code_goes_and_that_of_a_job_in_the_queue_stays(run: RunDir, slurm: Cluster) -> None:
    runs = run.path.parent
    submitted(run, "aaa")
    submitted(run, "bbb")
    assert names(clean(runs, env=slurm.env), runs) >= {".launch/code/aaa", ".launch/code/bbb"}
    files.write_json(run.status_path, {"state": "interrupted", "steps_per_epoch": 400})
    kept = names(clean(runs, env=slurm.env), runs)
    assert ".launch/code/bbb" not in kept
    assert ".launch/code/aaa" in kept

    files.write_json(run.status_path, {"state": "done", "steps_per_epoch": 400})
    job = slurm.slurm("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true").strip()
    submitted(run, "ccc", job)
    assert names(clean(runs, env=slurm.env), runs) == {".launch/code/aaa", ".launch/code/bbb"}
    slurm.slurm("scancel", job)


def test_job_files_of_ended_jobs_go_and_their_output_stays(run: RunDir, slurm: Cluster) -> None:
    runs = run.path.parent
    waits = runs / ".launch" / "grid" / "jobs-waits" / "01-train"
    waits.mkdir(parents=True)
    held = slurm.slurm(
        "sbatch", "--parsable", "--hold", f"--chdir={waits}", "--output=/dev/null", "--wrap=true"
    ).strip()
    tells = "7_1_0_log.out"
    for name in ("ended", "never-begun", "crashed"):
        folder = runs / ".launch" / "grid" / f"jobs-{name}" / "01-train"
        record = {"program": "train", "job_id": "7_1", "epochs": [4], "folder": str(folder)}
        record["run"] = run.name if name == "ended" else name
        files.write_text(folder / ("7_1_submitted.pkl" if name == "never-begun" else tells), "said")
        submission = Submission(name, "grid", "slurm", "aaa", None, [], [record])
        Ledger(runs, "grid").record(submission)
    files.write_text(runs / ".launch" / "doctor" / "check.log", "said")
    gone = {".launch/grid/jobs-ended", ".launch/grid/jobs-never-begun", ".launch/doctor"}
    found = clean(runs, "--yes", env=slurm.env)
    assert {name for name in names(found, runs) if name.startswith(".launch/")} == gone
    assert not any((runs / name).exists() for name in gone)
    assert waits.exists()
    slurm.slurm("scancel", held)


def test_reruns_are_cleaned_too_and_nothing_while_a_sweep_submits(run: RunDir) -> None:
    runs = run.path.parent
    shutil.copytree(run.path, runs / "rerun-001" / run.name)
    listed = names(clean(runs), runs)
    assert {name for name in listed if name.startswith("rerun-001/")} == {
        f"rerun-001/{name}" for name in listed if not name.startswith("rerun-001/")
    }
    before = everything(runs)
    cleaning = [sys.executable, ROOT / "launch" / "clean.py", f"--runs-dir={runs}", "--yes"]
    with Ledger(runs / "rerun-001", "grid").submitting(0):
        process = subprocess.Popen(cleaning, env=environment(), stdout=subprocess.DEVNULL)
        time.sleep(2)
        assert before <= everything(runs)
        assert process.poll() is None
    assert process.wait(60) == 0
    assert len(before - everything(runs)) == len(listed)


def test_where_slurm_does_not_answer_nothing_is_removed(run: RunDir) -> None:
    submitted(run, "aaa")
    assert clean(run.path.parent, env={"PATH": "/nonexistent"})["items"] == []


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    assert "no such folder" in clean(tmp_path / "none", code=2)["error"]
