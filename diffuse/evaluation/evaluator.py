"""The results of a checkpoint, as diffuse.evaluate and training both write them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from diffuse.config.sampler_spec import SamplerSpec
from diffuse.config.schema import Config
from diffuse.evaluation.sample_set import SampleSet
from diffuse.evaluation.scorer import Scorer
from diffuse.models.process import OnStep
from diffuse.rundir import evaluations, plots
from diffuse.rundir.attempt import Attempt
from diffuse.rundir.evaluations import Evaluation
from diffuse.runtime import files
from diffuse.runtime.console import Meter, duration
from diffuse.runtime.preemption import StopRequest
from diffuse.sampling.trained_model import load
from diffuse.tracking.mirror import mirror_once


def evaluate_checkpoint(
    path: Path,
    scorer: Scorer,
    specs: Sequence[SamplerSpec],
    n: int,
    seed: int,
    stop: StopRequest,
    output: Path = Path(),
    attempt: Attempt | None = None,
) -> None:
    """Add a checkpoint's figures, one for each sampler, to its results; existing ones are kept.

    Called on all ranks, which share the work.

    Args:
        n: images for each figure.
        output: where the results of a weight file go; those of a run go into it.
        attempt: of the training that evaluates itself, which is fenced; any other evaluation
            belongs to the latest attempt.
    """
    world = scorer.world
    model = load(path, device=world.device)
    is_main, sha256 = world.is_main, files.sha256(path)
    # A run has results of its epochs; any other checkpoint, also within an epoch, has its own.
    run = model.run
    if run is not None and path.name != run.checkpoint_path(model.epoch).name:
        run = None
    target = run.evaluation_path(model.epoch) if run else output / f"{path.stem}.evaluation.json"
    classes = model.config.model.classes
    is_new = False
    for spec in specs:
        protocol = scorer.protocol(n, spec, seed, classes)
        earlier = evaluations.find(target, sha256, protocol) if is_main else None
        if world.from_main(earlier):
            if is_main:
                print(f"{target}: {spec} with {n} images is there already")
            continue
        if run is not None:
            samples = run.evaluated_samples_path(model.epoch, str(spec), seed)
        else:
            samples = output / f"{path.stem}_{spec}_seed_{seed}.h5"
        sample_set = SampleSet(model, sha256, spec, seed, samples)
        title = f"{path.name}: {n} images, {spec}"
        with Meter(title, spec.steps, shown=is_main) as meter:
            images = scorer.images(sample_set, n, _progress(meter, stop))
        kept = str(samples.relative_to(run.path if run else output))
        relative = kept if scorer.keeps_images else None
        figure = scorer.figure(images, spec, seed=seed, samples=relative, classes=classes)
        if sample_set.drawing:
            figure = figure.model_copy(update={"drawing": sample_set.drawing})
        if is_main:
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
    if is_main and run is not None:
        results = evaluations.read(target)
        assert results is not None
        events = [e for e in run.metrics("evaluation") if e["epoch"] == model.epoch]
        # once for all samplers; also where an earlier evaluation died before its event
        if is_new or not events or events[-1].get("figures") != len(results.figures):
            publish(attempt or Attempt(run, run.attempt_number()), model.config, results)


def publish(attempt: Attempt, config: Config, results: Evaluation) -> None:
    """Bring an epoch's results to the run's plots, to its events and to W&B.

    Raises Superseded where a newer attempt has begun; nothing is published then.
    """
    run = attempt.run
    attempt.check()
    plots.evaluation_curves(run)
    event = {"event": "evaluation", "epoch": results.epoch, "step": results.step}
    attempt.append_metrics([{**event, "figures": len(results.figures)}])
    mirror_once(run, config, "evaluate")


def _progress(meter: Meter, stop: StopRequest) -> OnStep:
    """Called at each network evaluation: shows the time left, and ends at a stop request."""
    started = time.monotonic()

    def on_step(done: int, total: int) -> None:
        if stop.signal is not None:
            raise stop.end("evaluation stopped; the same command goes on from there")
        left = (time.monotonic() - started) / done * (total - done)
        meter.update(done, f"network evaluations  ETA {duration(left)}", total)

    return on_step
