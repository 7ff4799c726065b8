"""Rows in and out of files, for the commands."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from sdediff import files
from sdediff.data import RowDataset, open_dataset, split, stream
from sdediff.data.readers import NAMES
from sdediff.data.rows import as_rows
from sdediff.data.rows import natural_shape as natural_shape

Shape = tuple[int, ...]

#: What :func:`open_rows` opens, for the help of options.
READABLE = (
    ".npy, .npz, .pt, .csv or .parquet file, folder of images or saved Hugging Face dataset, digits or "
    "patches; file.npz:name takes one of its arrays, and folder:name one part of a dataset"
)
#: Bytes up to which a data set is read into memory, and numbers of one that are looked at before training.
IN_MEMORY, SEEN = 1 << 30, 1 << 24


class Rows(NamedTuple):
    """Rows (N, *E) of the file's own dtype, and the names a CSV file gives its columns."""

    values: Tensor
    columns: list[str] | None


class RowFile:
    """Rows of a file as a model takes them, all at once or a batch at a time.

    An array (N,) becomes N rows of one column, (N, H, W) images of one channel, and (N, H, W, C) with C of 1,
    3 or 4 images with their channels first, unless `data_shape` says how rows are to be read.

    Args:
        path: The file.
        data_shape: Shape of a row.
        limit: The first rows only.

    Raises:
        ValueError: If the limit is no number of rows; where rows are read, if they do not fit the shape or
            hold NaN.
    """

    def __init__(self, path: str, data_shape: Sequence[int] | None = None, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit}: give a positive number of rows")
        self.path, self.limit = path, limit
        self.data_shape = None if data_shape is None else tuple(data_shape)
        self.stream = stream(path)
        self.columns = self.stream.columns

    def batches(self, size: int | None = None, start: int = 0) -> Iterator[Tensor]:
        """Rows from `start` on, at most `size` at once, or all of them."""
        for batch in self.stream.batches(size, start, self.limit):
            yield as_rows(batch, self.data_shape, self.path, np.arange(start, start + len(batch)))
            start += len(batch)

    def take(self, rows: Sequence[int]) -> Tensor:
        """Rows of rising numbers."""
        return as_rows(self.stream.take(rows), self.data_shape, self.path, np.asarray(rows))


def read_rows(path: str, data_shape: Sequence[int] | None = None) -> Rows:
    """All rows of a file, as :class:`RowFile` gives them."""
    rows = RowFile(path, data_shape)
    (values,) = rows.batches()
    return Rows(values, rows.columns)


def open_rows(path: str, data_shape: Sequence[int] | None = None, **options: Any) -> RowDataset:
    """Rows of whatever can be trained on, of that shape; those of arrays and images stay on disk.

    Args:
        path: What :func:`sdediff.data.open_dataset` opens.
        data_shape: Shape of a row; its own when left out.
        **options: Those of :func:`sdediff.data.open_dataset`.

    Raises:
        ValueError: As there, or if a column is constant or rows do not fit the shape.
    """
    rows = open_dataset(path, **options)
    rows = rows if data_shape is None else rows.reshaped(data_shape)
    check_varies(rows, path)
    return rows


def check_varies(rows: Rows | RowDataset, path: str) -> None:
    """Raise ValueError for a table's constant column, by its name where it has one."""
    x = rows.values if isinstance(rows, Rows) else _first(rows)
    constant = (x == x[0]).all(dim=0).flatten().nonzero().flatten().tolist() if x.ndim == 2 else []
    if constant:
        name = repr(rows.columns[constant[0]]) if rows.columns else f"{constant[0]} (counted from 0)"
        raise ValueError(f"{path}: column {name} is constant and has no density: leave it out")


def parts(path: str, rows: RowDataset, val_fraction: float, seed: int) -> tuple[RowDataset, RowDataset]:
    """Training and held-out rows: :func:`sdediff.data.split`, or the split of the data that come along."""
    if path in NAMES:
        return rows, open_dataset(path, key="val").reshaped(rows.shape)
    return split(rows, val_fraction, seed)


@overload
def floats(x: Tensor) -> Tensor: ...
@overload
def floats(x: RowDataset) -> Tensor | RowDataset: ...
def floats(x: Tensor | RowDataset) -> Tensor | RowDataset:
    """Rows in torch's default dtype, unless they are floating already.

    Those of a Dataset without conditions are read into memory, up to `IN_MEMORY` bytes; a larger one stays as
    it is and is read, and made floating, a batch at a time.
    """
    if isinstance(x, RowDataset):
        size = len(x) * math.prod(x.shape) * torch.get_default_dtype().itemsize
        if size > IN_MEMORY or (len(x) and x.take([0])[1] is not None):
            return x
        x = x.take(range(len(x)))[0]
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def _first(rows: RowDataset) -> Tensor:
    """The first rows, up to `SEEN` numbers."""
    return rows.take(range(min(len(rows), max(2, SEEN // math.prod(rows.shape)))))[0]


def are_levels(x: Tensor | RowDataset) -> bool:
    """Whether all values are whole numbers, as grey levels and counts are; of a Dataset, the first rows'."""
    if isinstance(x, RowDataset):
        return x.levels is not None or are_levels(_first(x))
    return not x.is_floating_point() or bool((x == x.round()).all())


def check_levels(levels: Sequence[float] | None) -> tuple[float, ...] | None:
    """Two rising numbers, or None.

    Raises:
        ValueError: If they are not.
    """
    if levels is not None and (len(levels) != 2 or not levels[0] < levels[1]):
        raise ValueError(
            f"levels={list(levels)}: give the value of black and a larger one of white, such as [0,255]"
        )
    return None if levels is None else tuple(levels)


def check_out(path: str, data_shape: Shape, kinds: Iterable[str]) -> None:
    """Raise before the work, not after it, where its outcome cannot be written.

    Raises:
        ValueError: If the kind of file is unknown or does not suit the data.
        FileNotFoundError: If the folder does not exist.
    """
    suffix, kinds = Path(path).suffix.lower(), tuple(kinds)
    if suffix not in kinds:
        raise ValueError(f"--out {path} is of no kind that can be written: give one of {', '.join(kinds)}")
    images = len(data_shape) == 3 and data_shape[0] in (1, 3)
    table = len(data_shape) == 1 or ".npy" not in kinds
    if (suffix == ".csv" and not table) or (suffix == ".png" and not images):
        what = "rows of numbers" if suffix == ".csv" else "images of 1 or 3 channels"
        raise ValueError(
            f"a {suffix} file holds {what} and the model's data have shape {data_shape}: give --out a.npy"
        )
    folder = Path(path).resolve().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"cannot write {path}: the folder {folder} does not exist, create it first")


def write_rows(
    path: str | os.PathLike[str],
    x: Tensor | RowDataset,
    levels: tuple[float, ...] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Write rows by the file's ending: .npy, .npz (as "samples"), .csv, or .png (a grid of images).

    Those of a Dataset are written to an .npy file a batch at a time.
    """
    if isinstance(x, RowDataset):
        with files.whole(path) as temporary:
            _write_npy(temporary, x)
        return
    suffix, array = Path(path).suffix.lower(), x.detach().cpu().numpy()
    if suffix == ".csv":
        names = columns or [f"column {i + 1}" for i in range(x.shape[1])]
        write_csv(path, names, array.tolist(), array.dtype)
        return
    with files.whole(path) as temporary, open(temporary, "wb") as file:
        if suffix == ".npy":
            np.save(file, array)
        elif suffix == ".npz":
            np.savez(file, samples=array)
        else:
            _write_png(file, array, levels or (float(array.min()), float(array.max())))


def _write_npy(path: Path, rows: RowDataset) -> None:
    array: np.ndarray | None = None
    start = 0
    for x, _ in rows.batches():
        if array is None:
            shape = (len(rows), *rows.shape)
            array = np.lib.format.open_memmap(path, "w+", x.numpy().dtype, shape)
        array[start : start + len(x)] = x.numpy()
        start += len(x)


def write_csv(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    rows: Iterable[Sequence[float]],
    dtype: np.dtype | type = np.float64,
) -> None:
    """Write a table of numbers with enough digits to read the same ones back."""
    digits = 9 if np.dtype(dtype) == np.float32 else 17
    files.write_text(path, csv_text([columns, *rows], digits))


def csv_text(rows: Iterable[Sequence[float | str]], digits: int = 17) -> str:
    r"""Lines of a CSV file: floating numbers with that many digits, other cells as they are.

    Example:
        >>> csv_text([["row", "value", "kind"], [0, 0.1, "density, exact"]], digits=9)
        'row,value,kind\n0,0.1,"density, exact"\n'
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([f"{v:.{digits}g}" if isinstance(v, float) else v for v in row] for row in rows)
    return text.getvalue()


def _write_png(file: io.BufferedWriter, images: np.ndarray, levels: tuple[float, ...]) -> None:
    """A grid of images (N, C, H, W), as square as can be, black at levels[0] and white at levels[1]."""
    from PIL import Image

    low, high = levels
    n, channels, height, width = images.shape
    across = math.ceil(math.sqrt(n))
    down = math.ceil(n / across)
    grid = np.zeros((down * (height + 1) - 1, across * (width + 1) - 1, channels), dtype=np.uint8)
    grey = np.nan_to_num(np.clip((images - low) / (high - low), 0, 1)) * 255
    for i, image in enumerate(np.rint(grey).astype(np.uint8)):
        top, left = (i // across) * (height + 1), (i % across) * (width + 1)
        grid[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    Image.fromarray(grid.squeeze(2) if channels == 1 else grid).save(file, format="PNG")
