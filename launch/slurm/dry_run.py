"""The jobs that a sweep would submit to a Slurm cluster, and their scripts; nothing is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse.config.validation import Layer
from diffuse.runtime.console import duration
from diffuse.runtime.errors import EnvironmentFailed, UserError
from launch.grids.cluster import GPU_OPTIONS, Cluster, ClusterFile
from launch.grids.grid import Grid
from launch.grids.ledger import Ledger
from launch.grids.listing import Listing
from launch.grids.plan import Planned
from launch.jobs import snapshot
from launch.slurm import commands, nodes, pipeline
from launch.slurm.live_jobs import live_jobs
from launch.slurm.pipeline import JobArray, Request

USUAL_MAX_ARRAY_SIZE = 1001  # Slurm's own default
COLUMNS = ("job", "tasks", "partition", "time", "GPUs", "after", "at a time", "CPUs", "memory")


@dataclass(frozen=True)
class DryRun:
    """The arrays of a sweep, and the runs that have jobs already."""

    arrays: list[JobArray]
    waiting: dict[str, list[commands.Job]]
    outage: str  # why Slurm does not answer, so that its limits and its queue are not known
    ledger: Ledger
    binds: tuple[Path, ...]

    def listing(self) -> Listing:
        """An entry for each array: its resources, its dependency, its runs."""
        listing = Listing(COLUMNS, COLUMNS[6:])
        for array in self.arrays:
            runs = [request.planned.name for request in array.requests]
            more = f" and {len(runs) - 4} more" if len(runs) > 4 else ""
            packs = f"{array.settings.pack_words}: " if array.settings.is_packed else ""
            listing.add(_cells(array), remark=packs + ", ".join(runs[:4]) + more)
        return listing

    def script(self, array: JobArray) -> str:
        """The batch script of an array, with names in the place of ids that Slurm will give.

        Raises UserError where its image is not there: the script names the image's hash.
        """
        image = array.settings.image
        if image is not None and not Path(image).is_file():
            raise UserError(f"image {image}: not found (make image)")
        from launch.slurm.executor import Submitter  # by submitit, which takes a while to import

        code = snapshot.planned(self.ledger.code_dir)
        folder = self.ledger.path / "jobs-<time of submission>"
        submitter = Submitter(folder, self.ledger.grid, code, self.binds)
        before = ":".join([array.dependency, *(f"<id of {a.name}>" for a in array.after)])
        place, tasks = folder / array.name, array.tasks
        return submitter.script(array.program, place, tasks, array.settings, array.throttle, before)

    def as_plain(self, scripts: bool) -> list[dict[str, Any]]:
        """For --json: the arrays in the order of submission."""
        return [
            {
                "job": array.name,
                "program": array.program,
                "tasks": array.tasks,
                "at_a_time": array.throttle,
                "runs": [request.planned.name for request in array.requests],
                **({"packs": _names(array)} if array.settings.is_packed else {}),
                "dependency": array.dependency or None,
                "after": [before.name for before in array.after],
                "cluster": array.settings.model_dump(mode="json"),
                **({"script": self.script(array)} if scripts else {}),
            }
            for array in self.arrays
        ]


def dry_run(
    grid: Grid,
    planned: Sequence[Planned],
    file: ClusterFile,
    typed: Sequence[Layer],
    runs_dir: Path,
    data_dir: Path,
    evaluate: bool,
) -> DryRun:
    """The jobs that the sweep would submit now. Asks Slurm where there is one."""
    ledger = Ledger(runs_dir.absolute(), grid.name)
    settings = file.resolve([grid.cluster, *typed])
    by_run = {run.name: file.resolve([*run.cluster, *typed]) for run in grid.runs}
    waiting: dict[str, list[commands.Job]] = {}
    most, outage = USUAL_MAX_ARRAY_SIZE, ""
    try:
        site = commands.site()
        most = site.max_array_size
        distinct = {s.model_dump_json(): s for s in by_run.values()}.values()
        nodes.check(site, distinct, file.source)
        for chosen in distinct:
            site.check(chosen, file.source)
        waiting = live_jobs(ledger.runs_dir, runs=[p.dir for p in planned])
    except EnvironmentFailed as error:
        outage = str(error).partition(";")[0]
    requests = [
        Request(p, by_run[p.name], evaluate)
        for p in planned
        if p.lacks(evaluate) and p.name not in waiting and p.state != "running"
    ]
    report = settings.without_gpus() if evaluate else None
    arrays = pipeline.job_arrays(requests, most, report)
    return DryRun(arrays, waiting, outage, ledger, (ledger.runs_dir, data_dir))


def _names(array: JobArray) -> list[list[str]]:
    """The runs of each task."""
    return [[request.planned.name for request in runs] for runs in array.packs]


def _cells(array: JobArray) -> dict[str, str]:
    settings = array.settings
    before = {
        "": "",
        "afterany": "all",
        "afterok": ", ".join(a.name for a in array.after),
        "aftercorr": ", ".join(f"{a.name}, each" for a in array.after),
    }
    memory = settings.memory_gb
    return {
        "job": array.name,
        "tasks": str(array.tasks),
        "partition": settings.partition or "default",
        "time": "its limit" if settings.time is None else duration(settings.time * 60),
        "GPUs": _gpus(settings),
        "after": before[array.dependency],
        "at a time": str(min(array.throttle, array.tasks)),
        "CPUs": f"{settings.cpus_per_task} a {'run' if settings.is_packed else 'rank'}",
        "memory": "" if memory is None else f"{memory:g} GB",
    }


def _gpus(settings: Cluster) -> str:
    """`1`, `2 x a100:4` of two nodes; an option of sbatch where `extra` asks for them."""
    extra = [f"{k}={v}" for k, v in settings.extra.items() if k in GPU_OPTIONS and v is not False]
    text = settings.gpus or ", ".join(extra) or "none"
    return f"{settings.nodes} x {text}" if settings.nodes > 1 else text
