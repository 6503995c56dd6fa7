"""W&B mirrors a run: the real client, offline, read back."""

from __future__ import annotations

import itertools
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffuse.rundir.cost import Cost
from diffuse.rundir.directory import RunDir
from diffuse.rundir.evaluations import Evaluation, Figure
from diffuse.runtime import files, hdf5
from diffuse.tracking import rows
from tests import programs
from tests.tracking.runs import (
    EVALUATION,
    OFFLINE,
    column,
    history,
    left_behind,
    lines_sent,
    logs,
    records,
    train,
    wait_for,
)

pytestmark = pytest.mark.usefixtures("nobody")


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
    assert column(rows, "cost/images_seen") == [128 * epoch for epoch in (1, 2, 3, 3)]
    assert 0 < costs[1] < costs[2] < costs[3] < cost.total.core_hours
    assert not column(rows, "cost/gpu_hours")
    (row,) = [row for row in rows if "eval/fid/algorithm2" in row]
    assert row["cost/network_calls/algorithm2"] == 28 and row["cost/images_seen"] == 3 * 128
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
    arguments.append("--set=data.limit=1024")
    process = programs.start("diffuse.train", *arguments)
    metrics = lambda: list(tmp_path.glob("*/metrics.jsonl"))  # noqa: E731
    wait_for(lambda: bool(metrics()) and len(metrics()[0].read_bytes()) > 2000)
    process.send_signal(signal.SIGTERM)
    assert process.wait(600) == 75
    run = train(tmp_path, data_dir, *OFFLINE, "--set=data.limit=1024", epochs=4)
    rows = [row for log in logs(run) for row in history(log)]
    assert [row["_step"] for row in rows] == lines_sent(run)
    assert column(rows, "train/loss") == programs.losses(run)


def test_kept_checkpoints_become_artifacts_on_request(tmp_path: Path, data_dir: Path) -> None:
    run = train(tmp_path, data_dir, *OFFLINE, "--set=tracking.log_checkpoints=true")
    (log,) = logs(run)
    (artifact,) = [r["artifact"] for r in records(log) if r["type"] == "artifact"]
    assert "epoch-2" in artifact["aliases"]
    assert artifact["name"] == run.name
