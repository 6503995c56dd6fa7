"""The optimizers are torch's own, bit for bit or to rounding, and load none of torch's compiler."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from diffuse import models
from diffuse.config.presets import load_config, parse_set
from diffuse.training.optimizer import Adam, Muon, orthogonal
from tests.programs import ROOT, TINY, assert_same

TRAINING = """
import runpy, sys
try:
    runpy.run_module("diffuse.train", run_name="__main__", alter_sys=True)
except SystemExit as end:
    assert not end.code, end.code
sys.exit("torch._dynamo" in sys.modules)
"""


def gradients(*networks: nn.Module, step: int) -> None:
    """Give the networks' parameters the same random gradients."""
    rng = torch.Generator().manual_seed(step)
    for parameters in zip(*(network.parameters() for network in networks), strict=True):
        grad = torch.randn(parameters[0].shape, generator=rng)
        for p in parameters:
            p.grad = torch.empty_like(p).copy_(grad)  # in the parameter's layout, as autograd's


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


@pytest.mark.parametrize(
    "other", [nn.Linear(5, 7, bias=False), nn.Linear(5, 1)], ids=["fewer", "broadcast"]
)
def test_a_state_of_other_parameters_is_refused(other: nn.Module) -> None:
    adam = Adam(nn.Linear(5, 7).parameters(), 1e-2)
    with pytest.raises(ValueError, match="other shapes"):
        adam.load_state_dict(Adam(other.parameters(), 1e-2).state_dict())


def test_a_state_from_before_torchs_first_step_is_all_zero() -> None:
    layer = nn.Linear(5, 7)
    adam = Adam(layer.parameters(), 1e-2)
    gradients(layer, step=0)
    adam.step()
    adam.load_state_dict(torch.optim.Adam(layer.parameters()).state_dict())
    assert_same(adam.state_dict(), Adam(layer.parameters(), 1e-2).state_dict(), "")


@pytest.mark.parametrize("unscales", [True, False], ids=["unscaled before", "in the step"])
@pytest.mark.parametrize("value", [1.0, float("inf")])
def test_adam_under_a_scaler_leaves_out_infinite_gradients_alone(
    unscales: bool, value: float
) -> None:
    ours = nn.Linear(5, 7)
    plain = copy.deepcopy(ours)
    mine = Adam(ours.parameters(), 1e-2)
    theirs = torch.optim.Adam(plain.parameters(), 1e-2, fused=True)
    for network, optimizer in ((ours, mine), (plain, theirs)):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        loss = network(torch.full((2, 5), value)).sum()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if unscales:
            scaler.unscale_(optimizer)  # type: ignore[arg-type]
        scaler.step(optimizer)  # type: ignore[arg-type]
        scaler.update()
        assert scaler.get_scale() == (8.0 if value == 1 else 4.0)
    assert_same(ours.state_dict(), plain.state_dict(), "")
    assert mine.steps[0] == (value == 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("preset", ["ddpm/unet", "ddpm/default"])
def test_muon_is_torchs_on_hidden_matrices_and_adam_for_the_rest(
    preset: str, dtype: torch.dtype
) -> None:
    network = models.build(load_config(preset, [parse_set(["model.channels=8,16"])]).model)
    plain = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
    outer = {"enter.weight", "head.weight", "blocks.0.conv.weight"}
    named = dict(plain.named_parameters())
    hidden = [n for n, p in named.items() if p.ndim > 1 and n not in outer and "norm" not in n]
    rest = [p for name, p in named.items() if name not in hidden]
    assert "time_mlp.0.weight" in hidden
    assert {"down.0.0.conv_in.weight", "blocks.1.conv.weight"} & {*hidden}
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_matrices_of_a_batch_are_made_orthogonal_as_each_alone(dtype: torch.dtype) -> None:
    """On a GPU all of them are one batch, padded with zeros."""
    rng = torch.Generator().manual_seed(0)
    matrices = [
        torch.randn(shape, generator=rng) for shape in ((8, 24), (24, 8), (16, 16), (3, 70))
    ]
    together = orthogonal(matrices, dtype)
    for matrix, result in zip(matrices, together, strict=True):
        (alone,) = orthogonal([matrix], dtype)
        assert result.shape == matrix.shape
        tolerance = 0.05 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(result, alone, rtol=0, atol=tolerance)
        singular = torch.linalg.svdvals(result)
        assert singular.min() > 0.4 and singular.max() < 1.3


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_a_training_on_one_rank_loads_no_compiler(
    name: str, tmp_path: Path, data_dir: Path
) -> None:
    place = (f"--runs-dir={tmp_path}", f"--data-dir={data_dir}", "--epochs=1")
    settings = (*TINY, "--preset=ddpm/default", f"--set=train.optimizer={name}", *place)
    done = subprocess.run([sys.executable, "-c", TRAINING, *settings], cwd=ROOT, check=False)
    assert done.returncode == 0
