"""A local sweep on other machines than ours: a Mac, a container with fewer cores than the host."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffuse.rundir.directory import RunDir
from tests import programs
from tests.programs import ROOT, TINY

# Names that Python has on Linux and not on macOS, and that a program might have used.
MACOS = """
import fcntl, multiprocessing, os, signal, time

LACKING = {
    os: "sched_ pidfd_ memfd_ eventfd splice getrandom posix_fadvise posix_fallocate pipe2 unshare"
        " setns copy_file_range fdatasync getxattr setxattr listxattr removexattr getres setres",
    signal: "SIGRT SIGPOLL SIGPWR SIGSTKFLT SIGCLD sigtimedwait sigwaitinfo",
    fcntl: "F_OFD_ F_SETPIPE_SZ F_GETPIPE_SZ F_ADD_SEALS F_SETLEASE F_NOTIFY",
    time: "CLOCK_BOOTTIME CLOCK_TAI",
}
for module, names in LACKING.items():
    for name in [n for n in vars(module) if n.startswith(tuple(names.split()))]:
        delattr(module, name)
multiprocessing.set_start_method("spawn")
"""
GRID = "runs: [{preset: ddpm/default, epochs: [1]}]"


def command(folder: Path, data_dir: Path, *more: str) -> list[str]:
    (folder / "grid.yaml").write_text(GRID)
    place = (f"--grid={folder}/grid.yaml", f"--runs-dir={folder}/runs", f"--data-dir={data_dir}")
    sweep = [sys.executable, str(ROOT / "launch" / "sweep.py"), "--cluster=local", *place]
    return [*sweep, *TINY, "--set=samples.images=4", "--set=eval.images=20", *more]


def test_a_sweep_with_evaluation_and_report_needs_nothing_that_a_mac_lacks(
    tmp_path: Path, data_dir: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(MACOS)
    done = subprocess.run(
        command(tmp_path, data_dir, "--set=tracking.mode=offline"),
        env=programs.environment(PYTHONPATH=f"{tmp_path}{os.pathsep}{ROOT}"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs" / "report.html").is_file()
    (config,) = (tmp_path / "runs").glob("*/config.yaml")
    assert RunDir(config.parent).status()["state"] == "done"
    assert list(config.parent.glob("wandb/**/*.wandb"))


QUOTAS = {
    "cgroup v2": "echo 100000 100000 >{0}/cpu.max",
    "cgroup v1": "mkdir {0}/cpu && cd {0}/cpu"
    " && echo 100000 >cpu.cfs_quota_us && echo 100000 >cpu.cfs_period_us",
}


@pytest.mark.parametrize("kind", QUOTAS)
def test_a_quota_below_the_number_of_cores_counts(
    tmp_path: Path, data_dir: Path, kind: str
) -> None:
    """The quota of `docker run --cpus=1`; each training has its share as threads."""
    ours = "mount -t tmpfs none /sys/fs/cgroup"
    if os.geteuid() or subprocess.run(["unshare", "--mount", "sh", "-c", ours]).returncode:
        programs.leave_out("needs a mount namespace of its own")
    count = "import json, os; print(json.dumps([os.cpu_count(), Pool(L(), None, [], 1).threads]))"
    program = f"""
from pathlib import Path
from types import SimpleNamespace
from launch.local.pool import Pool
L = lambda: SimpleNamespace(grid="grid", path=Path({str(tmp_path)!r}))
{count}
"""
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c"),
            f'{ours} && {QUOTAS[kind].format("/sys/fs/cgroup")} && exec "$@"',
            *("sh", sys.executable, "-c", program),
        ],
        env=programs.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    cores, threads = json.loads(done.stdout)
    if cores == 1:
        programs.leave_out("a machine with one core")
    assert threads == 1
