"""`evaluations/epoch_0020.json`: the figures of one checkpoint, each with its protocol.

{"epoch": 20, "checkpoint_sha256": ..., "weights": "ema", "figures": [FIGURE, ...]}, where FIGURE is
what diffuse.evaluation.evaluator makes. A figure is replaced by one of the same protocol only.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from filelock import FileLock

from diffuse.rundir import plots
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.errors import UserError

Figure = dict[str, Any]
OF_SAMPLER = ("sampler", "source", "floor")  # what of a protocol may differ within a drawing


def read(path: Path) -> dict[str, Any]:
    """The file's content; {} where there is none.

    Raises UserError where it is damaged: results are never silently forgotten.
    """
    if not path.exists():
        return {}
    content = files.read_json(path)
    try:
        if all(f["protocol"]["sampler"] for f in content["figures"]):
            return content
    except (KeyError, TypeError):
        pass
    raise UserError(f"{path}: damaged; delete it and evaluate again (samples are kept)")


def find(path: Path, checkpoint_sha256: str, protocol: dict[str, Any]) -> Figure | None:
    """The figure of this protocol, where it is there and of this checkpoint."""
    content = read(path)
    if content.get("checkpoint_sha256") != checkpoint_sha256:
        return None
    return next((f for f in content["figures"] if f["protocol"] == protocol), None)


def add(path: Path, about: dict[str, Any], figure: Figure) -> dict[str, Any]:
    """Write a figure beside the others; those of an earlier, other checkpoint go.

    Returns the file's content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), mode=0o664):
        content = read(path)
        figures = content.get("figures", [])
        if content.get("checkpoint_sha256") != about["checkpoint_sha256"]:
            figures = []
        others = [f for f in figures if f["protocol"] != figure["protocol"]]
        content = {**about, "figures": [*others, figure]}
        files.write_json(path, content)
    return content


def of_run(run: RunDir) -> list[dict[str, Any]]:
    """All evaluations of a run, by epoch."""
    contents = [read(path) for path in run.evaluations.glob("epoch_*.json")]
    return sorted(contents, key=lambda content: int(content["epoch"]))


def summary(figure: Figure) -> str:
    """One line for people."""
    protocol, floor = figure["protocol"], figure["floor"]
    return (
        f"{protocol['sampler']}, {protocol['images']} images by {protocol['extractor']}:"
        f" FID {figure['fid']:.1f} (floor {floor['fid']:.1f}),"
        f" KID {figure['kid']:.3g} +- {figure['kid_std']:.3g},"
        f" IS {figure['is']:.2f} +- {figure['is_std']:.2f} (real {floor['is']:.2f})"
    )


def draw(run: RunDir) -> None:
    """plots/fid.png and plots/is.png: each sampler's figures over the epochs, with the floors.

    Of several protocols the one that most epochs have is drawn, never two in one line.
    """
    lines: dict[str, dict[str, list[tuple[int, Figure]]]] = {}
    for content in of_run(run):
        for figure in content["figures"]:
            protocol = figure["protocol"]
            rest = json.dumps({k: v for k, v in protocol.items() if k not in OF_SAMPLER})
            lines.setdefault(rest, {}).setdefault(protocol["sampler"], []).append(
                (int(content["epoch"]), figure)
            )
    if not lines:
        return
    chosen = max(lines.values(), key=lambda by_sampler: sum(map(len, by_sampler.values())))
    floors = {
        figure["protocol"].get("floor", "real test images"): figure["floor"]
        for points in chosen.values()
        for _, figure in points
    }
    about = next(iter(chosen.values()))[0][1]["protocol"]
    title = f"{run.name}: {about['images']} images, {about['extractor']}"
    for key, label in (("fid", "FID (lower is better)"), ("is", "IS (higher is better)")):
        curves = {
            name: [(epoch, float(figure[key])) for epoch, figure in points]
            for name, points in chosen.items()
        }
        real = {name: float(floor[key]) for name, floor in floors.items()}
        plots.epoch_curves(run.plots / f"{key}.png", curves, real, label, title=title)
