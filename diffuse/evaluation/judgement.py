"""A checkpoint judged and its figures written down: what diffuse.evaluate and training both do."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from diffuse.config.sampler_spec import SamplerSpec
from diffuse.config.schema import Config
from diffuse.evaluation.evaluator import Judge
from diffuse.evaluation.sample_set import Generated
from diffuse.rundir import evaluations, plots
from diffuse.rundir.attempt import Attempt
from diffuse.rundir.evaluations import Evaluation
from diffuse.runtime import files
from diffuse.runtime.console import Meter, duration
from diffuse.runtime.distributed import World
from diffuse.runtime.preemption import StopRequest
from diffuse.sampling.trained_model import load
from diffuse.tracking.mirror import mirror_once


def evaluate_checkpoint(
    path: Path,
    judge: Judge,
    world: World,
    specs: Sequence[SamplerSpec],
    n: int,
    seed: int,
    stop: StopRequest,
    output: Path = Path(),
    attempt: Attempt | None = None,
) -> None:
    """Judge one checkpoint by each of the samplers; figures that are there already are kept.

    Called on all ranks, which share the work.

    Args:
        n: images for each figure.
        output: where the results of a weight file go; those of a run go into it.
        attempt: of the training that evaluates itself, which is fenced; any other evaluation is
            one of whatever attempt is the latest.
    """
    model = load(path, device=world.device)
    sha256 = files.sha256(path)
    # A run has results of its epochs; any other checkpoint, also within an epoch, has its own.
    run = model.run
    if run is not None and path.name != run.checkpoint_path(model.epoch).name:
        run = None
    target = run.evaluation_path(model.epoch) if run else output / f"{path.stem}.evaluation.json"
    is_new = False
    for spec in specs:
        protocol = judge.protocol(n, spec, seed)
        known = evaluations.find(target, sha256, protocol) if world.is_main else None
        if world.from_main(known):
            if world.is_main:
                print(f"{target}: {spec} with {n} images is there already")
            continue
        if run is not None:
            images_path = run.evaluated_samples_path(model.epoch, str(spec), seed)
        else:
            images_path = output / f"{path.stem}_{spec}_seed_{seed}.h5"
        generated = Generated(model, sha256, spec, seed, images_path)
        title = f"{path.name}: {n} images, {spec}"
        with Meter(title, spec.steps, shown=world.is_main) as meter:
            drawn = generated.images(n, judge.data_dir, world, _watched(meter, stop))
        samples = str(images_path.relative_to(run.path if run else output))
        figure = judge.figure(drawn, spec, seed=seed, samples=samples)
        if world.is_main:
            evaluation = Evaluation(
                epoch=model.epoch,
                step=model.step,
                checkpoint_sha256=sha256,
                weights="model" if model.config.train.ema is None else "ema",
                figures=[figure],
            )
            if attempt is not None:
                attempt.check()
            evaluations.add(target, evaluation)
            is_new = True
            print(f"{target}: {figure.summary()}", flush=True)
    if world.is_main and run is not None:
        content = evaluations.read(target)
        assert content is not None
        told = [e for e in run.metrics("evaluation") if e["epoch"] == model.epoch]
        # once for all samplers; also where an earlier evaluation died before it told
        if is_new or not told or told[-1].get("figures") != len(content.figures):
            publish(attempt or Attempt(run, run.attempt_number()), model.config, content)


def publish(attempt: Attempt, config: Config, evaluation: Evaluation) -> None:
    """Bring an epoch's results to the run's plots, to its events and to W&B.

    Raises Superseded where a newer attempt has begun; nothing is published then.
    """
    run = attempt.run
    attempt.check()
    plots.evaluation_curves(run)
    event = {"event": "evaluation", "epoch": evaluation.epoch, "step": evaluation.step}
    attempt.append_metrics([{**event, "figures": len(evaluation.figures)}])
    mirror_once(run, config, "evaluate")


def _watched(meter: Meter, stop: StopRequest) -> Callable[[int, int], None]:
    """Told of each network evaluation: shows how long it will take, and stops when asked to."""
    started = time.monotonic()

    def on_step(done: int, total: int) -> None:
        if stop.signal is not None:
            raise stop.end("evaluation stopped; the same command goes on from there")
        left = (time.monotonic() - started) / done * (total - done)
        meter.update(done, f"network evaluations  ETA {duration(left)}", total)

    return on_step
