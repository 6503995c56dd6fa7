"""A real Slurm that preempts, loses nodes and its controller, refuses, hangs and lags."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import psutil

from diffuse.rundir.directory import RunDir
from tests import programs
from tests.cluster import install
from tests.cluster.cluster import Cluster
from tests.cluster.daemons import wait_until
from tests.drill import program
from tests.drill.drill import Drill
from tests.drill.specimen import datasets
from tests.lab import DDPM, SMALL, URGENT, Lab
from tests.programs import ROOT

EPOCHS = 24  # of 16 steps: some seconds
PICTURED = (*SMALL, f"--set=samples.at_epochs={EPOCHS}", "--set=samples.images=4")
HOLD = "--cluster-set=extra={hold: true}"
# Two shapes of resources: two arrays each, and a report.
FIVE_CALLS = """
runs:
  - {preset: ddpm/default, epochs: [1], seeds: [0, 1]}
  - {preset: ddpm/light, epochs: [1], seeds: [0, 1], cluster: {time: 20}}
"""
PAIR = (  # in one job
    "cluster: {runs_per_gpu: 2}\n"
    f"runs: [{{preset: ddpm/default, epochs: [{EPOCHS}]}}, {{preset: ddpm/default, seeds: [0],"
    f" epochs: [{EPOCHS}]}}]"
)
NO_ANSWER = "echo 'sbatch: error: Socket timed out on send/recv operation' >&2; exit 1"
SBATCH = {
    "refuses": NO_ANSWER,
    "takes the job, and says that it timed out": f'"$real" "$@" >/dev/null; {NO_ANSWER}',
    "takes the job, and the launcher dies": '"$real" "$@"; kill -9 $PPID',
    "prints nonsense": "echo nonsense",
    "hangs": "exec sleep 600",
}


def run_jobs(drill: Drill) -> None:
    """Faults of jobs that wait or run."""
    with _cluster(drill) as cluster:
        if cluster is None:
            return
        twin = _twin(drill)
        for k in drill.times(1):
            _preemption_storm(drill, cluster, twin, k)
            _told_twice(drill, cluster, twin, k)
            _controller_restarts(drill, cluster, twin, k)
            _node_dies(drill, cluster, twin, k)
            _pack_is_preempted(drill, cluster, twin, k)
            _pack_loses_its_node(drill, cluster, twin, k)
            _orphan_writes(drill, cluster, twin, k)
            _queue_lags(drill, cluster, twin)


def run_submission(drill: Drill) -> None:
    """Faults of the launcher while it submits."""
    with _cluster(drill) as cluster:
        if cluster is None:
            return
        for how, fault in SBATCH.items():
            for k in drill.times(1 if how == "hangs" else 3):
                _sbatch(drill, cluster, how, fault, k)
        for name in ("squeue", "sacct"):
            _no_answer(drill, cluster, name)
        for k in drill.times(6):
            _launcher_dies(drill, cluster, k)
        for _ in drill.times(2):
            _launchers_at_once(drill, cluster)


@contextlib.contextmanager
def _cluster(drill: Drill) -> Iterator[Cluster | None]:
    """A Slurm cluster; None, which the table shows, where there can be none."""
    if reason := install.obstacle():
        drill.tally.left_out[drill.part] = reason
        yield None
    else:
        with Cluster() as cluster:
            yield cluster


def _twin(drill: Drill) -> RunDir:
    folder = drill.folder / "twin-slurm"
    where = (f"--runs-dir={folder}", f"--data-dir={drill.data_dir}", f"--epochs={EPOCHS}")
    log = drill.folder / "twin-slurm.log"
    arguments = ("--preset=ddpm/default", *PICTURED, "--threads=1", *where)
    program.finish("diffuse.train", *arguments, log=log)
    return programs.only_run(folder)


@contextlib.contextmanager
def _lab(drill: Drill, cluster: Cluster, fault: str, grid: str, faults: int = 1) -> Iterator[Lab]:
    with drill.trial(fault, faults) as folder:
        try:
            yield Lab(cluster, grid, folder, drill.data_dir, warm=False, settings=PICTURED)
        finally:
            cluster.cancel_all()


def _assert_survived(lab: Lab, twin: RunDir) -> None:
    """The jobs, or else the next sweep, train it to the end; all that counts equals the twin's."""
    lab.wait_empty(240)
    runs = [RunDir(path.parent) for path in lab.runs.glob("*/logs")]
    if any(run.status().get("state") != "done" for run in runs):
        lab.sweep("--no-evaluate")
        lab.wait_empty(240)
    assert [run.status()["state"] for run in runs] == ["done"] * len(runs)
    run = RunDir(lab.runs / twin.name)
    programs.assert_same_training(run, twin, EPOCHS)
    samples = f"epoch_{EPOCHS:04d}.h5"
    assert datasets(run.samples / samples) == datasets(twin.samples / samples)
    assert [line["attempt"] for line in programs.metric_lines(run)] == sorted(
        line["attempt"] for line in programs.metric_lines(run)
    ), "an older attempt wrote after a newer one had begun"


def _preempt(lab: Lab, rng: random.Random, times: int) -> None:
    """Take the nodes from the training, each time at some moment after a step."""
    for _ in range(times):
        lab.wait_training()
        time.sleep(rng.uniform(0, 2))
        urgent = lab.cluster.slurm(*URGENT, "--wrap=sleep 300").strip()
        lab.cluster.wait_for(urgent, "RUNNING")
        lab.cluster.slurm("scancel", urgent)


def _lose_node(lab: Lab, rng: random.Random) -> None:
    """Kill node1, on which the jobs run, and bring it back once Slurm has noticed."""
    lab.wait_training(rng.randint(1, 40))
    lab.cluster.kill_node("node1")
    try:
        states = lambda: lab.cluster.slurm("squeue", "-h", "-o%T")  # noqa: E731
        wait_until(lambda: "RUNNING" not in states(), 300, "NODE_FAIL")
    finally:
        lab.cluster.start_slurmd("node1")


def _preemption_storm(drill: Drill, cluster: Cluster, twin: RunDir, k: int) -> None:
    rng = drill.rng("storm", k)
    with _lab(drill, cluster, "preemption, again and again", DDPM % EPOCHS, 3) as lab:
        lab.sweep("--no-evaluate", "--cluster-set=partition=preempt")
        _preempt(lab, rng, times=3)
        _assert_survived(lab, twin)


def _told_twice(drill: Drill, cluster: Cluster, twin: RunDir, k: int) -> None:
    rng = drill.rng("twice", k)
    with _lab(drill, cluster, "USR2 twice to a job", DDPM % EPOCHS, 2) as lab:
        lab.sweep("--no-evaluate")
        job = lab.wait_training()
        for _ in range(2):
            with contextlib.suppress(RuntimeError):  # it has ended already
                cluster.slurm("scancel", "--signal=USR2", job)
            time.sleep(rng.uniform(0, 1))
        _assert_survived(lab, twin)


def _controller_restarts(drill: Drill, cluster: Cluster, twin: RunDir, k: int) -> None:
    """Meanwhile the run goes on, status reads run directories, and a sweep is refused."""
    rng = drill.rng("controller", k)
    with _lab(drill, cluster, "slurmctld restarted in mid-sweep", DDPM % EPOCHS) as lab:
        lab.sweep("--no-evaluate")
        lab.wait_training()
        cluster.stop_slurmctld()
        try:
            assert lab.status()[lab.run().name]["epochs"] == EPOCHS
            _assert_refused(lab.program("sweep.py", *lab.command("--no-evaluate")))
            time.sleep(rng.uniform(0, 3))
        finally:
            cluster.start_slurmctld()
        _assert_survived(lab, twin)


def _node_dies(drill: Drill, cluster: Cluster, twin: RunDir, k: int) -> None:
    rng = drill.rng("node", k)
    with _lab(drill, cluster, "node death", DDPM % EPOCHS) as lab:
        lab.sweep("--no-evaluate", "--cluster-set=extra={nodelist: node1}")
        _lose_node(lab, rng)
        _assert_survived(lab, twin)


def _pack_is_preempted(drill: Drill, cluster: Cluster, twin: RunDir, k: int) -> None:
    rng = drill.rng("pack", k)
    with _lab(drill, cluster, "preemption of a job of two runs", PAIR, 2) as lab:
        lab.sweep("--no-evaluate", "--cluster-set=partition=preempt")
        _preempt(lab, rng, times=2)
        _assert_survived(lab, twin)


def _pack_loses_its_node(drill: Drill, cluster: Cluster, twin: RunDir, k: int) -> None:
    rng = drill.rng("pack's node", k)
    with _lab(drill, cluster, "node death under a job of two runs", PAIR) as lab:
        lab.sweep("--no-evaluate", "--cluster-set=extra={nodelist: node1}")
        _lose_node(lab, rng)
        _assert_survived(lab, twin)


def _orphan_writes(drill: Drill, cluster: Cluster, twin: RunDir, k: int) -> None:
    """A node that only seems dead: its training sleeps, and wakes under its successor."""
    rng = drill.rng("orphan", k)
    with _lab(drill, cluster, "an orphaned attempt still writing", DDPM % EPOCHS) as lab:
        lab.sweep("--no-evaluate")
        lab.wait_training(rng.randint(1, 40))
        node = lab.status()[lab.run().name]["node"]
        orphan = psutil.Process(lab.run().attempt(1)["pid"])
        orphan.suspend()
        cluster.kill_slurmd(node)
        try:
            wait_until(lambda: lab.run().attempt_number() == 2, 300, "the job on another node")
            time.sleep(rng.uniform(0, 2))
            with contextlib.suppress(psutil.NoSuchProcess):
                orphan.resume()
            assert not psutil.wait_procs([orphan], timeout=600)[1], "the orphan goes on"
            lab.wait_empty(240)
        finally:
            cluster.start_slurmd(node)
        _assert_survived(lab, twin)


def _queue_lags(drill: Drill, cluster: Cluster, twin: RunDir) -> None:
    """squeue does not know waiting jobs yet: one is submitted twice, and trained as once.

    On two nodes, where the second job cannot see the first one's process.
    """
    with _lab(drill, cluster, "squeue lags behind sbatch", DDPM % EPOCHS) as lab:
        lab.sweep("--no-evaluate", "--cluster-set=extra={hold: true, nodelist: node1}")
        with _in_path(lab, "squeue", 1, "exit 0") as env:
            on_node2 = lab.command("--no-evaluate", "--cluster-set=extra={nodelist: node2}")
            done = lab.program("sweep.py", *on_node2, **env)
            assert done.returncode == 0, done.stderr
        for job in cluster.slurm("squeue", "-h", "-o%A").split():
            with contextlib.suppress(RuntimeError):
                cluster.slurm("scontrol", "release", job)
        lab.wait_empty(240)
        assert lab.run().attempt_number() <= 2, "they took the run from each other"
        _assert_survived(lab, twin)


def _sbatch(drill: Drill, cluster: Cluster, how: str, fault: str, k: int) -> None:
    """Of five calls one goes wrong; the next sweep submits the missing jobs, and only those."""
    number = drill.rng(how, k).randint(1, 5)
    with _lab(drill, cluster, f"sbatch {how}", FIVE_CALLS) as lab:
        with _in_path(lab, "sbatch", number, fault) as env:
            done = lab.program("sweep.py", *lab.command(HOLD), **env)
        if "launcher dies" in how:
            assert done.returncode == -signal.SIGKILL
        elif number == 5:  # the report's: a note says how to make it by hand
            assert done.returncode == 0, done.stderr
            assert "no job for the report (sbatch " in done.stdout
        else:
            _assert_refused(done)
            assert how != "hangs" or "no answer for 60 s" in done.stderr, done.stderr
        _assert_each_once(lab)


def _no_answer(drill: Drill, cluster: Cluster, name: str) -> None:
    """Where squeue fails nothing is submitted twice; where it is slow, or sacct fails, all goes."""
    for how, fault in (("fails", "echo 'error: no route' >&2; exit 1"), ("is slow", "sleep 3")):
        with _lab(drill, cluster, f"{name} {how}", FIVE_CALLS) as lab:
            lab.sweep(HOLD)
            for program_name, arguments in (
                ("sweep.py", lab.command(HOLD)),
                ("status.py", []),
                ("clean.py", []),
            ):
                with _in_path(lab, name, 0, f'{fault}; exec "$real" "$@"') as env:
                    done = lab.program(program_name, *arguments, **env)
                if done.returncode:
                    assert (name, how, program_name) == ("squeue", "fails", "sweep.py"), done.stderr
                    _assert_refused(done)
            _assert_each_once(lab)


def _launcher_dies(drill: Drill, cluster: Cluster, k: int) -> None:
    rng = drill.rng("launcher", k)
    with _lab(drill, cluster, "launcher killed at any time", FIVE_CALLS) as lab:
        launcher = _launcher(lab)
        time.sleep(rng.uniform(0.3, 2.5))
        launcher.kill()
        launcher.wait(30)
        _assert_each_once(lab)


def _launchers_at_once(drill: Drill, cluster: Cluster) -> None:
    with _lab(drill, cluster, "three launchers at once", FIVE_CALLS, 3) as lab:
        assert [launcher.wait(120) for launcher in [_launcher(lab) for _ in range(3)]] == [0, 0, 0]
        _assert_each_once(lab)


def _launcher(lab: Lab) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, ROOT / "launch/sweep.py", *lab.command(HOLD), f"--runs-dir={lab.runs}"],
        env=programs.environment(**lab.cluster.env),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _assert_each_once(lab: Lab) -> None:
    """After one more sweep each of four runs waits once, and --cancel knows of every job."""
    lab.sweep(HOLD)
    assert "nothing to submit" in lab.sweep(HOLD)
    listed = lab.cluster.slurm("squeue", "-h", "-r", "-o%j").split()
    waiting = Counter(name.partition("-")[0] for name in listed)
    assert waiting["train"] == 4, waiting
    assert waiting["evaluate"] <= 4, waiting
    lab.sweep("--cancel")
    lab.wait_empty(40)


def _assert_refused(done: subprocess.CompletedProcess[str]) -> None:
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert (done.returncode, len(lines)) == (1, 1), done.stderr
    assert lines[0].startswith("error: ")


@contextlib.contextmanager
def _in_path(lab: Lab, name: str, number: int, fault: str) -> Iterator[dict[str, str]]:
    """An environment in which the `number`-th call of a command, or every one (0), has a fault."""
    real = shutil.which(name)
    folder = lab.runs.parent / "bin"
    folder.mkdir(exist_ok=True)
    count, script = folder / "count", folder / name
    count.write_text("0")
    script.write_text(
        f"#!/bin/sh\nreal={real}\nn=$(($(cat {count}) + 1)); echo $n >{count}\n"
        f'[ {number} -eq 0 ] || [ $n -eq {number} ] || exec "$real" "$@"\n{fault}\n'
    )
    script.chmod(0o755)
    try:
        yield {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    finally:
        script.unlink()
