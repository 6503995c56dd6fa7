"""Settings that people write in YAML, checked by pydantic and reported in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from diffuse.runtime.errors import UserError

M = TypeVar("M", bound=BaseModel)


def validated(
    model: type[M],
    values: Mapping[str, Any],
    source: str,
    sources: Mapping[str, str] | None = None,
) -> M:
    """`values` as a `model`; UserError names the source, the key and what is allowed.

    Args:
        sources: where a key at the top was set, if not in `source`.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = error.errors()[:3]
    by_key = sources or {}
    lines = [
        f"{by_key.get(str(problem['loc'][0]), source) if problem['loc'] else source}:"
        f" {_line(model, problem)}"
        for problem in problems
    ]
    raise UserError("; ".join(lines))


def _line(model: type[BaseModel], problem: Any) -> str:
    location = [part for part in problem["loc"] if not _is_tag(part)]
    key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in location).lstrip(".")
    match problem["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key; allowed: {', '.join(_keys(_model_at(model, location)))}"
        case "missing":
            return f"{key}: missing"
        case "value_error":
            return f"{key}: {problem['ctx']['error']}".lstrip(": ")
        case _:
            shown = repr(problem["input"])
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            return f"{key}: {problem['msg'][0].lower()}{problem['msg'][1:]}, not {shown}"


def _is_tag(part: int | str) -> bool:
    """Whether this is pydantic's own name of a union's branch and no key of ours."""
    return isinstance(part, str) and not part.replace("_", "").isalnum()


def _keys(model: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_at(model: type[BaseModel], location: list[int | str]) -> type[BaseModel]:
    for part in location[:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return model


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for m in map(_model_in, get_args(annotation)) if m is not None), None)
