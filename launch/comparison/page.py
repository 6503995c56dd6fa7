"""One self-contained page of a grid's results: no network, readable on a phone and in print."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from diffuse.rundir.plots import Look, look
from diffuse.runtime import files
from launch.comparison import published_figures
from launch.comparison.axes import Axis, axes, overall
from launch.comparison.charts import MOST_NAMED, Points, curves, mean_curve
from launch.comparison.grouping import (
    Column,
    Group,
    SeedMean,
    by_value,
    differences,
    groups,
    over_seeds,
    reruns,
)
from launch.comparison.labels import labels, lines
from launch.comparison.results import Result
from launch.comparison.thumbnails import album

TEMPLATES = Path(__file__).parent
EPOCHS_SHOWN = 5  # of a run's pictures, evenly spread
MANY_RUNS = 24  # beyond that only each run's last epoch is shown
HEADINGS = {
    "loss": "loss",
    "fid": "FID",
    "kid": "KID",
    "is": "IS",
    "mse": "MSE",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
}
SOURCES = {
    "noise": "from noise",
    "prior": "from the prior of line means",
    "uniform means": "from uniform line means",
    "test images": "restored from degraded test images",
}
CAPTIONS = {
    "fid": "FID over epochs, logarithmic, lower is better.",
    "is": "IS over epochs, higher is better.",
}
LOSSES = {
    "ddpm": "DDPM: loss of the predicted noise",
    "averaging": "Cold diffusion: loss of the predicted image",
}


def write(path: Path, results: Sequence[Result], runs_dir: Path, title: str) -> None:
    """Write the page of these runs, whole or not at all."""
    files.write_text(path, render(results, runs_dir, title))


def render(results: Sequence[Result], runs_dir: Path, title: str) -> str:
    """The page as HTML. Everything that comes from run directories is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["score"] = score
    names = labels(results)
    most = 1 if len(results) > MANY_RUNS else EPOCHS_SHOWN
    albums = {r.name: album(r, most) for r in results}
    sections = groups(results)
    line_of = lines(results)
    named = dict.fromkeys(line_of.values())
    looks = {name: look(k) for k, name in enumerate(named)}  # one for the whole page
    losses = {
        heading: _loss_chart([r for r in results if r.losses and r.kind == kind], line_of, looks)
        for kind, heading in LOSSES.items()
        if any(r.losses and r.kind == kind for r in results)
    }
    return environment.get_template("report.html.j2").render(
        title=title,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        results=results,
        names=names,
        sections=[_section(group, results, line_of, looks) for group in sections],
        losses=losses,
        albums=albums,
        most=most,
        problems=[(names[r.name], problem) for r in results for problem in r.problems],
        differences={
            key: [(value, few(runs, names)) for value, runs in by_value(column).items()]
            for key, column in differences(results).items()
        },
        has_seeds=len(named) < len(results),
        pairs=reruns(results, runs_dir),
        why=published_figures.WHY,
        published=[(row, _ours(row.title, sections, results)) for row in published_figures.FIGURES],
        headings=HEADINGS,
        sources=SOURCES,
    )


def score(value: float | None) -> str:
    """A figure for people: three or so significant digits, a dash where there is none."""
    if value is None or value != value:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:#.3g}"


def few(runs: Sequence[str], names: Mapping[str, str]) -> str:
    """The labels of runs, and how many more there are where they would fill a page."""
    shown = [names[run] for run in runs[:MOST_NAMED]]
    more = len(runs) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def heading(column: Column) -> str:
    """`ddim-50, from noise`."""
    return f"{column.sampler}, {SOURCES.get(column.source, column.source)}"


def _section(
    group: Group,
    results: Sequence[Result],
    line_of: Mapping[str, str],
    looks: Mapping[str, Look],
) -> dict[str, Any]:
    """The part of the page for protocols that differ by the sampler only."""
    means = over_seeds(group, results)
    parts = []
    for column in group.columns():
        along = axes(column, results)
        parts.append(
            {
                "heading": heading(column),
                "column": column,
                "charts": _charts(column, line_of, looks),
                "axes": [(axis, _axis_chart(axis, column)) for axis in along],
                "verdict": "" if along else overall(column, results),
                "seeds": [m for m in means if _same_protocol(m, column)],
            }
        )
    return {"group": group, "protocol": group.protocol, "columns": parts}


def _same_protocol(mean: SeedMean, column: Column) -> bool:
    return (mean.sampler, mean.source) == (column.sampler, column.source)


def _charts(
    column: Column, line_of: Mapping[str, str], looks: Mapping[str, Look]
) -> list[tuple[str, Markup]]:
    """FID and IS over epochs, a line for each run or its seeds; none of one epoch only."""
    if len({cell.epoch for cell in column.cells}) < 2:
        return []
    real = f"real: {column.floor_images}"
    charts = []
    for key in ("fid", "is"):
        runs: dict[str, list[tuple[float, float]]] = {}
        for cell in column.cells:
            if (value := cell.value(key)) is not None:
                runs.setdefault(cell.run, []).append((float(cell.epoch), value))
        if runs:
            floor = (real, column.floor[key])
            is_log = key == "fid"
            drawn = {k: mean_curve(seeds) for k, seeds in _by_line(runs, line_of).items()}
            chart = curves(drawn, HEADINGS[key], looks, log=is_log, floor=floor, markers=True)
            charts.append((CAPTIONS[key], chart))
    return charts


def _loss_chart(
    shown: Sequence[Result], line_of: Mapping[str, str], looks: Mapping[str, Look]
) -> Markup:
    by_line = _by_line({r.name: r.losses for r in shown}, line_of)
    drawn = {name: mean_curve(seeds, tie=True) for name, seeds in by_line.items()}
    return curves(drawn, "loss", looks, log=True)


def _axis_chart(axis: Axis, column: Column) -> Markup | None:
    """FID over the values of a setting; None where they are no numbers."""
    numbers = axis.numbers
    if numbers is None:
        return None
    drawn = {
        name: mean_curve(
            [[(numbers[v], fid)] for v, sample in line.items() for fid in sample.values]
        )
        for name, line in axis.lines.items()
    }
    looks = {name: look(k) for k, name in enumerate(drawn)}
    floor = (f"real: {column.floor_images}", column.floor["fid"])
    return curves(drawn, "FID", looks, log=True, floor=floor, markers=True, xlabel=axis.key)


def _by_line(runs: Mapping[str, Points], line_of: Mapping[str, str]) -> dict[str, list[Points]]:
    found: dict[str, list[Points]] = {}
    for run, points in runs.items():
        found.setdefault(line_of[run], []).append(points)
    return found


def _ours(title: str, sections: Sequence[Group], results: Sequence[Result]) -> list[str]:
    """Our figures of the same preset and orientation, each with the protocol that it needs."""
    same = {r.name: f"{r.name}: " if r.is_file else "" for r in results if r.preset == title}
    return [
        f"{same[cell.run]}FID {score(cell.value('fid'))}, IS {score(cell.value('is'))}:"
        f" epoch {cell.epoch}, {cell.sampler}, {group.protocol['images']:,} images, {group.judge}"
        for group in sections
        for column in group.columns()
        for cell in column.latest
        if cell.run in same
    ]
