"""The doctor's short job: `diffuse.node_check` on a compute node, with two ranks at least.

It is submitted as the jobs of a sweep are, with a snapshot of the code: it fails where they would.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from diffuse.runtime import files
from launch.inspection.site_checks import Check, Place
from launch.jobs import snapshot, worker
from launch.jobs.logs import last_error
from launch.slurm import commands
from launch.slurm.executor import Submitter, require_readable, resources

POLL_S = 1.0
LEAST_RANKS = 2


def run(place: Place, wait_s: float) -> list[Check]:
    """Submit the job, wait, and return its checks; Ctrl-C and `wait_s` cancel it."""
    if place.image is not None and not place.image.is_file():
        return [Check("job", "failed", f"not submitted: {place.image} is not there", "make image")]
    folder = place.runs_dir / ".launch" / "doctor"
    require_readable(folder, (place.runs_dir, place.data_dir), place.image is not None)
    folder.mkdir(parents=True, exist_ok=True)
    name = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    answer, token = folder / f"{name}.json", folder / f"{name}.token"
    # A file that the job must find: the filesystem is shared, and quickly so.
    files.write_text(token, name)
    job = _submit(place, folder, answer)
    try:
        if reason := _wait(job, wait_s):
            return [Check("job", "failed", f"job {job}: {reason}", "look at squeue, or --wait")]
        return _read(job, answer)
    finally:
        commands.cancel([job])
        token.unlink()


def _submit(place: Place, folder: Path, answer: Path) -> str:
    """The job's id; EnvironmentFailed where Slurm refuses it."""
    minutes = min(place.settings.time or 5, 5)
    extra = {**place.settings.extra, "no-requeue": True}
    changes = {"time": minutes, "extra": extra}
    settings = place.settings.unpacked().model_copy(update=changes)
    gpus = settings.gpus_per_node
    is_shared = resources(settings, LEAST_RANKS)["ntasks_per_node"] > gpus
    options = [f"--gpus={gpus}", *(["--shared-gpu"] if is_shared else [])]
    code = snapshot.take(folder / "code")
    binds = (place.runs_dir, place.data_dir)
    submitter = Submitter(folder, "doctor", code, binds, LEAST_RANKS)
    call = (str(answer), str(place.data_dir), options)
    (job,) = submitter.array("diffuse", folder, worker.probe, [call], settings, throttle=1)
    return job


def _wait(job: str, wait_s: float) -> str:
    """Wait for the job's end; why it has not ended after `wait_s`, or "" where it has."""
    end = time.monotonic() + wait_s
    while (found := commands.queue().get(job)) is not None and found.is_live:
        if time.monotonic() > end:
            return f"still {found.state.lower()} after {wait_s:.0f} s ({found.reason})"
        time.sleep(POLL_S)
    return ""


def _read(job: str, answer: Path) -> list[Check]:
    end = time.monotonic() + 15  # network filesystems show a new file late
    while not (facts := files.read_json(answer)) and time.monotonic() < end:
        time.sleep(POLL_S)
    if not facts:
        log = answer.with_name(f"node_check-{job}-r00.log")
        if not log.is_file():  # it could not start; submitit's name for its output
            log = answer.with_name(f"{job}_0_log.out")
        return [Check("job", "failed", f"job {job}: {last_error(log)}", f"its log: {log}")]
    return [
        Check("job", "ok", f"{facts['ranks']} ranks, the first on {facts['node']}"),
        *(Check(**check) for check in facts["checks"]),
    ]
