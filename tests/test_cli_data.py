"""What the commands are given to train on: image folders, Parquet, mapped arrays, bundled data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdediff import cli, data
from sdediff.cli import main, tables


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(5):
        Image.fromarray(np.full((6, 5), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_a_folder_is_rows_that_are_split_written_and_read_again(folder: Path, tmp_path: Path) -> None:
    rows = tables.open_rows(str(folder))
    assert torch.equal(tables.read_rows(str(folder)).values, rows.take(range(5))[0])
    assert tables.are_levels(rows)
    train, val = tables.parts(str(folder), rows, 0.4, seed=1)
    expected = tables.split(rows.take(range(5))[0], 0.4, seed=1)
    tables.write_rows(tmp_path / "held.npy", val)
    assert torch.equal(data.read(tmp_path / "held.npy"), expected[1])
    assert torch.equal(tables.floats(train), expected[0].float())
    flat = tables.open_rows(str(folder), (30,))
    assert torch.equal(flat.take([3])[0], rows.take([3])[0].reshape(1, 30))
    with pytest.raises(
        ValueError, match=r"rows of shape \(1, 6, 5\) where rows of shape \(2, 2\) are needed"
    ):
        tables.open_rows(str(folder), (2, 2))


def test_training_takes_some_columns_and_images_of_several_sizes(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(folder / "other.png")
    few = ["--steps", "2", "--batch_size", "2", "--progress", "false", "--network.hidden", "8"]
    command = [
        "train",
        str(folder),
        "--size",
        "4",
        "--data_shape",
        "[16]",
        "--out",
        str(tmp_path / "a"),
        *few,
    ]
    assert cli.main(command) == 0 and "each of shape (16,)" in capsys.readouterr().out
    (tmp_path / "t.csv").write_text("a,b,c\n" + "\n".join(f"{i},,{i * i}" for i in range(20)))
    command = ["train", str(tmp_path / "t.csv"), "--columns", "[a,c]", "--out", str(tmp_path / "b"), *few]
    assert cli.main(command) == 0 and "each of shape (2,)" in capsys.readouterr().out
    assert cli.main([*command, "--resume", "true"]) == 0
    assert "resumed   after 2 of 2 steps, which is all of them: give more --steps" in capsys.readouterr().out


def test_what_is_too_large_for_memory_stays_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.arange(40.0).reshape(20, 2))
    monkeypatch.setattr(tables, "IN_MEMORY", 100)
    rows = tables.open_rows(str(tmp_path / "a.npy"))
    train, val = tables.parts("a.npy", rows, 0.2, seed=0)
    kept = tables.floats(train)
    assert isinstance(kept, data.RowDataset) and len(kept) == 16
    assert isinstance(tables.floats(val), torch.Tensor)


def test_constant_columns_are_named(tmp_path: Path) -> None:
    parquet, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    parquet.write_table(pa.table({"u": [1.0, 2.0, 3.0], "v": [4.0, 4.0, 4.0]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="column 'v' is constant and has no density: leave it out"):
        tables.open_rows(str(tmp_path / "a.parquet"))
    assert tables.open_rows(str(tmp_path / "a.parquet"), columns=["u"]).columns == ["u"]
    np.save(tmp_path / "a.npy", np.array([[1.0, 0], [2, 0]]))
    with pytest.raises(ValueError, match=r"column 1 \(counted from 0\) is constant"):
        tables.open_rows(str(tmp_path / "a.npy"))


def test_data_that_come_along_have_their_own_held_out_rows() -> None:
    train, val = tables.parts("digits", tables.open_rows("digits"), 0.5, seed=3)
    split = data.digits()
    assert torch.equal(tables.floats(train), split.train) and torch.equal(tables.floats(val), split.val)


def test_training_reads_whatever_can_be_opened(folder: Path, tmp_path: Path) -> None:
    """Images are decoded a batch at a time; of the data that come along no held-out row is trained on."""
    words = "--steps 1 --batch_size 4 --network MLP --network.hidden 8 --network.blocks 1 --dequantise"
    out = tmp_path / "run"
    assert main(["train", str(folder), "--out", str(out), "--val_fraction", "0.2", *words.split()]) == 0
    held = np.load(out / "held_out.npy")
    assert held.shape == (1, 1, 6, 5) and held.dtype == np.uint8
    assert main(["train", "digits", "--out", str(tmp_path / "digits"), *words.split()]) == 0
    assert np.array_equal(np.load(tmp_path / "digits" / "held_out.npy"), data.digits().val.numpy())
