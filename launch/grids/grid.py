"""Grids: from a YAML file of presets x axes x orientations x seeds x epochs to the runs it means.

The epochs of one preset are a prefix of one run: the cells at 20, 40, 60 and 80 epochs share one
training with four checkpoints. Settings follow defaults < preset < grid < command line.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from diffuse.config import ranges
from diffuse.config.presets import find_yaml, preset_layer, read_yaml, resolve, shown
from diffuse.config.processes import Orientation
from diffuse.config.ranges import Ranges
from diffuse.config.schema import TRAIN_IMAGES, Config, Epochs
from diffuse.config.section import Section
from diffuse.config.validation import Layer, validated
from diffuse.rundir.evaluations import Figure
from diffuse.runtime.errors import UserError
from diffuse.training.schedule import Schedule
from launch.grids.selection import Where, leaves, nested, sets, value_of, written

# Keys that an entry has words of its own for.
OWN_WORDS = {
    "preset": "another entry of runs",
    "seed": "seeds",
    "process.orientation": "orientation",
    "train.epochs": "epochs",
    "eval.at_epochs": "epochs",
}
EXAMPLE = "write keys with their values, such as train.lr: [1e-4, 2e-4]"


def _axes(value: Any) -> Any:
    """`axes` of an entry, where each key has a list of values; ValueError says which has none."""
    if not value or not isinstance(value, Mapping):
        raise ValueError(f"{EXAMPLE}, or leave axes out")
    for key, values in value.items():
        if not re.fullmatch(r"\w+(\.\w+)*", str(key)):
            raise ValueError(f"{key}: no key of a preset; {EXAMPLE}")
        if not isinstance(values, list):
            shown = f"[{written(values)}]"
            raise ValueError(f"{key}: must be a list of values, such as {shown}")
        if not values:
            raise ValueError(f"{key}: has no values; {EXAMPLE}")
        if key in OWN_WORDS:
            raise ValueError(f"{key}: is no axis; use {OWN_WORDS[key]}")
    return value


_AsList = BeforeValidator(lambda value: [value] if isinstance(value, str) else value)


class Entry(Section):
    """One preset of a grid; without `epochs` or `seeds` those of the preset."""

    preset: str = Field(description="its name, or the path of its file")
    orientation: Annotated[tuple[Orientation, ...], _AsList, Field(min_length=1)] | None = Field(
        None, description="of cold diffusion: a run each"
    )
    epochs: Annotated[Epochs, Field(min_length=1)] | None = Field(
        None, description="evaluated cells of one training, as [20, 40] or 5-100:5"
    )
    seeds: (
        Annotated[tuple[Annotated[int, Field(ge=0)], ...], Ranges, Field(min_length=1)] | None
    ) = Field(None, description="a run each")
    set_: dict[str, Any] = Field({}, alias="set", description="nested settings, as in a preset")
    axes: Annotated[dict[str, list[Any]] | None, BeforeValidator(_axes)] = Field(
        None,
        description="any keys of a preset with their values, as {train.lr: [1e-4, 2e-4]}: a run for"
        " each combination",
    )
    cluster: dict[str, Any] = Field({}, description="over the grid's")


class GridFile(Section):
    """A file under configs/grids/."""

    runs: Annotated[tuple[Entry, ...], Field(min_length=1)] = Field(description="see below")
    cluster: dict[str, Any] = Field({}, description="over the cluster file's settings")


@dataclass(frozen=True)
class Overrides:
    """Settings of all cells from the command line."""

    epochs: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class GridRun:
    """One training run of a grid; its cells are its epochs."""

    config: Config
    cluster: tuple[Layer, ...] = ()
    axes: Mapping[str, Any] = field(default_factory=dict)  # its place on the axes of its entry

    @property
    def name(self) -> str:
        return self.config.run_name

    @property
    def orientation(self) -> str | None:
        return getattr(self.config.process, "orientation", None)

    @property
    def epochs(self) -> tuple[int, ...]:
        return self.config.evaluated_epochs

    @property
    def schedule(self) -> Schedule:
        """Which steps its epochs have."""
        images = self.config.data.limit or TRAIN_IMAGES
        return Schedule.of(self.config, images, self.config.train.epochs)

    def evaluation(self, epochs: Sequence[int]) -> list[str]:
        """The options of diffuse.evaluate for these epochs, in order: those of the run's grid."""
        settings = self.config.eval
        options = ["--images", str(settings.images), "--extractor", settings.extractor]
        if settings.final_images is not None and self.epochs[-1] in epochs:
            options += ["--final-images", str(settings.final_images)]
        return options + (["--samplers", ",".join(settings.samplers)] if settings.samplers else [])

    def image_counts(self, epoch: int) -> set[int]:
        """The numbers of images of the figures of an epoch; the smaller are parts of the larger."""
        settings = self.config.eval
        final = settings.final_images if epoch == self.epochs[-1] else None
        return {settings.images, final or settings.images}

    def network_calls(self, epochs: Sequence[int]) -> int:
        """The network evaluations of one image each by which those of `epochs` are drawn."""
        samplers = self.config.sampler_specs(self.config.eval.samplers)
        calls = sum(spec.network_calls for spec in samplers)
        return sum(max(self.image_counts(epoch)) * calls for epoch in epochs)

    def judged_images(self, epochs: Sequence[int]) -> int:
        """The images of all figures of `epochs`."""
        n = len(self.config.sampler_specs(self.config.eval.samplers))
        return sum(sum(self.image_counts(epoch)) * n for epoch in epochs)

    def is_evaluated(self, epoch: int, figures: Sequence[Figure]) -> bool:
        """True where these figures are all that the grid wants of the epoch."""
        settings = self.config.eval
        present = {
            (f.protocol.sampler, f.protocol.images)
            for f in figures
            if f.protocol.extractor == settings.extractor
        }
        samplers = [str(spec) for spec in self.config.sampler_specs(settings.samplers)]
        return present >= {(name, n) for name in samplers for n in self.image_counts(epoch)}

    def merged(self, other: GridRun) -> GridRun:
        """The same run with the cells of both."""
        epochs = tuple(sorted({*self.epochs, *other.epochs}))
        config = self.config.model_copy(
            update={
                "eval": self.config.eval.model_copy(update={"at_epochs": epochs}),
                "train": self.config.train.model_copy(update={"epochs": epochs[-1]}),
            }
        )
        return replace(self, config=config, cluster=(*self.cluster, *other.cluster))


@dataclass(frozen=True)
class Grid:
    """A grid's name and its runs, each name once, in the order of the file."""

    name: str
    runs: tuple[GridRun, ...]
    cluster: Layer

    def only(self, pattern: str) -> Grid:
        """The runs whose name matches the glob; UserError where none does."""
        kept = tuple(run for run in self.runs if fnmatch.fnmatchcase(run.name, pattern))
        if not kept:
            names = ", ".join(run.name for run in self.runs[:6])
            more = ", ..." if len(self.runs) > 6 else ""
            raise UserError(f"--only {pattern!r} matches no run of {self.name}: {names}{more}")
        return replace(self, runs=kept)

    def where(self, where: Where) -> Grid:
        """The runs with these settings; UserError where none has them."""
        kept = where.chosen({run.name: run.config for run in self.runs}, self.name)
        return replace(self, runs=tuple(run for run in self.runs if run.name in kept))


def load_grid(name: str, overrides: Overrides | None = None) -> Grid:
    """The grid named by its file under configs/grids/, or by any .yaml file, with its runs.

    Raises UserError: unknown grid or preset, unknown key, impossible value, orientation missing.
    """
    path = _find(name)
    source = shown(path)
    values = read_yaml(path)
    if not values.get("runs"):
        raise UserError(f"{source}: the grid is empty; list presets under `runs:`")
    file = validated(GridFile, [Layer(source, values)])
    cluster = Layer(f"{source}: cluster", file.cluster)
    runs: dict[str, GridRun] = {}
    for index, entry in enumerate(file.runs):
        for run in _expand(entry, f"{source}: runs[{index}]", cluster, overrides or Overrides()):
            earlier = runs.get(run.name)
            runs[run.name] = earlier.merged(run) if earlier else run
    return Grid(path.stem, tuple(runs.values()), cluster)


def noted_name(grid: str) -> str:
    """The name under which sweeps note a grid: `mine` of `mine` and of `grids/mine.yaml`."""
    return Path(grid).stem if grid.endswith(".yaml") else grid


def grid_name(name: str) -> str:
    """The name of the grid that a command line names; UserError where there is no such grid."""
    return _find(name).stem


def _find(name: str) -> Path:
    return find_yaml(name, kind="grid", folders=("grids",))


def _expand(entry: Entry, source: str, cluster: Layer, overrides: Overrides) -> Iterable[GridRun]:
    try:
        preset = preset_layer(entry.preset)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    layers = overrides.layers
    orientations = _orientations(entry, preset, source, layers)
    axes, seeds = entry.axes or {}, overrides.seeds or entry.seeds or (None,)
    if math.prod([len(orientations), len(seeds), *map(len, axes.values())]) > ranges.MOST:
        raise UserError(f"{source}: more than {ranges.MOST:,} runs; list fewer values in axes")
    is_typed_over = any(sets(layer.values, key) for layer in layers for key in axes)
    for orientation, seed in itertools.product(orientations, seeds):
        cell: dict[str, Any] = {}
        if orientation is not None:
            cell["process"] = {"orientation": orientation}
        if seed is not None:
            cell["seed"] = seed
        epochs = overrides.epochs or entry.epochs
        if epochs is not None:
            cell["train"] = {"epochs": max(epochs)}
            cell["eval"] = {"at_epochs": epochs}
        known: dict[str, str] = {}
        for point in _points(axes):
            along = [Layer(f"{source}.axes", nested(key, value)) for key, value in point.items()]
            below = [preset, Layer(source, entry.set_), *along, Layer(source, cell)]
            config = resolve([*below, *layers])
            shown = ", ".join(f"{key}: {written(value)}" for key, value in point.items())
            if config.run_name in known and not is_typed_over:
                raise UserError(
                    f"{source}.axes: {known[config.run_name]} and {shown} are the same run: no two"
                    " values may be equal, and the weights must depend on the key (else use set)"
                )
            known[config.run_name] = shown
            own = (cluster, Layer(f"{source}: cluster", entry.cluster))
            keys = (leaf for key, value in point.items() for leaf, _ in leaves(nested(key, value)))
            seen = [*keys, *(["seed"] if len(seeds) > 1 else [])]
            yield GridRun(config, own, {key: value_of(config, key) for key in seen})


def _points(axes: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination of one value from each axis; one empty point where there is no axis."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def _orientations(
    entry: Entry, preset: Layer, source: str, layers: Sequence[Layer]
) -> tuple[Orientation | None, ...]:
    process = preset.values.get("process", {})
    is_cold = isinstance(process, Mapping) and process.get("kind") == "averaging"
    if entry.orientation and not is_cold:
        raise UserError(f"{source}: orientation is for cold diffusion; {entry.preset} has none")
    elsewhere = [entry.set_, preset.values, *(layer.values for layer in layers)]
    is_set = any(sets(values, "process.orientation") for values in elsewhere)
    if is_cold and not entry.orientation and not is_set:
        raise UserError(f"{source}: {entry.preset} needs orientation: row, col or [row, col]")
    return entry.orientation or (None,)
