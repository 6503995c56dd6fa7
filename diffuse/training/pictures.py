"""What training draws: a grid of samples, how x_t changes with t, and the loss.

Few steps and 16 images, so that pictures never dominate the training time.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffuse.config.sampler_spec import SamplerSpec
from diffuse.config.schema import Config
from diffuse.data.tensors import load_split, to_uint8, to_x0
from diffuse.models.averaging import Averaging
from diffuse.rundir import plots
from diffuse.rundir.directory import RunDir
from diffuse.runtime import hdf5
from diffuse.runtime.rng import Stream, generator
from diffuse.sampling.generate import generate
from diffuse.sampling.samplers import Process

Images = NDArray[np.uint8]


def draw_epoch(
    config: Config, run: RunDir, process: Process, network: nn.Module, epoch: int, data_dir: Path
) -> None:
    """samples/epoch_NNNN.png and .h5, plots/degradation.png once, and plots/loss.png anew."""
    if not run.has_samples(epoch):
        panels, made_by = sample_panels(config, process, network, data_dir)
        hdf5.write(
            run.samples_path(epoch),
            panels[-1][1],
            {"run": run.name, "epoch": epoch, "sampler": made_by, "seed": config.seed},
            **{name.split(" ")[0].lower(): images for name, images in panels[:-1]},
        )
        plots.image_panels(run.picture_path(epoch), panels, title=f"{run.name}, epoch {epoch}")
    if not (run.plots / "degradation.png").exists():
        draw_degradation(config, run, process, data_dir)
    plots.loss_curve(run.plots / "loss.png", run.metrics(), title=run.name)


def sample_panels(
    config: Config, process: Process, network: nn.Module, data_dir: Path
) -> tuple[list[tuple[str, Images]], str]:
    """Headings and images, the samples last, and the sampler's name.

    For cold diffusion, test images are degraded and restored: original, degraded with stretched
    contrast, direct prediction, Algorithm 2.
    """
    n, amplitude = config.samples.images, config.data.amplitude
    device = next(network.parameters()).device
    if not isinstance(process, Averaging):
        spec = SamplerSpec("ddim", min(config.samples.steps, process.T), eta=1, clip=True)
        x = generate(
            network,
            process,
            spec,
            seed=config.seed,
            indices=range(n),
            amplitude=amplitude,
            device=device,
        )
        heading = f"DDIM, {spec.steps} steps, eta 1, clipped"
        return [(heading, to_uint8(x, amplitude).numpy())], str(spec)

    split = load_split(data_dir, "test", n)
    x0 = to_x0(split.images, amplitude)  # [n, 1, 28, 28]
    degraded = process.degrade(x0.to(device), torch.full((len(x0),), process.T, device=device))
    panels = [
        ("Original", split.images.numpy()),
        ("Degraded (contrast stretched)", stretch(degraded.cpu())),
    ]
    for heading, name in (("Direct prediction", "direct"), ("Algorithm 2", "algorithm2")):
        spec = SamplerSpec.parse(name, process)
        x = generate(
            network,
            process,
            spec,
            seed=config.seed,
            indices=range(len(x0)),
            amplitude=amplitude,
            device=device,
            originals=x0,
        )
        panels.append((heading, to_uint8(x, amplitude).numpy()))
    return panels, "algorithm2"


def draw_degradation(config: Config, run: RunDir, process: Process, data_dir: Path) -> None:
    """plots/degradation.png: four test images at eight timesteps from 0 to T."""
    amplitude = config.data.amplitude
    x0 = to_x0(load_split(data_dir, "test", 4).images, amplitude)  # [4, 1, 28, 28]
    x0 = x0.to(process.order.device if isinstance(process, Averaging) else process.beta.device)
    eps = torch.randn(x0.shape, generator=generator(config.seed, Stream.SAMPLE)).to(x0)
    times = sorted({round(k * process.T / 7) for k in range(8)})
    columns = []
    for time in times:
        t = torch.full((len(x0),), time, device=x0.device)
        x_t = (
            process.degrade(x0, t)
            if isinstance(process, Averaging)
            else process.degrade(x0, t, eps)
        )
        columns.append(to_uint8(x_t, amplitude).cpu().numpy())
    labels = [f"t = {time}" for time in times]
    plots.strip(
        run.plots / "degradation.png", np.stack(columns, axis=1), labels, title=f"{run.name}: x_t"
    )


def stretch(x: Tensor) -> Images:
    """x [n, 1, 28, 28] to uint8 [n, 28, 28], each image from its darkest to its lightest value.

    Averages of mostly black images are dark: stretched, the eye sees what the network gets.
    """
    low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
    unit = (x - low) / (high - low).clamp(min=1e-6)
    stretched: Images = (unit[:, 0] * 255).round().to(torch.uint8).numpy()
    return stretched
