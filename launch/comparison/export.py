"""Figures and tables of a comparison for a thesis: PDF, SVG, LaTeX, and a caption for each.

`compare --export DIR` writes, each with a NAME.txt that can stand as its caption:

    losses_ddpm, losses_cold            .pdf .svg   training losses over epochs
    fid_PROTOCOL, is_PROTOCOL           .pdf .svg   a line for each run, one sampler and protocol
    fid_GPU-hours_PROTOCOL              .pdf .svg   the same over hours of GPUs, or core-hours
    fid_network-calls_START             .pdf .svg   over network calls, all samplers of one start
    epochs_RUN                          .pdf .svg   samples at up to five epochs side by side
    panels_RUN                          .pdf .svg   original, degraded, direct, restored
    degradation_RUN                     .pdf .svg   how the process degrades test images
    table_PROTOCOL                      .tex        booktabs: loss and figures of each cell, floor
    seeds_PROTOCOL                      .tex        booktabs: mean and deviation over seeds
    costs                               .tex        booktabs: device, hours and images of each run

RUN is a run's name, PROTOCOL is extractor-images-sampler, with `report-` before it where it is the
report's own; START has the samplers' start in place of a sampler. Names depend on runs and
protocols alone, so the same command writes the same files.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from diffuse.rundir.plots import Images, look, own_style, spread, tile
from diffuse.runtime import console, files, hdf5
from launch.comparison import costs, latex, series
from launch.comparison.charts import Chart
from launch.comparison.page import LOSSES
from launch.comparison.thumbnails import drawn, read_images
from launch.comparison.wording import CALLS, HEADINGS, SOURCES
from launch.results.grouping import Column, Group, SeedMean, groups, of_column, over_seeds
from launch.results.labels import labels, lines
from launch.results.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

EPOCHS = 5  # in a series, evenly spread
# Fonts are in the file: TrueType in the PDF, outlines in the SVG.
STYLE: dict[str, Any] = {
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
    "svg.hashsalt": "diffuse",
    "font.size": 9,
    "text.parse_math": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
}
UNDATED = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


def write(folder: Path, results: Sequence[Result]) -> list[Path]:
    """Write all that these runs give into `folder`; the paths, in order.

    A picture that is damaged is a note, and the others are written.
    """
    export = Export(folder, results)
    for kind, title in LOSSES.items():
        export.losses("cold" if kind == "averaging" else kind, title, results, kind)
    for group in groups(results):
        means = over_seeds(group, results)
        for column in group.columns():
            export.curves(column)
            export.table(group, column, results)
            export.seeds(column, of_column(means, column))
        export.calls(group)
    export.costs(results)
    for result in results:
        if not result.is_file:
            export.pictures(result)
    return export.written


class Export:
    """A folder of figures and tables, and the labels of the runs in them."""

    def __init__(self, folder: Path, results: Sequence[Result]) -> None:
        self.folder, self.names, self.line_of = folder, labels(results), lines(results)
        self.stems: Counter[str] = Counter()
        self.written: list[Path] = []
        folder.mkdir(parents=True, exist_ok=True)

    def losses(self, name: str, title: str, results: Sequence[Result], kind: str) -> None:
        if drawn := series.losses(results, kind, self.line_of):
            shown = [r.name for r in results if r.losses and r.kind == kind]
            caption = f"{title}, averaged over short stretches of steps, over epochs; logarithmic."
            caption += self._runs(shown)
            self._figure(f"losses_{name}", self._chart(drawn, "training loss", log=True), caption)

    def curves(self, column: Column) -> None:
        about = f"{protocol(column)}{self._runs(cell.run for cell in column.cells)}"
        for key in ("fid", "is"):
            if drawn := series.over_epochs(column, key, self.line_of):
                chart = self._chart(drawn, HEADINGS[key], log=key == "fid", floor=column.floor[key])
                better = "lower is better, logarithmic" if key == "fid" else "higher is better"
                caption = f"{HEADINGS[key]} over epochs ({better}). {about}{dotted(column)}"
                self._figure(f"{key}_{stem(column)}", chart, caption)
        for unit, drawn in series.over_hours(column, self.line_of).items():
            name = f"fid_{slug(unit)}_{stem(column)}"
            caption = f"FID over {unit} (lower is better, logarithmic). {about}{dotted(column)}"
            self._fid(name, drawn, column, unit, f"{caption} {costs.NOTE}")

    def calls(self, group: Group) -> None:
        for alike, shown in series.calls_by_start(group.columns(), self.line_of):
            column, source = alike[0], alike[0].source
            caption = f"FID over the network calls of one image, {SOURCES.get(source, source)}"
            caption += f" (lower is better, logarithmic). {judged(column)}"
            caption += self._runs(cell.run for one in alike for cell in one.cells) + dotted(column)
            name = f"fid_{slug(CALLS)}_{stem(column, slug(source))}"
            self._fid(name, shown, column, f"{CALLS} an image", caption)

    def costs(self, results: Sequence[Result]) -> None:
        if rows := costs.table(results, self.names):
            head, *rows = [[latex.escaped(text) for text in row] for row in rows]
            self._text("costs", latex.tabular(head, rows), f"Costs of the trainings. {costs.NOTE}")

    def table(self, group: Group, column: Column, results: Sequence[Result]) -> None:
        seeds = {r.name: r.seed for r in results}
        caption = f"Results at each evaluated epoch. {protocol(column)}"
        caption += " The loss is that of training, the mean over the epoch. Last line: "
        caption += f"{column.floor_images}, by the same protocol, which is the best to expect."
        used = sorted(
            {str(seeds[cell.run]) for cell in column.cells if seeds.get(cell.run) is not None}
        )
        caption += f" Seeds: {', '.join(used)}." if used else ""
        caption += "".join(f" Note: {label}." for label in group.labels)
        self._text(f"table_{stem(column)}", latex.results(column, self.names), caption)

    def seeds(self, column: Column, means: Sequence[SeedMean]) -> None:
        if means:
            used = sorted({seed for mean in means for seed in mean.seeds})
            caption = "Mean and standard deviation over runs that differ by their seed only"
            caption += f" (seeds {', '.join(map(str, used))}). {protocol(column)}"
            self._text(f"seeds_{stem(column)}", latex.means(means), caption)

    def pictures(self, result: Result) -> None:
        label = self.names[result.name]
        series: list[tuple[str, Images]] = []
        panels: list[tuple[str, Images]] = []
        sampler = ""
        for epoch, path in spread(drawn(result.dir), EPOCHS):
            try:
                sets, sampler = read_images(path)
            except (OSError, hdf5.Damaged, KeyError, ValueError):
                console.note(f"{path}: damaged; left out of the export")
                continue
            series.append((f"epoch {epoch}", sets["images"]))
            if "original" in sets:
                titles = {k: k for k in ("original", "degraded", "direct")}
                titles["images"] = sampler or "restored"
                panels = [(title, sets[key]) for key, title in titles.items() if key in sets]
                at = epoch
        about = f"{label}; sampler {sampler}, seed {result.seed}, nothing selected."
        if series:
            caption = f"The first {len(series[-1][1])} images at each epoch. {about}"
            self._figure(f"epochs_{slug(result.name)}", lambda: _panels(series), caption)
        if panels:
            caption = (
                f"Test images, the same fully degraded (contrast stretched), predicted directly,"
                f" and restored step by step, at epoch {at}. {about}"
            )
            self._figure(f"panels_{slug(result.name)}", lambda: _panels(panels), caption)
        path = result.dir.plots / "degradation.png"
        if path.is_file():
            caption = f"How the process degrades four test images, from t = 0 to T. {label}."
            self._figure(f"degradation_{slug(result.name)}", lambda: _picture(path), caption)

    def _runs(self, runs: Iterable[str]) -> str:
        """The runs of a figure, for its caption."""
        shown = list(dict.fromkeys(runs))
        text = f" Runs: {'; '.join(self.names[run] for run in shown)}."
        if len({self.line_of[run] for run in shown}) < len(shown):
            text += " Bands: one standard deviation over seeds."
        return text

    def _fid(
        self, name: str, drawn: series.Lines, column: Column, xlabel: str, caption: str
    ) -> None:
        chart = self._chart(drawn, "FID", log=True, floor=column.floor["fid"], xlabel=xlabel)
        self._figure(name, chart, caption)

    def _chart(
        self,
        drawn: series.Lines,
        ylabel: str,
        *,
        log: bool,
        floor: float | None = None,
        xlabel: str = "epoch",
    ) -> Callable[[], Figure]:
        """Draws a chart with a legend, and with the `floor` of real images."""
        known = dict.fromkeys([*self.line_of.values(), *drawn])  # a run looks the same in all
        looks = {name: look(k) for k, name in enumerate(known)}
        real = None if floor is None else ("real test images", floor)
        chart = Chart(drawn, ylabel, looks, log, real, xlabel)

        def draw() -> Figure:
            figure = _new(5.5, 3.2 + 0.17 * len(drawn))
            chart.draw(figure.subplots())
            figure.legend(loc="outside lower center", ncols=1, fontsize=8, frameon=False)
            return figure

        return draw

    def _figure(self, name: str, draw: Callable[[], Figure], caption: str) -> None:
        name = self._unique(name)
        try:
            with own_style(**STYLE):
                figure = draw()
                for kind, metadata in UNDATED.items():
                    buffer = io.BytesIO()
                    figure.savefig(buffer, format=kind, metadata=metadata)
                    self._write(f"{name}.{kind}", buffer.getvalue())
        except (OSError, ValueError, SyntaxError) as error:
            console.note(f"{self.folder / name}: not drawn: {error}")
            return
        self._write(f"{name}.txt", f"{caption}\n".encode())

    def _text(self, name: str, text: str, caption: str) -> None:
        name = self._unique(name)
        self._write(f"{name}.tex", text.encode())
        self._write(f"{name}.txt", f"{caption}\n".encode())

    def _unique(self, name: str) -> str:
        """Two protocols may differ by what their name leaves out: the second is NAME_2."""
        self.stems[name] += 1
        return name if self.stems[name] == 1 else f"{name}_{self.stems[name]}"

    def _write(self, name: str, content: bytes) -> None:
        files.write_bytes(self.folder / name, content)
        self.written.append(self.folder / name)


def slug(text: str) -> str:
    """A text as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.") or "run"


def stem(column: Column, sampler: str = "") -> str:
    """`classifier-1000-ddim-50`, a column's part of a file's name."""
    about = column.cells[0].figure.protocol
    convention = "report-" if about.convention else ""
    return slug(f"{convention}{about.extractor}-{about.images}-{sampler or column.sampler}")


def protocol(column: Column) -> str:
    """The protocol in words."""
    source = SOURCES.get(column.source, column.source)
    return judged(column, f"{column.sampler}, {source}, ")


def judged(column: Column, sampler: str = "") -> str:
    """The protocol in words, without its sampler or with it."""
    about = column.cells[0].figure.protocol
    real = "test" if about.real_split == "test" else "training"
    return (
        f"{about.images:,} images for each figure ({sampler}seed {about.seed}), judged by"
        f" {about.judge} against {about.real_images:,} {real} images."
    )


def dotted(column: Column) -> str:
    """The floor in words."""
    return f" Dotted: {column.floor_images}, by the same protocol."


def _new(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _panels(panels: Sequence[tuple[str, Images]]) -> Figure:
    figure = _new(1.6 * len(panels), 1.85)
    for axes, (title, images) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        grid = tile(images, max(1, round(len(images) ** 0.5)))
        axes.imshow(grid, cmap="gray", vmin=0, vmax=255, interpolation="none")
        axes.set_title(title, fontsize=8)
        axes.axis("off")
    return figure


def _picture(path: Path) -> Figure:
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    figure = _new(6.0, 6.0 * pixels.shape[0] / pixels.shape[1])
    axes = figure.subplots()
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="none")
    axes.axis("off")
    return figure
