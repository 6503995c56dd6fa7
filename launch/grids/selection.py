"""Settings by their dotted keys, and the runs that have them: `--where train.lr=2e-4`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from diffuse.config.presets import parse_set, resolve
from diffuse.config.schema import Config
from diffuse.config.validation import Layer
from diffuse.runtime.errors import UserError


class Where:
    """Runs chosen by their settings; of two values of one key either will do.

    Args:
        assignments: as typed, `train.lr=2e-4`; a value is read as the key's own: 2e-4 is 0.0002.
    """

    def __init__(self, assignments: Sequence[str]) -> None:
        self.layers: dict[str, list[Layer]] = {}
        for text in assignments:
            key = text.partition("=")[0].strip()
            self.layers.setdefault(key, []).append(parse_set([text], source="--where"))
        self.text = " ".join(f"--where {text}" for text in assignments)

    def chosen(self, runs: Mapping[str, Config], subject: str) -> list[str]:
        """The names of the runs with these settings.

        Raises UserError where there is none: no run knows the key or the value, or has it.
        """
        kept = [name for name, config in runs.items() if self.matches(config)]
        if not kept and runs:
            for layer in (layer for layers in self.layers.values() for layer in layers):
                self._explain(layer, runs.values())
            raise UserError(f"{self.text} matches no run of {subject}: {self._values(runs)}")
        return kept

    def matches(self, config: Config) -> bool:
        """True where the run has these settings, i.e. where setting them changes nothing."""
        return all(any(_has(config, la) for la in layers) for layers in self.layers.values())

    def _explain(self, layer: Layer, configs: Iterable[Config]) -> None:
        """Raise UserError where no run can have this setting."""
        first: UserError | None = None
        for config in configs:
            try:
                _with(config, layer)
                return
            except UserError as error:
                first = first or error
        if first is not None:
            raise first

    def _values(self, runs: Mapping[str, Config]) -> str:
        """`train.lr is 0.0001, 0.0002; seed is 1`: the values that there are."""
        found = []
        for key in self.layers:
            values = dict.fromkeys(written(value_of(config, key)) for config in runs.values())
            found.append(f"{key} is {', '.join(list(values)[:8])}" + ", ..." * (len(values) > 8))
        return "; ".join(found)


def _has(config: Config, layer: Layer) -> bool:
    try:
        return _with(config, layer).model_dump() == config.model_dump()
    except UserError:
        return False  # a key of another process, or a value that does not go with the others


def _with(config: Config, layer: Layer) -> Config:
    return resolve([Layer("", config.model_dump(mode="json")), layer])


def nested(key: str, value: Any) -> dict[str, Any]:
    """{"train": {"lr": value}} of `train.lr`."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return dict(value)


def leaves(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """All values that nested settings have, by their dotted keys."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def sets(values: Mapping[str, Any], key: str) -> bool:
    """True where nested settings have the dotted key, or a key below it."""
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            return False
        found = found[part]
    return True


def value_of(config: Config, key: str) -> Any:
    """The value of a dotted key as plain JSON; None where the run has no such setting."""
    found: Any = config.model_dump(mode="json")
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found


def written(value: Any) -> str:
    """A value in short: `0.0002`, `random`, `[16, 32]`."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def point(axes: Mapping[str, Any]) -> str:
    """A run's place on the axes of its grid: `lr=0.0002 order=random`."""
    short = [key.rpartition(".")[2] for key in axes]
    names = short if len(set(short)) == len(short) else list(axes)
    pairs = zip(names, axes.values(), strict=True)
    return " ".join(f"{name}={written(value)}" for name, value in pairs)
