"""A small base for the image, out of this machine's own Python: no network, a few seconds.

A folder with a shell, a few commands, Python with pip and setuptools, and the libraries they need.
The large packages are not copied: they are bound to /opt/packages when a container runs.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

COMMANDS = ("sh", "bash", "env", "id", "ln", "chmod", "mkdir", "rm", "cat", "ls", "uname", "test")
PACKAGES = Path(sysconfig.get_path("purelib"))
BIND = f"{PACKAGES}:/opt/packages"
LIBRARIES = "usr/lib/x86_64-linux-gnu"


def make(base: Path) -> None:
    """Write the tree into `base`."""
    for folder in ("usr/bin", "usr/local/bin", LIBRARIES, "usr/lib64", "opt/python/bin"):
        (base / folder).mkdir(parents=True)
    for folder in ("etc", "tmp", "proc", "sys", "dev", "root", "home", "var/tmp", "run", "opt"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    for name in ("bin", "lib", "lib64"):
        (base / name).symlink_to(f"usr/{name}")
    (base / "etc" / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (base / "etc" / "group").write_text("root:x:0:\n")
    programs = [Path(found) for name in COMMANDS if (found := shutil.which(name))]
    for program in programs:
        shutil.copy(program.resolve(), base / "usr" / "bin" / program.name)

    python = Path(sys.executable).resolve()
    standard = Path(sysconfig.get_path("stdlib"))
    own = base / "opt" / "python" / "lib" / standard.name
    unwanted = shutil.ignore_patterns("test", "site-packages", "dist-packages", "__pycache__")
    shutil.copytree(standard, own, ignore=unwanted)
    shutil.copy(python, base / "opt" / "python" / "bin" / python.name)
    (base / "usr" / "local" / "bin" / "python3").symlink_to(f"/opt/python/bin/{python.name}")
    site = own / "site-packages"
    for package in ("pip", "setuptools"):
        for path in metadata.files(package) or ():
            if path.parts[0] != ".." and "__pycache__" not in path.parts:
                target = site / path
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path.locate(), target)
    (site / "bound.pth").write_text("/opt/packages\n")

    torch = [PACKAGES / "torch" / "lib" / f"lib{name}.so" for name in ("torch_cpu", "torch_python")]
    _copy_libraries([*programs, python, *own.rglob("*.so"), *torch], base)


def _copy_libraries(binaries: Iterable[Path], base: Path) -> None:
    """The system's libraries that `binaries` load, by ldd."""
    said = subprocess.run(
        ["ldd", *map(str, binaries)], capture_output=True, text=True, timeout=600
    ).stdout
    for line in set(said.splitlines()):
        words = line.split()
        path = next(
            (Path(word) for word in words if word.startswith("/") and ":" not in word), None
        )
        if path is None or path.is_relative_to(PACKAGES):
            continue
        folder = "usr/lib64" if path.name.startswith("ld-linux") else LIBRARIES
        if not (base / folder / path.name).exists():
            shutil.copy(path.resolve(), base / folder / path.name)
