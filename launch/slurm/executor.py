"""Hand jobs to Slurm as arrays, through submitit.

The batch script runs on the host: it starts one Python per rank with srun, inside the image where
there is one, and afterwards requeues its own array task where the work was interrupted (there is
no scontrol in an image).
"""

from __future__ import annotations

import contextlib
import functools
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import submitit
from submitit.core import utils

from diffuse.runtime import files
from diffuse.runtime.errors import UserError
from diffuse.tracking.connection import folder_settings
from launch.grids.cluster import Cluster
from launch.jobs.snapshot import Snapshot, require_importable
from launch.slurm import commands

# Rank 0 says by a file that the work was interrupted: of several ranks srun ends some by a signal
# once the first has ended, and then reports that instead.
JOB_ID = """\
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}
export DIFFUSE_INTERRUPTED=%s/interrupted-$job-r${SLURM_RESTART_COUNT:-0}"""

# A job whose work was interrupted is requeued, unless Slurm has ended it (scancel, say). A job that
# outlived a dead node must not requeue the attempt that has its place under the same id.
REQUEUE = """\
code=$?
rm "$DIFFUSE_INTERRUPTED" 2>/dev/null && code=75
mine="JobState=RUNNING .* Restarts=${SLURM_RESTART_COUNT:-0} "
if [ $code -eq 75 ] && scontrol show job "$job" --oneliner | grep -q "$mine"; then
  if scontrol requeue "$job"; then
    sleep 60 # Slurm ends this script
  else
    echo "error: Slurm did not requeue $job; the next sweep goes on from its checkpoint" >&2
  fi
fi
exit $code"""


def resources(settings: Cluster, least_ranks: int = 1) -> dict[str, Any]:
    """The resources of one job, by sbatch's names with underscores; None leaves it to the site."""
    return {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "time": settings.time,
        "nodes": settings.nodes,
        "ntasks_per_node": 1
        if settings.is_packed
        else max(settings.gpus_per_node, -(-least_ranks // settings.nodes)),
        "gpus_per_node": settings.gpus,
        "cpus_per_task": settings.cpus,
        "mem": None if settings.memory_gb is None else f"{round(settings.memory_gb * 1024)}M",
    }


@dataclass(frozen=True)
class Submitter:
    """Submits arrays of calls of one function of launch.jobs.worker or launch.jobs.pack.

    Args:
        folder: for submitit's files: scripts, pickles, the output of jobs before their programs
            start; each array has a folder in it.
        binds: folders that the image must see.
        least_ranks: of a job, where its GPUs are fewer.
    """

    folder: Path
    grid: str
    snapshot: Snapshot
    binds: tuple[Path, ...]
    least_ranks: int = 1

    def script(
        self,
        program: str,
        folder: Path,
        tasks: int,
        settings: Cluster,
        throttle: int,
        after: str = "",
    ) -> str:
        """The batch script of such an array; writes nothing, and needs no Slurm."""
        executor = self._executor(program, folder, settings, throttle, after, keep=False)
        if tasks > 1:
            executor.parameters["map_count"] = tasks
        text: str = executor._make_submission_file_text(executor._submitit_command_str, "")
        return text

    def array(
        self,
        program: str,
        folder: Path,
        function: Callable[..., Any],
        calls: Sequence[tuple[Any, ...]],
        settings: Cluster,
        throttle: int,
        after: str = "",
    ) -> list[str]:
        """Submit one array with a task for each call; the ids of its tasks.

        Args:
            folder: of this array alone; its jobs start there, and so can be found by it.
            after: its dependency, as sbatch has it; "": none; one that can never be met ends it.

        Raises EnvironmentFailed with Slurm's own words where it refuses.
        """
        executor = self._executor(program, folder, settings, throttle, after)
        with _our_sbatch(), commands.outside_any_job(settings):
            jobs = executor.map_array(function, *zip(*calls, strict=True))
        return [str(job.job_id) for job in jobs]

    def _executor(
        self,
        program: str,
        folder: Path,
        settings: Cluster,
        throttle: int,
        after: str,
        keep: bool = True,
    ) -> submitit.SlurmExecutor:
        executor = _Executor(folder, python=self._python(settings))
        options: dict[str, Any] = {
            "requeue": "no-requeue" not in settings.extra,  # also after a node's death
            "signal": f"USR2@{_notice_s(settings.time)}",
            "chdir": str(folder),
            "propagate": "NONE",  # of the login node's limits (CPU time, memory, open files)
        }
        if after:
            options |= {"dependency": after, "kill_on_invalid_dep": "yes"}
        options |= {key.replace("-", "_"): value for key, value in settings.extra.items()}
        name = (JOB_ID % shlex.quote(str(folder))).splitlines()
        executor.update_parameters(
            job_name=f"{program}-{self.grid}",
            **resources(settings, self.least_ranks),
            array_parallelism=throttle,
            wckey=None,
            stderr_to_stdout=True,
            # A preempting SIGTERM is for the ranks: this script is to requeue them.
            setup=["trap : TERM", *name, *settings.setup, *self._exports(settings, keep)],
            srun_args=["--kill-on-bad-exit=1", f"--cpus-per-task={settings.cpus}"],
            teardown=REQUEUE.splitlines(),
            additional_parameters={k: v for k, v in options.items() if v is not False},
        )
        return executor

    def _exports(self, settings: Cluster, keep: bool) -> list[str]:
        variables = {
            "PYTHONSAFEPATH": "1",  # the folder a job starts in is no code
            "DIFFUSE_CODE": self.snapshot.hash,
            "DIFFUSE_GRID": self.grid,
            "OMP_NUM_THREADS": str(settings.cpus_per_task),
            "SLURM_EXPORT_ENV": "ALL",  # sbatch's --export=NONE is for the job, not for its srun
            # submitit would requeue by itself, from inside the image: give it a signal nobody sends
            "SUBMITIT_PREEMPT_SIGNAL": "WINCH",
            # jobs start in a folder of their own, and so would not see `wandb offline`
            **folder_settings(Path.cwd()),
        }
        if self.snapshot.commit:
            variables["DIFFUSE_COMMIT"] = self.snapshot.commit
        if settings.image:
            path = Path(settings.image).absolute()
            variables["DIFFUSE_IMAGE"] = str(path)
            variables["DIFFUSE_IMAGE_SHA256"] = image_sha256(path, keep)
        lines = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
        # A module's folders on the path stay behind, torch perhaps; an image has its own.
        rest = "" if settings.image else "${PYTHONPATH:+:$PYTHONPATH}"
        lines.append(f"export PYTHONPATH={shlex.quote(str(self.snapshot.path))}{rest}")
        if settings.image:
            lines.append(
                "APPTAINER=$(command -v apptainer || command -v singularity)"
                ' || { echo "error: no apptainer on $SLURMD_NODENAME; load it in the cluster'
                " file's setup\" >&2; exit 1; }"
            )
        return lines

    def _python(self, settings: Cluster) -> str:
        """The shell command that is python in a job, up to its arguments.

        A signal during Python's start must not end it; the job takes it up once it can.
        """
        start = """bash -c 'trap "" USR2 TERM; exec "$@"' diffuse-job"""
        if settings.image is None:
            return f"{start} {shlex.quote(sys.executable)}"
        binds = dict.fromkeys((*map(str, self.binds), *settings.binds))
        options = [f"--bind={shlex.quote(bind)}" for bind in binds]
        if settings.gpus_per_node:
            options.append("--nv")
        image = shlex.quote(str(Path(settings.image).absolute()))
        return " ".join([start, '"$APPTAINER" exec', *options, image, "python"])


def require_readable(folder: Path, binds: Iterable[Path], in_image: bool) -> None:
    """UserError for a path that a job would misread, however it is quoted.

    Args:
        folder: holds job scripts and snapshots of the code.
        binds: folders that the image must see, where there is one.
    """
    require_importable(folder)
    rules = [("\n\r%\\", (folder, *binds), "Slurm takes no path with %, \\ or a line break")]
    if in_image:
        words = "Apptainer's --bind takes no path with a colon, a comma or a quotation mark"
        rules += [(':,"', tuple(binds), words)]
    for characters, paths, words in rules:
        for path in paths:
            if set(characters) & set(str(path)):
                raise UserError(f"{str(path)!r}: {words}; rename it, or use another")


@functools.cache  # for each array of a sweep, also where nothing can be kept beside the image
def image_sha256(image: Path, keep: bool = True) -> str:
    """The image's SHA-256: that in IMAGE.sha256 where it is of this very image, else computed.

    Reading gigabytes takes a while: `make image` and slurm/common.sh keep it in the same file, with
    the image's size and time in ns: a newer image may be dated earlier (`cp -p`).

    Args:
        keep: whether a computed one is written there.
    """
    known = image.with_name(f"{image.name}.sha256")
    facts = image.stat()
    stamp = f"# {facts.st_size} {facts.st_mtime_ns}"
    with contextlib.suppress(OSError, ValueError):
        line, *more = known.read_text().splitlines()
        if more == [stamp]:
            return line.split(" ")[0]
    digest = files.sha256(image)
    if not keep:
        return digest
    with contextlib.suppress(OSError):  # an image that others built, in a folder of theirs
        files.write_text(known, f"{digest}  {image.name}\n{stamp}\n")
    return digest


class _Executor(submitit.SlurmExecutor):  # type: ignore[misc] # it has no types
    """Writes its script also where there is no Slurm."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def _sbatch(command: list[str], verbose: bool) -> Callable[[], str]:
    """Runs sbatch for submitit, whose own function waits for ever and reads a banner as a job's id.

    A site's sbatch may be a wrapper that prints more than the job's id, in any encoding.
    """
    return lambda: f"Submitted batch job {commands.submit(*command)}"


@contextlib.contextmanager
def _our_sbatch() -> Iterator[None]:
    theirs, utils.CommandFunction = utils.CommandFunction, _sbatch
    try:
        yield
    finally:
        utils.CommandFunction = theirs


def _notice_s(minutes: int | None) -> int:
    """Seconds between the signal and the time limit; Slurm may send it up to 60 s earlier."""
    return 90 if minutes is None else min(90, max(15, minutes * 60 // 6))
