"""One self-contained page of a grid's results: no network, readable on a phone and in print."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launch import published
from launch.charts import curves
from launch.results import Group, Result, differences, groups, over_seeds, reruns

TEMPLATES = Path(__file__).parent / "templates"
MOST_BYTES = 6_000_000  # of pictures; beyond that only each run's last epoch is shown
PNG = b"\x89PNG\r\n\x1a\n"


def render(results: Sequence[Result], runs_dir: Path, title: str) -> str:
    """The page as HTML. Everything that comes from run directories is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["score"] = score
    found = groups(results)
    names = {r.name: _label(r, results) for r in results}
    sizes = [p.stat().st_size for r in results for _, p in r.pictures]
    last_only = sum(sizes) * 4 / 3 > MOST_BYTES
    return environment.get_template("report.html.j2").render(
        title=title,
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        results=results,
        names=names,
        groups=[_group(group, results, names) for group in found],
        loss=curves({names[r.name]: r.losses for r in results if r.losses}, "loss", log=True)
        if any(r.losses for r in results)
        else "",
        pictures={r.name: _pictures(r, last_only) for r in results},
        strips={r.name: _data_uri(r.dir.plots / "degradation.png") for r in results},
        last_only=last_only,
        problems=[(names[r.name], problem) for r in results for problem in r.problems],
        differences=differences(results),
        pairs=reruns(results, runs_dir),
        published=published,
    )


def score(value: float | None, digits: int = 2) -> str:
    """A figure for people: three or so significant digits."""
    if value is None:
        return ""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.{digits}f}" if abs(value) >= 0.1 or value == 0 else f"{value:.2g}"


def _group(group: Group, results: Sequence[Result], names: Mapping[str, str]) -> dict[str, Any]:
    last = sorted(group.last(), key=lambda c: c.value("fid") or 0.0)
    keys = [k for k in ("fid", "kid", "is", "mse", "psnr", "ssim") if any(c.value(k) for c in last)]
    lines: dict[str, dict[str, list[tuple[float, float]]]] = {"fid": {}, "is": {}}
    for cell in sorted(group.cells, key=lambda c: c.epoch):
        for key, by_line in lines.items():
            point = (float(cell.epoch), float(cell.figure[key]))
            by_line.setdefault(f"{names[cell.run]}, {cell.sampler}", []).append(point)
    real = f"real test images ({min(group.protocol['images'], 10_000):,})"
    several = any(len(points) > 1 for points in lines["fid"].values())
    return {
        "group": group,
        "cells": last,
        "keys": keys,
        "best": {key: group.best(key, last) for key in keys},
        "fid": curves(lines["fid"], "FID", log=True, floor=(real, group.floor["fid"]), markers=True)
        if several
        else "",
        "is": curves(lines["is"], "IS", floor=(real, group.floor["is"]), markers=True)
        if several
        else "",
        "seeds": over_seeds(group, results),
    }


def _label(result: Result, results: Sequence[Result]) -> str:
    """The title where it is unique, else the seed or the name beside it."""
    alike = [r for r in results if r.title == result.title]
    if len(alike) == 1:
        return result.title
    if len({r.seed for r in alike}) == len(alike):
        return f"{result.title}, seed {result.seed}"
    return result.name


def _pictures(result: Result, last_only: bool) -> list[tuple[int, str]]:
    shown = result.pictures[-1:] if last_only else result.pictures
    return [(epoch, uri) for epoch, path in shown if (uri := _data_uri(path))]


def _data_uri(path: Path) -> str:
    """The picture within the page; "" where there is none or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return ""
    if not content.startswith(PNG) or b"IEND" not in content[-16:]:
        return ""
    return "data:image/png;base64," + base64.b64encode(content).decode()
