"""Whole trainings on a GPU: bit for bit again after whatever ended them, or one line that says why.

`make gpu` shows these claims with their verdicts. Nothing here computes in this process, so that a
GPU that takes one process alone is free.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from diffuse import ROOT
from diffuse.rundir.directory import RunDir
from tests import programs
from tests.programs import TINY, assert_same_training

pytestmark = pytest.mark.cuda
EPOCHS, KEPT = 12, 4  # of 8 steps
NETWORK = ("device", "amp", "channels", "ema")  # those of the presets, not tiny ones
SMALL = [option for option in TINY if not any(word in option for word in NETWORK)]
SMALL += [f"--epochs={EPOCHS}", f"--set=eval.at_epochs={KEPT}", "--set=samples.at_epochs=[]"]
SMALL += ["--set=train.deterministic=true", "--set=system.collective_timeout_s=30"]
ON_CPU = ("--set=train.global_batch=8", "--set=data.limit=64")  # as many steps
PRESETS = ["ddpm/default", "ddpm/unet"]
FULL = """
import sys, torch
total = torch.cuda.get_device_properties(0).total_memory
torch.cuda.set_per_process_memory_fraction(100e6 / total)
from diffuse import train
from diffuse.runtime import errors
errors.run(train.app)
"""

Options = Callable[..., list[str]]
Seen = Callable[[str, object], None]  # pytest's record_property


@pytest.fixture(scope="module")
def options(device_name: str, data_dir: Path) -> Options:
    """The command line of a small training of a preset into a folder."""

    def line(preset: str, folder: Path, *more: str) -> list[str]:
        place = [f"--runs-dir={folder}", f"--data-dir={data_dir}", f"--device={device_name}"]
        less = ON_CPU if device_name == "cpu" else ()
        return [f"--preset={preset}", *SMALL, *less, *place, *more]

    return line


@pytest.fixture(scope="module", params=PRESETS)
def preset(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def undisturbed(preset: str, options: Options, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return finished(options(preset, tmp_path_factory.mktemp("undisturbed")))


@pytest.fixture(scope="module")
def two_ranks(
    device_name: str, options: Options, tmp_path_factory: pytest.TempPathFactory
) -> RunDir:
    """A training of two ranks that nothing disturbed."""
    if device_name == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("one GPU only")
    return finished(options("ddpm/unet", tmp_path_factory.mktemp("two")), ranks=2)


def finished(line: list[str], ranks: int = 1) -> RunDir:
    """The run of this command line, after it has ended well."""
    done = programs.run("diffuse.train", *line, ranks=ranks, afresh=True)
    assert done.returncode == 0, done.stderr
    (folder,) = (word.partition("=")[2] for word in line if word.startswith("--runs-dir="))
    return programs.only_run(Path(folder))


@contextlib.contextmanager
def past_first_checkpoint(
    line: list[str], folder: Path, ranks: int = 1
) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of a training that has written its first checkpoint, and goes on."""
    port = programs.free_port()
    places = [programs.place(rank, ranks, port) for rank in range(ranks)]
    started = [programs.start("diffuse.train", *line, afresh=True, **place) for place in places]
    try:
        while not any(folder.glob("*/checkpoints/*.pt")):
            assert started[0].poll() is None, started[0].communicate()[1]
            time.sleep(0.002)
        yield started  # type: ignore[misc]
    finally:
        for process in started:
            process.kill()
            process.wait()


def weights(run: RunDir) -> str:
    """The hash of a run's last weights, as metrics.jsonl has it."""
    return f"weights {run.metrics('checkpoint')[-1]['weights'][:12]}"


def test_a_deterministic_training_repeats_bit_for_bit(
    undisturbed: RunDir, preset: str, options: Options, tmp_path: Path, record_property: Seen
) -> None:
    again = finished(options(preset, tmp_path))
    assert_same_training(again, undisturbed, EPOCHS)
    record_property("seen", weights(again))


def test_a_training_without_a_graph_is_the_one_with_it_bit_for_bit(
    undisturbed: RunDir, preset: str, options: Options, tmp_path: Path, record_property: Seen
) -> None:
    """Steps are a graph by default."""
    again = finished(options(preset, tmp_path, "--set=train.graph=false"))
    assert_same_training(again, undisturbed, EPOCHS)
    record_property("seen", weights(again))


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)],
    ids=["killed", "preempted"],
)
def test_a_disturbed_training_goes_on_bit_for_bit(
    number: int,
    code: int,
    undisturbed: RunDir,
    preset: str,
    options: Options,
    tmp_path: Path,
    record_property: Seen,
) -> None:
    line = options(preset, tmp_path)
    with past_first_checkpoint(line, tmp_path) as (process,):
        process.send_signal(number)
        assert process.wait() == code, "it was done before the signal"
    resumed = finished(line)
    assert_same_training(resumed, undisturbed, EPOCHS)
    record_property("seen", weights(resumed))


def test_full_memory_is_one_line(
    device_name: str, options: Options, tmp_path: Path, record_property: Seen
) -> None:
    if device_name == "cpu":
        pytest.skip("the CPU's memory is not to be filled")
    line = options(
        "ddpm/default", tmp_path, "--set=train.global_batch=512", "--set=data.limit=4096"
    )
    done = subprocess.run(
        [sys.executable, "-c", FULL, *line],
        cwd=ROOT,
        env=programs.environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    said = done.stderr.splitlines()[-1]
    assert "raise train.accumulate" in said
    record_property("seen", said)


def test_a_job_that_sees_no_gpu_never_trains_on_the_cpu(
    device_name: str, options: Options, tmp_path: Path, record_property: Seen
) -> None:
    line = options("ddpm/default", tmp_path, "--device=cuda")
    done = programs.run("diffuse.train", *line, afresh=True, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2 and not any(tmp_path.iterdir())
    (said,) = done.stderr.splitlines()
    record_property("seen", said)


def test_two_ranks_on_one_gpu_are_refused_by_name(
    device_name: str, options: Options, tmp_path: Path, record_property: Seen
) -> None:
    if device_name == "cpu":
        pytest.skip("ranks may share the CPU")
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    line = options("ddpm/default", tmp_path)
    done = programs.run("diffuse.train", *line, ranks=2, afresh=True, CUDA_VISIBLE_DEVICES=first)
    said = next(row for row in done.stderr.splitlines() if row.startswith("error: "))
    assert "ranks 0 and 1 have one GPU" in said, done.stderr
    record_property("seen", said)


def test_two_ranks_train_as_one_does(
    two_ranks: RunDir, options: Options, tmp_path: Path, record_property: Seen
) -> None:
    one = finished(options("ddpm/unet", tmp_path))
    pairs = list(zip(programs.losses(one), programs.losses(two_ranks), strict=True))
    first = abs(pairs[0][1] / pairs[0][0] - 1)
    assert first < 0.01, "one step: the same examples, timesteps and noise"
    last = max(abs(b / a - 1) for a, b in pairs)
    assert last < 0.1, "roundings add up"
    record_property("seen", f"losses differ by {first:.1e} in step 1, {last:.1e} at most")


@pytest.mark.parametrize("end", ["killed", "stopped", "preempted"])
def test_two_ranks_end_together_and_go_on_bit_for_bit(
    two_ranks: RunDir, end: str, options: Options, tmp_path: Path, record_property: Seen
) -> None:
    line = options("ddpm/unet", tmp_path)
    with past_first_checkpoint(line, tmp_path, ranks=2) as ranks:
        match end:
            case "killed":
                ranks[1].kill()
            case "stopped":  # it hangs
                ranks[1].send_signal(signal.SIGSTOP)
            case "preempted":
                for rank in ranks:
                    rank.send_signal(signal.SIGTERM)
        _, said = ranks[0].communicate(timeout=100)
        codes = [rank.wait() for rank in ranks if end == "preempted"] or [ranks[0].returncode]
    assert codes == ([75, 0] if end == "preempted" else [1]), said
    if end != "preempted":
        assert "rank 0 of 2 lost the others" in said.splitlines()[-1]
    resumed = finished(line, ranks=2)
    assert_same_training(resumed, two_ranks, EPOCHS)
    record_property("seen", f"{said.splitlines()[-1]}; then {weights(resumed)}")
