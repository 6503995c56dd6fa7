"""The CUDA paths without a GPU: launches, waits and collectives of a step, and whole trainings.

On the null runtime (null_runtime/) all of torch's host side runs, and no kernel does.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from tests import programs
from tests.cuda import null_runtime
from tests.programs import TINY

ON_CUDA = [option for option in TINY if "system.device" not in option and "amp" not in option]
ON_CUDA += ["--device=cuda", "--set=samples.images=4", "--epochs=2"]
# Of a step of torch 2.14. Fewer are welcome; more are a cost to every user.
LAUNCHES = {
    ("ddpm/default", "bf16"): 175,
    ("ddpm/unet", "bf16"): 555,
    ("cold/default_28", "bf16"): 167,
    ("ddpm/default", "fp16"): 185,
}
GRAPH_LAUNCHES = {"ddpm/default": 18, "ddpm/unet": 25, "cold/default_28": 14}
SLICE = {"NULL_MULTIPROCESSORS": "14"}  # of an A100, the smallest


@pytest.fixture(scope="module")
def null(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Variables under which a program sees a GPU."""
    if reason := null_runtime.obstacle():
        programs.leave_out(f"no null CUDA runtime: {reason}")
    return null_runtime.build(tmp_path_factory.mktemp("null"))


def step(
    null: dict[str, str], preset: str, *more: str, ranks: int = 1, **env: str
) -> tuple[Counter[str], dict[str, float]]:
    """The calls of a step: by kind (launch, copy, wait, nccl ...), and by name.

    Args:
        more: the precision, and settings.
    """
    done = programs.run("tests.cuda.step", preset, *more, ranks=ranks, **null, **env)
    assert done.returncode == 0, done.stderr
    calls: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    kinds: Counter[str] = Counter()
    for name, number in calls.items():
        kinds[name.split()[0]] += number  # type: ignore[assignment]
    return kinds, calls


@pytest.mark.parametrize(("preset", "precision"), LAUNCHES)
def test_a_step_waits_for_nothing_and_launches_no_more_than_before(
    null: dict[str, str], preset: str, precision: str
) -> None:
    kinds, calls = step(null, preset, precision, "train.graph=false")
    assert kinds["wait"] == 0 and not [name for name in calls if name.endswith(("HtoD", "DtoH"))]
    assert 50 < kinds["launch"] <= LAUNCHES[preset, precision]
    assert kinds["nccl"] == kinds["allocation"] == 0


@pytest.mark.parametrize("preset", GRAPH_LAUNCHES)
def test_a_step_as_a_graph_is_one_launch_beside_those_of_its_batch_average_and_record(
    null: dict[str, str], preset: str
) -> None:
    kinds, calls = step(null, preset, "bf16")
    assert calls["launch graph"] == 1
    assert 10 < kinds["launch"] <= GRAPH_LAUNCHES[preset]
    assert kinds["wait"] == kinds["allocation"] == 0
    assert not [name for name in calls if name.endswith(("HtoD", "DtoH"))]


def test_a_hidden_wait_is_counted(null: dict[str, str]) -> None:
    code = """
import torch
from tests.cuda import null_runtime
x = torch.zeros(3, device="cuda")
with null_runtime.counted() as calls:
    x.sum().item()
    x.nonzero()
print(sum(n for name, n in calls.items() if name.startswith("wait")))
"""
    done = subprocess.run(
        [*programs.command("x")[:1], "-c", code],
        env=programs.environment(**null),
        cwd=programs.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert int(done.stdout) >= 2, done.stderr


def test_noise_has_the_same_threads_on_the_smallest_slice_of_a_gpu(null: dict[str, str]) -> None:
    _, whole = step(null, "ddpm/default", "bf16")
    _, part = step(null, "ddpm/default", "bf16", **SLICE)
    grids = [{k: n for k, n in calls.items() if k.startswith("grid")} for calls in (whole, part)]
    assert grids[0] == grids[1]
    assert sum(grids[0].values()) == 5  # timesteps, and 128 images in calls of 32


def test_two_ranks_sum_their_gradients_in_few_collectives_and_wait_for_nothing(
    null: dict[str, str],
) -> None:
    kinds, calls = step(null, "ddpm/unet", "bf16", ranks=2)
    assert kinds["wait"] == 0
    assert 1 <= calls["nccl ncclAllReduce"] == kinds["nccl"] <= 3


@pytest.mark.parametrize(
    ("ranks", "graph"), [(1, "false"), (2, "auto"), (1, "auto")], ids=["1", "2", "graph"]
)
def test_a_training_on_cuda_goes_from_beginning_to_end(
    null: dict[str, str], ranks: int, graph: str, tmp_path: Path, data_dir: Path
) -> None:
    place = (f"--runs-dir={tmp_path}", f"--data-dir={data_dir}", "--preset=ddpm/default")
    settings = (*ON_CUDA, f"--set=train.graph={graph}")
    done = programs.run("tests.cuda.train", *place, *settings, ranks=ranks, **null)
    assert done.returncode == 0, done.stderr
    run = programs.only_run(tmp_path)
    assert (run.status()["state"], run.status()["epoch"]) == ("done", 2)
    environment = programs.read_json(run.manifest_path)["environment"]
    expected = {"device": "Null GPU", "precision": "bf16", "world_size": ranks, "nodes": 1}
    expected |= {"rate": "float32"}
    assert expected.items() <= environment.items()
    assert environment["cudnn"] == "91500" and environment["nccl"]
    assert run.has_samples(2)


@pytest.mark.parametrize(
    ("ranks", "env", "code", "message"),
    [
        (1, {"NULL_CAPABILITY": "70"}, 1, "has no kernels for Null GPU (sm_70; it has "),
        (1, {"NULL_MEGABYTES": "1"}, 1, "other processes have filled its memory"),
        (1, {"NULL_MEGABYTES": "22"}, 1, "is full: keep other processes off this GPU"),
        (2, {"NULL_BOARD": "7"}, 2, "ranks 0 and 1 have one GPU (0000:07:00 of "),
    ],
    ids=["old GPU", "no memory", "little memory", "one GPU for two"],
)
def test_a_gpu_that_cannot_train_is_one_line(
    null: dict[str, str],
    ranks: int,
    env: dict[str, str],
    code: int,
    message: str,
    tmp_path: Path,
    data_dir: Path,
) -> None:
    place = (f"--runs-dir={tmp_path}", f"--data-dir={data_dir}", "--preset=ddpm/default")
    done = programs.run("tests.cuda.train", *place, *ON_CUDA, ranks=ranks, **null, **env)
    assert done.returncode == code
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) in (1, ranks) and message in lines[0], done.stderr
    assert "Traceback" not in done.stderr
