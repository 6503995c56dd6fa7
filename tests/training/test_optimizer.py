"""The optimizers are torch's own, bit for bit or to rounding, and load none of torch's compiler."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from diffuse import models
from diffuse.config.presets import load_config, parse_set
from diffuse.training.optimizer import Adam, Muon
from tests.programs import ROOT, assert_same

TRAINING = """
import sys, torch
from diffuse.config.presets import load_config, parse_set
from diffuse.training.batches import Batch
from diffuse.training.state import TrainState
small = parse_set(["model.channels=8,8", "train.optimizer=" + sys.argv[1]])
state = TrainState.fresh(load_config("ddpm/unet", [small]), torch.device("cpu"), "fp32")
x0 = torch.zeros(8, 1, 28, 28)
state.update(state.network, Batch(x0, *state.process.draw(8, torch.Generator())))
state.restore(state.payload())
sys.exit("torch._dynamo" in sys.modules)
"""


def gradients(*networks: nn.Module, step: int) -> None:
    """Give the networks' parameters the same random gradients."""
    rng = torch.Generator().manual_seed(step)
    for parameters in zip(*(network.parameters() for network in networks), strict=True):
        grad = torch.randn(parameters[0].shape, generator=rng)
        for p in parameters:
            p.grad = grad.clone()


def test_adam_is_torchs_fused_one_bit_for_bit_and_each_takes_the_others_state() -> None:
    ours = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    plain = copy.deepcopy(ours)

    def pair() -> tuple[Adam, torch.optim.Adam]:
        options = {"lr": 1e-2, "betas": (0.8, 0.95)}
        return Adam(ours.parameters(), **options), torch.optim.Adam(
            plain.parameters(), **options, fused=True
        )

    first, second = pair()
    for step in range(4):
        gradients(ours, plain, step=step)
        first.step()
        second.step()
    assert_same(ours.state_dict(), plain.state_dict(), "")
    mine, theirs = copy.deepcopy((first.state_dict(), second.state_dict()))
    assert_same(mine["state"], theirs["state"], "")

    first, second = pair()
    first.load_state_dict(theirs)
    second.load_state_dict({**mine, "param_groups": theirs["param_groups"]})
    gradients(ours, plain, step=4)
    first.step()
    second.step()
    assert_same(ours.state_dict(), plain.state_dict(), "")
    assert first.steps[0] == 5


def test_a_state_of_other_parameters_is_refused() -> None:
    state = Adam(nn.Linear(5, 7).parameters(), 1e-2).state_dict()
    with pytest.raises(ValueError, match="2 parameters have moments, not 1"):
        Adam(nn.Linear(5, 7, bias=False).parameters(), 1e-2).load_state_dict(state)


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_adam_leaves_out_an_update_of_infinite_gradients(found: float) -> None:
    layer = nn.Linear(5, 7)
    before = copy.deepcopy(layer.state_dict())
    adam = Adam(layer.parameters(), 1e-2)
    gradients(layer, step=0)
    adam.grad_scale, adam.found_inf = torch.tensor(1.0), torch.tensor(found)  # by a GradScaler
    adam.step()
    assert torch.equal(layer.weight, before["weight"]) is bool(found)
    assert adam.steps[0] == 1 - found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_muon_is_torchs_on_hidden_matrices_and_adam_for_the_rest(dtype: torch.dtype) -> None:
    config = load_config("ddpm/unet", [parse_set(["model.channels=8,16"])])
    network = models.build(config.model)
    plain = copy.deepcopy(network)
    outer = {"enter.weight", "enter.bias", "head.weight", "head.bias"}
    named = dict(plain.named_parameters())
    hidden = [name for name, p in named.items() if p.ndim > 1 and name not in outer]
    rest = [p for name, p in named.items() if name not in hidden]
    assert "time_mlp.0.weight" in hidden and "down.0.0.conv_in.weight" in hidden
    matrices = [named[name].detach().flatten(1) for name in hidden]  # views
    ours = Muon(network, 1e-2, dtype)
    muon = torch.optim.Muon(
        matrices, 1e-2, weight_decay=0, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.Adam(rest, lr=1e-2, betas=(0.9, 0.99))
    for step in range(4):
        gradients(network, plain, step=step)
        for name, matrix in zip(hidden, matrices, strict=True):
            matrix.grad = named[name].grad.flatten(1)  # type: ignore[union-attr]
        for optimizer in (ours, muon, adam):
            optimizer.step()
    # torch's is in bfloat16; four updates move a weight by about 0.01
    atol = 1e-6 if dtype == torch.bfloat16 else 5e-4
    torch.testing.assert_close(network.state_dict(), plain.state_dict(), rtol=0, atol=atol)


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_a_training_loads_no_compiler(name: str) -> None:
    command = [sys.executable, "-c", TRAINING, name]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
