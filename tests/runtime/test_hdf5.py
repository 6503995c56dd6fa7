"""HDF5 files: written whole, and refused by one exception where they are damaged."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from diffuse.runtime import hdf5

ARRAYS = {"a": np.arange(6000.0).reshape(1000, 6), "b/c": np.arange(10, dtype=np.uint8)}


@pytest.mark.parametrize("storage", [hdf5.PLAIN, hdf5.CHECKSUMMED, hdf5.COMPRESSED])
def test_arrays_and_attributes_read_back(storage: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.h5"
    hdf5.write(path, ARRAYS, {"seed": 3, "name": "x"}, storage, {"b/c": {"unit": "lines"}})
    assert [p.name for p in path.parent.iterdir()] == ["x.h5"]
    arrays, attributes = hdf5.read(path, ARRAYS)
    assert attributes == {"seed": 3, "name": "x"}
    assert all(np.array_equal(arrays[name], array) for name, array in ARRAYS.items())
    with h5py.File(path) as file:
        assert file["b/c"].attrs["unit"] == "lines"
    (first,) = hdf5.read(path, ["a"], first=4)[0].values()
    assert np.array_equal(first, ARRAYS["a"][:4])


@pytest.mark.parametrize("storage", [hdf5.CHECKSUMMED, hdf5.COMPRESSED])
def test_a_flipped_bit_is_found(storage: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    hdf5.write(path, {"a": ARRAYS["a"]}, {}, storage)
    with h5py.File(path) as file:
        chunk = file["a"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(hdf5.Damaged, match=r"x\.h5: damaged"):
        hdf5.read(path, ["a"])


@pytest.mark.parametrize("content", [b"", b"no HDF5 at all", None])
def test_other_content_is_damage_and_a_missing_file_is_not(
    content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "x.h5"
    if content is None:
        hdf5.write(path, {"b": ARRAYS["a"]}, {})
    else:
        path.write_bytes(content)
    with pytest.raises(hdf5.Damaged) as caught:
        hdf5.read(path, ["a"])
    assert "\n" not in str(caught.value)
    for missing in (tmp_path / "none.h5", path / "x.h5"):
        with pytest.raises(FileNotFoundError):
            hdf5.read(missing, ["a"])
