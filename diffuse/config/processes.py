"""The settings of the processes and the names of their samplers, without torch.

Another process is a class here, named in `AnyProcess`, and a file in diffuse/models/ with a case in
`build_process`.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from diffuse.config.sampler_spec import Method
from diffuse.config.section import IMAGE_SIZE, Section

FLOAT32_TINY = 2.0**-126  # the smallest that keeps its precision

Loss = Literal["mse", "l1", "huber"]
Prediction = Literal["eps", "x0", "v"]
Orientation = Literal["row", "col"]


LogNormal = tuple[Annotated[float, Field(ge=-10, le=10)], Annotated[float, Field(ge=0.01, le=100)]]


class ProcessConfig(Section):
    """The settings of a process and its samplers: all that is known of it without torch."""

    title: ClassVar[str]  # for messages
    samplers: ClassVar[Mapping[str, Method]]
    kind: str

    @property
    @abstractmethod
    def T(self) -> int:
        """The last timestep."""

    @property
    @abstractmethod
    def evaluated(self) -> tuple[str, ...]:
        """The samplers of its figures, unless others are asked for."""

    @property
    @abstractmethod
    def pictured(self) -> tuple[str, ...]:
        """The samplers of training's pictures; the last one's images are the run's samples."""

    @property
    def variant(self) -> str | None:
        """A word for the run's name that tells variants of one preset apart."""
        return None


class DdpmConfig(ProcessConfig):
    """Gaussian noise on the linear schedule of Ho et al. 2020, section 4."""

    title = "DDPM"
    samplers: ClassVar = {
        "ancestral": Method("Ancestral", "noise", guidance=True),
        "ddim": Method(
            "DDIM", "noise", 50, any_steps=True, largest_eta=1, guidance=True, clip=True
        ),
        "dpm": Method(
            "DPM-Solver++", "noise", 20, any_steps=True, largest_eta=20, guidance=True, clip=True
        ),
    }
    kind: Literal["ddpm"] = Field(description="denoising diffusion")
    timesteps: int = Field(
        1000, ge=1, le=100_000, description="T; beta and alpha_bar have T + 1 values"
    )
    # Within these, float32 tells alpha_bar_1 from 1 and beta_T from 1: samplers divide by both.
    beta_1: float = Field(1e-4, ge=1e-6, lt=1, description="beta at t = 0")
    beta_2: float = Field(0.02, gt=0, le=0.999, description="beta at t = T")
    prediction: Prediction = Field(
        "eps", description="output of the network; v as in Salimans & Ho 2022"
    )
    loss: Loss = Field("mse", description="between the wanted output and the network's")
    weight: Literal["output", "eps"] = Field(
        "output", description="the error that counts alike at all noise levels: output's or eps's"
    )
    min_snr: float | None = Field(
        None, gt=0, description="gamma of the min-SNR weights (Hang et al. 2023); null: none"
    )
    log_sigma: LogNormal | None = Field(
        None,
        description="mean and deviation of ln sigma in training, sigma as in Karras et al. 2022;"
        " null: timesteps are drawn uniformly",
    )

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if self.beta_1 > self.beta_2:
            raise ValueError(f"beta_1 ({self.beta_1}) must not exceed beta_2 ({self.beta_2})")
        return self

    @model_validator(mode="after")
    def _has_one_weight(self) -> Self:
        if self.min_snr is not None and self.weight != "output":
            raise ValueError("min_snr and weight = eps exclude each other: set min_snr to null")
        return self

    @model_validator(mode="after")
    def _leaves_a_signal(self) -> Self:
        """alpha_bar_T stays a float32: samplers divide by it."""
        T = self.timesteps
        slope = (self.beta_2 - self.beta_1) / T
        log_alpha_bar = sum(math.log1p(-(self.beta_1 + slope * t)) for t in range(T + 1))
        if log_alpha_bar < math.log(FLOAT32_TINY):
            raise ValueError(
                f"with timesteps = {T} and beta_2 = {self.beta_2} nothing of an image is left:"
                f" alpha_bar_T is 1e{log_alpha_bar / math.log(10):.0f}, and float32 ends at"
                f" {FLOAT32_TINY:.0e}; lower either"
            )
        return self

    @property
    def T(self) -> int:
        return self.timesteps

    @property
    def evaluated(self) -> tuple[str, ...]:
        return ("ddim-eta1-clip",)

    @property
    def pictured(self) -> tuple[str, ...]:
        return self.evaluated


class AveragingConfig(ProcessConfig):
    """Cold diffusion (Bansal et al. 2022) whose degradation averages rows or columns one by one."""

    title = "cold diffusion"
    samplers: ClassVar = {
        "algorithm1": Method("Algorithm 1", "test images"),
        "algorithm2": Method("Algorithm 2", "test images"),
        "renoise": Method("Renoising", "test images"),
        "direct": Method("Direct prediction", "test images", 1),
        "unconditional": Method("From the prior", "prior"),
        "uniform": Method("From uniform means", "uniform means"),
    }
    kind: Literal["averaging"] = Field(description="cold diffusion")
    orientation: Orientation = Field(description="the lines that are averaged")
    group: int = Field(1, ge=1, description="adjacent lines replaced by one mean at each step")
    order: Literal["random", "inside-out", "outside-in"] = Field(
        "random", description="in which lines are averaged"
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=10,
        description="of the lines not yet averaged, in amplitudes, at t = T; it falls to 0 with t",
    )
    loss: Loss = Field("mse", description="between the image and its prediction")

    @field_validator("group")
    @classmethod
    def _divides(cls, group: int) -> int:
        if IMAGE_SIZE % group:
            allowed = ", ".join(str(g) for g in range(1, IMAGE_SIZE + 1) if IMAGE_SIZE % g == 0)
            raise ValueError(f"{group} does not divide {IMAGE_SIZE}; allowed: {allowed}")
        return group

    @property
    def T(self) -> int:
        """After T steps every line is averaged."""
        return IMAGE_SIZE // self.group

    @property
    def variant(self) -> str:
        return self.orientation

    @property
    def evaluated(self) -> tuple[str, ...]:
        return ("renoise" if self.noise else "algorithm2", "direct", "unconditional")

    @property
    def pictured(self) -> tuple[str, ...]:
        return ("direct", "renoise" if self.noise else "algorithm2")


AnyProcess = Annotated[DdpmConfig | AveragingConfig, Field(discriminator="kind")]
