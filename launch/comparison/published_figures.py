"""The figures that the report published, and why none of ours may stand in one column with them."""

from __future__ import annotations

from typing import NamedTuple

WHY = (
    "The report hands images in [-0.5, 0.5] to a cast that wraps them (-0.5 becomes 129, +0.5"
    " becomes 127), compares 100 images where 2,048 features need many thousands, and uses another"
    " extractor. Its figures are shown for the record; a larger or smaller number there says"
    " nothing about ours."
)


class Published(NamedTuple):
    """One run of the report; `title` is that of our run of the same preset and orientation."""

    title: str
    epochs: str
    fid: str
    is_: str
    loss: str


FIGURES = (
    Published("ddpm/default", "100", "98.74", "1.38 ± 0.12", ""),
    Published("ddpm/testing2", "100", "95.35", "1.5 ± 0.13", ""),
    Published("cold/default_28 row", "80", "108.5", "1.9 ± 0.18 (real 1.7 ± 0.24)", ""),
    Published(
        "cold/default_28 col", "60 or 80", "115.9", "1.31 ± 0.2 (real 1.26 ± 0.16)", "0.0078"
    ),
    Published("cold/default_7 row", "80", "189.84", "1.97 ± 0.32 (real 1.79 ± 0.23)", "0.0108"),
    Published("cold/default_7 col", "60", "195.3", "1.44", "0.013"),
)
