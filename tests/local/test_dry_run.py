"""Looking before a sweep: help, plan and batch scripts, without torch and without a trace."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from diffuse.config.schema import Config
from tests.local.sweeps import PAIR, SWEEP, sweep, write
from tests.programs import ROOT, environment


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
