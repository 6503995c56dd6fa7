"""Rows for W&B out of a run's events: which names, on which axis."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffuse.config.schema import Config
from diffuse.rundir import evaluations, plots
from diffuse.rundir.cost import Spent
from diffuse.rundir.directory import RunDir
from diffuse.rundir.evaluations import Evaluation, Figure
from diffuse.runtime import files, hdf5
from diffuse.runtime.errors import UserError

SHOWN = 64  # images of an evaluation


class Tail:
    """The lines of a file that grows, each once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = self.offset = 0

    def new(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Whole lines that were not given yet, with their numbers from 0; damaged ones as {}."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self.offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return  # being written
                number, self.number = self.number, self.number + 1
                self.offset += len(raw)
                yield number, files.unsealed(raw) or {}


def row_of(run: RunDir, config: Config, line: dict[str, Any]) -> dict[str, Any]:
    """The values that W&B gets of one event, a picture as its path or pixels; {} where none."""
    match line.get("event"):
        case "step" | "speed" as event:
            keys = ("loss", "lr", "grad_norm") if event == "step" else ("images_per_s",)
            row = {f"train/{key}": line[key] for key in keys if line.get(key) is not None}
            return {"step": line["step"], **row}
        case "epoch":
            quartiles = enumerate(line["loss_by_t_quartile"], start=1)
            row = {f"epoch/loss_t_quartile_{k}": q for k, q in quartiles if q is not None}
            return {"epoch": line["epoch"], "epoch/loss": line["loss"], **row}
        case "samples":
            # of cold diffusion four panels: originals, degraded, and two restorations
            pictures = {"samples": run.picture_path(line["epoch"])}
            if line["epoch"] == min(run.pictured_epochs(), default=None):  # it is drawn once
                pictures["degradation"] = run.plots / "degradation.png"
            row = {name: path for name, path in pictures.items() if path.is_file()}
            return {"epoch": line["epoch"], **row} if row else {}
        case "evaluation":
            evaluation = evaluations.read(run.evaluation_path(line["epoch"]))
            if evaluation is None or not evaluation.figures:
                return {}
            usual = usual_protocol(config, evaluations.of_run(run))
            row = {"epoch": line["epoch"]}
            for figure in evaluation.figures:
                row |= figure_row(figure, usual) | _unconditional(run, figure, usual)
                row |= _calls(config, figure)
            return row
    return {}


def figure_row(figure: Figure, usual: dict[str, Any] | None = None) -> dict[str, float]:
    """A figure as `eval/fid/renoise`, beside `eval/fid/floor`, so that one chart has both.

    Two protocols never share a curve: of another than the run's `usual` one, the name ends with
    extractor, number of images and a hash of all of it. How far KID and IS scatter stays on disk.
    """
    protocol = figure.protocol
    digest = hashlib.sha256(protocol.key.encode()).hexdigest()[:4]
    other = f" {protocol.judge}-{protocol.images} {digest}"
    label = "" if protocol.without_sampler() == usual else other
    floor = "floor of the originals" if protocol.source == "test images" else "floor"
    scores = {f"{key}/{protocol.sampler}": value for key, value in figure.values().items()}
    floors = {f"{key}/{floor}": value for key, value in figure.floor.values().items()}
    named = {key: value for key, value in (scores | floors).items() if "_std/" not in key}
    return {f"eval/{key}{label}": value for key, value in named.items()}


def cost_row(spent: Spent) -> dict[str, float]:
    """The cost of training up to some moment: hours of GPUs and cores, energy, images seen."""
    hours = {f"cost/{unit.lower().replace(' ', '_')}": h for unit, h in spent.hours.items()}
    energy = {"cost/energy_kwh": spent.energy_kwh} if spent.energy_kwh else {}
    return {**hours, **energy, "cost/images_seen": spent.images}


def usual_protocol(config: Config, found: Sequence[Evaluation]) -> dict[str, Any] | None:
    """The protocol, without its sampler, by which the run's settings have it evaluated.

    Args:
        found: the run's evaluations, by epoch. A setting that is left open is as in the first.
    """
    settings = config.eval
    for figure in itertools.chain.from_iterable(evaluation.figures for evaluation in found):
        protocol = figure.protocol
        asked = (settings.extractor, settings.images, 0, None)
        if (protocol.extractor, protocol.images, protocol.seed, protocol.convention) == asked:
            return protocol.without_sampler()
    return None


def summary(config: Config, found: Sequence[Evaluation]) -> dict[str, float]:
    """Columns of W&B's table of runs, to be sorted and pinned: of the run's usual sampler.

    `best/` is over the epochs evaluated by the usual protocol, `final/` is the last of them, by as
    many images as there were (eval.final_images).

    Args:
        found: the run's evaluations, by epoch.
    """
    sampler = str(config.sampler_specs(None)[0])
    usual = usual_protocol(config, found)
    figures = [(e.epoch, f) for e in found for f in e.figures if f.protocol.sampler == sampler]
    comparable = [(epoch, f) for epoch, f in figures if f.protocol.without_sampler() == usual]
    if not comparable:
        return {}
    epoch, best = min(comparable, key=lambda pair: pair[1].fid)
    last, _ = comparable[-1]
    ours = [f for e, f in figures if e == last and f.protocol.judge == best.protocol.judge]
    final = max(ours, key=lambda figure: figure.protocol.images)
    return {
        "best/fid": best.fid,
        "best/fid_epoch": epoch,
        "final/epoch": last,
        "final/images": final.protocol.images,
        "final/fid": final.fid,
        "final/fid_floor": final.floor.fid,
        "final/kid": final.kid,
        "final/is": final.is_,
    }


def _calls(config: Config, figure: Figure) -> dict[str, int]:
    """The network calls of the figure's sampler for one image."""
    name = figure.protocol.sampler
    try:
        return {f"cost/network_calls/{name}": config.sampler_spec(name).network_calls}
    except UserError:  # of another version of this project
        return {}


def _unconditional(
    run: RunDir, figure: Figure, usual: dict[str, Any] | None
) -> dict[str, NDArray[np.uint8]]:
    """The first images drawn from the prior, that were judged, uint8 [H, W]; {} of other figures.

    Training draws restorations, and DDPM's samples.
    """
    protocol = figure.protocol
    if figure.samples is None or protocol.source != "prior" or protocol.without_sampler() != usual:
        return {}
    try:
        arrays, _ = hdf5.read(run.path / figure.samples, first=SHOWN)
        shown = {"": arrays["images"]}
    except (OSError, hdf5.Damaged, KeyError):
        return {}  # the figures count without it
    if "x_T" in arrays:  # the drawn start
        shown["_x_T"] = plots.stretch(arrays["x_T"])
    return {
        f"samples_{protocol.sampler}{name}": plots.tile(images, columns=8)
        for name, images in shown.items()
    }
