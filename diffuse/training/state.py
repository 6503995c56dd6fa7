"""All of a run that changes while it trains, and the one update that changes it.

A checkpoint holds this state, and brings it back.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffuse.config.schema import Config, TrainConfig
from diffuse.models import build, build_process
from diffuse.models.ema import MovingAverage, moving_average
from diffuse.models.process import Process
from diffuse.runtime.device import DTYPES, Precision
from diffuse.runtime.errors import UserError, first_line
from diffuse.runtime.rng import Stream, derive_seed
from diffuse.training import optimizer
from diffuse.training.batches import Batch
from diffuse.training.graph import StepGraph
from diffuse.training.optimizer import Optimizer


@dataclass
class TrainState:
    """Network, averaged network, optimizer, loss scaler, process, and the number of steps done."""

    settings: TrainConfig
    precision: Precision
    network: nn.Module
    ema: MovingAverage | None
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    process: Process
    step: int = 0
    rate: Tensor | None = None  # [] the learning rate on a GPU, where a graph can read it
    graph: StepGraph | None = None

    @classmethod
    def fresh(
        cls, config: Config, device: torch.device, precision: Precision, as_graph: bool = False
    ) -> TrainState:
        """The state before the first step; initial weights follow from the seed alone.

        Args:
            as_graph: the steps' work is one CUDA graph.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, Stream.INIT))
            network = build(config.model)
        network.to(device)
        in_tensor = as_graph or device.type == "cuda"
        rate = torch.tensor(0.0, device=device) if in_tensor else None
        state = cls(
            settings=config.train,
            precision=precision,
            network=network,
            ema=moving_average(network, config.train),
            optimizer=optimizer.build(network, config.train, precision),
            scaler=torch.amp.GradScaler(device.type, enabled=precision == "fp16"),
            process=build_process(config).to(device),
            rate=rate,
        )
        state.graph = StepGraph(state.advance) if as_graph else None
        return state

    @property
    def best_network(self) -> nn.Module:
        """The network to sample with: the averaged one where there is one."""
        return self.network if self.ema is None else self.ema.module

    @property
    def lr(self) -> float:
        """The learning rate of the last step.

        It rises linearly over the warm-up, then stays, or falls with the root of the images: it
        depends on no end, so that a run's epochs are the same whichever is its last.
        """
        lr = self.settings.lr * min(1.0, self.step / max(1, self.settings.warmup_steps))
        if self.settings.lr_decay_from_images is None:
            return lr
        images = self.step * self.settings.global_batch
        return lr / math.sqrt(max(1.0, images / self.settings.lr_decay_from_images))

    def update(self, forward: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step: forward, backward, optimizer, average. Waits for no device.

        Args:
            forward: the network, or a wrapper that averages its gradients over ranks.
            batch: this rank's share.

        Returns this rank's per-example losses [b] and the gradient's norm [] before clipping.
        """
        self.step += 1
        if batch.dropout_seed is not None:
            torch.manual_seed(batch.dropout_seed)
        self.optimizer.lr = self.lr if self.rate is None else self.rate.fill_(self.lr)
        losses, grad_norm = (self.graph or self.advance)(forward, batch)
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        return losses, grad_norm

    def advance(self, forward: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The part of an update in which no number of Python's differs from step to step."""
        losses = self._backward(forward, batch)
        self.scaler.unscale_(self.optimizer)  # type: ignore[arg-type]
        parameters = list(self.network.parameters())
        grad_norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.settings.grad_clip is not None:
            nn.utils.clip_grads_with_norm_(parameters, self.settings.grad_clip, grad_norm)
        self.scaler.step(self.optimizer)  # type: ignore[arg-type]
        self.scaler.update()
        self.network.zero_grad(set_to_none=True)
        return losses, grad_norm

    def _backward(self, forward: nn.Module, batch: Batch) -> Tensor:
        """Gradients of the mean loss, in micro-batches, which bound the memory; the losses [b]."""
        x0, t, eps, label = batch.x0, batch.t, batch.eps, batch.label
        parts = self.settings.accumulate
        losses = []
        for k in range(parts):
            part = slice(k * len(t) // parts, (k + 1) * len(t) // parts)
            # gradients travel between ranks once, with the last part
            hold = nullcontext if k == parts - 1 else getattr(forward, "no_sync", nullcontext)
            with hold():
                with torch.autocast(
                    x0.device.type, DTYPES[self.precision], self.precision != "fp32"
                ):
                    network = forward if label is None else partial(forward, label=label[part])
                    loss = self.process.losses(network, x0[part], t[part], eps[part])
                self.scaler.scale(loss.mean() / parts).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.cat(losses)

    def payload(self) -> dict[str, Any]:
        """The part of a checkpoint's content that `restore` takes over."""
        return {
            "step": self.step,
            "model": self.network.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "process": self.process.state_dict(),
        }

    def restore(self, content: dict[str, Any]) -> None:
        """Take over a checkpoint's content.

        Raises UserError where it does not fit this config.
        """
        try:
            self.network.load_state_dict(content["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(content["ema"])
                self.ema.n_averaged.fill_(content["step"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.scaler.load_state_dict(content["scaler"])
            self.process.load_state_dict(content["process"])
            self.step = int(content["step"])
        except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            reason = first_line(error)
            raise UserError(f"a checkpoint does not fit this run's config: {reason}") from None
