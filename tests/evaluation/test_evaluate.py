"""`diffuse.evaluate` as a user runs it: figures, protocols, resumption, ranks, bad input."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from diffuse.rundir import checkpoints
from diffuse.rundir.directory import RunDir
from tests import programs
from tests.programs import TINY

TIMES = {"seconds": 0, "drawing": None}  # the fields that differ between equal evaluations


def evaluate(
    source: Path, data_dir: Path, *arguments: str, ranks: int = 1
) -> subprocess.CompletedProcess[str]:
    return programs.run(
        "diffuse.evaluate", source, f"--data-dir={data_dir}", *arguments, ranks=ranks
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> dict[str, RunDir]:
    """A DDPM of two evaluated epochs and a cold run of one."""
    found = {}
    for name, arguments in {
        "ddpm": ["--preset=ddpm/default", "--epochs=2", "--set=eval.at_epochs=1,2"],
        "cold": ["--preset=cold/default_7", "--orientation=row", "--epochs=1"],
    }.items():
        folder = tmp_path_factory.mktemp(name)
        done = programs.run(
            "diffuse.train", *arguments, *TINY, f"--runs-dir={folder}", f"--data-dir={data_dir}"
        )
        assert done.returncode == 0, done.stderr
        found[name] = programs.only_run(folder)
    return found


@pytest.fixture
def copy(runs: dict[str, RunDir], tmp_path: Path) -> dict[str, RunDir]:
    """The runs, to be evaluated anew."""
    return {
        name: RunDir(Path(shutil.copytree(run.path, tmp_path / run.name)))
        for name, run in runs.items()
    }


def figures(run: RunDir, epoch: int) -> list[dict[str, Any]]:
    content = programs.read_json(run.evaluations / f"epoch_{epoch:04d}.json")
    return list(content["figures"])


def test_a_run_gets_a_figure_for_each_epoch_with_protocol_and_floor(
    copy: dict[str, RunDir], data_dir: Path
) -> None:
    run = copy["ddpm"]
    arguments = ("-n", "30", "--samplers=ddim-3")
    done = evaluate(run.path, data_dir, *arguments)
    assert done.returncode == 0, done.stderr
    for epoch in (1, 2):
        (figure,) = figures(run, epoch)
        assert figure["fid"] > figure["floor"]["fid"] > 0
        assert 1 <= figure["is"] <= 10
        protocol = figure["protocol"]
        assert (protocol["images"], protocol["sampler"], protocol["real_images"]) == (
            30,
            "ddim-3",
            60_000,
        )
        assert "no full covariance" in figure["labels"][0]
        with h5py.File(run.path / figure["samples"]) as file:
            assert file["images"].shape == (30, 28, 28)
            assert file.attrs["weights_sha256"]
    for name in ("fid.png", "is.png"):
        assert (run.plots / name).stat().st_size > 1000
    # the same command again does nothing; more images keep the old figure beside the new one
    again = evaluate(run.path, data_dir, *arguments)
    assert again.stdout.count("is there already") == 2
    assert evaluate(run.path, data_dir, "-n", "40", "--samplers=ddim-3").returncode == 0
    assert [f["protocol"]["images"] for f in figures(run, 2)] == [30, 40]


def test_cold_samplers_get_figures_and_conditional_ones_a_reconstruction_error(
    copy: dict[str, RunDir], data_dir: Path
) -> None:
    run = copy["cold"]
    assert evaluate(run.path, data_dir, "-n", "20").returncode == 0
    found = {f["protocol"]["sampler"]: f for f in figures(run, 1)}
    assert set(found) == {"algorithm2", "direct", "unconditional"}
    assert found["unconditional"]["reconstruction"] is None
    assert found["unconditional"]["protocol"]["source"] == "prior"
    with h5py.File(run.path / found["direct"]["samples"]) as file:
        made = file["images"][()] / 255
    with h5py.File(data_dir / "mnist.h5") as file:
        real = file["test/images"][:20] / 255
    assert run.metrics_path.read_bytes().count(b'"evaluation"') == 1, "W&B learns of all at once"
    # real images that were drawn at random are a floor for new images, not for restored ones
    restored, drawn = found["direct"], found["unconditional"]
    assert restored["floor"] == found["algorithm2"]["floor"] != drawn["floor"]
    assert restored["protocol"]["floor"] == "the first 20 test images, which were restored"
    assert drawn["protocol"]["floor"] == "20 test images drawn at random, seed 0"
    error = float(np.mean((made - real) ** 2))
    assert found["direct"]["reconstruction"]["mse"] == pytest.approx(error)
    assert found["direct"]["reconstruction"]["psnr"] == pytest.approx(-10 * np.log10(error))


def test_any_number_of_ranks_judges_the_same_images_by_the_same_figures(
    copy: dict[str, RunDir], data_dir: Path, tmp_path: Path
) -> None:
    one, two = copy["ddpm"], RunDir(Path(shutil.copytree(copy["ddpm"].path, tmp_path / "two")))
    arguments = ("--epoch=2", "-n", "520", "--samplers=ddim-2")
    assert evaluate(one.path, data_dir, *arguments).returncode == 0
    done = evaluate(two.path, data_dir, *arguments, ranks=2)
    assert done.returncode == 0, done.stderr
    (a,), (b,) = figures(one, 2), figures(two, 2)
    assert a["protocol"] == b["protocol"]
    with h5py.File(one.path / a["samples"]) as x, h5py.File(two.path / b["samples"]) as y:
        assert np.array_equal(x["images"][()], y["images"][()])
    for key in ("fid", "kid", "kid_std", "is", "is_std"):
        # features differ in the last bits by the batches that they come from
        assert a[key] == pytest.approx(b[key], rel=1e-5), key
    assert a["floor"] == pytest.approx(b["floor"], rel=1e-9)


def test_a_killed_evaluation_goes_on_and_ends_with_the_same_images(
    copy: dict[str, RunDir], data_dir: Path, tmp_path: Path
) -> None:
    whole, cut = copy["ddpm"], RunDir(Path(shutil.copytree(copy["ddpm"].path, tmp_path / "cut")))
    arguments = ["--epoch=2", "-n", "600", "--samplers=ddim-20", f"--data-dir={data_dir}"]
    assert programs.run("diffuse.evaluate", whole.path, *arguments).returncode == 0
    process = subprocess.Popen(
        programs.command("diffuse.evaluate", cut.path, *arguments),
        cwd=programs.ROOT,
        env=programs.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end = time.monotonic() + 120
    while not list(cut.samples.glob(".*/*.npz")) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(cut.samples.glob(".*/*.npz"))
    assert programs.run("diffuse.evaluate", cut.path, *arguments).returncode == 0
    assert not list(cut.samples.glob(".*/*.npz")), "parts are gone once all are there"
    (a,), (b,) = figures(whole, 2), figures(cut, 2)
    with h5py.File(whole.path / a["samples"]) as x, h5py.File(cut.path / b["samples"]) as y:
        assert np.array_equal(x["images"][()], y["images"][()])
    assert a["drawing"]["images"] > b["drawing"]["images"] > 0, "those of parts were kept"
    assert {**a, **TIMES} == {**b, **TIMES}


def test_the_last_epoch_has_a_further_figure_of_more_images(
    copy: dict[str, RunDir], data_dir: Path
) -> None:
    run = copy["ddpm"]
    arguments = ("--epoch=1-2", "-n", "20", "--final-images=30", "--samplers=ddim-2")
    done = evaluate(run.path, data_dir, *arguments)
    assert done.returncode == 0, done.stderr
    made = {epoch: [f["protocol"]["images"] for f in figures(run, epoch)] for epoch in (1, 2)}
    assert made == {1: [20], 2: [20, 30]}


def test_plots_and_event_of_a_figure_follow_after_a_death_between(
    copy: dict[str, RunDir], data_dir: Path
) -> None:
    """The plots and the event, by which W&B learns of it; and they are made up for once."""
    run = copy["ddpm"]
    arguments = (run.path, data_dir, "--epoch=1", "-n", "30", "--samplers=ddim-2")
    before = run.metrics_path.read_bytes()
    assert evaluate(*arguments).returncode == 0
    told = run.metrics("evaluation")
    assert [(e["epoch"], e["figures"]) for e in told] == [(1, 1)]
    run.metrics_path.write_bytes(before)
    (run.plots / "fid.png").unlink()
    for _ in range(2):
        assert evaluate(*arguments).returncode == 0
        assert run.metrics("evaluation") == told
        assert (run.plots / "fid.png").exists()
        assert run.metrics_path.read_bytes().count(b'"evaluation"') == 1


def test_a_checkpoint_stands_for_its_run_and_metrics_come_back_without_sampling(
    copy: dict[str, RunDir], data_dir: Path
) -> None:
    run = copy["ddpm"]
    arguments = ("-n", "20", "--samplers=ddim-2")
    assert evaluate(run.checkpoint_path(1), data_dir, *arguments).returncode == 0
    (first,) = figures(run, 1)
    path = run.path / first["samples"]
    before = path.stat().st_mtime_ns
    (run.evaluations / "epoch_0001.json").unlink()
    assert evaluate(run.checkpoint_path(1), data_dir, *arguments).returncode == 0
    assert path.stat().st_mtime_ns == before
    (again,) = figures(run, 1)
    assert first["drawing"]["images"] == 20 and "drawing" not in again
    assert {**first, **TIMES} == {**again, **TIMES}


def test_a_checkpoint_that_is_no_epochs_leaves_the_epochs_results_alone(
    copy: dict[str, RunDir], data_dir: Path, tmp_path: Path
) -> None:
    run = copy["ddpm"]
    arguments = ("-n", "20", "--samplers=ddim-2", f"--output={tmp_path}")
    assert evaluate(run.checkpoint_path(1), data_dir, *arguments).returncode == 0
    before = run.evaluation_path(1).read_bytes()
    content = checkpoints.read(run.checkpoint_path(1))
    for path in (run.step_checkpoint_path(9), run.checkpoints / "mine.pt"):
        checkpoints.write(path, {**content, "step": 9})  # of epoch 1, as one within epoch 2 is
        assert evaluate(path, data_dir, *arguments).returncode == 0
        assert run.evaluation_path(1).read_bytes() == before
        (figure,) = programs.read_json(tmp_path / f"{path.stem}.evaluation.json")["figures"]
        assert (tmp_path / figure["samples"]).is_file()


def test_the_floor_is_a_fair_sample_of_the_test_set(data_dir: Path) -> None:
    """Of the test set's first half, whose images are cleaner, it has no more than its share."""
    from diffuse.config.processes import AveragingConfig, DdpmConfig
    from diffuse.config.sampler_spec import SamplerSpec
    from diffuse.evaluation.scorer import Scorer
    from diffuse.runtime.distributed import World

    scorer = Scorer.load("classifier", data_dir, World(0, 0, 1, torch.device("cpu")))
    spec = SamplerSpec.parse("ddim", DdpmConfig(kind="ddpm"))
    cold = AveragingConfig(kind="averaging", orientation="row")
    name, numbers = scorer.floor_images(1000, spec)
    assert name == "1000 test images drawn at random, seed 0"
    assert len(set(numbers.tolist())) == 1000
    assert 450 < int((numbers < 5000).sum()) < 550
    first = scorer.floor(1000, SamplerSpec.parse("direct", cold))
    assert scorer.floor(1000, spec).fid < 5 < 7 < first.fid
    name, numbers = scorer.floor_images(20_000, spec)
    assert (name, len(numbers)) == ("all 10000 test images", 10_000)
    assert scorer.protocol(20_000, spec, 0).floor == name


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_evaluates_few_images_at_the_requested_epochs(
    ranks: int, tmp_path: Path, data_dir: Path
) -> None:
    settings = ["--epochs=2", "--set=eval.at_epochs=1,2", "--set=eval.in_training=20"]
    done = programs.run(
        "diffuse.train",
        "--preset=ddpm/default",
        *TINY,
        *settings,
        "--set=eval.samplers=ddim-2",
        f"--runs-dir={tmp_path}",
        f"--data-dir={data_dir}",
        ranks=ranks,
    )
    assert done.returncode == 0, done.stderr
    run = programs.only_run(tmp_path)
    for epoch in (1, 2):
        (figure,) = figures(run, epoch)
        assert figure["protocol"]["images"] == 20
    assert [event["epoch"] for event in run.metrics("evaluation")] == [1, 2]


def test_training_that_will_judge_asks_for_the_weights_before_its_first_step(
    tmp_path: Path, data_dir: Path
) -> None:
    done = programs.run(
        "diffuse.train",
        "--preset=ddpm/default",
        *TINY,
        "--set=eval.in_training=20",
        "--set=eval.extractor=inception",
        f"--runs-dir={tmp_path}",
        f"--data-dir={data_dir}",
    )
    assert (done.returncode, "diffuse.prepare --inception" in done.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-n", "19"], "19 images are too few"),
        (["-n", "21"], "use 20 or 30"),
        (["-n", "0"], "'-n' / '--images'"),
        (["--epoch=7", "-n", "20"], "no checkpoint of epoch 7"),
        (["--samplers=ddim-2-eta.", "-n", "20"], "as in ddim-50-eta0.5-clip"),
        (["--seed=99999999999999999999999"], "Invalid value for '--seed'"),
        (["--threads=1000000"], "Invalid value for '--threads'"),
        (["--samplers=ddim-2,algorithm2", "-n", "20"], "the samplers are ancestral, ddim, dpm"),
        (["--extractor=vgg", "-n", "20"], "allowed are classifier, inception"),
        (["--extractor=inception", "-n", "20"], "diffuse.prepare --inception"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(
    arguments: list[str], said: str, runs: dict[str, RunDir], data_dir: Path
) -> None:
    done = evaluate(runs["ddpm"].path, data_dir, *arguments)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not list(runs["ddpm"].evaluations.glob("*.json"))
    assert not list(runs["ddpm"].samples.glob("epoch_*_ddim-*.h5"))


def test_more_restorations_than_test_images_are_refused(
    runs: dict[str, RunDir], data_dir: Path
) -> None:
    done = evaluate(runs["cold"].path, data_dir, "-n", "20000", "--samplers=direct,unconditional")
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert "direct: 20,000 images, but there are 10,000 test images to restore" in line


def test_a_run_without_checkpoints_and_damaged_results_are_named(
    copy: dict[str, RunDir], data_dir: Path
) -> None:
    run = copy["ddpm"]
    arguments = ("--epoch=2", "-n", "20", "--samplers=ddim-2")
    assert evaluate(run.path, data_dir, *arguments).returncode == 0
    (figure,) = figures(run, 2)
    (run.path / figure["samples"]).write_bytes(b"\x89HDF, but damaged")
    (run.evaluations / "epoch_0002.json").unlink()
    done = evaluate(run.path, data_dir, *arguments)
    assert (done.returncode, "delete it and its images are drawn again" in done.stderr) == (2, True)
    with h5py.File(run.path / figure["samples"], "w") as file:
        file["images"] = np.zeros((20, 32, 32), np.uint8)
    done = evaluate(run.path, data_dir, *arguments)
    assert (done.returncode, "not uint8 [N, 28, 28]" in done.stderr) == (2, True)
    (run.path / figure["samples"]).unlink()
    (run.evaluations / "epoch_0002.json").write_text(json.dumps({"figures": 3}))
    done = evaluate(run.path, data_dir, *arguments)
    assert (done.returncode, "epoch_0002.json: damaged" in done.stderr) == (2, True)
    for path in run.checkpoints.iterdir():
        path.unlink()
    done = evaluate(run.path, data_dir)
    assert (done.returncode, "no checkpoint" in done.stderr) == (2, True)
