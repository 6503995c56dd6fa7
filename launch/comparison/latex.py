r"""Results as LaTeX tables with booktabs: `\usepackage{booktabs}` and `\input{table_....tex}`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from launch.comparison.wording import CALLS, HEADINGS, count
from launch.results.grouping import Column, SeedMean

SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
}
DIGITS = {"fid": 2, "kid": 2, "is": 2, "psnr": 2, "ssim": 3}  # after the point; others: 3 in all


def escaped(text: str) -> str:
    """A text in which LaTeX sees letters only; whatever is beyond ASCII is left out."""
    plain = text.encode("ascii", "replace").decode()
    return re.sub(r"[\\&%$#_{}~^<>|\"]", lambda match: SPECIAL[match[0]], plain)


def results(column: Column, names: Mapping[str, str]) -> str:
    """A line for each cell, the best of each column in bold, and a line for real images."""
    rows = []
    has_calls = any(cell.network_calls for cell in column.cells)
    for cell in column.cells:
        values = cell.figure.values()
        row = [escaped(names[cell.run]), str(cell.epoch)]
        for key in column.keys:
            value = cell.value(key)
            text = number(key, value, values.get(f"{key}_std"))
            is_best = value is not None and value == column.best(key)
            row.append(rf"\textbf{{\boldmath {text}}}" if is_best else text)
        rows.append([*row, count(cell.network_calls)] if has_calls else row)
    floor = [number(k, column.floor.get(k), column.floor.get(f"{k}_std")) for k in column.keys]
    head = ["run", "epoch", *(escaped(HEADINGS[key]) for key in column.keys)]
    last = ["real test images", "", *floor]
    return tabular([*head, CALLS], rows, [*last, ""]) if has_calls else tabular(head, rows, last)


def means(found: Sequence[SeedMean]) -> str:
    """A line for each group of seeds: mean and standard deviation."""
    keys = [key for key in HEADINGS if any(key in mean.scores for mean in found)]
    rows = []
    for mean in found:
        scores = [number(k, *mean.scores[k]) if k in mean.scores else "--" for k in keys]
        rows.append([escaped(mean.title), str(mean.epoch), str(len(mean.seeds)), *scores])
    return tabular(["run", "epoch", "seeds", *(escaped(HEADINGS[key]) for key in keys)], rows)


def number(key: str, value: float | None, deviation: float | None = None) -> str:
    """`98.74` or `$1.38 \\pm 0.12$`; two dashes where there is none."""
    if value is None:
        return "--"
    digits = DIGITS.get(key)
    text = f"{value:.{digits}f}" if digits is not None else f"{value:#.3g}"
    if deviation is None or (key == "kid" and value < 0.01):
        return text
    spread = f"{deviation:.{digits}f}" if digits is not None else f"{deviation:#.2g}"
    return rf"${text} \pm {spread}$"


def tabular(head: Sequence[str], rows: Sequence[Sequence[str]], last: Sequence[str] = ()) -> str:
    """A tabular environment: texts to the left in the first column, numbers to the right."""
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
    lines += [" & ".join(head) + r" \\", r"\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    if last:
        lines += [r"\midrule", " & ".join(last) + r" \\"]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])
