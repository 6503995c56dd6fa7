"""Files that are truncated, flipped, emptied, removed or foreign: each is made again, or named.

A line of the table is a file; it is damaged in each of these ways.
"""

from __future__ import annotations

import functools
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from diffuse.config.presets import CONFIGS
from tests import programs
from tests.drill import program
from tests.drill.drill import Drill
from tests.drill.program import assert_explained
from tests.drill.specimen import Specimen, datasets, what_was_judged


def _truncate(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content))])


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "truncated": _truncate,
    "one bit flipped": _flip,
    "emptied": lambda path, rng: path.write_bytes(b""),
    "removed": lambda path, rng: path.unlink(),
    "foreign": lambda path, rng: path.write_bytes(rng.randbytes(5000)),
}
# Pictures for people and words for them: no program reads them, and none is a result.
UNREAD = (".png", ".log", ".lock", ".txt")


def run(drill: Drill) -> None:
    """Every file that a program reads, damaged in each way."""
    specimen = drill.specimen("cold")
    specimen.assert_judged(specimen.folder)
    for state, prepare in (("finished", _finished), ("interrupted", _interrupted)):
        home = drill.folder / f"damage-{state}"
        prepare(specimen, home)
        for path in _files(drill, home):
            for name in _some(drill, path):
                _damaged(drill, specimen, home, path, name, state)
    _damaged_data(drill, specimen)
    _damaged_settings(drill)


def _finished(specimen: Specimen, home: Path) -> None:
    specimen.finish(home)
    specimen.evaluate(home)


def _interrupted(specimen: Specimen, home: Path) -> None:
    """Dies when about half of its file operations are done."""
    number = specimen.events // 2
    (child,) = specimen.start(home, program.signal_at_event(number, home / "runs"))
    child.wait()


def _files(drill: Drill, home: Path) -> list[Path]:
    """Files of the run in `home`, relative to it: some of each folder."""
    runs = sorted((home / "runs").rglob("*"))
    found = [path.relative_to(home) for path in runs if path.suffix not in UNREAD]
    found = [path for path in found if (home / path).is_file()]
    return drill.rng(home.name).sample(found, min(len(found), len(drill.times(7))))


def _some(drill: Drill, file: object) -> dict[str, Callable[[Path, random.Random], object]]:
    """All damages in a usual drill, one or more of them in a smaller one."""
    number = min(len(DAMAGES), max(1, round(len(DAMAGES) * drill.share)))
    return dict(drill.rng("damages", file).sample([*DAMAGES.items()], number))


def _damaged(
    drill: Drill, specimen: Specimen, home: Path, path: Path, name: str, state: str
) -> None:
    rng = drill.rng(state, path, name)
    in_folder = len(path.parts) > len(("runs", "NAME", "status.json"))
    kind = f"{path.parent.name}/" if in_folder else path.name
    with drill.trial(f"damaged: {'a temporary file' if path.suffix == '.tmp' else kind}") as folder:
        shutil.copytree(home, folder, dirs_exist_ok=True)
        damaged = folder / path
        DAMAGES[name](damaged, rng)
        run = programs.only_run(folder / "runs")
        if rng.random() < 0.3:
            _assert_looked_at(folder)
        if path.parent.name == "samples":  # whoever reads it is refused, and deletes it
            if name != "removed":
                _assert_unreadable(damaged, home / path)
                damaged.unlink()
            if "_seed_" in path.name:  # else figures that are there already are not made again
                shutil.rmtree(run.evaluations)
        _train_and_evaluate(specimen, folder, path)
        specimen.assert_equal(folder, gaps=path.name == "metrics.jsonl")
        programs.assert_same(what_was_judged(run), specimen.twin_judged, "")


def _assert_unreadable(path: Path, whole: Path) -> None:
    """HDF5 refuses it by its checksums, or its images are untouched."""
    try:
        found = datasets(path)
    except (OSError, KeyError, RuntimeError):
        return
    assert found == datasets(whole), "a changed image is read"


def _train_and_evaluate(specimen: Specimen, folder: Path, path: Path) -> None:
    """The same commands again. A file that they refuse by name is deleted, as they ask, once."""
    for module, arguments in (
        ("diffuse.train", specimen.arguments(folder)),
        ("diffuse.evaluate", specimen.evaluation(folder)),
    ):
        for attempt in range(2):
            log = folder / f"rank0-{module}-{attempt}.log"
            child = program.start(module, *arguments, log=log)
            child.wait()
            assert_explained(child, 0, 2)
            if child.code == 0:
                break
            assert path.name in child.said(), f"does not name {path}: {child.said()[-300:]}"
            assert attempt == 0, f"refused again: {child.said()[-300:]}"
            (folder / path).unlink(missing_ok=True)


def _assert_looked_at(folder: Path) -> None:
    """Status and compare show the readable part of a damaged run."""
    runs = f"--runs-dir={folder / 'runs'}"
    for module, more in (("launch.status", ()), ("launch.compare", (f"--output={folder}/r.html",))):
        child = program.start(module, runs, *more, log=folder / f"{module}.log")
        child.wait()
        assert_explained(child, 0, 1, 2)


def _damaged_data(drill: Drill, specimen: Specimen) -> None:
    """MNIST and the caches beside it: refused by name, or made again; never used."""
    for k in drill.times(2):
        for name, damage in _some(drill, "data").items():
            rng = drill.rng("data", name, k)
            with drill.trial("damaged: mnist.h5") as folder:
                _copy_data(specimen.data_dir, folder / "data")
                damage(folder / "data" / "mnist.h5", rng)
                other = specimen.with_data(folder / "data")
                (child,) = other.start(folder)
                child.wait()
                assert_explained(child, 0, 2)  # 0: a flipped bit outside of the arrays
                if child.code:
                    assert "mnist.h5" in child.said()
                    assert "diffuse.prepare" in child.said()
                    assert not (folder / "runs").exists()
                    shutil.copy(specimen.data_dir / "mnist.h5", folder / "data" / "mnist.h5")
                other.assert_survived(folder)
    for path in (specimen.data_dir / "features").glob("classifier-*-test.h5"):
        for name, damage in _some(drill, path.name).items():
            rng = drill.rng("cache", path.name, name)
            with drill.trial("damaged: cache of features") as folder:
                _copy_data(specimen.data_dir, folder / "data")
                damage(folder / "data" / "features" / path.name, rng)
                other = specimen.with_data(folder / "data")
                other.assert_survived(folder)
                other.assert_judged(folder)


def _damaged_settings(drill: Drill) -> None:
    """Files that people write have no checksum: refused by name, or read with new content."""
    for file, option in (
        ("ddpm/default.yaml", "--grid=grid.yaml"),
        ("grids/part2.yaml", "--grid=part2.yaml"),
        ("clusters/slurm.yaml", "--cluster=slurm.yaml"),
    ):
        for name, damage in _some(drill, file).items():
            for k in drill.times(3):
                with drill.trial("damaged: a preset, grid or cluster file") as folder:
                    path = folder / Path(file).name
                    shutil.copy(CONFIGS / file, path)
                    (folder / "grid.yaml").write_text("runs: [{preset: default.yaml}]")
                    damage(path, drill.rng("settings", file, name, k))
                    log = drill.folder / "settings.log"
                    log.unlink(missing_ok=True)
                    before = sorted(folder.iterdir())
                    child = program.start(
                        "launch.sweep",
                        *("--grid=part1", "--cluster=local", "--dry-run", option),
                        log=log,
                        before=functools.partial(os.chdir, folder),
                    )
                    child.wait()
                    assert_explained(child, 0, 2)
                    assert child.code == 0 or path.name in child.said(), child.said()
                    assert sorted(folder.iterdir()) == before


def _copy_data(source: Path, target: Path) -> None:
    (target / "features").mkdir(parents=True)
    for path in (source / "mnist.h5", *(source / "features").glob("classifier-*.h5")):
        shutil.copy(path, target / path.relative_to(source))
