"""The sweep on local processes, run as a user runs it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from joblib import cpu_count

from diffuse.rundir.directory import RunDir
from launch.jobs.gpus import visible_gpus
from tests import programs
from tests.local.sweeps import PAIR, SWEEP, local, sweep, write
from tests.programs import ROOT, assert_same_training, environment, read_json

SLOW = """
runs:
  - {preset: ddpm/default, epochs: [40]}
  - {preset: cold/default_28, orientation: [row, col], epochs: [40]}
"""


def start(*arguments: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(SWEEP), *map(str, arguments)],
        cwd=cwd,
        env=environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Any, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def trainings(sweep_pid: int) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(sweep_pid).children(recursive=True):
        try:
            if "diffuse.train" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a zombie, which waits for a slow PID 1, does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def states(runs: Path) -> dict[str, str]:
    return {
        path.parent.name: read_json(path).get("state", "") for path in runs.glob("*/status.json")
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--grid", "part3"], "unknown grid 'part3'; allowed: all, part1, part2, quick"),
        (["--grid", "no/such.yaml"], "no/such.yaml: not found"),
        (["--grid", "part1", "--set", "lr=1"], "--set: lr: unknown key"),
        (["--grid", "part1", "--set", "train.lr"], "write KEY=VALUE"),
        (["--grid", "part1", "--set", "train.lr=-1"], "--set: train.lr: input should be greater"),
        (["--grid", "part2", "--set", "process.orientation=up"], "should be 'row' or 'col'"),
        (["--grid", "part1", "--epochs", "0"], "--epochs '0'"),
        (["--grid", "part1", "--seeds", "one"], "--seeds 'one'"),
        (["--grid", "part1", "--only", "cold*"], "--only 'cold*' matches no run"),
        (["--grid", "part1", "--device", "tpu"], "--device: system.device: input should be"),
        (["--grid", "part1", "--cluster", "moon"], "unknown cluster 'moon'; allowed: local"),
        (["--grid", "part1", "--cluster-set", "tim=1"], "--cluster-set: tim: unknown key"),
        (["--grid", "part1", "--parallel", "0"], "--parallel"),
        (["--grid", "part1", "--data-dir", "nowhere"], "nowhere/mnist.h5: not found; stage it"),
        ([], "--grid"),
    ],
)
def test_bad_input_is_one_line_and_exit_2_and_writes_nothing(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    cluster = [] if "--cluster" in arguments else ["--cluster", "local"]
    ended = sweep(*arguments, *cluster, cwd=tmp_path)
    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr and ended.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_runs_dir_that_cannot_be_written_is_named(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "file").touch()
    ended = sweep(*local(write(tmp_path, PAIR), tmp_path / "file" / "runs", data_dir))
    assert ended.returncode == 1
    assert "file/runs: cannot be written" in ended.stderr and ended.stderr.count("\n") == 1


def test_a_sweep_trains_then_has_nothing_to_do_then_extends(tmp_path: Path, data_dir: Path) -> None:
    runs = tmp_path / "runs"
    pictures = ("--set=samples.at_epochs=2", "--set=samples.images=4")
    arguments = local(write(tmp_path, PAIR), runs, data_dir, "--parallel=2", *pictures)
    first = sweep(*arguments, "--json")
    assert first.returncode == 0, first.stderr
    done = json.loads(first.stdout)
    assert {run["outcome"] for run in done["runs"]} == {"done"}
    assert {cell["state"] for cell in done["cells"]} == {"done"}
    assert all(Path(cell["checkpoint"]).is_file() for cell in done["cells"])
    cores = cpu_count()
    for run in done["runs"]:
        directory = RunDir(Path(run["path"]))
        manifest = read_json(directory.manifest_path)
        assert manifest["environment"]["threads"] == max(1, cores // 2)
        assert f"{directory.samples / 'epoch_0002.png'}" in first.stderr
        assert list(directory.logs.glob("train-*.log"))
    assert not list((runs / ".launch").rglob("*.pkl"))

    again = sweep(*arguments)
    assert again.returncode == 0 and "4 done; no training jobs" in again.stdout
    assert all(RunDir(Path(run["path"])).attempt_number() == 1 for run in done["runs"])

    look = sweep(*arguments, "--epochs", "2,3", "--dry-run")
    assert look.stdout.count("extend 2 -> 3") == 2
    longer = sweep(*arguments, "--epochs", "2,3", "--only", "ddpm-*")
    assert longer.returncode == 0 and "extend 2 -> 3" in longer.stdout
    assert RunDir(Path(done["runs"][0]["path"])).has_epoch(3)


def test_evaluations_too_are_on_the_device_asked_for(tmp_path: Path, data_dir: Path) -> None:
    one = "runs: [{preset: ddpm/default, epochs: [1]}]"
    arguments = local(write(tmp_path, one), tmp_path / "runs", data_dir)
    trained = sweep(*arguments)
    assert trained.returncode == 0, trained.stderr
    judged = sweep(*arguments, "--evaluate", "--device", "cuda", CUDA_VISIBLE_DEVICES="")
    assert judged.returncode == 1
    assert "--device cuda: torch sees no GPU here" in judged.stdout


def test_a_failing_cell_is_named_with_its_log_and_stops_no_other(
    tmp_path: Path, data_dir: Path
) -> None:
    grid = write(
        tmp_path,
        """
runs:
  - {preset: ddpm/default, epochs: [1], set: {train: {lr: 1.0e+36}}}
  - {preset: cold/default_28, orientation: row, epochs: [1]}
""",
    )
    runs = tmp_path / "runs"
    ended = sweep(*local(grid, runs, data_dir), SLURM_JOB_ID="7")  # as in a user's allocation
    assert ended.returncode == 1
    (log,) = runs.glob("ddpm-*/logs/train-*.log")
    assert f"log: {log}" in ended.stdout
    assert "the loss became" in ended.stdout
    assert sorted(states(runs).values()) == ["done", "failed"]


def test_ctrl_c_leaves_runs_that_end_bitwise_as_if_nothing_had_happened(
    tmp_path: Path, data_dir: Path
) -> None:
    runs, grid = tmp_path / "runs", write(tmp_path, SLOW)
    more = ["--parallel", "2"]
    arguments = local(grid, runs, data_dir, *more)
    process = start(*arguments, CUDA_VISIBLE_DEVICES="3,5")  # no such GPUs: torch takes the CPU
    wait_for(lambda: list(states(runs).values()) == ["running"] * 2)
    gpus = {child.environ()["CUDA_VISIBLE_DEVICES"] for child in trainings(process.pid)}
    assert gpus == {"3", "5"}

    second = sweep(*arguments)
    assert second.returncode == 1
    assert f"being swept in {runs} by process {process.pid}" in second.stderr

    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "2 interrupted, 1 left of 3 runs" in out
    assert not any(map(is_alive, children))
    assert list(states(runs).values()) == ["interrupted"] * 2

    only = ["--only", "ddpm-*"]
    assert "resume at epoch" in sweep(*arguments, *only, "--dry-run").stdout
    assert sweep(*arguments, *only).returncode == 0
    assert sweep(*local(grid, tmp_path / "whole", data_dir, *more, *only)).returncode == 0
    (stopped,), (whole,) = (
        [RunDir(path) for path in folder.glob("ddpm-*")] for folder in (runs, tmp_path / "whole")
    )
    assert stopped.attempt_number() == 2 and whole.attempt_number() == 1
    assert_same_training(stopped, whole, 40)


def test_a_second_ctrl_c_kills_at_once(tmp_path: Path, data_dir: Path) -> None:
    runs, grid = tmp_path / "runs", write(tmp_path, SLOW)
    process = start(*local(grid, runs, data_dir, "--only", "ddpm-*", "--epochs", "600"))
    (training,) = wait_for(lambda: states(runs) and trainings(process.pid))
    training.suspend()  # it will not save in time
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None and is_alive(training)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=600)
    assert process.returncode == 130 and not is_alive(training)
    look = sweep(*local(grid, runs, data_dir, "--only", "ddpm-*", "--epochs", "600", "--dry-run"))
    assert "resume at epoch" in look.stdout


def test_a_killed_sweep_frees_its_lock_and_its_trainings_are_left_alone(
    tmp_path: Path, data_dir: Path
) -> None:
    runs, grid = tmp_path / "runs", write(tmp_path, SLOW)
    arguments = local(grid, runs, data_dir, "--only", "ddpm-*", "--epochs", "600")
    process = start(*arguments)
    (training,) = wait_for(lambda: states(runs) and trainings(process.pid))
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    try:
        again = sweep(*arguments)
        assert again.returncode == 75
        assert f"running (process {training.pid})" in again.stdout
    finally:
        for child in family:
            child.kill()


def test_gpus_are_those_that_the_environment_or_the_driver_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,MIG-abc")
    assert visible_gpus("auto") == ["2", "MIG-abc"]
    assert visible_gpus("cpu") == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus("auto") == []
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert visible_gpus("auto") == ["0", "1"]
    driver.unlink()
    assert visible_gpus("auto") == []


def test_a_rerun_goes_beside_existing_runs(tmp_path: Path) -> None:
    (tmp_path / "runs" / "rerun-001").mkdir(parents=True)
    ended = sweep(
        "--grid=quick", "--rerun", "--dry-run", "--cluster=local", f"--runs-dir={tmp_path / 'runs'}"
    )
    assert ended.returncode == 0, ended.stderr
    assert f"{tmp_path}/runs/rerun-002" in ended.stdout
    assert "3 training jobs: 3 new" in ended.stdout


def test_an_interrupted_rerun_names_the_command_that_resumes_it(
    tmp_path: Path, data_dir: Path
) -> None:
    again = tmp_path / "runs" / "rerun-001"
    grid = write(tmp_path, SLOW)
    arguments = local(grid, tmp_path / "runs", data_dir, "--only", "ddpm-*", "--epochs", "600")
    process = start(*arguments, "--rerun")
    wait_for(lambda: again.is_dir() and states(again))
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=600)
    assert f"the same command with --runs-dir {again} and without --rerun goes on" in out


def test_a_sweep_from_a_checkout_with_a_colon_in_its_path_is_refused(tmp_path: Path) -> None:
    root = programs.copy_project(tmp_path / "2026-11-25T14:00")
    sweep = [sys.executable, "launch/sweep.py", "--grid=quick", "--cluster=local"]
    data = f"--data-dir={tmp_path}"
    env = environment(PYTHONPATH="")
    done = subprocess.run([*sweep, data], cwd=root, env=env, capture_output=True, text=True)
    assert (done.returncode, "search path takes no folder with a colon" in done.stderr) == (2, True)
    assert len(done.stderr.splitlines()) == 1
    assert not (root / "runs").exists()
