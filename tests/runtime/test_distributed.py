"""Ranks: how they end. That several train as one does is in test_training.py."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from diffuse.rundir.directory import RunDir
from tests import programs

# A switch interval beyond any run lets a thread that waits for Python's lock wait until the end:
# there gloo's threads abort a process that takes itself apart around them.
ENDS = """
import sys
import time
import torch
from torch import distributed, nn
from diffuse.runtime import errors
from diffuse.runtime.distributed import join

sys.setswitchinterval(1000)

def main(standalone_mode):
    with join("cpu", %(timeout_s)d) as world:
        world.parallel(nn.Linear(2, 2))
        for _ in range(20):
            world.highest(1)
        %(last)s

errors.run(main)
"""


def ends(
    folder: Path, last: str, timeout_s: int = 60, afresh: bool = False
) -> tuple[list[int], list[str]]:
    """Exit codes and words of four ranks that do `last` when they have met."""
    program, port = folder / "ends.py", programs.free_port()
    program.write_text(ENDS % {"last": last, "timeout_s": timeout_s})
    started = [
        programs.start(str(program), afresh=afresh, **programs.place(rank, 4, port))
        for rank in range(4)
    ]
    said = [rank.communicate(timeout=120)[1] for rank in started]
    return [rank.wait() for rank in started], said


@pytest.mark.parametrize(
    ("last", "code"), [("pass", 0), ("raise errors.Interrupted('stopped')", 75)], ids=["0", "75"]
)
def test_every_rank_ends_with_the_code_of_what_it_did(last: str, code: int, tmp_path: Path) -> None:
    for afresh in (True, False, False):
        codes, said = ends(tmp_path, last, afresh=afresh)
        assert codes == [code] * 4, said


def test_a_rank_that_is_lost_is_told_from_an_error_of_its_own(tmp_path: Path) -> None:
    last = "if world.rank == 3: nn.Linear(2, 2)(torch.zeros(3))\n        world.highest(1)"
    codes, said = ends(tmp_path, last)
    assert codes == [1] * 4
    assert "mat1 and mat2 shapes cannot be multiplied" in said[3] and "lost the" not in said[3]
    for line in said[:3]:
        assert line.startswith("error: rank ") and "lost the others" in line


def test_a_rank_that_hangs_is_told_by_every_collective_under_way(tmp_path: Path) -> None:
    last = """if world.rank == 3:
            time.sleep(30)
        works = [distributed.all_reduce(torch.ones(1), async_op=True) for _ in range(3)]
        for work in works[:2]:
            try:
                work.wait()
            except RuntimeError as error:
                print(error, file=sys.stderr)
        works[2].wait()"""
    codes, said = ends(tmp_path, last, timeout_s=15)
    assert codes[:3] == [1] * 3
    assert "Application timeout caused pair closure" in "".join(said[:3])
    for lines in said[:3]:
        assert lines.splitlines()[-1].startswith("error: rank "), lines
        assert "lost the others" in lines.splitlines()[-1]


def test_a_rank_that_hangs_ends_the_others_within_the_timeout(
    tmp_path: Path, data_dir: Path
) -> None:
    limit_s = 15  # also at the start, where a busy machine lets ranks wait for each other
    port = programs.free_port()
    command = (
        "diffuse.train",
        "--preset=ddpm/default",
        *programs.TINY,
        "--epochs=4000",
        f"--set=system.collective_timeout_s={limit_s}",
        f"--runs-dir={tmp_path}",
        f"--data-dir={data_dir}",
    )
    ranks = [programs.start(*command, **programs.place(rank, 2, port)) for rank in range(2)]
    try:
        deadline = time.monotonic() + 120
        while not any(RunDir(p).metrics("step") for p in tmp_path.iterdir()):
            assert ranks[0].poll() is None, ranks[0].communicate()[1]
            assert time.monotonic() < deadline, "no step in 120 s"
            time.sleep(0.05)
        ranks[1].send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        _, errors = ranks[0].communicate(timeout=limit_s + 60)
        assert time.monotonic() - stopped > limit_s / 2, "it waited for the other"
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert ranks[0].returncode == 1, errors
    assert "rank 0 of 2 lost the others" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert programs.only_run(tmp_path).status()["state"] == "failed"
