"""Speed as ratios, each between two things measured in turn in this one run: `make bench`.

With each ratio stands the limit that it should be held against. Absolute times belong to the
machine; ratios travel better.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.in_turn import in_turn
from benchmarks.judging import cached_fid, classifier_features, inception_features
from benchmarks.logging_cost import logging_cost
from benchmarks.starts import dry_run, start
from diffuse import ROOT
from diffuse.config.presets import load_config
from diffuse.config.processes import AveragingConfig
from diffuse.config.schema import Config
from diffuse.data.staging import stage_mnist
from diffuse.data.tensors import load_split, to_x0
from diffuse.models import build, build_process
from diffuse.models.averaging import Averaging
from diffuse.rundir.directory import RunDir
from diffuse.runtime import errors, options
from diffuse.runtime.device import DTYPES, resolve_precision
from diffuse.sampling.trained_model import Trained, load

BATCH = 128
app = typer.Typer(add_completion=False, rich_markup_mode=None)


@app.command()
def main(
    data_dir: options.DataDir = options.DATA,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements of each side, in turn.")] = 3,
    only: Annotated[str | None, typer.Option(help="One benchmark, by its name.")] = None,
) -> None:
    """Print every benchmark as a table."""
    stage_mnist(data_dir)
    config = load_config("ddpm/default")
    precision = resolve_precision("auto", torch.device("cpu"))
    threads = torch.get_num_threads()
    table = Table(title=f"CPU, {threads} threads, {precision}, batch {BATCH}")
    for heading in ("subject", "this project", "the other", "ratio", "limit"):
        table.add_column(heading, overflow="fold")
    benches = (
        training_step,
        training_precision,
        logging_cost,
        averaging,
        sampling,
        sampling_precision,
        cached_fid,
        classifier_features,
        inception_features,
        ranks,
        start,
        dry_run,
    )
    chosen = [bench for bench in benches if only in (None, bench.__name__)]
    if not chosen:
        names = ", ".join(bench.__name__ for bench in benches)
        raise errors.UserError(f"--only {only}: no such benchmark; allowed: {names}")
    for bench in chosen:
        print(f"{bench.__name__} ...", file=sys.stderr, flush=True)
        table.add_row(*bench(config, data_dir, precision, rounds))
    Console(width=150).print(table)


def training_step(config: Config, data_dir: Path, precision: str, rounds: int) -> tuple[str, ...]:
    """Images per second of `diffuse.train` and of a plain loop with a torchvision DataLoader."""
    pairs = [
        (program_rate(data_dir), plain_loop_rate(config, data_dir, precision))
        for _ in range(rounds)
    ]
    ours, plain = (statistics.median(side) for side in zip(*pairs, strict=True))
    loader = loader_seconds(data_dir)
    network = build(config.model)
    counter = FlopCounterMode(display=False)
    with counter:
        network(torch.randn(BATCH, 1, 28, 28), torch.rand(BATCH)).mean().backward()
    flops = counter.get_total_flops()
    share = flops / conv_rate(precision) / (BATCH / ours)
    return (
        "training step of ddpm/default: diffuse.train against a plain loop with a DataLoader",
        f"{ours:.0f} images/s",
        f"{plain:.0f} images/s; its loader takes {loader / (BATCH / plain):.0%} of the step",
        f"{ours / plain:.2f}",
        f"{share:.0%} of the rate of the step's dominant convolution (7x7, 32 channels) on this"
        f" machine; {flops / 1e9:.0f} GFLOP a step",
    )


def training_precision(
    config: Config, data_dir: Path, precision: str, rounds: int
) -> tuple[str, ...]:
    """Images per second of `diffuse.train` and of the plain loop in fp32."""
    pairs = [
        (program_rate(data_dir), plain_loop_rate(config, data_dir, "fp32")) for _ in range(rounds)
    ]
    ours, plain = (statistics.median(side) for side in zip(*pairs, strict=True))
    limit = conv_rate(precision) / conv_rate("fp32")
    return (
        f"training step of ddpm/default: diffuse.train ({precision}) against a plain loop in fp32",
        f"{ours:.0f} images/s",
        f"{plain:.0f} images/s",
        f"{ours / plain:.2f}",
        f"{limit:.2f}, the same ratio of the step's dominant convolution",
    )


def averaging(config: Config, data_dir: Path, precision: str, rounds: int) -> tuple[str, ...]:
    """A batch at T = 28, vectorised and by loops over images and lines as in the report's code."""
    process = Averaging.from_config(
        AveragingConfig(kind="averaging", orientation="row"), seed=0, amplitude=0.5
    )
    x0 = to_x0(load_split(data_dir, "train", BATCH).images, 0.5)  # [B, 1, 28, 28]
    t = torch.randint(1, process.T + 1, (BATCH,))

    def loops() -> Tensor:
        x = x0.clone()
        for b in range(BATCH):
            for line in process.order[: int(t[b])].flatten():
                x[b, 0, line] = x0[b, 0, line].mean()
        return x

    torch.testing.assert_close(loops(), process.degrade(x0, t))
    fast, slow = in_turn(lambda: process.degrade(x0, t), loops, rounds, repeats=(200, 2))
    moved = 2 * x0.numel() * 4 / copy_rate()
    return (
        "averaging a batch: masks against loops over images and lines",
        f"{fast * 1e3:.3f} ms",
        f"{slow * 1e3:.1f} ms",
        f"{slow / fast:.0f}",
        f"reading x0 and writing x_t once takes {moved * 1e3:.3f} ms at this machine's copy rate",
    )


def sampling(config: Config, data_dir: Path, precision: str, rounds: int) -> tuple[str, ...]:
    """Images per second of DDIM-50 and of the ancestral sampler's 1000 steps, same network."""
    process, network = build_process(config), build(config.model)
    model = Trained("untrained", config, process, network, epoch=0, device=torch.device("cpu"))

    def seconds(name: str, n: int) -> float:
        start = time.perf_counter()
        model.sample(n, sampler=name, batch=n)
        return time.perf_counter() - start

    n = 8
    fast = statistics.median(n / seconds("ddim-50", n) for _ in range(rounds))
    slow = n / seconds("ancestral", n)
    return (
        "sampling: DDIM-50 against ancestral-1000",
        f"{fast:.2f} images/s",
        f"{slow:.2f} images/s",
        f"{fast / slow:.1f}",
        "20, the ratio of network evaluations",
    )


def sampling_precision(
    config: Config, data_dir: Path, precision: str, rounds: int
) -> tuple[str, ...]:
    """Images per second of ddpm/unet's usual sampler in bf16 and in fp32."""
    model = load("ddpm/unet")
    images, steps = 64, 10

    def drawn(ending: str) -> Callable[[], Tensor]:
        return lambda: model.sample(images, sampler=f"dpm-{steps}-eta3-clip{ending}")

    half, full = in_turn(drawn("-bf16"), drawn(""), rounds, repeats=(1, 1))
    return (
        "sampling with ddpm/unet: network in bf16 against fp32",
        f"{images / half:.1f} images/s",
        f"{images / full:.1f} images/s",
        f"{full / half:.2f}",
        f"{conv_rate('bf16') / conv_rate('fp32'):.2f}, the same ratio of a 7x7 convolution, forward"
        " and backward",
    )


def ranks(config: Config, data_dir: Path, precision: str, rounds: int) -> tuple[str, ...]:
    """Images per second of 2 ranks x 1 thread and of 1 rank x 2 threads."""
    pairs = [
        (program_rate(data_dir, ranks=2, threads=1), program_rate(data_dir, threads=2))
        for _ in range(rounds)
    ]
    two, one = (statistics.median(side) for side in zip(*pairs, strict=True))
    return (
        "2 ranks x 1 thread (DDP, gloo) against 1 rank x 2 threads",
        f"{two:.0f} images/s",
        f"{one:.0f} images/s",
        f"{two / one:.2f}",
        "1 on 2 cores if both split the work perfectly; on GPUs the number of ranks",
    )


def program_rate(data_dir: Path, ranks: int = 1, threads: int | None = None) -> float:
    """Images per second that `diffuse.train --preset ddpm/default` reports for its last steps."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m"]
        if ranks > 1:
            command += ["torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m"]
        command += [
            "diffuse.train",
            "--preset=ddpm/default",
            "--epochs=1",
            f"--data-dir={data_dir}",
        ]
        command += [f"--runs-dir={folder}", f"--set=data.limit={40 * BATCH}"]
        command += [f"--threads={threads or torch.get_num_threads()}", "--set=samples.at_epochs=[]"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        (run,) = Path(folder).iterdir()
        return float(RunDir(run).status()["images_per_s"])


def plain_loop_rate(config: Config, data_dir: Path, precision: str) -> float:
    """Images per second of the usual loop: torchvision transforms, DataLoader, loss.item()."""
    network, process = build(config.model), build_process(config)
    optimizer = torch.optim.Adam(network.parameters(), lr=config.train.lr)
    start = time.perf_counter()
    for step, (x0, _) in enumerate(plain_loader(data_dir)):
        if step == 5:  # after a warm-up
            start = time.perf_counter()
        t = torch.randint(1, process.T + 1, (len(x0),))
        eps = torch.randn_like(x0)
        with torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32"):
            eps_hat = network(process.degrade(x0, t, eps), t / process.T)
            loss = nn.functional.mse_loss(eps_hat.float(), eps)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        loss.item()
    return (step - 4) * BATCH / (time.perf_counter() - start)


def loader_seconds(data_dir: Path) -> float:
    """Seconds that the DataLoader alone takes for a batch."""
    start = time.perf_counter()
    steps = sum(1 for _ in plain_loader(data_dir))
    return (time.perf_counter() - start) / steps


def plain_loader(data_dir: Path) -> torch.utils.data.DataLoader[Any]:
    """Torchvision's way: a PIL image and its transforms for every example."""
    from PIL import Image
    from torchvision import transforms

    split = load_split(data_dir, "train", 40 * BATCH)
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.5, 1.0)])

    class Images(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(split.images)

        def __getitem__(self, k: int) -> tuple[Tensor, int]:
            return transform(Image.fromarray(split.images[k].numpy())), int(split.labels[k])

    return torch.utils.data.DataLoader(Images(), BATCH, shuffle=True, drop_last=True)


def conv_rate(precision: str) -> float:
    """FLOP/s, forward and backward, of a 7x7 convolution of 32 channels on a batch."""
    conv = nn.Conv2d(32, 32, 7, padding=3)
    x = torch.randn(BATCH, 32, 28, 28, requires_grad=True)
    counter = FlopCounterMode(display=False)

    def step() -> None:
        with torch.autocast("cpu", DTYPES[precision], enabled=precision != "fp32"):
            y = conv(x)
        y.sum().backward()

    with counter:
        step()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return counter.get_total_flops() / statistics.median(times)


def copy_rate() -> float:
    """Bytes per second, read and written, of a large copy."""
    source = torch.randn(64 * 2**20 // 4)
    target = torch.empty_like(source)
    start = time.perf_counter()
    for _ in range(5):
        target.copy_(source)
    return 5 * 2 * source.numel() * 4 / (time.perf_counter() - start)


if __name__ == "__main__":
    errors.run(app)
