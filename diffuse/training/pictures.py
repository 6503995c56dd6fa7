"""The pictures of a training: samples and the way to them, how x_t changes with t, and the loss.

Few steps and 16 images, so that pictures never dominate the training time.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from diffuse.config.schema import Config
from diffuse.data.tensors import load_split, to_uint8, to_x0
from diffuse.models.process import Process, timestep
from diffuse.rundir import plots
from diffuse.rundir.directory import RunDir
from diffuse.rundir.plots import Images
from diffuse.runtime import hdf5
from diffuse.runtime.rng import Stream, generator
from diffuse.sampling.generate import ImageNoise, from_images
from diffuse.sampling.trained_model import Trained
from diffuse.sampling.trajectory import SHOWN, Moment, Trajectory, animate


def draw_epoch(
    config: Config, run: RunDir, process: Process, network: nn.Module, epoch: int, data_dir: Path
) -> None:
    """samples/epoch_NNNN.png and .h5, plots/degradation.png once, and the other plots anew.

    The moving picture plots/trajectory.gif is of the epoch drawn last.
    """
    if not run.has_samples(epoch):
        arrays, panels, way = sample_panels(config, run, process, network, data_dir)
        made_by = str(config.picture_specs()[-1])
        hdf5.write(
            run.samples_path(epoch),
            arrays,
            {"run": run.name, "epoch": epoch, "sampler": made_by, "seed": config.seed},
        )
        plots.image_panels(run.picture_path(epoch), panels, title=f"{run.name}, epoch {epoch}")
        if way:  # a sampler need not show it
            animate(run.plots / "trajectory.gif", [way])
    if not (run.plots / "degradation.png").exists():
        draw_degradation(config, run, process, data_dir)
    plots.epoch_series(run)
    plots.loss_curve(run.plots / "loss.png", run.metrics(), title=run.name)


def sample_panels(
    config: Config, run: RunDir, process: Process, network: nn.Module, data_dir: Path
) -> tuple[dict[str, NDArray[Any]], list[tuple[str, Images]], list[Moment]]:
    """The arrays of the file, the picture's panels with their headings, and the last sampler's way.

    Where test images are restored: original, degraded with stretched contrast, restorations.
    Images from a drawn start stand beside it: float32 `x_T_SAMPLER` [n, 1, 28, 28] in the file.
    """
    n, amplitude = config.samples.images, config.data.amplitude
    device = next(network.parameters()).device
    model = Trained("training", config, process, network, epoch=0, device=device, run=run)
    arrays: dict[str, NDArray[Any]] = {}
    panels, specs = [], config.picture_specs()
    originals = None
    if any(spec.is_conditional for spec in specs):
        originals = model.originals(range(n), data_dir)
        x_T = from_images(process, originals)(range(n), ImageNoise(config.seed, range(n), device)())
        arrays["original"] = to_uint8(originals, amplitude).numpy()
        arrays["degraded"] = plots.stretch(x_T.cpu().numpy())
        panels.append(("Original", arrays["original"]))
        panels.append(("Degraded (contrast stretched)", arrays["degraded"]))
    for spec in specs:
        seen = Trajectory(process.T, amplitude, min(n, SHOWN) if spec is specs[-1] else 0)
        x = model.sample(
            n,
            sampler=spec,
            seed=config.seed,
            originals=originals,
            data_dir=data_dir,
            observe=seen.observe,
        )
        if spec.draws_means:
            arrays[f"x_T_{spec}"] = seen.x_T.numpy()
            panels.append(("Drawn x_T (contrast stretched)", plots.stretch(seen.x_T.numpy())))
        name = "images" if spec is specs[-1] else str(spec)
        arrays[name] = to_uint8(x, amplitude).numpy()
        panels.append((spec.title, arrays[name]))
    return arrays, panels, seen.reverse()


def draw_degradation(config: Config, run: RunDir, process: Process, data_dir: Path) -> None:
    """plots/degradation.png: four test images at eight timesteps from 0 to T."""
    amplitude = config.data.amplitude
    x0 = to_x0(load_split(data_dir, "test", 4).images, amplitude)  # [4, 1, 28, 28]
    eps = torch.randn(x0.shape, generator=generator(config.seed, Stream.SAMPLE))
    process = copy.deepcopy(process).to("cpu")
    times = sorted({round(k * process.T / 7) for k in range(8)})
    columns = [
        to_uint8(process.degrade(x0, timestep(x0, t), eps), amplitude).numpy() for t in times
    ]
    labels = [f"t = {t}" for t in times]
    plots.strip(
        run.plots / "degradation.png", np.stack(columns, axis=1), labels, title=f"{run.name}: x_t"
    )
