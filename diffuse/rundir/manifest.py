"""The origin of a run: its code, versions, machine and data, by which a figure can be trusted."""

from __future__ import annotations

import os
import platform
import socket
from importlib import metadata
from typing import Any

import torch

from diffuse import ROOT
from diffuse.rundir.directory import RunDir
from diffuse.runtime import console, device, files, git
from diffuse.runtime.distributed import World

PACKAGES = ("diffuse", "torch", "torchvision", "torchmetrics", "numpy", "h5py", "wandb", "submitit")


def environment(world: World, precision: str) -> dict[str, Any]:
    """The facts on which bitwise equality of two runs depends beside their config."""
    return {
        "world_size": world.size,
        "threads": torch.get_num_threads() if world.device.type == "cpu" else None,
        "precision": precision,
        "device": device.device_name(world.device),
        "torch": str(torch.__version__),
        **device.software(world.device),
        # of the learning rate: earlier versions had Python's float64 on a GPU, too
        **({"nodes": world.nodes, "rate": "float32"} if world.device.type == "cuda" else {}),
    }


def write(run: RunDir, world: World, precision: str, data_sha256: str) -> None:
    """Write manifest.json: the environment of this attempt."""
    files.write_json(
        run.manifest_path,
        {
            "run": run.name,
            "grid": os.environ.get("DIFFUSE_GRID"),  # set by the launcher
            "written": files.now(),
            "precision": precision,
            "environment": environment(world, precision),
            "runs_per_gpu": runs_per_gpu(),
            "data_sha256": data_sha256,
            "code": code_version(),
            "image": os.environ.get("DIFFUSE_IMAGE"),
            "image_sha256": os.environ.get("DIFFUSE_IMAGE_SHA256"),
            "versions": {name: _version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "host": socket.gethostname(),
            "platform": platform.platform(),
            "job_id": os.environ.get("SLURM_JOB_ID"),
        },
    )


def runs_per_gpu() -> int:
    """How many runs share a GPU of this one's, as the launcher says."""
    return int(os.environ.get("DIFFUSE_RUNS_PER_GPU") or 1)


def code_version() -> dict[str, Any]:
    """The git commit of this code and whether it was changed since, where that can be known."""
    stated = os.environ.get("DIFFUSE_CODE")  # set by the launcher for a snapshot without .git
    if stated:
        described = os.environ.get("DIFFUSE_COMMIT", "")  # with a + where files were changed since
        changed = described.endswith("+") if described else None
        return {"snapshot": stated, "commit": described.rstrip("+") or None, "changed": changed}
    commit, changed = None, None
    if git.is_checkout(ROOT):
        try:
            commit = git.ask(ROOT, "rev-parse", "HEAD")
            changed = bool(git.ask(ROOT, "status", "--porcelain"))
        except git.GitFailed as error:
            console.note(f"{ROOT}: {error}; so the commit is not recorded")
    return {"commit": commit, "changed": changed}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def start_events(
    environment: dict[str, Any], content: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """The events of an attempt's start for metrics.jsonl, resumed from a checkpoint's `content`.

    A resume under another environment is no longer bit for bit: that is noted on the screen too.
    """
    step = 0 if content is None else int(content["step"])
    events: list[dict[str, Any]] = [
        {"event": "start", "step": step, **environment, "runs_per_gpu": runs_per_gpu()}
    ]
    before = environment if content is None else content["environment"]
    changed = {k: [before.get(k), v] for k, v in environment.items() if before.get(k) != v}
    if changed:
        text = ", ".join(f"{k}: {old} -> {new}" for k, (old, new) in changed.items())
        console.note(f"resumed under another environment, so not bit for bit: {text}")
        events.append({"event": "environment_changed", "step": step, **changed})
    return events
