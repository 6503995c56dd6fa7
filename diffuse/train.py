"""Train one run: `python -m diffuse.train --preset ddpm/default --epochs 100`.

The same command again resumes an interrupted run, does nothing where all is done, and extends
the run where more epochs are asked for.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from diffuse.config.presets import command_line_layers, explained, resolve
from diffuse.runtime import errors, options
from diffuse.runtime.preemption import StopRequest

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    preset: Annotated[
        str | None,
        typer.Option(help="Preset: a file under configs/, such as ddpm/default, or a .yaml file."),
    ] = None,
    config: Annotated[
        Path | None,
        options.input_file("Complete config instead of a preset: the config.yaml of a run."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs to train. Default: those of the preset.")
    ] = None,
    orientation: Annotated[
        str | None,
        typer.Option(
            help="Lines that cold diffusion averages: row or col; a cold preset needs it."
        ),
    ] = None,
    set_: options.Settings = None,
    runs_dir: options.RunsDir = options.RUNS,
    data_dir: options.DataDir = options.DATA,
    device: options.DeviceSetting = None,
    threads: options.Threads = None,
    where: Annotated[
        bool, typer.Option("--where", help="Only print the run directory; nothing is trained.")
    ] = False,
    show_config: Annotated[
        bool,
        typer.Option(
            "--show-config",
            help="Only print all settings as YAML, each with the place that set it.",
        ),
    ] = False,
) -> None:
    """Train one run, or go on with it."""
    # Before torch is imported, which takes seconds: a signal during start-up is not lost.
    stop = StopRequest().install()
    # DDP warns of find_unused_parameters on every start; distributed.py says why it is set.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    layers = command_line_layers(preset, config, epochs, orientation, set_ or [], device, threads)
    resolved = resolve(layers)
    if show_config:
        print(explained(resolved, layers))
        return
    if where:
        print(runs_dir / resolved.run_name)
        return

    from diffuse.training.loop import train

    run = train(resolved, runs_dir, data_dir, stop)
    if run is not None:
        print(f"{run.path}: done; pictures in {run.samples}")


if __name__ == "__main__":
    errors.run(app)
