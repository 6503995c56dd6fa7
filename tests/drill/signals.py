"""Signals in odd order and at odd moments: during start-up, in a save, twice, too soon after."""

from __future__ import annotations

import signal
import subprocess
import time

from tests import programs
from tests.drill import program
from tests.drill.drill import Drill
from tests.drill.program import Child, assert_explained
from tests.drill.specimen import Specimen

USR2, TERM, INT, KILL = signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGKILL
ORDERS = {
    "USR2 twice": (USR2, USR2),
    "USR2, then TERM": (USR2, TERM),
    "TERM, then KILL": (TERM, KILL),
    "Ctrl-C": (INT,),
    "Ctrl-C twice": (INT, INT),
    "TERM, Ctrl-C, USR2": (TERM, INT, USR2),
}
ENDS = (0, 75, 130, -KILL)


def run(drill: Drill) -> None:
    """About 80 trainings that are told to stop."""
    specimen = drill.specimen("ddpm")
    for name, numbers in ORDERS.items():
        for k in drill.times(6):
            rng = drill.rng(name, k)
            with drill.trial(name, len(numbers)) as folder:
                (child,) = specimen.start(folder)
                time.sleep(rng.uniform(0, specimen.seconds))
                for number in numbers:
                    child.signal(number)
                    time.sleep(rng.choice((0, 0, rng.uniform(0, 0.1))))
                _assert_stopped(child)
                specimen.assert_survived(folder)
    _in_a_save(drill, specimen)
    _at_start_up(drill, specimen)
    _one_rank_is_told(drill, drill.specimen("ddpm", ranks=2))


def _assert_stopped(child: Child) -> None:
    child.wait()
    if child.code in (-KILL, -TERM, -USR2):
        return  # killed, or Python had not taken the signal over yet: nothing is said
    if child.code == 130 and not child.said().count("error: "):
        return  # Ctrl-C twice
    assert_explained(child, *ENDS)


def _in_a_save(drill: Drill, specimen: Specimen) -> None:
    """The signal comes between the temporary file of a checkpoint and its new name."""
    for k in drill.times(8):
        rng = drill.rng("save", k)
        with drill.trial("TERM inside a save") as folder:
            number = rng.randint(2, max(3, specimen.events // 2))
            act = program.signal_at_event(number, folder / "runs", TERM)
            (child,) = specimen.start(folder, act)
            _assert_stopped(child)
            specimen.assert_survived(folder)


def _at_start_up(drill: Drill, specimen: Specimen) -> None:
    """A process of its own, so that Python and torch start under fire."""
    for k in drill.times(6):
        rng = drill.rng("start", k)
        with drill.trial("TERM or USR2 during start-up") as folder:
            command = programs.command("diffuse.train", *specimen.arguments(folder))
            with (folder / "log").open("wb") as log:
                process = subprocess.Popen(
                    command, cwd=programs.ROOT, env=programs.environment(), stdout=log, stderr=log
                )
            time.sleep(rng.uniform(0, 4))
            process.send_signal(rng.choice((TERM, USR2)))
            child = Child(process.pid, folder / "log", process.wait(300))
            if child.code not in (-TERM, -USR2):  # Python had not taken them over yet
                assert_explained(child, *ENDS)
            specimen.assert_survived(folder)


def _one_rank_is_told(drill: Drill, specimen: Specimen) -> None:
    """Both ranks save and end, and rank 0 alone ends with 75."""
    for k in drill.times(5):
        rng = drill.rng("ranks", k)
        with drill.trial("USR2 to one of two ranks") as folder:
            ranks = specimen.start(folder)
            time.sleep(rng.uniform(0.2, 1) * specimen.seconds)
            ranks[rng.randrange(2)].signal(USR2)
            for child in ranks:
                child.wait()
            if ranks[0].code != -USR2 and ranks[1].code != -USR2:
                assert_explained(ranks[0], 0, 75)
                assert_explained(ranks[1], 0)
            specimen.assert_survived(folder)
