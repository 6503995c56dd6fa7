"""Grid files, for several files of tests."""

from __future__ import annotations

from pathlib import Path


def write(folder: Path, text: str) -> str:
    path = folder / "grid.yaml"
    path.write_text(text)
    return str(path)
