"""Ranks: how they end. That several train as one does is in test_training.py."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.programs import environment

# A switch interval beyond any run lets a thread that waits for Python's lock wait until the end:
# there gloo's threads abort a process that takes itself apart around them.
ENDS = """
import sys
import torch
from torch import nn
from diffuse import errors
from diffuse.distributed import join

sys.setswitchinterval(1000)

def main(standalone_mode):
    with join("cpu", 60) as world:
        world.parallel(nn.Linear(2, 2))
        for _ in range(20):
            world.highest(1)
        %s

errors.run(main)
"""


def ends(last: str) -> tuple[list[int], list[str]]:
    """Exit codes and words of four ranks that do `last` when they have met."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", ENDS % last],
            env=environment(
                RANK=str(rank), WORLD_SIZE="4", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(4)
    ]
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], said


@pytest.mark.parametrize(
    ("last", "code"), [("pass", 0), ("raise errors.Interrupted('stopped')", 75)], ids=["0", "75"]
)
def test_every_rank_ends_with_the_code_of_what_it_did(last: str, code: int) -> None:
    for _ in range(3):
        codes, said = ends(last)
        assert codes == [code] * 4, said


def test_a_rank_that_is_lost_is_told_from_an_error_of_its_own() -> None:
    last = "if world.rank == 3: nn.Linear(2, 2)(torch.zeros(3))\n        world.highest(1)"
    codes, said = ends(last)
    assert codes == [1] * 4
    assert "mat1 and mat2 shapes cannot be multiplied" in said[3] and "lost" not in said[3]
    for line in said[:3]:
        assert line.startswith("error: rank ") and "lost the others" in line
