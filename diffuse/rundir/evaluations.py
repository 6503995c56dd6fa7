"""`evaluations/epoch_0020.json`: the figures of one checkpoint, each with its protocol.

    {"epoch": 20, "checkpoint_sha256": ..., "weights": "ema", "figures": [FIGURE, ...]}

The classes below are these objects, field by field; a field that an older version of this project
did not write yet has a default, and one of a newer version is kept when the file is written again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.errors import UserError

REPORT = "the report's own protocol"
OF_MODEL = "labels"  # the part of a protocol that follows from the network
OF_SAMPLER = ("sampler", "source", "floor")  # the parts that follow from the sampler


class _Object(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="allow", populate_by_name=True)

    def plain(self) -> dict[str, Any]:
        """The JSON object, with the fields that were given, and no others."""
        return self.model_dump(by_alias=True, exclude_unset=True)


class Protocol(_Object):
    """All that a figure depends on beside the images' quality."""

    extractor: str
    extractor_sha256: str | None = None
    features: int | None = None  # of one image
    real_split: str | None = None
    real_images: int
    real_sha256: str | None = None
    images: int  # generated
    value_range: str | None = None
    resize: str | None = None
    sampler: str
    seed: int | None = None
    source: str  # the sampler's start: noise, the prior, or test images
    labels: str | None = None  # how a network with labels was told them
    kid_subset_size: int | None = None
    kid_subsets: int | None = None
    is_splits: int | None = None
    floor: str | None = None  # the real images that were judged in the same way
    convention: str | None = None  # REPORT: the report's own, comparable with no other

    @property
    def key(self) -> str:
        """One text for each protocol."""
        return json.dumps(self.plain(), sort_keys=True)

    @property
    def of_any_model(self) -> str:
        """One text for the protocols whose figures can be compared, with labels or without."""
        return json.dumps({k: v for k, v in self.plain().items() if k != OF_MODEL}, sort_keys=True)

    @property
    def judge(self) -> str:
        """The extractor, and the convention where it is none of this project's."""
        return self.extractor + (f", {self.convention}" if self.convention else "")

    def without_sampler(self) -> dict[str, Any]:
        """The protocol's part that samplers and models shown side by side have in common."""
        return {k: v for k, v in self.plain().items() if k not in (OF_MODEL, *OF_SAMPLER)}


class _WithProtocol(_Object):
    """The field that a figure begins with: pydantic takes a class's last base first."""

    protocol: Protocol


class Scores(_Object):
    """Distances to the real images, and the Inception Score."""

    fid: float
    kid: float
    kid_std: float
    is_: float = Field(validation_alias="is", serialization_alias="is")
    is_std: float

    def values(self) -> dict[str, float]:
        """All numbers by the names that they have in files and tables."""
        return self.model_dump(by_alias=True, include=set(Scores.model_fields))


class DigitScores(_Object):
    """The images of one digit that the network was told, against the real ones of that digit."""

    digit: int
    images: int
    fid: float
    floor: float  # the FID of as many real test images of the digit
    recognised: float  # the share of images in which the classifier sees the digit


class Drawing(_Object):
    """The time that one rank took to draw its share of a set of images."""

    images: int
    seconds: float
    device: str  # as in the run's environment


class Figure(Scores, _WithProtocol):
    """The scores of a set of images, with their protocol and those of as many real images."""

    floor: Scores
    reconstruction: dict[str, float] | None = None  # mse, psnr, ssim of restored images
    digits: list[DigitScores] | None = None  # of a network that was told labels
    labels: list[str] = []  # remarks without which the scores mislead
    samples: str | None = None  # where the images are, relative to the run directory
    seconds: float | None = None  # of the judgement alone
    drawing: Drawing | None = None  # not where all images were there already

    def values(self) -> dict[str, float]:
        return super().values() | (self.reconstruction or {})

    def summary(self) -> str:
        """One line for people."""
        protocol, floor = self.protocol, self.floor
        told = f", {self.recognised:.1%} show the digit told" if self.digits else ""
        return (
            f"{protocol.sampler}, {protocol.images} images by {protocol.judge}:"
            f" FID {self.fid:.1f} (floor {floor.fid:.1f}),"
            f" KID {self.kid:.3g} +- {self.kid_std:.3g},"
            f" IS {self.is_:.2f} +- {self.is_std:.2f} (real {floor.is_:.2f}){told}"
        )

    @property
    def recognised(self) -> float | None:
        """The share of images in which the classifier sees the digit that the network was told."""
        digits = self.digits or []
        n = sum(digit.images for digit in digits)
        return sum(digit.images * digit.recognised for digit in digits) / n if n else None


class Evaluation(_Object):
    """The figures of one checkpoint."""

    epoch: int
    step: int | None = None  # not known of a report's weight file
    checkpoint_sha256: str | None = None
    weights: str | None = None  # ema or model
    figures: list[Figure]

    def find(self, protocol: Protocol) -> Figure | None:
        """The figure of this protocol."""
        return next((figure for figure in self.figures if figure.protocol == protocol), None)


def read(path: Path) -> Evaluation | None:
    """The file's content; None where there is none.

    Raises UserError where it is damaged: results are never silently forgotten.
    """
    if not path.exists():
        return None
    try:
        return Evaluation.model_validate(files.read_json(path))
    except ValidationError:
        raise UserError(
            f"{path}: damaged; delete it and evaluate again (samples are kept)"
        ) from None


def find(path: Path, checkpoint_sha256: str, protocol: Protocol) -> Figure | None:
    """The figure of this protocol, where it is there and of this checkpoint."""
    content = read(path)
    same = content is not None and content.checkpoint_sha256 == checkpoint_sha256
    return content.find(protocol) if content and same else None


def add(path: Path, evaluation: Evaluation) -> Evaluation:
    """Write figures beside those in the file, in place of those of the same protocol.

    Figures of an earlier, other checkpoint go. Returns the file's content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    cost = "of two evaluations of this epoch at the same time, one loses its figures"
    with files.locked(path.with_name(f".{path.name}.lock"), cost):
        known = read(path)
        others: list[Figure] = []
        if known and known.checkpoint_sha256 == evaluation.checkpoint_sha256:
            others = [f for f in known.figures if evaluation.find(f.protocol) is None]
        content = evaluation.model_copy(update={"figures": [*others, *evaluation.figures]})
        files.write_json(path, content.plain())
    return content


def of_run(run: RunDir) -> list[Evaluation]:
    """All evaluations of a run, by epoch."""
    contents = map(read, map(run.evaluation_path, run.evaluated_epochs()))
    return [content for content in contents if content is not None]
