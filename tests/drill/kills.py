"""SIGKILL of any rank at any moment: in a step, in a write, in an evaluation, in data staging."""

from __future__ import annotations

import random
import signal
import struct
import time
from collections.abc import Callable
from pathlib import Path

import h5py

from diffuse.data import mnist
from tests.drill import program
from tests.drill.drill import Drill
from tests.drill.program import Child, assert_explained, die_in_write, signal_at_event
from tests.drill.specimen import TIMEOUT_S, Specimen

DEATHS = 4  # of one run, before it may end in peace
Death = Callable[[Specimen, Path, random.Random], Child]


def run(drill: Drill) -> None:
    """About 240 deaths."""
    for kind in ("ddpm", "cold"):
        specimen = drill.specimen(kind)
        _lives(drill, specimen, f"{kind}: at any time", 8, _at_any_time)
        _lives(drill, specimen, f"{kind}: before a file operation", 10, _at_an_event)
        _lives(drill, specimen, f"{kind}: inside a write", 6, _in_a_write)
    _rank_dies(drill, drill.specimen("ddpm", ranks=2), 16)
    _rank_dies(drill, drill.specimen("ddpm", ranks=4), 4)
    _evaluation_dies(drill, drill.specimen("cold"))
    _staging_dies(drill)


def _at_any_time(specimen: Specimen, folder: Path, rng: random.Random) -> Child:
    (child,) = specimen.start(folder)
    time.sleep(rng.uniform(0, specimen.seconds))
    child.signal(signal.SIGKILL)
    return child


def _at_an_event(specimen: Specimen, folder: Path, rng: random.Random) -> Child:
    # A run that has begun has fewer operations before it: aim within the first half.
    number = rng.randint(1, max(2, specimen.events // 2))
    (child,) = specimen.start(folder, signal_at_event(number, folder / "runs"))
    return child


def _in_a_write(specimen: Specimen, folder: Path, rng: random.Random) -> Child:
    # Small files (status, attempts), the growing metrics, checkpoints and pictures.
    size = rng.choice((rng.randint(1, 600), rng.randint(600, 6_000), rng.randint(6_000, 60_000)))
    (child,) = specimen.start(folder, die_in_write(size))
    return child


def _lives(drill: Drill, specimen: Specimen, fault: str, usual: int, death: Death) -> None:
    """Runs that die again and again, each time elsewhere, and are then left in peace."""
    for k in drill.times(usual):
        rng = drill.rng(fault, k)
        with drill.trial(f"SIGKILL, {fault}", DEATHS) as folder:
            for _ in range(DEATHS):
                assert death(specimen, folder, rng).wait() in (-signal.SIGKILL, -signal.SIGXFSZ, 0)
            specimen.assert_survived(folder)


def _rank_dies(drill: Drill, specimen: Specimen, usual: int) -> None:
    """One of several ranks dies; the others, in a collective or not, end by themselves, and say so.

    They have a minute beyond three timeouts: torch tries a second time to meet who never came.
    """
    for k in drill.times(usual):
        rng = drill.rng("rank", specimen.ranks, k)
        with drill.trial(f"SIGKILL of one of {specimen.ranks} ranks") as folder:
            ranks = specimen.start(folder)
            victim = ranks.pop(rng.randrange(len(ranks)))
            time.sleep(rng.uniform(0, specimen.seconds))
            victim.signal(signal.SIGKILL)
            victim.wait()
            for other in ranks:
                other.wait(3 * TIMEOUT_S + 60)
                assert_explained(other, 0, 1)
            specimen.assert_survived(folder)


def _evaluation_dies(drill: Drill, specimen: Specimen) -> None:
    for k in drill.times(8):
        rng = drill.rng("evaluation", k)
        with drill.trial("SIGKILL inside an evaluation", 3) as folder:
            specimen.finish(folder)
            for death in range(3):
                before = die_in_write(rng.randint(1, 4_000)) if death else None
                log = folder / f"evaluate-{death}.log"
                arguments = specimen.evaluation(folder)
                child = program.start("diffuse.evaluate", *arguments, log=log, before=before)
                if not death:
                    time.sleep(rng.uniform(0, 1.0))
                    child.signal(signal.SIGKILL)
                assert child.wait() in (-signal.SIGKILL, -signal.SIGXFSZ, 0)
            specimen.assert_judged(folder)


def _staging_dies(drill: Drill) -> None:
    """Two processes stage MNIST at once and die; the third finds no half file, and stages."""
    idx = drill.folder / "idx"
    _write_idx(drill.data_dir, idx)
    for k in drill.times(8):
        rng = drill.rng("staging", k)
        with drill.trial("SIGKILL inside data staging", 2) as folder:
            data = folder / "data"
            arguments = (f"--idx-dir={idx}", f"--data-dir={data}")
            children = [
                program.start("diffuse.prepare", *arguments, log=folder / f"{n}.log", before=before)
                for n, before in enumerate((None, die_in_write(rng.randint(1, 20_000_000))))
            ]
            time.sleep(rng.uniform(0, 2.0))
            children[0].signal(signal.SIGKILL)
            for child in children:
                assert child.wait() in (-signal.SIGKILL, -signal.SIGXFSZ, 0)
            program.finish("diffuse.prepare", *arguments, log=folder / "last.log")
            for name in mnist.SHA256:
                mnist.read_verified(data, name)  # raises where a byte differs
            assert [p.name for p in data.iterdir() if not p.name.startswith(".")] == ["mnist.h5"]


def _write_idx(data_dir: Path, folder: Path) -> None:
    """The staged MNIST as the four files of its authors."""
    if folder.exists():
        return
    folder.mkdir()
    with h5py.File(data_dir / "mnist.h5") as file:
        for split, name in (("train", "train"), ("test", "t10k")):
            for kind, ndim in (("images", 3), ("labels", 1)):
                array = file[f"{split}/{kind}"][()]
                header = struct.pack(f">I{ndim}I", 0x0800 | ndim, *array.shape)
                path = folder / f"{name}-{kind}-idx{ndim}-ubyte"
                path.write_bytes(header + array.tobytes())
