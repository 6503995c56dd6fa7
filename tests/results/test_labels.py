"""The labels of runs side by side, and their tables on narrow screens."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from diffuse.config.presets import parse_set
from diffuse.rundir.directory import RunDir
from diffuse.rundir.evaluations import Figure
from launch.comparison import table
from launch.grids.grid import Overrides, load_grid
from launch.results import grouping
from launch.results.labels import labels, titles
from launch.results.results import Cell, Result


def results_of(tmp_path: Path, text: str, *sets: str) -> list[Result]:
    """A grid's runs, once for each list of settings, without their folders."""
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    found = {}
    for assignments in sets or ("",):
        layers = (parse_set(assignments.split()),)
        for run in load_grid(str(path), Overrides(layers=layers)).runs:
            config = run.config.model_dump(mode="json")
            found[run.name] = Result(run.name, RunDir(tmp_path / run.name), config=config)
    return list(found.values())


def figure(images: int = 1000, **more: Any) -> Figure:
    scores = {"fid": 123.4, "kid": 12.3, "kid_std": 1.0, "is": 8.9, "is_std": 0.1}
    protocol = {"extractor": "classifier", "real_images": 60_000, "images": images}
    protocol |= {"sampler": "renoise", "source": "test images"}
    return Figure.model_validate({**scores, "floor": scores, "protocol": protocol, **more})


ONE_PRESET = "runs: [{preset: ddpm/quick, seeds: 0-1}]"
GRIDS = [
    ("runs: [{preset: ddpm/quick}, {preset: ddpm/default}]", ("",)),
    (ONE_PRESET, ("train.lr=4e-3", "")),
    (ONE_PRESET, ("train.lr=4e-3", "train.lr=4e-3 train.ema=0.5", "train.ema=0.5", "")),
    (ONE_PRESET, ("train.ema=0.5", "train.ema.gamma=6", "train.ema.gamma=4", "train.ema=null")),
    ("runs: [{preset: cold/quick, orientation: [row, col], seeds: 0-2}]", ("", "process.noise=0")),
    ("runs: [{preset: ddpm/quick, seeds: 0-2}, {preset: cold/quick, orientation: row}]", ("",)),
    (ONE_PRESET, tuple(f"train.lr={lr} train.global_batch={n}" for lr in (1, 2) for n in (8, 9))),
]


@pytest.mark.parametrize(("grid", "sets"), GRIDS)
def test_two_runs_or_two_groups_of_seeds_never_get_one_label(
    grid: str, sets: tuple[str, ...], tmp_path: Path
) -> None:
    found = results_of(tmp_path, grid, *sets)
    assert len(set(labels(found).values())) == len(found)
    title_of = titles(found)
    for a, b in itertools.combinations(found, 2):
        alike = {k: v for k, v in a.config.items() if k != "seed"} == {
            k: v for k, v in b.config.items() if k != "seed"
        }
        assert (title_of[a.name] == title_of[b.name]) is alike, (a.name, b.name)


def test_a_label_says_what_differs_and_nothing_else(tmp_path: Path) -> None:
    found = results_of(tmp_path, "runs: [{preset: ddpm/quick}]", "train.lr=4e-3", "train.lr=2e-3")
    assert list(labels(found).values()) == ["ddpm/quick lr=0.004", "ddpm/quick lr=0.002"]
    found = results_of(tmp_path, ONE_PRESET)
    assert list(labels(found).values()) == ["ddpm/quick, seed 0", "ddpm/quick, seed 1"]
    for result, graph in zip(found, (False, "auto"), strict=True):  # as two versions write it
        result.config["train"]["graph"] = graph
    assert list(labels(found).values()) == ["ddpm/quick, seed 0", "ddpm/quick, seed 1"]
    found = results_of(tmp_path, "runs: [{preset: ddpm/quick}, {preset: ddpm/unet}]")
    assert list(labels(found).values()) == ["ddpm/quick", "ddpm/unet"]


def test_the_means_over_seeds_of_two_settings_have_two_titles(tmp_path: Path) -> None:
    found = results_of(tmp_path, ONE_PRESET, "train.lr=4e-3", "train.lr=2e-3")
    for k, result in enumerate(found):
        result.cells.append(Cell(result.name, 1, figure(fid=float(k)), loss=float(k)))
    (group,) = grouping.groups(found)
    means = grouping.over_seeds(group, found)
    assert [m.title for m in means] == ["ddpm/quick lr=0.004", "ddpm/quick lr=0.002"]
    assert [m.scores["fid"][0] for m in means] == [0.5, 2.5]
    assert [m.scores["loss"][0] for m in means] == [0.5, 2.5]


def test_what_differs_is_compared_within_a_kind(tmp_path: Path) -> None:
    grid = "runs: [{preset: ddpm/quick}, {preset: cold/quick, orientation: [row, col]}]"
    found = results_of(tmp_path, grid, "train.lr=1", "train.lr=2")
    differing = grouping.differences(found)
    assert sorted(differing) == ["process.orientation", "train.lr"]
    assert set(differing["train.lr"].values()) == {"1.0", "2.0"}


@pytest.mark.parametrize("width", [80, 100, 120])
def test_labels_and_figures_are_whole_on_a_narrow_screen(width: int, tmp_path: Path) -> None:
    """A label may wrap; FID, IS and loss are always there."""
    grid = "runs: [{preset: cold/unet_noiseless, orientation: [row, col], seeds: 0-1}]"
    found = results_of(tmp_path, grid, "train.lr=4e-3", "train.lr=2e-3 train.label_dropout=0.25")
    restored = {"mse": 0.0123, "psnr": 12.3, "ssim": 0.56}
    for result in found:
        cell = Cell(result.name, 100, figure(reconstruction=restored), loss=0.0123)
        result.cells.append(cell)
    out = Console(file=io.StringIO(), width=width, highlight=False)
    table.show(found, tmp_path, out)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    rows = [line for line in text.splitlines() if " 100 " in line]
    assert len(rows) >= len(found)
    for row in rows[: len(found)]:
        assert len(row.rstrip()) <= width
        assert "123" in row and "8.90" in row and "0.0123" in row and "…" not in row
    together = " ".join(text.split())
    for label in labels(found).values():
        assert label.split()[0] in together
    assert ("SSIM" in text.partition("left out")[0]) or "left out at this width" in text
