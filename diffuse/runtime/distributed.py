"""The one file that knows about ranks: their numbers, their devices, and how they agree.

A process finds its place from torchrun's variables, from Slurm's (srun, and submitit through it),
or is alone. Alone there is no process group and every collective is the identity.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from diffuse.runtime import console
from diffuse.runtime.errors import EnvironmentFailed, UserError, skip_finalization
from diffuse.runtime.preemption import StopRequest

Precision = Literal["bf16", "fp16", "fp32"]
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# What gloo raises is told by its text alone: it names a file of gloo's source, save in a collective
# that ends because another one, under way beside it, timed out.
GLOO = re.compile("gloo|Application timeout caused pair closure")
T = TypeVar("T")
PATIENCE_S = 1.0  # for ranks that start a little later, before a rank says for whom it waits
CONNECT_S = 1.0
PLACE_REMEDY = "start ranks by torchrun or srun; to be alone, unset RANK and WORLD_SIZE"


@dataclass(frozen=True)
class World:
    """This process among `size` ranks."""

    rank: int
    local_rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def share(self, n: int) -> slice:
        """This rank's slice of n things; n must be a multiple of `size`."""
        each = n // self.size
        return slice(self.rank * each, (self.rank + 1) * each)

    def sum(self, tensor: Tensor) -> Tensor:
        """`tensor` summed over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def highest(self, value: int) -> int:
        """The highest `value` of any rank: how ranks agree on the next action. No device sync."""
        if self.size == 1:
            return value
        agreed = torch.tensor(value)  # on the CPU, so gloo carries it
        dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
        return int(agreed)

    def from_main(self, value: T) -> T:
        """Rank 0's `value` (anything picklable) on every rank."""
        if self.size > 1:
            carried = [value]
            dist.broadcast_object_list(carried, src=0, device=torch.device("cpu"))
            return carried[0]
        return value

    def parallel(self, network: nn.Module) -> nn.Module:
        """`network` with gradients averaged over ranks.

        find_unused_parameters keeps DDP from rebuilding its buckets after the first backward pass:
        the order of summation, and with three or more ranks the last bits, would then differ
        between an interrupted run and an uninterrupted one.
        """
        if self.size == 1:
            return network
        ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ids, find_unused_parameters=True)


@contextlib.contextmanager
def join(device: str, timeout_s: float, stop: StopRequest | None = None) -> Iterator[World]:
    """Find this process's place, choose its device, and join the others.

    Args:
        device: auto (CUDA where there is one), cpu or cuda.
        timeout_s: a collective that takes longer ends the process, so that no rank waits for ever.
        stop: ends the wait for the others, too.

    Raises UserError where CUDA is asked for and there is none, or where the variables that tell a
    rank its place are incomplete; EnvironmentFailed where another rank is gone: at the start, or
    later in a collective within the block; Interrupted where `stop` was asked for at the start.
    """
    rank, local_rank, size = _place()
    chosen = choose_device(device, local_rank)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    world = World(rank, local_rank, size, chosen)
    if size == 1:
        yield world
        return
    # DDP keeps gloo's threads alive even beyond destroy_process_group (torch 2.14). One that drops
    # its last tensor while Python takes itself apart would abort a rank whose work is done.
    atexit.register(skip_finalization)
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
            store=_meet(rank, size, timeout_s, stop),
            rank=rank,
            world_size=size,
            timeout=datetime.timedelta(seconds=timeout_s),
        )
        yield world
    except (RuntimeError, ConnectionError) as error:
        if not (isinstance(error, dist.DistError | ConnectionError) or GLOO.search(str(error))):
            raise
        reason = str(error).splitlines()[0]
        raise EnvironmentFailed(f"rank {rank} of {size} lost the others: {reason}") from error
    # Only after success: a rank that failed leaves by its exit, which the others notice.
    dist.destroy_process_group()


def resolve_precision(amp: str, device: torch.device) -> Precision:
    """The precision for `amp`: auto takes bf16 where the device has it, fp16 on other CUDA, fp32.

    Raises UserError where the device does not support that precision.
    """
    if device.type == "cuda":
        # By capability, not by torch.cuda.is_bf16_supported(), which counts slow emulation too.
        has_bf16 = torch.cuda.get_device_capability(device)[0] >= 8
    else:
        has_bf16 = bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "this CPU"
    match amp:
        case "auto":
            return "bf16" if has_bf16 else "fp16" if device.type == "cuda" else "fp32"
        case "bf16":
            if device.type == "cuda" and not has_bf16:
                raise UserError(
                    f"train.amp=bf16: {name} has no bf16; ask for a newer GPU (Slurm: constraint),"
                    " or start another run with train.amp=fp16"
                )
            return "bf16"
        case "fp16":
            if device.type != "cuda":
                raise UserError("train.amp=fp16 needs a CUDA device; use bf16 or fp32 on a CPU")
            return "fp16"
        case _:
            return "fp32"


def device_name(device: torch.device) -> str:
    """The model of the device, for manifests."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return str(torch.cpu.get_capabilities().get("cpu_name", "cpu")).strip()


def _place() -> tuple[int, int, int]:
    """(rank, local rank, world size) of this process; for Slurm sets MASTER_ADDR and _PORT too."""
    env = os.environ
    # SLURM_NTASKS is also set in a batch script, where nobody else would join; the step's is not.
    tasks = 1 if _is_interactive() else int(env.get("SLURM_STEP_NUM_TASKS", 1))
    in_step = tasks > 1 and "SLURM_PROCID" in env
    if in_step:
        from submitit.slurm.slurm import SlurmJobEnvironment

        env.setdefault("MASTER_ADDR", SlurmJobEnvironment().hostnames[0])
        # Jobs that share a node must not share a port: job and step number tell them apart.
        number = int(env["SLURM_JOB_ID"]) * 17 + int(env.get("SLURM_STEP_ID", 0))
        env.setdefault("MASTER_PORT", str(20_000 + number % 12_000))
    if in_step and not {"RANK", "WORLD_SIZE"} <= env.keys():
        return int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), tasks
    if not {"RANK", "WORLD_SIZE"} & env.keys():
        return 0, 0, 1
    size = _number("WORLD_SIZE", 1, 2**31)  # torchrun's
    rank = _number("RANK", 0, size - 1)
    return rank, _number("LOCAL_RANK", 0, size - 1) if "LOCAL_RANK" in env else rank, size


def _number(name: str, least: int, most: int) -> int:
    """The variable `name`; UserError where it is none of the numbers from `least` to `most`."""
    text = os.environ.get(name)
    if text is None:
        others = [f"{n}={os.environ[n]}" for n in ("RANK", "WORLD_SIZE") if n in os.environ]
        raise UserError(f"{name} is not set, but {' and '.join(others)}: {PLACE_REMEDY}")
    if not text.isdecimal() or not least <= int(text) <= most:
        raise UserError(f"{name}={text}: must be from {least} to {most}; {PLACE_REMEDY}")
    return int(text)


def _is_interactive() -> bool:
    """Whether this was typed within `srun --pty bash`, whose other tasks, if any, are gone.

    The step's task, that shell, has a terminal, and gives each command a process group of its own.
    """
    task = os.environ.get("SLURM_TASK_PID", "")
    with contextlib.suppress(psutil.Error, ValueError, OSError):
        in_its_group = os.getpgid(int(task)) == os.getpgrp()
        return psutil.Process(int(task)).terminal() is not None and not in_its_group
    return False


def _meet(rank: int, size: int, timeout_s: float, stop: StopRequest | None) -> Store:
    """The store by which ranks find each other, once all of them have come to it.

    torch's own way into it waits without a word, and a signal does not end it.
    """
    host, port = os.environ.get("MASTER_ADDR"), _number("MASTER_PORT", 1, 65535)
    if not host:
        raise UserError(f"MASTER_ADDR is not set, but there are {size} ranks: {PLACE_REMEDY}")
    serves = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    missing, store = (list(range(1, size)) if rank == 0 else [0]), None
    began, announced = time.monotonic(), False
    while True:
        if store is None:
            store = _connect(host, port, size, serves)
        if store is not None:
            if rank == 0:
                missing = [other for other in missing if not store.check([f"here {other}"])]
                if not missing:
                    store.set("all", "")
            else:
                store.set(f"here {rank}", "")
            if store.check(["all"]):
                store.set_timeout(datetime.timedelta(seconds=timeout_s))
                return store
        waited = time.monotonic() - began
        names = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
        who = f"rank{'s' * (len(missing) > 1)} {names} of {size} at {host}:{port}"
        if waited > PATIENCE_S and not announced:
            announced = True
            if rank == 0 or store is None:
                console.note(f"rank {rank} waits for {who} (for {timeout_s:.0f} s at most)")
        if stop is not None and stop.signal is not None:
            raise stop.end(f"rank {rank} stopped while it waited for {who}")
        if waited > timeout_s:
            raise EnvironmentFailed(f"rank {rank} waited {timeout_s:.0f} s in vain for {who}")
        time.sleep(0.02 if waited < PATIENCE_S else 0.2)


def _connect(host: str, port: int, size: int, serves: bool) -> Store | None:
    """The store at that address, served by this process or by another; None: not there yet."""
    if not serves:  # torch's client would print a page about each attempt that fails
        try:
            socket.create_connection((host, port), CONNECT_S).close()
        except OSError:
            return None
    return TCPStore(host, port, size, serves, wait_for_workers=False)


def choose_device(device: str, local_rank: int = 0) -> torch.device:
    """The device for auto, cpu or cuda. Raises UserError where there is none such."""
    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device}: allowed are auto, cpu, cuda")
    count = torch.cuda.device_count()
    if device == "cpu" or (device == "auto" and count == 0):
        return torch.device("cpu")
    if count == 0:
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu or auto")
    # Slurm may show a rank all GPUs of its node or only its own.
    return torch.device("cuda", local_rank % count)
