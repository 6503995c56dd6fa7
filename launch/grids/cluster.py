"""Cluster files: where and with which resources jobs run.

Settings follow the file under configs/clusters/ < the grid's `cluster:` < its entry's `cluster:`
(so per preset) < `--cluster-set`.
"""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from diffuse.config.presets import find_yaml, read_yaml, shown
from diffuse.config.section import Section
from diffuse.config.validation import Layer, validated
from diffuse.runtime.errors import UserError
from diffuse.runtime.options import typed_path

GPU_OPTIONS = {"gpus", "gpus-per-node", "gpus-per-task", "gres"}
# Options that the launcher sets itself, to chain its jobs and to find them.
OURS = {"array", "chdir", "dependency", "error", "job-name", "kill-on-invalid-dep", "ntasks"}
OURS |= {"ntasks-per-node", "open-mode", "output", "parsable", "signal", "wrap"}
KEYS = {"account", "constraint", "cpus-per-task", "mem", "nodes", "partition", "qos", "time"}


def _as_minutes(value: Any) -> Any:
    """Slurm's [D-]H:MM:SS in minutes, rounded up; anything else as it is, but that looks so."""
    if not isinstance(value, str) or not set(":-") & set(value):
        return value
    parts = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d\d):(\d\d)", value)
    if parts is None:
        raise ValueError(f"minutes, or Slurm's H:MM:SS or D-HH:MM:SS, not {value!r}")
    days, hours, minutes, seconds = (int(part or 0) for part in parts.groups())
    return math.ceil(days * 1440 + hours * 60 + minutes + seconds / 60)


def _as_options(values: dict[str, Any]) -> dict[str, Any]:
    """Options of sbatch by their names; those that the launcher sets itself are refused."""
    # underscores as dashes: one option has one name over all layers
    options = {key.replace("_", "-"): value for key, value in values.items()}
    for key in options:
        if key in OURS:
            raise ValueError(f"{key} is set by the launcher")
        if key in KEYS:
            raise ValueError(f"{key} has a key of its own in the cluster file")
    return options


def _without_tilde(text: str) -> str:
    """`~/image.sif`, or `~/data:/data,~/more`, with the home in its place."""
    parts = re.split("([:,])", text)
    return "".join(str(typed_path(part)) if part[:1] == "~" else part for part in parts)


_AsList = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)
Bind = Annotated[str, AfterValidator(_without_tilde)]
Minutes = Annotated[int, BeforeValidator(_as_minutes), Field(ge=1)]
Options = Annotated[dict[str, str | int | float | bool], AfterValidator(_as_options)]


class Cluster(Section):
    """The resources of a job. `local` reads kind, array_parallelism, runs_per_gpu and mps.

    A job of several runs, a pack, is one task on one node: it has `gpus_per_node` GPUs in all, and
    for each run that is trained at the same time `cpus_per_task` cores.
    """

    kind: Literal["local", "slurm"] = Field(description="this machine, or a Slurm cluster")
    partition: str | None = Field(None, description="sinfo lists them; several: a,b")
    account: str | None = Field(None, description="whom the hours are billed to")
    qos: str | None = Field(None, description="quality of service, as in sbatch")
    constraint: str | None = Field(None, description="features of nodes, as in sbatch")
    nodes: int = Field(1, ge=1, description="per run")
    gpus_per_node: int = Field(1, ge=0, description="one rank each; 0: one rank on the CPU")
    gpu_type: str | None = Field(None, pattern=r"^[\w.-]+$", description="as sbatch has it: a100")
    cpus_per_task: int = Field(4, ge=1, description="per rank")
    memory_gb: float | None = Field(None, gt=0, description="per node; default: the site's")
    runs_per_gpu: int = Field(
        1, ge=1, description="share it; without GPUs: runs side by side in a job"
    )
    runs_per_job: int | None = Field(
        None,
        ge=1,
        description="of one rank each; null: as many as run at a time, 1 with runs_per_gpu: 1",
    )
    mps: bool = Field(False, description="NVIDIA's MPS for runs that share a GPU, on nodes with it")
    time: Minutes | None = Field(None, description="minutes per attempt; default: the partition's")
    array_parallelism: int | None = Field(None, ge=1, description="jobs running at a time")
    image: Annotated[str, AfterValidator(_without_tilde)] | None = Field(
        None, description="Apptainer image; none: this Python"
    )
    binds: Annotated[tuple[Bind, ...], _AsList] = Field((), description="more folders to bind")
    setup: Annotated[tuple[str, ...], _AsList] = Field((), description="shell lines before srun")
    max_requeues: int = Field(3, ge=0, description="in a row without a step of progress")
    extra: Options = Field({}, description="raw sbatch options")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        key = "runs_per_gpu" if self.runs_per_job is None else "runs_per_job"
        if self.is_packed and self.nodes > 1:
            raise ValueError(
                f"{key}: {self.pack_size} runs in a job of nodes: {self.nodes}: a run of several"
                f" nodes is not packed; set nodes: 1, or {key}: 1"
            )
        if self.mps and self.runs_per_gpu == 1:
            raise ValueError("mps: is for runs that share a GPU; set runs_per_gpu, too")
        if self.mps and not self.gpus_per_node:
            raise ValueError("mps: is for GPUs, and gpus_per_node is 0")
        return self

    @property
    def slots(self) -> int:
        """Runs that the GPUs of a job have room for at the same time."""
        return max(1, self.gpus_per_node) * self.runs_per_gpu

    @property
    def pack_size(self) -> int:
        """Runs in a job, at most."""
        return self.runs_per_job or (self.slots if self.runs_per_gpu > 1 else 1)

    @property
    def is_packed(self) -> bool:
        """True for a job of several runs; each of them has one rank."""
        return self.pack_size > 1

    @property
    def at_once(self) -> int:
        """Runs of a job that are trained at the same time."""
        return min(self.pack_size, self.slots) if self.is_packed else 1

    @property
    def pack_words(self) -> str:
        """`up to 8 runs a task, 4 at a time`."""
        return f"up to {self.pack_size} runs a task, {self.at_once} at a time"

    @property
    def cpus(self) -> int:
        """The cores of one task of a job: of a rank, or of all runs of a pack."""
        return self.cpus_per_task * self.at_once

    @property
    def gpus(self) -> str | None:
        """The value of --gpus-per-node; None: no GPU, or `extra` asks for it in the site's way."""
        is_in_extra = any(self.extra.get(option, False) is not False for option in GPU_OPTIONS)
        if is_in_extra or not self.gpus_per_node:
            return None
        return f"{self.gpu_type}:{self.gpus_per_node}" if self.gpu_type else f"{self.gpus_per_node}"

    @property
    def device(self) -> str:
        """The device of its programs: a job that asks for a GPU fails where it has none."""
        return "cuda" if self.gpus_per_node else "auto"

    def without_gpus(self) -> Cluster:
        """The same for a job on one node's CPU."""
        extra = {key: value for key, value in self.extra.items() if key not in GPU_OPTIONS}
        return self.unpacked().model_copy(update={"nodes": 1, "gpus_per_node": 0, "extra": extra})

    def unpacked(self) -> Cluster:
        """The same for jobs of one run each."""
        alone = {"runs_per_gpu": 1, "runs_per_job": 1, "mps": False}
        return self.model_copy(update=alone)


@dataclass(frozen=True)
class ClusterFile:
    """A cluster's name and its settings as written, before grids and the command line."""

    name: str
    source: str
    values: Mapping[str, Any]

    def resolve(self, layers: Iterable[Layer]) -> Cluster:
        """The settings with `layers` over them; UserError names the key and its place."""
        return validated(Cluster, [Layer(self.source, self.values), *layers])


def choose(name: str | None) -> ClusterFile:
    """The cluster file of that name or path; unnamed, slurm where there is sbatch, else local."""
    if name is None:
        name = "slurm" if shutil.which("sbatch") else "local"
    path = find_yaml(name, kind="cluster", folders=("clusters",))
    file = ClusterFile(Path(path).stem, shown(path), read_yaml(path))
    if "kind" not in file.values:
        raise UserError(f"{file.source}: kind: missing; allowed: local, slurm")
    return file
