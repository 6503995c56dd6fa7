"""Training, read from top to bottom.

Randomness of step s follows from (seed, s) and is drawn for the global batch, of which each rank
takes its slice; the data order of epoch e follows from (seed, e). So a run that was killed and
started again equals one that was not, and any number of ranks sees the same examples and noise.
To resume, run the same command again.
"""

from __future__ import annotations

import contextlib
import gc
import os
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffuse.config.schema import Config
from diffuse.data.tensors import load_split, to_x0
from diffuse.rundir import checkpoints, manifest
from diffuse.rundir.attempt import Attempt
from diffuse.rundir.directory import RunDir, open_run
from diffuse.runtime import console
from diffuse.runtime.distributed import World, join
from diffuse.runtime.errors import DiffuseError, Interrupted, Superseded
from diffuse.runtime.preemption import StopRequest
from diffuse.runtime.rng import Stream, derive_seed, generator
from diffuse.tracking.mirror import Mirror
from diffuse.training import pictures, resume
from diffuse.training.recorder import Recorder
from diffuse.training.state import TrainState

WRITE_EVERY_S = 5.0  # metrics and heartbeat, where log_every steps take longer


class Request(IntEnum):
    """What a rank wants done at a step boundary; the highest wish of any rank is done by all."""

    NONE = 0
    LOG = 1
    SAVE = 2
    STOP = 3
    SUPERSEDED = 4


def train(config: Config, runs_dir: Path, data_dir: Path, stop: StopRequest) -> RunDir | None:
    """Train the run of `config` until all its epochs are there; resumes what was begun.

    Returns the run directory on rank 0, None on the others.

    Raises UserError, EnvironmentFailed, TrainingFailed (a loss that is not finite), Interrupted
    (a signal asked to stop; saved) and Superseded (a newer attempt took over).
    """
    with join(config.system.device, config.system.collective_timeout_s) as world:
        try:
            run = _train(config, runs_dir, data_dir, stop, world)
            return run if world.is_main else None
        except (Interrupted, Superseded):
            if world.is_main:
                raise
            # Rank 0 alone says why all end: srun and torchrun kill it, perhaps while it saves,
            # as soon as another rank ends with an error.
            return None


def _train(
    config: Config, runs_dir: Path, data_dir: Path, stop: StopRequest, world: World
) -> RunDir:
    # ---- what is to be done: epochs whose checkpoint is not there, from the nearest one before
    settings, device = config.train, world.device
    if config.system.threads:
        torch.set_num_threads(config.system.threads)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = not settings.deterministic
    resume.check_batch(config, world)

    load_split(data_dir, "test")  # the pictures' and figures' part: damaged, it is refused now
    split = load_split(data_dir, "train", config.data.limit)
    if config.eval.in_training:
        from diffuse.evaluation.features import load_extractor

        load_extractor(config.eval.extractor, data_dir, torch.device("cpu"))  # refused now, too
    images = split.images.to(device)  # [N, 28, 28] uint8: all of it lives on the device
    steps_per_epoch = len(images) // settings.global_batch  # the last partial batch is dropped

    run = open_run(runs_dir, config)
    asked = config.evaluated_epochs
    last_epoch = asked[-1]
    if run.config_path.exists():
        config = resume.with_earlier_epochs(config, run.config())
    precision = world.from_main(resume.settle_precision(config, run, device))
    nothing: tuple[list[int], dict[str, Any] | None] = ([], None)
    missing, content = world.from_main(
        resume.plan(config, asked, run, steps_per_epoch) if world.is_main else nothing
    )
    if not missing and content is None:
        return run

    # ---- begin an attempt
    attempt = Attempt.claim(run) if world.is_main else None
    state = TrainState.fresh(config, device, precision)
    recorder = Recorder(world, state.process.T)
    environment = manifest.environment(world, precision)
    if content is not None:
        state.restore(content)
        recorder.load_state_dict(content["recorder"])
    if attempt is not None:
        attempt.remove_leftovers()
        run.write_config(config)
        manifest.write(run, world, precision, split.sha256)
        attempt.append_metrics(manifest.start_events(environment, content))
    forward = world.parallel(state.network)
    if settings.compile:
        forward = torch.compile(forward)  # type: ignore[assignment]
    final_step = last_epoch * steps_per_epoch
    saved_step = state.step
    order = torch.empty(0)
    order_epoch = 0
    shown = console.Meter(run.name, final_step, state.step, shown=world.is_main)
    clock = console.Clock(state.step, settings.global_batch)

    def facts(loss: float | None = None) -> dict[str, Any]:
        return {
            "epoch": state.step // steps_per_epoch,
            "epochs": last_epoch,
            "step": state.step,
            "steps_per_epoch": steps_per_epoch,
            "loss": loss,
            "images_per_s": clock.rate,
            "eta_s": clock.eta(final_step - state.step),
        }

    def write_metrics(epoch: int) -> None:
        """Bring the losses since the last time to disk, screen and heartbeat. On every rank."""
        events = recorder.fetch(epoch)
        clock.lap(state.step)
        if attempt is not None and events:
            speed = {"event": "speed", "epoch": epoch, "step": state.step}
            attempt.append_metrics([*events, {**speed, "images_per_s": clock.rate}])
            now = facts(events[-1]["loss"])
            attempt.publish_status("running", **now)
            shown.update(
                state.step,
                f"epoch {epoch}/{last_epoch}  loss {now['loss']:.4f}"
                f"  {now['images_per_s']:.0f} images/s  ETA {console.duration(now['eta_s'])}",
            )

    def save(path: Path) -> None:
        """Publish a checkpoint. On every rank, for the sums that it gathers."""
        nonlocal saved_step
        saved_step = state.step
        content = {
            "config": config.model_dump(mode="json"),
            "signature": config.signature,
            "epoch": state.step // steps_per_epoch,
            "environment": environment,
            "recorder": recorder.state_dict(),
            **state.payload(),
        }
        if attempt is not None:
            if not checkpoints.all_finite(content["model"]):
                raise DiffuseError(
                    f"the weights are no longer finite at step {state.step}; nothing was saved"
                    " since the last checkpoint; lower train.lr or try train.grad_clip=1"
                )
            attempt.check()
            checkpoints.write(path, content)
            made = {"epoch": content["epoch"], "step": state.step, "file": path.name}
            weights = checkpoints.weights_sha256(content)
            attempt.append_metrics([{"event": "checkpoint", **made, "weights": weights}])
            resume.retire(config, run, state.step, steps_per_epoch)
        clock.save(state.step)

    def show_epoch(epoch: int) -> None:
        """Pictures and figures of an epoch's checkpoint, where wanted and not there yet."""
        _draw(config, run, state, epoch, attempt, data_dir)
        if config.eval.in_training and epoch in config.evaluated_epochs:
            _judge(config, run.checkpoint_path(epoch), world, data_dir, stop)
        clock.pause(state.step)

    def own_request() -> Request:
        if stop.signal is not None:
            return Request.STOP
        if attempt is None:
            return Request.NONE
        if clock.since_save > 60 * config.checkpoint.every_minutes:
            return Request.SAVE
        if len(recorder.pending) >= config.system.log_every or clock.since_lap > WRITE_EVERY_S:
            return Request.LOG if attempt.is_current else Request.SUPERSEDED
        return Request.NONE

    mirror = Mirror(run, config, active=attempt is not None)
    try:
        if attempt is not None:
            attempt.publish_status("running", **facts())
        with shown:
            shown.say(_opening(config, last_epoch, run, state, world, precision, steps_per_epoch))
            if content is not None and state.step % steps_per_epoch == 0:
                show_epoch(state.step // steps_per_epoch)  # the earlier attempt may have died here
            while state.step < final_step:
                # ---- at the step boundary: what any rank wants, all do
                epoch, position = divmod(state.step, steps_per_epoch)
                epoch += 1
                request = Request(world.highest(own_request()))
                if request == Request.SUPERSEDED:
                    raise Superseded(f"{run.name}: a newer attempt took over; this one stops")
                if request >= Request.LOG:
                    write_metrics(epoch)
                if request >= Request.SAVE and state.step != saved_step:
                    save(
                        run.step_checkpoint_path(state.step)
                        if position
                        else run.checkpoint_path(epoch - 1)
                    )
                if request == Request.STOP:
                    name = stop.signal.name if stop.signal else "another rank's signal"
                    raise stop.end(
                        f"{run.name}: stopped by {name} at step {state.step}, saved; the same"
                        " command goes on from there"
                    )

                # ---- the step's examples, timesteps and noise: functions of (seed, epoch, step)
                if order_epoch != epoch:
                    order_epoch = epoch
                    rng = generator(config.seed, Stream.DATA_ORDER, epoch)
                    order = torch.randperm(len(images), generator=rng).to(device)
                state.step += 1
                start = position * settings.global_batch
                mine = world.share(settings.global_batch)
                indices = order[start : start + settings.global_batch][mine]
                x0 = to_x0(images[indices], config.data.amplitude)  # [B / ranks, 1, 28, 28]
                rng = generator(config.seed, Stream.STEP, state.step, device=device)
                t, eps = state.process.draw(settings.global_batch, rng)
                t, eps = t[mine], eps[mine]
                if getattr(config.model, "dropout", 0):
                    torch.manual_seed(
                        derive_seed(config.seed, Stream.DROPOUT, state.step, world.rank)
                    )

                # ---- forward, backward, update
                losses = state.backward(forward, x0, t, eps, precision, settings.accumulate)
                state.scaler.unscale_(state.optimizer)
                grads = [p.grad for p in state.network.parameters() if p.grad is not None]
                grad_norm = nn.utils.get_total_norm(grads)
                if settings.grad_clip is not None:
                    nn.utils.clip_grads_with_norm_(
                        state.network.parameters(), settings.grad_clip, grad_norm
                    )
                lr = settings.lr * min(1.0, state.step / max(1, settings.warmup_steps))
                for group in state.optimizer.param_groups:
                    group["lr"] = lr
                state.scaler.step(state.optimizer)
                state.scaler.update()
                state.optimizer.zero_grad(set_to_none=True)
                if state.ema is not None:
                    state.ema.update_parameters(state.network)
                recorder.add(state.step, lr, losses, t, grad_norm)

                # ---- at an epoch's end: metrics, then the checkpoint, then pictures
                if state.step % steps_per_epoch == 0:
                    write_metrics(epoch)
                    summary = recorder.end_epoch()
                    if attempt is not None:
                        attempt.append_metrics(
                            [{"event": "epoch", "epoch": epoch, "step": state.step, **summary}]
                        )
                        shown.say(
                            f"epoch {epoch}/{last_epoch}  loss {summary['loss']:.5f}"
                            f"  {clock.rate:.0f} images/s"
                        )
                    if (
                        epoch in config.evaluated_epochs
                        or epoch % config.checkpoint.every_epochs == 0
                    ):
                        save(run.checkpoint_path(epoch))
                    show_epoch(epoch)
        if attempt is not None:
            summaries = run.metrics("epoch") or [{}]
            attempt.publish_status("done", **{**facts(summaries[-1].get("loss")), "eta_s": 0.0})
    except BaseException as error:
        if attempt is not None and not isinstance(error, Superseded):
            with contextlib.suppress(OSError, DiffuseError):  # the first error is the one to tell
                ended = "interrupted" if getattr(error, "exit_code", 1) in (75, 130) else "failed"
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                attempt.publish_status(ended, **facts(), reason=reason)  # type: ignore[arg-type]
        raise
    finally:
        mirror.close()
    return run


def _draw(
    config: Config,
    run: RunDir,
    state: TrainState,
    epoch: int,
    attempt: Attempt | None,
    data_dir: Path,
) -> None:
    """Pictures of `epoch`, by rank 0, where they are wanted and not there yet."""
    if attempt is None or epoch not in config.sampled_epochs:
        return
    attempt.check()
    pictures.draw_epoch(config, run, state.process, state.best_network, epoch, data_dir)
    if all(event["epoch"] != epoch for event in run.metrics("samples")):
        attempt.append_metrics([{"event": "samples", "epoch": epoch, "step": state.step}])


def _judge(config: Config, path: Path, world: World, data_dir: Path, stop: StopRequest) -> None:
    """FID, KID and IS of the checkpoint just written, from few images, by all ranks."""
    from diffuse.evaluation.evaluator import Judge
    from diffuse.evaluation.judgement import evaluate_checkpoint

    world.highest(0)  # rank 0 has written it
    judge = Judge.make(config.eval.extractor, data_dir, world, stop)
    specs, n = config.sampler_specs(config.eval.samplers), config.eval.in_training
    evaluate_checkpoint(path, judge, world, specs, n, seed=0, stop=stop)
    del judge
    gc.collect()  # libraries leave cycles that hold sets of images: some 20 MB each time


def _opening(
    config: Config,
    last_epoch: int,
    run: RunDir,
    state: TrainState,
    world: World,
    precision: str,
    steps_per_epoch: int,
) -> str:
    start = f"from step {state.step}" if state.step else "from the beginning"
    return (
        f"{run.path}: training {start} to epoch {last_epoch}, {steps_per_epoch}"
        f" steps each, on {world.size} x {world.device.type} in {precision},"
        f" batch {config.train.global_batch}"
    )
