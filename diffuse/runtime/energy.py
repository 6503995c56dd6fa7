"""The energy of a GPU, where NVIDIA's management library tells it: Volta or newer, no MIG slice.

https://docs.nvidia.com/deploy/nvml-api, nvmlDeviceGetTotalEnergyConsumption
"""

from __future__ import annotations

from typing import Any

import torch


class EnergyMeter:
    """The joules that `device` has used since this began, for whichever programs."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = _nvml_gpu(device)
        self._begin = self._total()

    @property
    def joules(self) -> float | None:
        """None where nobody tells it."""
        end = self._total()
        return None if end is None or self._begin is None else end - self._begin

    def _total(self) -> float | None:
        """Since the driver was loaded."""
        if self._gpu is None:
            return None
        import pynvml

        try:
            return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._gpu)) / 1e3
        except pynvml.NVMLError:  # a training does not end for want of this
            return None


def _nvml_gpu(device: torch.device) -> Any:
    """The device for NVML; None where that does not know it."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:  # in an environment that is older than this file
        return None
    try:
        pynvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    except pynvml.NVMLError:
        return None
