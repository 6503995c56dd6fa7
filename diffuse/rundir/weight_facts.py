"""The facts about its model in an exported weight file, read without torch.

The header of a safetensors file is its length (8 bytes, little-endian) and a JSON object, whose
"__metadata__" has our facts under "diffuse". diffuse/sampling/weight_file.py reads the tensors and
checks the sum of it all; here nothing but the header is read.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from diffuse.runtime.errors import UserError

FORMAT = 1
# The names of the report's own weight files, plain state dicts that say nothing else.
PUBLISHED = re.compile(
    r"(?P<process>ddpm|custom)_mnist_(?P<epoch>\d+)_(?:(?P<orientation>row|col)_)?(?P<preset>\w+)"
)
LONGEST_HEADER = 100_000_000  # bytes; safetensors' own limit


@dataclass(frozen=True)
class Facts:
    """All that is known of the model beside its tensors."""

    name: str
    config: dict[str, Any]
    epoch: int
    step: int | None
    weights: str  # "ema" or "model"
    figures: list[dict[str, Any]] = field(default_factory=list)  # as in evaluations/, with protocol
    format: int = FORMAT


def read(path: Path) -> Facts:
    """The facts in the header of a weight file.

    Raises UserError where it is missing, damaged or another kind of file.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size)) if size <= LONGEST_HEADER else {}
        values = json.loads(header["__metadata__"]["diffuse"])
        known = {f.name: values[f.name] for f in fields(Facts)}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, LookupError, ValueError, TypeError):
        raise UserError(f"{path}: damaged, or not written by diffuse.export") from None
    if known["format"] != FORMAT:
        raise UserError(f"{path}: of another version of this project")
    return Facts(**known)
