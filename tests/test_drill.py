"""A small part of the drill with every `make test`; all of it: `make drill`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs
from tests.drill.__main__ import PARTS
from tests.programs import ROOT

HERE = ("kills", "signals", "storage", "damage", "submission", "W&B", "endurance")
ELSEWHERE = {"jobs"}  # each of its faults is a test in tests/test_interruption.py


def test_each_part_of_the_drill_is_tried_here_or_elsewhere() -> None:
    assert {*HERE, *ELSEWHERE} == {*PARTS}


@pytest.mark.parametrize("part", HERE)
def test_nothing_is_lost(part: str, tmp_path: Path, data_dir: Path) -> None:
    arguments = ["--share=0", f"--data-dir={data_dir}"]
    arguments += [part, "--seed=1", f"--folder={tmp_path}"]
    done = programs.run("tests.drill", *arguments)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "left out" not in done.stdout or os.environ.get("CI") != "true", done.stdout


def test_a_lost_result_is_reported_and_ends_the_drill_with_1(
    tmp_path: Path, data_dir: Path
) -> None:
    script = (
        "from pathlib import Path\n"
        "from tests.drill import __main__ as drill\n"
        "def broken(drill):\n"
        "    with drill.trial('a fault'):\n"
        "        raise AssertionError('a result is gone')\n"
        "drill.PARTS['kills'] = broken\n"
        f"folders = {{'folder': Path('{tmp_path}'), 'data_dir': Path('{data_dir}')}}\n"
        "drill.main(['kills'], seed=1, share=1, minutes=0, **folders)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=programs.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "a result is gone" in done.stdout and "1 lost" in done.stderr
