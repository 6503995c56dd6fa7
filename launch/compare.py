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

from diffuse.runtime import errors

if TYPE_CHECKING:
    from rich.console import Console

    from launch.comparison.results import Result

app = typer.Typer(add_completion=False, rich_markup_mode=None)

NOTE = (
    "PSNR is that of the mean MSE of all images; how far KID (over subsets) and IS (over splits)"
    " scatter is on the page and in --csv as kid_std and is_std"
)


@app.command()
def main(
    runs: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Names or paths; default: all.")
    ] = None,
    grid: Annotated[str | None, typer.Option(help="The runs of this grid.")] = None,
    runs_dir: Annotated[Path, typer.Option(help="Where run directories live.")] = Path("runs"),
    output: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The page; default: RUNS_DIR/report.html.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON.")] = False,
    csv_file: Annotated[
        Path | None,
        typer.Option("--csv", dir_okay=False, metavar="FILE", help="Write the figures as CSV."),
    ] = None,
) -> None:
    """Put the results of runs side by side."""
    from diffuse.runtime import files
    from launch.comparison import page, results
    from launch.local.display import console

    paths = results.find(runs_dir, runs or []) if runs or grid is None else []
    if grid is not None:
        paths += [runs_dir / name for name in _of_grid(grid, runs_dir)]
    found = results.read_all({path.resolve(): path for path in paths}.values())
    if not any(r.cells or r.losses for r in found):
        raise errors.UserError(f"{runs_dir}: nothing to compare yet: no run has trained a step")
    title = f"diffuse: {Path(grid).stem if grid else runs_dir.absolute().name}"
    path = output or runs_dir / "report.html"
    files.write_text(path, page.render(found, runs_dir, title))
    if csv_file is not None:
        files.write_text(csv_file, _csv(found))
    if as_json:
        print(json.dumps(_plain(found, runs_dir) | {"report": str(path)}, indent=2))
        return
    _print(found, runs_dir, console())
    print(f"report: {path}")


def _of_grid(grid: str, runs_dir: Path) -> list[str]:
    """The grid's runs: what sweeps were about (with their --set), or else what its file says."""
    from launch.jobs.grid import load_grid
    from launch.jobs.ledger import Ledger

    noted = Ledger(runs_dir.absolute(), Path(grid).stem).runs()
    names = noted or [run.name for run in load_grid(grid).runs]
    if not any((runs_dir / name).is_dir() for name in names):
        raise errors.UserError(f"{runs_dir}: no run of the grid {grid} here yet")
    return names


def _print(found: list[Result], runs_dir: Path, out: Console) -> None:
    """A table for each protocol, then what differs, what is missing, and what was rerun."""
    from rich.table import Table
    from rich.text import Text

    from launch.comparison import grouping
    from launch.comparison.page import HEADINGS, few, heading, labels, score

    names = labels(found)

    def say(text: str) -> None:
        out.print(Text(text), soft_wrap=True)

    for group in grouping.groups(found):
        for column in group.columns():
            judged = f"{group.protocol['images']:,} images by {group.protocol['extractor']}"
            say(f"{heading(column)}: {judged}, best marked *")
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
            table.add_column("run", no_wrap=True)
            for name in ("epoch", *(HEADINGS[key] for key in column.keys)):
                table.add_column(name, no_wrap=True, justify="right")
            for cell in column.cells:
                row: list[str | Text] = [Text(names[cell.run]), str(cell.epoch)]
                for key in column.keys:
                    value = cell.value(key)
                    is_best = value is not None and value == column.best(key)
                    mark = " *" if is_best else "  "
                    row.append(Text(score(value) + mark, "bold green" if is_best else ""))
                table.add_row(*row)
            floor = [score(column.floor.get(key)) + "  " for key in column.keys]
            table.add_row(Text("real test images", "italic dim"), "", *floor)
            out.print(table)
            out.print()
        for mean in grouping.over_seeds(group, found):
            shown = ", ".join(
                f"{HEADINGS[k]} {score(m)} +- {score(s)}" for k, (m, s) in mean.scores.items()
            )
            what = f"{mean.title}, epoch {mean.epoch}, {mean.sampler}"
            what += f", mean +- standard deviation of {len(mean.seeds)} seeds"
            say(f"{what}: {shown}")
        for label in group.labels:
            say(f"note: {label}")
    if any(result.cells for result in found):
        say(f"note: {NOTE}")
    if differing := grouping.differences(found):
        out.print()
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
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


def _plain(found: list[Result], runs_dir: Path) -> dict[str, Any]:
    """Everything that the tables say, for programs."""
    from launch.comparison import grouping

    means = [m for g in grouping.groups(found) for m in grouping.over_seeds(g, found)]
    return {
        "figures": [
            {"run": c.run, "epoch": c.epoch, **c.figure.plain()} for r in found for c in r.cells
        ],
        "seeds": [vars(mean) for mean in means],
        "differences": grouping.differences(found),
        "reruns": [vars(pair) for pair in grouping.reruns(found, runs_dir)],
        "problems": {r.name: r.problems for r in found if r.problems},
    }


def _csv(found: list[Result]) -> str:
    """A line for each figure, with all of its protocol."""
    scores = ("fid", "kid", "kid_std", "is", "is_std", "mse", "psnr", "ssim")
    floors = ("fid", "kid", "kid_std", "is", "is_std")
    protocol = list(
        dict.fromkeys(k for r in found for c in r.cells for k in c.figure.protocol.plain())
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    head = ["run", "preset", "orientation", "run_seed", "epoch"]
    writer.writerow([*head, *protocol, *scores, *(f"floor_{key}" for key in floors)])
    for r in found:
        process = r.config.get("process", {})
        for cell in r.cells:
            what = [r.name, r.config.get("preset"), process.get("orientation"), r.seed, cell.epoch]
            of_cell = cell.figure.protocol.plain()
            about = [of_cell.get(key) for key in protocol]
            floor = [cell.figure.floor.values()[key] for key in floors]
            writer.writerow([*what, *about, *(cell.value(key) for key in scores), *floor])
    return text.getvalue()


if __name__ == "__main__":
    errors.run(app)
