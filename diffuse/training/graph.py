"""The device's work of a step as one CUDA graph: one launch in place of hundreds.

A graph is a record of kernels with all their arguments. So whatever differs from step to step must
lie in tensors that stay where they are: the batch is copied into such ones before each replay, and
the optimizer reads its rate from one (`TrainState.rate`). On a GPU it does so without a graph too:
both make the same bits, and a run may go on either way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from diffuse.config.schema import TrainConfig
from diffuse.runtime.device import Precision
from diffuse.runtime.distributed import World
from diffuse.runtime.errors import UserError
from diffuse.training.batches import Batch

Work = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
WARM_UP = 3  # calls before the record: cuDNN chooses algorithms, libraries make their handles


def is_wanted(settings: TrainConfig, world: World, precision: Precision) -> bool:
    """True where each step is to be one CUDA graph: train.graph decides, and auto takes a graph
    unless there is an obstacle.

    Raises UserError where train.graph=true meets an obstacle.
    """
    obstacle = settings.graph_obstacle(world.device.type == "cuda", world.size, precision)
    if obstacle and settings.graph is True:
        raise UserError(f"train.graph=true {obstacle}; leave train.graph out")
    return settings.graph is not False and not obstacle


class StepGraph:
    """`work`, which is recorded in its fourth call and replayed from then on."""

    def __init__(self, work: Work) -> None:
        """
        Args:
            work: waits for no device, leaves no gradients, and takes batches of one size.
        """
        self.work = work
        self.calls = 0
        self.aside: torch.cuda.Stream | None = None

    def __call__(self, forward: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The two results of `work` on `batch`, as new tensors."""
        self.calls += 1
        if self.calls <= WARM_UP:
            return self._aside(forward, batch)
        if self.calls == WARM_UP + 1:
            self._record(forward, batch)
        for name, place in self.places.items():
            place.copy_(getattr(batch, name))
        self.graph.replay()
        losses, grad_norm = self.results
        return losses.clone(), grad_norm.clone()  # the next replay overwrites them

    def _aside(self, forward: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Without a graph, on a stream of its own, as torch wants it before a capture."""
        if self.aside is None:  # one for all, which keeps the memory that it has freed
            self.aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        here = torch.cuda.current_stream()
        self.aside.wait_stream(here)
        with torch.cuda.stream(self.aside):
            results = self.work(forward, batch)
        here.wait_stream(self.aside)
        return results

    def _record(self, forward: nn.Module, batch: Batch) -> None:
        """Kernels are noted, not carried out."""
        self.places = {k: v.clone() for k, v in vars(batch).items() if isinstance(v, Tensor)}
        fixed = replace(batch, **self.places)  # type: ignore[arg-type]
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.results = self.work(forward, fixed)
