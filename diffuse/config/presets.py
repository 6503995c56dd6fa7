"""Settings from YAML presets and the command line, merged and validated.

Precedence: the config's defaults < preset file < grid cell < command line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml

from diffuse import ROOT
from diffuse.config.schema import Config
from diffuse.config.validation import Key, Layer, merge, validated
from diffuse.runtime.errors import UserError
from diffuse.runtime.options import typed_path

CONFIGS = ROOT / "configs"
if not (CONFIGS / "ddpm").is_dir():  # installed without a checkout: the package has a copy
    CONFIGS = ROOT / "diffuse" / "configs"


class Misleading(yaml.MarkedYAMLError):
    """YAML that means something else than it seems to."""


class _Loader(yaml.SafeLoader):
    """Builds plain values only, and takes 2:00:00 for text: YAML 1.1 has it a number to base 60.

    Raises Misleading for a key that stands twice, of which YAML drops one, and for 010, which is 8.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self.place: list[str] = []  # the keys on the way to the node that is being read

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        step = f"[{index}]" if isinstance(index, int) else f".{getattr(index, 'value', '')}"
        self.place.append(step.removesuffix("."))
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.MappingNode):
            self.require_single_keys(node)
        elif isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:int":
            self.require_decimal(node)
        self.place.pop()
        return node

    def require_single_keys(self, node: yaml.MappingNode) -> None:
        first: dict[tuple[str, str], int] = {}  # line
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in first:
                problem = f"stands twice, first in line {first[name]}; keep one"
                self.refuse(problem, key, key.value)
            first[name] = key.start_mark.line + 1

    def require_decimal(self, node: yaml.ScalarNode) -> None:
        if re.fullmatch(r"[-+]?0[0-7_]+", node.value):
            octal = int(node.value.replace("_", ""), 8)
            self.refuse(
                f"{node.value} is {octal} in YAML; write it without its zero in front, or as text"
                " in quotes",
                node,
            )

    def refuse(self, problem: str, node: yaml.Node, *key: str) -> NoReturn:
        place = "".join([*self.place, *(f".{k}" for k in key)]).lstrip(".")
        problem = f"{place}: {problem}" if place else problem
        raise Misleading(problem=problem, problem_mark=node.start_mark)

    def number(self, node: yaml.ScalarNode) -> int | float | str:
        if ":" in node.value:
            return str(node.value)
        is_int = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.number)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.number)


def load_config(preset: str, layers: Iterable[Layer] = ()) -> Config:
    """The preset named by its path under `configs/` (or a YAML file), with `layers` over it.

    Raises UserError: unknown preset, unknown key, wrong type, impossible value.
    """
    return resolve([preset_layer(preset), *layers])


def preset_layer(preset: str) -> Layer:
    """The settings of a preset's file; UserError where there is no such preset."""
    path = find_yaml(preset, kind="preset", folders=("ddpm", "cold"))
    ours = path.is_relative_to(CONFIGS)  # named by its path or not, it is the same preset
    name = str(path.relative_to(CONFIGS).with_suffix("")) if ours else path.stem
    return Layer(shown(path), {"preset": name, **read_yaml(path)})


def read_config(path: Path) -> Config:
    """The config.yaml of a run directory."""
    return resolve([Layer(str(path), read_yaml(path))])


def resolve(layers: Sequence[Layer]) -> Config:
    """The config that `layers` give, later over earlier, key by key."""
    return validated(Config, layers)


def command_line_layers(
    preset: str | None,
    config: Path | None,
    epochs: int | None,
    orientation: str | None,
    assignments: list[str],
    device: str | None,
    threads: int | None,
) -> list[Layer]:
    """The settings that the command line of diffuse.train names. Raises UserError."""
    layers = [parse_set(assignments)]
    for option, key, value in (
        ("--epochs", "train.epochs", epochs),
        ("--orientation", "process.orientation", orientation),
        ("--device", "system.device", device),
        ("--threads", "system.threads", threads),
    ):
        if value is not None:
            layers.append(parse_set([f"{key}={value}"], source=option))
    if (preset is None) == (config is None):
        raise UserError("name the run by either --preset or --config")
    if config is not None:
        return [Layer(str(config), read_yaml(config)), *layers]
    assert preset is not None
    if orientation is not None and preset.startswith("ddpm/"):
        raise UserError(f"--orientation is for cold diffusion; {preset} has none")
    return [preset_layer(preset), *layers]


def explained(config: Config, layers: Sequence[Layer]) -> str:
    """All settings as YAML, each with the place that set it as a remark: it can be read back."""
    set_by: dict[Key, int] = {}
    for number, layer in enumerate(layers):
        merge({}, layer.values, number, set_by)

    def lines(values: Mapping[str, Any], above: Key = ()) -> Iterator[str]:
        indent = "  " * len(above)
        for name, value in values.items():
            key = (*above, name)
            if isinstance(value, dict):
                yield f"{indent}{name}:"
                yield from lines(value, key)
                continue
            text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
            text = text.removesuffix("...\n").rstrip()
            place = layers[set_by[key]].source if key in set_by else "default"
            yield f"{f'{indent}{name}: {text}':<40}  # {place}"

    return "\n".join(lines(config.model_dump(mode="json")))


def parse_set(assignments: Sequence[str], source: str = "--set") -> Layer:
    """`["train.lr=4e-4"]` as a layer; values are read as YAML."""
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        keys = key.strip().split(".")
        if not equals or not all(re.fullmatch(r"\w+", part) for part in keys):
            raise UserError(f"{source} {assignment!r}: write KEY=VALUE, for example train.lr=4e-4")
        try:
            value = parse_yaml(text)
        except Misleading as error:
            raise UserError(f"{source} {assignment!r}: {error.problem}") from None
        except (yaml.YAMLError, ValueError):
            value = text
        for part in reversed(keys):
            value = {part: value}
        merge(values, value)
    return Layer(source, values)


def find_yaml(name: str, *, kind: str, folders: Sequence[str]) -> Path:
    """The file that a preset, grid or cluster is named by: under `configs/`, or any *.yaml path."""
    if name.endswith((".yaml", ".yml")):
        path = typed_path(name)
        if path.is_file():
            return path.resolve()
        raise UserError(f"{kind} file {name}: not found")
    known = [
        str(path.relative_to(CONFIGS).with_suffix(""))
        for folder in folders
        for path in sorted((CONFIGS / folder).glob("*.yaml"))
    ]
    for candidate in (name, *(f"{folder}/{name}" for folder in folders if len(folders) == 1)):
        if candidate in known:
            return CONFIGS / f"{candidate}.yaml"
    allowed = [Path(k).name for k in known] if len(folders) == 1 else known
    raise UserError(f"unknown {kind} {name!r}; allowed: {', '.join(allowed)}, or a .yaml file")


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file whose top level is a mapping; tags construct nothing."""
    try:
        value = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: not found") from None
    except (yaml.YAMLError, ValueError) as error:  # a date's 45th day is a ValueError
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        problem = error.problem if isinstance(error, Misleading) else "not readable as YAML"
        raise UserError(f"{path}{where}: {problem}") from None
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{path}: must be a YAML mapping of settings")
    return value


def parse_yaml(text: str) -> Any:
    """The value that YAML writes; tags construct nothing.

    Raises yaml.YAMLError or ValueError: not YAML, or (by nesting or by aliases) without end.
    """
    try:
        value = yaml.load(text, _Loader)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    pending, seen = [(value, 0)], 0
    while pending:
        part, depth = pending.pop()
        seen += 1
        if depth > 50 or seen > 1_000_000:
            raise ValueError("nested too deeply, or aliases of aliases")
        if isinstance(part, dict | list | set | tuple):
            below = part.values() if isinstance(part, dict) else part
            pending.extend((value, depth + 1) for value in below)
    return value


def shown(path: Path) -> str:
    """The path as a person would type it: relative where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
