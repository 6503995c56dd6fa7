"""A Slurm cluster that lives as long as a `with` block.

with Cluster() as cluster:
    print(cluster.slurm("sinfo"))
    subprocess.run(["sbatch", ...], env={**os.environ, **cluster.env})
    cluster.kill_node("node1")
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from tests.cluster import configuration, leftovers
from tests.cluster.configuration import DB_PASSWORD, NODES, Ports
from tests.cluster.daemons import Daemon, search_path, succeeds, wait_until

PAUSE_S = 0.4  # between two commands that ask Slurm


class Cluster:
    """Two nodes with four pretended GPUs each, on this machine.

    Args:
        accounting: with slurmdbd and its database (a few seconds more to start).
        settings: of slurm.conf, over the usual ones, such as {"MaxArraySize": 10}.
    """

    def __init__(self, accounting: bool = True, settings: dict[str, object] | None = None) -> None:
        self.accounting = accounting
        self.settings = settings or {}
        self._undo = contextlib.ExitStack()

    def __enter__(self) -> Cluster:
        with contextlib.ExitStack() as undo:
            self.ports: Ports = undo.enter_context(_claim())
            self.folder = _folder(self.ports.number)
            undo.callback(leftovers.undo, self.folder)
            self._prepare()
            watcher = undo.enter_context(leftovers.start_watcher(self.folder))
            undo.callback(watcher.terminate)
            undo.callback(self._stop)
            self._start()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    @property
    def env(self) -> dict[str, str]:
        """The variables by which a process uses this cluster."""
        return {"SLURM_CONF": str(self.folder / "etc" / "slurm.conf")}

    def slurm(self, *command: str | Path, timeout: float = 60) -> str:
        """The output of a Slurm command; RuntimeError with its message where it fails."""
        done = subprocess.run(
            list(map(str, command)),
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr or done.stdout}")
        return done.stdout

    def state(self, job: str) -> str:
        """The job's state in the queue, such as RUNNING; "" once Slurm has forgotten it."""
        try:
            return self.slurm("squeue", "-h", "--states=all", f"--jobs={job}", "-o%T").strip()
        except RuntimeError:
            return ""

    def wait_for(self, job: str, *states: str, seconds: float = 600) -> None:
        """Wait until `job` is in one of `states`."""
        wait_until(
            lambda: self.state(job) in states,
            seconds,
            f"job {job} to be {' or '.join(states)}",
            PAUSE_S,
        )

    def kill_slurmd(self, node: str) -> None:
        """kill -9 the node's slurmd; its jobs' processes go on as orphans."""
        self._slurmd[node].kill()

    def kill_node(self, node: str) -> None:
        """kill -9 the node's slurmd and all processes of its jobs, as if its power had failed.

        Slurm calls it down, and requeues its jobs, after about half a minute.
        """
        self.kill_slurmd(node)
        # All at one instant: a step whose tasks die before it does would still report that. One
        # that has just begun may start a process while the others are looked for.
        found: set[psutil.Process] = set()
        while new := set(leftovers.processes(self.folder, node)) - found:
            found |= new
            _act(psutil.Process.suspend, new)
        # The newest first: the kernel wakes a stopped process whose parent dies, by SIGHUP, and
        # srun would ask the controller to end the step, the next one of that id.
        _act(psutil.Process.kill, sorted(found, key=_age))
        psutil.wait_procs(list(found), timeout=5)

    def stop_slurmd(self, node: str) -> None:
        """End the node's slurmd as its administrator would."""
        self._slurmd[node].stop()

    def start_slurmd(self, node: str, seconds: float = 40) -> None:
        """Start the node's slurmd and wait until Slurm counts on the node again."""
        self._slurmd[node].start()
        self._slurmd[node].wait_ready(lambda: node in self._nodes_up(), seconds)

    def stop_slurmctld(self) -> None:
        """End the controller: commands of clients now fail, jobs go on."""
        self._ctld.stop()

    def start_slurmctld(self) -> None:
        """Start the controller and wait until it answers."""
        self._ctld.start()
        self._ctld.wait_ready(lambda: succeeds(["scontrol", "ping"], self._environment))

    def restart_slurmctld(self) -> None:
        """Start the controller again; jobs go on meanwhile."""
        self.stop_slurmctld()
        self.start_slurmctld()

    def cancel_all(self) -> None:
        """End every job and wait until none is left."""
        self.slurm("scancel", "--state=PENDING", "--user=root")
        self.slurm("scancel", "--user=root")
        self.wait_empty(40)

    def wait_empty(self, seconds: float = 600) -> None:
        """Wait until no job waits or runs."""
        wait_until(lambda: not self.slurm("squeue", "-h"), seconds, "an empty queue", PAUSE_S)

    def restore(self) -> None:
        """Start daemons that were stopped or killed, and end every job."""
        self.start_slurmctld()
        for node in NODES:
            self.start_slurmd(node)
        self.cancel_all()

    def _prepare(self) -> None:
        leftovers.undo(self.folder)
        for name in ("etc", "munge", "db", "ctld", "log", "dev", *(f"spool-{n}" for n in NODES)):
            (self.folder / name).mkdir(parents=True)
        configuration.write(self.folder, self.ports, self.accounting, self.settings)
        leftovers.set_host_names(self.folder.name, NODES)
        # Little of what surrounds the tests reaches the daemons, and through them jobs.
        self._environment = {"PATH": search_path(), "HOME": os.environ.get("HOME", "/"), **self.env}
        self._ctld = self._daemon("slurmctld", "slurmctld", "-D")
        self._slurmd = {n: self._daemon(f"slurmd-{n}", "slurmd", "-D", "-N", n) for n in NODES}
        self._daemons: list[Daemon] = []

    def _start(self) -> None:
        self._start_munged()
        if self.accounting:
            self._start_database()
            self._start_slurmdbd()
        self._daemons.append(self._ctld)
        self.start_slurmctld()
        for daemon in self._slurmd.values():
            self._daemons.append(daemon)
            daemon.start()
        for node in NODES:
            self.start_slurmd(node)

    def _stop(self) -> None:
        if self._ctld.is_running:
            with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
                self.cancel_all()
        for daemon in reversed(self._daemons):
            daemon.stop()

    def _daemon(self, name: str, *command: str | Path) -> Daemon:
        log = self.folder / "log" / f"{name}.out"
        return Daemon(name, command, log, self._environment)

    def _nodes_up(self) -> list[str]:
        try:
            text = self.slurm("sinfo", "-hN", "--partition=gpu", "--states=idle,mix,alloc", "-o%N")
        except (RuntimeError, subprocess.TimeoutExpired):
            return []
        return text.split()

    def _start_munged(self) -> None:
        folder = self.folder / "munge"
        key, socket_path = folder / "munge.key", folder / "munge.sock"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        munged = self._daemon(
            "munged",
            "munged",
            "--foreground",
            "--force",
            f"--key-file={key}",
            f"--socket={socket_path}",
            f"--pid-file={folder / 'munged.pid'}",
            f"--seed-file={folder / 'munged.seed'}",
            f"--log-file={self.folder / 'log' / 'munged.log'}",
        )
        self._daemons.append(munged)
        munged.start()
        command = ["munge", "--no-input", f"--socket={socket_path}"]
        munged.wait_ready(lambda: succeeds(command, self._environment))

    def _start_database(self) -> None:
        data, socket_path = self.folder / "db", self.folder / "db.sock"
        # A server that starts removes temporary tables from its folder, another server's too.
        temporary = self.folder / "db-tmp"
        temporary.mkdir()
        common = ["--no-defaults", "--user=root", f"--datadir={data}", f"--tmpdir={temporary}"]
        with (self.folder / "log" / "mariadb-install.out").open("wb") as log:
            subprocess.run(
                ["mariadb-install-db", *common, "--auth-root-authentication-method=normal"],
                env=self._environment,
                stdout=log,
                stderr=log,
                check=True,
                timeout=600,
            )
        database = self._daemon(
            "mariadbd",
            "mariadbd",
            *common,
            f"--socket={socket_path}",
            f"--pid-file={self.folder / 'db.pid'}",
            "--bind-address=127.0.0.1",
            f"--port={self.ports.database}",
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=64M",
            "--innodb-lock-wait-timeout=900",
            # Nothing here outlives the tests, so nothing waits for the disk.
            "--innodb-flush-log-at-trx-commit=0",
            "--sync-binlog=0",
        )
        self._daemons.append(database)
        database.start()
        client = ["--no-defaults", f"--socket={socket_path}", "--user=root"]
        ping = ["mariadb-admin", *client, "ping"]
        database.wait_ready(lambda: succeeds(ping, self._environment))
        grants = (
            "create database slurm_acct;"
            f"create user slurm@'127.0.0.1' identified by '{DB_PASSWORD}';"
            "grant all on slurm_acct.* to slurm@'127.0.0.1'"
        )
        self.slurm("mariadb", *client, "-e", grants)

    def _start_slurmdbd(self) -> None:
        dbd = self._daemon("slurmdbd", "slurmdbd", "-D")
        self._daemons.append(dbd)
        dbd.start()
        command = ["sacctmgr", "-n", "list", "cluster"]
        dbd.wait_ready(lambda: succeeds(command, self._environment))
        self.slurm("sacctmgr", "-i", "add", "cluster", f"diffuse{self.ports.number}")


def _age(process: psutil.Process) -> tuple[float, int]:
    """Less for a process that began later."""
    return -process.create_time(), -process.pid


def _act(act: Callable[[psutil.Process], None], processes: Iterable[psutil.Process]) -> None:
    """Do `act` to each process that is still there."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            act(process)


def _folder(number: int) -> Path:
    """Short: it holds Unix sockets, whose paths may have 107 characters."""
    return Path(tempfile.gettempdir()) / f"diffuse-slurm-{number}"


@contextlib.contextmanager
def _claim() -> Iterator[Ports]:
    """Ports that are free, for as long as the lock on their number is held.

    The lock goes with its process: a folder whose lock is free belonged to one that died.
    """
    for number in range(200):
        lock = FileLock(_folder(number).with_suffix(".lock"), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            continue
        try:
            if _folder(number).exists():
                leftovers.undo(_folder(number))
            ports = Ports(number)
            if all(map(_is_free, ports.all())):
                yield ports
                return
        finally:
            lock.release()
    raise RuntimeError("no free ports for a Slurm cluster")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
        return True
