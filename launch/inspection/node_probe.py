"""The doctor's short job: `diffuse.node_check` on a compute node, with two ranks at least."""

from __future__ import annotations

import secrets
import shlex
import subprocess
import sys
import time
from pathlib import Path

from diffuse import ROOT
from diffuse.runtime import files
from diffuse.runtime.errors import EnvironmentFailed
from launch.inspection.site_checks import Check, Place, sbatch_options
from launch.slurm import commands

POLL_S = 1.0


def run(place: Place, wait_s: float) -> list[Check]:
    """Submit it, wait, and say what it found; it is cancelled on Ctrl-C and after `wait_s`."""
    folder = place.runs_dir / ".launch" / "doctor"
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    answer, log = folder / f"{name}.json", folder / f"{name}.log"
    # A file that the job must find: the filesystem is shared, and quickly so.
    files.write_text(folder / f"{name}.token", name)
    job = _submit(place, folder, answer, log)
    try:
        if reason := _wait(job, wait_s):
            return [Check("job", "failed", f"job {job}: {reason}", "look at squeue, or --wait")]
        return _read(job, answer, log)
    finally:
        commands.cancel([job])
        (folder / f"{name}.token").unlink()


def _submit(place: Place, folder: Path, answer: Path, log: Path) -> str:
    settings = place.settings
    gpus = settings.gpus_per_node
    ranks = max(2, settings.nodes * gpus)
    per_node = -(-ranks // settings.nodes)
    chosen = settings.model_copy(update={"time": min(settings.time or 5, 5)})
    options = [o for o in sbatch_options(chosen) if not o.startswith("--ntasks-per-node")]
    command = ["sbatch", "--parsable", *options, f"--ntasks-per-node={per_node}"]
    command += ["--job-name=diffuse-doctor", "--no-requeue", f"--output={log}"]
    command += [f"--chdir={folder}", "--propagate=NONE"]
    program = [sys.executable]
    if place.image is not None:
        binds = (str(ROOT), str(place.runs_dir), str(place.data_dir), *settings.binds)
        program = [f"--bind={bind}" for bind in dict.fromkeys(binds)]
        program += ["--nv"] if gpus else []
        program += [str(place.image), "python"]
    program += ["-m", "diffuse.node_check", str(answer), "--data-dir", str(place.data_dir)]
    program += [f"--gpus={gpus}"] + (["--shared-gpu"] if per_node > gpus else [])
    container = '"$(command -v apptainer || command -v singularity)" exec ' if place.image else ""
    script = [
        "#!/bin/bash",
        *settings.setup,
        f"export PYTHONPATH={shlex.quote(str(ROOT))} PYTHONSAFEPATH=1",
        f"srun --kill-on-bad-exit=1 --cpus-per-task={settings.cpus_per_task}"
        f" --ntasks-per-node={per_node} --ntasks={per_node * settings.nodes}"
        f" {container}{shlex.join(program)}",
    ]
    try:
        with commands.outside_any_job(settings):
            done = subprocess.run(
                command,
                input="\n".join(script),
                capture_output=True,
                text=True,
                timeout=commands.TIMEOUT_S,
            )
    except subprocess.TimeoutExpired:
        raise EnvironmentFailed(f"sbatch refused: {commands.NO_ANSWER}") from None
    if done.returncode:
        said = (done.stderr.strip() or "no message").splitlines()[-1]
        raise EnvironmentFailed(f"sbatch refused: {said}")
    return done.stdout.strip().partition(";")[0]


def _wait(job: str, wait_s: float) -> str:
    """Wait for the job's end; why it has not ended after `wait_s`, or "" where it has."""
    end = time.monotonic() + wait_s
    while (found := commands.queue().get(job)) is not None and found.is_live:
        if time.monotonic() > end:
            return f"still {found.state.lower()} after {wait_s:.0f} s ({found.reason})"
        time.sleep(POLL_S)
    return ""


def _read(job: str, answer: Path, log: Path) -> list[Check]:
    end = time.monotonic() + 15  # network filesystems show a new file late
    while not (facts := files.read_json(answer)) and time.monotonic() < end:
        time.sleep(POLL_S)
    if not facts:
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        said = next((line for line in reversed(lines) if "error" in line.lower()), "no message")
        return [Check("job", "failed", f"job {job}: {said}", f"its log: {log}")]
    return [
        Check("job", "ok", f"{facts['ranks']} ranks, the first on {facts['node']}"),
        *(Check(**check) for check in facts["checks"]),
    ]
