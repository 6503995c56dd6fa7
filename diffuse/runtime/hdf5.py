"""Arrays on disk: HDF5 files written atomically, and checked when they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import h5py
from numpy.typing import NDArray

from diffuse.runtime import files
from diffuse.runtime.errors import UserError

# h5py's options of a data set. A checksum finds damage but makes reading slower.
PLAIN: Mapping[str, Any] = MappingProxyType({})
CHECKSUMMED: Mapping[str, Any] = MappingProxyType({"fletcher32": True, "chunks": True})
COMPRESSED: Mapping[str, Any] = MappingProxyType(
    {"fletcher32": True, "compression": "gzip", "compression_opts": 4}
)


class Damaged(UserError):
    """The file is no HDF5, lacks an array, or a checksum in it is wrong."""


def write(
    path: Path,
    arrays: Mapping[str, NDArray[Any]],
    attributes: Mapping[str, Any],
    storage: Mapping[str, Any] = COMPRESSED,
    array_attributes: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:
    """Write arrays by their names atomically, with attributes of the file and of single arrays."""
    with files.buffered(path) as buffer, h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, **storage)
            file[name].attrs.update(array_attributes.get(name, {}))
        file.attrs.update(attributes)


def read(
    path: Path, names: Iterable[str] | None = None, first: int | None = None
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays `names` (default: all at the top), or their first `first` rows; the attributes.

    Raises Damaged; FileNotFoundError and PermissionError as they are.
    """
    try:
        # files are replaced whole, and many filesystems, read-only or of networks, have no locks
        with h5py.File(path, "r", locking=False) as file:
            arrays = {name: file[name][:first] for name in (file if names is None else names)}
            return arrays, dict(file.attrs)
    except (FileNotFoundError, PermissionError):
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(error.errno, "not found", str(path)) from None
    except (OSError, LookupError, RuntimeError, TypeError, AttributeError, ValueError) as error:
        reason = " ".join(str(error).split())[:60]
        raise Damaged(f"{path}: damaged, or other arrays than expected ({reason})") from None
