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
from torch import nn
from diffuse import errors
from diffuse.distributed import join

sys.setswitchinterval(1000)

def main(standalone_mode):
    with join("cpu", 60) as world:
        world.parallel(nn.Linear(2, 2))
        for _ in range(20):
            world.highest(1)
        if %d:
            raise errors.Interrupted("stopped")

errors.run(main)
"""


@pytest.mark.parametrize("code", [0, 75])
def test_every_rank_ends_with_the_code_of_what_it_did(code: int) -> None:
    for _ in range(3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", ENDS % code],
                env=environment(
                    RANK=str(rank), WORLD_SIZE="4", MASTER_ADDR="127.0.0.1", MASTER_PORT=port
                ),
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in range(4)
        ]
        said = [rank.communicate(timeout=120)[1] for rank in ranks]
        assert [rank.returncode for rank in ranks] == [code] * 4, said
