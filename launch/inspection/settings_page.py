"""Every setting as Markdown: key, values, default and meaning."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from diffuse.config import processes, schema
from diffuse.config.section import Section
from launch.grids.cluster import Cluster
from launch.grids.grid import Entry, GridFile

INTRODUCTION = """\
# Settings

Written by `python launch/settings.py`. A preset is a YAML file with these keys;
`--set train.lr=4e-4` sets one on the command line.
"""
# The title of a table, the prefix of its keys on a command line, and their class.
TABLES: tuple[tuple[str, str, type[Section]], ...] = (
    ("A run", "", schema.Config),
    ("DDPM", "process.", processes.DdpmConfig),
    ("Cold diffusion", "process.", processes.AveragingConfig),
    ("The report's network", "model.", schema.CnnConfig),
    ("The U-Net", "model.", schema.UNetConfig),
    ("Data", "data.", schema.DataConfig),
    ("Training", "train.", schema.TrainConfig),
    ("Checkpoints", "checkpoint.", schema.CheckpointConfig),
    ("Pictures in training", "samples.", schema.SamplesConfig),
    ("Evaluation", "eval.", schema.EvalConfig),
    ("Weights & Biases", "tracking.", schema.TrackingConfig),
    ("The machine", "system.", schema.SystemConfig),
    ("A grid's file", "", GridFile),
    ("An entry of its runs", "", Entry),
    ("A cluster's file, and --cluster-set", "", Cluster),
)
BOUNDS = {
    "minimum": "from",
    "exclusiveMinimum": "above",
    "maximum": "to",
    "exclusiveMaximum": "below",
}


def lines() -> Iterator[str]:
    """The page, line by line."""
    yield INTRODUCTION
    for title, prefix, section in TABLES:
        yield from _table(title, prefix, section)


def _table(title: str, prefix: str, section: type[Section]) -> Iterator[str]:
    yield f"## {title}\n"
    yield from ("| key | values | default | meaning |", "|---|---|---|---|")
    properties = section.model_json_schema()["properties"]
    for name, property in properties.items():
        if "$ref" in property or "discriminator" in property:
            continue  # a section, which has a table of its own
        field = next(f for n, f in section.model_fields.items() if name in (n, f.alias))
        default = "" if field.is_required() else json.dumps(property.get("default"))
        cells = (f"`{prefix}{name}`", _values(property), default, field.description or "")
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _values(schema: dict[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "anyOf" in schema or "oneOf" in schema:
        branches = schema.get("anyOf") or schema["oneOf"]
        return " or ".join(dict.fromkeys(map(_values, branches)))
    if "const" in schema:
        return str(schema["const"])
    if "enum" in schema:
        return ", ".join(x if isinstance(x, str) else json.dumps(x) for x in schema["enum"])
    match schema.get("type"):
        case "array" if "prefixItems" in schema:
            return " and ".join(map(_values, schema["prefixItems"]))
        case "array":
            return f"list: {_values(schema['items'])}"
        case "null":
            return "null"
        case "boolean":
            return "true, false"
        case "integer" | "number" as kind:
            return _number(kind, schema)
        case "string":
            return "text"
        case _:
            return "keys and values"


def _number(kind: str, schema: dict[str, Any]) -> str:
    words = [f"{word} {schema[key]:g}" for key, word in BOUNDS.items() if key in schema]
    return " ".join([kind, *words])
