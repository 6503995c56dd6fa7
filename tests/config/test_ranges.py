"""Epochs and seeds as ranges, wherever they are written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from diffuse.config import ranges
from diffuse.config.presets import load_config, parse_set
from diffuse.runtime.errors import UserError
from launch.grids.grid import load_grid


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("20,40", [20, 40]),
        ("1-4", [1, 2, 3, 4]),
        ("5-20:5", [5, 10, 15, 20]),
        ("5-18:5", [5, 10, 15]),
        ("1, 20-40:10,7", [1, 20, 30, 40, 7]),
        ("3-3", [3]),
    ],
)
def test_a_range_has_both_ends(text: str, numbers: list[int]) -> None:
    assert ranges.parse(text) == numbers


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        (range(1, 101), "1-100"),
        (range(5, 101, 5), "5-100:5"),
        ([1, *range(5, 101, 5)], "1,5-100:5"),
        ([1, 2, 3, 20, 40], "1-3,20,40"),
        ([1, 2], "1,2"),
        ([20, 40, 60, 80], "20-80:20"),
        ([], ""),
    ],
)
def test_sorted_numbers_are_shown_in_short(numbers: list[int], text: str) -> None:
    assert ranges.shown(numbers) == text


def test_shown_numbers_are_read_back() -> None:
    draw = random.Random(0)
    for _ in range(300):
        numbers = sorted(draw.sample(range(1, 40), draw.randint(1, 39)))
        assert ranges.parse(ranges.shown(numbers)) == numbers


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("5-", "'5-': write numbers and ranges"),
        ("7-3", "'7-3' ends before it begins; write 3-7"),
        ("0-5", "write numbers from 1"),
        ("1-9:0", "step of 0"),
        ("1-1000000000", "more than 100,000"),
        ("1-60000,1-60000", "more than 100,000"),
        *((text, "write numbers") for text in ("", "a", "1,,2", "0", "-1", "1.5", "9" * 5000)),
    ],
)
def test_what_is_no_list_of_epochs_is_refused_in_one_line(text: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        ranges.typed(text, "--epochs", smallest=1)
    assert problem in str(caught.value) and str(caught.value).startswith("--epochs")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["'1,5-20:5'", "[1, 5-20:5]", "[1, 5, 10, 15, 20]"])
def test_settings_and_grids_take_the_same_ranges(tmp_path: Path, text: str) -> None:
    epochs = (1, 5, 10, 15, 20)
    config = load_config("ddpm/default", [parse_set([f"eval.at_epochs={text}"])])
    assert config.eval.at_epochs == epochs
    path = tmp_path / "grid.yaml"
    path.write_text(f"runs: [{{preset: ddpm/default, epochs: {text}, seeds: 0-2}}]")
    runs = load_grid(str(path)).runs
    assert [run.epochs for run in runs] == [epochs] * 3
    assert [run.config.seed for run in runs] == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "problem"), [("5-", "write numbers"), ("0-5", "from 1|equal to 1")]
)
def test_a_wrong_range_in_a_setting_names_its_key(text: str, problem: str) -> None:
    with pytest.raises(UserError, match=rf"--set: eval\.at_epochs.*({problem})"):
        load_config("ddpm/default", [parse_set([f"eval.at_epochs={text}"])])
