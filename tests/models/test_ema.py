"""The moving average against its formula, and its calls to the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffuse.models.ema import MovingAverage, power, warmed_up


def test_the_average_is_that_of_its_formula() -> None:
    network = nn.Linear(3, 2)
    ema = MovingAverage(network, warmed_up(0.9))
    wanted = 0.0
    for n in range(200):
        with torch.no_grad():
            network.weight.fill_(n**0.5)
        ema.update_parameters(network)
        decay = min(0.9, (1 + n) / (10 + n)) if n else 0.0  # the first are taken as they are
        wanted = decay * wanted + (1 - decay) * n**0.5
        assert float(ema.module.weight.detach()[0, 0]) == pytest.approx(wanted, rel=1e-5)
    assert int(ema.n_averaged) == 200


def test_a_power_average_weights_step_n_by_a_power_of_n() -> None:
    network = nn.Linear(1, 1)
    ema = MovingAverage(network, power(6.0))
    values = torch.randn(300, dtype=torch.float64)
    for value in values:
        with torch.no_grad():
            network.weight.fill_(float(value))
        ema.update_parameters(network)
    n = torch.arange(1, 301, dtype=torch.float64)
    # the discrete sum behind Karras et al.'s integral: weights n^7 - (n - 1)^7, of degree 6
    weights = n**7 - (n - 1) ** 7
    wanted = float(weights @ values / weights.sum())
    assert float(ema.module.weight.detach()) == pytest.approx(wanted, rel=1e-4)


def test_buffers_are_taken_as_they_are() -> None:
    network = nn.BatchNorm1d(2)
    ema = MovingAverage(network, warmed_up(0.9))
    network(torch.randn(5, 2))
    ema.update_parameters(network)
    assert torch.equal(ema.module.running_mean, network.running_mean)


def test_an_update_does_not_wait_for_the_device() -> None:
    """No tensor comes from another device, and no value of one is read: either would wait."""
    waits: list[str] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            leaves = [x for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)]
            devices = {x.device.type for x in leaves}
            if len(devices) > 1 or (devices == {"meta"} and "_local_scalar" in str(func)):
                waits.append(str(func))
            return out

    network = nn.BatchNorm1d(2).to("meta")  # stands for a GPU
    ema = MovingAverage(network, warmed_up(0.9))
    with Watch():
        for _ in range(3):
            ema.update_parameters(network)
    assert not waits
