"""Rows by their numbers: what every kind of training data becomes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .readers import as_tensor

Shape = tuple[int, ...]
Batch = tuple[Tensor, Tensor | None]
#: Row numbers, in any order.
Numbers = Sequence[int] | np.ndarray | Tensor

#: Numbers read at once where all rows are.
_CHUNK = 1 << 22


class RowDataset(Dataset[Any], ABC):
    r"""A map-style Dataset of rows x, or (x, cond), which are read when they are asked for.

    ``rows[i]`` is one row, :meth:`take` many at once: one indexing operation on an array or a table, not a
    loop. A DataLoader and :func:`sdediff.fit` ask for batches through ``__getitems__``, which does the same.

    Attributes:
        name: Where the rows are from, for messages.
        shape: Shape of a row, channels first for images.
        columns: Names of a table's columns, or None.
        levels: Number of levels where all values are whole numbers from 0 to levels - 1, or None.
        classes: Names of the labels 0, 1, ... that are conditions, or None.
    """

    name: str
    shape: Shape
    columns: list[str] | None = None
    levels: int | None = None
    classes: list[str] | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def _read(self, rows: np.ndarray) -> Batch:
        """The rows of these numbers as they are stored, and their conditions."""

    def take(self, rows: Numbers) -> Batch:
        r"""Rows x (n, \*shape) of these numbers, and their conditions or None.

        Raises:
            IndexError: If there is no such row.
            ValueError: Naming the first row that holds NaN or infinite values or cannot be read.
        """
        numbers = np.asarray(rows, dtype=np.int64).reshape(-1)
        if len(numbers) and not -len(self) <= numbers.min() <= numbers.max() < len(self):
            raise IndexError(f"{self.name} has rows 0 to {len(self) - 1}, not {numbers.min()} or so")
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        x, cond = self._read(numbers)
        return as_rows(x, self.shape, self.name, numbers), cond

    def __getitem__(self, row: int) -> Any:
        x, cond = self.take([row])
        return x[0] if cond is None else (x[0], cond[0])

    def __getitems__(self, rows: Numbers) -> list[Any]:
        """The items of these rows, read at once."""
        x, cond = self.take(rows)
        return list(x) if cond is None else list(zip(x, cond, strict=True))

    def batches(self, size: int | None = None) -> Iterator[Batch]:
        """All rows in order, at most `size` at once."""
        size = size or max(1, _CHUNK // math.prod(self.shape))
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))

    def load(self) -> RowDataset:
        """The same rows, read and kept in memory.

        Example:
            >>> rows = Arrays(np.eye(3, dtype=np.float32), name="eye")
            >>> rows.load().take([2])[0]
            tensor([[0., 0., 1.]])
        """
        x, cond, start = torch.empty(0, *self.shape), [], 0
        for part, c in self.batches():
            if start == 0:
                x = torch.empty(len(self), *self.shape, dtype=part.dtype)
            x[start : start + len(part)] = part
            start += len(part)
            cond += [] if c is None else [c]
        rows = Arrays(x, torch.cat(cond) if cond else None, name=self.name, shape=self.shape)
        return rows._described_as(self)

    def subset(self, rows: Numbers) -> RowDataset:
        """A view of the rows of these numbers; nothing is read."""
        return _Subset(self, np.asarray(rows, dtype=np.int64))

    def reshaped(self, shape: Sequence[int]) -> RowDataset:
        """A view of all rows in another shape, such as images as rows of a table.

        Raises:
            ValueError: If rows do not fit it.
        """
        if tuple(shape) == self.shape:
            return self
        view = self.subset(np.arange(len(self)))
        view.shape = tuple(shape)
        view.take([0])
        return view

    def _described_as(self, other: RowDataset) -> RowDataset:
        self.columns, self.levels, self.classes = other.columns, other.levels, other.classes
        return self


class Arrays(RowDataset):
    """Rows of a tensor or an array, in memory or mapped into it.

    Args:
        x: Rows, (N, ...); (N,) becomes one column, (N, H, W) and (N, H, W, C) become images.
        cond: Conditions, (N, ...).
        name: What messages call them.
        shape: How a row is to be read, where that is not its natural shape.
        columns: Names of columns.
        classes: Names of labels.
        reopen: Opens x and cond again in another process, instead of sending them there.
    """

    def __init__(
        self,
        x: Any,
        cond: Any = None,
        *,
        name: str = "the array",
        shape: Sequence[int] | None = None,
        columns: list[str] | None = None,
        classes: list[str] | None = None,
        reopen: Callable[[], tuple[Any, Any]] | None = None,
    ) -> None:
        own = tuple(getattr(x, "shape", ()))
        if not own or own[0] == 0:
            raise ValueError(f"{name} has shape {own} and so no rows: give an array of at least one")
        if cond is not None and (not len(cond.shape) or len(cond) != own[0]):
            raise ValueError(
                f"{name} has {own[0]} rows and conditions of shape {tuple(cond.shape)}: give one a row"
            )
        self.x, self.cond, self.name, self._reopen = plain_view(x), plain_view(cond), name, reopen
        self.shape = natural_shape(own[1:] or (1,)) if shape is None else tuple(shape)
        self.columns, self.classes = columns, classes
        first = as_rows(_pick(self.x, np.arange(1)), self.shape, name, finite=False)  # of a kind that fits
        self.levels = 256 if first.dtype == torch.uint8 else None

    def __len__(self) -> int:
        return len(self.x)

    def _read(self, rows: np.ndarray) -> Batch:
        return _pick(self.x, rows), None if self.cond is None else _pick(self.cond, rows)

    def __getstate__(self) -> dict[str, Any]:
        # A mapped array would be pickled whole.
        return self.__dict__ if self._reopen is None else {**self.__dict__, "x": None, "cond": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if self._reopen is not None:
            self.x, self.cond = map(plain_view, self._reopen())


class _Subset(RowDataset):
    def __init__(self, rows: RowDataset, numbers: np.ndarray) -> None:
        self.rows, self.numbers, self.name, self.shape = rows, numbers, rows.name, rows.shape
        self._described_as(rows)

    def __len__(self) -> int:
        return len(self.numbers)

    def _read(self, rows: np.ndarray) -> Batch:
        return self.rows.take(self.numbers[rows])


def as_rows(
    x: Any, shape: Shape | None, name: str, rows: np.ndarray | None = None, *, finite: bool = True
) -> Tensor:
    """What a file holds as the rows of a model: numbers, finite, of its shape.

    Args:
        x: Rows as stored, (n, ...).
        shape: The shape of a row; the natural one when left out.
        name: Where they are from.
        rows: Their numbers there, for messages; 0, 1, ... when left out.
        finite: Whether NaN and infinite values are refused.

    Raises:
        ValueError: If they do not fit the shape or hold NaN or infinite values.
    """
    x = as_tensor(x, name)
    x = x.float() if x.dtype == torch.bool else x
    x = x[:, None] if x.ndim == 1 else x
    if finite and x.is_floating_point():
        bad = ~torch.isfinite(x).flatten(1).all(dim=1)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            row = first if rows is None else int(rows[first])
            raise ValueError(
                f"{name} has NaN or infinite values, first in row {row} (counted from 0): fill or drop "
                "those rows"
            )
    return _reshape(x, natural_shape(tuple(x.shape[1:])) if shape is None else shape, name)


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


def _reshape(x: Tensor, shape: Shape, name: str) -> Tensor:
    own = tuple(x.shape[1:])
    if own == shape:
        return x
    if _channels_last(own) and shape == natural_shape(own):
        return x.permute(0, 3, 1, 2).contiguous()
    squeezed = [tuple(n for n in s if n != 1) for s in (own, shape)]
    flat = 1 in (len(own), len(shape)) and math.prod(own) == math.prod(shape)  # an image as a row of a table
    if min(shape, default=0) > 0 and (squeezed[0] == squeezed[1] or flat):
        return x.reshape(len(x), *shape)
    has, needed = (f"{s[0]} columns" if len(s) == 1 else f"rows of shape {s}" for s in (own, shape))
    raise ValueError(f"{name} has {has} where {needed} are needed: give data of that shape")


def plain_view(array: Any) -> Any:
    """A mapped array without numpy's class for it, whose every slice costs microseconds."""
    return array.view(np.ndarray) if isinstance(array, np.memmap) else array


def _pick(array: Any, rows: np.ndarray) -> Tensor:
    """A copy of these rows, in the machine's byte order."""
    if isinstance(array, Tensor):
        return array[torch.from_numpy(rows).to(array.device)]
    return as_tensor(array[rows], "the array")
