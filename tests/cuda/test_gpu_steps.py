"""A training step on a GPU: right in each precision, without waits, with noise as on every GPU.

`make gpu` shows these claims with their verdicts.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import diffuse
from benchmarks.steps import Steps
from diffuse import node_check
from diffuse.config.presets import load_config, parse_set
from diffuse.config.schema import Config
from diffuse.rundir import checkpoints
from diffuse.runtime import rng
from diffuse.runtime.device import DTYPES, Precision, device_name, resolve_precision
from diffuse.runtime.errors import UserError
from diffuse.sampling.generate import ImageNoise
from diffuse.training.state import TrainState
from tests import programs
from tests.cuda import philox
from tests.programs import assert_same

pytestmark = pytest.mark.cuda
# Of one operator, relative to its result: some roundings. TF32 would be off by 4e-4.
TOLERANCE = {"fp32": 5e-5, "fp16": 3e-3, "bf16": 2e-2}
CPU = torch.device("cpu")

Seen = Callable[[str, object], None]  # pytest's record_property
# A function of tensors, and their shapes
OPERATORS: dict[str, tuple[Callable[..., Tensor], tuple[tuple[int, ...], ...]]] = {
    "convolution": (
        lambda x, w: F.conv2d(x, w, padding=3),
        ((8, 32, 28, 28), (32, 32, 7, 7)),
    ),
    "strided convolution": (
        lambda x, w: F.conv2d(x, w, stride=2, padding=1),
        ((8, 32, 14, 14), (64, 32, 3, 3)),
    ),
    "group norm": (
        lambda x, w, b: F.group_norm(x, 8, w, b),
        ((8, 64, 7, 7), (64,), (64,)),
    ),
    "layer norm": (
        lambda x, w, b: F.layer_norm(x, x.shape[1:], w, b),
        ((8, 32, 28, 28), (32, 28, 28), (32, 28, 28)),
    ),
    "attention": (F.scaled_dot_product_attention, ((8, 49, 128),) * 3),
    "linear": (F.linear, ((128, 64), (256, 64), (256,))),
}


@pytest.fixture(params=["fp32", "bf16", "fp16"])
def precision(request: pytest.FixtureRequest, device: torch.device) -> Precision:
    """Each precision; skips those that the device does not have."""
    try:
        return resolve_precision(request.param, device)
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def sync_debug(device: torch.device) -> Iterator[None]:
    """Within the test a wait for the device is an error, once it is asked for."""
    yield
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")


def config_of(preset: str, device: torch.device, *settings: str) -> Config:
    """The preset's, with small batches where the CPU stands in for a GPU."""
    more = ["process.orientation=row"] if preset.startswith("cold") else []
    more += ["train.global_batch=8"] if device.type == "cpu" else []
    return load_config(preset, [parse_set([*more, *settings])])


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor]) -> list[Tensor]:
    """The function's result, and the gradients of its square for each input: on the CPU, fp64."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    result = function(*leaves)
    gradients = torch.autograd.grad(result.square().mean() * 100, leaves)
    return [x.detach().cpu().double() for x in (result, *gradients)]


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_operators_and_their_gradients_are_those_of_the_cpu(
    device: torch.device, precision: Precision, record_property: Seen
) -> None:
    """Those of the networks; the CPU computes in fp64, from the same rounded numbers."""
    torch.manual_seed(0)
    errors = {}
    for name, (function, shapes) in OPERATORS.items():
        inputs = [torch.randn(shape).to(DTYPES[precision]) for shape in shapes]
        expected = with_gradients(function, [x.double() for x in inputs])
        found = with_gradients(function, [x.to(device) for x in inputs])
        errors[name] = max(map(relative, found, expected))
    record_property("seen", ", ".join(f"{name} {error:.0e}" for name, error in errors.items()))
    assert max(errors.values()) <= TOLERANCE[precision], errors


def test_adam_is_that_of_the_cpu(device: torch.device, record_property: Seen) -> None:
    torch.manual_seed(0)
    gradients = torch.randn(3, 1000)
    moved = []
    for place, dtype in ((CPU, torch.float64), (device, torch.float32)):
        weights = torch.zeros(1000, device=place, dtype=dtype, requires_grad=True)
        adam = torch.optim.Adam([weights], lr=2e-4, fused=True)
        for gradient in gradients.to(weights):
            weights.grad = gradient
            adam.step()
        moved.append(weights.detach().cpu().double())
    error = relative(moved[1], moved[0])
    record_property("seen", f"{error:.0e}")
    assert error <= TOLERANCE["fp32"]


def test_losses_and_gradients_of_whole_steps_are_those_of_the_cpu(
    device: torch.device, precision: Precision, record_property: Seen
) -> None:
    """Of ddpm/default and ddpm/unet: the doctor's own check of a node."""
    error = node_check.step_error(device, precision)
    allowed = node_check.TOLERANCE[precision]
    record_property("seen", f"{error:.1e} off ({allowed:g} allowed)")
    assert error <= allowed


@pytest.mark.parametrize("graph", ["auto", "false"])
@pytest.mark.parametrize("preset", ["ddpm/default", "ddpm/unet", "cold/default_28"])
def test_twenty_steps_wait_for_nothing(
    device: torch.device, sync_debug: None, preset: str, graph: str, record_property: Seen
) -> None:
    config = config_of(preset, device, f"train.graph={graph}")
    step = Steps(config, device, resolve_precision("auto", device))
    for _ in range(4):  # in the first ones libraries load, then a graph is recorded
        step()
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    for _ in range(20):
        step()
    record_property("seen", f"20 steps in {step.state.precision}")


def test_fp16_skips_a_step_that_overflows_and_goes_on(
    device: torch.device, record_property: Seen
) -> None:
    step = Steps(config_of("ddpm/default", device), device, "fp16")
    network, scaler = step.state.network, step.state.scaler
    step()
    before = {name: x.clone() for name, x in network.state_dict().items()}
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**60})
    step()
    assert_same(before, network.state_dict(), "weights after an overflow")
    assert scaler.get_scale() == 2.0**59
    scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**10})
    for _ in range(5):
        step()
    assert all(not torch.equal(p, before[name]) for name, p in network.named_parameters())
    losses = [event["loss"] for event in step.log.recorder.fetch(epoch=1)]
    assert checkpoints.all_finite(network.state_dict()) and np.isfinite(losses).all()
    record_property("seen", f"scale 2^60 to 2^59, then losses to {losses[-1]:.3f}")


@pytest.mark.parametrize("preset", ["ddpm/default", "ddpm/unet"])
def test_a_checkpoint_goes_from_cpu_to_gpu_and_back_bit_for_bit(
    device: torch.device, preset: str, tmp_path: Path
) -> None:
    config = config_of(preset, CPU)
    step = Steps(config, CPU, "fp32")
    for _ in range(2):
        step()
    contents = [{"config": {}, **step.state.payload()}]
    for place in (device, CPU):
        path = tmp_path / f"{len(contents)}.pt"
        checkpoints.write(path, contents[-1])
        state = TrainState.fresh(config, place, "fp32")
        state.restore(checkpoints.read(path))
        contents.append({"config": {}, **state.payload()})
    checkpoints.write(tmp_path / "back.pt", contents[-1])
    assert_same(checkpoints.read(tmp_path / "1.pt"), checkpoints.read(tmp_path / "back.pt"), "")


def test_noise_of_a_step_is_the_same_on_every_gpu(
    device: torch.device, record_property: Seen
) -> None:
    """Three calls of 32 images each, as philox.py computes them for no GPU in particular."""
    seed, images = 75016, 96
    noise = rng.normal((images, 1, 28, 28), torch.Generator(device).manual_seed(seed)).cpu()
    digest = hashlib.sha256(noise.numpy()).hexdigest()[:12]
    record_property("seen", f"SHA-256 {digest} on {device_name(device)}")
    if device.type == "cpu":
        pytest.skip("the CPU has a generator of its own")
    calls = [philox.normal(rng.CUDA_CALL, seed, call) for call in range(3)]
    np.testing.assert_allclose(noise.flatten().numpy(), np.concatenate(calls), atol=1e-4)


def test_image_i_of_a_draw_does_not_depend_on_its_batch(
    device: torch.device, record_property: Seen
) -> None:
    """Its noise to the last bit; the network rounds otherwise in another batch."""
    whole, part = ImageNoise(0, range(20), device), ImageNoise(0, range(14, 20), device)
    assert all(torch.equal(whole()[14:], part()) for _ in range(3))
    model = diffuse.load("ddpm/unet", device=device.type)
    draws = [model.sample(20, sampler="ddim-20-clip", batch=batch) for batch in (20, 7)]
    off = float((draws[0] - draws[1]).abs().max()) / 2
    record_property("seen", f"noise equal, images {off:.0e} of the range from black to white off")
    assert off < 0.02


def losses_of(config: Config, device: torch.device, precision: Precision, n: int) -> Tensor:
    """The mean of each of n steps' losses, [n] on the CPU."""
    step = Steps(config, device, precision)
    for _ in range(n):
        step()
    return torch.stack([loss.cpu() for _, _, loss, _ in step.log.recorder.pending])


def test_a_compiled_step_is_the_uncompiled_one(device: torch.device, record_property: Seen) -> None:
    if not (shutil.which("gcc") or shutil.which("cc")):
        programs.leave_out("no C compiler")
    precision = resolve_precision("auto", device)
    plain, compiled = (
        losses_of(config_of("ddpm/default", device, f"train.compile={on}"), device, precision, 3)
        for on in ("false", "true")
    )
    off = float((compiled / plain - 1).abs().max())
    record_property("seen", f"losses {off:.1e} off")
    assert off <= node_check.TOLERANCE[precision]


@pytest.mark.parametrize("preset", ["ddpm/default", "ddpm/unet"])
def test_twenty_steps_of_a_graph_are_twenty_steps(
    device: torch.device, preset: str, record_property: Seen
) -> None:
    """cuDNN may choose other algorithms, but for train.deterministic (test_gpu_runs.py)."""
    if device.type == "cpu":
        pytest.skip("a CUDA graph needs a GPU")
    plain, graphed = (
        losses_of(config_of(preset, device, f"train.graph={on}"), device, "fp32", 20)
        for on in ("false", "true")
    )
    off = (graphed / plain - 1).abs()
    record_property(
        "seen", f"losses {float(off[3]):.1e} off in its first, {float(off[-1]):.1e} in 20"
    )
    assert off[:4].max() <= node_check.TOLERANCE["fp32"]
    assert off.max() <= node_check.TOLERANCE["bf16"]
