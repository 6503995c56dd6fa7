"""Pictures depend on nothing of the user's, and one that cannot be drawn ends no program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffuse.config.presets import load_config
from diffuse.config.schema import SamplesConfig
from diffuse.rundir import plots
from diffuse.rundir.directory import RunDir
from diffuse.runtime import hdf5
from launch.comparison import charts
from tests import programs

DRAW = """
import sys
from pathlib import Path
import numpy as np
from diffuse.config.presets import load_config
from diffuse.config.schema import SamplesConfig
from diffuse.rundir import plots
from diffuse.rundir.directory import RunDir
from diffuse.runtime import hdf5
from launch.comparison import charts
folder = Path(sys.argv[1])
grid = np.zeros((4, 28, 28), np.uint8)
steps = [{"event": "step", "step": k, "loss": 1 / k} for k in range(1, 9)]
curves = {"ddim-50": [(1, 3.0), (2, 2.0)]}
plots.image_panels(folder / "panels.png", [("a $ b", grid)], title="run")
plots.strip(folder / "strip.png", grid[None], "abcd", title="run")
plots.loss_curve(folder / "loss.png", steps, title="run")
plots.epoch_curves(folder / "fid.png", curves, {"real": 1.0}, "FID", title="run")
lines = {"ddim-50": charts.Curve(curves["ddim-50"])}
chart = charts.Chart(lines, "FID", {"ddim-50": plots.look(0)}, log=True)
(folder / "chart.svg").write_text(chart.svg())
"""
WIDE = "--set=model.channels=8,8"
NAMES = {"panels.png", "strip.png", "loss.png", "fid.png", "chart.svg"}
SETTINGS = {
    "tex": {"matplotlibrc": b"text.usetex: True\n"},
    "size": {"matplotlibrc": b"savefig.dpi: 37\nfigure.dpi: 20\nsavefig.bbox: tight\n"},
    "text and colours": {"matplotlibrc": b"font.family: cursive\naxes.facecolor: black\n"},
    "no such backend in the file": {"matplotlibrc": b"backend: nonsense\nno key at all\n"},
    "a file that is no text": {"matplotlibrc": b"\xff\xfe\x00text.usetex: True\n"},
    "a style that is no text": {"stylelib/mine.mplstyle": b"\xff\xfe\x00"},
}


def draw(folder: Path, **environment: str) -> dict[str, bytes]:
    """Every kind of picture, drawn by a program in `folder`; their bytes by name."""
    out = folder / "out"
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRAW, str(out)],
        cwd=folder,
        env=programs.environment(**environment),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    empty = tmp_path_factory.mktemp("empty")
    pictures = draw(empty, MPLCONFIGDIR=str(empty), MPLBACKEND="")
    assert pictures.keys() == NAMES
    return pictures


@pytest.mark.parametrize("setting", SETTINGS)
def test_pictures_are_the_same_under_any_settings_of_matplotlib(
    setting: str, usual: dict[str, bytes], tmp_path: Path
) -> None:
    for name, content in SETTINGS[setting].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    # matplotlib finds its settings there, too, where the program was started
    assert draw(tmp_path, MPLCONFIGDIR=str(tmp_path)) == usual


@pytest.mark.parametrize("backend", ["nonsense", "module://not.installed"])
def test_pictures_need_no_backend_of_the_environment(
    backend: str, usual: dict[str, bytes], tmp_path: Path
) -> None:
    assert draw(tmp_path, MPLBACKEND=backend, MPLCONFIGDIR=str(tmp_path)) == usual


def test_drawing_leaves_the_callers_settings_as_they_were(tmp_path: Path) -> None:
    import matplotlib

    with matplotlib.rc_context({"savefig.dpi": 37, "text.usetex": True}):
        before = dict(matplotlib.rcParams)
        path = tmp_path / "a.png"
        assert plots.image_panels(path, [("a", np.zeros((4, 28, 28), np.uint8))])
        assert dict(matplotlib.rcParams) == before


def test_a_picture_that_cannot_be_drawn_is_one_note(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no font\nsecond line")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    path = tmp_path / "loss.png"
    assert not plots.loss_curve(path, [{"event": "step", "step": 1, "loss": 1.0}])
    assert not path.exists()
    chart = charts.Chart({"<a>": charts.Curve([(1, 2.0)])}, "FID", {"<a>": plots.look(0)})
    assert chart.svg() == "<p>FID over epochs: not drawn: RuntimeError: no font</p>"
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"{path}: not drawn: RuntimeError: no font",
        "FID over epochs: not drawn: RuntimeError: no font",
    ]


def test_a_training_ends_well_where_nothing_can_be_drawn(tmp_path: Path, data_dir: Path) -> None:
    broken = tmp_path / "matplotlib"  # stands before the real one
    (broken / "mpl-data").mkdir(parents=True)
    (broken / "__init__.py").write_text("raise OSError('no temporary folder')\n")
    runs = tmp_path / "runs"
    arguments = ["--preset=ddpm/quick", "--epochs=1", *programs.TINY, WIDE, f"--runs-dir={runs}"]
    for _ in range(2):  # the second time there is nothing to train
        done = programs.run(
            "diffuse.train",
            *arguments,
            f"--data-dir={data_dir}",
            afresh=True,
            PYTHONPATH=str(tmp_path),
        )
        assert done.returncode == 0, done.stderr
        notes = [line for line in done.stderr.splitlines() if "not drawn" in line]
        assert len(notes) == len(done.stderr.splitlines()) == 4
        assert notes[0].endswith("epoch_0001.png: not drawn: OSError: no temporary folder")
    run = programs.only_run(runs)
    assert len(run.metrics("epoch")) == 1
    assert run.status()["state"] == "done"
    arguments.append(f"--data-dir={data_dir}")
    assert programs.run("diffuse.train", *arguments).returncode == 0
    assert {p.name for p in (*run.samples.iterdir(), *run.plots.iterdir())} == {
        "epoch_0001.png",
        "epoch_0001.h5",
        "degradation.png",
        "trajectory.gif",
        "epochs.png",
        "loss.png",
    }


def test_the_samples_of_the_reports_epochs_stand_side_by_side(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDir(tmp_path / "run")
    drawn: list[tuple[str, float]] = []

    def panels(path: Path, grids: list[tuple[str, np.ndarray]], **more: str) -> None:
        drawn[:] = [(name, float(images[0, 0, 0])) for name, images in grids]

    epoch_series = plots.epoch_series
    for epoch in (1, 10, 20, 30, 40, 60, 100):
        images = np.full((20, 28, 28), epoch, np.uint8)
        hdf5.write(run.samples_path(epoch), {"images": images}, {})
    epoch_series(run)
    assert (run.plots / "epochs.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(plots, "image_panels", panels)
    epoch_series(run)
    assert drawn == [("epoch 1", 1), ("epoch 20", 20), ("epoch 40", 40), ("epoch 60", 60)]
    run.samples_path(20).write_bytes(b"torn")
    epoch_series(run)
    assert [name for name, _ in drawn] == ["epoch 1", "epoch 40", "epoch 60"]
    assert "epoch 20 is left out" in "".join(capsys.readouterr())
    run.samples_path(20).unlink()
    epoch_series(run)
    assert [name for name, _ in drawn] == ["epoch 1", "epoch 30", "epoch 40", "epoch 100"]


def test_the_first_epoch_has_a_picture_unless_others_are_asked_for() -> None:
    config = load_config("ddpm/default")
    assert config.sampled_epochs == (1, *config.evaluated_epochs)
    named = config.model_copy(update={"samples": SamplesConfig(at_epochs=(5,))})
    assert named.sampled_epochs == (5,)
    assert named.signature == config.signature
