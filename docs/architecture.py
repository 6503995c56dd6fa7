"""Draw docs/architecture.svg: `python docs/architecture.py`. Programs are boxes, files are grey."""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt

FILES, LIBRARY, LAUNCHER = "#e8e8e8", "#d7e8f7", "#fbe3c8"
BOXES = {  # text, x, y, width, colour
    "config": ("configs/\npresets, grids, clusters", 0.0, 2.0, 2.8, FILES),
    "sweep": ("launch/sweep.py: what a grid\nlacks in runs/, as jobs", 3.4, 2.0, 3.2, LAUNCHER),
    "jobs": (
        "Slurm arrays, sbatch slurm/*.sh,\nprocesses on this machine",
        7.2,
        2.0,
        3.6,
        LAUNCHER,
    ),
    "data": ("mnist.h5\nby diffuse.prepare", 0.0, 0.6, 2.8, FILES),
    "train": ("diffuse.train\none rank on each GPU", 3.4, 0.6, 3.2, LIBRARY),
    "run": (
        "the run directory: settings, losses,\ncheckpoints, samples, figures",
        7.2,
        0.6,
        3.6,
        FILES,
    ),
    "evaluate": (
        "diffuse.evaluate, diffuse.sample,\ndiffuse.export, diffuse.load",
        7.2,
        -0.8,
        3.6,
        LIBRARY,
    ),
    "compare": (
        "launch/status, launch/compare:\nterminal, page, PDF, LaTeX",
        11.4,
        1.3,
        3.2,
        LAUNCHER,
    ),
    "wandb": ("a process of its own: W&B,\nor later by launch/sync.py", 11.4, -0.1, 3.2, LIBRARY),
}
ARROWS = [
    ("config", "sweep"),
    ("sweep", "jobs"),
    ("jobs", "train"),
    ("data", "train"),
    ("train", "run"),
    ("run", "evaluate"),
    ("evaluate", "run"),
    ("run", "compare"),
    ("run", "wandb"),
]
HEIGHT = 0.8


def main() -> None:
    plt.rcParams.update(
        {
            "svg.hashsalt": "diffuse",
            "svg.fonttype": "none",
            "font.size": 9,
            "font.family": "DejaVu Sans",
        }
    )
    figure, axes = plt.subplots(figsize=(13, 3.6))
    for text, x, y, width, colour in BOXES.values():
        box = plt.Rectangle((x, y), width, HEIGHT, facecolor=colour, edgecolor="#555555")
        axes.add_patch(box)
        axes.text(x + width / 2, y + HEIGHT / 2, text, ha="center", va="center")
    for source, target in ARROWS:
        axes.annotate(
            "",
            xy=_side(target, source),
            xytext=_side(source, target),
            arrowprops={"arrowstyle": "-|>", "color": "#333333", "shrinkA": 1, "shrinkB": 1},
        )
    axes.set_xlim(-0.1, 14.7)
    axes.set_ylim(-0.9, 2.9)
    axes.axis("off")
    path = Path(__file__).with_suffix(".svg")
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    print(path)


def _side(name: str, other: str) -> tuple[float, float]:
    """The point of a box's edge from which an arrow to, or from, the other box leaves."""
    _, x, y, width, _ = BOXES[name]
    _, other_x, other_y, other_width, _ = BOXES[other]
    if other_x >= x + width:
        return x + width, y + HEIGHT / 2
    if x >= other_x + other_width:
        return x, y + HEIGHT / 2
    return x + width / 2, y + (HEIGHT if other_y > y else 0)


if __name__ == "__main__":
    main()
