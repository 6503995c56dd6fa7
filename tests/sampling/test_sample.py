"""`python -m diffuse.sample`, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import diffuse
from diffuse.rundir.directory import RunDir
from diffuse.runtime.errors import UserError
from tests import programs
from tests.programs import TINY


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> dict[str, RunDir]:
    made = {}
    for name, more in (
        ("ddpm", ("--preset=ddpm/default",)),
        ("cold", ("--preset=cold/default_7", "--orientation=col")),
    ):
        runs_dir = tmp_path_factory.mktemp(name)
        done = programs.run(
            "diffuse.train",
            *more,
            *TINY,
            "--epochs=2",
            f"--runs-dir={runs_dir}",
            f"--data-dir={data_dir}",
        )
        assert done.returncode == 0, done.stderr
        made[name] = programs.only_run(runs_dir)
    return made


def sample(
    source: Path, data_dir: Path, *arguments: str, afresh: bool = False
) -> tuple[Path, Path]:
    done = programs.run(
        "diffuse.sample", source, f"--data-dir={data_dir}", *arguments, afresh=afresh
    )
    assert done.returncode == 0, done.stderr
    png, h5 = map(Path, done.stdout.split())
    return png, h5


@pytest.mark.parametrize(
    ("kind", "sampler", "first", "frames"),
    [
        ("ddpm", "ancestral", 1000, 30),
        ("ddpm", "ddim-4-eta1-clip", 1000, 5),
        ("ddpm", "dpm-4", 1000, 5),
        ("cold", "algorithm1", 0, 15),
        ("cold", "algorithm2", 0, 15),
        ("cold", "renoise", 0, 15),
        ("cold", "direct", 0, 9),
        ("cold", "unconditional", 7, 8),
        ("cold", "uniform", 7, 8),
    ],
)
def test_a_trajectory_is_drawn_beside_the_same_images(
    kind: str,
    sampler: str,
    first: int,
    frames: int,
    runs: dict[str, RunDir],
    data_dir: Path,
    tmp_path: Path,
) -> None:
    """From T to 0 in the sampler's steps; of restored images from t = 0 to T before."""
    arguments = (f"--sampler={sampler}", "-n", "3", "--batch=2", f"--output={tmp_path}")
    _, plain = sample(runs[kind].path, data_dir, *arguments)
    wanted = plain.read_bytes()
    source = (runs[kind].path, f"--data-dir={data_dir}")
    done = programs.run("diffuse.sample", *source, *arguments, "--trajectory")
    assert done.returncode == 0, done.stderr
    _, h5, moving, strip = map(Path, done.stdout.split())
    assert h5.read_bytes() == wanted, "the same bits as without --trajectory"
    assert strip.read_bytes()[:4] == b"\x89PNG"
    with Image.open(moving) as picture:
        assert picture.n_frames == frames  # type: ignore[attr-defined]
        assert picture.info["loop"] == 0


def test_an_observer_sees_the_start_the_way_and_the_end(runs: dict[str, RunDir]) -> None:
    model = diffuse.load(runs["ddpm"].path, device="cpu")
    seen = []
    x = model.sample(2, sampler="ddim-4", observe=lambda t, x, x0_hat: seen.append((t, x, x0_hat)))
    assert [t for t, _, _ in seen] == [1000, 750, 500, 250, 0]
    assert torch.equal(seen[-1][1], x)
    t, x_t, x0_hat = seen[2]
    alpha_bar = model.process.alpha_bar[t]  # type: ignore[attr-defined]
    with torch.inference_mode():
        eps_hat = model.network(x_t, torch.full((2,), t / 1000))
    torch.testing.assert_close(alpha_bar.sqrt() * x0_hat + (1 - alpha_bar).sqrt() * eps_hat, x_t)


@pytest.mark.parametrize("sampler", ["unconditional", "uniform"])
def test_the_drawn_start_is_kept_beside_its_result(
    sampler: str, runs: dict[str, RunDir], data_dir: Path, tmp_path: Path
) -> None:
    output = f"--output={tmp_path}"
    _, h5 = sample(runs["cold"].path, data_dir, f"--sampler={sampler}", "-n", "6", output)
    with h5py.File(h5) as file:
        x_T = file["x_T"][:]
        assert file["x_T"].attrs["value_range"] == "-0.5 black to 0.5 white"
    assert x_T.shape == (6, 1, 28, 28)
    assert np.ptp(x_T, axis=2).max() == 0, "columns are flat"
    assert (np.ptp(x_T, axis=3) > 0).all(), "and differ"
    assert -0.5 <= x_T.min() < x_T.max() <= 0.5


def images(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        return file["images"][:]


def test_the_files_hold_the_images_and_how_they_were_made(
    runs: dict[str, RunDir], data_dir: Path
) -> None:
    png, h5 = sample(
        runs["ddpm"].path,
        data_dir,
        "--sampler=ddim",
        *("--steps=7", "-n", "5", "--seed=3"),
        afresh=True,
    )
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert png.parent == runs["ddpm"].samples
    with h5py.File(h5) as file:
        assert file["images"].shape == (5, 28, 28)
        assert file["images"].dtype == np.uint8
        facts = dict(file.attrs)
    assert facts["sampler"] == "ddim-7"
    assert (facts["steps"], facts["seed"], facts["epoch"]) == (7, 3, 2)
    assert facts["model"] == runs["ddpm"].name


def test_an_image_does_not_depend_on_its_batch(
    runs: dict[str, RunDir], data_dir: Path, tmp_path: Path
) -> None:
    def made(name: str, *arguments: str) -> np.ndarray:
        output = f"--output={tmp_path / name}"
        return images(sample(runs["ddpm"].path, data_dir, "--steps=5", output, *arguments)[1])

    whole = made("a", "-n", "9", "--batch=9")
    assert np.array_equal(made("b", "-n", "9", "--batch=9"), whole), "equal bits for an equal batch"
    apart = np.abs(made("c", "-n", "4", "--batch=3").astype(int) - whole[:4])
    assert apart.max() <= 1, "one grey value of 255 for another batch"


@pytest.mark.parametrize(
    "sampler", ["algorithm1", "algorithm2", "direct", "unconditional", "uniform"]
)
def test_cold_samplers_restore_test_images_or_start_from_the_prior(
    sampler: str, runs: dict[str, RunDir], data_dir: Path, tmp_path: Path
) -> None:
    output = f"--output={tmp_path}"
    _, h5 = sample(runs["cold"].path, data_dir, f"--sampler={sampler}", "-n", "6", output)
    with h5py.File(h5) as file:
        assert ("original" in file) == (sampler not in ("unconditional", "uniform"))
    assert images(h5).shape == (6, 28, 28)


def test_load_takes_a_run_an_epoch_and_a_checkpoint(runs: dict[str, RunDir]) -> None:
    run = runs["ddpm"]
    last = diffuse.load(run.path)
    assert last.epoch == 2
    assert diffuse.load(run.path, epoch=1).epoch == 1
    same = diffuse.load(run.checkpoint_path(2))
    assert torch.equal(last.sample(2, sampler="ddim-3"), same.sample(2, sampler="ddim-3"))


def test_samples_are_drawn_with_the_averaged_weights(runs: dict[str, RunDir]) -> None:
    from diffuse.rundir import checkpoints

    content = checkpoints.read(runs["ddpm"].checkpoint_path(2))
    loaded = diffuse.load(runs["ddpm"].path).network.state_dict()
    name = "head.weight"
    assert torch.equal(loaded[name], content["ema"][name])
    assert not torch.equal(loaded[name], content["model"][name])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--sampler=algorithm2",), "for DDPM the samplers are"),
        (("--sampler=ddim", "--steps=1001"), "from 1 to T = 1000"),
        (("--epoch=7",), "there are 1, 2"),
        (
            (
                "-n",
                "0",
            ),
            "Invalid value for '-n'",
        ),
        (("--device=tpu",), "allowed are auto, cpu, cuda"),
        (("--steps=0",), "from 1 to T = 1000"),
        (("--sampler=ddim-5", "--steps=3"), "other steps or another eta"),
        (("--sampler=ancestral", "--eta=7"), "eta is for ddim"),
        (("--seed=99999999999999999999999",), "Invalid value for '--seed'"),
    ],
)
def test_bad_input_gets_one_line(
    arguments: tuple[str, ...], said: str, runs: dict[str, RunDir], tmp_path: Path
) -> None:
    done = programs.run("diffuse.sample", runs["ddpm"].path, *arguments, f"--output={tmp_path}")
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_epoch_of_a_single_checkpoint_is_refused(runs: dict[str, RunDir]) -> None:
    with pytest.raises(UserError, match=r"an epoch is chosen of a run directory, .*0002\.pt"):
        diffuse.load(runs["ddpm"].checkpoint_path(2), epoch=1)


@pytest.mark.parametrize("source", ["nowhere", ".", "README.md"])
def test_a_path_without_a_model_is_refused(source: str, tmp_path: Path) -> None:
    done = programs.run("diffuse.sample", source, f"--output={tmp_path}")
    assert done.returncode == 2, done.stderr
    assert source in done.stderr
    assert len(done.stderr.splitlines()) == 1
