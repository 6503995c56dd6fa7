"""Diffusion models on MNIST as an HPC batch suite. `diffuse.load(path)` gives a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffuse.trained import Trained, load

__all__ = ["Trained", "load"]


def __getattr__(name: str) -> Any:
    """Import torch only when a model is asked for: the launcher lives without it."""
    if name in __all__:
        from diffuse import trained

        return getattr(trained, name)
    raise AttributeError(f"module 'diffuse' has no attribute {name!r}")
