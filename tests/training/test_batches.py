"""The batch of a step is a function of (seed, step), and ranks share it out."""

from __future__ import annotations

from dataclasses import astuple

import pytest
import torch

from diffuse.config.presets import load_config, parse_set
from diffuse.config.schema import Config
from diffuse.models import build_process
from diffuse.runtime.distributed import World
from diffuse.training.batches import Batch, Batches
from diffuse.training.schedule import Schedule
from tests.programs import assert_same

N = 40  # images, in batches of 12: three steps an epoch, and four images left over


def config_of(preset: str, *settings: str) -> Config:
    orientation = ["process.orientation=row"] if preset.startswith("cold") else []
    return load_config(preset, [parse_set(["train.global_batch=12", *orientation, *settings])])


def batches(
    config: Config, rank: int = 0, ranks: int = 1, labels: torch.Tensor | None = None
) -> Batches:
    """Of N images, image i having the grey value i everywhere."""
    images = torch.arange(N, dtype=torch.uint8)[:, None, None].expand(N, 28, 28)
    world = World(rank=rank, local_rank=rank, size=ranks, device=torch.device("cpu"))
    schedule = Schedule.of(config, N, 5)
    return Batches(config, schedule, images, build_process(config), world, labels)


def numbers(config: Config, batch: Batch) -> list[int]:
    """Which images the batch has."""
    amplitude = config.data.amplitude
    grey = (batch.x0[:, 0, 0, 0] + amplitude) * 255 / (2 * amplitude)
    return [int(value) for value in grey.round()]


@pytest.mark.parametrize("preset", ["ddpm/default", "cold/default_28"])
def test_a_batch_does_not_depend_on_earlier_requests(preset: str) -> None:
    config = config_of(preset)
    used = batches(config)
    inorder = [astuple(used.at(step)) for step in range(1, 10)]
    for step in (9, 1, 5, 4):
        assert_same(list(astuple(used.at(step))), list(inorder[step - 1]), f"step {step}")
        assert_same(list(astuple(batches(config).at(step))), list(inorder[step - 1]), f"{step}")
    assert (inorder[0][2].numel() == 0) == preset.startswith("cold")


def test_labels_are_those_of_the_images_and_a_share_is_hidden() -> None:
    config = config_of("ddpm/unet_labels", "train.label_dropout=0.3")
    used = batches(config, labels=torch.arange(N) % 10)
    found = [used.at(step) for step in range(1, 16)]
    label = torch.cat([b.label for b in found if b.label is not None])
    image = torch.tensor([number for b in found for number in numbers(config, b)])
    hidden = label == 10
    assert 0.15 < float(hidden.float().mean()) < 0.45
    assert torch.equal(label[~hidden], image[~hidden] % 10)
    halves = [batches(config, rank, 2, torch.arange(N) % 10).at(5).label for rank in range(2)]
    assert torch.equal(torch.cat(halves), found[4].label)  # type: ignore[arg-type]


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_shares_of_ranks_make_up_the_batch_of_one(ranks: int) -> None:
    config = config_of("ddpm/default")
    whole = batches(config).at(5)
    shares = [batches(config, rank, ranks).at(5) for rank in range(ranks)]
    assert torch.equal(torch.cat([share.x0 for share in shares]), whole.x0)
    assert torch.equal(torch.cat([share.t for share in shares]), whole.t)
    assert torch.equal(torch.cat([share.eps for share in shares]), whole.eps)


def test_an_epoch_sees_no_image_twice_and_the_next_has_another_order() -> None:
    config = config_of("ddpm/default")
    used = batches(config)
    first, second = (
        [number for step in steps for number in numbers(config, used.at(step))]
        for steps in (range(1, 4), range(4, 7))
    )
    assert len(set(first)) == len(set(second)) == 36
    assert first != second


def test_dropout_has_a_seed_of_its_own_for_each_step_and_rank() -> None:
    config = config_of("ddpm/unet", "model.dropout=0.1")
    seeds = {batches(config, rank, 2).at(step).dropout_seed for rank in (0, 1) for step in (1, 2)}
    assert len(seeds) == 4 and None not in seeds
    assert batches(config_of("ddpm/unet")).at(1).dropout_seed is None
