"""Options that several programs share: declared once, so that one name means one thing everywhere.

Imports typer alone: the launcher's programs answer `--help` at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from diffuse.runtime.errors import UserError


def typed_path(text: str | Path) -> Path:
    """A path as a person types it: every path on a command line or in a file is read here.

    The shell leaves a `~` after `=` as it is. Raises UserError where its user has no home.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: no home is known for its ~; write the whole path") from None


def typed_model(text: str | Path) -> Path:
    """The path of a model, or that of the shipped weights with such a name, as in `ddpm/unet`.

    Raises UserError where there is neither.
    """
    path, shipped = typed_path(text), shipped_weights()
    if path.exists():
        return path
    if str(text) in shipped:
        return shipped[str(text)]
    names = ", ".join(shipped) or "none"
    raise UserError(f"{path}: no such file or folder; the shipped models are {names}")


def shipped_weights() -> dict[str, Path]:
    """The weights that come with the project, by name."""
    return {f.stem.replace("-", "/", 1): f for f in sorted(WEIGHTS.glob("*.safetensors"))}


def typed_file(text: str | Path) -> Path:
    """The path of a file to write; refused where a folder has that name."""
    path = typed_path(text)
    if path.is_dir():
        raise typer.BadParameter(f"{path} is a directory; name a file to write")
    return path


def default_data_dir() -> Path:
    """The folder of the data unless --data-dir names one: $DIFFUSE_DATA, or ./data."""
    return typed_path(os.environ.get("DIFFUSE_DATA") or DATA)


def folder(text: str, **more: Any) -> Any:
    """An option that takes a folder, with its help text."""
    return typer.Option(parser=typed_path, metavar="FOLDER", help=text, **more)


def input_file(text: str) -> Any:
    """An option that takes a file to read."""
    return typer.Option(parser=typed_path, metavar="FILE", help=text)


def output_file(text: str, *names: str) -> Any:
    """An option that takes a file to write."""
    return typer.Option(*names, parser=typed_file, metavar="FILE", help=text)


WEIGHTS = Path(__file__).resolve().parent.parent / "weights"  # shipped with the project
RUNS, DATA = Path("runs"), Path("data")  # below the folder that a program is started from
_DEVICE = "Device to compute on: auto (CUDA where there is a GPU), cpu or cuda."

Source = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL",
        parser=typed_model,
        help="Run directory (runs/...), checkpoint (.pt), exported weights (.safetensors), weight"
        " file of the report (.pth), or the name of shipped weights, such as ddpm/unet.",
    ),
]
RunsDir = Annotated[Path, folder("Folder of the run directories.")]
DataDir = Annotated[
    Path, folder("Folder of mnist.h5, which diffuse.prepare writes.", envvar="DIFFUSE_DATA")
]
Device = Annotated[str, typer.Option(help=_DEVICE)]
DeviceSetting = Annotated[
    str | None, typer.Option(help=f"{_DEVICE} Default: system.device of the config.")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, max=1024, help="CPU threads of each rank. Default: chosen by PyTorch."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Setting that overrides the preset's, such as train.lr=4e-4; repeatable.",
    ),
]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Only runs with this setting, such as train.lr=2e-4; repeatable: all keys count, and"
        " of one key any of its values.",
    ),
]
Epoch = Annotated[int | None, typer.Option(help="Epoch of the run. Default: its last checkpoint.")]
SampleSeed = Annotated[
    int,
    typer.Option(
        min=0, max=2**63 - 1, help="Seed of the images: image i depends on it and on i alone."
    ),
]
OfGrid = Annotated[
    str | None,
    typer.Option(help="Runs of this grid, such as part2. Default: all runs in --runs-dir."),
]
ClusterName = Annotated[
    str | None,
    typer.Option(
        help="Cluster: a name under configs/clusters/ or a .yaml file."
        " Default: slurm where sbatch is installed, else local."
    ),
]
ClusterSettings = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Setting that overrides the cluster file's, such as partition=gpu; repeatable.",
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only show the plan; write and send nothing.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Follow = Annotated[bool, typer.Option("--follow", help="Watch until all jobs have ended.")]
