"""Draw samples: `python -m diffuse.sample RUN --sampler ddim --steps 50 -n 64`.

The image of a seed and index does not depend on the batch size.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from diffuse.runtime import errors, options

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    source: options.Source,
    sampler: Annotated[
        str | None,
        typer.Option(
            help="Sampler. DDPM: ancestral, ddim or dpm, also as dpm-50-eta3-clip (50 steps, fresh"
            " noise, each x0 kept in range) or dpm-50-w1 (guided by labels). Cold diffusion:"
            " algorithm2, algorithm1, renoise, direct, unconditional or uniform. With -bf16 at the"
            " end the network computes in bfloat16, about twice as fast. Default: the model's"
            " usual one."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Network evaluations of an image, for ddim and dpm.")
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(help="Fresh noise in ddim's and dpm's steps: 0 none, 1 as much as DDPM's."),
    ] = None,
    digit: Annotated[
        int | None, typer.Option(help="Draw this digit only: of a model with labels.")
    ] = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Number of images.")] = 64,
    seed: options.SampleSeed = 0,
    epoch: options.Epoch = None,
    batch: Annotated[
        int, typer.Option(min=1, help="Images computed at once; changes speed and memory only.")
    ] = 256,
    device: options.Device = "auto",
    trajectory: Annotated[
        bool,
        typer.Option(
            "--trajectory",
            help="Also draw the way from x_T to x_0, of averaged images the way there, too: a GIF"
            " of the first 16 images or fewer, and a strip of the first 8.",
        ),
    ] = False,
    data_dir: options.DataDir = options.DATA,
    output: Annotated[
        Path | None,
        options.folder(
            "Folder for the files. Default: samples/ of the run, or else the current one."
        ),
    ] = None,
) -> None:
    """Draw samples into a PNG grid and an HDF5 file."""
    import diffuse
    from diffuse.data.tensors import to_uint8
    from diffuse.rundir import plots
    from diffuse.runtime import hdf5
    from diffuse.runtime.console import Meter
    from diffuse.runtime.device import explained
    from diffuse.sampling.trajectory import SHOWN, Trajectory, animate, draw_strip

    model = diffuse.load(source, epoch=epoch, device=device)
    usual = model.sampler
    if sampler is None:
        steps = usual.steps if steps is None else steps
        eta = usual.eta if eta is None else eta
        sampler = replace(usual, eta=0.0).family
    spec = model.spec(sampler, steps=steps, eta=eta)
    amplitude = model.config.data.amplitude

    meter = Meter(f"{n} samples, {spec}", total=spec.steps * math.ceil(n / batch))
    observed = Trajectory(model.process.T, amplitude, min(n, SHOWN) if trajectory else 0)
    with explained(model.device), meter:
        x = model.sample(
            n,
            sampler=spec,
            seed=seed,
            digit=digit,
            batch=batch,
            data_dir=data_dir,
            on_step=lambda done, total: meter.update(done, "network evaluations"),
            observe=observed.observe,
        )
    images = to_uint8(x, amplitude).numpy()
    folder = output or (model.run.samples if model.run else Path())
    only = "" if digit is None else f"_digit_{digit}"
    stem = folder / f"{model.name}_epoch_{model.epoch:04d}_{spec}_seed_{seed}{only}_n_{n}"
    png, h5 = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".h5")
    arrays = {"images": images}
    panels = [(spec.title, images)]
    described = {}
    if spec.method.source != "noise" and observed.starts:
        x_T = observed.x_T
        arrays["x_T"] = x_T.numpy()
        described["x_T"] = {
            "meaning": f"the images at t = T, where sampling starts; of the {spec.method.source}",
            "value_range": f"-{amplitude:g} black to {amplitude:g} white",
        }
        heading = "degraded" if spec.is_conditional else "drawn x_T"
        panels.insert(0, (f"{heading} (contrast stretched)", plots.stretch(x_T.numpy())))
    originals = None
    if spec.is_conditional:
        originals = model.originals(range(n), data_dir)
        arrays["original"] = to_uint8(originals, amplitude).numpy()
        panels.insert(0, ("original", arrays["original"]))
    hdf5.write(
        h5,
        arrays,
        {
            "model": model.name,
            "signature": model.config.signature,
            "epoch": model.epoch,
            "sampler": str(spec),
            "steps": spec.steps,
            "eta": spec.eta,
            **({} if digit is None else {"digit": digit}),
            "seed": seed,
            "first_index": 0,
            "batch": batch,
            "value_range": "uint8, 0 black to 255 white, clamped",
        },
        array_attributes=described,
    )
    columns = math.ceil(math.sqrt(n))
    title = f"{model.name}, epoch {model.epoch}"
    if plots.image_panels(png, panels, columns=columns, title=title):
        print(png)
    print(h5)
    if trajectory:
        ways = [observed.reverse()]
        if originals is not None:
            shown = originals[:SHOWN].to(model.device)
            ways.insert(0, observed.forward(model.process, shown, seed))
        moving = stem.with_name(f"{stem.name}_trajectory.gif")
        strip = stem.with_name(f"{stem.name}_trajectory.png")
        animate(moving, ways)
        draw_strip(strip, ways, f"{title}, {spec.title}")
        print(moving, strip, sep="\n")


if __name__ == "__main__":
    errors.run(app)
