"""docs/report.md: each command runs, at a small size, and each file that it names comes out."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from diffuse import ROOT
from tests import programs
from tests.programs import TINY

PAGE = (ROOT / "docs" / "report.md").read_text()
COMMANDS = re.findall(r"^    python (.+)$", PAGE, re.MULTILINE)
# The report's sizes, and those of this test.
SMALLER = {
    "--epochs 1-100": "--epochs 1-2",
    "--epochs 1-80": "--epochs 1-2",
    "eval.final_images=10000": "eval.final_images=30",
}
SIZE = (*TINY, "--set=eval.images=20", "--set=samples.images=4", "--set=process.timesteps=20")
LOCAL = ("--cluster=local", "--parallel=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """Where all commands have run that need no file from elsewhere."""
    folder = tmp_path_factory.mktemp("report")
    for text in COMMANDS:
        if "prepare" in text or ".pth" in text:
            continue
        for theirs, ours in SMALLER.items():
            text = text.replace(theirs, ours)
        program, *arguments = shlex.split(text)
        if program == "-m":
            program, *arguments = arguments
        if "sweep" in program:
            size = [s for s in SIZE if "timesteps" not in s or "part1" in text]
            arguments += [*size, *LOCAL]
        if "sample" in program:  # the shell's part
            (run,) = folder.glob(arguments[0])
            arguments[0] = str(run)
        where = {"cwd": folder, "DIFFUSE_DATA": str(data_dir)}
        done = programs.run(program, *arguments, warm=True, **where)
        assert done.returncode == 0, f"{text}: {done.stdout}{done.stderr}"
    return folder


def test_every_file_that_the_page_names_is_made(folder: Path) -> None:
    named = re.findall(r"`((?:runs|thesis)/[^`]+)`", PAGE)
    patterns = {re.sub(r"epoch_\d{4}", "epoch_0002", name) for name in named}
    assert len(patterns) > 25
    missing = sorted(name for name in patterns if not any(folder.glob(name)))
    assert not missing


def test_every_command_that_needs_more_is_known_to_its_program() -> None:
    rest = [text for text in COMMANDS if "prepare" in text or ".pth" in text]
    assert len(rest) >= 4
    for text in rest:
        program, *arguments = shlex.split(text)
        module = arguments[0] if program == "-m" else program
        help_text = programs.run(module, "--help").stdout
        for option in (word for word in arguments if word.startswith("--")):
            assert option in help_text, text


def test_every_figure_and_table_of_the_report_is_on_the_page() -> None:
    figures = [f"1.{k}" for k in range(1, 12)] + [f"2.{k}" for k in range(1, 7)]
    figures += ["3.1", "3.2", "3.3"]
    tables = ["1.1", "1.2", "2.1", "3.1", "3.2", "3.3"]
    for name in [*(f"Figure {n}" for n in figures), *(f"Table {n}" for n in tables)]:
        assert re.search(rf"{re.escape(name)}\b", PAGE), name
