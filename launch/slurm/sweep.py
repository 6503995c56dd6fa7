"""A sweep on a Slurm cluster: submit the missing jobs, print their ids, return."""

from __future__ import annotations

import importlib.util
import sys
import time
from bisect import bisect_right
from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Console

from diffuse.config.validation import Layer
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.errors import EnvironmentFailed, UserError
from launch.grids import probe
from launch.grids.cluster import ClusterFile
from launch.grids.estimate import estimate
from launch.grids.grid import Grid
from launch.grids.ledger import Ledger, Submission, known_configs, submissions
from launch.grids.plan import Planned, plan, summary
from launch.grids.selection import Where
from launch.jobs import snapshot
from launch.jobs.logs import cancellation
from launch.slurm import commands, nodes, pipeline
from launch.slurm.executor import Submitter, require_readable
from launch.slurm.live_jobs import live_jobs
from launch.slurm.pipeline import Request

LOCK_WAIT_S = 120


def submit(
    grid: Grid,
    file: ClusterFile,
    typed: Sequence[Layer],
    runs_dir: Path,
    data_dir: Path,
    evaluate: bool,
    out: Console,
    again: str,
) -> int:
    """Submit the grid's missing jobs; 0 also where there is nothing to do.

    Args:
        again: the command that resumes, in words: `the same command`.
    """
    ledger = Ledger(runs_dir.absolute(), grid.name)
    settings = file.resolve([grid.cluster, *typed])
    by_run = {run.name: file.resolve([*run.cluster, *typed]) for run in grid.runs}
    in_image = any(chosen.image for chosen in (settings, *by_run.values()))
    binds = (ledger.runs_dir, data_dir)
    require_readable(ledger.path, binds, in_image)
    site = commands.site()
    distinct = {s.model_dump_json(): s for s in by_run.values()}.values()
    nodes.check(site, distinct, file.source)
    for chosen in distinct:
        site.check(chosen, file.source)
        if chosen.image is not None and not Path(chosen.image).exists():
            raise UserError(f"{file.source}: image {chosen.image}: not found (make image)")
        if chosen.image is None and importlib.util.find_spec("torch") is None:
            raise UserError(
                f"{file.source}: image: none, and the Python here, which jobs would run with, has"
                " no torch; make image and name it, or pip install -e '.[train]'"
            )
    with ledger.locked(LOCK_WAIT_S), ledger.submitting(LOCK_WAIT_S):
        ledger.note_runs(grid.runs)
        planned = plan(grid, ledger.runs_dir)
        active = live_jobs(ledger.runs_dir, runs=[p.dir for p in planned])
        lacking = [p for p in planned if p.lacks(evaluate)]
        waiting = {p.name: active[p.name] for p in lacking if p.name in active}
        todo = [p for p in lacking if p.name not in waiting and p.state != "running"]
        title = f"grid {grid.name} in {runs_dir}"
        out.print(f"{title}: {summary(planned)}", soft_wrap=True)
        for name, jobs in waiting.items():
            out.print(f"  {name}: {', '.join(map(str, jobs))}", soft_wrap=True)
        if not todo:
            hint = f"; when these jobs have ended, {again} submits what is still missing"
            out.print("nothing to submit" + (hint if waiting else ""), soft_wrap=True)
            return 0
        requests = [Request(p, by_run[p.name], evaluate) for p in todo]
        room = site.max_jobs - commands.job_count()
        requests, left = _within_limit(requests, site.max_array_size, room)
        todo = [request.planned for request in requests]
        code = snapshot.take(ledger.code_dir)
        submission = Submission(
            name=f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{time.time_ns() % 10**6:06d}",
            grid=grid.name,
            cluster=file.name,
            code=code.hash,
            commit=code.commit,
            command=sys.argv,
            code_changed=_changed_code(todo, ledger, code.hash),
        )
        for name, before in submission.code_changed.items():
            out.print(
                f"  {name}: the code changed since its last jobs ({before} -> {code.hash})",
                soft_wrap=True,
            )
        folder = ledger.path / f"jobs-{submission.name}"
        report = settings.without_gpus() if evaluate else None
        arrays = pipeline.job_arrays(requests, site.max_array_size, report)
        costs = estimate(pipeline.queues(arrays), probe.speeds(ledger.runs_dir))
        ledger.note_costs(costs.of_whole_runs())
        for remark in costs.remarks(is_submitted=True):
            out.print(f"  {remark}", soft_wrap=True)
        submitter = Submitter(folder, grid.name, code, binds)
        try:
            refused = pipeline.submit_all(arrays, submitter, ledger, submission, data_dir)
        finally:  # where Slurm refuses one array, those before it are there
            _announce(submission, out, runs_dir)
    if refused:
        out.print(
            f"no job for the report ({refused}); when all have ended: python launch/compare.py"
            f" --grid {grid.name} --runs-dir {runs_dir}",
            soft_wrap=True,
        )
    if left:
        out.print(
            f"{left} run{'s are' if left > 1 else ' is'} left: Slurm keeps at most {site.max_jobs}"
            f" jobs here (MaxJobCount); {again} submits them once others have ended",
            soft_wrap=True,
        )
    return 0


def cancel(
    runs_dir: Path,
    grid: str,
    only: str | None,
    out: Console,
    where: Where | None = None,
    dry_run: bool = False,
) -> int:
    """End the grid's jobs that wait or run; their trainings save first where Slurm lets them.

    Args:
        only: a glob that the names of runs must match; None: all of the grid, its report too.
        where: settings that the runs must have. Raises UserError where none of the grid has them.
        dry_run: only say which jobs would end.

    A job that has other runs, too, goes on with those.
    """
    ledger_dir = runs_dir.absolute()
    live = live_jobs(ledger_dir, grid)
    jobs = live
    if only is not None:
        jobs = {run: listed for run, listed in jobs.items() if fnmatchcase(run, only)}
    if where is not None:
        known = known_configs(ledger_dir, jobs)
        kept = where.chosen(known, f"grid {grid} with a job")
        jobs = {run: jobs[run] for run in kept}
    kept_on = {job.id for run, listed in live.items() if run not in jobs for job in listed}
    found = [(run, job.id) for run, listed in jobs.items() for job in listed]
    ids = list(dict.fromkeys(job_id for _, job_id in found if job_id not in kept_on))
    parts = [(run, job_id) for run, job_id in found if job_id in kept_on]
    if not found:
        out.print(f"grid {grid} in {runs_dir}: no job waits or runs")
        return 0
    if not dry_run:
        for run, job_id in parts:
            files.write_text(cancellation(RunDir(ledger_dir / run), job_id), "")
        if only is None and where is None:  # an array of thousands is ended by its own id at once
            commands.cancel(list(dict.fromkeys(job_id.partition("_")[0] for job_id in ids)))
        elif ids:
            commands.cancel(ids)
    done = "would cancel" if dry_run else "cancelled"
    whole = {run: None for run, job_id in found if job_id not in kept_on}
    lines = [f"{len(ids)} jobs, {_names(whole)}"] if ids else []
    if parts:
        names = dict.fromkeys(run for run, _ in parts)
        lines.append(f"{_names(names).removeprefix('of ')}, whose jobs go on with other runs")
    out.print(f"grid {grid} in {runs_dir}: {done} {'; '.join(lines)}", soft_wrap=True)
    return 0


def _names(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:4])
    return f"of {shown}" + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _within_limit(
    requests: list[Request], max_array_size: int, room: int
) -> tuple[list[Request], int]:
    """As many of the runs as Slurm has room for the jobs of, and how many are left."""

    def jobs(n: int) -> int:
        arrays = pipeline.job_arrays(requests[:n], max_array_size, None)
        return sum(array.tasks for array in arrays) + 1  # the report's

    n = bisect_right(range(len(requests) + 1), room, key=jobs) - 1
    if n < 1:
        raise EnvironmentFailed(
            "Slurm keeps no more jobs just now (MaxJobCount); try again once it has forgotten some"
            " of those that ended"
        )
    return requests[:n], len(requests) - n


def _changed_code(todo: Sequence[Planned], ledger: Ledger, code: str) -> dict[str, str]:
    """Runs whose last jobs ran other code, and that code."""
    names = {p.name for p in todo if p.state != "new"}
    last: dict[str, str] = {}
    for submission in submissions(ledger.runs_dir):
        jobs = [j for j in submission.jobs if j["job_id"] and j["run"] in names]
        last.update({j["run"]: submission.code for j in jobs})
    return {name: before for name, before in last.items() if before != code}


def _announce(submission: Submission, out: Console, runs_dir: Path) -> None:
    jobs = [record for record in submission.jobs if record["job_id"]]
    if not jobs:
        return
    by_array: dict[tuple[str, str], list[str]] = {}  # the task of each run
    for record in jobs:
        key = (record["program"], record["job_id"].partition("_")[0])
        by_array.setdefault(key, []).append(record["job_id"])
    for (program, array), ids in by_array.items():
        n, runs = len(set(ids)), len(ids)
        tasks = f", {n} tasks" if n > 1 else ""
        packed = f", {runs} runs" if runs > n else ""
        out.print(f"  {program}: job {array}{tasks}{packed}", soft_wrap=True)
    where = f"--grid {submission.grid} --runs-dir {runs_dir}"
    out.print(f"submitted; watch: python launch/status.py {where} --follow", soft_wrap=True)
