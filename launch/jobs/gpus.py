"""The GPUs of this machine, or of this job, and how runs side by side share them."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
from collections.abc import Iterable, Sequence


def visible_gpus(device: str) -> list[str]:
    """The GPUs for trainings, as CUDA_VISIBLE_DEVICES names them; [] where there is none."""
    if device == "cpu":
        return []
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return _gpus(listed.split(","))
    try:
        command = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
        found = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return _gpus(found.stdout.splitlines())


def _gpus(names: Iterable[str]) -> list[str]:
    """Names up to the first that is no GPU's: CUDA sees none behind a -1, nvidia-smi may print
    prose, and Slurm NoDevFiles.
    """
    gpu = re.compile(r"\d+|(GPU|MIG)-[\w/-]+")
    return list(itertools.takewhile(gpu.fullmatch, map(str.strip, names)))


def share(gpus: Sequence[str], slot: int, slots: int, threads: int) -> dict[str, str | None]:
    """The variables of one run of several side by side: its GPU, handed out in turn, its threads.

    Args:
        gpus: where there is none the run's view is left as it is.
        slot: of `slots`, from 0; no other run has it at the same time.
    """
    variables: dict[str, str | None] = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }
    if gpus:
        variables["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
        variables["DIFFUSE_RUNS_PER_GPU"] = str(math.ceil(slots / len(gpus)))
    return variables
