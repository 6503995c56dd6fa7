"""Runs that W&B mirrors, and its client's records of them, as the tests read these."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from diffuse.rundir.directory import RunDir
from diffuse.rundir.evaluations import Evaluation
from tests import programs
from tests.programs import TINY
from tests.rundir.test_evaluations import CONTENT
from tests.wandb_server import KEY

OFFLINE = ("--preset=cold/default_28", "--orientation=row", *TINY, "--set=tracking.mode=auto")

ONLINE = (*OFFLINE, "--set=tracking.mode=online")

EVALUATION = Evaluation.model_validate(CONTENT)


def train(
    runs_dir: Path,
    data_dir: Path,
    *arguments: str,
    epochs: int = 2,
    ranks: int = 1,
    said: str = "",
    **env: str,
) -> RunDir:
    """Train to the end, to be told `said`; no W&B key or server but those in `env`."""
    done = programs.run(
        "diffuse.train",
        *arguments,
        f"--epochs={epochs}",
        f"--runs-dir={runs_dir}",
        f"--data-dir={data_dir}",
        ranks=ranks,
        **env,
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert KEY not in done.stdout + done.stderr
    run = programs.only_run(runs_dir)
    assert not left_behind(run)
    return run


def left_behind(run: RunDir) -> list[psutil.Process]:
    """Processes that still work on the run: the mirror, or the client's own, started by it."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE:
            try:
                env = process.environ()
            except psutil.Error:
                continue
            words = " ".join(process.info["cmdline"] or []) + env.get("WANDB_CACHE_DIR", "")
            if str(run.path) in words:
                found.append(process)
    return found


def records(log: Path) -> list[dict[str, Any]]:
    """The records that W&B's own reader finds in a log."""
    read = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    done = subprocess.run(read, capture_output=True, text=True, env=programs.environment())
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def logs(run: RunDir) -> list[Path]:
    return sorted(run.path.glob("wandb/offline-run-*/run-*.wandb"))


def history(log: Path) -> list[dict[str, Any]]:
    return [r["history"]["item"] for r in records(log) if r["type"] == "history"]


def column(rows: list[dict[str, Any]], key: str) -> list[Any]:
    return [row[key] for row in rows if key in row]


def lines_sent(run: RunDir) -> list[int]:
    """The lines of metrics.jsonl that W&B has something to hear of."""
    told = ("step", "speed", "epoch", "samples", "evaluation")
    lines = run.metrics_path.read_text().splitlines()
    return [n for n, line in enumerate(lines) if json.loads(line)["event"] in told]


def sync(runs_dir: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return programs.run("launch/sync.py", f"--runs-dir={runs_dir}", *arguments, **env)


def assert_one_line(done: subprocess.CompletedProcess[str], code: int, text: str) -> None:
    assert done.returncode == code, done.stderr
    (line,) = done.stderr.splitlines()
    assert text in line


def assert_no_key(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
