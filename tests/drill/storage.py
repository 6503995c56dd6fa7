"""Storage that fails: a full disk, a read-only or vanished folder, slowness, a jumping clock."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.drill import program
from tests.drill.drill import Drill
from tests.drill.program import assert_explained
from tests.drill.specimen import Specimen


def run(drill: Drill) -> None:
    """About 60 trainings on storage that fails them."""
    specimen = drill.specimen("ddpm")
    if _can_mount(drill.folder / "probe"):
        _full_disk(drill, specimen)
        _read_only(drill, specimen)
    else:
        drill.tally.left_out[drill.part] = "a full disk and a read-only one: mounting needs root"
    _quota(drill, specimen)
    _vanished(drill, specimen)
    _slow(drill, specimen)
    _clock(drill, specimen)


def _full_disk(drill: Drill, specimen: Specimen) -> None:
    """A small file system fills up, an administrator makes room, the same command goes on."""
    for k in drill.times(10):
        rng = drill.rng("full", k)
        with drill.trial("full disk") as folder, _mounted(folder / "runs", 4):
            filler = folder / "runs" / "filler"
            free = rng.randint(0, 400)  # KB; the run needs some 500
            filler.write_bytes(bytes((4096 - free) * 1024 - 8192))
            (child,) = specimen.start(folder)
            child.wait()
            assert_explained(child, 0, 1)
            if child.code:
                assert "No space left on device" in child.said(), child.said()[-300:]
            filler.unlink()
            specimen.assert_survived(folder)


def _read_only(drill: Drill, specimen: Specimen) -> None:
    """The file system turns read-only in mid-run, as they do after errors of the disk."""
    for k in drill.times(6):
        rng = drill.rng("ro", k)
        with drill.trial("read-only file system") as folder, _mounted(folder / "runs", 16) as mount:
            (child,) = specimen.start(folder)
            time.sleep(rng.uniform(0, specimen.seconds))
            mount("ro")
            child.wait()
            assert_explained(child, 0, 1)
            mount("rw")
            specimen.assert_survived(folder)


def _quota(drill: Drill, specimen: Specimen) -> None:
    """No file may grow past so many bytes: writes fail as on a full quota."""
    for k in drill.times(12):
        rng = drill.rng("quota", k)
        with drill.trial("quota") as folder:
            size = rng.choice((rng.randint(1, 600), rng.randint(600, 60_000)))
            (child,) = specimen.start(folder, program.fail_in_write(size))
            child.wait()
            assert_explained(child, 0, 1)
            specimen.assert_survived(folder)


def _vanished(drill: Drill, specimen: Specimen) -> None:
    """Somebody removes the run directory in mid-run; the run ends, and begins again when asked."""
    for k in drill.times(8):
        rng = drill.rng("vanished", k)
        with drill.trial("vanished folder") as folder:
            (child,) = specimen.start(folder)
            time.sleep(rng.uniform(0.2, 1) * specimen.seconds)
            shutil.rmtree(folder / "runs", ignore_errors=True)
            child.wait()
            assert_explained(child, 0, 1, 75)
            # A checkpoint written while others of its files went is where it goes on from.
            specimen.assert_survived(folder, gaps=True)


def _slow(drill: Drill, specimen: Specimen) -> None:
    for k in drill.times(4):
        with drill.trial("slow file system") as folder:
            specimen.finish(folder, program.slow_disk(drill.rng("slow", k)))
            specimen.assert_survived(folder)


def _clock(drill: Drill, specimen: Specimen) -> None:
    for k in drill.times(6):
        with drill.trial("clock that jumps by hours") as folder:
            specimen.finish(folder, program.jumping_clock(drill.rng("clock", k)))
            specimen.assert_survived(folder)


def _can_mount(folder: Path) -> bool:
    folder.mkdir(exist_ok=True)
    try:
        with _mounted(folder, 1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def _mounted(folder: Path, megabytes: int) -> Iterator[Callable[[str], None]]:
    """A file system of its own in memory, mounted on `folder`; yields its remounting."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ["-t", "tmpfs", "-o", f"size={megabytes}m", "diffuse-drill", str(folder)]
    subprocess.run(["mount", *options], check=True, capture_output=True)

    def remount(how: str) -> None:
        command = ["mount", "-o", f"remount,{how}", str(folder)]
        deadline = time.monotonic() + 30
        while (done := subprocess.run(command, capture_output=True, text=True)).returncode:
            # Refused while a file is open for writing, which no file is for long.
            assert "busy" in done.stderr and time.monotonic() < deadline, done.stderr
            time.sleep(0.01)

    try:
        yield remount
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
