"""`--where KEY=VALUE`: runs by their settings, begun or not."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from diffuse.rundir.directory import RunDir
from diffuse.runtime.errors import UserError
from launch.grids.grid import Grid, load_grid
from launch.grids.ledger import Ledger
from launch.grids.selection import Where
from launch.inspection.run_status import run_statuses
from launch.results import results
from launch.results.results import Result
from launch.slurm import sweep
from launch.slurm.commands import Job

GRID = """
runs:
  - preset: cold/quick
    orientation: [row, col]
    seeds: [1, 2]
    axes: {train.lr: [1e-3, 2e-3], model.channels: [[32, 64], [32, 128]]}
  - {preset: ddpm/quick, seeds: [1]}
"""


@pytest.fixture
def grid(tmp_path: Path) -> Grid:
    path = tmp_path / "grid.yaml"
    path.write_text(GRID)
    return load_grid(str(path))


@pytest.mark.parametrize(
    ("where", "count"),
    [
        ("train.lr=2e-3", 8 + 1),  # the DDPM's own rate, too
        ("train.lr=0.002 process.orientation=row", 4),
        ("model.channels=32,128 seed=1", 4 + 1),
        ("model.channels=[32,64]", 8),
        ("train.lr=1e-3 train.lr=2e-3", 17),
        ("seed=1 seed=2 train.lr=1e-3", 8),
        ("process.prediction=v", 1),
        ("train.ema.gamma=6", 17),
        ("preset=ddpm/quick", 1),
    ],
)
def test_where_keeps_the_runs_that_the_settings_would_not_change(
    grid: Grid, where: str, count: int
) -> None:
    kept = grid.where(Where(where.split()))
    assert len(kept.runs) == count
    assert all(run in grid.runs for run in kept.runs)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("train.lr=3e-3", "--where train.lr=3e-3 matches no run of grid: train.lr is 0.001, 0.002"),
        ("train.lrr=1", "--where: train.lrr: unknown key; allowed: epochs, global_batch, lr"),
        ("train.lr=high", "--where: train.lr: input should be a valid number"),
        ("train.lr", "--where 'train.lr': write KEY=VALUE"),
        ("seed=1 train.lr=3", "matches no run of grid: seed is 1, 2; train.lr is 0.001, 0.002"),
    ],
)
def test_where_that_matches_nothing_is_one_line_with_the_values_that_there_are(
    grid: Grid, where: str, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        grid.where(Where(where.split()))
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_cancel_ends_the_jobs_of_the_runs_with_the_setting_alone(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Ledger(tmp_path, grid.name).note_runs(grid.runs)
    queue = {run.name: [Job(f"7_{k}", "PENDING")] for k, run in enumerate(grid.runs)}
    ended: list[str] = []
    monkeypatch.setattr(sweep, "live_jobs", lambda *_: queue)
    monkeypatch.setattr(sweep.commands, "cancel", ended.extend)
    out = Console(file=io.StringIO())
    where = Where(["train.lr=2e-3"])
    assert sweep.cancel(tmp_path, grid.name, "cold-*", out, where, dry_run=True) == 0
    assert "would cancel 8 jobs, of cold" in out.file.getvalue() and not ended  # type: ignore[attr-defined]
    assert sweep.cancel(tmp_path, grid.name, "cold-*", out, where) == 0
    with_it = [k for k, run in enumerate(grid.runs) if run.config.train.lr == 2e-3]
    assert ended == [f"7_{k}" for k in with_it if grid.runs[k].name.startswith("cold")]
    assert len(ended) == 8
    ended.clear()
    with pytest.raises(UserError, match="grid grid with a job: train"):
        sweep.cancel(tmp_path, grid.name, None, out, Where(["train.lr=3e-3"]))
    assert not ended


def test_status_selects_runs_by_setting_before_they_have_begun(grid: Grid, tmp_path: Path) -> None:
    runs_dir = tmp_path / "runs"
    Ledger(runs_dir, "grid").note_runs(grid.runs)
    begun = grid.runs[0]
    RunDir(runs_dir / begun.name).path.mkdir(parents=True)
    RunDir(runs_dir / begun.name).write_config(begun.config)
    rows = run_statuses(runs_dir, "grid", Where(["train.lr=1e-3", "seed=1"]))
    assert {row.run for row in rows} == {
        run.name for run in grid.runs if (run.config.train.lr, run.config.seed) == (1e-3, 1)
    }
    assert {row.settings for row in rows} == {
        "lr=0.001 channels=[32, 64] seed=1",
        "lr=0.001 channels=[32, 128] seed=1",
    }
    assert [row.run for row in run_statuses(runs_dir, None, Where(["train.lr=1e-3"]))] == [
        begun.name
    ]
    with pytest.raises(UserError, match="no run of grid grid: train"):
        run_statuses(runs_dir, "grid", Where(["train.lr=7"]))


def test_compare_selects_results_by_setting(grid: Grid, tmp_path: Path) -> None:
    found = [
        Result(run.name, RunDir(tmp_path / run.name), config=run.config.model_dump(mode="json"))
        for run in grid.runs
    ]
    unknown = Result("weights.pth", RunDir(tmp_path / "weights.pth"), is_file=True)
    kept = results.chosen([*found, unknown], Where(["train.lr=1e-3", "seed=2"]), "runs")
    assert {(r.config["train"]["lr"], r.seed) for r in kept} == {(1e-3, 2)}
    assert len(kept) == 4


def test_the_notes_of_a_grid_keep_the_runs_of_earlier_sweeps(grid: Grid, tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "grid")
    ledger.note_runs(grid.runs[:2])
    ledger.note_runs(grid.runs[2:3])
    names = [run.name for run in grid.runs[:3]]
    assert ledger.runs() == names
    assert set(ledger.settings()) == set(names)
