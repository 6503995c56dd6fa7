"""Runs reach W&B: the real client against a loopback server, which may fail in any way."""

from __future__ import annotations

import resource
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from diffuse.config.presets import load_config, parse_set
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.tracking import mirror
from launch.inspection.run_status import run_statuses
from tests import programs
from tests.tracking.runs import (
    OFFLINE,
    ONLINE,
    assert_no_key,
    assert_one_line,
    column,
    history,
    left_behind,
    lines_sent,
    logs,
    sync,
    train,
    wait_for,
)
from tests.wandb_server import KEY, Manners, server

pytestmark = pytest.mark.usefixtures("nobody")


def test_no_key_delays_nothing_and_costs_one_line(untracked: RunDir, tmp_path: Path) -> None:
    assert not (untracked.path / "wandb").exists()
    run = RunDir(shutil.copytree(untracked.path, tmp_path / untracked.name))
    config = run.config()
    auto = config.tracking.model_copy(update={"mode": "auto"})
    start = time.monotonic()
    started = mirror.Mirror(run, config.model_copy(update={"tracking": auto}))
    assert time.monotonic() - start < 2  # training waits for it at its start
    started.close()
    (said,) = mirror.notes(run)
    assert said.startswith("W&B offline: no API key")
    assert not left_behind(run)


@pytest.mark.parametrize("manners", ["error", "hang", "close", "refused key", "nobody there"])
def test_a_server_that_fails_costs_bounded_time_and_no_bit(
    manners: Manners, untracked: RunDir, tmp_path: Path, data_dir: Path
) -> None:
    start = time.monotonic()
    with server(manners) as bad:
        if manners == "nobody there":
            bad.shutdown()
            bad.server_close()
        run = train(tmp_path, data_dir, *ONLINE, "--set=tracking.end_s=15", **bad.environment())
    assert time.monotonic() - start < 60
    programs.assert_same_training(run, untracked, epoch=2)
    assert any("offline" in note for note in mirror.notes(run))
    (log,) = logs(run)  # the fallback
    assert column(history(log), "train/loss") == programs.losses(run)
    assert_no_key(run.path)


@pytest.mark.parametrize("manners", ["error", "hang", "close", "refused key"])
def test_a_server_that_goes_in_mid_run_is_made_up_for_by_the_next_sync(
    manners: Manners, untracked: RunDir, tmp_path: Path, data_dir: Path
) -> None:
    with server() as it:
        it.once_begun = manners
        arguments = (*ONLINE, "--set=tracking.end_s=3")
        run = train(tmp_path, data_dir, *arguments, said="sync.py` sends", **it.environment())
        programs.assert_same_training(run, untracked, epoch=2)
        assert not it.rows.get(run.name)
        it.once_begun, it.manners = None, "good"
        done = sync(tmp_path, **it.environment())
        assert done.returncode == 0, done.stdout + done.stderr
        assert [row["_step"] for row in it.rows[run.name]] == lines_sent(run)
    assert_no_key(run.path)


def test_online_a_run_resumes_under_its_id_and_the_key_is_nowhere(
    tmp_path: Path, data_dir: Path
) -> None:
    with server() as it:
        train(tmp_path, data_dir, *ONLINE, **it.environment())
        run = train(tmp_path, data_dir, *ONLINE, epochs=3, ranks=2, **it.environment())
        assert list(it.runs) == [run.name]
        assert [row["_step"] for row in it.rows[run.name]] == lines_sent(run)
        assert any("samples" in path for path in it.uploads)
        assert any("degradation" in path for path in it.uploads)
        (row,) = run_statuses(tmp_path)
        assert row.wandb == f"{it.url}/me/diffuse/runs/{run.name}"
    assert_no_key(run.path)


def test_offline_runs_are_uploaded_once_in_order(offline: RunDir, tmp_path: Path) -> None:
    with server() as it:
        first = sync(offline.path.parent, **it.environment())
        assert first.returncode == 0, first.stderr
        assert [row["_step"] for row in it.rows[offline.name]] == lines_sent(offline)
        uploaded = list(it.operations)
        again = sync(offline.path.parent, **it.environment())
        assert again.returncode == 0
        assert "nothing to send" in again.stdout
        assert it.operations == uploaded  # W&B was not even asked
        assert all(log.with_name(f"{log.name}.synced").exists() for log in logs(offline))


def test_a_rerun_is_a_run_of_its_own_and_sync_counts_the_rows(
    untracked: RunDir, tmp_path: Path
) -> None:
    """`sweep --rerun` gives the run the same name, in another folder."""
    first, again = tmp_path / untracked.name, tmp_path / "rerun-001" / untracked.name
    for place in first, again:
        run = RunDir(shutil.copytree(untracked.path, place))
        config = run.config()
        offline = config.tracking.model_copy(update={"mode": "offline"})
        run.write_config(config.model_copy(update={"tracking": offline}))
    rows = lines_sent(untracked)
    with server() as it:
        for place in first, again:
            done = sync(place.parent, **it.environment())
            assert done.returncode == 0, done.stdout + done.stderr
            assert f"{untracked.name}: {len(rows)} rows sent" in done.stdout
            (place / "wandb" / "online.json").unlink()  # W&B names its rows
            done = sync(place.parent, **it.environment())
            assert f"{untracked.name}: 0 rows sent" in done.stdout
        sent = {name: [row["_step"] for row in found] for name, found in it.rows.items()}
    assert sent == {untracked.name: rows, f"{untracked.name}-rerun-001": rows}


def test_a_refused_evaluation_writes_nothing_and_begins_no_run(
    offline: RunDir, data_dir: Path
) -> None:
    before = sorted(offline.path.rglob("*"))
    data = f"--data-dir={data_dir}"
    refused = programs.run("diffuse.evaluate", offline.path, "--epoch=99", data)
    assert_one_line(refused, 2, "no checkpoint of epoch 99")
    assert sorted(offline.path.rglob("*")) == before


def test_sync_takes_the_runs_of_a_grid_by_its_file_or_by_the_name_that_sweeps_noted(
    tmp_path: Path,
) -> None:
    grid = tmp_path / "mine.yaml"
    grid.write_text("runs: [{preset: ddpm/quick}]")
    changed, trained, other = (
        load_config(preset, [parse_set([f"seed={seed}"])])
        for preset, seed in (("ddpm/quick", 1), ("ddpm/quick", 75016), ("ddpm/unet", 1))
    )
    for config, begun_by in ((changed, "mine"), (trained, None), (other, "another")):
        run = RunDir(tmp_path / "runs" / config.run_name)
        run.path.mkdir(parents=True)
        run.write_config(config)
        run.metrics_path.write_text('{"event": "start"}\n')
        files.write_json(run.manifest_path, {"grid": begun_by} if begun_by else {})

    def named(grid: str | Path) -> set[str]:
        done = sync(tmp_path / "runs", f"--grid={grid}", "--dry-run")
        assert done.returncode == 0, done.stderr
        return {line.partition(":")[0] for line in done.stdout.splitlines()}

    assert named(grid) == {changed.run_name, trained.run_name}
    assert named("mine") == {changed.run_name}, "whose file is not among the project's grids"


def test_sync_names_the_missing_rows(offline: RunDir, tmp_path: Path) -> None:
    (offline.path / "wandb" / "online.json").unlink(missing_ok=True)
    assert_one_line(sync(offline.path.parent), 1, "no API key")
    gone = sync(offline.path.parent, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_API_KEY=KEY)
    assert_one_line(gone, 1, "does not answer")
    assert_one_line(sync(tmp_path / "nowhere"), 2, "not found")
    assert_one_line(sync(tmp_path), 2, "no run")
    assert_one_line(sync(offline.path.parent, "--grid=part1"), 2, "no run of grid part1")
    with server("refused key") as it:
        refused = sync(offline.path.parent, **it.environment())
    assert refused.returncode == 1
    assert "FAILED" in refused.stdout
    assert KEY not in refused.stdout + refused.stderr


def test_no_room_for_wandb_files_ends_the_mirror_alone(
    untracked: RunDir, tmp_path: Path, data_dir: Path
) -> None:
    """A limit on file sizes stands for a full disk; a file in the folder's place for no access."""
    done = subprocess.run(
        mirror.command(untracked, "train", "offline", limit_s=20),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=mirror.environment() | programs.environment(),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        timeout=600,
    )
    assert done.returncode != 0
    assert "W&B" in done.stdout
    wait_for(lambda: not left_behind(untracked))

    (tmp_path / untracked.name).mkdir()
    (tmp_path / untracked.name / "wandb").write_text("in the way")
    run = train(tmp_path, data_dir, *OFFLINE)
    programs.assert_same_training(run, untracked, epoch=2)
