"""Speeds on a GPU: a training step by parts, one log and one save, and drawing images."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks.in_turn import seconds
from benchmarks.steps import STEPS_PER_EPOCH, Steps
from diffuse.config.presets import load_config, parse_set
from diffuse.models import build, build_process
from diffuse.rundir.attempt import Attempt
from diffuse.rundir.checkpoints import Checkpoints
from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.device import choose_device, resolve_precision
from diffuse.runtime.errors import first_line
from diffuse.sampling.trained_model import Trained
from diffuse.training import optimizer
from diffuse.training.state import TrainState

PRESETS = ("ddpm/default", "ddpm/unet")
OTHER_LAYOUT = "other layout"  # of the weights: plain for the CNN, channels-last for the U-Net
MODES = {
    "eager": ["train.graph=false"],
    OTHER_LAYOUT: ["train.graph=false"],
    "compile": ["train.compile=true"],
    "graph": ["train.graph=true"],
}


@dataclass(frozen=True)
class Place:
    """The device of the measurements, their data, and their deadline."""

    name: str  # cuda or cpu
    data_dir: Path
    deadline: float  # of time.monotonic

    @cached_property
    def device(self) -> torch.device:
        """The device, started in this process when it is first asked for."""
        return choose_device(self.name)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    @property
    def has_time(self) -> bool:
        return self.seconds_left > 0

    def count(self, on_gpu: int, on_cpu: int) -> int:
        """Repetitions: few on a CPU, which only tries the command out."""
        return on_gpu if self.name == "cuda" else on_cpu

    def environment(self) -> dict[str, str]:
        """Variables for programs that are started."""
        return os.environ | {"DIFFUSE_DATA": str(self.data_dir.absolute())}


def markdown(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        f"| {' | '.join(' '.join(cell.split()).replace('|', '/') for cell in line)} |"
        for line in lines
    )


def steps(place: Place) -> str:
    """A step of each preset in each mode, at the preset's batch size."""
    rows = []
    torch.backends.cudnn.benchmark = True
    for preset in PRESETS:
        for mode in MODES:
            row = ["not measured: the time was up"]
            precision = resolve_precision("auto", place.device)
            train = load_config(preset).train
            obstacle = train.graph_obstacle(place.name == "cuda", 1, precision)
            if mode == "graph" and obstacle:
                row = [f"not measured: train.graph {obstacle}"]
            elif place.has_time:
                try:
                    row = step(place, preset, mode)
                except Exception as error:
                    row = [f"**failed**: {first_line(error)}"]
            rows.append([preset, mode, *row, *[""] * (6 - len(row))])
    columns = ("ms a step", "host ms", "kernel ms", "launches", "GPU busy", "images/s")
    return markdown(("preset", "mode", *columns), rows)


def step(place: Place, preset: str, mode: str) -> list[str]:
    """Milliseconds of a step, of it on the host and in kernels; launches; busy share; images/s."""
    config = load_config(preset, [parse_set(MODES[mode])])
    advance = Steps(config, place.device, resolve_precision("auto", place.device))
    if mode == OTHER_LAYOUT:
        change_layout(advance.state)
    for _ in range(place.count(20, 1)):
        advance()
    n = place.count(100, 3)
    whole = milliseconds(advance, place.device, n)
    rate = f"{1e3 * config.train.global_batch / whole:.0f}" if whole else ""
    if place.name == "cpu":
        return [f"{whole:.3g}", "", "", "", "", rate]
    # Few enough steps that no launch waits for its place in the GPU's queue.
    host = 1e3 * statistics.median(unwaited(advance) for _ in range(n))
    kernels, launches = profiled(advance, 10)
    busy = f"{kernels / whole:.0%}" if whole else ""
    return [f"{whole:.3g}", f"{host:.3g}", f"{kernels:.3g}", f"{launches:.0f}", busy, rate]


def change_layout(state: TrainState) -> None:
    """Give weights, their average and the optimizer's state the layout that they do not have."""
    is_plain = all(p.is_contiguous() for p in state.network.parameters())
    layout = torch.channels_last if is_plain else torch.contiguous_format
    state.network.to(memory_format=layout)
    if state.ema is not None:
        state.ema.module.to(memory_format=layout)
    state.optimizer = optimizer.build(state.network, state.settings, state.precision)


def milliseconds(function: Callable[[], object], device: torch.device, n: int) -> float:
    """The mean of n calls, by the GPU's own clock."""
    if device.type == "cpu":
        return 1e3 * seconds(function, n)
    began, ended = (torch.Event(device, enable_timing=True) for _ in range(2))
    began.record()
    for _ in range(n):
        function()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended) / n


def unwaited(function: Callable[[], object]) -> float:
    """Seconds until a call returns, its work perhaps still under way on an idle GPU."""
    torch.cuda.synchronize()
    return seconds(function)


def profiled(function: Callable[[], object], n: int) -> tuple[float, float]:
    """Milliseconds in kernels, and launches by the host, of a call."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        for _ in range(n):
            function()
        torch.cuda.synchronize()
    kernels = launches = 0.0
    for event in seen.events() or ():
        if event.device_type == DeviceType.CUDA:
            if not getattr(event, "is_user_annotation", False):  # which span kernels
                kernels += event.time_range.elapsed_us() / 1e3
        elif event.name.startswith("cu") and "Launch" in event.name:  # cudaGraphLaunch too
            launches += 1
    return kernels / n, launches / n


def log_and_save(place: Place) -> str:
    """Milliseconds that a log and a save take of training, and until the checkpoint is on disk."""
    rows = []
    for preset in PRESETS:
        config = load_config(preset)
        with tempfile.TemporaryDirectory() as folder:
            run = RunDir(Path(folder) / config.run_name)
            attempt = Attempt.claim(run)
            files.write_text(run.config_path, config.to_yaml())
            advance = Steps(config, place.device, resolve_precision("auto", place.device), attempt)
            with Checkpoints(attempt, config, {}, STEPS_PER_EPOCH, saved_step=0) as checkpoints:

                def save() -> None:
                    recorder = advance.log.recorder.state_dict()  # noqa: B023
                    checkpoints.save({"recorder": recorder, **advance.state.payload()})  # noqa: B023

                took: dict[str, list[float]] = {"log": [], "save": [], "written": []}
                for _ in range(5):
                    for _ in range(place.count(50, 1)):
                        advance()
                    if place.name == "cuda":
                        torch.cuda.synchronize()
                    took["log"].append(1e3 * seconds(advance.log.flush))
                    took["save"].append(1e3 * seconds(save))
                    took["written"].append(took["save"][-1] + 1e3 * seconds(checkpoints.finish))
        rows.append([preset, *(f"{statistics.median(took[name]):.3g}" for name in took)])
    return markdown(("preset", "one log, ms", "one save, ms", "until it is on disk, ms"), rows)


def sampling(place: Place) -> str:
    """Images a second by DDIM of 50 steps."""
    rows, n = [], place.count(1000, 4)
    for preset in PRESETS:
        config = load_config(preset)
        process, network = build_process(config).to(place.device), build(config.model)
        network.to(place.device).eval()
        model = Trained("untrained", config, process, network, epoch=0, device=place.device)
        took = [seconds(lambda: model.sample(n, sampler="ddim-50", batch=n)) for _ in range(2)]  # noqa: B023
        rows.append([preset, str(n), f"{n / min(took):.4g}"])
    return markdown(("preset", "batch", "DDIM-50, images/s"), rows)
