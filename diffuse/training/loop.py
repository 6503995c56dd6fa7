"""Training, read from top to bottom.

Each step is a function of (seed, step) and of the state before it, so a run that was killed and
started again equals one that was not. To resume, run the same command again.
"""

from __future__ import annotations

import gc
import os
from enum import IntEnum
from functools import partial
from pathlib import Path

import torch

from diffuse.config.schema import Config
from diffuse.data.tensors import Split, load_split
from diffuse.rundir import manifest
from diffuse.rundir.attempt import Attempt, Bystander
from diffuse.rundir.checkpoints import Checkpoints
from diffuse.rundir.directory import RunDir, open_run
from diffuse.runtime.distributed import World, join
from diffuse.runtime.errors import Superseded
from diffuse.runtime.preemption import StopRequest
from diffuse.training import graph, pictures, resume
from diffuse.training.batches import Batches
from diffuse.training.log import TrainLog
from diffuse.training.schedule import Schedule
from diffuse.training.state import TrainState


class Request(IntEnum):
    """A rank's wish at a step boundary; the highest wish of any rank is carried out by all."""

    NONE = 0
    LOG = 1
    SAVE = 2
    STOP = 3
    SUPERSEDED = 4


def train(config: Config, runs_dir: Path, data_dir: Path, stop: StopRequest) -> RunDir | None:
    """Train the run of `config` until it has all its epochs; an interrupted run is resumed.

    Returns the run directory on rank 0, None on the others.

    Raises UserError, EnvironmentFailed, TrainingFailed (a loss that is not finite), Interrupted
    (a signal asked to stop; saved) and Superseded (a newer attempt took over).
    """
    with join(config.system.device, config.system.collective_timeout_s, stop) as world:
        run = _train(config, runs_dir, data_dir, stop, world)
        return run if world.is_main else None
    return None  # another rank than 0, and all were interrupted


def _train(
    config: Config, runs_dir: Path, data_dir: Path, stop: StopRequest, world: World
) -> RunDir:
    # ---- the work: epochs whose checkpoint is missing, from the nearest one before them
    _configure_torch(config)
    resume.check_batch(config, world)
    split = _load_data(config, data_dir)
    run = open_run(runs_dir, config)
    asked = config.evaluated_epochs
    if run.config_path.exists():
        config = resume.with_earlier_epochs(config, run.config())
    schedule = Schedule.of(config, len(split.images), epochs=asked[-1])
    done, content = world.from_main(
        resume.plan(config, asked, run, schedule.steps_per_epoch)
        if world.is_main
        else (False, None)
    )
    if done:
        return run
    precision = world.from_main(resume.settle_precision(config, run, content, world.device))
    as_graph = graph.is_wanted(config.train, world, precision)

    # ---- begin an attempt
    attempt = Attempt.claim(run) if world.is_main else Bystander(run)
    environment = manifest.environment(world, precision)
    state = TrainState.fresh(config, world.device, precision, as_graph)
    if content is not None:
        state.restore(content)
    if attempt.publishes:
        attempt.remove_leftovers()
        run.write_config(config)
        manifest.write(run, world, precision, split.sha256)
        attempt.append_metrics(manifest.start_events(environment, content))
    images = split.images.to(world.device)  # [N, 28, 28] uint8: all of it lives on the device
    labels = split.labels.to(world.device)
    batches = Batches(config, schedule, images, state.process, world, labels)
    forward = world.parallel(state.network)
    if config.train.compile:
        forward = torch.compile(forward)  # type: ignore[assignment]
    checkpoints = Checkpoints(attempt, config, environment, schedule.steps_per_epoch, state.step)
    log = TrainLog(attempt, config, schedule, world, state.process.T, state.step)
    if content is not None:
        log.recorder.load_state_dict(content["recorder"])
    # of a state, at an epoch's end
    show = partial(_show, config, attempt, world, data_dir, stop, checkpoints)

    with log.running(), checkpoints:  # in this order: `done` is said when the last one is on disk
        log.meter.say(_opening(run, schedule, state, world))
        if content is not None and schedule.at_epoch_end(state.step):
            show(state, schedule.epochs_done(state.step))  # an earlier attempt may have died here
            log.pause()
        while state.step < schedule.final_step:
            # ---- at the step boundary: the wish of any rank is carried out by all
            request = Request(world.highest(_wish(stop, attempt, checkpoints, log)))
            if request == Request.SUPERSEDED:
                raise Superseded(f"{run.name}: a newer attempt took over; this one stops")
            if request >= Request.LOG:
                log.flush()
            if request >= Request.SAVE and state.step != checkpoints.saved_step:
                _save(checkpoints, state, log)
            if request == Request.STOP:
                checkpoints.finish()
                name = stop.signal.name if stop.signal else "another rank's signal"
                raise stop.end(
                    f"{run.name}: stopped by {name} at step {state.step}, saved; the same"
                    " command goes on from there"
                )

            # ---- a step
            batch = batches.at(state.step + 1)
            losses, grad_norm = state.update(forward, batch)
            log.record(state.step, state.lr, losses, batch.t, grad_norm)

            # ---- at an epoch's end: metrics, then the checkpoint, then pictures and figures
            if schedule.at_epoch_end(state.step):
                epoch = schedule.epochs_done(state.step)
                log.end_epoch()
                is_old = world.highest(int(checkpoints.is_old)) > 0  # agreed: clocks differ
                if schedule.saves_at(epoch, is_old):
                    _save(checkpoints, state, log)
                show(state, epoch)
                log.pause()
    return run


def _configure_torch(config: Config) -> None:
    if config.system.threads:
        torch.set_num_threads(config.system.threads)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # not that each new tensor is filled first, which helps to find bugs and costs time
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        if config.train.compile:
            from torch._inductor import config as inductor

            if hasattr(inductor, "deterministic"):  # torch 2.10
                inductor.deterministic = True
    torch.backends.cudnn.benchmark = not config.train.deterministic


def _load_data(config: Config, data_dir: Path) -> Split:
    """The training images. Damaged files that are needed only later are refused now, too."""
    load_split(data_dir, "test")  # of pictures and figures
    if config.eval.in_training:
        from diffuse.evaluation.features import load_extractor

        load_extractor(config.eval.extractor, data_dir, torch.device("cpu"))
    return load_split(data_dir, "train", config.data.limit)


def _wish(stop: StopRequest, attempt: Attempt, checkpoints: Checkpoints, log: TrainLog) -> Request:
    """The wish of this rank. Rank 0 alone watches the time, and for newer attempts."""
    if stop.signal is not None:
        return Request.STOP
    if not attempt.publishes:
        return Request.NONE
    if checkpoints.is_due:
        return Request.SAVE
    if log.is_due:
        return Request.LOG if attempt.is_current else Request.SUPERSEDED
    return Request.NONE


def _save(checkpoints: Checkpoints, state: TrainState, log: TrainLog) -> None:
    """Begin a checkpoint, after `log.flush`. On every rank: the log's sums are gathered."""
    checkpoints.save({"recorder": log.recorder.state_dict(), **state.payload()})
    log.pause()


def _show(
    config: Config,
    attempt: Attempt,
    world: World,
    data_dir: Path,
    stop: StopRequest,
    checkpoints: Checkpoints,
    state: TrainState,
    epoch: int,
) -> None:
    """Pictures and figures of the end of `epoch`, where wanted and missing. On every rank."""
    run = attempt.run
    draws = attempt.publishes and epoch in config.sampled_epochs
    judges = bool(config.eval.in_training) and epoch in config.evaluated_epochs
    if draws or judges:
        checkpoints.finish()  # whoever dies here leaves no picture without its checkpoint
    if draws:
        attempt.check()
        pictures.draw_epoch(config, run, state.process, state.best_network, epoch, data_dir)
        if all(event["epoch"] != epoch for event in run.metrics("samples")):
            attempt.append_metrics([{"event": "samples", "epoch": epoch, "step": state.step}])
    if judges:
        from diffuse.evaluation.evaluator import evaluate_checkpoint
        from diffuse.evaluation.scorer import Scorer

        world.highest(0)  # rank 0 has written the checkpoint
        scorer = Scorer.load(config.eval.extractor, data_dir, world, stop)
        specs, n = config.sampler_specs(config.eval.samplers), config.eval.in_training
        path = run.checkpoint_path(epoch)
        evaluate_checkpoint(path, scorer, specs, n, seed=0, stop=stop, attempt=attempt)
        del scorer
        gc.collect()  # libraries leave cycles that hold sets of images: some 20 MB each time


def _opening(run: RunDir, schedule: Schedule, state: TrainState, world: World) -> str:
    start = f"from step {state.step}" if state.step else "from the beginning"
    return (
        f"{run.path}: training {start} to epoch {schedule.epochs}, {schedule.steps_per_epoch}"
        f" steps each, on {world.size} x {world.device.type} in {state.precision},"
        f" batch {state.settings.global_batch}"
    )
