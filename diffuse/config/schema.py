"""Settings of a run, frozen and validated, and the signature of those that its weights depend on.

presets.py reads them from YAML files and the command line.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from diffuse.config.processes import AnyProcess
from diffuse.config.ranges import Ranges
from diffuse.config.sampler_spec import SamplerSpec
from diffuse.config.section import IMAGE_SIZE, CommaSeparated, Section
from diffuse.runtime.errors import UserError

TRAIN_IMAGES = 60_000
# Settings of training that change no step: a step is the same, bit for bit, as a CUDA graph.
UNSIGNED = ("epochs", "graph")
IS_SPLITS = 10  # of the images, over which the inception score is a mean

Epochs = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Ranges]


class CnnConfig(Section):
    """The report's network: 7 x 7 convolutions at full resolution."""

    classes: ClassVar[int] = 0  # it takes no labels and has no dropout, unlike the U-Net
    dropout: ClassVar[float] = 0.0
    kind: Literal["cnn"] = Field(description="7 x 7 convolutions at full resolution")
    channels: Annotated[tuple[Annotated[int, Field(ge=1, le=4096)], ...], CommaSeparated] = Field(
        (16, 32, 32, 16), min_length=1, description="of each block"
    )
    activation: Literal["gelu", "selu", "relu", "silu"] = Field(
        "gelu", description="after each block's layer norm, and of the time's layers"
    )


class UNetConfig(Section):
    """A small U-Net: one entry of `channels` per resolution."""

    kind: Literal["unet"] = Field(description="residual blocks at several resolutions")
    channels: Annotated[tuple[Annotated[int, Field(ge=8, le=4096)], ...], CommaSeparated] = Field(
        (32, 64, 128), min_length=1, description="of each resolution, each half of the one before"
    )
    blocks: int = Field(2, ge=1, le=16, description="residual blocks per resolution and side")
    patch: Literal[1, 2, 4] = Field(
        1, description="fold p x p pixels into channels at the entrance"
    )
    attention: bool = Field(False, description="self-attention at the lowest resolution")
    after_attention: int = Field(
        0, ge=0, le=16, description="residual blocks after it, there; Ho et al. have one"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="in the residual blocks")
    classes: Literal[0, 10] = Field(0, description="labels that the network is told; 0: none")

    @field_validator("channels")
    @classmethod
    def _groups_of_eight(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if any(c % 8 for c in channels):
            raise ValueError("each must be a multiple of 8 (the group norm's groups)")
        return channels

    @model_validator(mode="after")
    def _resolutions(self) -> Self:
        if len(self.channels) > (allowed := {1: 3, 2: 2, 4: 1}[self.patch]):
            raise ValueError(
                f"channels has {len(self.channels)} resolutions, but {IMAGE_SIZE} pixels with"
                f" patch {self.patch} can be halved for at most {allowed}"
            )
        return self


class DataConfig(Section):
    limit: int | None = Field(
        None, ge=1, le=TRAIN_IMAGES, description="the first N training images only"
    )
    amplitude: float = Field(0.5, gt=0, le=10, description="images lie in [-amplitude, amplitude]")


class PowerAverage(Section):
    """An average of the weights by powers of the step (Karras et al. 2024)."""

    gamma: float = Field(gt=0, description="the weights of step n enter in proportion to n^gamma")


def _form(average: Any) -> str:
    return "a decay:" if isinstance(average, float | int | str) else "a power:"


# Its form decides by which of the two a wrong value is explained.
Average = Annotated[
    Annotated[float, Field(ge=0, lt=1), Tag("a decay:")] | Annotated[PowerAverage, Tag("a power:")],
    Discriminator(_form),
]


class TrainConfig(Section):
    epochs: int = Field(20, ge=1, description="times over the training images")
    global_batch: int = Field(128, ge=1, description="images per step over all ranks")
    lr: float = Field(2e-4, gt=0, description="learning rate")
    optimizer: Literal["adam", "muon"] = Field(
        "adam", description="muon: for hidden layers' weights, with Adam for the rest"
    )
    warmup_steps: int = Field(0, ge=0, description="the rate rises linearly to lr, then stays")
    lr_decay_from_images: int | None = Field(
        None, ge=1, description="from there the rate falls with the root of the images trained on"
    )
    ema: Average | None = Field(
        None, description="the weights' moving average: its decay, or {gamma: 6} for powers of n"
    )
    label_dropout: float = Field(
        0.1, ge=0, le=1, description="share of examples without their label, for guidance"
    )
    grad_clip: float | None = Field(None, gt=0, description="largest gradient norm")
    accumulate: int = Field(1, ge=1, description="micro-batches per step and rank")
    amp: Literal["auto", "bf16", "fp16", "fp32"] = Field(
        "auto", description="precision of the network; auto: bf16 where the device has it"
    )
    compile: bool = Field(False, description="the network by torch.compile: needs a C++ compiler")
    graph: Literal["auto", True, False] = Field(
        "auto",
        description="each step as one CUDA graph; auto: on one GPU, in bf16 or fp32, uncompiled",
    )
    deterministic: bool = Field(False, description="bitwise repeatable on CUDA, slower")

    def graph_obstacle(self, on_gpu: bool, world_size: int, precision: str) -> str | None:
        """The reason why a step cannot be one CUDA graph there; None where it can."""
        if not on_gpu:
            return "needs a GPU"
        if world_size > 1:
            return f"is for one rank, not {world_size}"
        if precision == "fp16":
            return "is for bf16 and fp32, not fp16"
        return "does not go with train.compile" if self.compile else None


class CheckpointConfig(Section):
    keep: Literal["asked", "all"] = Field(
        "asked", description="eval.at_epochs and the last, or all"
    )
    every_epochs: int = Field(1, ge=1, description="how often the rolling checkpoint is written")
    every_minutes: float = Field(10.0, gt=0, description="and within an epoch, not later than")
    apart_s: float = Field(
        60.0, ge=0, description="seconds before the rolling checkpoint is written again"
    )


class SamplesConfig(Section):
    """The picture grids drawn during training."""

    at_epochs: Epochs | None = Field(
        None,
        description="default: 1, eval.at_epochs and the last. Pictures change no weights",
    )
    images: int = Field(16, ge=1, le=1024, description="in each picture")
    samplers: Annotated[tuple[str, ...], CommaSeparated] | None = Field(
        None, min_length=1, description="default: the process's own"
    )
    steps: int | None = Field(
        None, ge=1, description="network evaluations, at most T; default: the sampler's own"
    )


def judgeable(n: int) -> int:
    """n, where so many images can be judged; ValueError where not."""
    if n < 2 * IS_SPLITS:
        raise ValueError(
            f"{n} images are too few: IS is a mean over {IS_SPLITS} splits of at least 2;"
            f" use {2 * IS_SPLITS} or more"
        )
    if n % IS_SPLITS:
        below = n - n % IS_SPLITS
        raise ValueError(
            f"{n} images do not make {IS_SPLITS} equal splits, over which IS is a mean;"
            f" use {below} or {below + IS_SPLITS}"
        )
    return n


class EvalConfig(Section):
    at_epochs: Epochs = Field(
        (), description="checkpoints kept and evaluated, as 20,40 or 5-100:5; the last always is"
    )
    images: Annotated[int, AfterValidator(judgeable)] = Field(
        1000, description="generated images per figure"
    )
    final_images: Annotated[int, AfterValidator(judgeable)] | None = Field(
        None,
        description="images of a further, robust figure of the last epoch, such as 10000; null:"
        " none. It stands in a table of its own: figures of other numbers cannot be compared",
    )
    in_training: Annotated[int, AfterValidator(lambda n: n and judgeable(n))] = Field(
        0,
        description="images that training itself judges as soon as it reaches such an epoch,"
        " for curves while it runs; 0: only diffuse.evaluate or a sweep judges, afterwards",
    )
    samplers: Annotated[tuple[str, ...], CommaSeparated] | None = Field(
        None,
        min_length=1,
        description="the first is the model's usual one; default: the process's own",
    )
    extractor: Literal["classifier", "inception"] = Field(
        "classifier", description="by whose features images are judged"
    )


class TrackingConfig(Section):
    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online where there is a key and a network, else offline"
    )
    project: str = Field("diffuse", min_length=1, max_length=128, description="W&B's project")
    entity: str | None = Field(None, description="W&B's team or user; default: the key's own")
    end_s: float = Field(
        30.0, gt=0, le=3600, description="the longest wait for W&B at a program's end"
    )
    log_checkpoints: bool = Field(False, description="upload kept checkpoints as artifacts")


class SystemConfig(Section):
    """The machine and its use; never part of the run's signature."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: CUDA where there is a GPU"
    )
    threads: int | None = Field(
        None, ge=1, le=1024, description="CPU threads per rank; default: torch's"
    )
    log_every: int = Field(50, ge=1, description="steps between writes of metrics.jsonl")
    log_apart_s: float = Field(1.0, ge=0, description="and seconds between them, at least")
    collective_timeout_s: float = Field(
        600.0, gt=0, description="a collective that hangs longer ends"
    )


class Config(Section):
    """One run, fully resolved."""

    preset: str = Field(description="the name of the preset, for people; not part of the signature")
    seed: int = Field(75016, ge=0, lt=2**63, description="of all that is drawn")
    process: AnyProcess
    model: Annotated[CnnConfig | UNetConfig, Field(discriminator="kind")]
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    samples: SamplesConfig = SamplesConfig()
    eval: EvalConfig = EvalConfig()
    tracking: TrackingConfig = TrackingConfig()
    system: SystemConfig = SystemConfig()

    @model_validator(mode="after")
    def _batch_fits(self) -> Self:
        images = self.data.limit or TRAIN_IMAGES
        if images < self.train.global_batch:
            raise ValueError(
                f"train.global_batch ({self.train.global_batch}) is more than the training images"
                f" ({images}; data.limit): an epoch would have no step"
            )
        return self

    @model_validator(mode="after")
    def _samplers_fit(self) -> Self:
        for key, names in (("eval", self.eval.samplers), ("samples", self.samples.samplers)):
            try:
                self.sampler_specs(names)
            except UserError as error:
                raise ValueError(f"{key}.samplers: {error}") from None
        return self

    def sampler_specs(self, names: Sequence[str] | None) -> tuple[SamplerSpec, ...]:
        """The samplers of these names, by default those of eval.samplers or the process's own.

        Raises UserError where one does not fit the process.
        """
        names = names or self.eval.samplers or self.process.evaluated
        return tuple(self.sampler_spec(name) for name in names)

    def sampler_spec(self, name: str, **more: Any) -> SamplerSpec:
        """The sampler of this name, with the settings `more` of SamplerSpec.parse.

        Raises UserError where it does not fit the process or the network.
        """
        spec = SamplerSpec.parse(name, self.process, **more)
        if spec.guidance and not self.model.classes:
            raise UserError(f"sampler {name}: guidance needs a network with labels (model.classes)")
        return spec

    def picture_specs(self) -> tuple[SamplerSpec, ...]:
        """The samplers of training's pictures, with `samples.steps` where steps can be chosen."""
        specs = self.sampler_specs(self.samples.samplers or self.process.pictured)
        if self.samples.steps is None:
            return specs
        steps = min(self.samples.steps, self.process.T)
        return tuple(replace(s, steps=steps) if s.method.any_steps else s for s in specs)

    @property
    def signature(self) -> str:
        """Eight hex digits of all that the weights depend on.

        Settings left at their default are not hashed, so a setting added in a later version leaves
        the signatures of earlier runs as they are; in return, a released default never changes.
        """
        kept = self.model_dump(
            mode="json",
            exclude_defaults=True,
            exclude={
                "preset": True,
                "checkpoint": True,
                "samples": True,
                "eval": True,
                "tracking": True,
                "system": True,
                "train": set(UNSIGNED),
            },
        )
        if not kept.get("train"):
            kept.pop("train", None)
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def run_name(self) -> str:
        """`ddpm-default-1a2b3c4d`, `cold-default_28-row-5e6f7a8b`: the run directory's name."""
        slug = re.sub(r"[^A-Za-z0-9_.]+", "-", self.preset).strip("-.") or "run"
        return "-".join(filter(None, (slug, self.process.variant, self.signature)))

    @property
    def evaluated_epochs(self) -> tuple[int, ...]:
        """The epochs whose checkpoints are kept and evaluated, in order; the last is among them."""
        asked = {epoch for epoch in self.eval.at_epochs if epoch <= self.train.epochs}
        return tuple(sorted(asked | {self.train.epochs}))

    @property
    def sampled_epochs(self) -> tuple[int, ...]:
        """The epochs at which training draws a grid of samples."""
        if self.samples.at_epochs is None:
            return tuple(sorted({1, *self.evaluated_epochs}))
        return tuple(sorted(set(self.samples.at_epochs)))

    def to_yaml(self) -> str:
        """All settings, resolved, as YAML."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
