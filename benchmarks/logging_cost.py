"""The cost of logging to the training loop: blocks of steps with it and without, in turn."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import torch

from diffuse.config.schema import Config
from diffuse.data.tensors import load_split
from diffuse.rundir.attempt import Attempt
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.device import Precision
from diffuse.runtime.distributed import World
from diffuse.training.batches import Batches
from diffuse.training.log import TrainLog
from diffuse.training.schedule import Schedule
from diffuse.training.state import TrainState

BLOCK = 10  # steps; the default writes every 50, so the measured cost is an upper bound
WARM_UP_S = 8.0  # W&B's client starts in this time, once a run


def logging_cost(
    config: Config, data_dir: Path, precision: Precision, rounds: int
) -> tuple[str, ...]:
    """Steps a second with metrics.jsonl, status.json and W&B (offline), and without.

    Blocks of both kinds alternate in one process, on the same network, so that the machine's
    drift meets both; what it still leaves is larger than the cost, so the time spent inside the
    logging calls is given too. The client works on in the blocks without: its share of the cores
    is shown apart, as processor time.
    """
    device = torch.device("cpu")
    world = World(rank=0, local_rank=0, size=1, device=device)
    offline = config.tracking.model_copy(update={"mode": "offline"})
    config = config.model_copy(update={"tracking": offline})
    state = TrainState.fresh(config, device, precision)
    images = load_split(data_dir, "train").images
    schedule = Schedule.of(config, len(images), config.train.epochs)
    batches = Batches(config, schedule, images, state.process, world)

    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / config.run_name)
        attempt = Attempt.claim(run)
        files.write_text(run.config_path, config.to_yaml())
        log = TrainLog(attempt, config, schedule, world, state.process.T, state.step)

        def block(record: bool) -> tuple[float, float]:
            """Seconds of a block of steps, and of its logging calls among them."""
            inside, start = 0.0, time.perf_counter()
            for _ in range(BLOCK):
                batch = batches.at(state.step + 1)
                losses, norm = state.update(state.network, batch)
                if record:
                    began = time.perf_counter()
                    log.record(state.step, state.lr, losses, batch.t, norm)
                    inside += time.perf_counter() - began
            if record:
                began = time.perf_counter()
                log.flush()
                inside += time.perf_counter() - began
            return time.perf_counter() - start, inside

        with log.running() as mirror:
            start = time.perf_counter()
            while time.perf_counter() - start < WARM_UP_S:
                block(record=True)
            began, used = time.perf_counter(), mirror.cpu_seconds()
            pairs, inside = [], 0.0
            for k in range(6 * rounds):  # neighbours in time, each side first in turn
                order = (True, False) if k % 2 else (False, True)
                took = {record: block(record) for record in order}
                pairs.append((took[True][0], took[False][0]))
                inside += took[True][1]
            client = (mirror.cpu_seconds() - used) / (time.perf_counter() - began)
    logged, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(b / a for a, b in pairs)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    images_a_block = BLOCK * config.train.global_batch
    return (
        f"training step of {config.preset}: with metrics, status and W&B against none of it",
        f"{images_a_block / logged:.0f} images/s",
        f"{images_a_block / bare:.0f} images/s",
        f"{statistics.median(ratios):.3f} (quartiles {low:.3f}, {high:.3f})",
        "1 (0.98 is allowed); median over pairs of blocks; the logging calls themselves take"
        f" {inside / sum(a for a, _ in pairs):.2%} of the logged time; W&B's processes beside it"
        f" {client:.1%} of a core",
    )
