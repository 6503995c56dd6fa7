"""Rows for W&B out of a run's events: which names, on which axis."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffuse.rundir import evaluations
from diffuse.rundir.directory import RunDir
from diffuse.rundir.evaluations import Figure
from diffuse.runtime import files


class Tail:
    """The lines of a file that grows, from number `start` (0-based) on, each once."""

    def __init__(self, path: Path, start: int) -> None:
        self.path, self.start = path, start
        self.number = self.offset = 0

    def new(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Whole lines that were not given yet, with their numbers; damaged ones as {}."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self.offset)
            for raw in file:
                if not raw.endswith(b"\n"):
                    return  # being written
                number, self.number = self.number, self.number + 1
                self.offset += len(raw)
                if number >= self.start:
                    yield number, files.unsealed(raw) or {}


def row_of(run: RunDir, line: dict[str, Any]) -> dict[str, Any]:
    """The values that W&B gets of one event, a picture as its path; {} where it gets none."""
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
            path = run.picture_path(line["epoch"])
            if path.is_file():
                return {"epoch": line["epoch"], "samples": path}
        case "evaluation":
            evaluation = evaluations.read(run.evaluation_path(line["epoch"]))
            figures = evaluation.figures if evaluation else []
            row = {k: v for figure in figures for k, v in figure_row(figure).items()}
            return {"epoch": line["epoch"], **row} if row else {}
    return {}


def figure_row(figure: Figure) -> dict[str, float]:
    """A figure as `eval/fid/ddim-50 classifier-1000 3f2a`: its protocol is part of the name.

    So two protocols never share a curve: the last letters are a hash of all of it.
    """
    protocol = figure.protocol
    digest = hashlib.sha256(protocol.key.encode()).hexdigest()[:4]
    label = f"{protocol.sampler} {protocol.extractor}-{protocol.images} {digest}"
    values = {f"{key}_floor": value for key, value in figure.floor.values().items()}
    return {f"eval/{key}/{label}": value for key, value in (figure.values() | values).items()}
