"""Examples, timesteps and noise of a step: a function of (seed, step) and nothing else.

All is drawn for the global batch, of which each rank takes its slice; the order of the examples
follows from (seed, epoch). Nothing needs to be saved for a resume.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from diffuse.config.schema import Config
from diffuse.data.tensors import to_x0
from diffuse.models.process import Process
from diffuse.runtime.distributed import World
from diffuse.runtime.rng import Stream, derive_seed, generator
from diffuse.training.schedule import Schedule


@dataclass(frozen=True)
class Batch:
    """This rank's share, b examples, of one step's batch."""

    x0: Tensor  # [b, 1, 28, 28]
    t: Tensor  # [b], in 1..T
    eps: Tensor  # [b, ...], empty for a process without noise
    dropout_seed: int | None = None  # of the masks; None for a network without dropout
    label: Tensor | None = None  # [b], for a network with labels; as many as classes: hidden


class Batches:
    """The batches of a training."""

    def __init__(
        self,
        config: Config,
        schedule: Schedule,
        images: Tensor,
        process: Process,
        world: World,
        labels: Tensor | None = None,
    ) -> None:
        """
        Args:
            images: uint8 [N, 28, 28], all of them, on the device.
            labels: int64 [N], there too; for a network with labels.
        """
        self.config = config
        self.schedule = schedule
        self.images, self.labels = images, labels
        self.process = process
        self.world = world
        self._order = (0, torch.empty(0))  # an epoch and its permutation of the images [N]

    def at(self, step: int) -> Batch:
        """The batch of `step` (1-based)."""
        seed, n = self.config.seed, self.config.train.global_batch
        mine = self.world.share(n)
        epoch, position = self.schedule.place(step)
        indices = self._permutation(epoch)[position * n : (position + 1) * n]
        rng = generator(seed, Stream.STEP, step, device=self.images.device)
        t, eps = self.process.draw(n, rng)
        label = None
        if classes := self.config.model.classes:
            assert self.labels is not None
            shown = torch.rand(n, generator=rng, device=rng.device)
            is_hidden = shown < self.config.train.label_dropout
            label = torch.where(is_hidden, classes, self.labels[indices])[mine]
        dropout_seed = None
        if self.config.model.dropout:
            dropout_seed = derive_seed(seed, Stream.DROPOUT, step, self.world.rank)
        return Batch(
            x0=to_x0(self.images[indices[mine]], self.config.data.amplitude),
            t=t[mine],
            eps=eps[mine],
            dropout_seed=dropout_seed,
            label=label,
        )

    def _permutation(self, epoch: int) -> Tensor:
        """The order of the images in `epoch`, kept until another epoch is asked for."""
        if self._order[0] != epoch:
            rng = generator(self.config.seed, Stream.DATA_ORDER, epoch)
            order = torch.randperm(len(self.images), generator=rng)
            self._order = (epoch, order.to(self.images.device))
        return self._order[1]
