"""Ranks: how they end. That several train as one does is in test_training.py."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from diffuse.rundir.directory import RunDir
from tests import programs

# A switch interval beyond any run lets a thread that waits for Python's lock wait until the end:
# there gloo's threads abort a process that takes itself apart around them.
ENDS = """
import signal
import sys
import time
import torch
from torch import distributed, nn
from diffuse.runtime import errors
from diffuse.runtime.distributed import join
from diffuse.runtime.preemption import StopRequest

sys.setswitchinterval(1000)

def main(standalone_mode):
    stop = StopRequest()
    with join("cpu", %(timeout_s)d, stop) as world:
        world.parallel(nn.Linear(2, 2))
        for _ in range(20):
            world.highest(1)
        %(last)s

errors.run(main)
"""

WAITS = re.compile(r"^rank \d waits for .* at most\)\n", re.MULTILINE)


def ends(
    folder: Path,
    last: str,
    timeout_s: int = 60,
    afresh: bool = False,
    absent: tuple[int, ...] = (),
) -> tuple[list[int], list[str]]:
    """Exit codes and messages of four ranks, but those absent, that do `last` when they have met.

    Without the lines about ranks that wait for others to start, as they do on a busy machine.
    """
    program, port = folder / "ends.py", programs.free_port()
    program.write_text(ENDS % {"last": last, "timeout_s": timeout_s})
    started = [
        programs.start(str(program), afresh=afresh, **programs.place(rank, 4, port))
        for rank in range(4)
        if rank not in absent
    ]
    messages = [WAITS.sub("", rank.communicate(timeout=600)[1]) for rank in started]
    return [rank.wait() for rank in started], messages


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ("pass", [0, 0, 0, 0]),
        ("raise errors.UserError(f'rank {world.rank}')", [2, 2, 2, 2]),
        ("raise errors.Interrupted('stopped')", [75, 0, 0, 0]),
        ("raise errors.Superseded('an older attempt')", [1, 0, 0, 0]),
    ],
    ids=["done", "failed", "interrupted", "superseded"],
)
def test_rank_0_alone_says_the_end_on_which_all_agreed(
    last: str, expected: list[int], tmp_path: Path
) -> None:
    afresh = last == "pass"  # Python is to take itself apart
    for _ in range(1 if afresh else 2):
        codes, messages = ends(tmp_path, last, afresh=afresh)
        assert codes == expected, messages
        assert [bool(text) for text in messages] == [code != 0 for code in expected], messages


def test_a_rank_that_waits_for_stopped_ones_is_interrupted_too(tmp_path: Path) -> None:
    last = """stop.signal = signal.SIGTERM
        if world.rank == 3:
            raise errors.Interrupted("stopped")
        world.highest(1)"""
    codes, messages = ends(tmp_path, last)
    assert codes == [75, 0, 0, 0]
    assert messages[0] == "error: stopped by SIGTERM; the same command goes on\n"
    assert not any(messages[1:])


def test_another_failure_after_a_signal_keeps_its_reason(tmp_path: Path) -> None:
    last = """stop.signal = signal.SIGTERM
        raise errors.EnvironmentFailed("no space left")"""
    codes, messages = ends(tmp_path, last)
    assert codes == [1] * 4, "and no requeue, as after 75"
    assert messages == ["error: no space left\n"] * 4


def test_a_lost_rank_is_distinguished_from_an_error_of_its_own(tmp_path: Path) -> None:
    last = "if world.rank == 3: nn.Linear(2, 2)(torch.zeros(3))\n        world.highest(1)"
    codes, messages = ends(tmp_path, last)
    assert codes == [1] * 4
    assert (
        "mat1 and mat2 shapes cannot be multiplied" in messages[3] and "lost the" not in messages[3]
    )
    for line in messages[:3]:
        assert line.startswith("error: rank ") and "lost the others" in line


def test_a_rank_that_hangs_is_named_by_every_collective_under_way(tmp_path: Path) -> None:
    last = """if world.rank == 3:
            time.sleep(30)
        works = [distributed.all_reduce(torch.ones(1), async_op=True) for _ in range(3)]
        for work in works[:2]:
            try:
                work.wait()
            except RuntimeError as error:
                print(error, file=sys.stderr)
        works[2].wait()"""
    codes, messages = ends(tmp_path, last, timeout_s=15)
    assert codes[:3] == [1] * 3
    assert "Application timeout caused pair closure" in "".join(messages[:3])
    for lines in messages[:3]:
        assert lines.splitlines()[-1].startswith("error: rank "), lines
        assert "lost the others" in lines.splitlines()[-1]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("RANK=0 WORLD_SIZE=2", "MASTER_PORT is not set, but RANK=0 and WORLD_SIZE=2: "),
        ("RANK=0 WORLD_SIZE=2 MASTER_PORT=29500", "MASTER_ADDR is not set, but there are 2 ranks"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost", "MASTER_PORT is not set"),
        ("RANK=0", "WORLD_SIZE is not set, but RANK=0: "),
        ("WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=29500", "RANK is not set"),
        ("RANK=2 WORLD_SIZE=2", "RANK=2: must be from 0 to 1"),
        ("RANK=zero WORLD_SIZE=2", "RANK=zero: must be from 0 to 1"),
        ("RANK=0 WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT=http", "MASTER_PORT=http: must be"),
    ],
)
def test_a_place_that_is_incomplete_or_impossible_is_one_line(
    place: str, message: str, tmp_path: Path
) -> None:
    program = tmp_path / "ends.py"
    program.write_text(ENDS % {"last": "pass", "timeout_s": 5})
    done = programs.run(str(program), **dict(word.split("=") for word in place.split()))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {message}")
    assert "torchrun or srun" in line


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_rank_says_for_whom_it_waits_and_ends_on_a_signal_meanwhile(
    tmp_path: Path, data_dir: Path, rank: int, number: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        programs.command(
            "diffuse.train",
            "--preset=ddpm/default",
            *programs.TINY,
            f"--runs-dir={tmp_path}",
            f"--data-dir={data_dir}",
        ),
        env=programs.environment(**programs.place(rank, 3, programs.free_port())),
        cwd=programs.ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    others = "ranks 1, 2" if rank == 0 else "rank 0"
    assert first.startswith(f"rank {rank} waits for {others} of 3 at 127.0.0.1:")
    process.send_signal(number)
    _, rest = process.communicate(timeout=600)
    assert process.returncode == code
    (line,) = rest.splitlines()
    assert line.startswith(f"error: rank {rank} stopped while it waited for {others} of 3")
    assert not any(tmp_path.iterdir())


def test_ranks_that_never_come_are_named(tmp_path: Path) -> None:
    codes, messages = ends(tmp_path, "pass", timeout_s=2, absent=(2, 3))
    assert codes == [1, 1]
    assert "rank 0 waited 2 s in vain for ranks 2, 3 of 4 at 127.0.0.1:" in messages[0]


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
