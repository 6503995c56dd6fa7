"""tests/warm_python.py is to its caller what a python is that runs the program itself."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests import forks, programs

# A program of ours, by its name, that says it has begun, and waits.
WAITS = """
import os, signal, sys, time
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))
print(os.getpid(), flush=True)
time.sleep(600)
"""


def start(folder: Path, text: str, *arguments: str, **how: object) -> subprocess.Popen[str]:
    """Start `diffuse.program`, whose text this is."""
    (folder / "diffuse").mkdir()
    (folder / "diffuse" / "program.py").write_text(text)
    command = [forks.warm_python(), "-u", "-m", "diffuse.program", *arguments]
    out = subprocess.PIPE
    env = {**programs.environment(), "PYTHONPATH": str(folder), "MINE": "\udce9"}
    how = {"cwd": folder, **how}
    return subprocess.Popen(command, env=env, stdout=out, stderr=out, text=True, **how)  # type: ignore[call-overload]


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_program_has_its_arguments_variables_folder_umask_streams_and_exit_code(
    tmp_path: Path,
) -> None:
    text = (
        "import os, sys\n"
        "print(sys.argv[1:], os.environb[b'MINE'], os.getcwd(), oct(os.umask(0)))\n"
        "print(sys.stdin.read(), file=sys.stderr)\n"
        "sys.exit(7)\n"
    )
    run = start(tmp_path, text, "-u", "a b", cwd="/", umask=0o027, stdin=subprocess.PIPE)
    out, err = run.communicate("typed")
    assert out == "['-u', 'a b'] b'\\xe9' / 0o27\n"
    assert (err, run.returncode) == ("typed\n", 7)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGUSR2, 75), (signal.SIGTERM, -15), (signal.SIGKILL, -9)]
)
def test_a_signal_reaches_the_program_and_its_end_the_caller(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = start(tmp_path, WAITS)
    assert run.stdout
    program = psutil.Process(int(run.stdout.readline()))
    run.send_signal(number)
    assert run.wait(60) == code
    wait_until(lambda: not program.is_running())


def test_a_program_that_is_killed_ends_its_process_so(tmp_path: Path) -> None:
    run = start(tmp_path, WAITS)
    assert run.stdout
    os.kill(int(run.stdout.readline()), signal.SIGKILL)
    assert run.wait(60) == -signal.SIGKILL


def test_a_signal_that_its_caller_ignores_is_ignored(tmp_path: Path) -> None:
    text = "import signal\nprint(signal.getsignal(signal.SIGTERM) is signal.SIG_IGN)\n"
    run = start(tmp_path, text, preexec_fn=lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN))
    assert run.communicate()[0] == "True\n"


def test_a_program_may_take_up_what_its_caller_ignored(tmp_path: Path) -> None:
    """As the programs of job scripts do, which ignore signals until then."""
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN)}
    run = start(tmp_path, WAITS, **ignore)
    assert run.stdout
    run.stdout.readline()
    run.send_signal(signal.SIGUSR2)
    assert run.wait(60) == 75
