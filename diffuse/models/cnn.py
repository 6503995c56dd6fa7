"""The report's network: 7 x 7 convolutions at full resolution, told the time after block one."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.config.schema import CnnConfig
from diffuse.config.section import IMAGE_SIZE

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "selu": nn.SELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


class Block(nn.Module):
    """Conv 7 x 7 -> LayerNorm over channels and pixels -> activation, in channels-last layout."""

    def __init__(self, in_channels: int, out_channels: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 7, padding=3)
        self.norm = nn.LayerNorm((out_channels, IMAGE_SIZE, IMAGE_SIZE))
        for p in self.norm.parameters():  # [C, 28, 28], whose layout `to` leaves alone
            p.data = p.data[None].to(memory_format=torch.channels_last)[0]
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        # all of it views: layer norm works on the layout that the convolution leaves
        weight, bias = (p.permute(1, 2, 0) for p in (self.norm.weight, self.norm.bias))
        h = self.conv(x).permute(0, 2, 3, 1)  # [B, 28, 28, C]
        h = F.layer_norm(h, h.shape[1:], weight, bias, self.norm.eps)
        return self.activation(h).permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class Cnn(nn.Module):
    """x_t [B, 1, 28, 28], time t / T [B] -> prediction [B, 1, 28, 28].

    291,217 parameters with channels 16, 32, 32, 16.
    """

    frequencies: Tensor

    def __init__(self, config: CnnConfig) -> None:
        super().__init__()
        activation = ACTIVATIONS[config.activation]
        ins = (1, *config.channels[:-1])
        self.blocks = nn.ModuleList(
            Block(i, o, activation) for i, o in zip(ins, config.channels, strict=True)
        )
        self.head = nn.Conv2d(config.channels[-1], 1, 3, padding=1)
        self.time_mlp = nn.Sequential(
            nn.Linear(32, 128),
            activation(),
            nn.Linear(128, 128),
            activation(),
            nn.Linear(128, 128),
            activation(),
            nn.Linear(128, config.channels[0]),
        )
        # 16 frequencies: 0, then 2 pi 1.5^0 .. 2 pi 1.5^14
        frequencies = [0.0, *(2 * math.pi * 1.5**k for k in range(15))]
        self.register_buffer("frequencies", torch.tensor(frequencies))
        self.to(memory_format=torch.channels_last)

    @property
    def outer(self) -> tuple[nn.Module, ...]:
        """The layers that touch the pixels."""
        return self.blocks[0], self.head

    def forward(self, x_t: Tensor, time: Tensor) -> Tensor:
        phase = time[:, None] * self.frequencies  # [B, 16]
        features = torch.cat([phase.sin(), phase.cos() - 1], dim=1)  # [B, 32]
        embedding = self.time_mlp(features)[:, :, None, None]  # [B, C, 1, 1]
        x = self.blocks[0](x_t) + embedding  # [B, C, 28, 28]
        for block in self.blocks[1:]:
            x = block(x)
        return self.head(x)  # type: ignore[no-any-return]
