"""The device: GPUs that cannot compute are refused in one line. torch's view of them is stubbed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from diffuse.config.presets import load_config
from diffuse.rundir.directory import RunDir
from diffuse.runtime import device, distributed, rng
from diffuse.runtime.errors import EnvironmentFailed, UserError
from diffuse.training import resume

CUDA_13 = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]
CUDA_12 = ["sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A V100 beside a torch of CUDA 13; its facts can be changed."""
    facts = {"count": 1, "capability": (7, 0), "built_for": CUDA_13}
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "device_count", lambda: facts["count"])
    monkeypatch.setattr(cuda, "set_device", lambda device: None)
    monkeypatch.setattr(cuda, "get_device_capability", lambda device: facts["capability"])
    monkeypatch.setattr(cuda, "get_arch_list", lambda: facts["built_for"])
    monkeypatch.setattr(cuda, "get_device_name", lambda device: "Tesla V100-SXM2-16GB")
    memory = SimpleNamespace(total_memory=16 * 2**30)
    monkeypatch.setattr(cuda, "get_device_properties", lambda device: memory)
    monkeypatch.setattr(torch, "ones", lambda *shape, device: torch.zeros(*shape))  # the kernel
    return facts


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_gpu_without_kernels_in_this_torch_is_refused_with_the_remedy(
    gpu: dict[str, Any], asked: str
) -> None:
    with pytest.raises(EnvironmentFailed) as refusal:
        device.choose_device(asked)
    message = str(refusal.value)
    assert "has no kernels for Tesla V100-SXM2-16GB (sm_70; it has sm_75, sm_80" in message
    assert "whl/cu126" in message and "--device cpu" in message
    assert device.choose_device("cpu").type == "cpu"
    gpu["built_for"] = CUDA_12
    assert device.choose_device(asked) == torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((8, 0), CUDA_13, True),
        ((8, 9), CUDA_13, True),  # an L40 by the kernels of sm_86
        ((10, 3), CUDA_13, True),
        ((11, 0), CUDA_13, False),
        ((6, 1), CUDA_13, False),
        ((6, 1), CUDA_12, True),
        ((9, 0), ["sm_80", "compute_80"], True),  # compiled at first use
        ((7, 0), ["sm_80", "compute_80"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 0), [], True),
    ],
)
def test_machine_code_is_for_a_major_version_and_ptx_for_all_later_ones(
    capability: tuple[int, int], built_for: list[str], runs: bool
) -> None:
    assert device._has_kernels(capability, built_for) is runs


def test_an_old_driver_is_one_line(
    gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    version = tmp_path / "version"
    version.write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.129.03  Thu Oct 19 2023\nGCC version:"
    )
    monkeypatch.setattr(device, "DRIVER", version)
    reason = "The NVIDIA driver on your system is too old (found version 12020).\nPlease update"

    def too_old(device: torch.device) -> None:
        raise RuntimeError(reason)

    monkeypatch.setattr(torch.cuda, "set_device", too_old)
    with pytest.raises(EnvironmentFailed) as refusal:
        device.choose_device("auto")
    assert "driver 535.129.03" in str(refusal.value)
    assert "too old (found version 12020)" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_cuda_without_a_gpu_says_why(gpu: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    gpu["count"] = 0
    assert device.choose_device("auto").type == "cpu"

    def too_old() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old.\nUpdate")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", too_old)
    with pytest.raises(UserError, match=r"sees no GPU here .The NVIDIA driver .* is too old.;"):
        device.choose_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(UserError, match="was built without CUDA; use --device cpu or auto"):
        device.choose_device("cuda")


def test_a_full_memory_and_a_failed_kernel_are_one_line_with_the_remedy(
    gpu: dict[str, Any],
) -> None:
    gpu["built_for"] = CUDA_12
    chosen = device.choose_device("auto")
    failures = [
        (
            torch.OutOfMemoryError("CUDA out of memory.\nTried to"),
            "16 GB. is full: keep other.* raise train.acc",
        ),
        (
            torch.AcceleratorError("CUDA error: ECC error\nCUDA kernel"),
            "ECC error; the same command",
        ),
    ]
    for error, message in failures:
        with pytest.raises(EnvironmentFailed, match=f"V100.*{message}"), device.explained(chosen):
            raise error
    with pytest.raises(RuntimeError, match="a bug"), device.explained(chosen):
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("gpus", "message"),
    [
        (["node1 0000:3b:00", "node1 0000:3b:00"], "ranks 0 and 1 have one GPU .0000:3b:00 of no"),
        (["node1 0000:3b:00", "node2 0000:3b:00"], None),
        (["node1 0000:3b:00", "node1 0000:86:00"], None),
    ],
    ids=["shared", "two nodes", "one node"],
)
def test_two_ranks_on_one_gpu_are_refused_before_nccl_begins(
    gpus: list[str], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HashStore()
    for rank, gpu in enumerate(gpus):
        store.set(f"gpu {rank}", gpu)
    node, address = gpus[0].split()
    monkeypatch.setattr(distributed.socket, "gethostname", lambda: node)
    monkeypatch.setattr(distributed, "board", lambda device: address)
    if message is None:
        found = distributed._nodes_of_gpus(store, 0, 2, torch.device("cuda"))
        assert found == len({gpu.split()[0] for gpu in gpus})
    else:
        with pytest.raises(UserError, match=message):
            distributed._nodes_of_gpus(store, 0, 2, torch.device("cuda"))


def test_a_run_keeps_its_precision_where_its_manifest_is_lost(
    gpu: dict[str, Any], tmp_path: Path
) -> None:
    config, run = load_config("ddpm/default", []), RunDir(tmp_path)
    content = {"environment": {"precision": "bf16"}}
    v100 = torch.device("cuda", 0)
    with pytest.raises(UserError, match=r"was started in bf16\. .*V100.* has no bf16"):
        resume.settle_precision(config, run, content, v100)
    assert resume.settle_precision(config, run, None, v100) == "fp16"
    gpu["capability"] = (9, 0)
    assert resume.settle_precision(config, run, content, v100) == "bf16"
    run.manifest_path.write_text(json.dumps({"precision": "fp16"}))
    assert resume.settle_precision(config, run, content, v100) == "fp16"


def test_noise_of_a_large_batch_is_that_of_one_call_on_the_cpu() -> None:
    shape = (40, 1, 28, 28)
    drawn = rng.normal(shape, rng.generator(7, rng.Stream.STEP, 1))
    expected = torch.randn(shape, generator=rng.generator(7, rng.Stream.STEP, 1))
    assert torch.equal(drawn, expected)
