"""Fixtures that several files of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diffuse.prepare import stage_mnist

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real MNIST, staged once for all test processes; stage_mnist waits for its lock."""
    folder = Path(os.environ.get("DIFFUSE_DATA") or ROOT / "data")
    return stage_mnist(folder).parent
