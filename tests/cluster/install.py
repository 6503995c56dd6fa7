"""Install the packages of the tests' cluster: `python -m tests.cluster.install`.

As root on Debian or Ubuntu it names the packages and installs them; elsewhere it names the tests
that are left out. Under CI=true a machine without Slurm is a failure.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.cluster import apptainer

# The program that shows that a package is there.
PACKAGES = {
    "munge": "munged",
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurm-client": "sbatch",
    "slurmdbd": "slurmdbd",
    "mariadb-server": "mariadbd",
    "shellcheck": "shellcheck",
}
SERVICE_POLICY = Path("/usr/sbin/policy-rc.d")


def missing() -> list[str]:
    """The packages whose program is not here."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    return [name for name, program in PACKAGES.items() if not shutil.which(program, path=path)]


def obstacle() -> str | None:
    """Why there can be no cluster on this machine, None where there can."""
    if lacking := missing():
        return f"not installed: {', '.join(lacking)} (python -m tests.cluster.install, as root)"
    if os.geteuid():
        return "the tests' Slurm cluster needs root (its nodes' names go into /etc/hosts)"
    return None


def main() -> int:
    lacking = missing()
    if lacking and os.geteuid() == 0 and _is_debian():
        print(f"installing for the tests' Slurm cluster, by apt: {' '.join(lacking)}", flush=True)
        _install(lacking)
        lacking = missing()
    if not lacking and apptainer.find() is None and os.geteuid() == 0 and _is_debian():
        print("setting up an apptainer for the tests, in the environment's folder", flush=True)
        _install([p for p, program in apptainer.TOOLS.items() if not shutil.which(program)])
        try:
            apptainer.set_up()
        except (subprocess.CalledProcessError, OSError, ValueError) as error:
            shutil.rmtree(apptainer.HOME, ignore_errors=True)
            print(f"no apptainer: {error}", flush=True)
    if apptainer.find() is None:
        print("tests of the image are left out: there is no apptainer here", flush=True)
    if reason := obstacle():
        print(f"tests on a real Slurm cluster are left out: {reason}", flush=True)
        return 1 if os.environ.get("CI") == "true" else 0
    return 0


def _install(packages: list[str]) -> None:
    if not packages:
        return
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    options = ["-qq", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Use-Pty=0"]
    with _services_not_started():
        for command in (["update"], ["install", "--yes", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", *options, *command], env=quiet, capture_output=True, text=True
            )
            if done.returncode:
                said = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
                print(f"apt-get {command[0]} failed: {said[-1]}", file=sys.stderr, flush=True)


@contextmanager
def _services_not_started() -> Iterator[None]:
    """Keep the packages from starting a Slurm or a database of the machine's own."""
    if SERVICE_POLICY.exists():
        yield
        return
    SERVICE_POLICY.write_text("#!/bin/sh\nexit 101\n")
    SERVICE_POLICY.chmod(0o755)
    try:
        yield
    finally:
        SERVICE_POLICY.unlink()


def _is_debian() -> bool:
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return False
    facts = dict(line.split("=", 1) for line in lines if "=" in line)
    names = f"{facts.get('ID', '')} {facts.get('ID_LIKE', '')}".replace('"', "").split()
    return bool({"debian", "ubuntu"} & set(names)) and shutil.which("apt-get") is not None


if __name__ == "__main__":
    sys.exit(main())
