"""Several runs in one job, without Slurm: their programs, their ends, their GPUs, and MPS."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from launch.inspection.run_status import SubmittedJobs
from launch.jobs import mps, pack, program, worker
from launch.jobs.logs import cancellation
from launch.jobs.program import FORWARDED, INTERRUPTED, Program
from launch.slurm.commands import Job

STAND_IN = """
import json, os, sys
seen = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")}
open(sys.argv[1], "a").write(json.dumps(seen) + "\\n")
sys.exit(int(sys.argv[2]))
"""
# Where it is to end as interrupted it waits to be asked for that.
PATIENT = """
import signal, sys, time
code = int(sys.argv[2])
signal.signal(signal.SIGTERM, lambda *_: sys.exit(code))
open(sys.argv[1], "a").write("{}\\n")
if code == 75:
    time.sleep(600)
sys.exit(code)
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The surroundings of a job with two GPUs, and the file by which it says: interrupted."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    mark = tmp_path / "interrupted"
    variables = {"DIFFUSE_INTERRUPTED": mark, "SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "2,3"}
    for name, value in {**variables, "PYTHONPATH": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    before = {number: signal.getsignal(number) for number in FORWARDED}
    monkeypatch.setattr(program, "asked_to_stop", asked := [])
    monkeypatch.setattr(pack, "asked_to_stop", asked)
    monkeypatch.setattr(pack, "POLL_S", 0.01)
    yield mark
    for number, handler in before.items():
        signal.signal(number, handler)


def work(folder: Path, ends: dict[str, int], at_once: int = 2) -> dict[str, int]:
    """Run a stand-in for each run, by name, which ends with that code; the ends as counted."""

    def prepare(run_dir: str, environment: dict[str, str | None], most: int) -> Program:
        run = RunDir(Path(run_dir))
        if ends[run.name] < 0:
            raise worker.NoProgress(f"error: {run.name}: no progress")
        arguments = [f"{run.path}.seen", str(ends[run.name])]
        return Program("stand_in", run.logs, arguments, environment)

    calls = [(str(folder / name), {}, 0) for name in ends]
    found: dict[str, int] = pack._side_by_side(
        "stand_in", prepare, calls, at_once, 3, with_mps=False
    )["codes"]
    return found


def seen(folder: Path, name: str) -> list[dict[str, Any]]:
    """The surroundings of each start of a run's stand-in."""
    path = folder / f"{name}.seen"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_run_of_a_pack_has_its_end_its_gpu_its_threads_its_log(
    job: Path, tmp_path: Path
) -> None:
    ends = {"a": 3, "b": 0, "c": -1, "d": 0, "e": 2}
    assert work(tmp_path, ends) == {**ends, "c": 1}
    for name in "abde":
        (variables,) = seen(tmp_path, name)
        assert variables["CUDA_VISIBLE_DEVICES"] in ("2", "3")
        assert variables["OMP_NUM_THREADS"] == "3"
        logs = RunDir(tmp_path / name).logs
        assert files.read_json(logs / "stand_in-7-r00.json")["code"] == ends[name]
        assert (logs / "stand_in-7-r00.log").exists()
    gpus = {seen(tmp_path, name)[0]["CUDA_VISIBLE_DEVICES"] for name in "ab"}
    assert gpus == {"2", "3"}, "two at a time have a GPU each"
    assert not job.exists()


def test_a_requeued_pack_starts_only_what_had_not_ended(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as end:
        work(tmp_path, {"a": 0, "b": 4, "c": INTERRUPTED})
    assert end.value.code == INTERRUPTED and job.exists()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    files.write_json(RunDir(tmp_path / "d").logs / "stand_in-7-r00.json", {"program": "cut off"})
    assert work(tmp_path, {"a": 9, "b": 9, "c": 0, "d": 0}) == {"a": 0, "b": 4, "c": 0, "d": 0}
    assert {name: len(seen(tmp_path, name)) for name in "abcd"} == {"a": 1, "b": 1, "c": 2, "d": 1}


def test_a_run_that_is_cancelled_alone_saves_and_ends_and_its_pack_goes_on(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is at work when it is cancelled, one has not begun; the job counts the others alone."""
    (tmp_path / "stand_in.py").write_text(PATIENT)
    monkeypatch.setattr(pack, "CANCELLED_S", 0.0)
    begun = threading.Timer(0, cancel_once_begun, [tmp_path])
    begun.start()
    assert work(tmp_path, {"a": INTERRUPTED, "b": 0, "c": 0, "d": 0}, at_once=1) == {"b": 0, "d": 0}
    begun.join()
    assert not job.exists(), "the job is not requeued"
    assert files.read_json(RunDir(tmp_path / "a").logs / "stand_in-7-r00.json")["code"] == 75
    assert not seen(tmp_path, "c")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert work(tmp_path, {"a": 0, "c": 0, "e": 0}) == {"e": 0}, "nor does it start them again"


def cancel_once_begun(folder: Path) -> None:
    """Cancel runs a and c as soon as a has begun."""
    while not (folder / "a.seen").exists():
        time.sleep(0.01)
    for name in "ac":
        mark = cancellation(RunDir(folder / name), "7")
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def test_a_pack_that_is_asked_to_stop_begins_nothing_and_is_requeued(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack.asked_to_stop.append(signal.SIGTERM)
    with pytest.raises(SystemExit) as end:
        work(tmp_path, {"a": 0, "b": 0})
    assert end.value.code == INTERRUPTED and job.exists()
    assert "stopped before it began: a, b" in capsys.readouterr().out
    assert not seen(tmp_path, "a")


@pytest.mark.parametrize(
    ("codes", "code"),
    [([], 0), ([1, 0, 3], 0), ([3, 1], 3), ([0, INTERRUPTED], 75), ([0, 130, INTERRUPTED], 130)],
)
def test_a_pack_ends_well_where_one_run_did_since_its_evaluation_waits_for_that(
    codes: list[int], code: int
) -> None:
    assert pack._job_code(dict(zip("abc", codes, strict=False)), is_cut_short=False) == code


def test_a_run_whose_training_failed_is_not_evaluated_with_its_pack(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.checkpoints.mkdir()
    run.checkpoint_path(1).touch()
    assert pack._is_trained(run, [1])
    assert not pack._is_trained(run, [1, 2])
    assert not pack._is_trained(run, [])


@pytest.mark.parametrize(
    ("state", "record", "shown"),
    [
        ("PENDING", {}, "PENDING"),
        ("PENDING", {"code": INTERRUPTED}, "PENDING"),
        ("PENDING", {"code": 0}, None),
        ("RUNNING", {"code": 1}, None),
        ("RUNNING", {}, "PENDING"),
        ("RUNNING", {"program": "diffuse.train"}, "RUNNING"),
    ],
)
def test_the_row_of_a_run_shows_its_own_part_of_the_job(
    state: str, record: dict[str, Any], shown: str | None, tmp_path: Path
) -> None:
    run = RunDir(tmp_path)
    if record:
        files.write_json(run.logs / "train-7_0-r00.json", {"code": 1})
        files.write_json(run.logs / "train-7_0-r01.json", record)
    (tmp_path / "logs").mkdir(exist_ok=True)
    (run.logs / "train-7_0-r01.bak.json").touch()
    job = Job("7_0", state)
    submitted = SubmittedJobs("grid", {"train": {"job_id": "7_0", "pack": 2}})
    part = submitted.own_part(run, "train", job)
    assert (part.state if part else None) == shown
    alone = SubmittedJobs("grid", {"train": {"job_id": "7_0"}})
    assert alone.own_part(run, "train", job) is job


def test_mps_lives_as_long_as_the_runs_and_one_line_says_why_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control, calls = tmp_path / mps.CONTROL, tmp_path / "calls"
    control.write_text(
        f'#!/bin/sh\necho "$1 $CUDA_VISIBLE_DEVICES $(/bin/cat)" >>{calls}\n'
        "[ -d $CUDA_MPS_PIPE_DIRECTORY ] || exit 1\n"
    )
    control.chmod(0o755)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    with mps.served(["2", "GPU-a"], True, said.append) as (gpus, variables):
        assert gpus == ["0", "1"], "MPS counts its GPUs anew"
        assert Path(variables["CUDA_MPS_PIPE_DIRECTORY"]).is_dir()
    assert [line.strip() for line in calls.read_text().splitlines()] == ["-d 2,GPU-a", "quit"]
    assert not Path(variables["CUDA_MPS_PIPE_DIRECTORY"]).exists() and not said
    control.write_text("#!/bin/sh\necho no permission\nexit 1\n")
    with mps.served(["2"], True, said.append) as served:
        assert served == (["2"], {})
    control.unlink()
    for gpus in (["2"], []):
        with mps.served(gpus, True, said.append) as served:
            assert served == (gpus, {})
    words = [line.partition(": no MPS on ")[2].partition(": ")[2] for line in said]
    reasons = ["no permission", f"{mps.CONTROL} is not there", "no GPU in sight"]
    assert words == [f"{reason}; runs share a GPU in turns" for reason in reasons]
    with mps.served(["2"], False, said.append) as served:
        assert served == (["2"], {}) and len(said) == 3
