"""Fixtures that several files of tests share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffuse import ROOT
from diffuse.data.staging import stage_mnist
from diffuse.rundir.directory import RunDir
from tests import programs
from tests.cluster import install
from tests.cluster.cluster import Cluster
from tests.lab import DDPM, EPOCHS, SMALL, Lab

# Fixtures that start a Slurm cluster, and the groups of tests that take longest.
CLUSTERS = ("slurm", "slurm_without_accounting", "tight")
LONGEST = (
    *("slurm-0", "slurm-1", "test_drill", "test_training", "test_evaluate", "test_fuzz"),
    *("test_tracking", "test_compare", "test_sweep", "test_image", "test_sample"),
)

# What `make test-fast` leaves out, beside what runs on Slurm.
SLOW = {
    *("test_drill", "test_cluster", "test_fuzz", "test_image", "test_notebook", "test_compare"),
    *("test_evaluate", "test_reference_features", "test_tracking", "test_secrets"),
    *("test_distributed", "test_lowest_versions", "test_nameless"),
}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Group the tests that one process runs, those of a file or a cluster; the longest go first.

    There are two usual clusters: jobs on both mostly wait, for Slurm's clocks.
    """
    turns = itertools.cycle(("slurm-0", "slurm-1"))
    groups: dict[pytest.Item, str] = {}
    for item in items:
        groups[item] = item.path.stem
        if found := {*CLUSTERS}.intersection(getattr(item, "fixturenames", ())):
            groups[item] = next(turns) if "slurm" in found else "slurm-1"
            item.add_marker("slurm")
        if item.path.stem in SLOW:
            item.add_marker("slow")
        item.add_marker(pytest.mark.xdist_group(groups[item]))
    ranks = {group: rank for rank, group in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(groups[item], len(ranks)))


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


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> RunDir:
    """What the disturbed trainings must equal, trained here without Slurm."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = programs.run(
        "diffuse.train",
        "--preset=ddpm/default",
        f"--epochs={EPOCHS}",
        *SMALL,
        "--threads=1",
        f"--runs-dir={folder}",
        f"--data-dir={data_dir}",
    )
    assert done.returncode == 0, done.stderr
    return programs.only_run(folder)


@pytest.fixture(autouse=True)
def as_found(request: pytest.FixtureRequest) -> Iterator[None]:
    """No test leaves jobs, or a dead daemon, to the next one that uses the cluster."""
    yield
    for name in CLUSTERS:
        if name in request.fixturenames:
            request.getfixturevalue(name).restore()


@pytest.fixture
def lab(slurm: Cluster, tmp_path: Path, data_dir: Path) -> Lab:
    """A grid of one DDPM on the cluster."""
    return Lab(slurm, DDPM % EPOCHS, tmp_path, data_dir)


def require_slurm() -> None:
    """Leave a test out where there can be no cluster; under CI=true that is a failure."""
    if reason := install.obstacle():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
