"""A CUDA runtime without a GPU (runtime.cpp), built for this Python's torch."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

SOURCES = Path(__file__).parent
LIBRARY = "libnullcuda.so"
VARIABLE = "NULL_CUDA"  # names the library to the programs that count


def obstacle() -> str:
    """Why it cannot be built here, or ""."""
    if shutil.which("g++") is None:
        return "no g++"
    if torch.version.cuda is None:
        return "torch was built without CUDA"
    return "" if _headers().is_dir() else f"no CUDA headers in {_headers()}"


def build(folder: Path) -> dict[str, str]:
    """Compile it into `folder`; the variables under which a program sees a GPU."""
    options = ["g++", "-shared", "-fPIC", "-O1", "-w", f"-I{_headers()}"]
    runtime = [str(SOURCES / "runtime.cpp"), str(SOURCES / "nccl.cpp")]
    driver = [str(SOURCES / "driver.cpp"), "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*options, *runtime, "-o", folder / LIBRARY, "-ldl"], check=True)
    subprocess.run([*options, *driver, "-o", folder / "libcuda.so.1"], check=True)
    library = str(folder / LIBRARY)
    return {VARIABLE: library, "LD_PRELOAD": library, "LD_LIBRARY_PATH": str(folder)}


@contextmanager
def counted() -> Iterator[dict[str, int]]:
    """Fills the yielded dict with the calls of the block, by name: within such a program."""
    library = ctypes.CDLL(os.environ[VARIABLE])
    calls: dict[str, int] = {}
    library.null_start()
    yield calls
    library.null_stop()
    buffer = ctypes.create_string_buffer(1 << 20)
    length = library.null_read(buffer, 1 << 20)
    for line in buffer.raw[:length].decode().splitlines():
        number, _, name = line.partition("\t")
        calls[name] = int(number)


def _headers() -> Path:
    # of triton, which torch's CUDA build brings
    return Path(sysconfig.get_path("purelib")) / "triton" / "backends" / "nvidia" / "include"
