"""The DDPM against its definition and against diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from diffuse.config.processes import DdpmConfig
from diffuse.config.sampler_spec import SamplerSpec
from diffuse.models.ddpm import Ddpm
from diffuse.models.process import Sampling, per_example_loss
from diffuse.runtime.rng import Stream, generator

T = 50


@pytest.fixture
def process() -> Ddpm:
    return Ddpm.from_config(DdpmConfig(kind="ddpm", timesteps=T))


def test_the_schedule_is_linear_over_0_to_T_and_alpha_bar_its_product(process: Ddpm) -> None:
    product = 1.0
    for t in range(T + 1):
        beta = (0.02 - 1e-4) * t / T + 1e-4
        product *= 1 - beta
        assert float(process.beta[t]) == pytest.approx(beta, rel=1e-6)
        assert float(process.alpha_bar[t]) == pytest.approx(product, rel=1e-6)
    assert float(process.alpha_bar[0]) == pytest.approx(0.9999)


def test_the_schedule_equals_that_of_diffusers() -> None:
    from diffusers import DDPMScheduler

    theirs = DDPMScheduler(num_train_timesteps=1001, beta_start=1e-4, beta_end=0.02)
    ours = Ddpm.from_config(DdpmConfig(kind="ddpm", timesteps=1000))
    torch.testing.assert_close(ours.alpha_bar, theirs.alphas_cumprod, rtol=1e-5, atol=1e-8)


def test_degrading_at_once_has_the_moments_of_noising_step_by_step(process: Ddpm) -> None:
    rng = generator(0, Stream.STEP)
    x0 = torch.full((4000, 1, 28, 28), 0.3)
    x = x0
    for s in range(T + 1):  # equation 2 of Ho et al., t = 0..T
        noise = torch.randn(x.shape, generator=rng)
        x = (1 - process.beta[s]).sqrt() * x + process.beta[s].sqrt() * noise
    t = torch.full((4000,), T)
    at_once = process.degrade(x0, t, torch.randn(x.shape, generator=rng))
    assert float(at_once.mean()) == pytest.approx(float(x.mean()), abs=2e-3)
    assert float(at_once.std()) == pytest.approx(float(x.std()), abs=2e-3)


def test_timesteps_are_drawn_from_1_to_T_uniformly(process: Ddpm) -> None:
    t, eps = process.draw(20_000, generator(0, Stream.STEP))
    counts = torch.bincount(t, minlength=T + 1)
    assert counts[0] == 0
    assert (counts[1:] - 20_000 / T).abs().max() < 5 * math.sqrt(20_000 / T)
    assert eps.shape == (20_000, 1, 28, 28)


def test_a_network_that_knows_the_noise_has_no_loss(process: Ddpm) -> None:
    x0 = torch.zeros(8, 1, 28, 28)
    t, eps = process.draw(8, generator(1, Stream.STEP))

    def knows(x_t: Tensor, time: Tensor) -> Tensor:
        alpha_bar = process.alpha_bar[(time * T).round().long()][:, None, None, None]
        return x_t / (1 - alpha_bar).sqrt()  # x0 is 0

    assert float(process.losses(knows, x0, t, eps).max()) < 1e-10


@pytest.mark.parametrize("kind", ["mse", "l1", "huber"])
def test_the_loss_is_the_mean_over_pixels_of_each_example(kind: str) -> None:
    a, b = torch.randn(3, 1, 28, 28), torch.randn(3, 1, 28, 28)
    d = (a - b).abs().double()
    by_hand = {"mse": d**2, "l1": d, "huber": torch.where(d < 1, d**2 / 2, d - 0.5)}[kind]
    wanted = [float(image.sum()) / 784 for image in by_hand]
    torch.testing.assert_close(
        per_example_loss(kind, a, b).double(),  # type: ignore[arg-type]
        torch.tensor(wanted, dtype=torch.float64),
        rtol=1e-5,
        atol=1e-7,
    )


def test_min_snr_weights_are_the_papers_formula() -> None:
    process = Ddpm.from_config(DdpmConfig(kind="ddpm", min_snr=5.0))
    for t in (1, 50, 130, 500, 1000):
        snr = float(process.alpha_bar[t] / (1 - process.alpha_bar[t]))
        found = float(process.weights[t])
        assert found == pytest.approx(min(snr, 5.0) / snr, rel=1e-5)
    plain = Ddpm.from_config(DdpmConfig(kind="ddpm"))
    assert torch.equal(plain.weights, torch.ones(1001))


@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_min_snr_weights_of_other_predictions_are_the_papers(prediction: str) -> None:
    settings = {"kind": "ddpm", "min_snr": 5.0, "prediction": prediction}
    process = Ddpm.from_config(DdpmConfig.model_validate(settings))
    snr = process.alpha_bar / (1 - process.alpha_bar)
    wanted = snr.clamp(max=5) / (1 if prediction == "x0" else snr + 1)
    torch.testing.assert_close(process.weights, wanted)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_with_weight_eps_any_output_has_the_loss_of_its_noise(prediction: str) -> None:
    """In proportion: its mean weight over the timesteps of training is 1."""
    settings = {"kind": "ddpm", "prediction": prediction, "weight": "eps", "log_sigma": (0.5, 1.3)}
    process = Ddpm.from_config(DdpmConfig.model_validate(settings))
    t, eps = process.draw(4096, generator(3, Stream.STEP))
    assert float(process.weights[t].mean()) == pytest.approx(1, rel=0.02)
    t, eps, x0 = t[::512], eps[::512], torch.randn(8, 1, 28, 28)
    alpha_bar = process.alpha_bar[t][:, None, None, None]
    alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
    x_t, eps_hat = process.degrade(x0, t, eps), torch.randn_like(eps)
    x0_hat = (x_t - sigma * eps_hat) / alpha
    output = {"eps": eps_hat, "x0": x0_hat, "v": alpha * eps_hat - sigma * x0_hat}[prediction]
    losses = process.losses(lambda x, time: output, x0, t, eps)
    by_noise = (eps_hat - eps).square().mean(dim=(1, 2, 3))
    ratio = losses / by_noise
    torch.testing.assert_close(ratio, ratio[:1].expand(8), rtol=1e-3, atol=0)


def test_noise_levels_have_a_normal_logarithm_and_fill_each_batch_evenly() -> None:
    config = DdpmConfig(kind="ddpm", log_sigma=(0.5, 1.3))
    process = Ddpm.from_config(config)
    batches = [process.draw(128, generator(0, Stream.STEP, k))[0] for k in range(200)]
    t = torch.cat(batches)
    assert t.min() >= 1 and t.max() <= 1000
    alpha_bar = process.alpha_bar.double()
    log_sigma = ((1 - alpha_bar) / alpha_bar).log() / 2
    drawn = log_sigma[t]
    assert float(drawn.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(drawn.std()) == pytest.approx(1.3, abs=0.05)
    # the same by quadrature: p(t) = N(ln sigma; 0.5, 1.3^2) d ln sigma / dt
    ends = torch.stack([log_sigma[:-1], log_sigma[1:]]).mean(0)  # between t and t + 1
    normal = torch.distributions.Normal(0.5, 1.3)
    cdf = normal.cdf(ends)
    cdf = (cdf - cdf[0]) / (cdf[-1] - cdf[0])
    torch.testing.assert_close(process.cdf[:-1], cdf[1:], atol=2e-3, rtol=0)
    spread = torch.stack([b.double() for b in batches]).mean(1).std()
    alone = t.double().std() / 128**0.5
    assert float(spread) < 0.2 * float(alone), "a batch does not see all noise levels"


def test_min_snr_weights_enter_the_loss_of_each_example() -> None:
    plain = Ddpm.from_config(DdpmConfig(kind="ddpm"))
    weighted = Ddpm.from_config(DdpmConfig(kind="ddpm", min_snr=5.0))
    t, eps = plain.draw(8, generator(2, Stream.STEP))
    t[0], t[1] = 1, 1000
    x0 = torch.randn(8, 1, 28, 28)
    losses = [process.losses(lambda x, time: x, x0, t, eps) for process in (plain, weighted)]
    snr = plain.alpha_bar[t] / (1 - plain.alpha_bar[t])
    torch.testing.assert_close(losses[1], losses[0] * snr.clamp(max=5) / snr)
    assert float(losses[1][0]) < 1e-2 * float(losses[0][0])
    assert float(losses[1][1]) == float(losses[0][1])


@pytest.mark.parametrize(
    ("timesteps", "beta_1", "beta_2"),
    [(8600, 1e-4, 0.02), (100_000, 1e-6, 1e-3), (10, 0.01, 0.999), (1, 1e-6, 1e-6)],
)
def test_allowed_settings_give_finite_weights_losses_and_samples(
    timesteps: int, beta_1: float, beta_2: float
) -> None:
    schedule = {"kind": "ddpm", "timesteps": timesteps, "beta_1": beta_1, "beta_2": beta_2}
    config = DdpmConfig.model_validate(schedule | {"min_snr": 5.0})
    process = Ddpm.from_config(config)
    narrow = {"prediction": "v", "weight": "eps", "log_sigma": (10.0, 0.01)}
    levels = Ddpm.from_config(DdpmConfig.model_validate(schedule | narrow))
    drawn, _ = levels.draw(8, generator(0, Stream.STEP))
    assert drawn.min() >= 1 and drawn.max() <= timesteps
    assert torch.isfinite(levels.weights).all()
    t = torch.tensor([1, timesteps])
    assert torch.isfinite(process.weights).all()
    x, eps = torch.randn(2, 1, 28, 28), torch.randn(2, 1, 28, 28)
    assert torch.isfinite(process.losses(lambda x, time: x, x, t, eps)).all()
    steps = min(4, timesteps)
    long = ["ancestral"] if timesteps <= 10 else []  # its steps are those of a long schedule
    for text in (*long, f"ddim-{steps}", f"ddim-{steps}-eta1-clip", f"dpm-{steps}"):
        spec = SamplerSpec.parse(text, config)
        sampling = Sampling(lambda: eps, spec.steps, spec.eta, limit=1.0 if spec.clip else None)
        sampled = process.sample(spec.name, lambda x, time: 0.9 * x, x, sampling)
        assert torch.isfinite(sampled).all(), text
