"""The promises of training, tried with the real program on the first images of the real MNIST."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from diffuse.config.presets import load_config, parse_set
from diffuse.rundir import checkpoints
from diffuse.rundir.directory import RunDir
from diffuse.runtime.preemption import StopRequest
from diffuse.training import loop
from tests import programs
from tests.programs import TINY

DDPM = ("--preset=ddpm/default", *TINY)
COLD = ("--preset=cold/default_28", "--orientation=row", *TINY)
PLAIN = (*DDPM, "--set=samples.at_epochs=[]")  # drawing takes longer than training
EPOCHS = 4  # of 8 steps


def train(
    runs_dir: Path, data_dir: Path, *arguments: str, epochs: int = EPOCHS, **how: Any
) -> subprocess.CompletedProcess[str]:
    return programs.run(
        "diffuse.train",
        *arguments,
        f"--epochs={epochs}",
        f"--runs-dir={runs_dir}",
        f"--data-dir={data_dir}",
        **how,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> RunDir:
    """A run that nothing disturbed."""
    runs_dir = tmp_path_factory.mktemp("whole")
    done = train(runs_dir, data_dir, *DDPM)
    assert done.returncode == 0, done.stderr
    return programs.only_run(runs_dir)


def test_a_run_directory_holds_the_documented_files(whole: RunDir) -> None:
    found = {str(p.relative_to(whole.path)) for p in whole.path.rglob("*") if p.is_file()}
    assert {
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
        "status.json",
        "attempts/0001.json",
        "checkpoints/epoch_0003.pt",  # the one before the last, should the last be damaged
        "checkpoints/epoch_0004.pt",
        "samples/epoch_0004.png",
        "samples/epoch_0004.h5",
        "plots/epochs.png",
        "plots/loss.png",
        "samples/epoch_0001.h5",
        "samples/epoch_0001.png",
        "plots/degradation.png",
        "plots/trajectory.gif",
    } == found
    assert whole.status()["state"] == "done"
    assert [e["step"] for e in whole.metrics("step")] == list(range(1, 8 * EPOCHS + 1))


def test_epoch_means_are_the_means_of_their_steps(whole: RunDir) -> None:
    loss = np.array(programs.losses(whole)).reshape(EPOCHS, 8)
    means = [e["loss"] for e in whole.metrics("epoch")]
    np.testing.assert_allclose(means, loss.mean(axis=1), rtol=1e-6)
    quartiles = np.array([e["loss_by_t_quartile"] for e in whole.metrics("epoch")])
    assert quartiles.shape == (EPOCHS, 4)
    # each mean is a weighted mean of its quartiles
    assert np.all((quartiles.min(axis=1) <= means) & (means <= quartiles.max(axis=1)))


@pytest.mark.parametrize("model", [DDPM, COLD], ids=["ddpm", "cold"])
def test_a_killed_run_started_again_ends_bit_for_bit_equal(
    model: tuple[str, ...], tmp_path: Path, data_dir: Path
) -> None:
    done = train(tmp_path / "whole", data_dir, *model)
    assert done.returncode == 0, done.stderr
    command = (
        "diffuse.train",
        *model,
        f"--epochs={EPOCHS}",
        f"--runs-dir={tmp_path / 'killed'}",
        f"--data-dir={data_dir}",
        "--set=checkpoint.every_minutes=0.0005",  # also inside epochs
    )
    kills = 0
    for steps in (3, 13, 21, 10_000):
        process = programs.start(*command)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            runs = list((tmp_path / "killed").glob("*/metrics.jsonl"))
            if runs and len(RunDir(runs[0].parent).metrics("step")) >= steps:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.005)
        kills += process.wait() == -signal.SIGKILL
    assert process.returncode == 0
    assert kills == 3
    a, b = (programs.only_run(tmp_path / name) for name in ("whole", "killed"))
    programs.assert_same_training(a, b, EPOCHS)
    left, right = (r.samples / f"epoch_{EPOCHS:04d}.png" for r in (a, b))
    assert left.read_bytes() == right.read_bytes()


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_the_step_boundary_and_the_same_command_goes_on(
    number: signal.Signals, whole: RunDir, tmp_path: Path, data_dir: Path
) -> None:
    place = (f"--runs-dir={tmp_path}", f"--data-dir={data_dir}")
    process = programs.start("diffuse.train", *PLAIN, f"--epochs={EPOCHS}", *place)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == (130 if number == signal.SIGINT else 75), errors
    assert number.name in errors
    assert "Traceback" not in errors
    stopped = programs.only_run(tmp_path)
    assert stopped.status()["state"] == "interrupted"
    assert train(tmp_path, data_dir, *PLAIN).returncode == 0
    programs.assert_same_training(stopped, whole, EPOCHS)


def catches(pid: int, number: int) -> bool:
    """Whether a process has taken a signal over."""
    status = Path(f"/proc/{pid}/status").read_text()
    (mask,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")]
    return bool(int(mask, 16) >> (number - 1) & 1)


def test_a_signal_during_start_up_ends_with_its_code_and_loses_nothing(
    tmp_path: Path, data_dir: Path
) -> None:
    process = subprocess.Popen(
        programs.command(
            "diffuse.train", *PLAIN, f"--runs-dir={tmp_path}", f"--data-dir={data_dir}"
        ),
        env=programs.environment(),
        cwd=programs.ROOT,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not catches(process.pid, signal.SIGUSR2) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGUSR2)
    process.send_signal(signal.SIGUSR2)  # containers deliver it twice
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text(), "before torch is loaded"
    process.communicate(timeout=600)
    assert process.returncode == 75


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_see_the_same_examples_timesteps_and_noise(
    ranks: int, whole: RunDir, tmp_path: Path, data_dir: Path
) -> None:
    done = train(tmp_path, data_dir, *PLAIN, ranks=ranks, afresh=ranks == 2)  # by torchrun
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        programs.losses(programs.only_run(tmp_path)), programs.losses(whole), rtol=2e-4
    )


@pytest.mark.parametrize("ranks", [2, 4])
def test_several_ranks_resume_bit_for_bit_too(ranks: int, tmp_path: Path, data_dir: Path) -> None:
    assert train(tmp_path / "whole", data_dir, *PLAIN, epochs=2, ranks=ranks).returncode == 0
    # stopped after the first epoch, then extended: the second attempt starts from a checkpoint
    assert train(tmp_path / "parts", data_dir, *PLAIN, epochs=1, ranks=ranks).returncode == 0
    assert train(tmp_path / "parts", data_dir, *PLAIN, epochs=2, ranks=ranks).returncode == 0
    a, b = (programs.only_run(tmp_path / name) for name in ("whole", "parts"))
    programs.assert_same_training(a, b, 2)


def test_more_epochs_extend_a_run_and_a_lost_epoch_is_made_again(
    whole: RunDir, tmp_path: Path, data_dir: Path
) -> None:
    assert train(tmp_path, data_dir, *PLAIN, epochs=2).returncode == 0
    assert train(tmp_path, data_dir, *PLAIN).returncode == 0
    extended = programs.only_run(tmp_path)
    programs.assert_same_training(extended, whole, EPOCHS)
    # an epoch asked for first is kept; another is made again when asked for
    assert extended.has_epoch(2)
    assert not extended.has_epoch(1)
    again = train(tmp_path, data_dir, *PLAIN, "--set=eval.at_epochs=1")
    assert again.returncode == 0, again.stderr
    assert extended.has_epoch(1)
    before = extended.metrics_path.read_bytes()
    assert train(tmp_path, data_dir, *PLAIN, "--set=eval.at_epochs=1").returncode == 0
    assert extended.metrics_path.read_bytes() == before, "nothing was missing, yet it trained"


def test_a_call_trains_to_the_epochs_that_it_asks_for_and_no_further(
    tmp_path: Path, data_dir: Path
) -> None:
    beyond = "--set=eval.at_epochs=1,3"
    for _ in range(2):  # the same command again finds nothing to do
        assert train(tmp_path, data_dir, *PLAIN, beyond, epochs=2).returncode == 0
    mine = programs.only_run(tmp_path)
    assert mine.attempt_number() == 1
    assert [e["epoch"] for e in mine.metrics("epoch")] == [1, 2]
    # One that is on its way to more, and dies, keeps the epochs asked of it.
    place = (f"--runs-dir={tmp_path}", f"--data-dir={data_dir}")
    process = programs.start("diffuse.train", *PLAIN, "--epochs=100000", *place)
    deadline = time.monotonic() + 60
    while mine.status().get("epoch", 0) < 4 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(30) == 75
    assert mine.status()["epochs"] == 100_000
    said = train(tmp_path, data_dir, *PLAIN, epochs=3)
    assert said.returncode == 0 and "to epoch 3, " in said.stdout, said.stdout + said.stderr
    assert mine.status()["epoch"] == mine.status()["epochs"] == 3
    assert mine.has_epoch(1) and mine.has_epoch(2) and mine.has_epoch(3)


def test_a_checkpoint_is_written_after_some_minutes_however_short_the_epochs(
    tmp_path: Path, data_dir: Path
) -> None:
    rarely = ("--set=checkpoint.every_epochs=1000", "--set=checkpoint.every_minutes=0.002")
    assert train(tmp_path, data_dir, *PLAIN, *rarely, epochs=12).returncode == 0
    files = [e["file"] for e in programs.only_run(tmp_path).metrics("checkpoint")]
    assert len(files) > 1, files


def test_a_damaged_checkpoint_is_refused_by_name_and_made_again(
    whole: RunDir, tmp_path: Path, data_dir: Path
) -> None:
    assert train(tmp_path, data_dir, *PLAIN).returncode == 0
    mine = programs.only_run(tmp_path)
    path = mine.checkpoint_path(EPOCHS)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1  # a single bit, in the middle of a tensor
    path.write_bytes(content)
    again = train(tmp_path, data_dir, *PLAIN)
    assert again.returncode == 0
    assert "epoch_0004.pt: damaged" in again.stderr
    programs.assert_same_training(mine, whole, EPOCHS)


def test_accumulated_parts_give_the_gradient_of_the_whole_batch(
    whole: RunDir, tmp_path: Path, data_dir: Path
) -> None:
    done = train(tmp_path, data_dir, *PLAIN, "--set=train.accumulate=4")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(
        programs.losses(programs.only_run(tmp_path)), programs.losses(whole), rtol=2e-4
    )


def test_gradients_are_clipped_and_the_rate_rises_to_its_value(
    whole: RunDir, tmp_path: Path, data_dir: Path
) -> None:
    clip, lr = 0.01, 4e-4
    settings = (f"--set=train.grad_clip={clip}", f"--set=train.lr={lr}")
    done = train(tmp_path, data_dir, *PLAIN, *settings, "--set=train.warmup_steps=10", epochs=2)
    assert done.returncode == 0, done.stderr
    mine = programs.only_run(tmp_path)

    def mean_gradient(run: RunDir, epoch: int) -> float:
        """The norm of Adam's first moment, which no mean of clipped gradients exceeds."""
        moments = checkpoints.read(run.checkpoint_path(epoch))["optimizer"]["state"].values()
        return float(torch.cat([m["exp_avg"].flatten() for m in moments]).norm())

    assert 0 < mean_gradient(mine, 2) <= clip < mean_gradient(whole, EPOCHS)
    steps = mine.metrics("step")
    assert min(e["grad_norm"] for e in steps) > clip, "the norm that is told is that before"
    assert [e["lr"] for e in steps] == pytest.approx([lr * min(1, s / 10) for s in range(1, 17)])


def test_a_compiled_network_has_the_same_losses(
    whole: RunDir, tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, compiled = torch.compile, []

    def without_a_compiler(network: nn.Module) -> nn.Module:
        compiled.append(network)
        return real(network, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", without_a_compiler)
    settings = [setting.removeprefix("--set=") for setting in TINY]
    layer = parse_set([*settings, "train.epochs=1", "train.compile=true"])
    run = loop.train(load_config("ddpm/default", [layer]), tmp_path, data_dir, StopRequest())
    assert run is not None
    assert len(compiled) == 1
    np.testing.assert_allclose(programs.losses(run), programs.losses(whole)[:8], rtol=2e-4)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    tmp_path: Path, data_dir: Path
) -> None:
    fatal = ("--set=train.lr=1e30", "--set=train.warmup_steps=0")
    done = train(tmp_path, data_dir, *PLAIN, *fatal)
    assert done.returncode == 1
    assert "the loss became nan at step" in done.stderr
    assert "Traceback" not in done.stderr
    mine = programs.only_run(tmp_path)
    assert mine.status()["state"] == "failed"
    for path in mine.checkpoints.glob("*.pt"):
        assert checkpoints.all_finite(checkpoints.read(path)["model"])


def test_a_file_that_finds_no_room_is_named_in_one_line_and_the_run_goes_on_later(
    whole: RunDir, tmp_path: Path, data_dir: Path
) -> None:
    """A limit on file sizes stands for a full disk or a quota: the write fails half-way."""
    arguments = (*PLAIN, f"--epochs={EPOCHS}", f"--runs-dir={tmp_path}", f"--data-dir={data_dir}")
    command = programs.command("diffuse.train", *arguments)
    size = whole.checkpoint_path(EPOCHS).stat().st_size // 1024 // 2  # KiB
    done = subprocess.run(
        ["bash", "-c", f'ulimit -f {size}; exec "$@"', "limited", *command],
        cwd=programs.ROOT,
        env=programs.environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "epoch_0001.pt: File too large" in done.stderr.splitlines()[-1]
    mine = programs.only_run(tmp_path)
    assert mine.status()["state"] == "failed"
    assert not list(mine.checkpoints.iterdir())
    assert train(tmp_path, data_dir, *PLAIN).returncode == 0
    programs.assert_same_training(mine, whole, EPOCHS)


def test_an_older_attempt_publishes_nothing_once_a_newer_one_has_begun(
    whole: RunDir, tmp_path: Path, data_dir: Path
) -> None:
    place = (f"--runs-dir={tmp_path}", f"--data-dir={data_dir}")
    process = programs.start("diffuse.train", *PLAIN, "--epochs=400", *place)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    mine = programs.only_run(tmp_path)
    # as another machine would, after this one was given up for dead
    (mine.path / "attempts" / "0002.json").write_text("{}")
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 1, "nobody requeues it"
    assert "took over" in errors
    size = mine.metrics_path.stat().st_size
    assert all(e["attempt"] == 1 for e in mine.metrics())
    time.sleep(0.2)
    assert mine.metrics_path.stat().st_size == size


def test_a_live_run_is_not_started_twice_on_one_machine(tmp_path: Path, data_dir: Path) -> None:
    place = (f"--runs-dir={tmp_path}", f"--data-dir={data_dir}")
    first = programs.start("diffuse.train", *PLAIN, "--epochs=400", *place)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("*/status.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    second = train(tmp_path, data_dir, *PLAIN, epochs=400)
    first.terminate()
    first.wait(timeout=600)
    assert second.returncode == 2
    assert f"process {first.pid}" in second.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--preset=ddpm/nope",), "unknown preset 'ddpm/nope'; allowed: ddpm/default"),
        (("--preset=cold/default_28",), "process.orientation: missing"),
        (("--preset=cold/default_28", "--orientation=diagonal"), "'row' or 'col'"),
        (("--preset=ddpm/default", "--orientation=row"), "is for cold diffusion"),
        (("--preset=ddpm/default", "--set=train.speed=3"), "train.speed: unknown key; allowed"),
        (
            ("--preset=ddpm/default", "--set=train.lr=-1"),
            "train.lr: input should be greater than 0",
        ),
        (("--preset=ddpm/default", "--set=process.timesteps=0"), "process.timesteps: input should"),
        (("--preset=ddpm/default", "--set=train.lr"), "write KEY=VALUE"),
        (
            ("--preset=cold/default_28", "--orientation=row", "--set=process.group=5"),
            "allowed: 1, 2",
        ),
        (("--preset=ddpm/default", "--epochs=0"), "train.epochs"),
        (("--preset=ddpm/default", "--set=train.amp=fp16"), "needs a CUDA device"),
        (("--preset=ddpm/default", "--device=cuda"), "torch sees no GPU here"),
        (("--nonsense",), "No such option"),
        ((), "either --preset or --config"),
    ],
)
def test_bad_input_gets_one_line_and_writes_nothing(
    arguments: tuple[str, ...], said: str, tmp_path: Path, data_dir: Path
) -> None:
    if "--device=cuda" in arguments and torch.cuda.is_available():
        arguments = ("--preset=ddpm/nope", *arguments[1:])
        said = "unknown preset"
    done = programs.run(
        "diffuse.train", *arguments, f"--runs-dir={tmp_path / 'runs'}", f"--data-dir={data_dir}"
    )
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "runs").exists()
