"""Figures from arrays and metrics, drawn with matplotlib and written atomically as PNG.

They look the same whatever the user's matplotlibrc and MPLBACKEND say, and one that cannot be drawn
costs a note, never the program. Colours are from Okabe and Ito's set, which the colour-blind can
tell apart.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffuse.rundir import evaluations
from diffuse.rundir.directory import RunDir
from diffuse.runtime import console, files, hdf5

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GREEN, BLACK = "#009E73", "#000000"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vPX"
BORDER = 2  # pixels around each image
Images = NDArray[np.uint8]  # [n, 28, 28]
REPORT_EPOCHS = (1, 20, 40, 60)
P = ParamSpec("P")
T = TypeVar("T")


@contextlib.contextmanager
def own_style(**settings: Any) -> Iterator[None]:
    """In this block matplotlib has its own defaults and `settings`, and nothing of the user's."""
    matplotlib = _matplotlib()
    defaults = {k: v for k, v in matplotlib.rcParamsDefault.items() if k != "backend"}
    with matplotlib.rc_context({**defaults, **settings}):
        yield


def _matplotlib() -> Any:
    """The package; its import fails by itself on a matplotlibrc or MPLBACKEND that is broken."""
    try:
        import matplotlib
    except Exception:
        package = importlib.util.find_spec("matplotlib")
        if package is None or package.origin is None:
            raise
        for name in [n for n in sys.modules if n.partition(".")[0] == "matplotlib"]:
            del sys.modules[name]  # half imported
        backend = os.environ.pop("MPLBACKEND", None)
        try:  # its own matplotlibrc lies in the folder that is searched first
            with contextlib.chdir(Path(package.origin).parent / "mpl-data"):
                import matplotlib
        finally:
            if backend is not None:
                os.environ["MPLBACKEND"] = backend
    return matplotlib


def _written(draw: Callable[P, Figure | None]) -> Callable[Concatenate[Path, P], bool]:
    """`draw` with a path before its arguments, where its figure is written; None is no figure.

    Whether there is a file now. A figure that cannot be drawn is a note; OSError where it cannot
    be written.
    """

    @functools.wraps(draw)
    def write(path: Path, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        try:
            with own_style():
                figure = draw(*args, **kwargs)
                if figure is None:
                    return False
                buffer = io.BytesIO()
                figure.savefig(buffer, format="png")
        except Exception as error:
            console.note(f"{path}: not drawn: {reason(error)}")
            return False
        files.write_bytes(path, buffer.getbuffer())
        return True

    return write


def reason(error: Exception) -> str:
    """The first line of an error, and its kind."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


class Look(NamedTuple):
    """How one line is told from others, in colour and without."""

    colour: str
    dash: str
    marker: str


def look(k: int) -> Look:
    """The look of line `k`: 28 by colour and dash, the marker differing within each dash too."""
    again = k // len(COLOURS)
    return Look(
        COLOURS[k % len(COLOURS)],
        DASHES[again % len(DASHES)],
        MARKERS[(k + again) % len(MARKERS)],
    )


@_written
def image_panels(
    panels: Sequence[tuple[str, Images]], *, columns: int = 4, title: str = ""
) -> Figure:
    """Panels side by side, each a grid of images with `columns` columns and a heading.

    Pixels are drawn as they are, 3 x 3 points each, without smoothing.
    """
    grids = [(name, tile(images, columns)) for name, images in panels]
    height, width = grids[0][1].shape
    figure = _figure(len(grids) * width * 3 / 100, height * 3 / 100 + 0.45)
    for axes, (name, grid) in zip(
        figure.subplots(1, len(grids), squeeze=False)[0], grids, strict=True
    ):
        axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


@_written
def strip(images: Images, labels: Sequence[str], *, title: str = "") -> Figure:
    """Rows of images [rows, columns, 28, 28] under column `labels`: how x_t changes with t."""
    rows, columns, _, side = images.shape
    figure = _figure(columns * 0.85, rows * 0.85 + 0.5)
    axes = figure.subplots()
    grid = tile(images.reshape(-1, side, side), columns)
    axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    middles = [k * (side + BORDER) + BORDER + (side - 1) / 2 for k in range(columns)]
    axes.set_xticks(middles, labels, fontsize=8)
    axes.set_yticks([])
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if title:
        figure.suptitle(title, fontsize=9)
    return figure


@_written
def loss_curve(metrics: Sequence[dict[str, Any]], *, title: str = "") -> Figure | None:
    """Each step's loss on a log axis, the epoch means dashed over it, as the report has it."""
    steps = [(e["step"], e["loss"]) for e in metrics if e["event"] == "step"]
    epochs = [(e["step"], e["epoch"], e["loss"]) for e in metrics if e["event"] == "epoch"]
    if not steps:
        return None
    per_epoch = epochs[0][0] / epochs[0][1] if epochs else max(step for step, _ in steps)
    figure = _figure(6.4, 3.6)
    axes = figure.subplots()
    step, loss = np.array(steps).T
    axes.plot(step / per_epoch, loss, color=GREEN, linewidth=0.5, alpha=0.8, label="each step")
    if epochs:
        end, _, mean = np.array(epochs).T
        # each mean is drawn over the epoch that it belongs to
        x = np.repeat(end / per_epoch, 2)
        x[0::2] -= 1
        axes.plot(
            x, np.repeat(mean, 2), color=BLACK, linestyle="--", linewidth=1.2, label="epoch mean"
        )
    axes.set(xlabel="epoch", ylabel="loss", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    if title:
        axes.set_title(title, fontsize=9)
    return figure


def evaluation_curves(run: RunDir) -> None:
    """plots/fid.png and plots/is.png: each sampler's scores over the epochs, with the floors.

    Of several protocols the one that most epochs have is drawn, never two in one line.
    """
    lines: dict[str, dict[str, list[tuple[int, evaluations.Figure]]]] = {}
    for evaluation in evaluations.of_run(run):
        for figure in evaluation.figures:
            common = json.dumps(figure.protocol.without_sampler(), sort_keys=True)
            by_sampler = lines.setdefault(common, {})
            by_sampler.setdefault(figure.protocol.sampler, []).append((evaluation.epoch, figure))
    if not lines:
        return
    chosen = max(lines.values(), key=lambda by_sampler: sum(map(len, by_sampler.values())))
    floors = {
        figure.protocol.floor or "real test images": figure.floor
        for points in chosen.values()
        for _, figure in points
    }
    protocol = next(iter(chosen.values()))[0][1].protocol
    title = f"{run.name}: {protocol.images} images, {protocol.extractor}"
    for key, label in (("fid", "FID (lower is better)"), ("is", "IS (higher is better)")):
        curves = {
            name: [(epoch, figure.values()[key]) for epoch, figure in points]
            for name, points in chosen.items()
        }
        real = {name: floor.values()[key] for name, floor in floors.items()}
        epoch_curves(run.plots / f"{key}.png", curves, real, label, title=title)


def epoch_series(run: RunDir) -> None:
    """plots/epochs.png: the run's samples at four epochs side by side, of the same noise.

    The report's epochs (figures 1.3, 1.8 and 2.1) where the run has them; otherwise the first, the
    last and two between. A damaged file is a note, and its epoch is left out.
    """
    panels = []
    epochs = run.sampled_epochs()
    for epoch in REPORT_EPOCHS if set(REPORT_EPOCHS) <= set(epochs) else spread(epochs, 4):
        try:
            arrays, _ = hdf5.read(run.samples_path(epoch), ["images"], first=16)
        except (OSError, hdf5.Damaged) as error:
            console.note(f"{run.plots / 'epochs.png'}: epoch {epoch} is left out: {reason(error)}")
            continue
        panels.append((f"epoch {epoch}", arrays["images"]))
    if panels:
        image_panels(run.plots / "epochs.png", panels, title=run.name)


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` items, evenly spread, the first and the last among them; of one, the last."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(k * (len(items) - 1) / (most - 1))] for k in range(most)]


def stretch(x: NDArray[np.float32]) -> Images:
    """x [n, 1, 28, 28] to uint8 [n, 28, 28], each image from its darkest to its lightest value.

    Averages of mostly black images are dark: stretched, the eye sees the network's input.
    """
    low, high = x.min((1, 2, 3), keepdims=True), x.max((1, 2, 3), keepdims=True)
    unit = (x - low) / np.maximum(high - low, np.float32(1e-6))
    stretched: Images = (unit[:, 0] * 255).round().astype(np.uint8)
    return stretched


def tile(images: Images, columns: int) -> Images:
    """Images [n, h, w] as one picture with a border around each."""
    n, h, w = images.shape
    rows = -(-n // columns)
    height, width = rows * (h + BORDER) + BORDER, columns * (w + BORDER) + BORDER
    grid = np.full((height, width), 96, dtype=np.uint8)
    for k, image in enumerate(images):
        top, left = (k // columns) * (h + BORDER) + BORDER, (k % columns) * (w + BORDER) + BORDER
        grid[top : top + h, left : left + w] = image
    return grid


def _figure(width: float, height: float) -> Figure:
    """A figure in inches, made without pyplot: no display, no global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=150, layout="constrained")


@_written
def epoch_curves(
    curves: Mapping[str, Sequence[tuple[int, float]]],
    floors: Mapping[str, float],
    label: str,
    *,
    title: str,
) -> Figure:
    """A figure of each sampler over epochs, and the figures of real images, in grey."""
    figure = _figure(6, 4)
    axes = figure.subplots()
    for k, (name, points) in enumerate(curves.items()):
        colour, dash, marker = look(k)
        axes.plot(
            *zip(*points, strict=True), color=colour, linestyle=dash, marker=marker, label=name
        )
    for (name, floor), gap in zip(floors.items(), itertools.cycle((2, 5)), strict=False):
        axes.axhline(floor, color="0.35", linestyle=(0, (1, gap)), label=name)
    if label.startswith("FID"):
        axes.set_yscale("log")
    axes.set_xticks(sorted({epoch for points in curves.values() for epoch, _ in points}))
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=8)
    return figure
