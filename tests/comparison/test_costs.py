"""Quality beside cost: hours, images and network calls of each run, and charts over them."""

from __future__ import annotations

import csv
import io
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from rich.console import Console

from diffuse.rundir.directory import RunDir
from diffuse.rundir.plots import look, own_style
from diffuse.runtime import files
from launch.comparison import costs, export, page, series, table
from launch.comparison.charts import STYLE, Chart, Curve
from launch.grids.grid import load_grid
from launch.results import results
from launch.results.grouping import groups
from launch.results.labels import labels, lines
from launch.results.results import Result

GRID = """
runs:
  - {preset: ddpm/quick, seeds: 0-1}
  - {preset: cold/unet_noiseless, orientation: row}
"""
GPU = {"device": "NVIDIA H100", "world_size": 2, "threads": None}
CPU = {"device": "AMD EPYC", "world_size": 1, "threads": 4}
STEPS = 90  # of an epoch


def figure(sampler: str, source: str, fid: float) -> dict[str, Any]:
    scores = {"fid": fid, "kid": 12.3, "kid_std": 1.0, "is": 8.9, "is_std": 0.1}
    protocol = {"extractor": "classifier", "real_images": 60_000, "images": 1000, "seed": 0}
    return {
        **scores,
        "floor": {**scores, "fid": 4.5},
        "protocol": {**protocol, "sampler": sampler, "source": source},
    }


def trained(run: RunDir, *environments: dict[str, Any], hours: float) -> None:
    """An epoch of `hours` in each environment, by an attempt of its own."""
    for number, environment in enumerate(environments, start=1):
        about, step = {"attempt": number, "epoch": number}, STEPS * number
        speed = {"event": "speed", "images_per_s": 1500.0, "seconds": hours * 3600}
        events = [
            {"event": "start", "step": step - STEPS, **environment},
            {"event": "step", "step": step, "loss": 0.1},
            {**speed, "step": step},
            {"event": "epoch", "step": step, "loss": 0.1},
        ]
        files.append_lines(run.metrics_path, [json.dumps({**about, **e}) for e in events])


@pytest.fixture
def found(tmp_path: Path) -> list[Result]:
    """Two DDPMs on GPUs, by three samplers, and cold diffusion on cores, by two."""
    (tmp_path / "grid.yaml").write_text(GRID)
    for k, planned in enumerate(load_grid(str(tmp_path / "grid.yaml")).runs):
        run = RunDir(tmp_path / "runs" / planned.name)
        run.path.mkdir(parents=True)
        run.write_config(planned.config)
        is_ddpm = planned.config.process.kind == "ddpm"
        trained(run, *[GPU if is_ddpm else CPU] * 2, hours=1.0 + k)
        for epoch in (1, 2):
            made = [
                figure("direct", "test images", 90.0),
                figure("algorithm2", "test images", 50.0),
            ]
            if is_ddpm:
                made = [
                    figure(f"ddim-{steps}", "noise", 100.0 / epoch - steps + k)
                    for steps in ((10, 20) if epoch == 2 else (10,))
                ]
                made += [figure("dpm-10-eta3", "noise", 40.0 / epoch)] if epoch == 2 else []
            files.write_json(run.evaluation_path(epoch), {"epoch": epoch, "figures": made})
    return results.read_all(results.find(tmp_path / "runs", []))


def of_kind(found: list[Result], kind: str) -> list[Result]:
    return sorted((r for r in found if r.kind == kind), key=lambda r: r.seed or 0)


def test_each_run_has_its_device_hours_images_and_rate(found: list[Result]) -> None:
    head, *rows = costs.table(found, labels(found))
    assert head == ["run", "device", "GPU hours", "core hours", "images seen", "images/s"]
    shown = {name: rest for name, *rest in rows}
    images = f"{2 * STEPS * 128:,}"
    assert shown["ddpm/quick, seed 0"] == ["2 x NVIDIA H100", "4.00", "-", images, "1,500"]
    assert shown["cold/unet_noiseless row"] == ["AMD EPYC, 4 cores", "-", "24.00", images, "1,500"]
    for result in found:
        result.cost = None
    assert costs.table(found, labels(found)) == []


def test_the_estimate_of_a_sweep_stands_beside_the_real_hours(found: list[Result]) -> None:
    first, second = of_kind(found, "ddpm")
    noted = {first.name: {"steps": 4 * STEPS, "seconds": 1.5 * 2 * 2 * 3600}}
    files.write_json(first.dir.path.parent / ".launch/mine/estimate.json", {"runs": noted})
    head, *rows = costs.table(found, labels(found))
    assert head[2:5] == ["GPU hours", "core hours", "estimated"]
    shown = {name: rest[1:4] for name, *rest in rows}
    names = labels(found)
    assert shown[names[first.name]] == ["4.00", "-", "6.00"], "for the half that it has trained"
    assert shown[names[second.name]] == ["8.00", "-", "-"]


def test_a_line_of_the_csv_has_the_cost_up_to_its_epoch_and_its_samplers(
    found: list[Result],
) -> None:
    rows = list(csv.DictReader(io.StringIO(table.as_csv(found))))
    shown = {(r["preset"], r["run_seed"], r["epoch"], r["sampler"]): r for r in rows}
    first, last = (shown["ddpm/quick", "1", epoch, "ddim-10"] for epoch in "12")
    assert (float(first["gpu_hours"]), float(last["gpu_hours"])) == (4.0, 8.0)
    assert (int(first["images_seen"]), int(last["images_seen"])) == (STEPS * 128, 2 * STEPS * 128)
    assert (first["device"], float(first["core_hours"])) == ("2 x NVIDIA H100", 0.0)
    calls = {r["sampler"]: r["network_calls"] for r in rows}
    assert calls == {
        "ddim-10": "10",
        "ddim-20": "20",
        "dpm-10-eta3": "10",
        "direct": "1",
        "algorithm2": "28",
    }
    plain = table.as_plain(found, Path())
    assert {f["network_calls"] for f in plain["figures"]} == {1, 10, 20, 28}
    assert {c["gpu_hours"] for c in plain["costs"].values()} == {0.0, 4.0, 8.0}


def test_the_mean_over_seeds_stands_at_their_mean_hours(found: list[Result]) -> None:
    ddpm = of_kind(found, "ddpm")
    (column,) = [c for g in groups(ddpm) for c in g.columns() if c.sampler == "ddim-10"]
    ((unit, drawn),) = series.over_hours(column, lines(ddpm)).items()
    assert unit == "GPU hours"
    (curve,) = drawn.values()
    assert curve.points == [(3.0, 90.5), (6.0, 40.5)], "hours of one seed are twice the other's"
    assert [x for x, _, _ in curve.band] == [3.0, 6.0]


@pytest.mark.parametrize("hours", [(0.06747, 0.0695), (1.0, 1.00001), (7.0, 7.0), (1.0, 9.0)])
def test_the_numbers_of_hours_never_run_into_each_other(hours: tuple[float, float]) -> None:
    lines = {str(k): Curve([(x, 20.0)]) for k, x in enumerate(hours)}
    looks = {name: look(int(name)) for name in lines}
    with own_style(**STYLE):
        figure = Figure(figsize=(5.4, 3.3), layout="constrained")
        axes = figure.subplots()
        Chart(lines, "FID", looks, xlabel="core hours").draw(axes)
        figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert len(boxes) > 1
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_hours_of_two_kinds_of_device_never_share_a_chart(found: list[Result]) -> None:
    ddpm = of_kind(found, "ddpm")
    ddpm[0].dir.metrics_path.unlink()
    trained(ddpm[0].dir, GPU, CPU, hours=1.0)
    moved, _ = again = results.read_all([r.dir.path for r in ddpm])
    assert moved.cost and moved.cost.total.hours == {"GPU hours": 2.0, "core hours": 4.0}
    (column,) = [c for g in groups(again) for c in g.columns() if c.sampler == "ddim-10"]
    ((unit, drawn),) = series.over_hours(column, labels(again)).items()
    hours = [[x for x, _ in curve.points] for curve in drawn.values()]
    assert (unit, sorted(hours)) == ("GPU hours", [[2.0], [4.0, 8.0]])


def test_a_line_over_network_calls_joins_samplers_that_differ_in_their_steps(
    found: list[Result],
) -> None:
    by_source: dict[str, list[results.Cell]] = {}
    for result in found:
        for cell in result.cells:
            by_source.setdefault(cell.source, []).append(cell)
    drawn = series.over_calls(by_source["noise"], lines(found))
    assert {name: curve.points for name, curve in drawn.items()} == {
        "ddim": [(10.0, 40.5), (20.0, 30.5)],  # of the second epoch, at which there are several
        "dpm-eta3": [(10.0, 20.0)],
    }
    drawn = series.over_calls(by_source["test images"], lines(found))
    assert {name: curve.points for name, curve in drawn.items()} == {
        "direct": [(1.0, 90.0)],
        "algorithm2": [(28.0, 50.0)],
    }
    alone = [cell for cell in by_source["noise"] if cell.sampler == "ddim-10"]
    assert series.over_calls(alone, lines(found)) == {}
    both = series.over_calls(by_source["noise"], labels(found))
    assert "ddpm/quick, seed 1, ddim" in both, "two runs have a line each"


def test_page_terminal_and_thesis_show_cost_beside_quality(
    found: list[Result], tmp_path: Path
) -> None:
    html = page.render(found, tmp_path, "page")
    for label in ("FID over GPU hours", "FID over core hours", "FID over network calls an image"):
        assert f'aria-label="{label}' in html
    assert html.count("real: test images") > 4, "each chart has its floor"
    assert "<td>cold/unet_noiseless row</td>" in html.partition('id="cost"')[2]
    out = Console(file=io.StringIO(), width=100)
    table.show(found, tmp_path, out)
    said = out.file.getvalue()  # type: ignore[attr-defined]
    assert "GPU hours" in said and "2 x NVIDIA H100" in said and "calls" in said
    names = {path.name for path in export.write(tmp_path / "thesis", found)}
    assert {"costs.tex", "fid_GPU-hours_classifier-1000-ddim-10.pdf"} <= names
    assert "fid_network-calls_classifier-1000-noise.svg" in names
    assert r"2 x NVIDIA H100 & 4.00 & - &" in (tmp_path / "thesis" / "costs.tex").read_text()
    caption = (tmp_path / "thesis" / "fid_classifier-1000-ddim-10.txt").read_text()
    assert "Bands: one standard deviation over seeds." in caption
    assert "PolyCollection" in (tmp_path / "thesis" / "fid_classifier-1000-ddim-10.svg").read_text()


def test_metrics_that_are_not_as_written_cost_their_run_alone(found: list[Result]) -> None:
    damaged = found[0].dir
    files.append_lines(damaged.metrics_path, ['{"event": "speed", "attempt": 1, "step": 5}'])
    first, second = results.read_all([r.dir.path for r in found[:2]])
    assert first.cost is None and first.cells and any("damaged" in p for p in first.problems)
    assert second.cost is not None
