"""One update of the state is the step that the papers describe, and the one that is measured."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diffuse.config.presets import load_config, parse_set
from diffuse.config.schema import Config
from diffuse.models.ema import MovingAverage, warmed_up
from diffuse.training.batches import Batch
from diffuse.training.state import TrainState
from tests.programs import assert_same

CPU = torch.device("cpu")
SETTINGS = (
    *("model.channels=4,4", "train.ema=0.9", "train.grad_clip=0.05", "train.lr=1e-3"),
    *("train.warmup_steps=4", "train.global_batch=8"),
)


def config_of(*settings: str) -> Config:
    return load_config("ddpm/default", [parse_set([*SETTINGS, *settings])])


def batch_of(state: TrainState, k: int) -> Batch:
    rng = torch.Generator().manual_seed(k)
    x0 = torch.rand(8, 1, 28, 28, generator=rng) - 0.5
    t, eps = state.process.draw(8, rng)
    return Batch(x0, t, eps)


def test_an_update_is_adam_on_clipped_gradients_at_the_warm_rate_with_an_average() -> None:
    config = config_of()
    state = TrainState.fresh(config, CPU, "fp32")
    network = copy.deepcopy(state.network)
    average = MovingAverage(network, warmed_up(0.9))
    adam = torch.optim.Adam(network.parameters(), lr=1.0)
    for step in range(1, 7):
        batch = batch_of(state, step)
        losses, norm = state.update(state.network, batch)

        wanted = state.process.losses(network, batch.x0, batch.t, batch.eps)
        adam.param_groups[0]["lr"] = 1e-3 * min(1, step / 4)
        adam.zero_grad()
        wanted.mean().backward()  # type: ignore[no-untyped-call]
        full = nn.utils.clip_grad_norm_(network.parameters(), 0.05)
        assert full > 0.05, "nothing was clipped"
        adam.step()
        average.update_parameters(network)

        assert state.step == step and state.lr == adam.param_groups[0]["lr"]
        torch.testing.assert_close(losses, wanted.detach())
        torch.testing.assert_close(norm, full)
        assert losses.requires_grad is False
    for ours, plain in (
        (state.network.state_dict(), network.state_dict()),
        (state.best_network.state_dict(), average.module.state_dict()),
    ):
        torch.testing.assert_close(ours, plain)


def test_the_rate_falls_with_the_root_of_the_images_whatever_the_end() -> None:
    settings = ("train.lr_decay_from_images=16", "train.warmup_steps=2", "train.epochs=7")
    state = TrainState.fresh(config_of(*settings), CPU, "fp32")  # 8 images a step
    rates = []
    for step in range(1, 9):
        state.step = step
        rates.append(state.lr)
    assert rates == pytest.approx([5e-4, 1e-3, *(1e-3 / (k / 2) ** 0.5 for k in range(3, 9))])


def test_dropout_masks_follow_from_the_seed_of_the_batch_alone() -> None:
    settings = ("model.dropout=0.5", "model.channels=8,8", "train.warmup_steps=0")
    config = load_config("ddpm/unet", [parse_set([*settings])])

    def losses(seed: int) -> Tensor:
        """Of the fourth step: fresh residual branches are zero, whatever they drop."""
        state = TrainState.fresh(config, CPU, "fp32")
        for step in range(1, 5):
            torch.rand(3)  # another use of torch's global generator
            batch = replace(batch_of(state, step), dropout_seed=seed)
            last, _ = state.update(state.network, batch)
        return last

    assert torch.equal(losses(1), losses(1))
    assert not torch.equal(losses(1), losses(2))


@pytest.mark.parametrize(
    "settings",
    [(), ("train.ema=null",), ("train.ema={gamma: 6}", "train.optimizer=muon")],
    ids=["average", "none", "muon"],
)
def test_a_restored_state_goes_on_as_the_saved_one(settings: tuple[str, ...]) -> None:
    config = config_of(*settings)
    saved, restored = (TrainState.fresh(config, CPU, "fp32") for _ in range(2))
    for step in (1, 2):
        saved.update(saved.network, batch_of(saved, step))
    restored.restore(copy.deepcopy(saved.payload()))
    for state in (saved, restored):
        state.update(state.network, batch_of(state, 3))
    assert_same(restored.payload(), saved.payload(), "")
