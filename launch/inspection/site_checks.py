"""Checks on the login node: Slurm, the filesystem, the image, data, W&B, versions."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from diffuse import ROOT
from diffuse.runtime.errors import DiffuseError
from launch.grids.cluster import Cluster
from launch.slurm import commands, executor, nodes

ROOMY_GB = 5  # a grid's checkpoints and samples, with room to spare


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table. `note` is worth knowing and stops nothing."""

    name: str
    state: Literal["ok", "note", "failed"]
    detail: str
    remedy: str = ""


@dataclass(frozen=True)
class Place:
    """Where training is to happen."""

    settings: Cluster
    source: str  # of the settings, for messages
    runs_dir: Path
    data_dir: Path

    @property
    def image(self) -> Path | None:
        named = self.settings.image
        return Path(named).absolute() if named else None


def site_checks(place: Place) -> list[Check]:
    """All checks that this machine can make, in the order of the table."""
    return [
        versions(place),
        *(slurm_checks(place) if place.settings.kind == "slurm" else ()),
        folder(place.runs_dir),
        image(place),
        *staged(place.data_dir),
        tracking(),
    ]


def versions(place: Place) -> Check:
    """The launcher's own packages and, where jobs use this Python, torch."""
    python = ".".join(map(str, sys.version_info[:3]))
    shown = [f"Python {python}", *(f"{p} {_version(p)}" for p in ("diffuse", "submitit"))]
    if place.image is not None:
        return Check("versions", "ok", ", ".join(shown))
    if _version("torch") is None:
        return Check(
            "versions",
            "failed",
            ", ".join(shown) + "; no torch, and jobs run with this Python",
            "pip install -e '.[train]', or name an image (cluster: image)",
        )
    return Check("versions", "ok", ", ".join([*shown, f"torch {_version('torch')}"]))


def slurm_checks(place: Place) -> Iterator[Check]:
    """Reachable, partitions and limits, a job like ours accepted, accounting."""
    settings, source = place.settings, place.source
    sites: list[commands.Site] = []

    def reach() -> str:
        sites.append(commands.site())
        return ", ".join(
            f"{p.name}{'*' * p.is_default} ({p.max_minutes:.0f} min)" for p in sites[0].partitions
        )

    yield _checked("Slurm", reach, "log in to the cluster's login node; sinfo must work")
    if not sites:
        return
    (site,) = sites
    yield _checked(
        "limits",
        lambda: site.check(settings, source),
        "set partition and time in the cluster file, or by --cluster-set",
        "partition and time fit",
    )
    if settings.is_packed:
        yield _checked(
            "pack",
            lambda: nodes.check(site, [settings], source),
            "set these in the cluster file, or by --cluster-set",
            nodes.needs(settings),
        )

    def accepted() -> str:
        command = ["sbatch", "--test-only", *sbatch_options(settings), "--wrap=true"]
        with commands.outside_any_job(settings):
            return _output(command) or "accepted"

    yield _checked(
        "sbatch --test-only",
        accepted,
        "mend account, qos, constraint or resources in the cluster file",
    )
    try:
        _output(["sacct", "--noheader", "--allocations", "--format=JobID"])
        yield Check("accounting", "ok", "sacct answers")
    except (DiffuseError, OSError) as error:
        yield Check("accounting", "note", str(error), "nothing to do: status works without sacct")


def folder(path: Path) -> Check:
    """Whether run directories can be written, and the room there."""
    existing = next(p for p in (path, *path.parents) if p.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing):
            pass
    except OSError as error:
        return Check(
            "runs folder",
            "failed",
            f"{existing}: {error.strerror}",
            "name a folder of your own on the shared filesystem by --runs-dir",
        )
    free = shutil.disk_usage(existing).free / 1e9
    detail = f"{path} writable, {free:.0f} GB free"
    if free < ROOMY_GB:
        remedy = "make room (python launch/clean.py), or name another folder by --runs-dir"
        return Check("runs folder", "failed" if free < 1 else "note", detail, remedy)
    return Check("runs folder", "ok", detail)


def image(place: Place) -> Check:
    """The image is there and its Python runs."""
    path = place.image
    if path is None:
        return Check("image", "ok", f"none: jobs run with {sys.executable}")
    if not path.is_file():
        return Check("image", "failed", f"{path}: not there", "build it: make image")
    program = shutil.which("apptainer") or shutil.which("singularity")
    if program is None:
        if place.settings.setup:
            detail = f"{path} is there; apptainer is not here, perhaps after the file's setup"
            return Check("image", "note", detail, "--job tries it on a node")
        remedy = "load its module, and write that line under setup in the cluster file"
        return Check("image", "failed", "no apptainer here", remedy)
    code = "import diffuse, torch; print('torch', torch.__version__)"
    # The packages of the image, not those here.
    command = ["env", "-u", "PYTHONPATH", program, "exec"]
    command += [f"--bind={bind}" for bind in place.settings.binds]
    command += [str(path), "python", "-c", code]
    return _checked("image", lambda: f"{path}: {_output(command)}", "build it again: make image")


def staged(data_dir: Path) -> Iterator[Check]:
    """Data and weights are there: jobs never download."""
    from diffuse.data import mnist, staging

    def data() -> str:
        for name in mnist.SHA256:
            mnist.read_verified(data_dir, name)
        return f"{data_dir / 'mnist.h5'}, SHA-256 checked"

    yield _checked("data", data, "")
    weights = ROOT / "diffuse" / "weights" / "mnist_classifier.pt"
    inception = data_dir / staging.INCEPTION
    if not weights.is_file():
        yield Check("weights", "failed", f"{weights}: not there", "git checkout diffuse/weights")
    elif not inception.is_file():
        detail = "the classifier's are there; Inception's are not"
        remedy = "only for eval.extractor=inception: python -m diffuse.prepare --help"
        yield Check("weights", "ok", f"{detail} ({remedy})")
    else:
        yield Check("weights", "ok", "the classifier's and Inception's are there")


def tracking() -> Check:
    """How W&B will be reached; the key itself is never shown."""
    from importlib.util import find_spec

    if find_spec("wandb") is None:
        detail = "its client is not installed here; that of the jobs decides"
        return Check("W&B", "ok", f"{detail} (for sync.py: pip install -e '.[track]')")
    from diffuse.tracking import uploader

    try:
        client = uploader.client_settings()
    except uploader.NotStarted as error:
        return Check("W&B", "failed", str(error), "runs are not mirrored; mend that setting")
    if client.problem:
        return Check("W&B", "failed", client.problem, "runs are logged offline; mend that setting")
    if client.mode != "online":
        return Check("W&B", "ok", f"its client is set to {client.mode}")
    if client.has_key:
        return Check("W&B", "ok", f"a key is there for {client.server}")
    return Check(
        "W&B",
        "ok",
        f"no key for {client.server}: runs are logged offline"
        " (python launch/sync.py brings them up later)",
    )


def sbatch_options(settings: Cluster) -> list[str]:
    """The resources of one job as sbatch's options."""
    named = {**executor.resources(settings), **settings.extra}
    return [
        f"--{key.replace('_', '-')}" + ("" if value is True else f"={value}")
        for key, value in named.items()
        if value is not None and value is not False
    ]


def _checked(name: str, look: Callable[[], object], remedy: str, passed: str = "") -> Check:
    """The check that `look` makes; where it passes, `passed` or the answer is its detail."""
    try:
        answer = look()
        return Check(name, "ok", passed or str(answer))
    except DiffuseError as error:
        return Check(name, "failed", str(error), remedy)
    except OSError as error:
        return Check(name, "failed", f"{error.filename or ''} {error.strerror}".strip(), remedy)


def _output(command: list[str]) -> str:
    """The last line that a command prints; DiffuseError with its own words where it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=120
        )
    except subprocess.TimeoutExpired:
        raise DiffuseError(f"{command[0]} has not answered for 120 s") from None
    except FileNotFoundError:
        raise DiffuseError(f"{command[0]} is not here") from None
    lines = (done.stdout + done.stderr).strip().splitlines() or [""]
    if done.returncode:
        raise DiffuseError(lines[-1] or f"{command[0]} ended with {done.returncode}")
    return lines[-1].removeprefix("sbatch: ")


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
