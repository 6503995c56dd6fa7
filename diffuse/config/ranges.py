"""Lists of epochs and seeds as people write them: `20,40`, `1-100`, `1,5-100:5`, and back.

A range `first-last:step` has both of its ends where the step reaches the last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic import BeforeValidator

from diffuse.runtime.errors import UserError

MOST = 100_000  # numbers of one list: more is a slip of the keyboard
_PART = re.compile(r"(\d{1,19})(?:-(\d{1,19})(?::(\d{1,19}))?)?")


def parse(text: str) -> list[int]:
    """The numbers of `1,5-100:5`, in its order; ValueError says what is wrong with a part."""
    numbers: list[int] = []
    for part in map(str.strip, text.split(",")):
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r}: write numbers and ranges, such as 20,40, 1-100 or 5-100:5")
        first, last, step = (None if g is None else int(g) for g in match.groups())
        assert first is not None
        if step == 0:
            raise ValueError(f"{part!r}: a step of 0 leads nowhere; write {first}-{last}:1")
        if last is not None and last < first:
            raise ValueError(f"{part!r} ends before it begins; write {last}-{first}")
        found = range(first, (first if last is None else last) + 1, step or 1)
        if len(numbers) + (found[-1] - first) // found.step + 1 > MOST:
            raise ValueError(f"{part!r}: more than {MOST:,} numbers")
        numbers += found
    return numbers


def shown(numbers: Sequence[int]) -> str:
    """Sorted numbers in short: `1-100`, `1,5-100:5`; `parse` reads them back."""
    parts, k = [], 0
    while k < len(numbers):
        step = numbers[k + 1] - numbers[k] if k + 1 < len(numbers) else 0
        end = k + 1
        while end < len(numbers) and step and numbers[end] - numbers[end - 1] == step:
            end += 1
        if end - k < (3 if step == 1 else 4):
            parts.append(str(numbers[k]))
            k += 1
        else:
            parts.append(f"{numbers[k]}-{numbers[end - 1]}" + (f":{step}" if step > 1 else ""))
            k = end
    return ",".join(parts)


def typed(text: str, option: str, smallest: int) -> tuple[int, ...]:
    """The numbers that follow an option, sorted, each once; UserError names the option."""
    try:
        numbers = sorted(set(parse(text)))
        if not numbers or numbers[0] < smallest:
            raise ValueError(
                f"write numbers from {smallest}, such as {smallest + 1},{smallest + 2}"
            )
    except ValueError as error:
        raise UserError(f"{option} {text!r}: {error}") from None
    return tuple(numbers)


def _expanded(value: Any) -> Any:
    """A setting's value with the ranges in it, as text or in a list, as numbers."""
    if isinstance(value, str):
        return parse(value)
    if isinstance(value, list | tuple):
        parts = (parse(part) if isinstance(part, str) else [part] for part in value)
        return [number for part in parts for number in part]
    return [value] if isinstance(value, int) else value


Ranges = BeforeValidator(_expanded)
