"""Running the project's programs as a user does, and comparing the files that they leave."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from diffuse import ROOT
from diffuse.rundir import checkpoints
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from tests.forks import Fork

# A network and a data set so small that a step takes milliseconds.
TINY = (
    "--set=data.limit=128",
    "--set=train.global_batch=16",
    "--set=model.channels=4,4",
    "--set=train.ema=0.9",
    "--set=train.amp=fp32",
    "--set=samples.steps=5",
    "--set=system.log_every=3",
    "--set=system.log_apart_s=0",
    "--set=checkpoint.apart_s=0",
    "--set=system.device=cpu",  # the GPUs of the tests' cluster are files
    "--set=tracking.mode=disabled",
)


def environment(**more: str) -> dict[str, str]:
    """One thread, no cluster, no W&B key, no terminal (pytest's workers give themselves the size
    of one), the project on the path and its bytecode kept.
    """
    ours = ("SLURM_", "DIFFUSE_", "WANDB_", "PYTHONDONTWRITEBYTECODE", "COLUMNS", "LINES")
    env = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    env["NETRC"] = os.devnull
    return env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def command(program: str, *arguments: str | Path, ranks: int = 1) -> list[str]:
    """`python -m program arguments`, under torchrun where there are several ranks.

    A program of `launch/` is named by its file, as in `python launch/status.py`.
    """
    if program.endswith(".py"):
        return [sys.executable, str(ROOT / program), *map(str, arguments)]
    start = [sys.executable, "-m"]
    if ranks > 1:
        start += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
    return [*start, program, *map(str, arguments)]


def start(
    program: str,
    *arguments: str | Path,
    cwd: Path = ROOT,
    afresh: bool = False,
    warm: bool = False,
    **env: str,
) -> Fork | subprocess.Popen[str]:
    """Start a program as a fork (tests/forks.py), or by a new interpreter."""
    line, around = command(program, *arguments), environment(**env)
    if not afresh:
        return Fork(line, cwd, around, warm)
    out = subprocess.PIPE
    return subprocess.Popen(line, cwd=cwd, env=around, stdout=out, stderr=out, text=True)


def run(
    program: str,
    *arguments: str | Path,
    ranks: int = 1,
    cwd: Path = ROOT,
    afresh: bool = False,
    warm: bool = False,
    **env: str,
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return its output.

    Args:
        afresh: by a new interpreter, and torchrun for several ranks, not as forks.
        warm: the programs of its jobs are forks too, unless it is run afresh.
    """
    if afresh:
        line, around = command(program, *arguments, ranks=ranks), environment(**env)
        return subprocess.run(
            line, cwd=cwd, env=around, capture_output=True, text=True, timeout=1100
        )
    port = free_port()
    places = [place(rank, ranks, port) for rank in range(ranks)]
    processes = [start(program, *arguments, cwd=cwd, warm=warm, **env, **more) for more in places]
    try:
        out, err = zip(*(process.communicate(1100) for process in processes), strict=True)
    finally:
        for process in processes:
            process.kill()
    code = next((p.returncode for p in processes if p.returncode), 0)
    return subprocess.CompletedProcess(processes[0].args, code, "".join(out), "".join(err))


def place(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that torchrun gives to a rank; nothing where it is the only one."""
    if ranks == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    return {k: str(v) for k, v in numbers.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def copy_project(folder: Path) -> Path:
    """The project's code in a folder of its own, to be edited there."""
    for name in ("diffuse", "launch", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def leave_out(reason: str) -> NoReturn:
    """Skip the test where this machine lacks its means; under CI=true that is a failure."""
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)


def only_run(runs_dir: Path) -> RunDir:
    """The single run directory in `runs_dir`."""
    (path,) = [p for p in runs_dir.iterdir() if p.is_dir()]
    return RunDir(path)


def assert_same_training(a: RunDir, b: RunDir, epoch: int, names: tuple[str, ...] = ()) -> None:
    """Weights, average, optimizer and every step's loss are equal bit for bit."""
    left, right = (checkpoints.read(r.checkpoint_path(epoch)) for r in (a, b))
    for part in names or ("model", "ema", "optimizer", "process", "step", "epoch"):
        assert_same(left[part], right[part], part)
    for event in ("step", "epoch"):
        assert strip(a.metrics(event)) == strip(b.metrics(event))


def assert_same(a: Any, b: Any, place: str) -> None:
    """Nested dicts and lists of tensors and values are equal bit for bit."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), place
        for key in a:
            assert_same(a[key], b[key], f"{place}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), place
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{place}[{k}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), place
    else:
        assert a == b, place


def strip(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without the fields that may differ between attempts."""
    return [{k: v for k, v in e.items() if k not in ("attempt",)} for e in events]


def losses(run_dir: RunDir) -> list[float]:
    return [e["loss"] for e in run_dir.metrics("step")]


def read_json(path: Path) -> Any:
    """The object in `path`, without the seal that `diffuse.runtime.files.write_json` gives it."""
    return files.unsealed(path.read_bytes())


def metric_lines(run_dir: RunDir) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl as they lie there, of replayed steps all."""
    return [json.loads(line) for line in run_dir.metrics_path.read_text().splitlines()]
