"""Axes of a grid: all combinations of settings, as runs."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from diffuse.config.presets import load_config, parse_set
from diffuse.runtime.errors import UserError
from launch.grids.grid import Overrides, load_grid
from launch.grids.selection import point
from tests.grids.files import write

AXES = """
runs:
  - preset: cold/quick
    orientation: [row, col]
    seeds: [1, 2]
    epochs: [1, 2]
    axes:
      train.lr: [1e-3, 0.002]
      process.order: [random, inside-out]
      model.channels: [[32, 64], [32, 128]]
"""


def test_axes_are_a_product_with_orientations_and_seeds_and_lists_are_values(
    tmp_path: Path,
) -> None:
    runs = load_grid(write(tmp_path, AXES)).runs
    made = [
        (
            (run.orientation, run.config.seed),
            (run.config.train.lr, run.config.process.order, run.config.model.channels),  # type: ignore[union-attr]
        )
        for run in runs
    ]
    seeds = list(itertools.product(("row", "col"), (1, 2)))
    points = list(itertools.product((1e-3, 2e-3), ("random", "inside-out"), ((32, 64), (32, 128))))
    assert made == list(itertools.product(seeds, points))
    assert len({run.name for run in runs}) == len(runs) == 32
    assert {run.epochs for run in runs} == {(1, 2)}


def test_a_point_of_the_axes_is_the_run_that_the_same_settings_make(tmp_path: Path) -> None:
    run = load_grid(write(tmp_path, AXES)).runs[3]
    typed = "train.lr=1e-3 process.order=inside-out model.channels=32,128 seed=1"
    layer = parse_set([*typed.split(), "process.orientation=row"])
    assert run.name == load_config("cold/quick", [layer]).run_name
    assert run.axes == {
        "train.lr": 1e-3,
        "process.order": "inside-out",
        "model.channels": [32, 128],
        "seed": 1,
    }
    assert point(run.axes) == "lr=0.001 order=inside-out channels=[32, 128] seed=1"


def test_the_values_of_an_axis_may_be_several_settings_at_once(tmp_path: Path) -> None:
    axes = "{train: [{lr: 1e-3, global_batch: 64}, {lr: 2e-3, global_batch: 128}]}"
    runs = load_grid(write(tmp_path, f"runs: [{{preset: ddpm/quick, axes: {axes}}}]")).runs
    assert [point(run.axes) for run in runs] == [
        "lr=0.001 global_batch=64",
        "lr=0.002 global_batch=128",
    ]


def test_the_command_line_goes_over_an_axis(tmp_path: Path) -> None:
    layers = (parse_set(["train.lr=0.5"]),)
    runs = load_grid(write(tmp_path, AXES), Overrides(layers=layers)).runs
    assert {run.config.train.lr for run in runs} == {0.5}
    assert len(runs) == 16


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("", "runs[0].axes: write keys with their values, such as train.lr: [1e-4, 2e-4]"),
        ("{}", "runs[0].axes: write keys with their values, such as train.lr: [1e-4, 2e-4]"),
        ("[1]", "runs[0].axes: write keys with their values"),
        ("{train.lr: []}", "runs[0].axes: train.lr: has no values; write keys with their values"),
        ("{train.lr: 1e-4}", "runs[0].axes: train.lr: must be a list of values, such as [1e-4]"),
        ("{train..lr: [1]}", "runs[0].axes: train..lr: no key of a preset"),
        ("{3: [1]}", "runs[0].axes"),
        ("{train.lrr: [1]}", "runs[0].axes: train.lrr: unknown key; allowed: epochs, global_batc"),
        ("{trian.lr: [1]}", "runs[0].axes: trian: unknown key; allowed: preset, seed, process"),
        ("{train.lr: [1, -1]}", "runs[0].axes: train.lr: input should be greater than 0, not -1"),
        ("{process.order: [up]}", "'random', 'inside-out' or 'outside-in', not 'up'"),
        ("{train.epochs: [1, 2]}", "runs[0].axes: train.epochs: is no axis; use epochs"),
        ("{seed: [1, 2]}", "runs[0].axes: seed: is no axis; use seeds"),
        ("{process.orientation: [row]}", "is no axis; use orientation"),
        ("{preset: [cold/unet]}", "is no axis; use another entry of runs"),
        ("{train.lr: [1e-4, 0.0001]}", "train.lr: 1e-4 and train.lr: 0.0001 are the same run"),
        ("{eval.images: [20, 40]}", "are the same run: no two values may be equal, and the wei"),
        (f"{{{', '.join(f'data.{k}: [1, 2]' for k in 'abcdefghijklmnopq')}}}", "more than 100,000"),
    ],
)
def test_bad_axes_are_refused_in_one_line_with_place_and_remedy(
    tmp_path: Path, axes: str, message: str
) -> None:
    text = f"runs: [{{preset: cold/quick, orientation: row, axes: {axes}}}]"
    with pytest.raises(UserError) as caught:
        load_grid(write(tmp_path, text))
    text = str(caught.value)
    assert message in text and "\n" not in text
    assert text.count("grid.yaml") == 1  # the mistake alone, not its consequences
