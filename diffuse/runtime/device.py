"""The device of a process: its choice, its precision, and its errors, each in one line.

A GPU that is visible but cannot compute is refused before any work is lost on it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from diffuse.runtime.errors import EnvironmentFailed, UserError, first_line

Precision = Literal["bf16", "fp16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
DRIVER = Path("/proc/driver/nvidia/version")
OTHER_BUILD = (
    "install a torch that serves it, such as pip install torch torchvision --index-url"
    " https://download.pytorch.org/whl/cu126 (docs/gpu.md), or use --device cpu"
)


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device for auto, cpu or cuda; a GPU is set as torch's current one and has computed.

    With a GPU, fp32 is true fp32: torch's default rounds the factors of convolutions to TF32.

    Raises UserError where CUDA is asked for and torch sees no GPU; EnvironmentFailed where it sees
    one that cannot compute.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: allowed are auto, cpu, cuda")
    count = 0 if device == "cpu" else torch.cuda.device_count()
    if count == 0:
        if device == "cuda":
            raise UserError(f"--device cuda: {_no_gpu()}; use --device cpu or auto")
        return torch.device("cpu")
    # Slurm may show a rank all GPUs of its node or only its own.
    chosen = torch.device("cuda", local_rank % count)
    _require_working(chosen)
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
    return chosen


def resolve_precision(amp: str, device: torch.device) -> Precision:
    """The precision for `amp`: auto takes bf16 where the device has it, fp16 on other CUDA, fp32.

    Raises UserError where the device does not support that precision.
    """
    if device.type == "cuda":
        # By capability, not by torch.cuda.is_bf16_supported(), which counts slow emulation too.
        has_bf16 = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        has_bf16 = bool(_cpu().get("avx512_bf16"))
    match amp:
        case "auto":
            return "bf16" if has_bf16 else "fp16" if device.type == "cuda" else "fp32"
        case "bf16":
            if device.type == "cuda" and not has_bf16:
                name = device_name(device)
                raise UserError(
                    f"train.amp=bf16: {name} has no bf16; ask for a newer GPU (Slurm: constraint),"
                    " or start another run with train.amp=fp16"
                )
            return "bf16"
        case "fp16":
            if device.type != "cuda":
                raise UserError("train.amp=fp16 needs a CUDA device; use bf16 or fp32 on a CPU")
            return "fp16"
        case _:
            return "fp32"


def device_name(device: torch.device) -> str:
    """The model of the device, for manifests."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(_cpu().get("cpu_name", "cpu")).strip()


def board(device: torch.device) -> str:
    """The PCI address of a GPU, by which NCCL tells GPUs apart: slices of one (MIG) share it."""
    facts: Any = torch.cuda.get_device_properties(device)
    return f"{facts.pci_domain_id:04x}:{facts.pci_bus_id:02x}:{facts.pci_device_id:02x}"


def software(device: torch.device) -> dict[str, str | None]:
    """The versions below torch that a GPU's results depend on: CUDA, cuDNN, NCCL, the driver."""
    if device.type != "cuda":
        return {"cuda": None}
    return {
        "cuda": torch.version.cuda,
        "cudnn": str(torch.backends.cudnn.version()),  # type: ignore[no-untyped-call]
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),  # type: ignore[no-untyped-call]
        "driver": _driver(),
    }


@contextlib.contextmanager
def explained(device: torch.device) -> Iterator[None]:
    """Errors of the device within the block as EnvironmentFailed, with the remedy."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        raise EnvironmentFailed(
            f"the memory of {device_name(device)} ({total:.0f} GB) is full: keep other processes"
            " off this GPU, or in a training raise train.accumulate (2 halves the memory of a step,"
            " with the same result)"
        ) from error
    except torch.AcceleratorError as error:
        raise EnvironmentFailed(
            f"{device_name(device)}: {first_line(error)}; the same command goes on from"
            " the last checkpoint; if it fails on this node alone, exclude the node"
        ) from error


def _require_working(device: torch.device) -> None:
    """Run one kernel. Raises EnvironmentFailed where the driver or the GPU is none of torch's."""
    try:
        torch.cuda.set_device(device)
        capability = torch.cuda.get_device_capability(device)
        if not _has_kernels(capability, torch.cuda.get_arch_list()):
            raise EnvironmentFailed(
                f"torch {torch.__version__} has no kernels for {device_name(device)}"
                f" (sm_{capability[0]}{capability[1]}; it has"
                f" {', '.join(torch.cuda.get_arch_list())}): {OTHER_BUILD}"
            )
        torch.ones(1, device=device).add_(1).item()
    except torch.OutOfMemoryError as error:
        raise EnvironmentFailed(
            f"{device_name(device)}: other processes have filled its memory; nvidia-smi shows them"
        ) from error
    except RuntimeError as error:
        reason = first_line(error)
        raise EnvironmentFailed(
            f"CUDA {torch.version.cuda} does not start here (driver {_driver() or 'unknown'}):"
            f" {reason}; update the driver, or {OTHER_BUILD}"
        ) from error


def _has_kernels(capability: tuple[int, int], built_for: list[str]) -> bool:
    """True where a GPU of this capability runs kernels built for these architectures.

    Machine code (sm) runs on GPUs of the same major version, from its minor version up; PTX
    (compute) on all from its version up. An empty list is of a build that does not tell.
    """
    for architecture in built_for:
        kind, _, digits = architecture.partition("_")
        major, minor = divmod(int(re.sub(r"\D", "", digits)), 10)
        if kind == "compute" and (major, minor) <= capability:
            return True
        if kind == "sm" and major == capability[0] and minor <= capability[1]:
            return True
    return not built_for


def _no_gpu() -> str:
    """Why torch sees no GPU."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # an old driver, say
        return f"torch sees no GPU here ({first_line(error).partition('. ')[0].rstrip('.')})"
    return "torch sees no GPU here"


def _cpu() -> dict[str, Any]:
    """The CPU's name and instructions; of an older torch, which does not tell them, nothing."""
    tell: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    return tell()


def _driver() -> str | None:
    """The version of NVIDIA's driver; None where it is not told."""
    try:
        found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", DRIVER.read_text())
    except OSError:
        return None
    return found.group(1) if found else None
