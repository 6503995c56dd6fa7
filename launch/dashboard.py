"""Set up the project's workspace in W&B: `python launch/dashboard.py`.

Loss, FID, IS and sample grids of all runs, grouped by preset and orientation, made by W&B's own
library (`pip install 'diffuse[track]'`). `--dry-run` shows it and sends nothing.
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
    "FID and IS": [
        ("FID (lower is better)", EPOCH, r"^eval/fid/.*", "FID", True),
        ("FID of real test images: the floor", EPOCH, r"^eval/fid_floor/.*", "FID", True),
        ("IS (higher is better)", EPOCH, r"^eval/is/.*", "IS", False),
        ("IS of real test images", EPOCH, r"^eval/is_floor/.*", "IS", False),
        ("KID (lower is better)", EPOCH, r"^eval/kid/.*", "KID", False),
    ],
    "Training": [
        ("Images per second", STEP, ["train/images_per_s"], "images/s", False),
        ("Gradient norm", STEP, ["train/grad_norm"], "norm", True),
        ("Learning rate", STEP, ["train/lr"], "learning rate", False),
    ],
}


@app.command()
def main(
    project: Annotated[str, typer.Option(help="W&B project (tracking.project).")] = "diffuse",
    entity: Annotated[
        str | None,
        typer.Option(help="W&B team or user. Default: $WANDB_ENTITY, or the owner of the key."),
    ] = None,
    name: Annotated[
        str, typer.Option(help="Name of the workspace view.")
    ] = "Presets and orientations",
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
    entity = entity or os.environ.get("WANDB_ENTITY")
    if dry_run or as_json:
        made = workspace(entity or "ENTITY", project, name)
        print(json.dumps(spec(made), indent=2) if as_json else outline(made))
        return

    from diffuse.tracking import connection, uploader

    try:
        mode, why = connection.settle("online", uploader.client_settings())
    except uploader.NotStarted as error:
        raise errors.EnvironmentFailed(f"cannot reach W&B: {error}") from None
    if mode != "online":
        raise errors.EnvironmentFailed(f"cannot reach W&B: {why}")
    try:
        made = workspace(entity or uploader.default_entity(), project, name, update)
        made.save()
    except Exception as error:
        raise errors.EnvironmentFailed(f"W&B: {connection.reason(error)}") from None
    print(made.url)


def workspace(entity: str, project: str, name: str, update: str | None = None) -> Any:
    """The workspace, not yet saved; with `update`, the one at that address with new content."""
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
    grids = panels.MediaBrowser(
        title="Samples",
        media_keys=["samples"],
        mode="grid",
        grid_x_axis="step",
        grid_y_axis="run",
    )
    sections.insert(2, ws.Section(name="Samples", is_open=True, panels=[grids]))
    made = (
        ws.Workspace(entity=entity, project=project)
        if update is None
        else ws.Workspace.from_url(update)
    )
    made.name, made.sections = name, sections
    made.runset_settings.groupby = [ws.Config("preset"), ws.Config("process.orientation")]
    made.runset_settings.pinned_columns = [
        "config:preset",
        "config:process.orientation",
        "summary:epoch",
        "summary:epoch/loss",
    ]
    return made


def spec(made: Any) -> dict[str, Any]:
    """The content that W&B is sent, as plain values."""
    view = made._to_model()
    plain: dict[str, Any] = json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))
    return {"entity": made.entity, "project": made.project, "name": made.name, "spec": plain}


def outline(made: Any) -> str:
    """Sections and panels, for people."""
    lines = [f"{made.entity}/{made.project}: {made.name}, by preset and orientation"]
    for section in made.sections:
        lines.append(section.name)
        lines += [f"  {panel.title}" for panel in section.panels]
    return "\n".join(lines)


if __name__ == "__main__":
    errors.run(app)
