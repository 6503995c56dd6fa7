"""NVIDIA's Multi-Process Service: processes that share a GPU run on it at the same time.

https://docs.nvidia.com/deploy/mps/index.html
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from launch.jobs.logs import last_error

CONTROL = "nvidia-cuda-mps-control"
WAIT_S = 30.0  # for the daemon, to start and to end


@contextlib.contextmanager
def served(
    gpus: Sequence[str], is_wanted: bool, say: Callable[[str], object]
) -> Iterator[tuple[Sequence[str], Mapping[str, str]]]:
    """The GPUs under a daemon that lives as long as the block; as they are where there is none.

    Yields their names for CUDA_VISIBLE_DEVICES, which MPS counts anew from 0, and the variables by
    which programs find the daemon. One line to `say` tells why there is none although it is wanted.
    """
    with contextlib.ExitStack() as stack:
        variables: dict[str, str] = {}
        if is_wanted:
            # Short: it will hold sockets.
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="diffuse-mps-", ignore_cleanup_errors=True)
            )
            names = ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY")
            variables = dict.fromkeys(names, folder)
            if reason := _start(gpus, variables, Path(folder)):
                node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
                say(f"note: no MPS on {node}: {reason}; runs share a GPU in turns")
                variables = {}
            else:
                stack.callback(_end, variables)
        yield [str(k) for k in range(len(gpus))] if variables else gpus, variables


def _start(gpus: Sequence[str], variables: Mapping[str, str], folder: Path) -> str:
    """Start the daemon; why that failed, or ""."""
    if not gpus:
        return "no GPU in sight"
    if not shutil.which(CONTROL):
        return f"{CONTROL} is not there"
    env = {**os.environ, **variables, "CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    output = folder / "start.out"  # and no pipe, which the daemon would keep open
    with output.open("wb") as file:
        try:
            done = subprocess.run(
                [CONTROL, "-d"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                timeout=WAIT_S,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return last_error(output) if done.returncode else ""


def _end(variables: Mapping[str, str]) -> None:
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [CONTROL],
            env={**os.environ, **variables},
            input=b"quit\n",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=WAIT_S,
        )
