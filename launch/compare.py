"""Compare runs: `python launch/compare.py [--grid part2] [RUN ...]`.

A table here, and one self-contained page: RUNS_DIR/report.html. From run directories alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

if __package__ in (None, ""):  # run as a script: the repository takes the script's folder's place
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from diffuse.runtime import errors, options

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN",
            help="Names or paths of runs, weight files (.pth, .safetensors) or names of shipped"
            " weights. Default: all runs in --runs-dir.",
        ),
    ] = None,
    grid: options.OfGrid = None,
    where: options.Where = None,
    runs_dir: options.RunsDir = options.RUNS,
    output: Annotated[
        Path | None, options.output_file("HTML page to write. Default: RUNS_DIR/report.html.")
    ] = None,
    export: Annotated[
        Path | None,
        options.folder(
            "Folder for a thesis: figures as PDF and SVG, LaTeX tables, a caption for each."
        ),
    ] = None,
    as_json: options.AsJson = False,
    csv_file: Annotated[
        Path | None,
        options.output_file(
            "CSV file to write: a line for each evaluation with its whole protocol.", "--csv"
        ),
    ] = None,
) -> None:
    """Put the results of runs side by side."""
    from diffuse.runtime import files
    from diffuse.runtime.console import screen
    from launch.comparison import page, table
    from launch.grids.grid import noted_name
    from launch.grids.selection import Where
    from launch.results import results

    paths = results.find(runs_dir, runs or []) if runs or grid is None else []
    if grid is not None:
        paths += [runs_dir / name for name in _of_grid(grid, runs_dir)]
    found = results.read_all({path.resolve(): path for path in paths}.values())
    if where:
        found = results.chosen(found, Where(where), str(grid or runs_dir))
    if not any(r.cells or r.losses for r in found):
        raise errors.UserError(f"{runs_dir}: nothing to compare yet: no run has trained a step")
    title = f"diffuse: {noted_name(grid) if grid else runs_dir.absolute().name}"
    path = output or runs_dir / "report.html"
    page.write(path, found, runs_dir, title)
    if csv_file is not None:
        files.write_text(csv_file, table.as_csv(found))
    if export is not None:
        from launch.comparison import export as thesis

        written = thesis.write(export, found)
        note = f"{export}: {len(written)} files for a thesis (see its .txt files)"
        print(note, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps(table.as_plain(found, runs_dir) | {"report": str(path)}, indent=2))
        return
    table.show(found, runs_dir, screen())
    print(f"report: {path}")


def _of_grid(grid: str, runs_dir: Path) -> list[str]:
    """The grid's runs: those of its sweeps (with their --set), or else those of its file."""
    from launch.grids.grid import load_grid, noted_name
    from launch.grids.ledger import Ledger

    noted = Ledger(runs_dir.absolute(), noted_name(grid)).runs()
    names = noted or [run.name for run in load_grid(grid).runs]
    if not any((runs_dir / name).is_dir() for name in names):
        raise errors.UserError(f"{runs_dir}: no run of the grid {grid} here yet")
    return names


if __name__ == "__main__":
    errors.run(app)
