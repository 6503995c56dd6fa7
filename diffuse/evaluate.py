"""FID, KID and IS of trained models: `python -m diffuse.evaluate RUN --epoch 80 -n 10000`.

RUN is a run directory (all its evaluated epochs, or those of --epoch), a checkpoint, or one of the
report's weight files. The same command again goes on where it was interrupted, and samples nothing
that lies there already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffuse import errors
from diffuse.preemption import StopRequest
from diffuse.progress import Meter, duration
from diffuse.rundir import RunDir, default_data_dir

if TYPE_CHECKING:
    from diffuse.distributed import World
    from diffuse.evaluation import Judge

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run directory, a checkpoint, or a report's .pth."),
    ],
    epoch: Annotated[
        list[int] | None, typer.Option(help="Of a run; repeatable. Default: all that were asked.")
    ] = None,
    images: Annotated[
        int | None, typer.Option("-n", "--images", help="How many; default: eval.images.")
    ] = None,
    samplers: Annotated[
        str | None, typer.Option(help="ddim-50-clip,ancestral ...; default: eval.samplers.")
    ] = None,
    extractor: Annotated[
        str | None, typer.Option(help="classifier or inception; default: eval.extractor.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the generated images.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads per rank.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where mnist.h5 is; default: $DIFFUSE_DATA or ./data.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder for the results of a weight file; default: here."),
    ] = None,
) -> None:
    """Judge a model by FID, KID and IS against the real images."""
    stop = StopRequest().install()
    import torch

    from diffuse.distributed import join
    from diffuse.evaluation import Judge
    from diffuse.metrics import require_enough
    from diffuse.tracking import Mirror
    from diffuse.trained import config_of

    config = config_of(source)
    n = images or config.eval.images
    require_enough(n)
    if threads:
        torch.set_num_threads(threads)
    folder = data_dir or default_data_dir()
    with join(device, config.system.collective_timeout_s) as world:
        judge = Judge.make(extractor or config.eval.extractor, folder, world)
        names = samplers.split(",") if samplers else config.eval.samplers
        in_run = source.is_dir() and world.is_main
        with Mirror(RunDir(source), config, "evaluate", active=in_run):
            for path in _checkpoints(source, epoch):
                _evaluate(path, judge, world, names, n, seed, output or Path(), stop)


def _checkpoints(source: Path, epochs: list[int] | None) -> list[Path]:
    """The files to evaluate: of a run its evaluated epochs that are there, or those of `epochs`."""
    if not source.is_dir():
        if epochs:
            raise errors.UserError(f"--epoch is for a run directory, and {source} is none")
        return [source]
    run = RunDir(source)
    wanted = epochs or run.config().evaluated_epochs
    there = [epoch for epoch in wanted if run.checkpoint_path(epoch).exists()]
    if epochs and (missing := sorted(set(epochs) - set(there))):
        raise errors.UserError(
            f"{source}: no checkpoint of epoch {', '.join(map(str, missing))}"
            f" (train it with --set eval.at_epochs={','.join(map(str, epochs))})"
        )
    if not there:
        raise errors.UserError(f"{source}: no checkpoint of an evaluated epoch yet; train it first")
    return [run.checkpoint_path(epoch) for epoch in there]


def _evaluate(
    path: Path,
    judge: Judge,
    world: World,
    samplers: tuple[str, ...] | list[str] | None,
    n: int,
    seed: int,
    output: Path,
    stop: StopRequest,
) -> None:
    """Judge one checkpoint by each of its samplers; figures that are there already are kept."""
    from diffuse import evaluation_file, files
    from diffuse.averaging import Averaging
    from diffuse.generated import Generated
    from diffuse.samplers import default_specs
    from diffuse.tracking import mirror_evaluation
    from diffuse.trained import load

    model = load(path, device=world.device)
    sha256 = files.sha256(path)
    is_cold = isinstance(model.process, Averaging)
    if model.run is not None:
        home, stem = model.run.path, f"epoch_{model.epoch:04d}"
        target = model.run.evaluations / f"{stem}.json"
    else:
        home, stem = output, path.stem
        target = output / f"{stem}.evaluation.json"
    for name in samplers or default_specs(model.process):
        spec = model.spec(name)
        if evaluation_file.find(target, sha256, judge.protocol(n, spec, seed, is_cold)):
            if world.is_main:
                print(f"{target}: {spec} with {n} images is there already")
            continue
        samples = Path("samples" if model.run else "") / f"{stem}_{spec}_seed_{seed}.h5"
        generated = Generated(model, sha256, spec, seed, home / samples)
        title = f"{path.name}: {n} images, {spec}"
        with Meter(title, spec.steps, shown=world.is_main) as meter:
            drawn = generated.images(n, judge.data_dir, world, _watched(meter, stop))
        figure = judge.figure(drawn, spec, seed=seed, is_cold=is_cold, samples=str(samples))
        if world.is_main:
            about: dict[str, Any] = {
                "epoch": model.epoch,
                "step": model.step,
                "checkpoint_sha256": sha256,
                "weights": "model" if model.config.train.ema is None else "ema",
            }
            content = evaluation_file.add(target, about, figure)
            print(f"{target}: {evaluation_file.summary(figure)}", flush=True)
            if model.run is not None:
                evaluation_file.draw(model.run)
                mirror_evaluation(model.run, model.config, content)


def _watched(meter: Meter, stop: StopRequest) -> Callable[[int, int], None]:
    """Told of each network evaluation: shows how long it will take, and stops when asked to."""
    started = time.monotonic()

    def on_step(done: int, total: int) -> None:
        if stop.signal is not None:
            raise stop.end("evaluation stopped; the same command goes on from there")
        left = (time.monotonic() - started) / done * (total - done)
        meter.update(done, f"network evaluations  ETA {duration(left)}", total)

    return on_step


if __name__ == "__main__":
    errors.run(app)
