"""The epochs of a run that remain to be done, and from which checkpoint."""

from __future__ import annotations

from typing import Any

import torch

from diffuse.config.schema import Config
from diffuse.rundir import checkpoints
from diffuse.rundir.directory import RunDir
from diffuse.runtime import console, files
from diffuse.runtime.device import DTYPES, Precision, resolve_precision
from diffuse.runtime.distributed import World
from diffuse.runtime.errors import UserError


def check_batch(config: Config, world: World) -> None:
    """Raises UserError where a batch has no equal parts for ranks and micro-batches."""
    batch, parts = config.train.global_batch, world.size * config.train.accumulate
    if batch % parts:
        raise UserError(
            f"train.global_batch={batch} must be a multiple of ranks x train.accumulate"
            f" ({world.size} x {config.train.accumulate})"
        )


def settle_precision(
    config: Config, run: RunDir, content: dict[str, Any] | None, device: torch.device
) -> Precision:
    """The precision that the run first started with, else the result of `auto` on this device.

    Args:
        content: of the checkpoint to start from, which knows it where the manifest is lost.
    """
    stored = files.read_json(run.manifest_path).get("precision")
    if stored not in DTYPES and content is not None:
        stored = content["environment"].get("precision")
    if config.train.amp == "auto" and stored in DTYPES:
        try:
            return resolve_precision(stored, device)
        except UserError as error:
            raise UserError(f"{run.name} was started in {stored}. {error}") from None
    return resolve_precision(config.train.amp, device)


def with_earlier_epochs(config: Config, earlier: Config) -> Config:
    """`config` that also keeps the epochs asked for in earlier calls, where it comes to them."""
    kept = tuple(sorted({*config.evaluated_epochs, *earlier.evaluated_epochs}))
    return config.model_copy(
        update={
            "eval": config.eval.model_copy(update={"at_epochs": kept}),
            "train": config.train.model_copy(update={"epochs": kept[-1]}),
        }
    )


def plan(
    config: Config, asked: tuple[int, ...], run: RunDir, steps_per_epoch: int
) -> tuple[bool, dict[str, Any] | None]:
    """Whether all is done; if not, the checkpoint to start from (None: from the beginning).

    Where only the pictures of the last epoch are missing, that is the last epoch's checkpoint.

    Args:
        asked: the epochs that this call wants, in order.
    """
    missing = []
    content = None
    for epoch in asked:
        try:
            content = checkpoints.read(run.checkpoint_path(epoch))
        except UserError as error:
            if run.has_epoch(epoch):
                console.note(f"{error}; it is made again")
            missing.append(epoch)
    if not missing:
        _note_gaps(run, content)
        return (True, None) if _is_closed(config, asked[-1], run) else (False, content)
    content = checkpoints.latest(
        run,
        until_step=missing[0] * steps_per_epoch,
        steps_per_epoch=steps_per_epoch,
        warn=console.note,
    )
    _note_gaps(run, content)
    return False, content


def _is_closed(config: Config, last: int, run: RunDir) -> bool:
    """Whether nothing is left to do after the checkpoint of epoch `last`, such as its pictures."""
    drawn = last not in config.sampled_epochs or run.has_samples(last)
    return run.status().get("state") == "done" and run.config_path.exists() and drawn


def _note_gaps(run: RunDir, content: dict[str, Any] | None) -> None:
    """Say it where losses before this checkpoint are lost: going on does not bring them back."""
    steps = content["step"] if content else 0
    known = {event["step"] for event in run.metrics("step")}
    if gaps := len(set(range(1, steps + 1)) - known):
        console.note(
            f"{run.metrics_path}: the losses of {gaps} of {steps} steps are missing or damaged"
            " (a run under another --runs-dir has them again; the weights are not affected)"
        )
