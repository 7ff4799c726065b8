"""Rows of a file a batch at a time, so that the file may be larger than memory."""

from __future__ import annotations

import os
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .mapping import can_be_mapped, header, member, open_array, warn_whole
from .opening import open_dataset
from .readers import CsvRows, as_tensor, locate, plain
from .rows import RowDataset

#: A function of (start, stop) that gives those rows.
_Read = Callable[[int, int], Any]


def stream(path: str | os.PathLike[str], *, key: str | None = None) -> Stream:
    """Open a file whose rows are read a batch at a time.

    An ``.npy``, ``.npz`` or ``.pt`` file is mapped into memory; a CSV file and a compressed array of an
    ``.npz`` file are read from their beginning on. Only a compressed array stored column by column (Fortran
    order), and a ``.pt`` file of before torch 1.6, have to be read as a whole; a warning says so. The rest
    (Parquet, folders, bundled data) is as :func:`open_dataset` has it.

    Args:
        path: As in :func:`open_dataset`.
        key: Which array of an ``.npz`` or ``.pt`` file; may be left out when there is one.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As :func:`read`; what is wrong with single rows is found when they are read.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.npy"
        >>> np.save(path, np.arange(10.0).reshape(5, 2))
        >>> [len(batch) for batch in stream(path).batches(2)]
        [2, 2, 1]
    """
    file, key, suffix = locate(path, key)
    if suffix == ".csv":
        return _CsvStream(file)
    if suffix == ".npz":
        return _npz(file, key)
    if suffix in (".npy", ".pt"):
        return _ArrayStream(open_array(file, key), file)
    return _DatasetStream(open_dataset(path, key=key))


class Stream(ABC):
    """Rows of a file; columns are their names, where a CSV file gives them."""

    columns: list[str] | None = None

    @abstractmethod
    def batches(self, size: int | None = None, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        """Rows from `start` to `stop`, in order, at most `size` at once; all at once when it is left out."""

    @abstractmethod
    def take(self, rows: Sequence[int]) -> Tensor:
        """Rows of rising numbers."""


class _CsvStream(Stream):
    def __init__(self, file: str) -> None:
        self.source = CsvRows(file)
        self.columns = self.source.columns if self.source.named else None

    def batches(self, size: int | None = None, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        for values in self.source.batches(size, start, stop):
            yield as_tensor(values, self.source.path)

    def take(self, rows: Sequence[int]) -> Tensor:
        wanted, found = set(rows), []
        for number, row in enumerate(self.batches(1, stop=max(rows) + 1)):
            if number in wanted:
                found.append(row)
        return torch.cat(found)


class _ArrayStream(Stream):
    """Rows of what can be sliced: an array in memory or mapped into it."""

    def __init__(self, array: Any, file: str) -> None:
        self.array, self.file, self.shape = array, file, tuple(getattr(array, "shape", (1,)))
        if 0 in self.shape or not self.shape:
            raise ValueError(f"{file} has shape {self.shape} and so no rows: give an array of at least one")
        as_tensor(_copy(array[:0]) if hasattr(array, "shape") else array, file)  # of a kind that can be read

    def open(self) -> AbstractContextManager[_Read]:
        # A copy: torch shares no memory with an array that cannot be written to.
        return nullcontext(lambda start, stop: _copy(self.array[start:stop]))

    def batches(self, size: int | None = None, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        end = self.shape[0] if stop is None else min(stop, self.shape[0])
        with self.open() as read:
            for first in range(start, end, size or self.shape[0]):
                yield as_tensor(read(first, min(first + (size or end), end)), self.file)

    def take(self, rows: Sequence[int]) -> Tensor:
        with self.open() as read:
            return torch.cat([as_tensor(read(row, row + 1), self.file) for row in rows])


class _DatasetStream(Stream):
    def __init__(self, rows: RowDataset) -> None:
        self.rows, self.columns = rows, rows.columns

    def batches(self, size: int | None = None, start: int = 0, stop: int | None = None) -> Iterator[Tensor]:
        end = len(self.rows) if stop is None else min(stop, len(self.rows))
        for first in range(start, end, size or len(self.rows)):
            yield self.take(range(first, min(first + (size or end), end)))

    def take(self, rows: Sequence[int]) -> Tensor:
        return self.rows.take(rows)[0]


class _MemberStream(_ArrayStream):
    """A compressed array of an .npz file, stored row by row."""

    def __init__(self, file: str, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.name, self.dtype = name, dtype
        super().__init__(np.broadcast_to(np.zeros((), dtype), shape), file)

    @contextmanager
    def open(self) -> Iterator[_Read]:
        with zipfile.ZipFile(self.file) as archive, archive.open(self.name) as content:
            header(content)
            begin, stride = content.tell(), self.dtype.itemsize * int(np.prod(self.shape[1:]))

            def read(start: int, stop: int) -> np.ndarray:
                with plain(self.file):
                    content.seek(begin + start * stride)
                    values = content.read((stop - start) * stride)
                    return np.frombuffer(values, self.dtype).reshape(stop - start, *self.shape[1:]).copy()

            yield read


def _npz(file: str, key: str | None) -> Stream:
    info = member(file, key)
    if can_be_mapped(info):
        return _ArrayStream(open_array(file, key), file)
    with plain(file), zipfile.ZipFile(file) as archive, archive.open(info) as content:
        shape, by_column, dtype = header(content)
    if not by_column or len(shape) < 2:
        return _MemberStream(file, info.filename, shape, dtype)
    warn_whole(file, "stores its array column by column")
    return _ArrayStream(open_array(file, key), file)


def _copy(values: Any) -> Any:
    return values.clone() if isinstance(values, Tensor) else np.array(values)
