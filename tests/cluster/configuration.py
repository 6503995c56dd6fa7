"""The configuration files of the tests' cluster.

Unusual settings, and the reasons:
- several slurmd on one host: a port each, %n in paths;
- no cgroups and no pinning, more CPUs, memory and GPUs than the machine has: works in containers;
- timers shrunk for tests. cred_expire is also how long a requeued job waits before it may start.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NODES = ("node1", "node2")
GPUS = 4
CPUS = 16
MEMORY_MB = 16_000
DB_PASSWORD = "tests"  # of a database that listens on this host only, for as long as the tests run
# A GRES file must be a character device, else Slurm does not set CUDA_VISIBLE_DEVICES.
DEVICES = ("null", "zero", "full", "random")


@dataclass(frozen=True)
class Ports:
    """The ports of cluster `number`, out of the range from which MASTER_PORT is chosen."""

    number: int

    @property
    def first(self) -> int:
        return 11_000 + 10 * self.number

    @property
    def ctld(self) -> int:
        return self.first

    @property
    def dbd(self) -> int:
        return self.first + 1

    @property
    def database(self) -> int:
        return self.first + 2

    def node(self, name: str) -> int:
        return self.first + 3 + NODES.index(name)

    def all(self) -> tuple[int, ...]:
        return (self.ctld, self.dbd, self.database, *(self.node(name) for name in NODES))


def write(folder: Path, ports: Ports, accounting: bool, settings: Mapping[str, object]) -> None:
    """Write slurm.conf, gres.conf, cgroup.conf and, with accounting, slurmdbd.conf."""
    etc = folder / "etc"
    values = {**_slurm(folder, ports, accounting), **settings}
    lines = [f"{key}={value}" for key, value in values.items()]
    (etc / "slurm.conf").write_text("\n".join([*lines, *_nodes(ports), *_partitions(), ""]))
    devices = folder / "dev"
    for k, device in enumerate(DEVICES[:GPUS]):
        (devices / f"gpu{k}").symlink_to(f"/dev/{device}")
    (etc / "gres.conf").write_text(
        "".join(f"NodeName={n} Name=gpu File={devices}/gpu[0-{GPUS - 1}]\n" for n in NODES)
    )
    (etc / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    if accounting:
        path = etc / "slurmdbd.conf"
        path.touch(mode=0o600)
        path.write_text("".join(f"{k}={v}\n" for k, v in _slurmdbd(folder, ports).items()))


def _slurm(folder: Path, ports: Ports, accounting: bool) -> dict[str, object]:
    munge = folder / "munge" / "munge.sock"
    values: dict[str, object] = {
        "ClusterName": f"diffuse{ports.number}",
        "SlurmctldHost": f"{socket.gethostname().split('.')[0]}(127.0.0.1)",
        "SlurmUser": "root",
        "SlurmdUser": "root",
        "SlurmctldPort": ports.ctld,
        # Jobs of two clusters on this host must not share an id: MASTER_PORT follows from it.
        "FirstJobId": 1 + 1000 * ports.number,
        "AuthType": "auth/munge",
        "CredType": "cred/munge",
        "AuthInfo": f"socket={munge},cred_expire=5",
        "StateSaveLocation": folder / "ctld",
        "SlurmdSpoolDir": folder / "spool-%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd-%n.pid",
        "SlurmctldLogFile": folder / "log" / "slurmctld.log",
        "SlurmdLogFile": folder / "log" / "slurmd-%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "JobAcctGatherType": "jobacct_gather/linux",
        "JobAcctGatherFrequency": "task=2",
        "SlurmdParameters": "config_overrides",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU_Memory",
        "DefMemPerCPU": 256,
        "GresTypes": "gpu",
        "SlurmctldTimeout": 10,
        "SlurmdTimeout": 5,
        "InactiveLimit": 0,
        "KillWait": 30,  # Slurm's default: a busy node needs it to save
        "MinJobAge": 300,
        "MessageTimeout": 10,
        "TCPTimeout": 5,
        "BatchStartTimeout": 10,
        "ReturnToService": 2,
        "JobRequeue": 1,
        "MaxArraySize": 1001,
        "SchedulerType": "sched/backfill",
        "SchedulerParameters": "sched_interval=1,bf_interval=1,bf_resolution=1,"
        "batch_sched_delay=0,preempt_youngest_first",
        "PriorityType": "priority/basic",
        "PreemptType": "preempt/partition_prio",
        "PreemptMode": "REQUEUE",
        # A preempted job gets the signal it asked for, as before a time limit.
        "SlurmctldParameters": "preempt_send_user_signal",
        "AccountingStorageType": "accounting_storage/none",
    }
    if accounting:
        values |= {
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": ports.dbd,
            "AccountingStoragePass": munge,  # else sacct asks the machine's own munge
            "AccountingStorageTRES": "gres/gpu",
        }
    return values


def _nodes(ports: Ports) -> list[str]:
    host = socket.gethostname().split(".")[0]
    return [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports.node(name)}"
        f" CPUs={CPUS} RealMemory={MEMORY_MB} Gres=gpu:{GPUS} State=UNKNOWN"
        for name in NODES
    ]


def _partitions() -> list[str]:
    """`gpu` preempts the two others, whose jobs are requeued (`preempt`) or ended (`cancel`)."""
    common = "Nodes=ALL MaxTime=1:00:00 DefaultTime=10 State=UP"
    return [
        f"PartitionName=gpu Default=YES PriorityTier=100 PreemptMode=OFF {common}",
        f"PartitionName=preempt PriorityTier=1 PreemptMode=REQUEUE GraceTime=10 {common}",
        f"PartitionName=cancel PriorityTier=1 PreemptMode=CANCEL GraceTime=10 {common}",
    ]


def _slurmdbd(folder: Path, ports: Ports) -> dict[str, object]:
    return {
        "AuthType": "auth/munge",
        "AuthInfo": f"socket={folder / 'munge' / 'munge.sock'}",
        "DbdHost": "localhost",
        "DbdAddr": "127.0.0.1",
        "DbdPort": ports.dbd,
        "SlurmUser": "root",
        "PidFile": folder / "slurmdbd.pid",
        "LogFile": folder / "log" / "slurmdbd.log",
        "StorageType": "accounting_storage/mysql",
        "StorageHost": "127.0.0.1",
        "StoragePort": ports.database,
        "StorageUser": "slurm",
        "StoragePass": DB_PASSWORD,
        "StorageLoc": "slurm_acct",
    }
