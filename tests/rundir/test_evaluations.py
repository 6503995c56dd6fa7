"""`evaluations/epoch_0020.json`: as written, and as read from older and damaged files."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from diffuse.rundir import evaluations, plots
from diffuse.rundir.directory import RunDir
from diffuse.rundir.evaluations import Evaluation, Figure
from diffuse.runtime import files
from diffuse.runtime.errors import UserError
from diffuse.tracking.rows import figure_row
from tests.programs import ROOT

# As diffuse.evaluate writes it, key by key.
FIGURE: dict[str, Any] = {
    "protocol": {
        "extractor": "classifier",
        "extractor_sha256": "c0ffee",
        "features": 256,
        "real_split": "train",
        "real_images": 60000,
        "real_sha256": "decade",
        "images": 1000,
        "value_range": "[0, 1], clamped, as uint8",
        "resize": None,
        "sampler": "algorithm2",
        "seed": 0,
        "source": "test images",
        "kid_subset_size": 500,
        "kid_subsets": 100,
        "is_splits": 10,
        "floor": "the first 1000 test images, which were restored",
    },
    "fid": 123.5,
    "kid": 0.25,
    "kid_std": 0.01,
    "is": 4.5,
    "is_std": 0.125,
    "floor": {"fid": 25.0, "kid": 0.0, "kid_std": 0.0, "is": 9.25, "is_std": 0.5},
    "reconstruction": {"mse": 0.5, "psnr": 12.0, "ssim": 0.75},
    "labels": ["1,000 images: few"],
    "samples": "samples/epoch_0003_algorithm2_seed_0.h5",
    "seconds": 1.5,
    "drawing": {"images": 1000, "seconds": 20.5, "device": "AMD EPYC"},
}
CONTENT: dict[str, Any] = {
    "epoch": 3,
    "step": 24,
    "checkpoint_sha256": "facade",
    "weights": "ema",
    "figures": [FIGURE],
}
OLD_PROTOCOL = {key: value for key, value in FIGURE["protocol"].items() if key != "floor"}
OLD = {**CONTENT, "figures": [{**FIGURE, "protocol": OLD_PROTOCOL}]}
NEWER = {**CONTENT, "figures": [{**FIGURE, "protocol": {**FIGURE["protocol"], "crop": 24}}]}


@pytest.mark.parametrize("content", [CONTENT, OLD, NEWER], ids=["now", "older", "newer"])
def test_a_file_is_written_again_as_it_was_read(tmp_path: Path, content: dict[str, Any]) -> None:
    path = tmp_path / "epoch_0003.json"
    files.write_json(path, content)
    before = path.read_text()
    evaluation = evaluations.read(path)
    assert evaluation is not None
    path.unlink()
    evaluations.add(path, evaluation)
    assert {**json.loads(path.read_text()), "crc32": 0} == {**json.loads(before), "crc32": 0}
    if content is CONTENT:
        assert path.read_text() == before, "in the same order, too"


def test_a_figure_replaces_that_of_its_protocol_and_of_this_checkpoint_only(tmp_path: Path) -> None:
    path = tmp_path / "epoch_0003.json"
    for content in (OLD, CONTENT, NEWER, CONTENT):
        evaluations.add(path, Evaluation.model_validate(content))
    evaluation = evaluations.read(path)
    assert evaluation is not None
    assert [figure.plain() for figure in evaluation.figures] == [
        content["figures"][0] for content in (OLD, NEWER, CONTENT)
    ]
    (figure,) = Evaluation.model_validate(CONTENT).figures
    assert evaluations.find(path, "facade", figure.protocol) == figure
    assert evaluations.find(path, "other", figure.protocol) is None
    other = Evaluation.model_validate({**CONTENT, "checkpoint_sha256": "other"})
    assert len(evaluations.add(path, other).figures) == 1


@pytest.mark.parametrize("content", [CONTENT, OLD, NEWER], ids=["now", "older", "newer"])
def test_a_curve_in_wandb_is_named_by_the_protocol_where_it_is_not_the_runs_own(
    content: dict[str, Any],
) -> None:
    text = json.dumps(content["figures"][0]["protocol"], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:4]
    (figure,) = Evaluation.model_validate(content).figures
    row = figure_row(figure)
    label = f"classifier-1000 {digest}"
    assert row[f"eval/is/algorithm2 {label}"] == 4.5
    assert row[f"eval/is/floor of the originals {label}"] == 9.25
    assert row[f"eval/ssim/algorithm2 {label}"] == 0.75
    assert len(row) == 3 + 3 + 3
    own = figure_row(figure, figure.protocol.without_sampler())
    assert own == {key.removesuffix(f" {label}"): value for key, value in row.items()}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"epoch": 3, "figures": 3}',
        '{"epoch": 3, "figures": [3]}',
        json.dumps({**CONTENT, "figures": [{**FIGURE, "is": "4.5"}]}),
        json.dumps({**CONTENT, "figures": [{**FIGURE, "floor": None}]}),
        json.dumps({**CONTENT, "figures": [{**FIGURE, "labels": 3}]}),
        json.dumps({**CONTENT, "figures": [{**FIGURE, "protocol": {"sampler": "direct"}}]}),
        json.dumps({**CONTENT, "crc32": "00000000"}),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "epoch_0003.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"epoch_0003\.json: damaged; delete it and evaluate again"):
        evaluations.read(path)
    assert evaluations.read(tmp_path / "epoch_0004.json") is None


def test_figures_of_two_protocols_never_share_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The protocol that most epochs have is drawn; those of other samplers beside it."""
    run = RunDir(tmp_path)
    for epoch, number in ((1, 1000), (2, 1000), (3, 500)):
        made = []
        for k, sampler in enumerate(("direct", "algorithm2")):
            protocol = {**FIGURE["protocol"], "images": number, "sampler": sampler}
            made.append({**FIGURE, "fid": 10.0 * epoch + k, "protocol": protocol})
        files.write_json(run.evaluation_path(epoch), {**CONTENT, "epoch": epoch, "figures": made})
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(
        plots,
        "epoch_curves",
        lambda path, curves, floors, label, title: drawn.update({path.name: (curves, floors)}),
    )
    plots.evaluation_curves(run)
    floor = FIGURE["protocol"]["floor"]
    assert drawn["fid.png"] == (
        {"direct": [(1, 10.0), (2, 20.0)], "algorithm2": [(1, 11.0), (2, 21.0)]},
        {floor: 25.0},
    )
    assert drawn["is.png"][1] == {floor: 9.25}


def test_a_summary_names_protocol_scores_and_floor() -> None:
    assert Figure.model_validate(FIGURE).summary() == (
        "algorithm2, 1000 images by classifier: FID 123.5 (floor 25.0), KID 0.25 +- 0.01,"
        " IS 4.50 +- 0.12 (real 9.25)"
    )


def test_reading_results_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, diffuse.rundir.evaluations as _; print({'torch', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")
