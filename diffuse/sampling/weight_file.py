"""Weight files: a trained model in one safetensors file, to be shared.

    tensors     network.*, the weights with which samples are drawn
                process.*, its schedule or averaging order
                prior.*, of a process whose samples start from one: nothing else is needed then
    metadata    "diffuse": a JSON object: the fields of `Facts`, and the "sha256" of all this

The weights of diffuse/weights/ are such files, made by `python -m diffuse.export`.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffuse.rundir.weight_facts import FORMAT, Facts
from diffuse.runtime import files
from diffuse.runtime.errors import UserError


def write(path: Path, facts: Facts, tensors: dict[str, Tensor]) -> None:
    """Write a weight file, whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    values = asdict(facts)
    values["sha256"] = _checksum(values, tensors)
    files.write_bytes(path, save(tensors, {"diffuse": json.dumps(values, sort_keys=True)}))


def read(path: Path) -> tuple[Facts, dict[str, Tensor]]:
    """The content of a weight file, floating point in float32. Nothing in it is executed.

    Raises UserError where it is missing, damaged or another kind of file.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, IsADirectoryError) as error:
        raise UserError(f"{path}: damaged, or no safetensors file ({error})") from None
    try:
        values = json.loads(metadata["diffuse"])
        sha256 = values.pop("sha256")
    except (LookupError, ValueError, AttributeError):
        raise UserError(f"{path}: not written by diffuse.export") from None
    if sha256 != _checksum(values, tensors):
        raise UserError(f"{path}: damaged (its checksum does not match its content)")
    if values.get("format") != FORMAT:
        raise UserError(f"{path}: of another version of this project")
    return Facts(**values), {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def part(tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors `name.*` without that prefix."""
    prefix = f"{name}."
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _checksum(values: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    found = hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    for name in sorted(tensors):
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode())
        found.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
