"""What logging costs the training loop: blocks of steps with it and without, in turn."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from diffuse.config.schema import Config
from diffuse.data.tensors import load_split, to_x0
from diffuse.rundir.attempt import Attempt
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.distributed import Precision, World
from diffuse.tracking.mirror import Mirror
from diffuse.training.recorder import Recorder
from diffuse.training.state import TrainState

BLOCK = 10  # steps; the default writes every 50, so what is measured is more than it costs
WARM_UP_S = 8.0  # W&B's client starts in this time, once a run


def logging_cost(
    config: Config, data_dir: Path, precision: Precision, rounds: int
) -> tuple[str, ...]:
    """Steps a second with recorder, metrics.jsonl, status.json and W&B (offline), and without.

    Blocks of both kinds alternate in one process, on the same network, so that the machine's
    drift meets both; what it still leaves is larger than the cost, so the time spent inside the
    logging calls is given too. The client works on in the blocks without: its share of the cores
    is shown apart, as processor time.
    """
    device = torch.device("cpu")
    world = World(rank=0, local_rank=0, size=1, device=device)
    state = TrainState.fresh(config, device, precision)
    recorder = Recorder(world, state.process.T)
    batch = config.train.global_batch
    x0 = to_x0(load_split(data_dir, "train", batch).images, config.data.amplitude)
    offline = config.tracking.model_copy(update={"mode": "offline"})
    config = config.model_copy(update={"tracking": offline})
    rng = torch.Generator().manual_seed(0)
    inside = 0.0  # seconds in logging calls

    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder) / config.run_name)
        attempt = Attempt.claim(run)
        files.write_text(run.config_path, config.to_yaml())

        def step(record: bool) -> None:
            nonlocal inside
            state.step += 1
            t, eps = state.process.draw(batch, rng)
            losses = state.backward(state.network, x0, t, eps, precision, config.train.accumulate)
            grads = [p.grad for p in state.network.parameters() if p.grad is not None]
            if record:
                start = time.perf_counter()
                norm = torch.nn.utils.get_total_norm(grads)
                recorder.add(state.step, config.train.lr, losses, t, norm)
                inside += time.perf_counter() - start
            state.optimizer.step()
            state.optimizer.zero_grad(set_to_none=True)

        def write() -> None:
            nonlocal inside
            start = time.perf_counter()
            attempt.append_metrics(recorder.fetch(epoch=1))
            attempt.publish_status("running", epoch=0, step=state.step)
            inside += time.perf_counter() - start

        def block(record: bool) -> Callable[[], float]:
            def seconds() -> float:
                start = time.perf_counter()
                for _ in range(BLOCK):
                    step(record)
                if record:
                    write()
                return time.perf_counter() - start

            return seconds

        with Mirror(run, config) as mirror:
            start = time.perf_counter()
            while time.perf_counter() - start < WARM_UP_S:
                block(True)()
            inside = 0.0
            began, used = time.perf_counter(), mirror.cpu_seconds()
            pairs = []
            for k in range(6 * rounds):  # neighbours in time, each side first in turn
                order = (True, False) if k % 2 else (False, True)
                took = {record: block(record)() for record in order}
                pairs.append((took[True], took[False]))
            client = (mirror.cpu_seconds() - used) / (time.perf_counter() - began)
    logged, bare = (statistics.median(side) for side in zip(*pairs, strict=True))
    ratios = sorted(b / a for a, b in pairs)
    low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
    return (
        f"training step of {config.preset}: with metrics, status and W&B against none of it",
        f"{BLOCK * batch / logged:.0f} images/s",
        f"{BLOCK * batch / bare:.0f} images/s",
        f"{statistics.median(ratios):.3f} (quartiles {low:.3f}, {high:.3f})",
        "1 (0.98 is allowed); median over pairs of blocks; the logging calls themselves take"
        f" {inside / sum(a for a, _ in pairs):.2%} of the logged time; W&B's processes beside it"
        f" {client:.1%} of a core",
    )
