"""The image's SHA-256, kept beside it in IMAGE.sha256: reading gigabytes takes a while.

`make image` writes that file, and slurm/common.sh reads and writes the same one.
"""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

from diffuse.runtime import files


@functools.cache  # for each array of a sweep, also where nothing can be kept beside the image
def sha256(image: Path) -> str:
    """The image's SHA-256: the known one where it is newer than the image, else computed."""
    known = image.with_name(f"{image.name}.sha256")
    with contextlib.suppress(OSError, IndexError):
        if known.stat().st_mtime >= image.stat().st_mtime:
            return known.read_text().split()[0]
    digest = files.sha256(image)
    with contextlib.suppress(OSError):  # an image that others built, in a folder of theirs
        files.write_text(known, f"{digest}  {image.name}\n")
    return digest
