"""Settings from layers of YAML and command lines, merged, checked, and refused in one line.

For the config of a run and for the files of grids and clusters alike: a wrong setting is reported
with the place that set it, its key, and the values that are allowed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from diffuse.runtime.errors import UserError

M = TypeVar("M", bound=BaseModel)
Key = tuple[str | int, ...]  # ("train", "lr") or ("runs", 0, "preset")


class Layer(NamedTuple):
    """Settings from one place, nested as in YAML, and the name of that place for messages."""

    source: str
    values: Mapping[str, Any]


def validated(model: type[M], layers: Sequence[Layer]) -> M:
    """A `model` of `layers`, later over earlier, key by key. Raises UserError."""
    merged: dict[str, Any] = {}
    set_by: dict[Key, int] = {}
    for number, layer in enumerate(layers):
        merge(merged, layer.values, number, set_by)
    try:
        return model.model_validate(merged)
    except ValidationError as error:
        found = error.errors()
    # An error of a whole follows from the errors of its parts: the parts alone are shown.
    below = {problem["loc"][:n] for problem in found for n in range(len(problem["loc"]))}
    problems = [problem for problem in found if problem["loc"] not in below][:3]
    raise UserError("; ".join(_explanation(model, p, layers, set_by) for p in problems))


def merge(
    into: dict[str, Any],
    values: Mapping[str, Any],
    number: int = 0,
    set_by: dict[Key, int] | None = None,
    above: Key = (),
) -> None:
    """Put the `values` of layer `number` over `into`, and note in `set_by` which keys they set."""
    for name, value in values.items():
        key = (*above, name)
        if isinstance(value, Mapping):
            below = into.get(name)
            into[name] = dict(below) if isinstance(below, Mapping) else {}
            merge(into[name], value, number, set_by, key)
        else:
            into[name] = value
        if set_by is not None:
            set_by[key] = number


def _explanation(
    model: type[BaseModel], problem: Any, layers: Sequence[Layer], set_by: Mapping[Key, int]
) -> str:
    """`configs/grids/x.yaml: runs[0].epochs: input should be ..., not 0`."""
    key, section = _place(model, problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    # A check of the whole model has no key; its message may begin with the one to blame.
    blamed = key or tuple(message.partition(":")[0].split("."))
    parents = (blamed[:n] for n in range(len(blamed), 0, -1))
    number = next((set_by[parent] for parent in parents if parent in set_by), 0)
    text = _dotted(key)
    match problem["type"]:
        case "extra_forbidden":
            kind = (*key[:-1], "kind")
            if (chosen := set_by.get(kind, number)) > number:  # the kind is wrong, not the key
                source, number = layers[number].source, chosen
                text = f"{_dotted(kind)}: does not go with {source}, which sets {text}"
            else:
                fields = section.model_fields.items()
                allowed = ", ".join(field.alias or name for name, field in fields)
                text += f": unknown key; allowed: {allowed}"
        case "missing":
            text += ": missing"
            if key == ("process", "orientation"):
                text += "; choose --orientation row or --orientation col"
        case "value_error":
            text = f"{text}: {problem['ctx']['error']}".removeprefix(": ")
        case "union_tag_invalid" | "union_tag_not_found":
            branches = _branches(section.model_fields[str(key[-1])])
            text += f".kind: must be one of {', '.join(branches)}"
        case _:
            shown = repr(problem["input"])
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            text += f": {message[0].lower()}{message[1:]}, not {shown}"
    return f"{layers[number].source}: {text}"


def _dotted(key: Key) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key).lstrip(".")


def _place(model: type[BaseModel], location: Key) -> tuple[Key, type[BaseModel]]:
    """The key at pydantic's `location`, and the section that holds it."""
    key: list[str | int] = []
    section, below = model, None
    branches: Mapping[str, type[BaseModel]] = {}
    for part in location:
        if part in branches:  # process.ddpm.timesteps: the tag of a union and no key
            below, branches = branches[str(part)], {}
        elif isinstance(part, int):
            key.append(part)
        elif part.replace("_", "").isalnum():  # else pydantic's own name of a union's branch
            key.append(part)
            section = below or section
            field = section.model_fields.get(part)
            below = None if field is None else _section_in(field.annotation)
            branches = {} if field is None else _branches(field)
    return tuple(key), section


def _branches(field: FieldInfo) -> dict[str, type[BaseModel]]:
    """The branches of a discriminated union by their `kind`; {} where the field is none."""
    if field.discriminator is None:
        return {}
    return {get_args(b.model_fields["kind"].annotation)[0]: b for b in get_args(field.annotation)}


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_section_in, get_args(annotation)) if m is not None), None)
