"""The GPUs that a local sweep hands out."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from launch.grids.cluster import Cluster
from launch.grids.grid import load_grid
from launch.jobs.gpus import share, visible_gpus
from launch.local import pool, sweep

UUID = "GPU-8932f937-d72c-4106-c12f-20bd9faed9f6"
MIG = "MIG-GPU-8932f937-d72c-4106-c12f-20bd9faed9f6/1/2"


@pytest.mark.parametrize(
    ("printed", "gpus"),
    [
        ("0\n1\n", ["0", "1"]),
        ("No devices were found\n", []),
        ("Failed to initialize NVML: Driver/library version mismatch\n", []),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n", []),
        ("0\nUnable to determine the device handle for GPU 0000:41:00.0: Unknown Error\n", ["0"]),
        ("", []),
    ],
)
def test_prose_of_nvidia_smi_is_no_gpu(
    printed: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "printed").write_text(printed)
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n/bin/cat {tmp_path}/printed\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus("auto") == gpus
    assert visible_gpus("cpu") == []


@pytest.mark.parametrize(
    ("listed", "gpus"),
    [
        ("0, 2", ["0", "2"]),
        (f"{UUID},{MIG}", [UUID, MIG]),
        ("MIG-5c5a2d3e-1b5f", ["MIG-5c5a2d3e-1b5f"]),
        ("1,-1,2", ["1"]),  # CUDA sees none behind it
        ("NoDevFiles", []),  # Slurm's word for none
        ("", []),
    ],
)
def test_the_gpus_are_those_that_cuda_sees(
    listed: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_gpus("auto") == gpus


class PoolSeen(Exception):
    """Ends a sweep where its pool is made."""


@pytest.mark.parametrize(
    ("gpus", "settings", "parallel"),
    [
        (["0", "1"], {}, 2),
        (["0", "1"], {"runs_per_gpu": 3}, 6),
        ([], {"runs_per_gpu": 3}, 3),
        (["0", "1"], {"runs_per_gpu": 3, "array_parallelism": 4}, 4),
    ],
)
def test_so_many_runs_share_a_gpu_of_this_machine(
    gpus: list[str],
    settings: dict[str, int],
    parallel: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    data_dir: Path,
) -> None:
    def made(*arguments: object) -> None:
        raise PoolSeen(arguments[2:4])

    monkeypatch.setattr(sweep, "visible_gpus", lambda device: gpus)
    monkeypatch.setattr(pool, "Pool", made)
    cluster = Cluster.model_validate({"kind": "local", **settings})
    place = (tmp_path, data_dir, "auto", False, True, Console(quiet=True), "again")
    with pytest.raises(PoolSeen) as seen:
        sweep.run(load_grid("quick"), cluster, *place)
    assert seen.value.args[0] == (gpus, parallel)
    users = [share(gpus, slot, parallel, 1).get("CUDA_VISIBLE_DEVICES") for slot in range(parallel)]
    assert {users.count(gpu) for gpu in gpus} <= {parallel // 2}
