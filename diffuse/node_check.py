"""What only a compute node can tell: GPUs, the way between ranks, the files that jobs read.

Run by `python launch/doctor.py --job`, on every rank: `python -m diffuse.node_check ANSWER.json`.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from diffuse.runtime import errors, files, options
from diffuse.runtime.errors import UserError

app = typer.Typer(add_completion=False, rich_markup_mode=None)
JOIN_TIMEOUT_S = 60.0


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

    from diffuse.runtime.device import choose_device, device_name, resolve_precision
    from diffuse.runtime.distributed import join

    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    # NCCL takes no two ranks on one GPU, and a GPU may be set to take no two processes.
    with join("cpu" if shared_gpu else "auto", JOIN_TIMEOUT_S) as world:
        began = time.monotonic()
        blind = world.highest(int(world.device.type == "cpu"))  # by gloo, as is all on the CPU
        summed_on = torch.device("cpu") if blind else world.device
        together = world.sum(torch.ones(1, device=summed_on)).item()
        took = time.monotonic() - began
        if not world.is_main:
            return
        device = choose_device("auto")
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
                f" precision {resolve_precision('auto', device)}",
                "a GPU was asked for and torch sees none: check the driver, and --nv of the image",
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
