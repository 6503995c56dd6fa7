"""Checks that only a compute node can make: GPUs, the way between ranks, the files that jobs read.

Run by `python launch/doctor.py --job`, on every rank: `python -m diffuse.node_check ANSWER.json`.
"""

from __future__ import annotations

import math
import os
import platform
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffuse.config.schema import Config
from diffuse.config.section import IMAGE_SIZE
from diffuse.runtime import errors, files, options
from diffuse.runtime.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from diffuse.runtime.device import Precision

app = typer.Typer(add_completion=False, rich_markup_mode=None)
JOIN_TIMEOUT_S = 60.0
BATCH = 16
# of the losses and gradients of two steps: of the order of a hundred roundings
TOLERANCE = {"fp32": 1e-3, "fp16": 5e-3, "bf16": 0.02}


@app.command()
def main(
    answer: Annotated[Path, typer.Argument(parser=options.typed_path, help="JSON file to write.")],
    data_dir: options.DataDir,
    gpus: Annotated[int, typer.Option(help="GPUs of this node that the job requested.")] = 0,
    shared_gpu: Annotated[
        bool, typer.Option("--shared-gpu", help="Ranks share one GPU, so they sum without NCCL.")
    ] = False,
) -> None:
    """Check this node and write the results (rank 0 does)."""
    import torch

    from diffuse.runtime.device import choose_device, device_name, resolve_precision, software
    from diffuse.runtime.distributed import join

    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    # NCCL takes no two ranks on one GPU, and a GPU may be set to take no two processes.
    with join("cpu" if shared_gpu else "auto", JOIN_TIMEOUT_S) as world:
        began = time.monotonic()
        blind = world.highest(int(world.device.type == "cpu"))  # by gloo, as is all on the CPU
        summed_on = torch.device("cpu") if blind else world.device
        together = world.sum(torch.ones(1, device=summed_on)).item()
        took = time.monotonic() - began
        device = choose_device("auto") if world.is_main else world.device
        precision = resolve_precision("auto", device)
        off_ppm = world.highest(round(step_error(device, precision) * 1e6))
        if not world.is_main:
            return
        versions = [f"{name} {value}" for name, value in software(device).items() if value]
        if device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(device)
            versions.insert(0, f"capability {major}.{minor}")
        checks = [
            _check(
                "versions there",
                True,
                f"Python {platform.python_version()}, torch {torch.__version__}",
            ),
            _check(
                "GPU",
                not gpus or (device.type == "cuda" and (shared_gpu or not blind)),
                f"{torch.cuda.device_count()} seen, {device_name(device)},"
                f" precision {', '.join([precision, *versions])}",
                "a GPU was asked for and torch sees none: check the driver, and --nv of the image",
            ),
            _check(
                "training step",
                off_ppm <= TOLERANCE[precision] * 1e6,
                f"losses and gradients in {precision} are {off_ppm / 1e6:.2g} off the CPU's in fp32"
                f" ({TOLERANCE[precision]:g} allowed)",
                "the device computes wrongly: exclude this node, and report it",
            ),
            _check(
                "ranks",
                together == world.size and world.size > 1,
                f"{world.size} ranks summed by {'gloo' if blind else 'NCCL'} in {took:.2f} s",
                "ranks do not reach each other: node names must resolve between nodes",
            ),
            _check(
                "shared filesystem",
                answer.with_suffix(".token").is_file(),
                f"{answer.parent} is seen from {node}",
                "name a --runs-dir on the filesystem that login and compute nodes share",
            ),
            _data(data_dir),
        ]
        files.write_json(answer, {"ranks": world.size, "node": node, "checks": checks})


def step_error(device: torch.device, precision: Precision) -> float:
    """The largest relative error of a training step on `device`: losses and gradient's norm.

    Both networks, so convolutions, norms, attention, their backward passes, and both optimizers.
    """
    import torch

    from diffuse.config.presets import load_config

    largest = []  # of each network
    for preset in ("ddpm/default", "ddpm/unet"):
        config = load_config(preset)
        expected = _step(config, torch.device("cpu"), "fp32")
        found = _step(config, device, precision)
        error = float(((found - expected).abs() / expected.abs()).max())
        largest.append(error if math.isfinite(error) else 1e3)
    return max(largest)


def _step(config: Config, device: torch.device, precision: Precision) -> Tensor:
    """The losses of two equal steps, before and after an update, and the gradient's norm."""
    import torch

    from diffuse.models import build_process
    from diffuse.runtime.rng import Stream, generator
    from diffuse.training.batches import Batch
    from diffuse.training.state import TrainState

    state = TrainState.fresh(config, device, precision)
    rng = generator(0, Stream.STEP, 1)
    t, eps = build_process(config).draw(BATCH, rng)
    x0 = torch.rand(BATCH, 1, IMAGE_SIZE, IMAGE_SIZE, generator=rng).to(device)
    batch = Batch(x0, t.to(device), eps.to(device))
    results = [
        torch.stack([losses.mean(), norm])
        for losses, norm in (state.update(state.network, batch) for _ in range(2))
    ]
    return torch.cat(results).cpu()


def _data(data_dir: Path) -> dict[str, Any]:
    from diffuse.data import mnist

    try:
        mnist.read_verified(data_dir, "test/images")
    except UserError as error:
        return _check("data there", False, str(error), "bind its folder (cluster: binds)")
    return _check("data there", True, f"{data_dir / 'mnist.h5'} is intact")


def _check(name: str, is_ok: bool, detail: str, remedy: str = "") -> dict[str, Any]:
    state = "ok" if is_ok else "failed"
    return {"name": name, "state": state, "detail": detail, "remedy": "" if is_ok else remedy}


if __name__ == "__main__":
    errors.run(app)
