"""Make one file of a trained model: `python -m diffuse.export RUN`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffuse.runtime import errors, options

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    source: options.Source,
    epoch: options.Epoch = None,
    output: Annotated[
        Path | None,
        options.output_file("File to write. Default: NAME.safetensors in the current folder."),
    ] = None,
    half: Annotated[
        bool, typer.Option(help="Keep the network in float16: half the size, and nearly as exact.")
    ] = True,
    data_dir: options.DataDir = options.DATA,
) -> None:
    """Write a model's weights, settings and figures into one safetensors file."""
    import diffuse

    model = diffuse.load(source, epoch=epoch)
    path = output or Path(f"{model.name}.safetensors")
    model.export(path, half=half, data_dir=data_dir)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    errors.run(app)
