"""Results along a setting: tables, charts, and how sure an order over seeds is."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
from scipy import stats

from launch.comparison import charts, page, table
from launch.results.axes import axes, overall
from launch.results.certainty import Sample, sentence, t_tails, welch
from launch.results.grouping import Column, groups
from launch.results.labels import labels, lines
from launch.results.results import Cell, Result
from tests.results.test_labels import figure, results_of

GRID = """
runs:
  - preset: cold/quick
    orientation: [row, col]
    seeds: [1, 2, 3]
    axes: {train.lr: [1e-3, 2e-3, 4e-3], process.order: [random, inside-out]}
"""


def evaluated(found: list[Result], epochs: tuple[int, ...] = (1, 2)) -> list[Result]:
    """FID of 100 less for each epoch, plus 10^4 times the rate, plus the seed."""
    for result, epoch in itertools.product(found, epochs):
        fid = 1e4 * result.config["train"]["lr"] + float(result.seed or 0) - 100 * epoch + 300
        fid += 50 * (result.config["process"].get("order") == "random")
        result.cells.append(Cell(result.name, epoch, figure(fid=fid), loss=0.1))
        result.losses += [(epoch - 0.5, fid / 100), (float(epoch), fid / 200)]
    return found


def column_of(found: list[Result]) -> Column:
    (column,) = [column for group in groups(found) for column in group.columns()]
    return column


@pytest.fixture
def found(tmp_path: Path) -> list[Result]:
    return evaluated(results_of(tmp_path, GRID))


def test_an_axis_holds_all_other_settings_fixed_and_gathers_seeds(found: list[Result]) -> None:
    by_order, by_rate = sorted(axes(column_of(found), found), key=lambda axis: axis.key)
    assert (by_order.key, by_rate.key) == ("process.order", "train.lr")
    assert by_rate.values == ("0.001", "0.002", "0.004") and by_rate.epoch == 2
    assert set(by_rate.lines) == {
        f"cold/quick {orientation} order={order}"
        for orientation in ("row", "col")
        for order in ("random", "inside-out")
    }
    line = by_rate.lines["cold/quick row order=random"]
    assert sorted(line["0.002"].values) == pytest.approx([171, 172, 173])
    assert line["0.002"].deviation == pytest.approx(1)
    assert set(by_order.lines) == {
        f"cold/quick {orientation} lr={lr}"
        for orientation in ("row", "col")
        for lr in ("0.001", "0.002", "0.004")
    }
    assert by_rate.numbers == {"0.001": 0.001, "0.002": 0.002, "0.004": 0.004}
    assert by_order.numbers is None


def test_settings_that_always_change_together_are_one_axis(tmp_path: Path) -> None:
    both = "{train: [{lr: 1e-3, global_batch: 64}, {lr: 2e-3, global_batch: 256}]}"
    grid = f"runs: [{{preset: ddpm/quick, axes: {both}, seeds: [1, 2]}}]"
    found = evaluated(results_of(tmp_path, grid))
    (axis,) = axes(column_of(found), found)
    assert set(axis.key.split(", ")) == {"train.lr", "train.global_batch"}
    assert len(axis.values) == 2 and axis.numbers is None


def test_runs_that_lack_the_last_epoch_are_compared_at_the_last_that_most_have(
    found: list[Result],
) -> None:
    first = found[0]
    first.cells.append(Cell(first.name, 9, figure(fid=1.0)))
    assert {axis.epoch for axis in axes(column_of(found), found)} == {2}


def test_without_an_axis_the_best_run_is_held_against_the_next(tmp_path: Path) -> None:
    grid = "runs: [{preset: ddpm/quick, seeds: [1, 2]}, {preset: ddpm/unet, seeds: [1, 2]}]"
    found = evaluated(results_of(tmp_path, grid))
    assert axes(column_of(found), found) == []
    assert overall(column_of(found), found).startswith("FID at epoch 2: ddpm/")
    (alone,) = evaluated(results_of(tmp_path, "runs: [{preset: ddpm/quick}]"))
    assert overall(column_of([alone]), [alone]) == ""


def test_welch_is_the_test_of_scipy() -> None:
    draw = random.Random(0)
    for n, m, shift in itertools.product((2, 3, 7), (2, 5), (0.0, 1.0, 5.0)):
        a = [draw.gauss(0, 1) for _ in range(n)]
        b = [draw.gauss(shift, 3) for _ in range(m)]
        theirs = stats.ttest_ind(a, b, equal_var=False).pvalue
        assert welch(a, b) == pytest.approx(theirs, rel=1e-4)
    assert t_tails(12.706, 1) == pytest.approx(0.05, rel=1e-3)
    assert (welch([1, 1], [1, 1]), welch([1, 1], [2, 2])) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        ((10.0, 11.0, 12.0), (30.0, 31.0, 33.0), ("A (11 ± 1, 3 seeds) is better than B (31",)),
        ((10.0, 20.0), (16.0, 26.0), ("A (15 ± 7.1, 2 seeds) is ahead of B", "may be chance", "%")),
        ((10.0,), (30.0, 31.0), ("A (10, 1 seed) is ahead of B", "seeds are missing")),
        ((10.0,), (30.0,), ("A (10, 1 seed) is ahead of B (30, 1 seed)", "seeds are missing")),
    ],
)
def test_how_sure_an_order_is_is_one_plain_sentence(
    a: tuple[float, ...], b: tuple[float, ...], words: tuple[str, ...]
) -> None:
    text = sentence([Sample("B", b), Sample("A", a)])
    assert all(word in text for word in words), text
    assert text.endswith(".") and "\n" not in text
    assert sentence([Sample("A", a), Sample("B", b)], lower_is_better=False).startswith("B")


def test_seeds_are_one_line_with_a_band_in_charts(found: list[Result]) -> None:
    assert len(set(lines(found).values())) == len(found) // 3
    curve = charts.mean_curve([[(1, 10.0), (2, 20.0)], [(1, 14.0), (2, 20.0)], [(1, 12.0)]])
    assert curve.points == [(1, 12.0), (2, 20.0)]
    assert curve.band == [(1, 10.0, 14.0), (2, 20.0, 20.0)]
    tied = charts.mean_curve([[(0.0, 0.0), (2.0, 2.0)], [(0.0, 2.0), (4.0, 6.0)]], tie=True)
    assert tied.points == [(0.0, 1.0), (2.0, 3.0)]
    assert charts.mean_curve([[(1, 5.0)]]).band == []


def test_a_run_without_its_like_keeps_its_own_line(tmp_path: Path) -> None:
    found = results_of(tmp_path, "runs: [{preset: ddpm/quick}, {preset: ddpm/unet}]")
    assert lines(found) == labels(found)


def test_page_terminal_and_json_have_the_axes(found: list[Result], tmp_path: Path) -> None:
    html = page.render(found, tmp_path, "page")
    assert "By train.lr: FID at epoch 2" in html and "By process.order" in html
    assert 'aria-label="FID over train.lr' in html and "FID over process.order" not in html
    assert "Bands: one standard deviation over seeds." in html
    assert "0.001 (162 ± 1, 3 seeds) is better than 0.002" in html
    (axis,) = [a for a in table.as_plain(found, tmp_path)["axes"] if a["key"] == "train.lr"]
    assert sorted(axis["fid"]["cold/quick row order=random"]["0.001"]) == [161, 162, 163]
    (column,) = [column for group in groups(found) for column in group.columns()]
    assert len(table.evidence(column, found)) == 4 + 6
