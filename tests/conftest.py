"""Fixtures that several files of tests share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from diffuse import ROOT
from diffuse.data.staging import stage_mnist
from diffuse.rundir.directory import RunDir
from tests import forks, programs
from tests.cluster import install
from tests.cluster.cluster import Cluster
from tests.lab import DDPM, EPOCHS, SMALL, Lab

# Fixtures that start a Slurm cluster.
CLUSTERS = ("slurm", "slurm_without_accounting", "tight")
# The files whose tests share a cluster of one test process. Its jobs mostly wait, for Slurm's
# clocks, so two such processes leave both cores to two others.
SHARED = {
    "slurm-0": {
        *("test_slurm", "test_array", "test_packs", "test_doctor", "test_image", "test_clean"),
    },
    "slurm-1": {
        *("test_sbatch", "test_submission", "test_site", "test_interruption", "test_cluster"),
        *("test_names", "test_secrets", "test_probes"),
    },
}
GROUPS = {file: group for group, files in SHARED.items() for file in files}
# The groups that take longest: they begin first.
LONGEST = (
    *("slurm-0", "slurm-1", "test_drill", "test_training", "test_evaluate", "test_fuzz"),
    *("test_tracking", "test_uploads", "test_compare", "test_sweep", "test_report", "test_sample"),
    *("test_distributed", "test_null_runtime", "test_weights", "test_reference_features"),
)

# Tests that `make test-fast` leaves out, beside those on Slurm.
SLOW = {
    *("test_drill", "test_cluster", "test_fuzz", "test_image", "test_notebook", "test_compare"),
    *("test_evaluate", "test_inception", "test_reference_features", "test_tracking"),
    *("test_uploads", "test_secrets", "test_distributed", "test_lowest_versions"),
    *("test_nameless", "test_gpu_runs", "test_gpu_steps"),
}


settings.register_profile("test", max_examples=12, derandomize=True)
settings.register_profile("drill", max_examples=60)
settings.load_profile("test")


class Groups(LoadFileScheduling):
    """A test process takes the tests of a file, or of all files that share a cluster."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(Path(nodeid.partition("::")[0]))


def group_of(path: Path) -> str:
    """The group to which the tests of a file belong: the file's own, or that of a cluster."""
    return GROUPS.get(path.stem, path.stem)


def pytest_addoption(parser: pytest.Parser) -> None:
    """`pytest -m cuda --device cpu` tries the GPU's tests out where there is none."""
    parser.addoption("--device", choices=("cuda", "cpu"), default="cuda", help="of tests of a GPU")


def pytest_configure(config: pytest.Config) -> None:
    """Several test processes share a server of forks, which loads while they collect the tests."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        forks.share()


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Groups | None:
    """With `--dist loadfile`: by groups."""
    return Groups(config, log) if config.getvalue("dist") == "loadfile" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests on Slurm and slow ones, and put the groups that take longest first."""
    for item in items:
        if {*CLUSTERS}.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("slurm")
            assert item.path.stem in GROUPS, f"name {item.path.stem} in SHARED: it needs a cluster"
        if item.path.stem in SLOW:
            item.add_marker("slow")
    ranks = {group: rank for rank, group in enumerate(LONGEST)}
    items.sort(key=lambda item: ranks.get(group_of(item.path), len(ranks)))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The real MNIST, staged once for all test processes; stage_mnist waits for its lock."""
    folder = Path(os.environ.get("DIFFUSE_DATA") or ROOT / "data").absolute()
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
    """The run that disturbed trainings must equal, trained here without Slurm."""
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
        programs.leave_out(reason)
