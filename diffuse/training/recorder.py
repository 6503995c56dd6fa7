"""Losses of every step, kept on the device and fetched together: logging costs no sync per step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffuse.runtime.distributed import World
from diffuse.runtime.errors import TrainingFailed


class Recorder:
    """Collects each step's loss and gradient norm, and the epoch's loss by quartile of t."""

    def __init__(self, world: World, timesteps: int) -> None:
        self.world = world
        self.pending: list[tuple[int, float, Tensor, Tensor]] = []  # step, lr, loss, gradient norm
        self.epoch_losses: list[float] = []
        # sums of losses, numbers of examples, per quartile of t, this rank's share
        self.quartiles = torch.zeros(2, 4, device=world.device)
        quartile = (torch.arange(-1, timesteps) * 4 // timesteps).clamp(0, 3)  # of t = 0..T
        one_hot = torch.nn.functional.one_hot(quartile, 4)
        self.members = one_hot.float().to(world.device)  # [T + 1, 4]

    def add(self, step: int, lr: float, losses: Tensor, t: Tensor, grad_norm: Tensor) -> None:
        """Note this rank's per-example `losses` [b] at timesteps `t` [b] of one step."""
        losses = losses.detach()
        self.pending.append((step, lr, losses.mean() / self.world.size, grad_norm.detach()))
        members = self.members[t]  # [b, 4]
        # a matrix product, since index_add_ on CUDA sums in no fixed order
        self.quartiles += torch.stack([losses @ members, members.sum(0)])

    def fetch(self, epoch: int) -> list[dict[str, Any]]:
        """The events of the steps since the last call, the same on every rank.

        Raises TrainingFailed at the first loss that is not finite.
        """
        if not self.pending:
            return []
        # In fp64 this sum is exact, so that its order, which depends on how many steps are fetched
        # at once, does not show: an interrupted run reports the losses of an uninterrupted one.
        losses = self.world.sum(torch.stack([loss for _, _, loss, _ in self.pending]).double())
        norms = torch.stack([norm for _, _, _, norm in self.pending])
        values = torch.stack([losses, norms.to(losses)]).tolist()  # the only sync
        steps = [(step, lr) for step, lr, _, _ in self.pending]
        self.pending.clear()
        events = []
        for (step, lr), loss, norm in zip(steps, *values, strict=True):
            if not math.isfinite(loss):
                raise TrainingFailed(
                    f"the loss became {loss} at step {step} (epoch {epoch}); nothing was saved"
                    " since; lower train.lr, or try train.grad_clip=1 or train.amp=fp32"
                )
            # fp16 skips a step whose gradient overflows; JSON has no infinity for its norm
            events.append(
                {
                    "event": "step",
                    "epoch": epoch,
                    "step": step,
                    "loss": loss,
                    "lr": lr,
                    "grad_norm": norm if math.isfinite(norm) else None,
                }
            )
        self.epoch_losses += [event["loss"] for event in events]
        return events

    def end_epoch(self) -> dict[str, Any]:
        """The epoch's means, and a fresh start for the next. Call after `fetch`, on every rank."""
        sums, counts = self.world.sum(self.quartiles.clone()).tolist()
        facts = {
            "loss": math.fsum(self.epoch_losses) / len(self.epoch_losses),
            "loss_by_t_quartile": [s / n if n else None for s, n in zip(sums, counts, strict=True)],
        }
        self.epoch_losses = []
        self.quartiles.zero_()
        return facts

    def state_dict(self) -> dict[str, Any]:
        """The part of the epoch so far, for a checkpoint inside an epoch. Call after `fetch`."""
        by_rank = torch.zeros(self.world.size, 2, 4, device=self.world.device)
        by_rank[self.world.rank] = self.quartiles
        return {"epoch_losses": list(self.epoch_losses), "quartiles": self.world.sum(by_rank)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on inside an epoch; with another number of ranks, rank 0 carries all sums so far."""
        self.epoch_losses = list(state["epoch_losses"])
        by_rank = state["quartiles"]
        if len(by_rank) == self.world.size:
            self.quartiles.copy_(by_rank[self.world.rank])
        elif self.world.is_main:
            self.quartiles.copy_(by_rank.sum(0))
