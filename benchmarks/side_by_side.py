"""Several trainings on one GPU at once: all images a second, with and without NVIDIA's MPS."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_speed import Place, markdown
from diffuse import ROOT
from diffuse.rundir.directory import RunDir
from diffuse.runtime.errors import EnvironmentFailed
from launch.jobs import mps
from launch.jobs.gpus import visible_gpus

PRESET = "ddpm/unet"
LOOKS, APART_S = 3, 2.0


def side_by_side(place: Place) -> str:
    """1, 2, 4 and 8 runs of ddpm/unet on the first GPU."""
    numbers = (1, 2, 4, 8) if place.name == "cuda" else (1, 2)
    gpus = visible_gpus(place.name)[:1]
    columns: dict[str, dict[int, str]] = {}
    notes: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        # An empty folder, where no daemon answers that may run on this machine already.
        alone = {"CUDA_MPS_PIPE_DIRECTORY": folder, **visible(gpus)}
        columns["without MPS"] = {n: cell(place, n, alone) for n in numbers}
    with mps.served(gpus, place.name == "cuda", notes.append) as (names, daemon):
        if daemon:
            shared = {**daemon, **visible(names)}
            columns["with MPS"] = {n: cell(place, n, shared) for n in numbers}
    rows = [[str(n), *(column[n] for column in columns.values())] for n in numbers]
    table = markdown(("runs", *(f"images/s in all, {name}" for name in columns)), rows)
    return "\n\n".join([table, *notes])


def visible(gpus: Sequence[str]) -> dict[str, str]:
    """The variable that shows programs these GPUs only; none on a machine without."""
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)} if gpus else {}


def cell(place: Place, n: int, variables: dict[str, str]) -> str:
    """Images a second of n runs together, or the reason why not."""
    if not place.has_time:
        return "not measured: the time was up"
    try:
        return f"{together(place, n, variables):.0f}"
    except EnvironmentFailed as error:
        return f"**failed**: {error}"


def together(place: Place, n: int, variables: dict[str, str]) -> float:
    """Images a second of n runs, once all of them train."""
    env = place.environment() | variables
    command = [sys.executable, "-m", "diffuse.train", f"--preset={PRESET}", "--epochs=1000"]
    command += [f"--device={place.name}", "--threads=1", "--set=samples.at_epochs=[]"]
    command += ["--set=tracking.mode=disabled"]
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        processes = []
        for k in range(n):
            log = stack.enter_context(Path(folder, f"{k}.log").open("w"))
            line = [*command, f"--runs-dir={folder}/{k}"]
            process = subprocess.Popen(line, cwd=ROOT, env=env, stdout=log, stderr=log)
            processes.append(process)
            stack.callback(process.wait)
            stack.callback(process.terminate)  # it saves: a client of MPS is not to be killed
        looks: list[float] = []
        while len(looks) < LOOKS:
            time.sleep(APART_S)
            for k, process in enumerate(processes):
                if process.poll() is not None or not place.has_time:
                    words = Path(folder, f"{k}.log").read_text().splitlines()
                    raise EnvironmentFailed(words[-1] if words else "the time was up")
            rates = [rate(path) for path in Path(folder).glob("*/*/")]
            if len(rates) == n and all(rates):
                looks.append(sum(rates))
    return statistics.median(looks)


def rate(path: Path) -> float:
    """Images a second that a run has published last; 0 before."""
    return float(RunDir(path).status().get("images_per_s") or 0)
