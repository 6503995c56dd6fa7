"""The notebook runs from top to bottom, for a run of each process and for a weight file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from torch import nn

from tests import programs
from tests.models.test_networks import ReportNetwork, ddpm_buffers, weight_file
from tests.programs import ROOT, TINY

NOTEBOOK = ROOT / "notebooks" / "load_and_play.ipynb"


@pytest.mark.parametrize(
    "preset",
    [("--preset=ddpm/testing",), ("--preset=cold/default_7", "--orientation=col")],
    ids=["ddpm", "cold"],
)
def test_the_notebook_loads_samples_and_measures_a_run(
    preset: tuple[str, ...], tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (*preset, *TINY, "--epochs=1", "--set=samples.at_epochs=[]")
    folders = (f"--runs-dir={tmp_path}", f"--data-dir={data_dir}")
    done = programs.run("diffuse.train", *arguments, *folders)
    assert done.returncode == 0, done.stderr
    run = programs.only_run(tmp_path)
    text, pictures = executed(run.path, data_dir, monkeypatch)
    assert run.name in text
    assert "(floor" in text
    assert pictures == 3


def test_the_notebook_loads_samples_and_measures_a_reports_weight_file(
    tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = ReportNetwork((4, 4), nn.GELU)
    source = weight_file(tmp_path, "ddpm_mnist_80_light", network, **ddpm_buffers(10))
    text, pictures = executed(source, data_dir, monkeypatch)
    assert "<ddpm_mnist_80_light: DDPM, " in text and "epoch 80" in text
    assert "(floor" in text
    assert pictures == 3


def test_the_notebook_is_kept_with_the_outputs_of_shipped_weights() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    text, pictures = outputs(notebook)
    assert pictures == 3 and "FID" in text and str(ROOT) not in text
    assert not any(
        o.output_type == "error" for cell in notebook.cells for o in cell.get("outputs", [])
    )


def executed(source: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    """The outputs of the notebook for the model at `source`."""
    more = {"DIFFUSE_SOURCE": source, "DIFFUSE_DATA": data_dir, "DIFFUSE_NOTEBOOK_IMAGES": 40}
    for name, value in programs.environment(**{k: str(v) for k, v in more.items()}).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=folder).execute()
    return outputs(notebook)


def outputs(notebook: Any) -> tuple[str, int]:
    """All that was printed or shown as text, and the number of pictures."""
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in shown)
    return text, sum("image/png" in output.get("data", {}) for output in shown)
