"""Daemons as children of this process, in the foreground, and waiting with a deadline."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def wait_until(condition: Callable[[], T], seconds: float, event: str, pause: float = 0.1) -> T:
    """The first true value of `condition`; RuntimeError names `event` after `seconds`.

    Args:
        pause: between two looks, in seconds; longer where a look starts a command.
    """
    end = time.monotonic() + seconds
    while True:
        if value := condition():
            return value
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:.0f} s in vain for {event}")
        time.sleep(pause)


def succeeds(command: Sequence[str | Path], env: dict[str, str]) -> bool:
    """Whether `command` answers within 5 s with exit code 0."""
    try:
        done = subprocess.run(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=5,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


class Daemon:
    """One program that runs until it is stopped; it can be started again."""

    def __init__(
        self, name: str, command: Sequence[str | Path], log: Path, env: dict[str, str]
    ) -> None:
        self.name, self.command, self.log, self.env = name, command, log, env
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it, out of reach of a terminal's Ctrl-C."""
        if self.is_running:
            return
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self, condition: Callable[[], bool], seconds: float = 40) -> None:
        """Wait for `condition`; RuntimeError with the log's end where the daemon dies before."""

        def ready_or_dead() -> bool:
            return not self.is_running or condition()

        wait_until(ready_or_dead, seconds, f"{self.name} (see {self.log})")
        if not self.is_running:
            end = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} died:\n{end}")

    def stop(self, seconds: float = 10) -> None:
        """Ask it to end, and end it after `seconds`."""
        if self.process is None:
            return
        if self.is_running:
            self.process.terminate()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """kill -9, as a node that loses its power."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)


def search_path() -> str:
    """PATH with the folders where daemons are."""
    return os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
