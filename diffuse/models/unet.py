"""A small U-Net in the manner of Ho et al. 2020, appendix B: residual blocks, group norm, skips.

With `patch` p the image enters as p^2 channels at 1/p of the resolution, which saves most of the
time that full resolution costs.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse.config.schema import UNetConfig

GROUPS = 8


def time_features(time: Tensor, width: int) -> Tensor:
    """Sinusoidal features [B, width] of time in [0, 1] (Vaswani et al. 2017, at 1000 * time)."""
    half = width // 2
    exponents = torch.arange(half, device=time.device, dtype=torch.float32) / half
    phase = 1000 * time.float()[:, None] * torch.exp(-math.log(10_000) * exponents)  # [B, half]
    return torch.cat([phase.sin(), phase.cos()], dim=1)


class ResBlock(nn.Module):
    """Norm -> SiLU -> conv, told the time by scale and shift, around a shortcut."""

    def __init__(
        self, in_channels: int, out_channels: int, time_width: int, dropout: float
    ) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(GROUPS, in_channels)
        self.conv_in = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_width, 2 * out_channels)
        self.norm_out = nn.GroupNorm(GROUPS, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv_out = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        nn.init.zeros_(self.conv_out.weight)  # a new block is the identity
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]
        self.shortcut: nn.Module = (
            nn.Identity()
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        scale, shift = self.time(time)[:, :, None, None].chunk(2, dim=1)  # [B, C, 1, 1] each
        h = self.conv_in(F.silu(self.norm_in(x)))
        h = self.norm_out(h) * (1 + scale) + shift
        h = self.conv_out(self.dropout(F.silu(h)))
        return self.shortcut(x) + h  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Single-head self-attention over the pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, c, h * w).transpose(2, 3)  # [B, 3, HW, C]
        q, k, v = qkv.unbind(1)
        mixed = F.scaled_dot_product_attention(q, k, v)  # [B, HW, C]
        return x + self.out(mixed.transpose(1, 2).reshape(b, c, h, w))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """x_t [B, 1, 28, 28], time t / T [B], perhaps labels [B] -> prediction [B, 1, 28, 28].

    One skip connection per resolution; `blocks` residual blocks on each side of it. At the lowest
    one, attention sees the whole image, and `after_attention` blocks make use of it.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        channels, patch, lowest = config.channels, config.patch, config.channels[-1]
        self.patch = patch
        self.features = channels[0]
        width = 4 * channels[0]
        self.time_mlp = nn.Sequential(
            nn.Linear(self.features, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )

        def level(
            in_channels: int, out_channels: int, blocks: int = config.blocks
        ) -> nn.ModuleList:
            ins = [in_channels, *[out_channels] * blocks][:blocks]
            return nn.ModuleList(ResBlock(i, out_channels, width, config.dropout) for i in ins)

        pairs = list(itertools.pairwise(channels))  # (finer, coarser) resolutions
        self.enter = nn.Conv2d(patch * patch, channels[0], 3, padding=1)
        self.down = nn.ModuleList(level(fine, fine) for fine, _ in pairs)
        self.shrink = nn.ModuleList(nn.Conv2d(f, c, 3, stride=2, padding=1) for f, c in pairs)
        self.middle = level(lowest, lowest)
        self.attention: nn.Module = Attention(lowest) if config.attention else nn.Identity()
        self.after = level(lowest, lowest, config.after_attention)
        self.grow = nn.ModuleList(nn.Conv2d(c, f, 3, padding=1) for f, c in reversed(pairs))
        self.up = nn.ModuleList(level(2 * fine, fine) for fine, _ in reversed(pairs))
        self.norm = nn.GroupNorm(GROUPS, channels[0])
        self.head = nn.Conv2d(channels[0], patch * patch, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        self.classes = config.classes
        self.labels = nn.Embedding(config.classes + 1, width) if config.classes else None
        if self.labels is not None:
            nn.init.zeros_(self.labels.weight)

    @property
    def outer(self) -> tuple[nn.Module, ...]:
        """The layers that touch the pixels or the labels."""
        return self.enter, self.head, *([] if self.labels is None else [self.labels])

    def forward(self, x_t: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        """
        Args:
            label: [B], `classes` for none; taken by a network with labels only.
        """
        emb = self.time_mlp(time_features(time, self.features))  # [B, 4 C]
        if self.labels is not None:
            if label is None:
                label = torch.full((len(x_t),), self.classes, device=x_t.device)
            emb = emb + self.labels(label)
        x = self.enter(F.pixel_unshuffle(x_t, self.patch))  # [B, C, 28 / p, 28 / p]
        skips = []
        for blocks, shrink in zip(self.down, self.shrink, strict=True):
            x = _through(blocks, x, emb)
            skips.append(x)
            x = shrink(x)
        x = _through(self.after, self.attention(_through(self.middle, x, emb)), emb)
        for grow, blocks in zip(self.grow, self.up, strict=True):
            x = grow(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = _through(blocks, torch.cat([x, skips.pop()], dim=1), emb)
        x = self.head(F.silu(self.norm(x)))  # [B, p^2, 28 / p, 28 / p]
        return F.pixel_shuffle(x, self.patch)


def _through(blocks: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
    for block in blocks.children():
        x = block(x, emb)
    return x
