"""Curves as SVG text for the report: no display, no file; a run looks the same in all of them."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from diffuse.rundir.plots import Look, own_style, reason
from diffuse.runtime import console

LONG_NAME = 26  # characters; longer names stand one below the other in the legend
MOST_NAMED = 14  # lines in the legend; more would outgrow the chart
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "diffuse",
    "font.size": 10.5,
    "font.family": "sans-serif",
    "text.parse_math": False,  # a name may hold a $
    "axes.edgecolor": "#8a8f98",
    "axes.labelcolor": "#33363b",
    "xtick.color": "#5f6368",
    "ytick.color": "#5f6368",
}
Points = Sequence[tuple[float, float]]


def curves(
    lines: Mapping[str, Points],
    ylabel: str,
    looks: Mapping[str, Look],
    *,
    log: bool = False,
    floor: tuple[str, float] | None = None,
    markers: bool = False,
) -> Markup:
    """Lines over epochs, each with the look of its name, `floor` as a grey line; an SVG element.

    Where that cannot be drawn it is a note on the page and on the screen.
    """
    title = f"{ylabel} over epochs"
    try:
        svg = _svg(lines, ylabel, looks, log, floor, markers)
    except Exception as error:
        console.note(f"{title}: not drawn: {reason(error)}")
        return Markup("<p>{}: not drawn: {}</p>").format(title, reason(error))
    label = escape(f"{title}: {', '.join(list(lines)[:MOST_NAMED])}")
    return Markup(f'<svg role="img" aria-label="{label}"') + Markup(svg[svg.index("<svg") + 4 :])


def plain_log_axis(axes: Any) -> None:
    """A logarithmic y axis with plain numbers, at 1, 2 and 5: powers would need formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _svg(
    lines: Mapping[str, Points],
    ylabel: str,
    looks: Mapping[str, Look],
    log: bool,
    floor: tuple[str, float] | None,
    markers: bool,
) -> str:
    named = min(len(lines), MOST_NAMED)
    with own_style(**STYLE):
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        columns = 2 if max(map(len, lines)) <= LONG_NAME else 1
        height = 3.3 + 0.2 * -(-(named + 1) // columns)
        figure = Figure(figsize=(5.4, height), layout="constrained")
        axes = figure.subplots()
        for k, (name, points) in enumerate(lines.items()):
            axes.plot(
                *zip(*points, strict=True),
                color=looks[name].colour,
                linestyle=looks[name].dash,
                marker=looks[name].marker if markers else None,
                markersize=4.5,
                linewidth=1.6,
                label=name if k < named else "_unnamed",
            )
        if floor is not None:
            axes.axhline(floor[1], color="0.35", linestyle=(0, (1, 2)), label=floor[0])
        if log:
            plain_log_axis(axes)
        if markers:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.set_ylabel(ylabel)
        axes.grid(True, which="major", color="0.9", linewidth=0.7)
        axes.grid(True, which="minor", color="0.95", linewidth=0.4)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
        text = io.StringIO()
        figure.savefig(
            text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
        )
    return text.getvalue()
