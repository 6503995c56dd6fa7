"""FID, KID and IS of trained models: `python -m diffuse.evaluate RUN --epoch 80 -n 10000`.

RUN is a run directory (all its evaluated epochs, or those of --epoch), a checkpoint, or one of the
report's weight files. The same command again goes on where it was interrupted, and samples nothing
that lies there already.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from diffuse.config import ranges
from diffuse.rundir.directory import RunDir
from diffuse.runtime import errors, options
from diffuse.runtime.preemption import StopRequest

app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    source: options.Source,
    epoch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="20,40",
            help="Epochs to evaluate, such as 20,40 or 1-100 or 5-100:5; repeatable."
            " Default: all of eval.at_epochs that are trained.",
        ),
    ] = None,
    images: Annotated[
        int | None,
        typer.Option(
            "-n", "--images", min=1, help="Number of generated images. Default: eval.images."
        ),
    ] = None,
    final_images: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Images of a further figure of the last of these epochs. Default:"
            " eval.final_images (of the run's last epoch), or none where -n is given.",
        ),
    ] = None,
    samplers: Annotated[
        str | None,
        typer.Option(
            help="Samplers, such as ddim-50-clip,ancestral. Default: eval.samplers, or else"
            " those that suit the process."
        ),
    ] = None,
    extractor: Annotated[
        str | None,
        typer.Option(
            help="Network whose features FID compares: classifier or inception."
            " Default: eval.extractor."
        ),
    ] = None,
    report_protocol: Annotated[
        bool,
        typer.Option(
            "--report-protocol",
            help="Judge as the report's own code does, to check its claims: 100 images, wrapped by"
            " a cast to uint8, against 100 real ones, by its samplers. Comparable with no other"
            " figure.",
        ),
    ] = False,
    seed: options.SampleSeed = 0,
    device: options.Device = "auto",
    threads: options.Threads = None,
    data_dir: options.DataDir = options.DATA,
    output: Annotated[
        Path | None,
        options.folder("Folder for the results of a weight file. Default: the current one."),
    ] = None,
) -> None:
    """Judge a model by FID, KID and IS against the real images."""
    stop = StopRequest().install()
    import torch

    from diffuse.evaluation import report_protocol as report
    from diffuse.evaluation.evaluator import evaluate_checkpoint
    from diffuse.evaluation.metrics import require_enough
    from diffuse.evaluation.scorer import Scorer
    from diffuse.runtime.distributed import join
    from diffuse.sampling.trained_model import config_of
    from diffuse.tracking.mirror import Mirror

    config = config_of(source)
    n = config.eval.images if images is None else images
    named = samplers.split(",") if samplers else config.eval.samplers
    if report_protocol:
        n = images or report.IMAGES
        named = named if samplers else report.SAMPLERS.get(config.process.kind)
    require_enough(n)
    specs = config.sampler_specs(named)
    checkpoints = _checkpoints(source, epoch)
    wanted = [(path, n) for path in checkpoints]
    given = images is not None or report_protocol
    final = RunDir(source).checkpoint_path(config.train.epochs)  # of a run alone
    if final_images is None and not given and checkpoints[-1] == final:
        final_images = config.eval.final_images
    if final_images is not None:
        require_enough(final_images)
        wanted.append((checkpoints[-1], final_images))
    if threads:
        torch.set_num_threads(threads)
    with join(device, config.system.collective_timeout_s, stop) as world:
        in_run = source.is_dir() and world.is_main
        judge = extractor or config.eval.extractor
        scorer = (
            report.ReportScorer.of(judge, data_dir, world, n)
            if report_protocol
            else Scorer.load(judge, data_dir, world, stop)
        )
        # here, before W&B begins a run for it
        scorer.require_originals(max(n for _, n in wanted), specs)
        with Mirror(RunDir(source), config, "evaluate", active=in_run):
            for path, n in wanted:
                evaluate_checkpoint(path, scorer, specs, n, seed, stop, output or Path())


def _checkpoints(source: Path, typed: list[str] | None) -> list[Path]:
    """The files to evaluate: of a run its evaluated epochs that are there, or those typed."""
    epochs = ranges.typed(",".join(typed), "--epoch", smallest=1) if typed else ()
    if not source.is_dir():
        if epochs:
            raise errors.UserError(f"--epoch is for a run directory, and {source} is none")
        return [source]
    run = RunDir(source)
    wanted = epochs or run.config().evaluated_epochs
    trained = [epoch for epoch in wanted if run.checkpoint_path(epoch).exists()]
    if epochs and (missing := sorted(set(epochs) - set(trained))):
        raise errors.UserError(
            f"{source}: no checkpoint of epoch {ranges.shown(missing)}"
            f" (train it with --set eval.at_epochs={ranges.shown(epochs)})"
        )
    if not trained:
        raise errors.UserError(f"{source}: no checkpoint of an evaluated epoch yet; train it first")
    return [run.checkpoint_path(epoch) for epoch in trained]


if __name__ == "__main__":
    errors.run(app)
