"""Whether a node of the site has room for a pack of runs, as far as sinfo tells."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffuse.runtime.errors import EnvironmentFailed, UserError
from launch.grids.cluster import Cluster
from launch.slurm import commands
from launch.slurm.commands import Partition, Site


@dataclass(frozen=True)
class Node:
    """Nodes of one kind in one partition."""

    partition: str
    cpus: int
    memory_gb: float
    gres: str  # gpu:a100:4(S:0-1),nvme:1

    def gpus(self, kind: str | None) -> int:
        """Its GPUs, those of one kind where one is named."""
        found = re.findall(r"(?:^|,)gpu:(?:([^:,(]+):)?(\d+)", self.gres)
        return sum(int(n) for name, n in found if kind is None or name.lower() == kind.lower())


def nodes() -> list[Node]:
    """The kinds of nodes in each partition, hidden ones too."""
    text = commands.ask("sinfo", "--noheader", "--all", "--exact", "--format=%R|%c|%m|%G")
    found = []
    for line in text.splitlines():
        partition, cpus, memory, gres = (line.split("|", 4) + [""] * 4)[:4]
        if cpus.isdecimal() and memory.isdecimal():
            found.append(Node(partition, int(cpus), int(memory) / 1024, gres))
    return found


def check(site: Site, packed: Iterable[Cluster], source: str) -> None:
    """Refuse, before anything is submitted, a job of several runs that fits on no node.

    Raises UserError. A site whose sinfo does not answer knows by itself.
    """
    packed = [settings for settings in packed if settings.is_packed]
    if packed:
        with contextlib.suppress(EnvironmentFailed):
            found = nodes()
            for settings in packed:
                require_room(settings, site.partitions, found, source)


def needs(settings: Cluster) -> str:
    """`up to 8 runs a job, 4 at a time: 1 GPU, 16 cores (4 a run), 32 GB of memory (8 a run)`."""
    gpus = settings.gpus_per_node if settings.gpus else 0
    parts = [f"{gpus} GPU{'s' * (gpus > 1)}"] if gpus else []
    parts.append(f"{settings.cpus} cores ({settings.cpus_per_task} a run)")
    if settings.memory_gb is not None:
        share = settings.memory_gb / settings.at_once
        parts.append(f"{settings.memory_gb:g} GB of memory ({share:.3g} a run)")
    return f"{settings.pack_words}: {', '.join(parts)}"


def require_room(
    settings: Cluster, partitions: Sequence[Partition], found: Sequence[Node], source: str
) -> None:
    """UserError where no node has room for a job of several runs.

    Partitions whose nodes are not known, another cluster's say, are left to sbatch.
    """
    default = [partition.name for partition in partitions if partition.is_default]
    named = [name.strip() for name in (settings.partition or "").split(",")]
    chosen = [
        node for node in found if node.partition in (named if settings.partition else default)
    ]
    wanted = (
        settings.gpus_per_node if settings.gpus else 0,
        settings.cpus,
        settings.memory_gb or 0,
    )
    offers = [(node.gpus(settings.gpu_type), node.cpus, node.memory_gb) for node in chosen]
    if not offers or any(
        all(has >= want for has, want in zip(offer, wanted, strict=True)) for offer in offers
    ):
        return
    gpus, cpus, memory = max(offers)
    raise UserError(
        f"{source}: a job is too much for a node ({needs(settings)}), and the largest of partition"
        f" {', '.join(dict.fromkeys(node.partition for node in chosen))} has {gpus} GPUs,"
        f" {cpus} cores, {memory:.3g} GB; lower runs_per_gpu, gpus_per_node, cpus_per_task or"
        " memory_gb"
    )
