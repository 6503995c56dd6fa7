"""The networks: x_t [B, 1, 28, 28] and time t / T [B] to a prediction [B, 1, 28, 28]."""

from __future__ import annotations

from torch import nn

from diffuse.config import CnnConfig, UNetConfig
from diffuse.models.cnn import Cnn
from diffuse.models.unet import UNet


def build(config: CnnConfig | UNetConfig) -> nn.Module:
    """The network that `config` describes, with torch's default initial weights."""
    match config:
        case CnnConfig():
            return Cnn(config)
        case UNetConfig():
            return UNet(config)
