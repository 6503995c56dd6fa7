"""W&B mirrors a run: the real client, offline and against a loopback server, read back."""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from diffuse.rundir.attempt import Attempt
from diffuse.rundir.cost import Cost
from diffuse.rundir.directory import RunDir
from diffuse.rundir.evaluations import Evaluation, Figure
from diffuse.runtime import files, hdf5
from diffuse.tracking import mirror, rows
from launch.inspection.run_status import run_statuses
from tests import programs
from tests.programs import TINY
from tests.rundir.test_evaluations import CONTENT
from tests.wandb_server import KEY, Manners, server

OFFLINE = ("--preset=cold/default_28", "--orientation=row", *TINY, "--set=tracking.mode=auto")
ONLINE = (*OFFLINE, "--set=tracking.mode=online")
EVALUATION = Evaluation.model_validate(CONTENT)


def train(
    runs_dir: Path,
    data_dir: Path,
    *arguments: str,
    epochs: int = 2,
    ranks: int = 1,
    said: str = "",
    **env: str,
) -> RunDir:
    """Train to the end, to be told `said`; no W&B key or server but those in `env`."""
    done = programs.run(
        "diffuse.train",
        *arguments,
        f"--epochs={epochs}",
        f"--runs-dir={runs_dir}",
        f"--data-dir={data_dir}",
        ranks=ranks,
        **env,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert KEY not in done.stdout + done.stderr
    run = programs.only_run(runs_dir)
    assert not left_behind(run)
    return run


def left_behind(run: RunDir) -> list[psutil.Process]:
    """Processes that still work on the run: the mirror, or the client's own, started by it."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE:
            try:
                env = process.environ()
            except psutil.Error:
                continue
            words = " ".join(process.info["cmdline"] or []) + env.get("WANDB_CACHE_DIR", "")
            if str(run.path) in words:
                found.append(process)
    return found


def records(log: Path) -> list[dict[str, Any]]:
    """What W&B's own reader finds in a log."""
    read = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    done = subprocess.run(read, capture_output=True, text=True, env=programs.environment())
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def logs(run: RunDir) -> list[Path]:
    return sorted(run.path.glob("wandb/offline-run-*/run-*.wandb"))


def history(log: Path) -> list[dict[str, Any]]:
    return [r["history"]["item"] for r in records(log) if r["type"] == "history"]


def column(rows: list[dict[str, Any]], key: str) -> list[Any]:
    return [row[key] for row in rows if key in row]


def lines_sent(run: RunDir) -> list[int]:
    """The lines of metrics.jsonl that W&B has something to hear of."""
    told = ("step", "speed", "epoch", "samples", "evaluation")
    lines = run.metrics_path.read_text().splitlines()
    return [n for n, line in enumerate(lines) if json.loads(line)["event"] in told]


@pytest.fixture(scope="module", autouse=True)
def nobody() -> Iterator[None]:
    """No key of whoever runs the tests, also for mirrors that this process starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NETRC", os.devnull)
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> RunDir:
    """A run that was trained, resumed to more epochs, and evaluated, without key or network."""
    runs_dir = tmp_path_factory.mktemp("offline")
    train(runs_dir, data_dir, *OFFLINE, DIFFUSE_GRID="a-grid")
    run = train(runs_dir, data_dir, *OFFLINE, epochs=3, DIFFUSE_GRID="a-grid")
    files.write_json(run.evaluation_path(3), EVALUATION.plain())
    event = {"event": "evaluation", "epoch": 3, "step": 24, "figures": len(EVALUATION.figures)}
    Attempt(run, run.attempt_number()).append_metrics([event])
    mirror.mirror_once(run, run.config(), "evaluate")
    return run


def test_an_offline_run_holds_every_loss_rate_and_norm(offline: RunDir) -> None:
    rows = [row for log in logs(offline) for row in history(log)]
    for key in ("loss", "lr", "grad_norm"):
        assert column(rows, f"train/{key}") == [e[key] for e in offline.metrics("step")]
    speeds = [e["images_per_s"] for e in offline.metrics("speed")]
    assert column(rows, "train/images_per_s") == pytest.approx(speeds)
    assert min(speeds) > 0
    assert column(rows, "epoch/loss") == [e["loss"] for e in offline.metrics("epoch")]
    for k in range(4):
        quartile = [e["loss_by_t_quartile"][k] for e in offline.metrics("epoch")]
        assert column(rows, f"epoch/loss_t_quartile_{k + 1}") == quartile


def test_an_offline_run_holds_the_pictures(offline: RunDir) -> None:
    for log, epochs in zip(logs(offline), ((1, 2), (3,)), strict=False):
        for path, epoch in zip(column(history(log), "samples.path"), epochs, strict=True):
            drawn = offline.samples / f"epoch_{epoch:04d}.png"
            assert (log.parent / "files" / path).read_bytes() == drawn.read_bytes()


def test_an_offline_run_holds_the_degradation(offline: RunDir) -> None:
    first, *_ = logs(offline)
    (path,) = column(history(first), "degradation.path")
    drawn = offline.plots / "degradation.png"
    assert (first.parent / "files" / path).read_bytes() == drawn.read_bytes()


def test_the_images_drawn_from_the_prior_are_a_picture_of_their_evaluation(
    offline: RunDir, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    name = "samples/epoch_0003_unconditional_seed_0.h5"
    hdf5.write(tmp_path / name, {"images": np.full((70, 28, 28), 7, np.uint8)}, {})
    drawn = a_figure(9.0, sampler="unconditional", source="prior")
    content = EVALUATION.model_copy(
        update={"figures": [*EVALUATION.figures, drawn.model_copy(update={"samples": name})]}
    )
    files.write_json(run.evaluation_path(3), content.plain())
    line = {"event": "evaluation", "epoch": 3}
    row = rows.row_of(run, offline.config(), line)
    picture = row["samples_unconditional"]
    assert picture.shape == (8 * 30 + 2, 8 * 30 + 2)
    assert (picture == 7).sum() == 64 * 28 * 28
    (tmp_path / name).write_bytes(b"damaged")
    assert rows.row_of(run, offline.config(), line)["eval/fid/unconditional"] == 9.0


def test_an_offline_run_holds_the_load_of_the_trainers_machine(offline: RunDir) -> None:
    first, *_ = logs(offline)
    loads = [r["stats"]["item"] for r in records(first) if r["type"] == "stats"]
    assert any("memory_percent" in load for load in loads)


def test_an_offline_run_holds_the_figures_beside_their_floors(offline: RunDir) -> None:
    (row,) = [r for r in history(logs(offline)[-1]) if any(k.startswith("eval/") for k in r)]
    assert row["epoch"] == 3
    assert {key: value for key, value in row.items() if key.startswith("eval/")} == {
        "eval/fid/algorithm2": 123.5,
        "eval/kid/algorithm2": 0.25,
        "eval/is/algorithm2": 4.5,
        "eval/mse/algorithm2": 0.5,
        "eval/psnr/algorithm2": 12.0,
        "eval/ssim/algorithm2": 0.75,
        "eval/fid/floor of the originals": 25.0,
        "eval/kid/floor of the originals": 0.0,
        "eval/is/floor of the originals": 9.25,
    }


def test_an_offline_run_holds_its_cost_at_each_epoch_and_beside_the_figures(
    offline: RunDir,
) -> None:
    cost = Cost.of(offline.lines(), 64)
    rows = [row for log in logs(offline) for row in history(log)]
    costs = {k: s.core_hours for k, s in cost.at_epoch.items()}
    assert column(rows, "cost/core_hours") == pytest.approx([costs[k] for k in (1, 2, 3, 3)])
    assert column(rows, "cost/images_seen") == [512 * epoch for epoch in (1, 2, 3, 3)]
    assert 0 < costs[1] < costs[2] < costs[3] < cost.total.core_hours
    assert not column(rows, "cost/gpu_hours")
    (row,) = [row for row in rows if "eval/fid/algorithm2" in row]
    assert row["cost/network_calls/algorithm2"] == 28 and row["cost/images_seen"] == 3 * 512
    for log, attempts in zip(logs(offline), (1, 2, 2), strict=True):
        lines = [line for line in offline.lines() if line["attempt"] <= attempts]
        changes = [r["summary"]["update"] for r in records(log) if r["type"] == "summary"]
        last = [change["cost/core_hours"] for change in changes if "cost/core_hours" in change][-1]
        assert last == pytest.approx(Cost.of(lines, 64).total.core_hours), "the end counts, too"


def test_the_table_of_runs_has_columns_to_sort_and_pin(offline: RunDir) -> None:
    changes = [r["summary"]["update"] for r in records(logs(offline)[-1]) if r["type"] == "summary"]
    columns = {key: value for change in changes for key, value in change.items()}
    assert {key: columns[key] for key in columns if key.startswith(("best/", "final/"))} == {
        "best/fid": 123.5,
        "best/fid_epoch": 3,
        "final/epoch": 3,
        "final/images": 1000,
        "final/fid": 123.5,
        "final/fid_floor": 25.0,
        "final/kid": 0.25,
        "final/is": 4.5,
    }


def a_figure(fid: float, **protocol: Any) -> Figure:
    (figure,) = EVALUATION.figures
    about = figure.protocol.model_copy(update=protocol)
    return figure.model_copy(update={"fid": fid, "protocol": about})


def test_the_best_is_of_one_protocol_and_the_final_is_by_the_most_images(offline: RunDir) -> None:
    found = [
        Evaluation(epoch=1, figures=[a_figure(50.0), a_figure(1.0, seed=7)]),
        Evaluation(epoch=2, figures=[a_figure(30.0), a_figure(2.0, sampler="direct")]),
        Evaluation(epoch=3, figures=[a_figure(40.0), a_figure(35.0, images=5000)]),
        Evaluation(epoch=4, figures=[a_figure(3.0, convention="the report's own protocol")]),
    ]
    columns = rows.summary(offline.config(), found)
    assert (columns["best/fid"], columns["best/fid_epoch"]) == (30.0, 2)
    assert (columns["final/fid"], columns["final/epoch"], columns["final/images"]) == (
        35.0,
        3,
        5000,
    )
    assert rows.summary(offline.config(), found[3:]) == {}


def test_figures_of_two_protocols_never_share_a_curve(offline: RunDir) -> None:
    usual = rows.usual_protocol(offline.config(), [EVALUATION])
    others = [
        a_figure(1.0, seed=1),
        a_figure(1.0, images=5000),
        a_figure(1.0, extractor_sha256="x"),
    ]
    others.append(a_figure(1.0, sampler="direct"))
    keys = [set(rows.figure_row(f, usual)) for f in [*EVALUATION.figures, *others]]
    shared = set.union(*(a & b for a, b in itertools.combinations(keys, 2)))
    assert all("floor of the originals" in key for key in shared)  # of both samplers the same
    assert "eval/fid/algorithm2" in keys[0]
    assert "eval/fid/direct" in keys[-1]


def test_a_resumed_run_is_one_id_with_our_own_axes(offline: RunDir) -> None:
    found = logs(offline)
    assert len(found) == 3  # two trainings, one evaluation
    for log in found:
        begun = next(r["run"] for r in records(log) if r["type"] == "run")
        assert begun["run_id"] == offline.name
        assert begun["run_group"] == "a-grid"
        assert begun["job_type"] == "train", "one type, whichever program mirrored it last"
        assert set(begun["tags"]) == {"averaging", "cold/default_28", "row"}
        config = begun["config"]["update"]
        assert config["process"]["orientation"] == "row"
        assert config["manifest"]["environment"]["torch"]
        axes = [r["metric"] for r in records(log) if r["type"] == "metric"]
        steps = {
            axis.get("glob_name") or axis.get("name"): axis.get("step_metric") for axis in axes
        }
        assert steps["train/*"] == "step"
        assert steps["eval/*"] == "epoch"
    # each line of metrics.jsonl once, and W&B's own step never goes back
    assert [r["_step"] for log in found for r in history(log)] == lines_sent(offline)


def test_a_killed_trainer_takes_the_mirror_with_it(tmp_path: Path, data_dir: Path) -> None:
    arguments = [*OFFLINE, "--epochs=1000", f"--runs-dir={tmp_path}", f"--data-dir={data_dir}"]
    process = programs.start("diffuse.train", *arguments)
    try:
        wait_for(lambda: any(tmp_path.glob("*/wandb/offline-run-*/*.wandb")))
        run = programs.only_run(tmp_path)
        assert left_behind(run)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_for(lambda: not left_behind(run))
    (log,) = logs(run)
    assert column(history(log), "train/loss")[:5] == programs.losses(run)[:5]


def test_an_interrupted_run_goes_on_under_the_same_id(tmp_path: Path, data_dir: Path) -> None:
    arguments = [*OFFLINE, "--epochs=4", f"--runs-dir={tmp_path}", f"--data-dir={data_dir}"]
    arguments.append("--set=data.limit=4096")
    process = programs.start("diffuse.train", *arguments)
    metrics = lambda: list(tmp_path.glob("*/metrics.jsonl"))  # noqa: E731
    wait_for(lambda: bool(metrics()) and len(metrics()[0].read_bytes()) > 2000)
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 75
    run = train(tmp_path, data_dir, *OFFLINE, "--set=data.limit=4096", epochs=4)
    rows = [row for log in logs(run) for row in history(log)]
    assert [row["_step"] for row in rows] == lines_sent(run)
    assert column(rows, "train/loss") == programs.losses(run)


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> RunDir:
    """The run of the same config without W&B."""
    runs_dir = tmp_path_factory.mktemp("untracked")
    return train(runs_dir, data_dir, *OFFLINE, "--set=tracking.mode=disabled")


def test_no_key_delays_nothing_and_costs_one_line(untracked: RunDir, tmp_path: Path) -> None:
    assert not (untracked.path / "wandb").exists()
    run = RunDir(shutil.copytree(untracked.path, tmp_path / untracked.name))
    config = run.config()
    auto = config.tracking.model_copy(update={"mode": "auto"})
    start = time.monotonic()
    started = mirror.Mirror(run, config.model_copy(update={"tracking": auto}))
    assert time.monotonic() - start < 2  # what training waits for at its start
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
            (place / "wandb" / "online.json").unlink()  # W&B says what it has
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


def test_kept_checkpoints_become_artifacts_on_request(tmp_path: Path, data_dir: Path) -> None:
    run = train(tmp_path, data_dir, *OFFLINE, "--set=tracking.log_checkpoints=true")
    (log,) = logs(run)
    (artifact,) = [r["artifact"] for r in records(log) if r["type"] == "artifact"]
    assert "epoch-2" in artifact["aliases"]
    assert artifact["name"] == run.name


def sync(runs_dir: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "launch/sync.py", f"--runs-dir={runs_dir}", *arguments]
    return subprocess.run(
        command,
        cwd=programs.ROOT,
        env=programs.environment(**env),
        capture_output=True,
        text=True,
        timeout=600,
    )


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, text: str) -> None:
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert text in line


def assert_no_key(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
