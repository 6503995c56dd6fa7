"""The project's programs as forked children: torch is loaded once, and a start takes milliseconds.

A child runs the program's own file as `__main__`, as `python -m` would; only its imports are there
already. So hundreds of deaths fit into minutes.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import resource
import runpy
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tests.programs import ROOT

WATCHED = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate")


class Hang(AssertionError):
    """A program that did not end in time."""


@dataclass
class Child:
    """A program that runs; its output goes to `log`."""

    pid: int
    log: Path
    code: int | None = None  # negative for a signal, as subprocess has it

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = 300) -> int:
        """Its exit code. Raises Hang where it takes longer; it is then killed."""
        end = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.code = -signal.SIGKILL
                raise Hang(f"no end after {seconds:g} s: {self.said()[-500:]}")
            time.sleep(0.002)
        return code

    def said(self) -> str:
        """Its output."""
        return self.log.read_text(errors="replace")


def start(
    module: str,
    *arguments: str | Path,
    log: Path,
    before: Callable[[], Any] | None = None,
    **env: str,
) -> Child:
    """Fork a child that runs `python -m module arguments`.

    Args:
        before: called in the child before the program; how a fault gets into it.
    """
    pid = os.fork()
    if pid == 0:
        _become(module, list(map(str, arguments)), log, before, env)
    return Child(pid, log)


def finish(module: str, *arguments: str | Path, log: Path) -> None:
    """Run a program to its end, which must be good."""
    child = start(module, *arguments, log=log)
    code = child.wait()
    assert code == 0, f"exit code {code}: {child.said()[-800:]}"


def assert_explained(child: Child, *codes: int) -> None:
    """It ended with one of these exit codes, no traceback, and one line where it failed."""
    said = child.said()
    assert child.code in codes, f"exit code {child.code}, not one of {codes}: {said[-800:]}"
    assert "Traceback" not in said, said[-1500:]
    if child.code:
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, f"{len(errors)} lines of error: {said[-800:]}"


def signal_at_event(number: int, folder: Path, sent: int = signal.SIGKILL) -> Callable[[], None]:
    """Signal the child just before the `number`-th file operation in `folder`."""
    return lambda: _on_event(
        folder, lambda count: os.kill(os.getpid(), sent) if count == number else None
    )


def fail_in_write(size: int) -> Callable[[], None]:
    """Any write that takes a file past `size` bytes fails. The part that fits is written."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def die_in_write(size: int) -> Callable[[], None]:
    """Let the kernel kill the child in the write that takes any file past `size` bytes.

    The part that fits is written: the file is torn at that byte.
    """

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        fail_in_write(size)()

    return limit


def count_events(folder: Path, into: Path) -> Callable[[], None]:
    """Write to `into`, which lies elsewhere, how many events `die_at_event` would see."""
    descriptor = os.open(into, os.O_CREAT | os.O_WRONLY, 0o600)
    return lambda: _on_event(folder, lambda count: os.pwrite(descriptor, b"%9d" % count, 0))


def slow_disk(rng: random.Random) -> Callable[[], None]:
    """Every sync and every rename takes up to 30 ms, as on a busy shared filesystem."""

    def slow() -> None:
        for name in ("fsync", "replace", "rename"):
            setattr(os, name, _delayed(getattr(os, name), rng))

    return slow


def jumping_clock(rng: random.Random) -> Callable[[], None]:
    """The wall clock jumps by up to a day, back or forth, at one reading in three."""

    def jump() -> None:
        true_time, offset = time.time, 0.0

        def told() -> float:
            nonlocal offset
            if rng.random() < 1 / 3:
                offset = rng.uniform(-86_400, 86_400)
            return true_time() + offset

        time.time = told

    return jump


def _delayed(function: Callable[..., Any], rng: random.Random) -> Callable[..., Any]:
    def delayed(*args: Any, **kwargs: Any) -> Any:
        time.sleep(rng.uniform(0, 0.03))
        return function(*args, **kwargs)

    return delayed


def _on_event(folder: Path, act: Callable[[int], Any]) -> None:
    """Call `act(count)` at each operation on a path in `folder`."""
    prefix, counter = str(folder), itertools.count(1)  # one for all threads

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in WATCHED and str(args[0]).startswith(prefix):
            act(next(counter))

    sys.addaudithook(hook)


def _become(
    module: str,
    arguments: list[str],
    log: Path,
    before: Callable[[], Any] | None,
    env: dict[str, str],
) -> NoReturn:
    code = 1
    try:
        os.setpgid(0, 0)  # a terminal's Ctrl-C is for the drill
        log.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        for number in (1, 2):
            os.dup2(descriptor, number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdin = os.fdopen(0, closefd=False)
        sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, errors="backslashreplace")
        os.environ.update(env)
        sys.argv = [module, *arguments]
        os.chdir(ROOT)
        if before is not None:
            before()
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
