"""Set up the project's workspace in W&B: `python launch/dashboard.py`.

The runs of a sweep, or all, as a table by their final FID, beside open bars, curves and pictures.
Made by W&B's own library (`pip install 'diffuse[track]'`). `--dry-run` shows it, sends nothing.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

if __package__ in (None, ""):  # run as a script: the repository takes the script's folder's place
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer

from diffuse.runtime import errors, options

app = typer.Typer(add_completion=False, rich_markup_mode=None)

STEP, EPOCH = "step", "epoch"
# Section: (title, axis, metrics or a pattern of their names, y title, logarithmic)
SECTIONS: dict[str, list[tuple[str, str, list[str] | str, str, bool]]] = {
    "Loss": [
        ("Loss of each epoch", EPOCH, ["epoch/loss"], "mean loss", True),
        ("Loss of each step", STEP, ["train/loss"], "loss", True),
        ("Loss by quartile of t", EPOCH, r"^epoch/loss_t_quartile_\d$", "mean loss", True),
    ],
    "FID and IS": [  # each with its floor, that of real test images
        ("FID (lower is better)", EPOCH, r"^eval/fid/.*", "FID", True),
        ("IS (higher is better)", EPOCH, r"^eval/is/.*", "IS", False),
        ("KID (lower is better)", EPOCH, r"^eval/kid/.*", "KID", False),
        ("FID over GPU hours", "cost/gpu_hours", r"^eval/fid/.*", "FID", True),
    ],
    "Training": [
        ("Images per second", STEP, ["train/images_per_s"], "images/s", False),
        ("Gradient norm", STEP, ["train/grad_norm"], "norm", True),
        ("Learning rate", STEP, ["train/lr"], "learning rate", False),
    ],
}
# Title, metrics of the table of runs
BARS = [
    ("Final FID, with its floor (lower is better)", ["final/fid", "final/fid_floor"]),
    ("Final IS (higher is better)", ["final/is"]),
    ("Best FID of any epoch", ["best/fid"]),
]
PICTURES = {
    "Samples (of cold diffusion: originals, degraded, restored)": "samples",
    "Samples from the prior": "samples_unconditional",
    "Degradation": "degradation",
}
COLUMNS = [
    *("final/fid", "final/fid_floor", "best/fid", "best/fid_epoch", "final/is", "final/kid"),
    *("final/images", "final/epoch", "epoch/loss"),
    *("cost/gpu_hours", "cost/core_hours", "cost/energy_kwh", "cost/images_seen"),
]


@app.command()
def main(
    project: Annotated[str, typer.Option(help="W&B project (tracking.project).")] = "diffuse",
    entity: Annotated[
        str | None,
        typer.Option(help="W&B team or user. Default: $WANDB_ENTITY, or the owner of the key."),
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="Only the runs of this sweep, such as part2. Default: all.")
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the workspace view. Default: Ranking, and of which sweep."),
    ] = None,
    update: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Address of a view to overwrite. Default: a new view is made."
        ),
    ] = None,
    dry_run: options.DryRun = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the view that W&B would be sent, as JSON.")
    ] = False,
) -> None:
    """Make the workspace, and print its address."""
    import os
    from importlib.util import find_spec

    if find_spec("wandb_workspaces") is None:
        raise errors.EnvironmentFailed(
            "W&B's library is not installed here; pip install 'diffuse[track]'"
        )
    from launch.grids.grid import noted_name

    grid = grid and noted_name(grid)
    name = name or ("Ranking" if grid is None else f"Ranking of {grid}")
    entity = entity or os.environ.get("WANDB_ENTITY")
    if dry_run or as_json:
        view = workspace(entity or "ENTITY", project, name, grid)
        print(json.dumps(spec(view), indent=2) if as_json else outline(view))
        return

    from diffuse.tracking import connection, uploader

    try:
        mode, why = connection.settle("online", uploader.client_settings())
    except uploader.NotStarted as error:
        raise errors.EnvironmentFailed(f"cannot reach W&B: {error}") from None
    if mode != "online":
        raise errors.EnvironmentFailed(f"cannot reach W&B: {why}")
    try:
        view = workspace(entity or uploader.default_entity(), project, name, grid, update)
        view.save()
    except Exception as error:
        raise errors.EnvironmentFailed(f"W&B: {connection.reason(error)}") from None
    print(view.url)


def workspace(
    entity: str, project: str, name: str, grid: str | None = None, update: str | None = None
) -> Any:
    """The workspace, not yet saved; with `update`, the one at that address with new content.

    Args:
        grid: whose runs are shown; None: all.
    """
    import wandb_workspaces.reports.v2 as panels
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(
            name=heading,
            is_open=True,
            panels=[
                panels.LinePlot(
                    title=title,
                    x=axis,
                    title_x=axis,
                    title_y=unit,
                    log_y=log,
                    **({"metric_regex": which} if isinstance(which, str) else {"y": which}),
                )
                for title, axis, which, unit, log in plots
            ],
        )
        for heading, plots in SECTIONS.items()
    ]
    pictures: list[Any] = [
        panels.MediaBrowser(
            title=title, media_keys=[key], mode="grid", grid_x_axis="step", grid_y_axis="run"
        )
        for title, key in PICTURES.items()
    ]
    bars: list[Any] = [panels.BarPlot(title=title, metrics=metrics) for title, metrics in BARS]
    sections.insert(2, ws.Section(name="Samples", is_open=True, panels=pictures))
    sections.insert(0, ws.Section(name="Ranking", is_open=True, panels=bars))
    if update is None:
        view = ws.Workspace(entity=entity, project=project)
    else:
        view = ws.Workspace.from_url(update)
    view.name, view.sections = name, sections
    # One line a run, the best on top: runs in groups would be means, and closed.
    view.runset_settings.groupby = []
    view.runset_settings.order = [ws.Ordering(ws.Summary("final/fid"), ascending=True)]
    view.runset_settings.filters = [] if grid is None else [ws.Metric("Group") == grid]
    view.runset_settings.pinned_columns = [
        *(f"summary:{column}" for column in COLUMNS),
        *("config:preset", "config:process.orientation", "config:seed"),
    ]
    return view


def spec(view: Any) -> dict[str, Any]:
    """The content that W&B is sent, as plain values."""
    model = view._to_model()
    plain: dict[str, Any] = json.loads(model.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"entity": view.entity, "project": view.project, "name": view.name, "spec": plain}


def outline(view: Any) -> str:
    """Sections and panels, for people."""
    lines = [f"{view.entity}/{view.project}: {view.name}, by final FID"]
    lines.append("table of runs: " + ", ".join(COLUMNS))
    for section in view.sections:
        lines.append(section.name)
        lines += [f"  {panel.title}" for panel in section.panels]
    return "\n".join(lines)


if __name__ == "__main__":
    errors.run(app)
