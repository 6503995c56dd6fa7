"""Signals set a flag; the training loop reads it at a step boundary, saves, and leaves.

SIGUSR2 is Slurm's warning (`--signal`; also submitit's choice, since NCCL uses USR1), SIGTERM its
preemption, SIGINT a person's Ctrl-C. Handlers are idempotent: containers deliver a signal twice.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

from diffuse.runtime.errors import Interrupted


class StopRequest:
    """Remembers the first signal that asked this process to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self.interrupts = 0

    def install(self) -> StopRequest:
        """Take over SIGUSR2, SIGTERM and SIGINT."""
        for number in (signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = self.signal or signal.Signals(number)
        if number == signal.SIGINT:
            self.interrupts += 1
            if self.interrupts == 2:
                # A second Ctrl-C means now; the last checkpoint stands.
                os._exit(130)
            if self.interrupts == 1 and os.isatty(2):
                os.write(2, b"\nstopping at the next step; Ctrl-C again to stop at once\n")

    def end(self, message: str) -> Interrupted:
        """The exception with which an interrupted program ends: 130 for Ctrl-C, else 75."""
        error = Interrupted(message)
        if self.signal == signal.SIGINT:
            error.exit_code = 130
        return error
