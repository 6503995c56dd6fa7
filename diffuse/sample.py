"""Draw samples: `python -m diffuse.sample RUN_OR_CHECKPOINT --sampler ddim --steps 50 -n 64`.

The image of a seed and index is the same whatever the batch size.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from diffuse.runtime import errors

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_CHECKPOINT", help="A run directory, a checkpoint, or a report's .pth."
        ),
    ],
    sampler: Annotated[
        str | None,
        typer.Option(
            help="ancestral, ddim, dpm, also as ddim-50-clip (each x0 kept in range); for cold:"
            " algorithm2, algorithm1, direct, unconditional."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Network evaluations, for ddim and dpm.")
    ] = None,
    eta: Annotated[float | None, typer.Option(help="Fresh noise in ddim, from 0 to 1.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="How many images.")] = 64,
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Another seed gives other images.")
    ] = 0,
    epoch: Annotated[int | None, typer.Option(help="Of a run; default: its last.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    data_dir: Annotated[
        Path | None, typer.Option(help="Where mnist.h5 is; default: $DIFFUSE_DATA or ./data.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the files; default: the run's samples/, or here."),
    ] = None,
) -> None:
    """Draw samples into a PNG grid and an HDF5 file."""
    import diffuse
    from diffuse.data.tensors import to_uint8
    from diffuse.rundir import plots
    from diffuse.runtime import hdf5
    from diffuse.runtime.console import Meter
    from diffuse.runtime.distributed import choose_device

    model = diffuse.load(source, epoch=epoch, device=choose_device(device))
    usual = model.sampler
    if sampler is None:
        sampler = f"{usual.name}-clip" if usual.clip else usual.name
        steps = usual.steps if steps is None else steps
        eta = usual.eta if eta is None else eta
    spec = model.spec(sampler, steps=steps, eta=eta)
    amplitude = model.config.data.amplitude

    with Meter(f"{n} samples, {spec}", total=spec.steps * math.ceil(n / batch)) as meter:
        x = model.sample(
            n,
            sampler=spec,
            seed=seed,
            batch=batch,
            data_dir=data_dir,
            on_step=lambda done, total: meter.update(done, "network evaluations"),
        )
    images = to_uint8(x, amplitude).numpy()
    folder = output or (model.run.samples if model.run else Path())
    stem = folder / f"{model.name}_epoch_{model.epoch:04d}_{spec}_seed_{seed}_n_{n}"
    png, h5 = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".h5")
    more = {}
    panels = [(str(spec), images)]
    if spec.is_conditional:
        originals = to_uint8(model.originals(range(n), data_dir), amplitude).numpy()
        more["original"] = originals
        panels.insert(0, ("original", originals))
    hdf5.write(
        h5,
        images,
        {
            "model": model.name,
            "signature": model.config.signature,
            "epoch": model.epoch,
            "sampler": str(spec),
            "steps": spec.steps,
            "eta": spec.eta,
            "seed": seed,
            "first_index": 0,
            "batch": batch,
            "value_range": "uint8, 0 black to 255 white, clamped",
        },
        **more,
    )
    columns = math.ceil(math.sqrt(n))
    plots.image_panels(png, panels, columns=columns, title=f"{model.name}, epoch {model.epoch}")
    print(f"{png}\n{h5}")


if __name__ == "__main__":
    errors.run(app)
