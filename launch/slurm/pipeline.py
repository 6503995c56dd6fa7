"""A grid as jobs of Slurm: for each run training, then evaluation; when all have ended, one report.

Trainings with the same resources are one throttled array, a task for each run or, where they are
packed, for a pack of runs. Evaluation is an array of the same length whose task waits for the
training's (`aftercorr`); it ends by itself where that failed, of a pack where all failed. Each
array is written into the ledger as soon as Slurm has it, so that the next sweep knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from diffuse.runtime.errors import EnvironmentFailed
from launch.grids.cluster import Cluster
from launch.grids.estimate import Queue, Task
from launch.grids.ledger import Ledger, Submission
from launch.grids.plan import Planned
from launch.grids.speeds import Place
from launch.jobs import pack, worker

if TYPE_CHECKING:  # a dry run shows its jobs without submitit
    from launch.slurm.executor import Submitter

T = TypeVar("T")
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "train": worker.train,
    "evaluate": worker.evaluate,
    "report": worker.report,
}
OF_PACKS: dict[str, Callable[..., Any]] = {"train": pack.train, "evaluate": pack.evaluate}


@dataclass(frozen=True)
class Request:
    """One run with missing cells, and the resources of its jobs."""

    planned: Planned
    settings: Cluster
    evaluate: bool = True


@dataclass(frozen=True)
class JobArray:
    """Jobs of one program, a task for each pack; the report's has one task and no run."""

    number: int  # from 1, in the order of submission
    program: str
    packs: tuple[tuple[Request, ...], ...]  # each of one run, unless the settings pack them
    settings: Cluster
    throttle: int  # tasks that run at the same time
    after: tuple[JobArray, ...] = ()  # that it waits for

    @property
    def name(self) -> str:
        """`01-train`: its folder."""
        return f"{self.number:02d}-{self.program}"

    @property
    def requests(self) -> tuple[Request, ...]:
        """The runs of all tasks."""
        return tuple(request for runs in self.packs for request in runs)

    @property
    def tasks(self) -> int:
        return max(1, len(self.packs))

    @property
    def dependency(self) -> str:
        """sbatch's word for how it waits; "" where it waits for nothing."""
        if not self.after:
            return ""
        if self.program == "report":
            return "afterany"
        return "aftercorr" if self.tasks > 1 else "afterok"


def job_arrays(
    requests: Sequence[Request], max_array_size: int, report: Cluster | None
) -> list[JobArray]:
    """The arrays that train and evaluate these runs, in the order of submission.

    Args:
        report: resources of the job that compares the grid at the end; None: no such job.
    """
    arrays: list[JobArray] = []

    def add(program: str, *more: Any) -> JobArray:
        arrays.append(JobArray(len(arrays) + 1, program, *more))
        return arrays[-1]

    for settings, group in _by_resources(requests):
        packs = list(_parts(group, settings.pack_size))
        parts = list(_parts(packs, max_array_size))
        throttle = max(1, (settings.array_parallelism or len(packs)) // len(parts))
        for part in parts:
            is_todo = group[0].planned.is_todo
            after = (add("train", part, settings, throttle),) if is_todo else ()
            runs = [request for one in part for request in one]
            if group[0].evaluate and any(request.planned.unevaluated for request in runs):
                add("evaluate", part, settings, throttle, after)
    if report is not None and arrays:
        add("report", (), report, 1, tuple(arrays))
    return arrays


def queues(arrays: Sequence[JobArray]) -> list[Queue]:
    """The trainings and evaluations of these arrays, for an estimate of their cost."""
    found = []
    for array in arrays:
        if array.program == "report":
            continue
        settings, trains = array.settings, array.program == "train"
        units = settings.nodes * (settings.gpus_per_node or settings.cpus)
        tasks = tuple(
            Task(tuple((one.planned, _place(one)) for one in runs), units, settings.at_once)
            for runs in array.packs
        )
        has_gpus = settings.gpus_per_node > 0
        found.append(
            Queue(array.name, tasks, array.throttle, has_gpus, settings.time, trains, not trains)
        )
    return found


def _place(request: Request) -> Place:
    settings, system = request.settings, request.planned.run.config.system
    ranks = 1 if settings.is_packed else settings.nodes * max(1, settings.gpus_per_node)
    return Place(
        _device(request) == "cuda",
        ranks,
        system.threads or settings.cpus_per_task,
        settings.runs_per_gpu,
        settings.gpu_type or "",
    )


def submit_all(
    arrays: Sequence[JobArray],
    submitter: Submitter,
    ledger: Ledger,
    submission: Submission,
    data_dir: Path,
) -> str:
    """Submit these arrays.

    Returns why there is no report's job where Slurm refuses that one: a partition of GPUs, say, for
    a job without. The runs do not need it. Raises EnvironmentFailed where it refuses another.
    """
    ids: dict[int, str] = {}  # of the arrays in Slurm, by their number
    for array in arrays:
        try:
            ids[array.number] = _submit(array, ids, submitter, ledger, submission, data_dir)
        except EnvironmentFailed as error:
            if array.program != "report":
                raise
            return str(error)
    return ""


def _submit(
    array: JobArray,
    ids: dict[int, str],
    submitter: Submitter,
    ledger: Ledger,
    submission: Submission,
    data_dir: Path,
) -> str:
    """Submit one array; its id. It is written down before, by its folder, and after, by its jobs'
    ids: Slurm may have it although we never hear so (a timeout, the end of this process)."""
    folder = submitter.folder / array.name
    records: list[dict[str, Any]] = []
    for task, runs in enumerate(array.packs or ((None,),)):
        for request in runs:
            run = None if request is None else request.planned.run
            name, epochs = (None, []) if run is None else (run.name, list(run.epochs))
            place = {"folder": str(folder), "task": task}
            records.append({"run": name, "program": array.program, "job_id": "", "epochs": epochs})
            records[-1] |= place | ({"pack": len(runs)} if array.settings.is_packed else {})
    submission.jobs += records
    ledger.record(submission)
    after = ":".join([array.dependency, *(ids[before.number] for before in array.after)])
    function = FUNCTIONS[array.program]
    calls = [_call(array, request, data_dir) for request in array.requests]
    if array.program == "report":
        logs = str(ledger.path / "logs")
        calls = [(str(ledger.runs_dir), ["--grid", ledger.grid], logs)]
    elif array.settings.is_packed:
        function, calls = OF_PACKS[array.program], _packed(array, data_dir)
    jobs = submitter.array(
        array.program, folder, function, calls, array.settings, array.throttle, after
    )
    for record in records:
        record["job_id"] = jobs[record["task"]]
    ledger.record(submission)
    return jobs[0].partition("_")[0]


def _call(array: JobArray, request: Request, data_dir: Path) -> tuple[Any, ...]:
    """The arguments of a task's function."""
    planned, settings = request.planned, array.settings
    run_dir, most = str(planned.dir.path), settings.max_requeues
    if array.program == "train":
        config = planned.run.config.model_dump(mode="json")
        system = config["system"]
        system["threads"] = system["threads"] or settings.cpus_per_task
        system["device"] = _device(request)
        return run_dir, config, str(data_dir), {}, most
    epochs = list(planned.unevaluated)
    options = [*planned.run.evaluation(epochs), f"--device={_device(request)}"]
    return run_dir, epochs, options, str(data_dir), {}, most


def _packed(array: JobArray, data_dir: Path) -> list[tuple[Any, ...]]:
    """The arguments of the tasks' function, where each has several runs."""
    settings = array.settings
    how = (settings.at_once, settings.cpus_per_task, settings.mps)
    return [([_call(array, one, data_dir) for one in runs], *how) for runs in array.packs]


def _device(request: Request) -> str:
    """The run's system.device; by default CUDA where the job has GPUs, so never the CPU unsaid."""
    device = request.planned.run.config.system.device
    return request.settings.device if device == "auto" else device


def _by_resources(requests: Sequence[Request]) -> Iterator[tuple[Cluster, list[Request]]]:
    """The requests by their resources and whether they train."""
    groups: dict[tuple[str, bool], list[Request]] = {}
    for request in requests:
        key = (request.settings.model_dump_json(), request.planned.is_todo)
        groups.setdefault(key, []).append(request)
    for group in groups.values():
        yield group[0].settings, group


def _parts(group: Sequence[T], size: int) -> Iterator[tuple[T, ...]]:
    """Parts no longer than `size`, as a pack, or the site's MaxArraySize (one above an index)."""
    for start in range(0, len(group), size):
        yield tuple(group[start : start + size])
