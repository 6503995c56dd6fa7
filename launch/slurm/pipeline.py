"""A grid as jobs of Slurm: for each run training, then evaluation; when all have ended, one report.

Trainings with the same resources are one throttled array. Evaluation is an array of the same
length whose task waits for the training's (`aftercorr`); it ends by itself where that failed. Each
array is written into the ledger as soon as Slurm has it, so that the next sweep knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffuse.runtime.errors import EnvironmentFailed
from launch.jobs import worker
from launch.jobs.cluster import Cluster
from launch.jobs.ledger import Ledger, Submission
from launch.jobs.plan import Planned
from launch.slurm.commands import Site
from launch.slurm.executor import Submitter


@dataclass(frozen=True)
class Request:
    """One run with missing cells, and the resources of its jobs."""

    planned: Planned
    settings: Cluster
    evaluate: bool = True


def submit_all(
    requests: Sequence[Request],
    submitter: Submitter,
    ledger: Ledger,
    submission: Submission,
    data_dir: Path,
    site: Site,
    report: Cluster | None,
) -> str:
    """Submit the missing trainings and evaluations of these runs.

    Args:
        report: resources of the job that compares the grid at the end; None: no such job.

    Returns why there is no report's job where Slurm refuses that one: a partition of GPUs, say, for
    a job without. The runs do not need it. Raises EnvironmentFailed where it refuses another.
    """
    pipeline = _Pipeline(submitter, ledger, submission, data_dir)
    for settings, group in _by_resources(requests):
        parts = list(_arrays(group, site.max_array_size))
        throttle = max(1, (settings.array_parallelism or len(group)) // len(parts))
        for part in parts:
            after = pipeline.train(part, settings, throttle) if part[0].planned.is_todo else None
            if part[0].evaluate and any(request.planned.unevaluated for request in part):
                pipeline.evaluate(part, settings, throttle, after)
    if report is not None and pipeline.arrays:
        try:
            pipeline.report(report)
        except EnvironmentFailed as error:
            return str(error)
    return ""


@dataclass
class _Pipeline:
    """The arrays of one submission, handed in one after another."""

    submitter: Submitter
    ledger: Ledger
    submission: Submission
    data_dir: Path
    arrays: list[str] = field(default_factory=list)  # their ids so far

    def train(self, part: Sequence[Request], settings: Cluster, throttle: int) -> str:
        """Returns the dependency of an evaluation of the same runs."""
        calls: list[tuple[Any, ...]] = []
        for request in part:
            config = request.planned.run.config.model_dump(mode="json")
            system = config["system"]
            system["threads"] = system["threads"] or settings.cpus_per_task
            system["device"] = _device(request)
            run_dir = str(request.planned.dir.path)
            calls.append((run_dir, config, str(self.data_dir), {}, settings.max_requeues))
        first, *_ = self._array("train", worker.train, part, calls, settings, throttle)
        array, is_array, _ = first.partition("_")
        return f"{'aftercorr' if is_array else 'afterok'}:{array}"

    def evaluate(
        self, part: Sequence[Request], settings: Cluster, throttle: int, after: str | None
    ) -> None:
        calls: list[tuple[Any, ...]] = []
        for request in part:
            planned = request.planned
            epochs = list(planned.unevaluated)
            options = [*planned.run.evaluation(epochs), f"--device={_device(request)}"]
            run_dir, most = str(planned.dir.path), settings.max_requeues
            calls.append((run_dir, epochs, options, str(self.data_dir), {}, most))
        self._array("evaluate", worker.evaluate, part, calls, settings, throttle, after)

    def report(self, settings: Cluster) -> None:
        arguments = ["--grid", self.ledger.grid]
        call = (str(self.ledger.runs_dir), arguments, str(self.ledger.path / "logs"))
        after = f"afterany:{':'.join(self.arrays)}"
        self._array("report", worker.report, [None], [call], settings, 1, after)

    def _array(
        self,
        program: str,
        function: Callable[..., Any],
        part: Sequence[Request | None],
        calls: Sequence[tuple[Any, ...]],
        settings: Cluster,
        throttle: int,
        after: str | None = None,
    ) -> list[str]:
        """Submit one array. It is written down before, by its folder, and after, by its jobs' ids:
        Slurm may have it although we never hear so (a timeout, the end of this process)."""
        folder = self.submitter.folder / f"{len(self.arrays) + 1:02d}-{program}"
        records: list[dict[str, Any]] = []
        for task, request in enumerate(part):
            run = None if request is None else request.planned.run
            name, epochs = (None, []) if run is None else (run.name, list(run.epochs))
            place = {"folder": str(folder), "task": task}
            record = {"run": name, "program": program, "job_id": "", "epochs": epochs}
            records.append({**record, **place})
        self.submission.jobs += records
        self.ledger.record(self.submission)
        ids = self.submitter.array(program, folder, function, calls, settings, throttle, after)
        for record, job_id in zip(records, ids, strict=True):
            record["job_id"] = job_id
        self.ledger.record(self.submission)
        self.arrays.append(ids[0].partition("_")[0])
        return ids


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


def _arrays(group: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    """Arrays no longer than the site's MaxArraySize (whose largest index is one less)."""
    for start in range(0, len(group), size):
        yield group[start : start + size]
