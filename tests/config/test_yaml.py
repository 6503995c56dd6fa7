"""YAML that means something else than it seems to is refused, with its file, line and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffuse.config.presets import load_config, parse_set, parse_yaml, read_config
from diffuse.runtime.errors import UserError
from launch.grids.cluster import choose
from launch.grids.grid import load_grid

READERS = {
    "preset": lambda path: load_config(str(path)),
    "run's config": read_config,
    "grid": lambda path: load_grid(str(path)),
    "cluster": lambda path: choose(str(path)),
}


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("a: 1\nb: 2\na: 1\n", "line 3: a: stands twice, first in line 1; keep one"),
        ("a: {ema: 0.9, ema: null}\n", "line 1: a.ema: stands twice, first in line 1"),
        ('b:\n  c: 1\n  "c": 2\n', "line 3: b.c: stands twice, first in line 2"),
        (
            "runs:\n- preset: x\n  epochs: [1]\n  epochs: [2]\n",
            "line 4: runs[0].epochs: stands twice, first in line 3",
        ),
        ("a: &a {b: 1}\nc: {<<: *a, <<: *a}\n", "line 2: c.<<: stands twice"),
        ("a:\n- 1\n- - b: 010\n", "line 3: a[1][0].b: 010 is 8 in YAML; write it without"),
        ("x: -0_17\n", "line 1: x: -0_17 is -15 in YAML"),
        ("x: [00]\n", "line 1: x[0]: 00 is 0 in YAML"),
        ("a:\n  010: x\n", "line 2: a: 010 is 8 in YAML"),
    ],
)
def test_what_misleads_is_refused_wherever_yaml_is_read(
    kind: str, text: str, place: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        READERS[kind](path)
    assert f"mine.yaml {place}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["010", "[1, 010]", "{a: 1, a: 2}"])
def test_what_misleads_is_refused_on_the_command_line(value: str) -> None:
    with pytest.raises(UserError, match=r"^--set 'train.epochs=.*(is 8 in YAML|stands twice)"):
        parse_set([f"train.epochs={value}"])


def test_what_is_clear_is_read_as_before() -> None:
    text = """
    base: &base {x: 1, y: 2}
    over: {<<: *base, x: 3}
    both: {<<: [*base, {y: 4, z: 5}]}
    numbers: [0, -1, 0x10, 1_000, 0.10, 2:00:00, "010"]
    """
    assert parse_yaml(text) == {
        "base": {"x": 1, "y": 2},
        "over": {"x": 3, "y": 2},
        "both": {"x": 1, "y": 2, "z": 5},
        "numbers": [0, -1, 16, 1000, 0.1, "2:00:00", "010"],
    }
