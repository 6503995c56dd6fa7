"""Networks and processes, built from a config.

A network takes x_t [B, 1, 28, 28] and time t / T [B] to a prediction [B, 1, 28, 28].
"""

from __future__ import annotations

from torch import nn

from diffuse.config.processes import AveragingConfig, DdpmConfig
from diffuse.config.schema import CnnConfig, Config, UNetConfig
from diffuse.models.averaging import Averaging
from diffuse.models.cnn import Cnn
from diffuse.models.ddpm import Ddpm
from diffuse.models.process import Process
from diffuse.models.unet import UNet


def build(config: CnnConfig | UNetConfig) -> nn.Module:
    """The network that `config` describes, with torch's default initial weights."""
    match config:
        case CnnConfig():
            return Cnn(config)
        case UNetConfig():
            return UNet(config)


def build_process(config: Config) -> Process:
    """The process that `config` describes, on the CPU."""
    match config.process:
        case DdpmConfig() as settings:
            return Ddpm.from_config(settings)
        case AveragingConfig() as settings:
            return Averaging.from_config(settings, config.seed, config.data.amplitude)
