"""A bar on a terminal, lines in a file, whatever the environment says of colours."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from tests import programs

METER = """
from diffuse.runtime.console import Meter
with Meter("work", 2) as meter:
    meter.update(1, "facts")
    meter.say("a line")
print(meter.bar is not None)
"""
WATCH = """
from diffuse.runtime.console import screen
from launch.local.display import SweepDisplay
with SweepDisplay(screen(), "work").shown() as watch:
    watch.say("a line")
    print(watch.live is not None)
"""


@pytest.mark.parametrize("program", [METER, WATCH], ids=["meter", "watch"])
@pytest.mark.parametrize("setting", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_a_file_gets_lines_and_no_bar(program: str, setting: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=programs.environment(TERM="xterm", **{setting: "1"}),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.stdout.split("\n"), done.stderr) == (["a line", "False", ""], "")


@pytest.mark.parametrize("program", [METER, WATCH], ids=["meter", "watch"])
@pytest.mark.parametrize(
    ("setting", "shown"), [({"TERM": "xterm"}, "True"), ({"TERM": "dumb"}, "False")]
)
def test_a_terminal_gets_a_bar_where_it_can_be_drawn_over(
    program: str, setting: dict[str, str], shown: str
) -> None:
    master, slave = pty.openpty()
    env = programs.environment(**setting)
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        env.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=env, stdin=slave, stdout=slave, stderr=slave
    )
    os.close(slave)
    printed = b""
    try:
        while chunk := os.read(master, 4096):
            printed += chunk
    except OSError:  # Linux's end of a terminal
        pass
    assert process.wait(60) == 0
    assert shown.encode() in printed
