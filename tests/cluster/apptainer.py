"""An apptainer for the tests where the machine has none: a newer Debian's, in a folder of its own.

The packages are fetched by apt from the mirror that this machine already uses, unpacked, and given
that release's C library; nothing is installed into the system but patchelf and squashfs-tools.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HOME = Path(sys.prefix) / "apptainer"  # in the environment, so it goes with it
PACKAGES = ("apptainer", "libc6", "libseccomp2", "libsqlite3-0")
TOOLS = {"patchelf": "patchelf", "squashfs-tools": "mksquashfs"}
LOADER = "ld-linux-x86-64.so.2"
SYS_RESOURCE = 24


def find() -> Path | None:
    """The machine's own apptainer, or the one set up here."""
    found = shutil.which("apptainer")
    if found:
        return Path(found)
    own = HOME / "bin" / "apptainer"
    return own if own.exists() else None


def set_up(home: Path = HOME) -> None:
    """Set it up in `home` (about 10 s). Raises CalledProcessError where the mirror has it not."""
    apt, root, libraries = home / "apt", home / "root", home / "lib"
    for folder in (apt / "lists" / "partial", apt / "cache" / "archives" / "partial", root):
        folder.mkdir(parents=True, exist_ok=True)
    _fetch(apt)
    for package in PACKAGES:
        (archive,) = apt.glob(f"{package}_*.deb")
        _run("dpkg", "-x", archive, root if package == "apptainer" else libraries)
    own = libraries / "usr" / "lib" / "x86_64-linux-gnu"
    for program in ("usr/bin/apptainer", "usr/lib/x86_64-linux-gnu/apptainer/bin/starter"):
        _run("patchelf", "--set-interpreter", own / LOADER, root / program)
        _run("patchelf", "--force-rpath", "--set-rpath", own, root / program)
    # It looks for its files relative to its own path: below usr/, its starter below usr/lib/.
    for name in ("etc", "var"):
        (root / "usr" / name).symlink_to(f"../{name}")
        (root / "usr" / "lib" / name).symlink_to(f"../../{name}")
    (root / "var" / "lib" / "apptainer" / "mnt" / "session").mkdir(parents=True, exist_ok=True)
    if not _bounding_set() >> SYS_RESOURCE & 1:
        _allow_what_root_has(root / "etc" / "apptainer")
    (home / "bin").mkdir(exist_ok=True)
    (home / "bin" / "apptainer").symlink_to("../root/usr/bin/apptainer")


def _fetch(apt: Path) -> None:
    said = _run("apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages").split()
    keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"
    (apt / "sources.list").write_text(f"deb [signed-by={keyring}] {said[0]} sid main\n")
    options: list[str | Path] = [
        f"-oDir::State::Lists={apt / 'lists'}",
        f"-oDir::Etc::sourcelist={apt / 'sources.list'}",
        "-oDir::Etc::sourceparts=/nonexistent",
        f"-oDir::Cache={apt / 'cache'}",
    ]
    _run("apt-get", *options, "-qq", "update")
    _run("apt-get", *options, "-qq", "download", *PACKAGES, folder=apt)


def _allow_what_root_has(settings: Path) -> None:
    """All capabilities but CAP_SYS_RESOURCE, which root lacks in some containers."""
    conf = settings / "apptainer.conf"
    lines = conf.read_text().splitlines()
    key = "root default capabilities = "
    conf.write_text("\n".join(key + "file" if x.startswith(key) else x for x in lines) + "\n")
    names = (
        "chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap"
        " linux_immutable net_bind_service net_broadcast net_admin net_raw ipc_lock ipc_owner"
        " sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice"
        " sys_time sys_tty_config mknod lease audit_write audit_control setfcap mac_override"
        " mac_admin syslog wake_alarm block_suspend audit_read"
    )
    granted = {"users": {"root": [f"CAP_{name.upper()}" for name in names.split()]}}
    (settings / "capability.json").write_text(json.dumps(granted))


def _bounding_set() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("CapBnd")), 16)


def _run(*command: str | Path, folder: Path | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout
