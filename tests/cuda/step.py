"""The calls of training steps on the null runtime, as JSON.

`python step.py PRESET PRECISION [SETTING=VALUE ...]`
"""

from __future__ import annotations

import json
import os
import sys

import torch

from diffuse.config.presets import load_config, parse_set
from diffuse.runtime.distributed import join
from diffuse.training import graph
from diffuse.training.batches import Batches
from diffuse.training.recorder import Recorder
from diffuse.training.schedule import Schedule
from diffuse.training.state import TrainState
from tests.cuda import null_runtime

STEPS = 10


def main(preset: str, precision: str, *settings: str) -> None:
    orientation = ["process.orientation=row"] if preset.startswith("cold") else []
    config = load_config(preset, [parse_set([*orientation, *settings])])
    with join("cuda", 60) as world:
        torch.backends.cudnn.benchmark = True
        as_graph = graph.is_wanted(config.train, world, precision)  # type: ignore[arg-type]
        state = TrainState.fresh(config, world.device, precision, as_graph)  # type: ignore[arg-type]
        forward = world.parallel(state.network)
        images = torch.zeros(config.train.global_batch * 100, 28, 28, dtype=torch.uint8)
        schedule = Schedule.of(config, len(images), epochs=1)
        batches = Batches(config, schedule, images.to(world.device), state.process, world)
        recorder = Recorder(world, state.process.T)

        def step() -> None:
            batch = batches.at(state.step + 1)
            losses, norm = state.update(forward, batch)
            recorder.add(state.step, state.lr, losses, batch.t, norm)

        for _ in range(20):
            step()
        with null_runtime.counted() as calls:
            for _ in range(STEPS):
                step()
        if world.is_main:
            print(json.dumps({name: n / STEPS for name, n in calls.items()}), flush=True)
    os._exit(0)  # the null runtime is not taken apart


if __name__ == "__main__":
    main(*sys.argv[1:])
