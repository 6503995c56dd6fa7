"""Cluster files: where and with which resources jobs run.

Settings follow the file under configs/clusters/ < the grid's `cluster:` < its entry's `cluster:`
(so per preset) < `--cluster-set`.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from diffuse.config import Section
from diffuse.errors import UserError
from diffuse.presets import Layer, find_yaml, read_yaml, shown
from launch.validated import validated

_AsList = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)


class Cluster(Section):
    """What a job is given. `local` reads only kind and array_parallelism."""

    kind: Literal["local", "slurm"]
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = Field(None, description="features of nodes, as in sbatch")
    nodes: int = Field(1, ge=1, description="per run")
    gpus_per_node: int = Field(1, ge=0, description="one rank each; 0: one rank on the CPU")
    cpus_per_task: int = Field(4, ge=1, description="per rank")
    memory_gb: float | None = Field(None, gt=0, description="per node; default: the site's")
    time: Annotated[int, Field(ge=1)] | None = Field(
        None, description="minutes per attempt; default: the partition's"
    )
    array_parallelism: int | None = Field(None, ge=1, description="jobs running at a time")
    image: str | None = Field(None, description="Apptainer image; none: this Python")
    binds: Annotated[tuple[str, ...], _AsList] = Field((), description="more folders to bind")
    setup: Annotated[tuple[str, ...], _AsList] = Field((), description="shell lines before srun")
    max_requeues: int = Field(3, ge=0, description="in a row without a step of progress")
    extra: dict[str, str | int | float | bool] = Field({}, description="raw sbatch options")


@dataclass(frozen=True)
class ClusterFile:
    """A cluster's name and its settings as written, before grids and the command line."""

    name: str
    source: str
    values: Mapping[str, Any]

    def resolve(self, layers: Iterable[Layer]) -> Cluster:
        """The settings with `layers` over them; UserError names what is wrong and where."""
        merged, sources = dict(self.values), {}
        for layer in layers:
            merged.update(layer.values)
            sources.update(dict.fromkeys(layer.values, layer.source))
        return validated(Cluster, merged, self.source, sources)


def choose(name: str | None) -> ClusterFile:
    """The cluster file of that name or path; unnamed, slurm where there is sbatch, else local."""
    if name is None:
        name = "slurm" if shutil.which("sbatch") else "local"
    path = find_yaml(name, kind="cluster", folders=("clusters",))
    file = ClusterFile(Path(path).stem, shown(path), read_yaml(path))
    if "kind" not in file.values:
        raise UserError(f"{file.source}: kind: missing; allowed: local, slurm")
    return file
