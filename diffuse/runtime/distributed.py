"""The one file that knows about ranks: their numbers, how they meet, agree, and end together.

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
from typing import TypeVar

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import ProcessGroup, Store, TCPStore  # type: ignore[attr-defined]
from torch.nn.parallel import DistributedDataParallel

from diffuse.runtime import console
from diffuse.runtime.device import board, choose_device, explained
from diffuse.runtime.errors import (
    EnvironmentFailed,
    Interrupted,
    Superseded,
    UserError,
    first_line,
    skip_finalization,
)
from diffuse.runtime.preemption import StopRequest

# An error of gloo is told by its text alone: it names a file of gloo's source, save in a collective
# that ends because another one, under way beside it, timed out.
GLOO = re.compile("gloo|Application timeout caused pair closure")
T = TypeVar("T")
PATIENCE_S = 1.0  # for ranks that start a little later, before a rank says for whom it waits
CONNECT_S = 1.0
PLACE_REMEDY = "start ranks by torchrun or srun; to be alone, unset RANK and WORLD_SIZE"


class LostRanks(EnvironmentFailed):
    """A collective failed, since another rank is gone."""


@dataclass(frozen=True)
class World:
    """This process among `size` ranks.

    Agreements travel by gloo, the default process group; tensors of a GPU by NCCL, `device_group`.
    """

    rank: int
    local_rank: int
    size: int
    device: torch.device
    device_group: ProcessGroup | None = None
    nodes: int = 1  # counted where each rank has a GPU

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
            dist.all_reduce(tensor, group=self.device_group if tensor.is_cuda else None)
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
        return DistributedDataParallel(
            network, ids, process_group=self.device_group, find_unused_parameters=True
        )


@contextlib.contextmanager
def join(device: str, timeout_s: float, stop: StopRequest | None = None) -> Iterator[World]:
    """Find this process's place, choose its device, join the others, and end as they do.

    Interrupted and Superseded, on which all ranks have agreed, leave the block on rank 0 alone,
    which says why; the other ranks end in silence: srun and torchrun kill rank 0, perhaps while it
    saves, as soon as another rank ends with an error.

    Args:
        device: auto (CUDA where there is one), cpu or cuda.
        timeout_s: a collective that takes longer ends the process, so that no rank waits for ever.
        stop: ends the wait for the others, too.

    Raises UserError where CUDA is asked for and there is none, where two ranks have one GPU, or
    where the variables that tell a rank its place are incomplete; EnvironmentFailed where the
    device fails, or another rank is gone: at the start, or later in a collective within the block;
    Interrupted where `stop` was asked for at the start.
    """
    rank, local_rank, size = _place()
    chosen = choose_device(device, local_rank)
    with explained(chosen):
        if size == 1:
            yield World(rank, local_rank, size, chosen)
            return
        # DDP keeps gloo's threads alive even beyond destroy_process_group (torch 2.14). One that
        # drops its last tensor while Python takes itself apart would abort a rank that is done.
        atexit.register(skip_finalization)
        with _naming_lost_ranks(rank, size):
            world = _join(rank, local_rank, size, chosen, timeout_s, stop)
        try:
            with _naming_lost_ranks(rank, size):
                yield world
        except (Interrupted, Superseded):
            if world.is_main:
                raise
            return
        except LostRanks as error:
            if stop is None or stop.signal is None:
                raise
            # It waited for ranks that had been stopped before it.
            if world.is_main:
                raise stop.end(
                    f"stopped by {stop.signal.name}; the same command goes on"
                ) from error
            return
        # Only after success: NCCL waits here for all ranks, and one that failed does not come.
        dist.destroy_process_group()


def _join(
    rank: int,
    local_rank: int,
    size: int,
    device: torch.device,
    timeout_s: float,
    stop: StopRequest | None,
) -> World:
    store = _meet(rank, size, timeout_s, stop)
    timeout = datetime.timedelta(seconds=timeout_s)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    if device.type != "cuda":
        return World(rank, local_rank, size, device)
    nodes = _nodes_of_gpus(store, rank, size, device)
    # Later than gloo's, which raises an error: NCCL's ends the process by SIGABRT.
    group = dist.new_group(backend="nccl", timeout=2 * timeout)
    assert isinstance(group, ProcessGroup)  # of all ranks, so this one is in it
    return World(rank, local_rank, size, device, group, nodes)


def _nodes_of_gpus(store: Store, rank: int, size: int, device: torch.device) -> int:
    """The number of nodes. Raises UserError where two ranks have one GPU, which NCCL refuses."""
    store.set(f"gpu {rank}", f"{socket.gethostname()} {board(device)}")
    gpus = [store.get(f"gpu {other}").decode() for other in range(size)]
    for other, gpu in enumerate(gpus):
        if (first := gpus.index(gpu)) != other:
            node, address = gpu.split()
            raise UserError(
                f"ranks {first} and {other} have one GPU ({address} of {node}), and NCCL needs one"
                " for each: ask for as many GPUs as ranks on a node (slices of one GPU, MIG, count"
                " as one), or start fewer ranks"
            )
    return len({gpu.split()[0] for gpu in gpus})


@contextlib.contextmanager
def _naming_lost_ranks(rank: int, size: int) -> Iterator[None]:
    """An error of a collective as LostRanks; any other as it is."""
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        if not (isinstance(error, dist.DistError | ConnectionError) or GLOO.search(str(error))):
            raise
        reason = first_line(error)
        raise LostRanks(f"rank {rank} of {size} lost the others: {reason}") from error


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
