"""Compare runs: `python launch/compare.py [--grid part2] [RUN ...]`.

A table here, and one self-contained page: RUNS_DIR/report.html. From run directories alone.
"""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if __package__ in (None, ""):  # run as a script: the repository takes the script's folder's place
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from diffuse import errors

if TYPE_CHECKING:
    from rich.console import Console

    from launch.results import Result

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Names or paths; default: all.")
    ] = None,
    grid: Annotated[str | None, typer.Option(help="The runs of this grid.")] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where run directories live.")] = Path("runs"),
    output: Annotated[
        Path | None, typer.Option(help="The page; default: RUNS_DIR/report.html.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Write the figures as CSV.")
    ] = None,
) -> None:
    """Put the results of runs side by side."""
    from diffuse import files
    from launch import report, results

    names = list(runs or [])
    if grid is not None:
        names += _of_grid(grid, runs_dir)
    found = [results.read(path) for path in results.find(runs_dir, names)]
    if not any(r.cells or r.losses for r in found):
        raise errors.UserError(f"{runs_dir}: nothing to compare yet: no run has trained a step")
    title = f"diffuse: {Path(grid).stem if grid else runs_dir.absolute().name}"
    path = output or runs_dir / "report.html"
    files.write_text(path, report.render(found, runs_dir, title))
    if csv_file is not None:
        files.write_text(csv_file, _csv(found))
    if as_json:
        rows = [_plain(cell) for r in found for cell in r.cells]
        print(json.dumps({"figures": rows, "report": str(path)}, indent=2))
        return
    from launch.show import console

    _print(found, runs_dir, console())
    print(f"report: {path}")


def _of_grid(grid: str, runs_dir: Path) -> list[str]:
    """The grid's runs that are there: what sweeps submitted (with their --set), or its file's."""
    from launch.grid import load_grid
    from launch.ledger import Ledger

    noted = Ledger(runs_dir.absolute(), Path(grid).stem).runs()
    names = noted or [run.name for run in load_grid(grid).runs]
    there = [name for name in names if (runs_dir / name / "config.yaml").exists()]
    if not there:
        raise errors.UserError(f"{runs_dir}: no run of the grid {grid} here yet")
    return there


def _print(found: list[Result], runs_dir: Path, out: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    from launch import results
    from launch.report import score

    titles = {r.name: r.title for r in found}
    for group in results.groups(found):
        protocol = group.protocol
        last = sorted(group.last(), key=lambda c: c.value("fid") or 0.0)
        keys = [
            k for k in ("fid", "kid", "is", "mse", "psnr", "ssim") if any(c.value(k) for c in last)
        ]
        table = Table(
            title=f"{protocol['images']:,} images by {protocol['extractor']}, best marked *",
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        for heading in ("run", "epoch", "sampler", *(key.upper() for key in keys)):
            table.add_column(heading, no_wrap=True)
        best = {key: group.best(key, last) for key in keys}
        for cell in last:
            row: list[str | Text] = [Text(titles[cell.run]), str(cell.epoch), cell.sampler]
            for key in keys:
                value = cell.value(key)
                is_best = value is not None and value == best[key]
                row.append(Text(score(value) + " *" * is_best, "bold green" if is_best else ""))
            table.add_row(*row)
        floor = [score(group.floor.get(key)) for key in keys]
        table.add_row(Text("real test images", "italic dim"), "", "", *floor)
        out.print(table)
        for mean in results.over_seeds(group, found):
            shown = ", ".join(
                f"{k.upper()} {m:.4g} +- {s:.2g}" for k, (m, s) in mean.scores.items()
            )
            out.print(f"{mean.title}, {mean.sampler}, {len(mean.seeds)} seeds: {shown}")
        for label in group.labels:
            out.print(f"note: {label}", soft_wrap=True)
    for pair in results.reruns(found, runs_dir):
        out.print(f"{pair.rerun}: weights {pair.weights}, figures {pair.figures}", soft_wrap=True)
    for result in found:
        for problem in result.problems:
            out.print(Text(f"{result.name}: {problem}"), soft_wrap=True)


def _plain(cell: Any) -> dict[str, Any]:
    return {"run": cell.run, "epoch": cell.epoch, **cell.figure}


def _csv(found: list[Result]) -> str:
    scores = ("fid", "kid", "kid_std", "is", "is_std", "mse", "psnr", "ssim")
    protocol = ("extractor", "extractor_sha256", "images", "sampler", "source", "seed")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["run", "preset", "orientation", "epoch", *protocol, *scores, "floor_fid"])
    for r in found:
        process = r.config.get("process", {})
        for cell in r.cells:
            about = [cell.figure["protocol"].get(key) for key in protocol]
            values = [cell.value(key) for key in scores]
            head = [r.name, r.config.get("preset"), process.get("orientation"), cell.epoch]
            writer.writerow([*head, *about, *values, cell.figure["floor"]["fid"]])
    return text.getvalue()


if __name__ == "__main__":
    errors.run(app)
