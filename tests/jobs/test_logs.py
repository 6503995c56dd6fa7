"""Why a program ended, read from a folder that people and dead nodes write to as well."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from launch.jobs import logs


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "killed by SIGKILL (out of memory?)"),
        (signal.SIGABRT, "killed by SIGABRT (another rank hung? see the logs of all ranks)"),
        (signal.SIGRTMIN + 3, f"killed by signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_an_end_by_any_signal_has_words(number: int, words: str) -> None:
    assert logs.end_by_signal(-number) == words


def test_dangling_links_among_the_logs_are_passed_over(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.logs.mkdir()
    files.write_json(run.logs / "train-7-r00.json", {"started": "2026-01-01", "code": 1})
    (run.logs / "train-7-r00.log").write_text("error: no space\n")
    for name in ("train-8-r00.json", "train-8-r00.log"):
        (run.logs / name).symlink_to(tmp_path / "elsewhere")
    assert logs.final_error(run, "train") == "no space"
    assert logs.newest_log(run) == run.logs / "train-7-r00.log"
