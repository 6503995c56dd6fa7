"""The device of the tests marked `cuda`: a GPU, or with `--device cpu` the CPU, to try them out."""

from __future__ import annotations

import pytest
import torch

from diffuse.runtime.device import choose_device
from diffuse.runtime.errors import UserError


@pytest.fixture(scope="session")
def device_name(request: pytest.FixtureRequest) -> str:
    """`cuda` or `cpu`; nothing is started on it. Skips the test where there is none."""
    name: str = request.config.getoption("--device")
    if name == "cuda" and not torch.cuda.device_count():
        try:
            choose_device(name)
        except UserError as error:
            pytest.skip(str(error))
    return name


@pytest.fixture(scope="session")
def device(device_name: str) -> torch.device:
    """The device, started in this process."""
    return choose_device(device_name)
