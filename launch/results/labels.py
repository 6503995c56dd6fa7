"""The names of runs side by side: the preset, and nothing but what tells it from its like."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from diffuse.config.schema import UNSIGNED
from launch.grids.selection import leaves
from launch.results.results import Result

# Sections that change neither the weights nor the figures of a cell.
INDIFFERENT = ("system", "tracking", "checkpoint", "samples", "eval")
Settings = dict[str, str]  # dotted key: value as JSON


def settings(config: Mapping[str, Any]) -> Settings:
    """The settings that change a cell, other than its seed and its number of epochs."""
    kept = {k: v for k, v in config.items() if k not in (*INDIFFERENT, "preset", "seed")}
    unsigned = {f"train.{key}" for key in UNSIGNED}
    return {k: json.dumps(v).strip('"') for k, v in leaves(kept) if k not in unsigned}


def labels(results: Sequence[Result]) -> dict[str, str]:
    """A label for each run, by its name: `ddpm/quick lr=0.004, seed 1`. No two are the same."""
    without_seed = titles(results)
    many = Counter(without_seed.values())
    found = {}
    for result in results:
        label = without_seed[result.name]
        has_like = many[label] > 1 and result.seed is not None and not result.is_file
        found[result.name] = f"{label}, seed {result.seed}" if has_like else label
    count = Counter(found.values())
    return {name: label if count[label] == 1 else name for name, label in found.items()}


def lines(results: Sequence[Result]) -> dict[str, str]:
    """The line of each run in charts: runs that differ by their seed only share one."""
    label_of, title_of = labels(results), titles(results)
    seeds: dict[str, list[int | None]] = {}
    for result in results:
        seeds.setdefault(title_of[result.name], []).append(result.seed)
    has_seeds = {title: len(set(s)) == len(s) > 1 for title, s in seeds.items()}
    return {run: title if has_seeds[title] else label_of[run] for run, title in title_of.items()}


def titles(results: Sequence[Result]) -> dict[str, str]:
    """A title for each run, by its name, which runs share that differ by their seed only."""
    found: dict[str, str] = {}
    for title in dict.fromkeys(result.title for result in results):
        alike = {r.name: settings(r.config) for r in results if r.title == title}
        keys = _telling(list(alike.values()))
        found |= {name: " ".join([title, *pairs(values, keys)]) for name, values in alike.items()}
    return found


def pairs(of_run: Settings, keys: Sequence[str]) -> list[str]:
    """`lr=0.001`, `order=random`; whole keys where the last parts are not unique."""
    short = [key.partition(".")[2] or key for key in keys]
    names = short if len(set(short)) == len(short) else keys
    return [f"{n}={of_run[k]}" for n, k in zip(names, keys, strict=True) if k in of_run]


def _telling(runs: Sequence[Settings]) -> list[str]:
    """As few keys as tell all different `runs` apart, the most telling first."""

    def told_apart(keys: Sequence[str]) -> int:
        return len({tuple(run.get(key) for key in keys) for run in runs})

    every = list(dict.fromkeys(key for run in runs for key in run))
    chosen: list[str] = []
    while told_apart(chosen) < told_apart(every):
        chosen.append(max(every, key=lambda key: told_apart([*chosen, key])))
    return chosen
