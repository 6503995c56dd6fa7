"""A grid as jobs of Slurm: for each run training, then evaluation; when all have ended, one report.

Trainings with the same resources are one throttled array. Evaluation is an array of the same
length whose task waits for the training's (`aftercorr`); it ends by itself where that failed. Each
array is written into the ledger as soon as Slurm has it, so that the next sweep knows of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import job
from launch.cluster import Cluster
from launch.ledger import Ledger, Submission
from launch.plan import Planned
from launch.slurm import Site
from launch.submit import Submitter


@dataclass(frozen=True)
class Request:
    """One run that lacks something, and what its jobs are to be given."""

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
) -> None:
    """Submit what the runs lack.

    Args:
        report: resources of the job that compares the grid at the end; None: no such job.
    """
    arrays: list[str] = []
    for settings, group in _shapes(requests):
        parts = list(_split(group, site.max_array_size))
        throttle = max(1, (settings.array_parallelism or len(group)) // len(parts))
        for part in parts:
            ids = _train(part, settings, throttle, submitter, data_dir)
            _note(submission, ledger, "train", part, ids)
            arrays += {i.partition("_")[0] for i in ids}
            waiting = [request for request in part if request.planned.unevaluated]
            if not waiting or not part[0].evaluate:
                continue
            after = None
            if ids:
                kind = "aftercorr" if "_" in ids[0] else "afterok"
                after = f"{kind}:{ids[0].partition('_')[0]}"
            ids = _evaluate(part, settings, throttle, submitter, data_dir, after)
            _note(submission, ledger, "evaluate", part, ids)
            arrays += {i.partition("_")[0] for i in ids}
    if report is not None and arrays:
        arguments = ["--grid", ledger.grid]
        call = (str(ledger.runs_dir), arguments, str(ledger.path / "logs"))
        after = f"afterany:{':'.join(dict.fromkeys(arrays))}"
        ids = submitter.array("report", job.report, [call], report, 1, after)
        submission.jobs.append({"run": None, "program": "report", "job_id": ids[0], "epochs": []})
        ledger.record(submission)


def _train(
    part: Sequence[Request], settings: Cluster, throttle: int, submitter: Submitter, data_dir: Path
) -> list[str]:
    if not part[0].planned.is_todo:
        return []
    calls: list[tuple[Any, ...]] = []
    for request in part:
        config = request.planned.run.config.model_dump(mode="json")
        config["system"]["threads"] = config["system"]["threads"] or settings.cpus_per_task
        run_dir = str(request.planned.dir.path)
        calls.append((run_dir, config, str(data_dir), {}, settings.max_requeues))
    return submitter.array("train", job.train, calls, settings, throttle)


def _evaluate(
    part: Sequence[Request],
    settings: Cluster,
    throttle: int,
    submitter: Submitter,
    data_dir: Path,
    after: str | None,
) -> list[str]:
    calls: list[tuple[Any, ...]] = []
    for request in part:
        planned = request.planned
        epochs, options = list(planned.unevaluated), planned.run.evaluation
        run_dir, most = str(planned.dir.path), settings.max_requeues
        calls.append((run_dir, epochs, options, str(data_dir), {}, most))
    return submitter.array("evaluate", job.evaluate, calls, settings, throttle, after)


def _note(
    submission: Submission,
    ledger: Ledger,
    program: str,
    part: Sequence[Request],
    ids: Sequence[str],
) -> None:
    for request, job_id in zip(part, ids, strict=False):
        run = request.planned.run
        submission.jobs.append(
            {"run": run.name, "program": program, "job_id": job_id, "epochs": list(run.epochs)}
        )
    ledger.record(submission)


def _shapes(requests: Sequence[Request]) -> Iterator[tuple[Cluster, list[Request]]]:
    """The requests by what they are to be given and whether they train."""
    groups: dict[tuple[str, bool], list[Request]] = {}
    for request in requests:
        key = (request.settings.model_dump_json(), request.planned.is_todo)
        groups.setdefault(key, []).append(request)
    for group in groups.values():
        yield group[0].settings, group


def _split(group: Sequence[Request], size: int) -> Iterator[Sequence[Request]]:
    """Arrays no longer than the site's MaxArraySize (whose largest index is one less)."""
    for start in range(0, len(group), size):
        yield group[start : start + size]
