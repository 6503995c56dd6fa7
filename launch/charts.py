"""Curves as SVG text for the report: no display, no file, Okabe and Ito's colours."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D1F")
DASHES = ("-", "--", "-.", ":")
Points = Sequence[tuple[float, float]]


def curves(
    lines: Mapping[str, Points],
    ylabel: str,
    *,
    log: bool = False,
    floor: tuple[str, float] | None = None,
    markers: bool = False,
) -> str:
    """Lines over epochs, told apart by colour and dash, `floor` as a grey line; an SVG element."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "diffuse", "font.size": 10}):
        figure = Figure(figsize=(7.6, 3.9), layout="constrained")
        axes = figure.subplots()
        for k, (name, points) in enumerate(lines.items()):
            axes.plot(
                *zip(*points, strict=True),
                color=COLOURS[k % len(COLOURS)],
                linestyle=DASHES[k // len(COLOURS) % len(DASHES)],
                marker="o" if markers else None,
                markersize=4,
                linewidth=1.6,
                label=name,
            )
        if floor is not None:
            axes.axhline(floor[1], color="0.45", linestyle=(0, (1, 2)), label=floor[0])
        if log:
            axes.set_yscale("log")
        if markers:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(ylabel)
        axes.grid(True, which="both", color="0.9", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return svg[svg.index("<svg") :]
