"""Reads the weight files that the report published, plain state dicts without a config.

    ddpm_mnist_{epoch}_{preset}.pth     gt.* and the schedule as beta_t, alpha_t [T + 1]
    custom_mnist_{epoch}_{row|col}_{preset}.pth     gt.* and the order as rows_t or cols_t

The activation, which tensors do not tell, is taken from the preset in the file's name; another
name is taken for GELU's, as `activation_is_guessed` tells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffuse.config.presets import resolve
from diffuse.config.processes import Orientation
from diffuse.config.schema import Config
from diffuse.config.validation import Layer
from diffuse.models import build
from diffuse.models.averaging import Averaging
from diffuse.models.cnn import Cnn
from diffuse.models.ddpm import Ddpm
from diffuse.models.process import Process
from diffuse.rundir.checkpoints import load_plain
from diffuse.rundir.weight_facts import PUBLISHED as NAME
from diffuse.runtime.errors import UserError, first_line

PRESETS = ("default", "light", "more_capacity", "testing", "testing2", "default_7", "default_28")


def read(path: Path) -> tuple[Config, Process, Cnn, int]:
    """The config, process, network and epoch of a published weight file.

    Raises UserError where the file is missing, damaged or something else. Nothing in it is run.
    """
    state = load_plain(path)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path}: not a state dict of tensors")
    try:
        process, settings = _process(state)
        config = _config(path, state, settings)
        network = build(config.model)
        network.load_state_dict(_renamed(state))
    except (LookupError, RuntimeError, ValueError, TypeError) as error:
        reason = first_line(error)
        raise UserError(f"{path}: not one of the report's weight files ({reason})") from None
    assert isinstance(network, Cnn)
    named = NAME.search(path.stem)
    return config, process, network, int(named["epoch"]) if named else 0


def activation_is_guessed(path: Path) -> bool:
    """Whether the file's name is none that the report's code gives."""
    named = NAME.search(path.stem)
    return named is None or named["preset"] not in PRESETS


def _process(state: Mapping[str, Tensor]) -> tuple[Process, dict[str, Any]]:
    """The process with the file's schedule or order, and its settings."""
    if "beta_t" in state:
        ddpm = Ddpm(state["beta_t"])
        beta_1, beta_2 = float(ddpm.beta[0]), float(ddpm.beta[-1])
        return ddpm, {"kind": "ddpm", "timesteps": ddpm.T, "beta_1": beta_1, "beta_2": beta_2}
    orientation: Orientation = "row" if "rows_t" in state else "col"
    lines = state[f"{orientation}s_t"].long()
    order = lines.reshape(len(lines), -1)  # [T, group]
    settings = {"kind": "averaging", "orientation": orientation, "group": order.shape[1]}
    return Averaging(orientation, order), settings


def _config(path: Path, state: Mapping[str, Tensor], settings: dict[str, Any]) -> Config:
    named = NAME.search(path.stem)
    preset = named["preset"] if named else path.stem
    channels = [len(state[f"gt.blocks.{k}.net.0.weight"]) for k in range(_blocks(state))]
    values: dict[str, Any] = {
        "preset": f"{'ddpm' if 'beta_t' in state else 'cold'}/{preset}",
        "process": settings,
        "model": {
            "kind": "cnn",
            "channels": channels,
            "activation": "selu" if preset == "testing" else "gelu",
        },
        "data": {"amplitude": 0.5},
    }
    return resolve([Layer(str(path), values)])


def _renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's tensors under this project's names."""
    last = _blocks(state)
    renamed = {}
    for key, value in state.items():
        if not key.startswith("gt."):
            continue
        key = key.removeprefix("gt.")
        key = re.sub(r"^blocks\.(\d+)\.net\.0\.", r"blocks.\1.conv.", key)
        key = re.sub(r"^blocks\.(\d+)\.net\.1\.", r"blocks.\1.norm.", key)
        key = key.replace(f"blocks.{last}.", "head.").replace("time_embed.", "time_mlp.")
        renamed[key] = value
    return renamed


def _blocks(state: Mapping[str, Tensor]) -> int:
    """How many blocks come before the last convolution."""
    return sum(bool(re.fullmatch(r"gt\.blocks\.\d+\.net\.0\.weight", key)) for key in state)
