"""Diffusion models on MNIST as an HPC batch suite. `diffuse.load(name)` gives a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffuse.model import Model, load

__all__ = ["ROOT", "Model", "load"]

ROOT = Path(__file__).resolve().parent.parent  # the checkout, or the snapshot that a job runs from


def __getattr__(name: str) -> Any:
    """Import torch only when a model is asked for: the launcher lives without it."""
    if name in ("Model", "load"):
        from diffuse import model

        return getattr(model, name)
    raise AttributeError(f"module 'diffuse' has no attribute {name!r}")
