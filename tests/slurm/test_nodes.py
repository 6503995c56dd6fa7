"""Packs of runs as arrays of jobs, and whether a node has room for one; needs no Slurm."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from diffuse.config.validation import Layer
from diffuse.rundir.directory import RunDir
from diffuse.runtime.errors import UserError
from launch.grids.cluster import Cluster
from launch.grids.grid import Overrides, load_grid
from launch.grids.plan import look_at
from launch.slurm import commands, nodes
from launch.slurm.commands import Partition, Site
from launch.slurm.pipeline import Request, job_arrays

SITE = Site((Partition("gpu", True, 60), Partition("fat", False, 60)), 1001)
SINFO = "gpu|16|64000|gpu:a100:2(S:0-1),nvme:1\ngpu|64|64000|(null)\nfat|128|512000|gpu:8\n"


def packed(**settings: object) -> Cluster:
    return Cluster.model_validate({"kind": "slurm", "runs_per_gpu": 2, **settings})


@pytest.fixture(autouse=True)
def sinfo(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str]) -> subprocess.CompletedProcess[str]:
        assert command[0] == "sinfo"
        return subprocess.CompletedProcess(command, 0, SINFO, "")

    monkeypatch.setattr(commands, "_run", run)


@pytest.mark.parametrize(
    "settings",
    [
        {"gpus_per_node": 2},  # 4 runs of 4 cores each
        {"gpus_per_node": 2, "gpu_type": "A100", "memory_gb": 62},
        {"gpus_per_node": 8, "partition": "fat", "memory_gb": 500},
        {"gpus_per_node": 8, "partition": "another-clusters"},
        {"gpus_per_node": 0, "runs_per_gpu": 16},
        {"gpus_per_node": 1, "cpus_per_task": 8},
        {"gpus_per_node": 1, "cpus_per_task": 9, "runs_per_job": 1},  # none is packed
    ],
)
def test_a_pack_that_a_node_has_room_for_is_let_through(settings: dict[str, object]) -> None:
    nodes.check(SITE, [packed(**settings)], "site.yaml")


@pytest.mark.parametrize(
    ("settings", "need"),
    [
        ({"gpus_per_node": 4}, "up to 8 runs a task, 8 at a time: 4 GPUs, 32 cores (4 a run)"),
        ({"cpus_per_task": 9}, "up to 2 runs a task, 2 at a time: 1 GPU, 18 cores (9 a run)"),
        ({"memory_gb": 70}, "8 cores (4 a run), 70 GB of memory (35 a run)"),
        ({"gpu_type": "h100"}, "1 GPU, 8 cores"),
        ({"partition": "fat", "runs_per_gpu": 40}, "1 GPU, 160 cores"),
    ],
)
def test_a_pack_that_is_too_much_for_a_node_is_refused_in_one_line(
    settings: dict[str, object], need: str
) -> None:
    with pytest.raises(UserError) as error:
        nodes.check(SITE, [packed(), packed(**settings)], "site.yaml")
    message = str(error.value)
    assert message.startswith("site.yaml: a job is too much for a node (")
    assert need in message and "\n" not in message


def test_a_task_of_an_array_has_a_pack_and_its_evaluation_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    path = tmp_path / "grid.yaml"
    path.write_text("runs: [{preset: ddpm/default, epochs: [1], seeds: [0, 1, 2, 3, 4]}]")
    grid = load_grid(str(path), Overrides(layers=(Layer("test", {}),)))
    planned = [look_at(run, RunDir(folder / run.name)) for run in grid.runs]
    names = [p.name for p in planned]
    settings = packed(array_parallelism=2)
    requests = [Request(p, settings) for p in planned]
    train, evaluate, report = job_arrays(requests, 1001, settings.without_gpus())
    for array in (train, evaluate):
        packs = [[request.planned.name for request in runs] for runs in array.packs]
        assert packs == [names[:2], names[2:4], names[4:]]
        assert (array.tasks, array.throttle) == (3, 2)
    assert evaluate.dependency == "aftercorr" and report.tasks == 1
    sizes = [array.tasks for array in job_arrays(requests, 2, None)]
    assert sizes == [2, 2, 1, 1], "MaxArraySize counts packs"
