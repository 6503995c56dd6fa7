"""Labels and guidance, and the calls of the network that a sampler needs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from diffuse.config.processes import DdpmConfig, ProcessConfig
from diffuse.config.sampler_spec import SamplerSpec
from diffuse.models.averaging import Averaging
from diffuse.models.ddpm import Ddpm
from diffuse.models.process import Process
from diffuse.sampling.generate import from_images, from_noise, generate
from diffuse.sampling.labels import conditioned, drawn
from tests.sampling.test_samplers import (
    COLD,
    CPU,
    DDPM,
)


class Labelled(nn.Module):
    """Its prediction is the label, of which 10 stands for none."""

    classes = 10

    def forward(self, x: Tensor, time: Tensor, label: Tensor) -> Tensor:
        return label[:, None, None, None].float().expand_as(x).clone()


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
def test_guidance_is_the_papers_formula(guidance: float) -> None:
    x, time = torch.randn(3, 1, 28, 28), torch.ones(3)
    labels = torch.tensor([1, 7, 9])
    found = conditioned(Labelled(), labels, guidance)(x, time)
    wanted = (1 + guidance) * labels - guidance * 10
    torch.testing.assert_close(found, wanted[:, None, None, None].float().expand_as(x))


def test_the_label_of_an_image_depends_on_its_number_alone_and_all_digits_come() -> None:
    labels = drawn(10, 0, range(2000))
    assert torch.equal(drawn(10, 0, [1999]), labels[1999:])
    counts = torch.bincount(labels, minlength=10)
    assert len(counts) == 10 and (counts - 200).abs().max() < 5 * 180**0.5


def test_images_of_a_digit_are_told_that_digit_in_every_batch() -> None:
    ddpm = Ddpm.from_config(DDPM.model_copy(update={"prediction": "x0"}))
    spec = SamplerSpec.parse("ddim-2", DDPM)
    more = {"seed": 0, "amplitude": 10.0, "device": CPU}

    def means(labels: list[int] | None, batch: int) -> list[int]:
        x = generate(
            Labelled(),
            ddpm,
            spec,
            from_noise(ddpm),
            indices=range(5),
            labels=labels,
            batch=batch,
            **more,
        )
        return [round(float(image.mean())) for image in x]

    assert means([7, 3, 9, 1, 5], 2) == [7, 3, 9, 1, 5]
    assert means(None, 2) == means(None, 5) == drawn(10, 0, range(5)).tolist()


@pytest.mark.parametrize("name", [*DDPM.samplers, "ddim-3-w1", "ancestral-w2", *COLD.samplers])
def test_a_sampler_calls_the_network_for_each_image_as_often_as_it_says(name: str) -> None:
    settings: ProcessConfig = COLD if name in COLD.samplers else DDPM
    if isinstance(settings, DdpmConfig):
        process: Process = Ddpm.from_config(settings)
    else:
        process = Averaging.from_config(settings, 0, 0.5)
    spec = SamplerSpec.parse(name, settings)
    network, images = Labelled(), 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal images
        images += len(inputs[0])

    network.register_forward_pre_hook(count)
    generate(
        network,
        process,
        spec,
        from_images(process, torch.zeros(3, 1, 28, 28)),
        seed=0,
        indices=range(3),
        amplitude=0.5,
        device=CPU,
        batch=2,
    )
    assert images == 3 * spec.network_calls
