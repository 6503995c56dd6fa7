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
from launch.comparison import costs, published_figures, series
from launch.comparison.charts import Chart
from launch.comparison.thumbnails import album
from launch.comparison.wording import CALLS, HEADINGS, SOURCES, count, few, heading, score
from launch.results.axes import Axis, axes, overall
from launch.results.grouping import (
    Column,
    Group,
    by_value,
    differences,
    groups,
    of_column,
    over_seeds,
    reruns,
)
from launch.results.labels import labels, lines
from launch.results.results import Result

TEMPLATES = Path(__file__).parent
EPOCHS_SHOWN = 5  # of a run's pictures, evenly spread
MANY_RUNS = 24  # beyond that only each run's last epoch is shown
MANY_MOVING = 8  # beyond that no moving pictures, of a megabyte each
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
    environment.filters |= {"score": score, "whole": count}
    names = labels(results)
    most = 1 if len(results) > MANY_RUNS else EPOCHS_SHOWN
    moves = len(results) <= MANY_MOVING
    albums = {r.name: album(r, most, moves) for r in results}
    sections = groups(results)
    line_of = lines(results)
    named = dict.fromkeys(line_of.values())
    looks = {name: look(k) for k, name in enumerate(named)}  # one for the whole page
    losses = {
        title: Chart(drawn, "loss", looks, log=True).svg()
        for kind, title in LOSSES.items()
        if (drawn := series.losses(results, kind, line_of))
    }
    return environment.get_template("report.html.j2").render(
        title=title,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        results=results,
        names=names,
        sections=[_section(group, results, line_of, looks) for group in sections],
        losses=losses,
        costs=costs.table(results, names),
        costs_note=costs.NOTE,
        albums=albums,
        most=most,
        moves=moves,
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
        calls=CALLS,
    )


def _section(
    group: Group,
    results: Sequence[Result],
    line_of: Mapping[str, str],
    looks: Mapping[str, Look],
) -> dict[str, Any]:
    """The part of the page for protocols that differ by the sampler only."""
    means = over_seeds(group, results)
    parts, columns = [], group.columns()
    for column in columns:
        along = axes(column, results)
        parts.append(
            {
                "heading": heading(column),
                "column": column,
                "charts": _charts(column, line_of, looks),
                "axes": [(axis, _axis_chart(axis, column)) for axis in along],
                "verdict": "" if along else overall(column, results),
                "seeds": of_column(means, column),
            }
        )
    calls = _calls_charts(columns, line_of)
    return {"group": group, "protocol": group.protocol, "columns": parts, "calls": calls}


def _charts(
    column: Column, line_of: Mapping[str, str], looks: Mapping[str, Look]
) -> list[tuple[str, Markup]]:
    """FID and IS over epochs, and FID over hours: a line for each run or its seeds."""
    charts = []
    for key, caption in CAPTIONS.items():
        if drawn := series.over_epochs(column, key, line_of):
            floor = _floor(column, key)
            chart = Chart(drawn, HEADINGS[key], looks, log=key == "fid", floor=floor)
            charts.append((caption, chart.svg()))
    for k, (unit, drawn) in enumerate(series.over_hours(column, line_of).items(), start=1):
        caption = f"FID over {unit}, logarithmic, lower is better."
        charts.insert(k, (caption, _fid(drawn, looks, column, unit)))  # beside FID over epochs
    return charts


def _calls_charts(
    columns: Sequence[Column], line_of: Mapping[str, str]
) -> list[tuple[str, Markup]]:
    """FID over network calls, a chart for each start of samplers that were evaluated together."""
    charts = []
    for (column, *_), drawn in series.calls_by_start(columns, line_of):
        looks = {name: look(k) for k, name in enumerate(drawn)}
        chart = _fid(drawn, looks, column, f"{CALLS} an image")
        charts.append((SOURCES.get(column.source, column.source), chart))
    return charts


def _axis_chart(axis: Axis, column: Column) -> Markup | None:
    """FID over the values of a setting; None where they are no numbers."""
    drawn = series.along(axis)
    looks = {name: look(k) for k, name in enumerate(drawn)}
    return _fid(drawn, looks, column, axis.key) if drawn else None


def _fid(drawn: series.Lines, looks: Mapping[str, Look], column: Column, xlabel: str) -> Markup:
    floor = _floor(column, "fid")
    return Chart(drawn, "FID", looks, log=True, floor=floor, xlabel=xlabel).svg()


def _floor(column: Column, key: str) -> tuple[str, float]:
    return f"real: {column.floor_images}", column.floor[key]


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
