"""The sweep on local processes, run as a user runs it."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from joblib import cpu_count

from diffuse.config.schema import Config
from diffuse.rundir.directory import RunDir
from launch.jobs.gpus import visible_gpus
from tests import programs
from tests.programs import ROOT, TINY, assert_same_training, environment, read_json

SWEEP = ROOT / "launch" / "sweep.py"
PAIR = """
runs:
  - {preset: ddpm/default, epochs: [1, 2]}
  - {preset: cold/default_28, orientation: row, epochs: [1, 2]}
"""
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


def sweep(*arguments: str | Path, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return programs.run("launch/sweep.py", *arguments, cwd=cwd, **env)


def local(grid: Path, runs: Path, data_dir: Path, *more: str) -> list[str | Path]:
    """Arguments of a small sweep on local processes."""
    place = ["--cluster", "local", "--runs-dir", runs, "--data-dir", data_dir]
    return ["--grid", grid, *place, *TINY, "--set=samples.images=4", "--no-evaluate", *more]


def write(folder: Path, text: str, name: str = "grid") -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return path


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


@pytest.mark.parametrize("arguments", [["--help"], ["--grid", "part2", "--dry-run"]])
def test_looking_imports_no_torch(arguments: list[str]) -> None:
    code = f"""
import runpy, sys
sys.argv = ["sweep.py", *{arguments!r}]
try:
    runpy.run_path({str(SWEEP)!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
heavy = {{"torch", "numpy", "h5py", "matplotlib", "wandb", "submitit"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(), cwd="/")


@pytest.mark.parametrize("program", sorted(p.name for p in (ROOT / "launch").glob("*.py")))
def test_help_imports_nothing_that_takes_long(program: str) -> None:
    """So that it answers within 0.3 s; a busy machine's clock is no test of that."""
    if "typer.Typer(" not in (ROOT / "launch" / program).read_text():
        return
    code = f"""
import runpy, sys
sys.argv = ["x", "--help"]
try:
    runpy.run_path({str(ROOT / "launch" / program)!r}, run_name="__main__")
except SystemExit as end:
    assert end.code == 0, end.code
slow = {{"torch", "numpy", "matplotlib", "wandb", "pydantic", "submitit", "rich", "jinja2"}}
assert not slow & set(sys.modules), slow & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(), cwd="/")


@pytest.mark.parametrize("columns", ["80", "100", "120"])
def test_a_plan_fits_a_terminal_and_its_epochs_are_ranges(tmp_path: Path, columns: str) -> None:
    arguments = ("--grid=all", "--dry-run", "--cluster=local", "--epochs=1-100")
    ended = sweep(*arguments, cwd=tmp_path, COLUMNS=columns)
    lines = ended.stdout.splitlines()
    assert max(map(len, lines)) <= int(columns)
    (run,) = [line.split() for line in lines if line.startswith("cold-more_capacity-row-")]
    assert run[1:] == ["new", "1-100"]


def test_a_dry_run_from_anywhere_shows_the_cells_and_writes_nothing(tmp_path: Path) -> None:
    ended = sweep("--grid", "part2", "--dry-run", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "24 cells in 6 runs, 0 done; 6 training jobs: 6 new" in ended.stdout
    assert "cold-default_7-col-" in ended.stdout
    assert list(tmp_path.iterdir()) == []


def test_json_is_one_object_with_runs_and_cells(tmp_path: Path) -> None:
    arguments = ["--grid", "part1", "--dry-run", "--json", "--seeds", "0,1", "--epochs", "2,4"]
    ended = sweep(*arguments, "--only", "ddpm-default-*", cwd=tmp_path)
    plan = json.loads(ended.stdout)
    assert set(plan) == {"runs", "cells", "jobs"}
    assert [run["seed"] for run in plan["runs"]] == [0, 1]
    assert {run["state"] for run in plan["runs"]} == {"new"}
    names = [run["name"] for run in plan["runs"]]
    cells = [(cell["run"], cell["epoch"]) for cell in plan["cells"]]
    assert cells == [(name, epoch) for name in names for epoch in (2, 4)]


def test_a_dry_run_as_json_has_the_merged_settings_of_every_run(tmp_path: Path) -> None:
    text = "runs: [{preset: cold/unet, orientation: row, set: {train: {lr: 1e-3, epochs: 7}}}]"
    grid = write(tmp_path, text)
    arguments = ["--grid", grid, "--dry-run", "--json", "--set=train.lr=4e-4", "--seeds=3"]
    (run,) = json.loads(sweep(*arguments, cwd=tmp_path).stdout)["runs"]
    settings = Config.model_validate(run["settings"])
    assert settings.run_name == run["name"]
    assert (settings.train.lr, settings.train.epochs, settings.seed) == (4e-4, 7, 3)
    assert settings.train.optimizer == "muon", "the preset's"
    assert settings.data.limit is None, "the default"


CLUSTER = """
kind: slurm
partition: a-partition
time: 150
gpu_type: a100
nodes: 2
memory_gb: 16
array_parallelism: 2
"""


def test_a_dry_run_for_a_cluster_shows_its_jobs_with_resources_and_dependencies(
    tmp_path: Path,
) -> None:
    grid = write(tmp_path, PAIR + "  - {preset: ddpm/light, epochs: [1], cluster: {time: 30}}\n")
    cluster = write(tmp_path, CLUSTER, "site")
    arguments = ["--grid", grid, "--cluster", cluster, "--dry-run", "--runs-dir", tmp_path / "runs"]
    ended = sweep(*arguments, COLUMNS="80")
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    jobs = {line.split()[0]: line for line in lines if re.match(r"\d\d-", line)}
    assert list(jobs) == ["01-train", "02-evaluate", "03-train", "04-evaluate", "05-report"]
    facts = " ".join(jobs["02-evaluate"].split())
    assert "2 a-partition 2h30m 2 x a100:1 01-train, each" in facts
    facts = " ".join(jobs["04-evaluate"].split())
    assert "1 a-partition 30m00s 2 x a100:1 03-train" in facts
    assert " ".join(jobs["05-report"].split()).startswith("05-report 1 a-partition 2h30m none all")
    assert not (tmp_path / "runs").exists()

    plain = json.loads(sweep(*arguments, "--json").stdout)
    assert [job["job"] for job in plain["jobs"]] == list(jobs)
    assert plain["jobs"][3]["after"] == ["03-train"]
    assert plain["jobs"][3]["cluster"]["time"] == 30
    assert plain["jobs"][0]["runs"] == [run["name"] for run in plain["runs"][:2]]
    assert "script" not in plain["jobs"][0]


def test_the_batch_scripts_are_shown_and_bring_the_folders_wandb_settings(tmp_path: Path) -> None:
    """`wandb offline` writes them where it is typed; jobs start elsewhere."""
    grid, cluster = write(tmp_path, PAIR), write(tmp_path, CLUSTER, "site")
    (tmp_path / "wandb").mkdir()
    settings = "[default]\nmode = offline\nbase_url = http://own.example:8080\n"
    (tmp_path / "wandb" / "settings").write_text(settings)
    arguments = ["--grid", grid, "--cluster", cluster, "--runs-dir", "runs"]
    before = sorted(tmp_path.rglob("*"))
    ended = sweep(*arguments, "--dry-run", "--show-script", cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    train, evaluate, report = ended.stdout.split("# ---- ")[1:]
    for script in (train, evaluate, report):
        assert "#SBATCH --partition=a-partition" in script
        assert "export WANDB_MODE=offline\n" in script
        assert "export WANDB_BASE_URL=http://own.example:8080\n" in script
    assert "#SBATCH --array=0-1%2" in train and "#SBATCH --time=150" in train
    assert "#SBATCH --dependency='aftercorr:<id of 01-train>'" in evaluate
    assert "#SBATCH --dependency='afterany:<id of 01-train>:<id of 02-evaluate>'" in report
    online = sweep(*arguments, "--dry-run", "--show-script", cwd=tmp_path, WANDB_MODE="online")
    assert "export WANDB_MODE=online\n" in online.stdout, "a variable wins, as with the client"
    assert sorted(tmp_path.rglob("*")) == before
    refused = sweep(*arguments, "--show-script", cwd=tmp_path)
    assert (refused.returncode, "goes with --dry-run" in refused.stderr) == (2, True)


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
    arguments = local(write(tmp_path, PAIR), runs, data_dir, "--parallel", "2")
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
