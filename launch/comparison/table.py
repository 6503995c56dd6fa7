"""The comparison in a terminal, as JSON and as CSV: the figures that the page shows."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from diffuse.runtime import console
from launch.comparison import costs
from launch.comparison.wording import HEADINGS, count, few, heading, score
from launch.results import grouping
from launch.results.axes import axes, overall
from launch.results.labels import labels
from launch.results.results import Cell, Result

NOTE = (
    "PSNR is that of the mean MSE of all images; how far KID (over subsets) and IS (over splits)"
    " scatter is on the page and in --csv as kid_std and is_std"
)

REAL = "real test images"
FIRST_LEFT_OUT = ("ssim", "psnr", "kid", "mse")  # on a narrow screen, in this order
LEAST_LABEL = 30  # columns for labels, which wrap where they are longer
GAP = 2


def show(found: list[Result], runs_dir: Path, out: Console) -> None:
    """A table for each protocol, then differing settings, missing results, and reruns."""
    names = labels(found)

    def say(text: str) -> None:
        out.print(Text(text), soft_wrap=True)

    for group in grouping.groups(found):
        columns = group.columns()
        for column in columns:
            judged = f"{group.protocol['images']:,} images by {group.judge}"
            say(f"{heading(column)}: {judged}, best marked *")
            _show_column(column, names, out)
        for mean in grouping.over_seeds(group, found):
            shown = ", ".join(
                f"{HEADINGS[k]} {score(m)} +- {score(s)}" for k, (m, s) in mean.scores.items()
            )
            subject = f"{mean.title}, epoch {mean.epoch}, {mean.sampler}"
            subject += f", mean +- standard deviation of {len(mean.seeds)} seeds"
            say(f"{subject}: {shown}")
        for column in columns:
            for line in evidence(column, found):
                say(f"{heading(column)}: {line}")
        for label in group.labels:
            say(f"note: {label}")
    if any(result.cells for result in found):
        say(f"note: {NOTE}")
    if rows := costs.table(found, names):
        out.print()
        _show_costs(rows, out)
        say(f"note: {costs.NOTE}")
    if differing := grouping.differences(found):
        out.print()
        table = console.table()
        for name in ("what differs", "value", "runs"):
            table.add_column(name, overflow="fold")
        for setting, of_runs in differing.items():
            for k, (chosen, runs) in enumerate(grouping.by_value(of_runs).items()):
                table.add_row(Text("" if k else setting), Text(chosen), Text(few(runs, names)))
        out.print(table)
        out.print()
    for pair in grouping.reruns(found, runs_dir):
        say(f"{pair.rerun}: weights {pair.weights}, figures {pair.figures}")
    for result in found:
        for problem in result.problems:
            say(f"{result.name}: {problem}")


def evidence(column: grouping.Column, found: list[Result]) -> list[str]:
    """A sentence on the best value of each varied setting, or, where none is, the best run."""
    along = axes(column, found)
    if not along:
        return [line] if (line := overall(column, found)) else []
    return [f"{a.key}, FID at epoch {a.epoch}: {line}" for a in along for line in a.sentences()]


def _show_costs(rows: list[list[str]], out: Console) -> None:
    table = console.table()
    (run, device, *numbers), *lines = rows
    for name in (run, device):
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, no_wrap=True, justify="right")
    for line in lines:
        table.add_row(*map(Text, line))
    out.print(table)
    out.print()


def _show_column(column: grouping.Column, names: Mapping[str, str], out: Console) -> None:
    """A row for each cell; where the screen is narrow, labels wrap and some scores are left out."""
    texts = {key: [_marked(column, cell, key) for cell in column.cells] for key in column.keys}
    width = {k: max(len(HEADINGS[k]), *map(len, t)) + GAP for k, t in texts.items()}
    label_width = max(len(REAL), *(len(names[cell.run]) for cell in column.cells)) + GAP
    keys = list(column.keys)
    calls = ["calls"] if any(cell.network_calls for cell in column.cells) else []
    for key in FIRST_LEFT_OUT:
        room = out.width - sum(len(n) + GAP for n in ("epoch", *calls))
        room -= sum(width[k] for k in keys)
        if key in keys and room < min(label_width, LEAST_LABEL):
            keys.remove(key)
    table = console.table()
    table.add_column("run", overflow="fold")
    for name in ("epoch", *(HEADINGS[key] for key in keys), *calls):
        table.add_column(name, no_wrap=True, justify="right")
    for k, cell in enumerate(column.cells):
        scores = [texts[key][k] for key in keys]
        marked = [Text(text, "bold green" if text.endswith("*") else "") for text in scores]
        last = [count(cell.network_calls) for _ in calls]
        table.add_row(Text(names[cell.run]), str(cell.epoch), *marked, *last)
    floor = [score(column.floor.get(key)) + "  " for key in keys]
    table.add_row(Text(REAL, "italic dim"), "", *floor, *("" for _ in calls))
    out.print(table)
    if left_out := [HEADINGS[key] for key in column.keys if key not in keys]:
        note = f"left out at this width: {', '.join(left_out)} (they are in --csv and on the page)"
        out.print(Text(note, "dim"), soft_wrap=True)
    out.print()


def _marked(column: grouping.Column, cell: Cell, key: str) -> str:
    value = cell.value(key)
    return score(value) + (" *" if value is not None and value == column.best(key) else "  ")


def as_plain(found: list[Result], runs_dir: Path) -> dict[str, Any]:
    """Everything that the tables say, for programs."""
    means = [m for g in grouping.groups(found) for m in grouping.over_seeds(g, found)]
    estimated = costs.estimated(found)
    return {
        "figures": [
            {
                "run": c.run,
                "epoch": c.epoch,
                "loss": c.value("loss"),
                **c.figure.plain(),
                **costs.columns(r, c),
            }
            for r in found
            for c in r.cells
        ],
        "costs": {
            r.name: {
                **vars(r.cost.total),
                "estimated_hours": estimated.get(r.name),
                "images_per_s": r.cost.images_per_s,
            }
            for r in found
            if r.cost
        },
        "seeds": [vars(mean) for mean in means],
        "axes": [
            {
                "sampler": column.sampler,
                "protocol": column.cells[0].figure.protocol.plain(),
                "key": axis.key,
                "epoch": axis.epoch,
                "fid": {
                    name: {value: list(sample.values) for value, sample in line.items()}
                    for name, line in axis.lines.items()
                },
                "certainty": list(axis.sentences()),
            }
            for group in grouping.groups(found)
            for column in group.columns()
            for axis in axes(column, found)
        ],
        "differences": grouping.differences(found),
        "reruns": [vars(pair) for pair in grouping.reruns(found, runs_dir)],
        "problems": {r.name: r.problems for r in found if r.problems},
    }


def as_csv(found: list[Result]) -> str:
    """A line for each figure, with all of its protocol."""
    scores = ("fid", "kid", "kid_std", "is", "is_std", "mse", "psnr", "ssim")
    floors = ("fid", "kid", "kid_std", "is", "is_std")
    protocol = list(
        dict.fromkeys(k for r in found for c in r.cells for k in c.figure.protocol.plain())
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["run", "preset", "orientation", "run_seed", "epoch", "loss"]
    floor_names = [f"floor_{key}" for key in floors]
    writer.writerow([*head, *protocol, *scores, *floor_names, *costs.COLUMNS])
    for r in found:
        process = r.config.get("process", {})
        for cell in r.cells:
            run = [r.name, r.config.get("preset"), process.get("orientation"), r.seed, cell.epoch]
            run.append(cell.value("loss"))
            of_cell = cell.figure.protocol.plain()
            about = [of_cell.get(key) for key in protocol]
            floor = [cell.figure.floor.values()[key] for key in floors]
            cost = costs.columns(r, cell)
            writer.writerow(
                [*run, *about, *(cell.value(key) for key in scores), *floor, *cost.values()]
            )
    return text.getvalue()
