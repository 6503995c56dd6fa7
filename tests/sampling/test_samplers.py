"""The samplers against diffusers' schedulers and against the papers' algorithms as loops."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffuse import models
from diffuse.config.processes import AveragingConfig, DdpmConfig, ProcessConfig
from diffuse.config.sampler_spec import SamplerSpec
from diffuse.config.schema import CnnConfig, UNetConfig
from diffuse.models import build
from diffuse.models.averaging import Averaging
from diffuse.models.ddpm import Ddpm, timesteps
from diffuse.models.process import Network, Process, Sampling
from diffuse.runtime.errors import UserError
from diffuse.sampling.generate import CHUNK, ImageNoise, from_noise, generate

T = 40

CPU = torch.device("cpu")

DDPM = DdpmConfig(kind="ddpm", timesteps=T, beta_1=1e-3, beta_2=0.2)

COLD = AveragingConfig(kind="averaging", orientation="row")


def network(x: Tensor, time: Tensor) -> Tensor:
    """Cheap, and different at each pixel and time."""
    return torch.tanh(x * (1 + time[:, None, None, None]) + 0.1)


@pytest.fixture
def ddpm() -> Ddpm:
    return Ddpm.from_config(DDPM)


def theirs(name: str, **settings: Any) -> Any:
    """A scheduler of diffusers with the same T + 1 values and the same end."""
    import diffusers

    return getattr(diffusers, name)(
        num_train_timesteps=T + 1, beta_start=1e-3, beta_end=0.2, **settings
    )


class Recorded:
    """The same noise for both sides."""

    def __init__(self) -> None:
        self.drawn: list[Tensor] = []
        self.rng = torch.Generator().manual_seed(0)

    def __call__(self) -> Tensor:
        self.drawn.append(torch.randn(3, 1, 28, 28, generator=self.rng))
        return self.drawn[-1]


def sample(
    text: str, settings: ProcessConfig, network: Network, process: Process, x_T: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """x_0 by the sampler written `text`, where it clips to [-1, 1], and the noise that it drew."""
    spec, noise = SamplerSpec.parse(text, settings), Recorded()
    limit = 1.0 if spec.clip else None
    sampling = Sampling(noise, spec.steps, spec.eta, limit)
    return process.sample(spec.name, network, x_T, sampling), noise.drawn


def test_ancestral_equals_diffusers_ddpm_step_for_step(
    ddpm: Ddpm, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers.schedulers import scheduling_ddpm

    x_T = torch.randn(3, 1, 28, 28)
    ours, noise = sample("ancestral", DDPM, network, ddpm, x_T)
    scheduler = theirs("DDPMScheduler", variance_type="fixed_large", clip_sample=False)
    replay = iter(noise)
    monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *a, **k: next(replay))
    x = x_T
    for t in range(T, 0, -1):
        eps_hat = network(x, torch.full((3,), t / T))
        if t == 1:
            # our last step adds no noise; theirs adds it down to their last index, 0
            beta, alpha_bar = ddpm.beta[1], ddpm.alpha_bar[1]
            x = (x - beta / (1 - alpha_bar).sqrt() * eps_hat) / (1 - beta).sqrt()
        else:
            x = scheduler.step(eps_hat, t, x).prev_sample
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize(("steps", "eta"), [(T, 0.0), (10, 0.0), (8, 1.0), (T, 1.0)])
def test_ddim_equals_diffusers_ddim(ddpm: Ddpm, steps: int, eta: float, clip: bool) -> None:
    x_T = torch.randn(3, 1, 28, 28)
    text = f"ddim-{steps}-eta{eta:g}" + ("-clip" if clip else "")
    ours, noise = sample(text, DDPM, network, ddpm, x_T)
    scheduler = theirs("DDIMScheduler", clip_sample=clip, set_alpha_to_one=False)
    scheduler.num_inference_steps = steps
    x, replay = x_T, iter(noise)
    for t, s in zip(timesteps(T, steps)[:-1], timesteps(T, steps)[1:], strict=True):
        # diffusers finds the step before as t - (T + 1) // steps: make that s
        scheduler.config.num_train_timesteps = (t - s) * steps
        fresh = next(replay, torch.zeros(3, 1, 28, 28))
        eps_hat = network(x, torch.full((3,), t / T))
        x = scheduler.step(
            eps_hat, t, x, eta=eta, variance_noise=fresh, use_clipped_model_output=clip
        ).prev_sample
        if s == 0 and eta > 0:
            # theirs adds noise in the last step too; with none, the direction term is the same
            assert not fresh.any()
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_dpm_equals_diffusers_dpm_solver(ddpm: Ddpm) -> None:
    steps = 8
    taus = timesteps(T, steps)
    scheduler = theirs("DPMSolverMultistepScheduler", solver_order=2, algorithm_type="dpmsolver++")
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.tensor(taus[:-1])
    alpha_bar = ddpm.alpha_bar[taus].double()
    scheduler.sigmas = ((1 - alpha_bar) / alpha_bar).sqrt().float()
    scheduler.config.lower_order_final = True
    scheduler.config.euler_at_final = True
    x_T = torch.randn(3, 1, 28, 28)
    x = x_T
    for t in scheduler.timesteps:
        eps_hat = network(x, torch.full((3,), float(t) / T))
        x = scheduler.step(eps_hat, t, x).prev_sample
    ours = sample(f"dpm-{steps}", DDPM, network, ddpm, x_T)[0]
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


def test_dpm_with_eta_1_equals_diffusers_sde_dpm_solver(ddpm: Ddpm) -> None:
    steps = 8
    taus = timesteps(T, steps)
    scheduler = theirs(
        "DPMSolverMultistepScheduler",
        solver_order=2,
        algorithm_type="sde-dpmsolver++",
        final_sigmas_type="zero",
    )
    scheduler.set_timesteps(steps)
    scheduler.timesteps = torch.tensor(taus[:-1])
    alpha_bar = ddpm.alpha_bar[taus].double()
    sigmas = ((1 - alpha_bar) / alpha_bar).sqrt().float()
    sigmas[-1] = 0  # the end is the last prediction
    scheduler.sigmas = sigmas
    scheduler.config.lower_order_final = True
    scheduler.config.euler_at_final = True
    x = x_T = torch.randn(3, 1, 28, 28)
    ours, noise = sample(f"dpm-{steps}-eta1", DDPM, network, ddpm, x_T)
    fresh = iter([*noise, torch.zeros_like(x)])  # theirs asks once more, and multiplies by 0
    for t in scheduler.timesteps:
        eps_hat = network(x, torch.full((3,), float(t) / T))
        x = scheduler.step(eps_hat, t, x, variance_noise=next(fresh)).prev_sample
    assert len(noise) == steps - 1
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("eta", [0.5, 3.0])
def test_dpm_with_eta_is_the_formula_of_k_diffusion(ddpm: Ddpm, eta: float) -> None:
    """On x / alpha, the scale of k-diffusion's sample_dpmpp_2m_sde (midpoint), in float64."""
    steps = 6
    x_T = torch.randn(3, 1, 28, 28)
    ours, noise = sample(f"dpm-{steps}-eta{eta:g}-clip", DDPM, network, ddpm, x_T)
    taus, fresh = timesteps(T, steps), iter(noise)
    alpha = ddpm.alpha_bar.double().sqrt()
    sigma = ((1 - alpha**2) / alpha**2).sqrt()
    x = x_T.double() / alpha[T]
    before = None
    for t, s in itertools.pairwise(taus):
        eps_hat = network((alpha[t] * x).float(), torch.full((3,), t / T)).double()
        x0_hat = (x - sigma[t] * eps_hat).clamp(-1, 1)
        if s == 0:
            x = x0_hat
            break
        h = (sigma[t] / sigma[s]).log()
        x = sigma[s] / sigma[t] * (-eta * h).exp() * x + (1 - (-(1 + eta) * h).exp()) * x0_hat
        if before is not None:
            slope = h / before[1] * (x0_hat - before[0]) / 2
            x = x + (1 - (-(1 + eta) * h).exp()) * slope
        x = x + sigma[s] * (1 - (-2 * eta * h).exp()).sqrt() * next(fresh)
        before = (x0_hat, h)
    torch.testing.assert_close(ours.double(), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("sampler", ["ancestral", "ddim-7-eta1-clip", "dpm-7", "dpm-7-eta2-clip"])
@pytest.mark.parametrize("prediction", ["x0", "v"])
def test_a_network_that_predicts_the_same_in_other_terms_draws_the_same(
    sampler: str, prediction: str, ddpm: Ddpm
) -> None:
    config = DDPM.model_copy(update={"prediction": prediction})

    def translated(x: Tensor, time: Tensor) -> Tensor:
        alpha_bar = ddpm.alpha_bar[(time * T).round().long()][:, None, None, None].double()
        alpha, sigma, x_t = alpha_bar.sqrt(), (1 - alpha_bar).sqrt(), x.double()
        eps_hat = network(x, time).double()
        x0_hat = (x_t - sigma * eps_hat) / alpha
        return (x0_hat if prediction == "x0" else alpha * eps_hat - sigma * x0_hat).float()

    x_T = torch.randn(3, 1, 28, 28)
    wanted, _ = sample(sampler, DDPM, network, ddpm, x_T)
    found, _ = sample(sampler, config, translated, Ddpm.from_config(config), x_T)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("orientation", ["row", "col"])
def test_renoising_equals_a_loop_over_lines(orientation: str, group: int) -> None:
    config = AveragingConfig.model_validate(
        {"kind": "averaging", "orientation": orientation, "group": group, "noise": 0.8}
    )
    process = Averaging.from_config(config, seed=1, amplitude=0.5)
    steps = process.T
    x_T = process.degrade(torch.randn(3, 1, 28, 28), torch.full((3,), steps))
    ours, noise = sample("renoise", config, network, process, x_T)
    assert torch.equal(sample("unconditional", config, network, process, x_T)[0], ours)
    fresh = iter(noise)

    def rows(x: Tensor) -> Tensor:
        """Lines along dimension 2."""
        return x if orientation == "row" else x.transpose(2, 3)

    x = x_T
    for s in range(steps, 0, -1):
        x0_hat = rows(network(x, torch.full((3,), s / steps)))
        z = rows(next(fresh)) if s > 1 else torch.zeros_like(x)
        sigma = 0.8 * 0.5 * (s - 1) / steps
        lines = rows(x).clone()
        for image in range(3):
            for step, entry in enumerate(process.order.tolist(), 1):
                mean = rows(x)[image, 0, entry].mean()
                if step <= s - 1:
                    continue  # averaged in x_{s-1}, too
                own = x0_hat[image, 0, entry]
                own = own - own.mean() + mean
                lines[image, 0, entry] = own + sigma * (
                    z[image, 0, entry] - z[image, 0, entry].mean()
                )
        x = rows(lines)
    assert len(noise) == steps - 1
    torch.testing.assert_close(ours, x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("orientation", ["row", "col"])
def test_cold_algorithms_equal_the_papers_loops(orientation: str, group: int) -> None:
    config = AveragingConfig.model_validate(
        {"kind": "averaging", "orientation": orientation, "group": group}
    )
    process = Averaging.from_config(config, seed=1, amplitude=0.5)
    D, steps = process.degrade, process.T
    x_T = D(torch.randn(2, 1, 28, 28), torch.full((2,), steps))

    def restored(x: Tensor, s: int) -> Tensor:
        return network(x, torch.full((2,), s / steps))

    one = two = x_T
    for s in range(steps, 0, -1):
        now, then = torch.full((2,), s), torch.full((2,), s - 1)
        one = D(restored(one, s), then)
        x0_hat = restored(two, s)
        two = two - D(x0_hat, now) + D(x0_hat, then)
    for name, wanted in (
        ("algorithm1", one),
        ("algorithm2", two),
        ("direct", restored(x_T, steps)),
    ):
        ours = sample(name, config, network, process, x_T)[0]
        torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("name", ["algorithm1", "algorithm2", "direct"])
def test_cold_algorithms_with_a_perfect_restorer_return_the_image(name: str) -> None:
    process = Averaging.from_config(COLD, seed=1, amplitude=0.5)
    x0 = torch.randn(2, 1, 28, 28)
    x_T = process.degrade(x0, torch.full((2,), 28))
    x = sample(name, COLD, lambda x, t: x0, process, x_T)[0]
    torch.testing.assert_close(x, x0, rtol=1e-5, atol=1e-5)


def test_ddim_with_the_true_noise_returns_the_image(ddpm: Ddpm) -> None:
    x0, eps = torch.randn(2, 1, 28, 28), torch.randn(2, 1, 28, 28)
    x_T = ddpm.degrade(x0, torch.full((2,), T), eps)
    x = sample("ddim-7", DDPM, lambda x, t: eps, ddpm, x_T)[0]
    wanted = ddpm.degrade(x0, torch.zeros(2, dtype=torch.int64), eps)  # x at t = 0
    torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-4)


def test_noise_of_an_image_depends_on_its_index_alone() -> None:
    together, alone = ImageNoise(3, range(5), CPU), ImageNoise(3, [4], CPU)
    for _ in range(2 * CHUNK + 1):
        assert torch.equal(together()[4:], alone())
    assert not torch.equal(ImageNoise(3, [4], CPU)(), ImageNoise(4, [4], CPU)())


@pytest.mark.parametrize("sampler", ["ddim-5", "ancestral", "dpm-5"])
@pytest.mark.parametrize(
    "model",
    [
        CnnConfig(kind="cnn", channels=(4, 4)),
        UNetConfig(kind="unet", channels=(8, 16), patch=2, attention=True, dropout=0.1),
    ],
    ids=["cnn", "unet"],
)
def test_an_image_is_the_same_in_any_batch_and_bits_repeat(
    sampler: str, model: CnnConfig | UNetConfig, ddpm: Ddpm
) -> None:
    torch.manual_seed(0)
    net = build(model)
    with torch.no_grad():  # a U-Net begins as zero
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    spec = SamplerSpec.parse(sampler, DDPM)

    start = from_noise(ddpm)

    def images(batch: int, numbers: range) -> Tensor:
        return generate(
            net, ddpm, spec, start, seed=7, indices=numbers, amplitude=0.5, device=CPU, batch=batch
        )

    whole = images(6, range(6))
    assert torch.equal(images(6, range(6)), whole)
    torch.testing.assert_close(images(4, range(6)), whole, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(images(1, range(5, 6)), whole[5:], rtol=1e-3, atol=1e-4)
    assert net.training, "generate left the network as it found it"


def test_in_bf16_the_network_alone_computes_in_bfloat16(ddpm: Ddpm) -> None:
    torch.manual_seed(0)
    net, inputs, outputs = build(CnnConfig(kind="cnn", channels=(4, 4))), set(), set()
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda layer, x, y: outputs.add(y.dtype))
    net.register_forward_pre_hook(lambda net, x: inputs.add(x[0].dtype))

    def images(sampler: str) -> Tensor:
        return generate(
            net,
            ddpm,
            SamplerSpec.parse(sampler, DDPM),
            from_noise(ddpm),
            seed=7,
            indices=range(4),
            amplitude=0.5,
            device=CPU,
        )

    rounded = images("ddim-5-clip-bf16")
    assert (inputs, outputs, rounded.dtype) == ({torch.float32}, {torch.bfloat16}, torch.float32)
    exact = images("ddim-5-clip")
    assert outputs == {torch.bfloat16, torch.float32}
    assert 0 < (rounded - exact).abs().max() < 0.05


def test_every_name_has_a_sampler_and_every_sampler_a_name() -> None:
    assert list(DdpmConfig.samplers) == list(models.ddpm.SAMPLERS)
    assert list(AveragingConfig.samplers) == list(models.averaging.SAMPLERS)


@pytest.mark.parametrize(
    ("text", "steps", "eta", "message"),
    [
        ("ddpm", None, 0.0, "the samplers are ancestral, ddim, dpm"),
        ("algorithm2", None, 0.0, "the samplers are ancestral, ddim, dpm"),
        ("ddim-0", None, 0.0, "from 1 to T = 40"),
        ("ddim", 41, 0.0, "from 1 to T = 40"),
        ("ancestral", 50, 0.0, "takes 40 steps"),
        ("ddim", 10, 1.5, "eta must be"),
        ("dpm", 10, 21.0, "dpm: eta must be from 0 .* to 20, not 21"),
        ("ancestral-clip", None, 0.0, "clip is for ddim and dpm"),
        ("ancestral", None, 0.5, "eta is for ddim and dpm"),
        ("ddim-5-eta1.2.3", None, None, "as in ddim-50-eta0.5-clip"),
        ("ddim-5-eta.", None, None, "as in ddim-50-eta0.5-clip"),
        ("ddim-" + "9" * 5000, None, None, "as in ddim-50-eta0.5-clip"),
        ("ddim-5-w21", None, None, "guidance must be at most 20"),
        ("ddim-5", 3, None, "other steps or another eta"),
        ("ddim-5-eta1", None, 0.5, "other steps or another eta"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused(
    text: str, steps: int | None, eta: float | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        SamplerSpec.parse(text, DDPM, steps=steps, eta=eta)


@pytest.mark.parametrize(
    "text", ["ancestral", "ancestral-bf16", "ddim-7", "dpm-3-clip", "ddim-5-eta0.25-clip-bf16"]
)
def test_a_sampler_is_read_as_it_is_written(text: str) -> None:
    assert str(SamplerSpec.parse(text, DDPM)) == text
    tiny = SamplerSpec.parse("ddim-5", DDPM, eta=1e-5)
    assert SamplerSpec.parse(str(tiny), DDPM) == tiny
