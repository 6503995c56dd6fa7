"""A GPU's energy by NVIDIA's library, for which a stand-in is here; without a GPU there is none."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from diffuse.runtime.energy import EnergyMeter

UUID = "11111111-2222-3333-4444-555555555555"


class NVMLError(Exception):
    pass


class Library:
    """pynvml, with one GPU whose counter, in millijoules, goes through `readings`."""

    NVMLError = NVMLError

    def __init__(self, readings: Iterator[int | NVMLError], gpu: str = f"GPU-{UUID}") -> None:
        self.readings, self.gpu = readings, gpu

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != self.gpu:
            raise NVMLError("not found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: str) -> int:
        reading = next(self.readings)
        if isinstance(reading, NVMLError):
            raise reading
        return reading


def meter(library: object, monkeypatch: pytest.MonkeyPatch) -> EnergyMeter:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    properties = SimpleNamespace(uuid=UUID)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return EnergyMeter(torch.device("cuda"))


def test_joules_are_those_since_the_meter_began(monkeypatch: pytest.MonkeyPatch) -> None:
    found = meter(Library(iter([5_000, 7_500, NVMLError("lost"), 9_000])), monkeypatch)
    assert [found.joules for _ in range(3)] == [2.5, None, 4.0]


def test_where_nobody_tells_it_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert EnergyMeter(torch.device("cpu")).joules is None
    assert meter(None, monkeypatch).joules is None, "no pynvml"
    assert meter(Library(iter([]), gpu="MIG-1"), monkeypatch).joules is None
    assert meter(Library(iter([NVMLError("old"), 5])), monkeypatch).joules is None
