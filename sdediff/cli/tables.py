"""Rows in and out of files, for the commands."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdediff import files
from sdediff.data import stream

Shape = tuple[int, ...]

#: Which files :func:`read_rows` reads, for the help of options.
READABLE = ".npy, .npz, .pt or .csv file; file.npz:name takes one of its arrays"


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
        self.path, self.data_shape, self.limit = path, data_shape, limit
        self.stream = stream(path)
        self.columns = self.stream.columns

    def batches(self, size: int | None = None, start: int = 0) -> Iterator[Tensor]:
        """Rows from `start` on, at most `size` at once, or all of them."""
        for batch in self.stream.batches(size, start, self.limit):
            yield self._rows(batch, start)
            start += len(batch)

    def take(self, rows: Sequence[int]) -> Tensor:
        """Rows of rising numbers."""
        return self._rows(self.stream.take(rows), rows[0])

    def _rows(self, x: Tensor, start: int) -> Tensor:
        x = x.float() if x.dtype == torch.bool else x
        x = x[:, None] if x.ndim == 1 else x
        finite = torch.isfinite(x).flatten(1).all(dim=1)
        if not bool(finite.all()):
            row = start + int((~finite).nonzero()[0])
            raise ValueError(
                f"{self.path} has NaN or infinite values, first in row {row} (counted from 0): fill or drop "
                "those rows"
            )
        shape = natural_shape(tuple(x.shape[1:])) if self.data_shape is None else tuple(self.data_shape)
        return _reshape(x, shape, self.path)


def read_rows(path: str, data_shape: Sequence[int] | None = None) -> Rows:
    """All rows of a file, as :class:`RowFile` gives them."""
    rows = RowFile(path, data_shape)
    (values,) = rows.batches()
    return Rows(values, rows.columns)


def check_varies(rows: Rows, path: str) -> None:
    """Raise ValueError for a table's constant column, by its name where it has one."""
    x = rows.values
    constant = (x == x[0]).all(dim=0).flatten().nonzero().flatten().tolist() if x.ndim == 2 else []
    if constant:
        name = repr(rows.columns[constant[0]]) if rows.columns else f"{constant[0]} (counted from 0)"
        raise ValueError(f"{path}: column {name} is constant and has no density: leave it out")


def natural_shape(own: Shape) -> Shape:
    """The shape in which a model sees rows: images have their channels first.

    Example:
        >>> natural_shape((28, 28)), natural_shape((32, 32, 3)), natural_shape((5,))
        ((1, 28, 28), (3, 32, 32), (5,))
    """
    if len(own) == 2:
        return (1, *own)
    return (own[2], own[0], own[1]) if _channels_last(own) else own


def _channels_last(own: Shape) -> bool:
    return len(own) == 3 and own[2] in (1, 3, 4) and own[0] not in (1, 3, 4)


def _reshape(x: Tensor, shape: Shape, path: str) -> Tensor:
    own = tuple(x.shape[1:])
    if _channels_last(own) and shape == natural_shape(own):
        return x.permute(0, 3, 1, 2).contiguous()
    squeezed = [tuple(n for n in s if n != 1) for s in (own, shape)]
    flat = 1 in (len(own), len(shape)) and math.prod(own) == math.prod(shape)  # an image as a row of a table
    if min(shape, default=0) > 0 and (squeezed[0] == squeezed[1] or flat):
        return x.reshape(len(x), *shape)
    has, needed = (f"{s[0]} columns" if len(s) == 1 else f"rows of shape {s}" for s in (own, shape))
    raise ValueError(f"{path} has {has} where {needed} are needed: give data of that shape")


def split(x: Tensor, val_fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Training and held-out rows.

    They are shuffled by ``numpy.random.default_rng(seed).permutation``, and the last part is held out.

    Raises:
        ValueError: If the fraction leaves no row to train on.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(
            f"val_fraction={val_fraction}: give a fraction of at least 0 and less than 1, such as 0.1"
        )
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    held = math.ceil(val_fraction * len(x)) if val_fraction else 0
    if len(x) - held < 2:
        raise ValueError(
            f"{len(x)} rows less {held} held out are too few to train on: give more or a smaller val_fraction"
        )
    return x[order[: len(x) - held]], x[order[len(x) - held :]]


def floats(x: Tensor) -> Tensor:
    """Rows in torch's default dtype, unless they are floating already."""
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def are_levels(x: Tensor) -> bool:
    """Whether all values are whole numbers, as grey levels and counts are."""
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
    x: Tensor,
    levels: tuple[float, ...] | None = None,
    columns: Sequence[str] | None = None,
) -> None:
    """Write rows by the file's ending: .npy, .npz (as "samples"), .csv, or .png (a grid of images)."""
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
