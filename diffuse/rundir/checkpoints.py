"""Checkpoints: tensors and plain values only, written atomically, checked by content when read.

The zip container that torch writes does not verify its contents on reading, so a checksum over
every tensor and value travels inside. A damaged file is refused by name.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffuse.rundir.directory import RunDir
from diffuse.runtime import files
from diffuse.runtime.errors import UserError

FORMAT = 1


def write(path: Path, payload: dict[str, Any]) -> None:
    """Write `payload` (tensors on any device, plain values, dicts and lists of them) to `path`."""
    content = _plain({"format": FORMAT, **payload})
    content["checksum"] = checksum(content)
    buffer = io.BytesIO()
    torch.save(content, buffer)
    files.write_bytes(path, buffer.getbuffer())


def read(path: Path) -> dict[str, Any]:
    """The payload of `path`, tensors on the CPU.

    Raises UserError: missing, damaged, or not one of this project's checkpoints. Nothing in the
    file is executed (weights_only).
    """
    content = load_plain(path)
    if not (isinstance(content, dict) and isinstance(content.get("config"), dict)):
        raise UserError(f"{path}: not a checkpoint of this project")
    if content.pop("checksum", None) != checksum(content):
        raise UserError(f"{path}: damaged (its checksum does not match its content)")
    if content.pop("format", None) != FORMAT:
        raise UserError(f"{path}: of another version of this project")
    return content


def load_plain(path: Path) -> Any:
    """Tensors and plain values from a file of torch's, on the CPU. Nothing in it is executed.

    Raises UserError where it is missing or damaged.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of a foreign pickle's protocol
            return torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file") from None
    except PermissionError:
        raise
    except Exception:  # a damaged pickle or archive fails in any way
        raise UserError(f"{path}: damaged, or not a file of tensors and plain values") from None


def latest(
    run: RunDir, *, until_step: int | None, steps_per_epoch: int, warn: Callable[[str], None]
) -> dict[str, Any] | None:
    """The intact checkpoint of `run` with the highest step, at most `until_step`; else None.

    `warn` is told of each damaged file that was passed over.
    """
    found = sorted(run.checkpoint_files(), key=lambda file: file.at(steps_per_epoch), reverse=True)
    for file in found:
        if until_step is not None and file.at(steps_per_epoch) > until_step:
            continue
        try:
            return read(file.path)
        except UserError as error:
            warn(f"{error}; trying the one before")
    return None


def weights_sha256(payload: dict[str, Any]) -> str:
    """One hash for the network's weights and their average: are two runs' weights the same?"""
    return checksum(_plain({"model": payload["model"], "ema": payload["ema"]}))


def checksum(value: Any) -> str:
    """SHA-256 over the keys, types, shapes and bytes of nested dicts, lists, tensors and values."""
    digest = hashlib.sha256()

    def add(part: Any) -> None:
        match part:
            case dict():
                digest.update(b"{%d" % len(part))
                for key, below in part.items():
                    digest.update(repr(key).encode())
                    add(below)
            case list() | tuple():
                digest.update(b"[%d" % len(part))
                for below in part:
                    add(below)
            case Tensor():
                digest.update(f"{part.dtype}{tuple(part.shape)}".encode())
                digest.update(part.contiguous().flatten().view(torch.uint8).numpy().data)
            case _:
                digest.update(repr(part).encode())

    add(value)
    return digest.hexdigest()


def all_finite(value: Any) -> bool:
    """Whether every floating-point tensor in nested dicts and lists is finite."""
    match value:
        case dict():
            return all(all_finite(below) for below in value.values())
        case list() | tuple():
            return all(all_finite(below) for below in value)
        case Tensor() if value.is_floating_point():
            return bool(torch.isfinite(value).all())
        case _:
            return True


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {key: _plain(below) for key, below in value.items()}
        case list() | tuple():
            return [_plain(below) for below in value]
        case Tensor():
            return value.detach().cpu()
        case _ if type(value) in (str, int, float, bool, type(None)):
            return value
        case _:  # a subclass of str would be written, and then refused by every reader
            raise TypeError(f"a checkpoint cannot hold {type(value).__name__}")
