"""The base of all settings that people write, and the size of the images."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

IMAGE_SIZE = 28


def _split_commas(value: Any) -> Any:
    """Let the command line write `16,32`, or a lone `16`, for a list."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int) else value


CommaSeparated = BeforeValidator(_split_commas)


class Section(BaseModel):
    """A part of the config: immutable, and a key that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
