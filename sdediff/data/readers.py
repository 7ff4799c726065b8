"""What kind of file a path is, numbers from CSV files, and arrays of any kind as tensors."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

#: Kinds of files of numbers, and what :func:`locate` calls folders and bundled data.
SUFFIXES = (".npy", ".npz", ".pt", ".csv", ".parquet")
FOLDER, BUNDLED = "folder", "bundled"
#: Data that come with scikit-learn, and their parts.
NAMES, PARTS = ("digits", "patches"), ("train", "val", "test")


class Table(NamedTuple):
    """Values (N, D) and the names of the D columns."""

    values: Tensor
    columns: list[str]


def read_csv(
    path: str | os.PathLike[str],
    *,
    header: bool | None = None,
    delimiter: str | None = None,
    dtype: torch.dtype | None = None,
) -> Table:
    r"""Read a table of numbers.

    Args:
        path: A CSV file in UTF-8.
        header: Whether the first line names the columns; found out when left out (no cell of it is a number).
        delimiter: Between cells; the most frequent of ``, ; tab`` in the first line when left out.
        dtype: Floating type of the values; torch's default when left out.

    Returns:
        Values (N, D) and column names (``column 1`` ... without a header).

    Raises:
        ValueError: Naming line and column, if a cell is empty, NaN, infinite or no number, or a line has
            another number of cells.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_text("height,width\n1.5,2\n3,4\n")
        >>> read_csv(path)
        Table(values=tensor([[1.5000, 2.0000],
                [3.0000, 4.0000]]), columns=['height', 'width'])
    """
    rows = CsvRows(os.fspath(path), header, delimiter)
    (values,) = rows.batches()
    return Table(torch.from_numpy(values).to(dtype or torch.get_default_dtype()), rows.columns)


class CsvRows:
    """Rows of a CSV file, read from its beginning on; arguments as in :func:`read_csv`."""

    def __init__(self, path: str, header: bool | None = None, delimiter: str | None = None) -> None:
        self.path, self.delimiter = path, delimiter
        first = next(self.lines(), None)
        if first is None:
            raise ValueError(f"{path} is empty: it needs at least one line of numbers")
        cells = [cell.strip() for cell in first[1]]
        self.header = not any(map(_is_number, cells)) if header is None else header
        unnamed = [f"column {i + 1}" for i in range(len(cells))]
        self.columns = cells if self.header else unnamed
        self.named = self.columns != unnamed

    def batches(
        self, size: int | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[np.ndarray]:
        """Values of rows from `start` to `stop`, (n, D) float64, at most `size` at a time, or all."""
        lines = self.lines()
        if self.header:
            next(lines)
        chosen = islice(lines, start, stop)
        while part := [_numbers(row, self.columns, line, self.path) for line, row in islice(chosen, size)]:
            yield np.array(part)
            start += len(part)
        if start == 0 and stop != 0:
            raise ValueError(f"{self.path} has a header and no rows: it needs at least one line of numbers")

    def lines(self) -> Iterator[tuple[int, list[str]]]:
        """Numbered lines that hold something."""
        with open(self.path, newline="", encoding="utf-8-sig") as file:
            try:
                delimiter = self.delimiter or _delimiter(file.readline())
                file.seek(0)
                reader = csv.reader(file, delimiter=delimiter, skipinitialspace=True)
                yield from ((reader.line_num, row) for row in reader if any(cell.strip() for cell in row))
            except (UnicodeDecodeError, csv.Error) as error:
                raise ValueError(f"{self.path} is no CSV text in UTF-8 ({error}): save it as such") from error


def locate(path: str | os.PathLike[str], key: str | None = None) -> tuple[str, str | None, str]:
    """The file of a path such as ``data.npz:images``, the array chosen in it, and the kind of file.

    The kind is the file's ending, "folder", or "bundled" for the name of data that come along and no file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another kind, or a table in which an array is chosen.
    """
    file, key = _split_key(os.fspath(path), key)
    suffix = Path(file).suffix.lower()
    if Path(file).is_dir():
        return file, key, FOLDER
    if not Path(file).is_file():
        if file in NAMES:
            return file, key, BUNDLED
        raise FileNotFoundError(f"there is no file {file}")
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{file} is of no kind that can be read: give one of {', '.join(SUFFIXES)}, or a folder of images"
        )
    if suffix in (".csv", ".parquet") and key is not None:
        raise ValueError(f"{file} is one table, but the array {key!r} was asked for: leave the key out")
    return file, key, suffix


def _split_key(path: str, key: str | None) -> tuple[str, str | None]:
    file, colon, chosen = path.rpartition(":")
    keyed = Path(file).suffix.lower() in (".npz", ".pt") or Path(file).is_dir() or file in NAMES
    if not colon or not keyed or Path(path).exists():
        return path, key
    if key is not None and key != chosen:
        raise ValueError(f"the path chooses the array {chosen!r} and key= chooses {key!r}: give one of them")
    return file, chosen


@contextmanager
def plain(file: str) -> Iterator[None]:
    """Whatever goes wrong in reading a binary file, as one sentence."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{file} is damaged or holds objects other than plain arrays, which are not read because that "
            "could run code: write it again as numbers"
        ) from error


def choose(content: Any, file: str, key: str | None) -> Any:
    """The array of that name, or the only one."""
    if not isinstance(content, dict):
        if key is not None:
            raise ValueError(f"{file} is one array, but {key!r} was asked for: leave the key out")
        return content
    names = ", ".join(map(str, content)) or "none"
    if key is None and len(content) == 1:
        (key,) = content
    if key is None:
        raise ValueError(
            f"{file} holds several arrays or none ({names}): choose one by key= or as {file}:name"
        )
    if key not in content:
        raise ValueError(f"{file} has no array {key!r}: it holds {names}")
    return content[key]


def as_tensor(value: Any, file: str, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor in that dtype; left out, integers keep theirs and other numbers take torch's default."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        # torch knows only the machine's byte order
        value = torch.from_numpy(np.ascontiguousarray(value, dtype=value.dtype.newbyteorder("=")))
    if not isinstance(value, Tensor):
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise ValueError(f"{file} holds {kind} where real numbers are needed: choose a numeric array")
    if dtype is not None or value.is_floating_point():
        return value.to(dtype or torch.get_default_dtype())
    return value


def _delimiter(line: str) -> str:
    return max(",;\t", key=line.count)


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numbers(row: list[str], columns: list[str], line: int, name: str) -> list[float]:
    if len(row) != len(columns):
        raise ValueError(f"{name}, line {line}: {len(row)} cells where {len(columns)} are needed")
    try:
        values = [float(cell) for cell in row]
        if all(map(math.isfinite, values)):
            return values
    except ValueError:
        pass
    column, cell = next(
        (c, cell.strip())
        for c, cell in zip(columns, row, strict=True)
        if not (_is_number(cell) and math.isfinite(float(cell)))
    )
    what = (
        "is missing"
        if cell.lower() in ("", "nan", "na", "n/a", "null", "none", "?")
        else f"is {cell!r}, not a finite number"
    )
    raise ValueError(
        f"{name}, line {line}, column {column!r}: the value {what}; fill it, drop the row or encode the "
        "column as numbers"
    )
