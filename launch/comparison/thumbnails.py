"""A run's samples as small pictures within the page: one pixel a pixel, enlarged by the browser."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diffuse.rundir.directory import RunDir
from diffuse.rundir.plots import Images, spread, stretch, tile
from diffuse.runtime import hdf5
from launch.results.results import Result

STRIP = 8  # images in a row of a strip


@dataclass(frozen=True)
class Picture:
    """A picture with its caption; `columns` images wide."""

    caption: str
    uri: str
    columns: int


@dataclass(frozen=True)
class Album:
    """The pictures of a run."""

    grids: list[Picture]  # samples over epochs, each a square
    strips: list[Picture]  # one test image a column: original, degraded, then restored by epoch
    process: str  # plots/degradation.png
    moving: str = ""  # plots/trajectory.gif, or a newer one of diffuse.sample --trajectory


def album(result: Result, most: int, moves: bool) -> Album:
    """The pictures of a run; a damaged file is added to its problems.

    Args:
        most: epochs. Where that is one, the page is about many runs: the process is left out.
        moves: with the moving picture.
    """
    if result.is_file:
        return Album([], [], "")
    grids: list[Picture] = []
    strips: list[Picture] = []
    for epoch, path in spread(drawn(result.dir), most):
        try:
            sets, sampler = read_images(path)
        except (OSError, hdf5.Damaged, KeyError, ValueError):
            result.problems.append(f"{path}: damaged; its pictures are left out")
            continue
        if "original" in sets and not strips:
            strips.append(_strip("original", sets["original"]))
            strips.append(_strip("degraded, contrast stretched", sets["degraded"]))
        for name, images in sets.items():
            by = name if name != "images" else sampler or "samples"
            if name in ("original", "degraded") or name.startswith("x_T"):
                continue
            if "original" in sets and f"x_T_{by}" not in sets:
                strips.append(_strip(f"{by}, epoch {epoch}", images))
            else:
                grids += _drawn_pair(f"{by}, epoch {epoch}", images, sets.get(f"x_T_{by}"))
    # Cold diffusion without a test image: only the evaluation draws from the prior.
    for source in ("prior", "uniform means"):
        drawn_at = {c.epoch: c.figure.samples for c in result.cells if c.source == source}
        found = [
            (epoch, result.dir.path / file) for epoch, file in sorted(drawn_at.items()) if file
        ]
        for epoch, path in spread(found, most):
            if path.parent != result.dir.samples:
                continue
            try:
                sets, sampler = read_images(path)
                caption = f"{sampler or 'samples'}, epoch {epoch}"
                grids += _drawn_pair(caption, sets["images"], sets.get("x_T"))
            except FileNotFoundError:
                continue  # cleaned away
            except (OSError, hdf5.Damaged, KeyError, ValueError):
                result.problems.append(f"{path}: damaged; its pictures are left out")
    if most == 1:
        return Album(grids, strips, "")
    return Album(grids, strips, _process(result), _moving(result) if moves else "")


def drawn(run: RunDir) -> list[tuple[int, Path]]:
    """The epochs at which training drew images, and the files."""
    return [(epoch, run.samples_path(epoch)) for epoch in run.sampled_epochs()]


def _drawn_pair(caption: str, images: Images, x_T: Images | None) -> list[Picture]:
    """The images, and before them the drawn x_T, if any, from which they were made."""
    start = [] if x_T is None else [_grid(f"drawn x_T, contrast stretched, {caption}", x_T)]
    return [*start, _grid(caption, images)]


def read_images(path: Path) -> tuple[dict[str, Images], str]:
    """The first 16 images of each data set, x_T with stretched contrast; the sampler, if noted."""
    sets, attributes = hdf5.read(path, first=16)
    for name, images in sets.items():
        if name.startswith("x_T") and images.ndim == 4 and images.size:
            sets[name] = images = stretch(images)
        if images.dtype != np.uint8 or images.ndim != 3 or not images.size:
            raise ValueError(f"{name}: {images.dtype} {images.shape}")
    return sets, str(attributes.get("sampler", ""))


def _grid(caption: str, images: Images) -> Picture:
    columns = max(1, round(len(images) ** 0.5))
    return Picture(caption, _png(Image.fromarray(tile(images, columns))), columns)


def _strip(caption: str, images: Images) -> Picture:
    images = images[:STRIP]
    return Picture(caption, _png(Image.fromarray(tile(images, len(images)))), len(images))


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return _data_uri(buffer.getvalue())


def _process(result: Result) -> str:
    """plots/degradation.png in 64 greys; "" where there is none."""
    path = result.dir.plots / "degradation.png"
    try:
        with Image.open(path) as image:
            return _png(image.convert("L").quantize(64))
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, SyntaxError):
        result.problems.append(f"{path}: damaged; delete it, a later epoch draws it anew")
        return ""


def _moving(result: Result) -> str:
    """The newest moving picture of the run; "" where there is none."""
    training, requested = result.dir.plots, result.dir.samples
    try:
        pictures = [*training.glob("trajectory.gif"), *requested.glob("*_trajectory.gif")]
        newest = max(pictures, key=lambda path: path.stat().st_mtime, default=None)
        content = b"" if newest is None else newest.read_bytes()
    except OSError as error:
        result.problems.append(f"{result.dir.samples}: no moving picture: {error.strerror}")
        return ""
    return _data_uri(content, "gif") if content.startswith(b"GIF8") else ""


def _data_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
