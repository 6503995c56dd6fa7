"""The networks, and the reader of the report's weight files, against a network written anew."""

from __future__ import annotations

import copy
import itertools
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffuse
from diffuse import ROOT
from diffuse.config.schema import CnnConfig, UNetConfig
from diffuse.models import build
from diffuse.models.averaging import Averaging
from diffuse.models.ddpm import Ddpm
from diffuse.runtime.errors import UserError
from diffuse.training.optimizer import Adam

PUBLISHED = Path(os.environ.get("DIFFUSE_REFERENCE", ROOT.parent / "shared/reference"))


class ReportNetwork(nn.Module):
    """The report's network under the names of its weight files, written from its description."""

    def __init__(self, hidden: tuple[int, ...], activation: type[nn.Module]) -> None:
        super().__init__()
        sizes = (1, *hidden)
        blocks = [
            nn.ModuleDict(
                {
                    "net": nn.Sequential(
                        nn.Conv2d(i, o, 7, padding="same"), nn.LayerNorm((o, 28, 28)), activation()
                    )
                }
            )
            for i, o in itertools.pairwise(sizes)
        ]
        self.blocks = nn.ModuleList([*blocks, nn.Conv2d(hidden[-1], 1, 3, padding="same")])
        layers: list[nn.Module] = []
        for i, o in ((32, 128), (128, 128), (128, 128), (128, hidden[0])):
            layers += [nn.Linear(i, o), activation()]
        self.time_embed = nn.Sequential(*layers[:-1])
        self.register_buffer(
            "frequencies", torch.tensor([0] + [2 * math.pi * 1.5**k for k in range(15)])
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        phase = torch.outer(t, self.frequencies)  # type: ignore[arg-type]
        embedding = self.time_embed(torch.cat([phase.sin(), phase.cos() - 1], -1))
        for k, block in enumerate(self.blocks[:-1]):
            x = block["net"](x)  # type: ignore[index]
            if k == 0:
                x = x + embedding[:, :, None, None]
        return self.blocks[-1](x)  # type: ignore[no-any-return]


def weight_file(folder: Path, name: str, network: nn.Module, **buffers: Tensor) -> Path:
    """A file as the report's code writes it."""
    path = folder / f"{name}.pth"
    state = {f"gt.{key}": value for key, value in network.state_dict().items()}
    torch.save(buffers | state, path)
    return path


def ddpm_buffers(T: int) -> dict[str, Tensor]:
    beta = 1e-4 + (0.02 - 1e-4) * torch.arange(T + 1) / T
    return {"beta_t": beta, "alpha_t": torch.cumprod(1 - beta, 0)}


@pytest.mark.parametrize(
    ("name", "hidden", "activation", "T"),
    [
        ("ddpm_mnist_80_default", (16, 32, 32, 16), nn.GELU, 1000),
        ("ddpm_mnist_20_testing", (16, 32, 32, 16), nn.SELU, 100),
        ("ddpm_mnist_60_light", (16, 64, 16), nn.GELU, 1000),
    ],
)
def test_a_ddpm_weight_file_gives_the_reports_outputs(
    name: str, hidden: tuple[int, ...], activation: type[nn.Module], T: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = ReportNetwork(hidden, activation)
    model = diffuse.load(weight_file(tmp_path, name, network, **ddpm_buffers(T)))
    x, t = torch.randn(4, 1, 28, 28), torch.tensor([1, 2, T // 2, T]) / T
    torch.testing.assert_close(model.network(x, t), network(x, t), rtol=0, atol=1e-5)
    assert (model.process.T, model.epoch) == (T, int(name.split("_")[2]))
    assert str(model.sampler) == "ddim-50-eta1-clip"
    assert torch.isfinite(model.sample(2, sampler="ddim-3")).all()


def test_a_weight_file_with_another_name_notes_the_assumed_activation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = ReportNetwork((16, 64, 16), nn.GELU)
    diffuse.load(weight_file(tmp_path, "ddpm_mnist_20_light", network, **ddpm_buffers(9)))
    assert capsys.readouterr().err == ""
    for name in ("mine", "ddpm_mnist_20_testing_copy"):
        diffuse.load(weight_file(tmp_path, name, network, **ddpm_buffers(9)))
        assert capsys.readouterr().err.endswith(
            f"{name}.pth: GELU is assumed: its name is none of the report's\n"
        )


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("orientation", ["row", "col"])
def test_a_cold_weight_file_brings_its_own_order(
    orientation: str, group: int, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    lines = torch.arange(28).reshape(-1, group)[torch.randperm(28 // group)]
    stored = lines.squeeze(1) if group == 1 else lines
    network = ReportNetwork((16, 32, 32, 16), nn.GELU)
    path = weight_file(
        tmp_path,
        f"custom_mnist_60_{orientation}_default_{28 // group}",
        network,
        **{f"{orientation}s_t": stored},
    )
    model = diffuse.load(path)
    assert isinstance(model.process, Averaging)
    assert (model.process.orientation, model.process.T) == (orientation, 28 // group)
    assert torch.equal(model.process.order, lines)
    x0 = torch.randn(3, 1, 28, 28)
    restored = model.sample(3, sampler="direct", originals=x0)
    x_T = model.process.degrade(x0, torch.full((3,), 28 // group))
    torch.testing.assert_close(restored, network(x_T, torch.ones(3)), rtol=0, atol=1e-5)


def test_the_reports_network_has_the_reports_size() -> None:
    network = build(CnnConfig(kind="cnn"))
    assert sum(p.numel() for p in network.parameters()) == 291_217


def test_in_the_cnn_weights_gradients_moments_and_activations_lie_channels_last() -> None:
    network = build(CnnConfig.model_validate({"kind": "cnn", "channels": (4, 6)}))
    plain = {name: value.contiguous() for name, value in network.state_dict().items()}
    network = copy.deepcopy(network)
    network.load_state_dict(plain)
    seen = []
    for block in network.blocks:
        for layer in (block.conv, block):
            layer.register_forward_hook(lambda *args: seen.append(args[2]))
    adam = Adam(network.parameters(), 1e-3)
    for _ in range(2):
        network(torch.rand(3, 1, 28, 28), torch.rand(3)).mean().backward()
        adam.step()
        adam.load_state_dict(copy.deepcopy(adam.state_dict()))
    last = {"memory_format": torch.channels_last}
    assert len(seen) == 8 and all(x.is_contiguous(**last) for x in seen)
    for p, moment in zip(network.parameters(), adam.exp_avgs, strict=True):
        assert p.grad.stride() == p.stride() == moment.stride()
    for block in network.blocks:
        assert block.conv.weight.is_contiguous(**last)
        assert block.norm.weight[None].is_contiguous(**last)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_a_unet_keeps_the_shape_and_begins_by_predicting_nothing(patch: int) -> None:
    channels = {1: (8, 16, 24), 2: (8, 16), 4: (16,)}[patch]
    config = UNetConfig.model_validate(
        {"kind": "unet", "channels": channels, "patch": patch, "attention": True}
    )
    network = build(config)
    y = network(torch.randn(2, 1, 28, 28), torch.rand(2))
    assert y.shape == (2, 1, 28, 28)
    assert not y.any()


def test_blocks_after_attention_take_its_output_and_are_all_that_they_add() -> None:
    plain = {"kind": "unet", "channels": (8, 16), "patch": 2, "attention": True}
    without = build(UNetConfig.model_validate(plain))
    network = build(UNetConfig.model_validate({**plain, "after_attention": 2}))
    passed: list[tuple[Tensor, Tensor]] = []
    for layer in (network.attention, *network.after):
        layer.register_forward_hook(lambda layer, x, y: passed.append((x[0], y)))
    network(torch.randn(2, 1, 28, 28), torch.rand(2))
    assert len(passed) == 3
    for (_, y), (x, _) in itertools.pairwise(passed):
        assert y is x and x.shape == (2, 16, 7, 7)
    added = network.state_dict().keys() - without.state_dict().keys()
    assert added == {name for name in network.state_dict() if name.startswith("after.")}


def test_damaged_foreign_and_hostile_weight_files_are_refused_and_nothing_runs(
    tmp_path: Path,
) -> None:
    ran = tmp_path / "ran"

    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (Path.touch, (ran,))

    good = weight_file(
        tmp_path, "ddpm_mnist_1_light", ReportNetwork((16, 64, 16), nn.GELU), **ddpm_buffers(10)
    )
    cases = {
        "hostile.pth": pickle.dumps(Hostile()),
        "truncated.pth": good.read_bytes()[:1000],
        "empty.pth": b"",
        "text.pth": b"these are no weights",
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    torch.save({"a": Hostile()}, tmp_path / "hostile_zip.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "foreign.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in [*cases, "hostile_zip.pth", "foreign.pth", "list.pth", "missing.pth"]:
        with pytest.raises(UserError, match=name):
            diffuse.load(tmp_path / name)
    assert not ran.exists()


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="the report's published files are not here")
def test_the_published_files_give_the_outputs_of_their_own_code() -> None:
    expected = np.load(PUBLISHED / "expected.npz")
    x = torch.from_numpy(expected["x"])
    model = diffuse.load(PUBLISHED / "checkpoints/ddpm_mnist_80_default.pth")
    time = torch.from_numpy(expected["ddpm_t"]).float().flatten() / 1000
    with torch.no_grad():
        np.testing.assert_allclose(model.network(x, time), expected["ddpm_out"], rtol=0, atol=1e-4)
    assert isinstance(model.process, Ddpm)
    np.testing.assert_allclose(model.process.beta, expected["beta_t"], rtol=1e-6)
    np.testing.assert_allclose(model.process.alpha_bar, expected["alpha_t"], rtol=1e-4)
    cold = diffuse.load(PUBLISHED / "checkpoints/custom_mnist_80_row_default_28.pth")
    assert isinstance(cold.process, Averaging)
    assert np.array_equal(cold.process.order[:, 0], expected["rows_t"])
    for t in (1, 7, 14, 27, 28):
        x_t = cold.process.degrade(x, torch.full((4,), t))
        np.testing.assert_allclose(x_t, expected[f"row_degraded_{t}"], rtol=0, atol=1e-5)
    direct = cold.sample(4, sampler="direct", originals=x)
    np.testing.assert_allclose(direct, expected["row_direct"], rtol=0, atol=1e-5)
