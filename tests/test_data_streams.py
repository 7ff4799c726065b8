"""Rows of files a batch at a time: the same numbers as all at once, and no more of them in memory."""

from __future__ import annotations

import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sdediff import data


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)


KINDS = ["a.npy", "a.npz", "packed.npz", "a.pt", "a.csv"]


def write(path: Path, values: np.ndarray) -> Path:
    if path.name == "packed.npz":
        np.savez_compressed(path, x=values)
    elif path.suffix == ".npz":
        np.savez(path, x=values)
    elif path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".pt":
        torch.save({"x": torch.from_numpy(values)}, path)
    else:
        np.savetxt(path, values, delimiter=",", header="a,b,c", comments="", fmt="%.9g")
    return path


@pytest.mark.parametrize("name", KINDS)
def test_batches_are_the_rows_of_the_whole(tmp_path: Path, values: np.ndarray, name: str) -> None:
    path = write(tmp_path / name, values)
    rows, whole = data.stream(path), torch.from_numpy(values)
    assert torch.equal(data.read(path), whole)
    assert [len(part) for part in rows.batches(4)] == [4, 4, 3]
    assert torch.equal(torch.cat(list(rows.batches(4))), whole)
    assert torch.equal(torch.cat(list(rows.batches(2, start=3, stop=8))), whole[3:8])
    assert torch.equal(torch.cat(list(rows.batches(start=8, stop=99))), whole[8:])
    assert list(rows.batches(2, start=11)) == []
    assert torch.equal(rows.take([0, 1, 7, 10]), whole[[0, 1, 7, 10]])
    assert rows.columns == (["a", "b", "c"] if name.endswith("csv") else None)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.dtype(">f8"), np.bool_])
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_dtypes_are_those_of_read(tmp_path: Path, dtype: np.dtype, name: str) -> None:
    path = write(tmp_path / name, np.arange(6).reshape(3, 2).astype(dtype))
    (rows,) = data.stream(path).batches()
    assert rows.dtype == data.read(path).dtype and torch.equal(rows, data.read(path))


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "packed.npz"])
def test_order_by_columns_is_read_too(tmp_path: Path, values: np.ndarray, name: str) -> None:
    path = write(tmp_path / name, np.asfortranarray(values))
    if name == "packed.npz":
        with pytest.warns(UserWarning, match="stores its array column by column and so is read into memory"):
            rows = data.stream(path)
    else:
        rows = data.stream(path)
    assert torch.equal(torch.cat(list(rows.batches(4))), torch.from_numpy(values))


def test_an_old_tensor_file_is_read_whole(tmp_path: Path, values: np.ndarray) -> None:
    torch.save(torch.from_numpy(values), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    with pytest.warns(UserWarning, match=r"before torch 1\.6 and so is read into memory as a whole"):
        rows = data.stream(tmp_path / "a.pt")
    assert torch.equal(torch.cat(list(rows.batches(4))), torch.from_numpy(values))


def test_what_read_refuses_is_refused(tmp_path: Path) -> None:
    for name in ("a.npy", "a.npz", "a.pt"):
        (tmp_path / name).write_bytes(b"no array")
        with pytest.raises(ValueError, match="damaged"):
            data.stream(tmp_path / name)
    np.savez(tmp_path / "two.npz", x=np.eye(2), y=np.eye(3))
    with pytest.raises(ValueError, match=r"several arrays or none \(x, y\)"):
        data.stream(tmp_path / "two.npz")
    assert len(next(data.stream(f"{tmp_path / 'two.npz'}:y").batches())) == 3
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="could run code"):
        data.stream(tmp_path / "objects.npz")
    np.save(tmp_path / "words.npy", np.array(["a"]))
    with pytest.raises(ValueError, match="real numbers are needed"):
        data.stream(tmp_path / "words.npy")
    np.save(tmp_path / "number.npy", np.array(3.0))
    with pytest.raises(ValueError, match=r"has shape \(\) and so no rows"):
        data.stream(tmp_path / "number.npy")
    (tmp_path / "plain.csv").write_text("column 1,column 2\n1,2\n")  # as rows without names are written
    assert data.stream(tmp_path / "plain.csv").columns is None
    (tmp_path / "late.csv").write_text("1,2\n" * 9 + "3,x\n")
    batches = data.stream(tmp_path / "late.csv").batches(3)
    assert [len(next(batches)) for _ in range(3)] == [3, 3, 3]
    with pytest.raises(ValueError, match="line 10, column 'column 2': the value is 'x'"):
        next(batches)


def test_a_cut_archive_is_damaged(tmp_path: Path) -> None:
    path = write(tmp_path / "packed.npz", np.random.default_rng(0).normal(size=(1000, 3)))
    with zipfile.ZipFile(path) as archive:
        offset = archive.getinfo("x.npy").header_offset + 4000
    content = bytearray(path.read_bytes())
    content[offset : offset + 50] = bytes(50)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        list(data.stream(path).batches(10))


@pytest.mark.parametrize("name", ["a.npy", "packed.npz", "a.csv"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, name: str) -> None:
    peaks = []
    for rows in (2_000, 20_000):
        path = write(tmp_path / name, np.zeros((rows, 3), np.float32))
        tracemalloc.start()
        assert sum(len(part) for part in data.stream(path).batches(100)) == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] + 5_000
