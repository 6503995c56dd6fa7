"""Curves as SVG text for the report: no display, no file; a run looks the same in all of them.

Of runs that differ by their seed only, a curve is the mean, with a band of one standard deviation.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from diffuse.rundir.plots import Look, own_style, reason
from diffuse.runtime import console
from launch.comparison.wording import MOST_NAMED

FEW_TICKS = 4  # between numbers that lie close together, and so have many digits
WIDE_LEGEND = 68  # characters, of a name and the floor's side by side
LONG_NAME = 26  # characters; longer names stand one below the other in the legend
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "diffuse",
    "font.size": 10.5,
    "font.family": "sans-serif",
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "text.parse_math": False,  # a name may hold a $
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#33363b",
    "xtick.color": "#5f6368",
    "ytick.color": "#5f6368",
}
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A line of a chart, and its band: x, lower and upper edge."""

    points: Points
    band: Sequence[tuple[float, float, float]] = field(default=())


def mean_curve(seeds: Sequence[Points], tie: bool = False) -> Curve:
    """The mean over seeds, with a standard deviation to both sides where there are two or more.

    Args:
        tie: between the points of a seed lies a straight line; else only points at the same x are
            averaged.
    """
    if tie and len(seeds) > 1:
        grid = [x for x, _ in min(seeds, key=lambda points: points[-1][0])]
        tied = []
        for points in seeds:
            x, y = np.array(points).T
            tied.append(list(zip(grid, np.interp(grid, x, y).tolist(), strict=True)))
        seeds = tied
    at: dict[float, list[float]] = {}
    for x, y in (point for points in seeds for point in points):
        at.setdefault(x, []).append(float(y))
    means = {x: float(np.mean(ys)) for x, ys in sorted(at.items())}
    spread = {x: float(np.std(ys, ddof=1)) for x, ys in at.items() if len(ys) > 1}
    band = [(x, y - spread[x], y + spread[x]) for x, y in means.items() if x in spread]
    return Curve(list(means.items()), band)


@dataclass(frozen=True)
class Chart:
    """Lines over epochs, or over another quantity, each with the look of its name.

    Args:
        log: whether the vertical axis is logarithmic.
        floor: the name and the height of a grey line; with it, points are marked.
        xlabel: another quantity than epochs; its axis is logarithmic where it spans a decade.
    """

    lines: Mapping[str, Curve]
    ylabel: str
    looks: Mapping[str, Look]
    log: bool = False
    floor: tuple[str, float] | None = None
    xlabel: str = "epoch"

    def svg(self) -> Markup:
        """An SVG element. A chart that cannot be drawn is a note on the page and on the screen."""
        title = f"{self.ylabel} over {'epochs' if self.xlabel == 'epoch' else self.xlabel}"
        try:
            svg = self._svg()
        except Exception as error:
            console.note(f"{title}: not drawn: {reason(error)}")
            return Markup("<p>{}: not drawn: {}</p>").format(title, reason(error))
        label = escape(f"{title}: {', '.join(list(self.lines)[:MOST_NAMED])}")
        element = Markup(svg[svg.index("<svg") + 4 :])
        return Markup(f'<svg role="img" aria-label="{label}"') + element

    def draw(self, axes: Any) -> None:
        """All of it but the legend, on matplotlib's axes."""
        from matplotlib.ticker import MaxNLocator

        for k, (name, curve) in enumerate(self.lines.items()):
            colour, dash, marker = self.looks[name]
            if curve.band:
                x, low, high = zip(*curve.band, strict=True)
                axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
            axes.plot(
                *zip(*curve.points, strict=True),
                color=colour,
                linestyle=dash,
                marker=marker if self.floor else None,
                label=name if k < MOST_NAMED else "_unnamed",
            )
        if self.floor:
            name, height = self.floor
            axes.axhline(height, color="0.35", linestyle=(0, (1, 2)), label=name)
        if self.log:
            plain_log_axis(axes)
        every = [x for curve in self.lines.values() for x, _ in curve.points]
        if self.xlabel == "epoch":
            if self.floor:
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        elif min(every) > 0 and max(every) >= 10 * min(every):
            plain_log_axis(axes, "x")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(FEW_TICKS))
        axes.set_xlabel(self.xlabel)
        axes.set_ylabel(self.ylabel)
        axes.grid(True, which="major", color="0.9", linewidth=0.7)
        axes.grid(True, which="minor", color="0.95", linewidth=0.4)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)

    def _svg(self) -> str:
        named = min(len(self.lines), MOST_NAMED)
        with own_style(**STYLE):
            from matplotlib.figure import Figure

            longest = max(map(len, self.lines))
            of_floor = len(self.floor[0]) if self.floor else 0
            fits = longest <= LONG_NAME and longest + of_floor <= WIDE_LEGEND
            columns = 2 if fits else 1
            height = 3.3 + 0.2 * -(-(named + 1) // columns)
            figure = Figure(figsize=(5.4, height), layout="constrained")
            self.draw(figure.subplots())
            figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
            text = io.StringIO()
            figure.savefig(
                text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
            )
        return text.getvalue()


def plain_log_axis(axes: Any, which: str = "y") -> None:
    """A logarithmic axis with plain numbers, at 1, 2 and 5: powers would need formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    getattr(axes, f"set_{which}scale")("log")
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())
