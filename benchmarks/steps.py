"""A training's steps one by one, as diffuse.training.loop makes them, on images of chance."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from diffuse.config.schema import Config
from diffuse.rundir.attempt import Attempt, Bystander
from diffuse.rundir.directory import RunDir
from diffuse.runtime.device import Precision
from diffuse.runtime.distributed import World
from diffuse.training import graph
from diffuse.training.batches import Batches
from diffuse.training.log import TrainLog
from diffuse.training.schedule import Schedule
from diffuse.training.state import TrainState

STEPS_PER_EPOCH = 500  # an epoch's beginning, with its permutation, stays outside


class Steps:
    """Calling it makes the next step of `config`'s training, and records its losses in `log`."""

    def __init__(
        self,
        config: Config,
        device: torch.device,
        precision: Precision,
        attempt: Attempt | None = None,
    ) -> None:
        """
        Args:
            attempt: publishes the rows of `log.flush`; default: nothing is published.
        """
        world = World(rank=0, local_rank=0, size=1, device=device)
        as_graph = graph.is_wanted(config.train, world, precision)
        self.state = TrainState.fresh(config, device, precision, as_graph)
        self.forward: nn.Module = self.state.network
        if config.train.compile:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]
        n = STEPS_PER_EPOCH * config.train.global_batch
        rng = torch.Generator().manual_seed(0)
        images = torch.randint(256, (n, 28, 28), dtype=torch.uint8, generator=rng).to(device)
        schedule = Schedule.of(config, n, epochs=1)
        self.batches = Batches(config, schedule, images, self.state.process, world)
        nobody = Bystander(RunDir(Path(config.run_name)))
        self.log = TrainLog(attempt or nobody, config, schedule, world, self.state.process.T, 0)

    def __call__(self) -> None:
        batch = self.batches.at(self.state.step + 1)
        losses, norm = self.state.update(self.forward, batch)
        self.log.record(self.state.step, self.state.lr, losses, batch.t, norm)
