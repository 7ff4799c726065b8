"""Readers, the digits and whole-or-nothing files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from sdediff import data, files


def test_npy_keeps_values_and_gives_the_default_dtype(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(5, 3))
    np.save(tmp_path / "a.npy", values)
    assert data.read(tmp_path / "a.npy").dtype == torch.float32
    assert np.array_equal(data.read(tmp_path / "a.npy", dtype=torch.float64).numpy(), values)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.dtype(">i4"), np.bool_])
def test_integers_stay_integers(tmp_path: Path, dtype: np.dtype) -> None:
    values = np.array([0, 1, 1]).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    read = data.read(tmp_path / "a.npy")
    assert not read.is_floating_point() and read.tolist() == values.tolist()


def test_npz_chooses_the_only_array_or_the_named_one(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", x=np.eye(2))
    np.savez(tmp_path / "two.npz", x=np.eye(2), y=np.zeros(3, np.int64))
    assert torch.equal(data.read(tmp_path / "one.npz"), torch.eye(2))
    assert torch.equal(data.read(f"{tmp_path / 'two.npz'}:y"), torch.zeros(3, dtype=torch.int64))
    assert torch.equal(data.read(tmp_path / "two.npz", key="x"), torch.eye(2))
    with pytest.raises(ValueError, match=r"several arrays or none \(x, y\): choose one by key="):
        data.read(tmp_path / "two.npz")
    with pytest.raises(ValueError, match=r"no array 'z': it holds x, y"):
        data.read(tmp_path / "two.npz", key="z")


def test_pt_holds_a_tensor_or_a_dict_and_never_code(tmp_path: Path) -> None:
    torch.save(torch.arange(3.0), tmp_path / "a.pt")
    torch.save({"x": torch.eye(2), "y": torch.zeros(1)}, tmp_path / "b.pt")
    assert torch.equal(data.read(tmp_path / "a.pt"), torch.arange(3.0))
    assert torch.equal(data.read(f"{tmp_path / 'b.pt'}:x"), torch.eye(2))
    torch.save(_Bomb(tmp_path / "ran"), tmp_path / "bomb.pt")
    with pytest.raises(ValueError, match="could run code"):
        data.read(tmp_path / "bomb.pt")
    np.save(tmp_path / "bomb.npy", np.array([_Bomb(tmp_path / "ran")], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="could run code"):
        data.read(tmp_path / "bomb.npy")
    assert not (tmp_path / "ran").exists()


class _Bomb:
    """An object whose unpickling leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize(
    ("text", "columns", "values"),
    [
        ("a,b\n1,2\n3,4.5\n", ["a", "b"], [[1, 2], [3, 4.5]]),
        ("\ufeffa;b\r\n1;2\r\n\r\n", ["a", "b"], [[1, 2]]),
        ("1\t2e-3\n", ["column 1", "column 2"], [[1, 0.002]]),
        ('"x, in m"\n-7\n', ["x, in m"], [[-7]]),
    ],
)
def test_csv(tmp_path: Path, text: str, columns: list[str], values: list[list[float]]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    delimiter = None if "in m" not in text else ","
    table = data.read_csv(path, dtype=torch.float64, delimiter=delimiter)
    assert table.columns == columns
    assert table.values.tolist() == values
    assert torch.equal(data.read(path), table.values.float())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,x\n", r"line 3, column 'b': the value is 'x', not a finite number"),
        ("a,b\n1,2\n,4\n", r"line 3, column 'a': the value is missing"),
        ("a,b\n1,NaN\n", r"line 2, column 'b': the value is missing"),
        ("1,inf\n", r"line 1, column 'column 2': the value is 'inf', not a finite number"),
        ("a,b\n\n1,2,3\n", r"line 3: 3 cells where 2 are needed"),
        ("a,b\n", "a header and no rows"),
        ("", "is empty"),
        ("a,b\n1,\xff\n", "no CSV text in UTF-8"),
    ],
)
def test_csv_errors_name_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=message):
        data.read(path)


def test_other_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing\.npy"):
        data.read(tmp_path / "missing.npy")
    (tmp_path / "a.txt").write_text("1")
    with pytest.raises(ValueError, match=r"of no kind that can be read: give one of \.npy"):
        data.read(tmp_path / "a.txt")
    for name in ("a.npy", "a.npz", "a.pt"):
        (tmp_path / name).write_bytes(b"no array")
        with pytest.raises(ValueError, match="damaged"):
            data.read(tmp_path / name)
    np.save(tmp_path / "words.npy", np.array(["a"]))
    with pytest.raises(ValueError, match="real numbers are needed"):
        data.read(tmp_path / "words.npy")
    np.save(tmp_path / "one.npy", np.eye(2))
    with pytest.raises(ValueError, match="leave the key out"):
        data.read(tmp_path / "one.npy", key="x")


def test_digits_are_the_agreed_split() -> None:
    from sklearn.datasets import load_digits

    split = data.digits(labels=True)
    x, y = (torch.cat([part[i] for part in split]) for i in (0, 1))
    order = np.random.default_rng(0).permutation(1797)
    assert [len(part[0]) for part in split] == [1350, 150, 297]
    assert torch.equal(x, torch.from_numpy(load_digits().images[order]).float()[:, None])
    assert torch.equal(y, torch.from_numpy(load_digits().target[order]))
    assert sorted(x.unique().tolist()) == list(range(17))
    assert all(torch.equal(a, b[0]) for a, b in zip(data.digits(), split, strict=True))


def test_dequantisation_is_uniform_and_a_function_of_seed_and_row() -> None:
    x = torch.full((4000, 3), 16, dtype=torch.uint8)
    u = (data.dequantise(x, seed=1) - 16).flatten().double().sort().values
    # Kolmogorov-Smirnov distance of 12000 uniforms: above 2.0/sqrt(n) with probability 7e-4.
    assert (u - (torch.arange(12000) + 0.5) / 12000).abs().max() < 2.0 / 12000**0.5
    y = data.dequantise(x, seed=1)
    assert torch.equal(data.dequantise(x[7:9], seed=1, indices=torch.tensor([7, 8])), y[7:9])
    assert not torch.equal(data.dequantise(x, seed=2), y)
    assert bool((data.dequantise(x.double(), seed=3).floor() == 16).all())
    with pytest.raises(ValueError, match="integer levels"):
        data.dequantise(y)


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.bin"
    files.write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), files.whole(path) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]

    def no_rename(source: str, target: str) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_rename)
        with pytest.raises(OSError, match="disk full"):
            files.write_bytes(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]
    files.write_text(path, "new\n")
    assert path.read_bytes() == b"new\n" and os.listdir(tmp_path) == ["a.bin"]


def test_writing_follows_links_and_needs_the_folder(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    with pytest.raises(FileNotFoundError, match="create it first"):
        files.write_text(tmp_path / "no" / "a", "x")
