"""A trained model from where it lies: a run directory, a checkpoint, or a weight file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffuse.config.presets import resolve
from diffuse.config.sampler_spec import SamplerSpec
from diffuse.config.schema import Config
from diffuse.config.validation import Layer
from diffuse.data.tensors import load_split, to_x0
from diffuse.models import build, build_process
from diffuse.models.process import Observer, OnStep, Process
from diffuse.rundir import checkpoints
from diffuse.rundir.directory import RunDir
from diffuse.runtime import console
from diffuse.runtime.errors import UserError, first_line
from diffuse.runtime.options import default_data_dir, typed_model
from diffuse.sampling import prior, published_weights, weight_file
from diffuse.sampling.generate import (
    Start,
    from_images,
    from_noise,
    from_prior,
    from_uniform,
    generate,
)
from diffuse.sampling.prior import Prior


@dataclass
class Trained:
    """Network (averaged weights where there are any), process, sampler, and where it is from."""

    name: str
    config: Config
    process: Process
    network: nn.Module
    epoch: int
    device: torch.device
    run: RunDir | None = None
    step: int | None = None  # not known of a report's weight file
    prior: Prior | None = None  # of fully degraded images; fitted when first asked for
    figures: list[dict[str, Any]] = field(default_factory=list)  # those that an exported file has

    @property
    def sampler(self) -> SamplerSpec:
        """The usual sampler: eval.samplers' first, or else the process's."""
        return self.config.sampler_specs(None)[0]

    def spec(self, text: str, *, steps: int | None = None, eta: float | None = None) -> SamplerSpec:
        """A sampler by name, such as `ddim-50`; UserError where it does not fit the process."""
        return self.config.sampler_spec(text, steps=steps, eta=eta)

    def sample(
        self,
        n: int = 16,
        *,
        sampler: SamplerSpec | str | None = None,
        seed: int = 0,
        first_index: int = 0,
        batch: int = 256,
        digit: int | None = None,
        originals: Tensor | None = None,
        data_dir: Path | None = None,
        on_step: OnStep = lambda done, total: None,
        observe: Observer = lambda t, x, x0_hat: None,
    ) -> Tensor:
        """Images [n, 1, 28, 28] in [-amplitude, amplitude], not clamped, on the CPU.

        Image i of a seed depends on neither n nor batch. The conditional cold samplers restore
        `originals` [n, 1, 28, 28] (default: the test images from `first_index` on).

        Args:
            digit: of all images, for a model with labels; default: each image's is drawn.
            observe: called for each batch with t, x_t and the network's x0_hat, from x_T to x_0.

        Raises UserError for a digit where the model knows none.
        """
        classes = self.config.model.classes
        if digit is not None and not 0 <= digit < classes:
            known = "no labels (model.classes=10 trains them; ddpm/unet_labels has them)"
            if classes:
                known = f"the labels 0 to {classes - 1}"
            raise UserError(f"digit {digit}: {self.name} has {known}")
        spec = self.sampler if sampler is None else sampler
        spec = self.spec(spec) if isinstance(spec, str) else spec
        indices = range(first_index, first_index + n)
        if spec.is_conditional and originals is not None:
            start = from_images(self.process, originals, first_index)
        else:
            start = self.start(spec, seed, indices, data_dir)
        return generate(
            self.network,
            self.process,
            spec,
            start,
            seed=seed,
            indices=indices,
            device=self.device,
            amplitude=self.config.data.amplitude,
            labels=None if digit is None else [digit] * n,
            batch=batch,
            on_step=on_step,
            observe=observe,
        )

    def start(
        self, spec: SamplerSpec, seed: int, indices: range, data_dir: Path | None = None
    ) -> Start:
        """Where `spec` starts to sample the images `indices`: noise, the prior or test images."""
        match spec.method.source:
            case "noise":
                return from_noise(self.process)
            case "prior":
                amplitude = self.config.data.amplitude
                return from_prior(self.process, self.fit_prior(data_dir), seed, amplitude)
            case "uniform means":
                return from_uniform(self.process, seed, self.config.data.amplitude)
            case "test images":
                return from_images(self.process, self.originals(indices, data_dir), indices.start)

    def originals(self, indices: Sequence[int], data_dir: Path | None = None) -> Tensor:
        """The test images of these numbers [n, 1, 28, 28], in this model's range."""
        images = load_split(data_dir or default_data_dir(), "test").images
        if max(indices) >= len(images):
            raise UserError(
                f"image {max(indices)} was asked for, but there are {len(images)} test images to"
                " restore; use fewer, or --sampler unconditional"
            )
        return to_x0(images[list(indices)], self.config.data.amplitude)

    def fit_prior(self, data_dir: Path | None = None) -> Prior:
        """The distribution of fully degraded training images; a run keeps it in prior.h5."""
        if self.prior is None:
            limit, seed = self.config.data.limit, self.config.seed
            split = load_split(data_dir or default_data_dir(), "train", limit)

            def fitted() -> Prior:
                return prior.fit(split.images, self.process, seed)

            if self.run is None:
                self.prior = fitted()
            else:
                process = self.config.process.model_dump(mode="json")
                key = json.dumps([prior.VERSION, split.sha256, limit, seed, process])
                self.prior = prior.kept(self.run.path / "prior.h5", key, fitted)
        return self.prior


def load(
    path: str | Path, *, epoch: int | None = None, device: torch.device | str = "cpu"
) -> Trained:
    """The model at `path`: a run directory (its last epoch, or `epoch`), a checkpoint, an exported
    file, one of the report's, or the name of shipped weights.

    Raises UserError where it is missing, damaged or something else.
    """
    path, device = typed_model(path), torch.device(device)
    if epoch is not None and not path.is_dir():
        raise UserError(f"an epoch is chosen of a run directory, and {path} is none")
    if path.is_dir():
        run = RunDir(path)
        return _from_checkpoint(run.name, _checkpoint_of(run, epoch), device, run)
    if path.suffix == ".pth":
        config, process, network, at = published_weights.read(path)
        process.to(device)
        if published_weights.activation_is_guessed(path):
            console.note(f"{path}: GELU is assumed: its name is none of the report's")
        return Trained(path.stem, config, process, network.to(device).eval(), at, device)
    if path.suffix == ".safetensors":
        return _from_weight_file(path, device)
    content = checkpoints.read(path)
    in_run = RunDir(path.parent.parent) if path.parent.name == "checkpoints" else None
    return _from_checkpoint(in_run.name if in_run else path.stem, content, device, in_run)


def config_of(path: Path) -> Config:
    """The config of the model at `path`, without its weights where they are not needed."""
    if path.is_dir():
        return RunDir(path).config()
    if path.suffix == ".pth":
        return published_weights.read(path)[0]
    if path.suffix == ".safetensors":
        return resolve([Layer(str(path), weight_file.read(path)[0].config)])
    return resolve([Layer(str(path), checkpoints.read(path)["config"])])


def _checkpoint_of(run: RunDir, epoch: int | None) -> dict[str, Any]:
    trained = run.trained_epochs()
    if not trained:
        raise UserError(f"{run.path}: no checkpoints/epoch_*.pt here; is it a run directory?")
    if epoch is not None and epoch not in trained:
        known = ", ".join(map(str, trained))
        raise UserError(
            f"{run.path}: no checkpoint of epoch {epoch}; there are {known}"
            f" (train it with --set eval.at_epochs={epoch})"
        )
    return checkpoints.read(run.checkpoint_path(trained[-1] if epoch is None else epoch))


def _from_weight_file(path: Path, device: torch.device) -> Trained:
    facts, tensors = weight_file.read(path)
    content = {
        "config": facts.config,
        "model": weight_file.part(tensors, "network"),
        "ema": None,
        "process": weight_file.part(tensors, "process"),
        "epoch": facts.epoch,
        "step": facts.step or 0,
    }
    model = _from_checkpoint(facts.name, content, device, None)
    model.step, model.figures = facts.step, facts.figures
    if fitted := weight_file.part(tensors, "prior"):
        kept = {name: fitted[name].double() for name in prior.TENSORS}
        model.prior = Prior(**kept, held_out={})
    return model


def _from_checkpoint(
    name: str, content: dict[str, Any], device: torch.device, run: RunDir | None
) -> Trained:
    config = resolve([Layer(f"{name}'s checkpoint", content["config"])])
    network = build(config.model)
    try:
        network.load_state_dict(content["model"] if content["ema"] is None else content["ema"])
        process = build_process(config)
        process.load_state_dict(content["process"])
        epoch, step = int(content["epoch"]), int(content["step"])
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"{name}: its checkpoint does not fit its config: {first_line(error)}"
        ) from None
    process.to(device)
    network.to(device).eval()
    return Trained(name, config, process, network, epoch, device, run, step)
