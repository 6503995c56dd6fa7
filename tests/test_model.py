"""A trained model as one file, by name, and in an afternoon's hands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import diffuse
from diffuse.rundir import evaluations
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files, options
from diffuse.runtime.errors import UserError
from tests import programs
from tests.programs import TINY

COLD = ("--preset=cold/unet", "--orientation=row", "--set=samples.at_epochs=[]")
SMALL = ("--set=model.channels=8,16", "--set=train.ema={gamma: 6}")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> RunDir:
    """A cold run that was evaluated."""
    folder = tmp_path_factory.mktemp("runs")
    place = (f"--runs-dir={folder}", f"--data-dir={data_dir}")
    done = programs.run("diffuse.train", *COLD, *TINY, *SMALL, "--epochs=1", *place)
    assert done.returncode == 0, done.stderr
    found = programs.only_run(folder)
    few = ("-n", "40", "--samplers=unconditional", place[1])
    done = programs.run("diffuse.evaluate", found.path, *few)
    assert done.returncode == 0, done.stderr
    return found


@pytest.fixture(scope="module")
def exported(run: RunDir, tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    path = tmp_path_factory.mktemp("exported") / "model.safetensors"
    done = programs.run(
        "diffuse.export", run.path, f"--output={path}", "--no-half", f"--data-dir={data_dir}"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{path}: ")
    return path


def test_an_exported_file_draws_the_runs_images_without_run_and_data(
    run: RunDir, exported: Path, data_dir: Path, tmp_path: Path
) -> None:
    ours = diffuse.load(run.path).images(8, sampler="unconditional", data_dir=data_dir)
    alone = diffuse.load(exported)
    theirs = alone.images(8, sampler="unconditional", data_dir=tmp_path / "nowhere")
    assert ours.dtype == np.uint8 and ours.shape == (8, 28, 28)
    # the prior is kept in float32
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    assert (alone.name, alone.epoch, alone.step) == (run.name, 1, 8)


def test_the_file_says_what_it_is_and_how_good(run: RunDir, exported: Path) -> None:
    evaluation = evaluations.read(run.evaluation_path(1))
    assert evaluation is not None
    assert diffuse.load(exported).figures == [figure.plain() for figure in evaluation.figures]
    tensors = load_file(exported)  # as any other reader of safetensors sees it
    network = diffuse.load(run.path).network.state_dict()
    assert torch.equal(tensors["network.head.weight"], network["head.weight"])
    again = exported.with_name("again.safetensors")
    diffuse.load(exported).export(again, half=False)
    assert again.read_bytes() == exported.read_bytes()


def test_half_the_size_draws_nearly_the_same(run: RunDir, exported: Path, data_dir: Path) -> None:
    path = exported.with_name("half.safetensors")
    diffuse.load(run.path).export(path, data_dir=data_dir)
    assert path.stat().st_size < 0.8 * exported.stat().st_size
    ours = diffuse.load(run.path).images(8, data_dir=data_dir).astype(int)
    assert np.abs(ours - diffuse.load(path).images(8, data_dir=data_dir)).max() < 10


def test_a_damaged_or_foreign_file_is_refused_by_name(exported: Path, tmp_path: Path) -> None:
    content = exported.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    text = header["__metadata__"]["diffuse"]
    cases = {
        "bit.safetensors": content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
        "cut.safetensors": content[:-1],
        "text.safetensors": b"no weights at all",
        "empty.safetensors": b"",
        "facts.safetensors": content.replace(b'\\"epoch\\": 1', b'\\"epoch\\": 9', 1),
    }
    assert '"epoch": 1' in text and cases["facts.safetensors"] != content
    for name, damaged in cases.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(UserError, match=name):
            diffuse.load(tmp_path / name)


def test_programs_take_the_file(exported: Path, data_dir: Path, tmp_path: Path) -> None:
    place = (f"--data-dir={data_dir}", f"--output={tmp_path}")
    done = programs.run("diffuse.sample", exported, "-n4", *place)
    assert done.returncode == 0, done.stderr
    done = programs.run("diffuse.evaluate", exported, "-n40", "--samplers=direct", *place)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "model.evaluation.json").is_file()


def test_shipped_weights_are_found_by_name_and_are_those_of_their_list(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    listed = dict(
        reversed(line.split()) for line in (options.WEIGHTS / "SHA256SUMS").read_text().splitlines()
    )
    shipped = sorted(options.WEIGHTS.glob("*.safetensors"))
    assert {path.name: files.sha256(path) for path in shipped} == listed
    assert sum(path.stat().st_size for path in shipped) < 25e6
    monkeypatch.chdir(tmp_path)
    for path in shipped:
        name = path.stem.replace("-", "/", 1)
        model = diffuse.load(name, device="cpu")
        assert model.figures, name
        sampler = "unconditional" if name.startswith("cold") else None
        assert model.images(2, sampler=sampler, data_dir=tmp_path).shape == (2, 28, 28)
    with pytest.raises(UserError, match=r"ddpm/other: no such file .* shipped models are"):
        diffuse.load("ddpm/other")


def test_a_model_shows_and_judges_its_images(exported: Path, data_dir: Path) -> None:
    model = diffuse.load(exported, device="cpu")
    assert repr(model).startswith(f"<{model.name}: cold diffusion, ")
    assert "sampler renoise, on cpu" in repr(model)
    picture = model.show(10, columns=4, sampler="unconditional")
    assert picture.size == (2 * (4 * 30 + 2), 2 * (3 * 30 + 2))
    first = np.asarray(picture)[4:60:2, 4:60:2]
    assert np.array_equal(first, model.images(1, sampler="unconditional")[0])
    figure = model.evaluate(40, sampler="unconditional", data_dir=data_dir)
    (kept,) = model.figures
    assert figure.fid == pytest.approx(kept["fid"], rel=1e-3)
    assert figure.protocol.plain() == kept["protocol"]
