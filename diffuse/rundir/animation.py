"""Moving pictures as GIF, which browsers, READMEs and slides show by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffuse.rundir.plots import Images, tile
from diffuse.runtime import files

Panels = Sequence[tuple[str, Images]]  # headings and images [n, 28, 28], side by side

SCALE = 2  # screen pixels of an image's pixel
GREYS = 16  # noise does not compress: fewer greys keep the file small
LINE = 20  # height of the headings
FRAME_MS, LAST_MS = 90, 2500


def write(path: Path, frames: Sequence[Panels]) -> None:
    """Write the frames as an endless GIF, whose last one stays for a while."""
    pictures = [_frame(panels) for panels in frames]
    durations = [FRAME_MS] * (len(pictures) - 1) + [LAST_MS]
    with files.buffered(path) as buffer:
        pictures[0].save(
            buffer,
            format="gif",
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
            optimize=False,
        )


def _frame(panels: Panels) -> Image.Image:
    """The panels as nearly square grids under their headings, in GREYS greys."""
    font = ImageFont.load_default(12)
    columns = int(np.ceil(np.sqrt(len(panels[0][1]))))
    grids = [
        np.kron(tile(images, columns), np.ones((SCALE, SCALE), np.uint8)) for _, images in panels
    ]
    height, width = grids[0].shape
    gap = 4 * SCALE
    frame = Image.new("L", (len(grids) * (width + gap) - gap, height + LINE), 255)
    draw = ImageDraw.Draw(frame)
    for k, ((heading, _), grid) in enumerate(zip(panels, grids, strict=True)):
        left = k * (width + gap)
        frame.paste(Image.fromarray(grid), (left, LINE))
        draw.text((left + width / 2, LINE / 2), heading, fill=0, font=font, anchor="mm")
    levels = (np.asarray(frame) / 255 * (GREYS - 1)).round().astype(np.uint8)
    indexed = Image.fromarray(levels)
    indexed.putpalette([round(k * 255 / (GREYS - 1)) for k in range(GREYS) for _ in range(3)])
    return indexed
