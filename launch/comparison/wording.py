"""The words of a comparison, the same in the terminal, on the page and in a thesis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from launch.results.grouping import Column

MOST_NAMED = 14  # runs in a list, and lines in a legend: more would outgrow their place
HEADINGS = {
    "loss": "loss",
    "fid": "FID",
    "kid": "KID",
    "is": "IS",
    "mse": "MSE",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
}
CALLS = "network calls"  # of a sampler, for one image
SOURCES = {
    "noise": "from noise",
    "prior": "from the prior of line means",
    "uniform means": "from uniform line means",
    "test images": "restored from degraded test images",
}


def score(value: float | None) -> str:
    """A figure for people: three or so significant digits, a dash where there is none."""
    if value is None or value != value:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) >= 0.1 or value == 0 else f"{value:#.3g}"


def count(value: int | None) -> str:
    """A whole number for people, a dash where there is none."""
    return "-" if value is None else f"{value:,}"


def few(runs: Sequence[str], names: Mapping[str, str]) -> str:
    """The labels of runs, and how many more there are where they would fill a page."""
    shown = [names[run] for run in runs[:MOST_NAMED]]
    more = len(runs) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def heading(column: Column) -> str:
    """`ddim-50, from noise`."""
    return f"{column.sampler}, {SOURCES.get(column.source, column.source)}"
