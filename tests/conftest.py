"""Fixtures that several files of tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffuse.prepare import stage_mnist
from tests.cluster import install
from tests.cluster.cluster import Cluster

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real MNIST, staged once for all test processes; stage_mnist waits for its lock."""
    folder = Path(os.environ.get("DIFFUSE_DATA") or ROOT / "data")
    return stage_mnist(folder).parent


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A real Slurm cluster: one for each test process, so that a test has it for itself."""
    require_slurm()
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def slurm_without_accounting() -> Iterator[Cluster]:
    """The same without slurmdbd, and so without sacct."""
    require_slurm()
    with Cluster(accounting=False) as cluster:
        yield cluster


def require_slurm() -> None:
    """Leave a test out where there can be no cluster; under CI=true that is a failure."""
    if reason := install.obstacle():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
