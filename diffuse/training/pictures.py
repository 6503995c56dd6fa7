"""What training draws: a grid of samples, how x_t changes with t, and the loss.

Few steps and 16 images, so that pictures never dominate the training time.
"""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from diffuse.config.schema import Config
from diffuse.data.tensors import load_split, stretch, to_uint8, to_x0
from diffuse.models.process import Process, timestep
from diffuse.rundir import plots
from diffuse.rundir.directory import RunDir
from diffuse.runtime import hdf5
from diffuse.runtime.rng import Stream, generator
from diffuse.sampling.generate import ImageNoise, from_images
from diffuse.sampling.trained_model import Trained

Images = NDArray[np.uint8]


def draw_epoch(
    config: Config, run: RunDir, process: Process, network: nn.Module, epoch: int, data_dir: Path
) -> None:
    """samples/epoch_NNNN.png and .h5, plots/degradation.png once, and the other plots anew."""
    if not run.has_samples(epoch):
        panels, made_by = sample_panels(config, process, network, data_dir)
        hdf5.write(
            run.samples_path(epoch),
            {"images": panels[-1][1]}
            | {name.split(" ")[0].lower(): images for name, images in panels[:-1]},
            {"run": run.name, "epoch": epoch, "sampler": made_by, "seed": config.seed},
        )
        plots.image_panels(run.picture_path(epoch), panels, title=f"{run.name}, epoch {epoch}")
    if not (run.plots / "degradation.png").exists():
        draw_degradation(config, run, process, data_dir)
    plots.epoch_series(run)
    plots.loss_curve(run.plots / "loss.png", run.metrics(), title=run.name)


def sample_panels(
    config: Config, process: Process, network: nn.Module, data_dir: Path
) -> tuple[list[tuple[str, Images]], str]:
    """Headings and images, the samples last, and the sampler's name.

    Where test images are restored: original, degraded with stretched contrast, restorations.
    """
    n, amplitude = config.samples.images, config.data.amplitude
    device = next(network.parameters()).device
    model = Trained("training", config, process, network, epoch=0, device=device)
    panels, specs = [], config.picture_specs()
    originals = None
    if any(spec.is_conditional for spec in specs):
        originals = model.originals(range(n), data_dir)
        x_T = from_images(process, originals)(range(n), ImageNoise(config.seed, range(n), device)())
        panels.append(("Original", to_uint8(originals, amplitude).numpy()))
        panels.append(("Degraded (contrast stretched)", stretch(x_T.cpu())))
    for spec in specs:
        x = model.sample(n, sampler=spec, seed=config.seed, originals=originals, data_dir=data_dir)
        panels.append((spec.title, to_uint8(x, amplitude).numpy()))
    return panels, str(specs[-1])


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
