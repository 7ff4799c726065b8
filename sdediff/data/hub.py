"""Hugging Face ``datasets`` as rows; their Arrow files stay on disk."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .images import Mode, Size, check_mode, check_size, decode, differ, own_mode, reading, upright
from .rows import Batch, RowDataset, as_rows, natural_shape

#: Files by which a folder tells that ``save_to_disk`` wrote it.
_SAVED = ("dataset_dict.json", "dataset_info.json")


class HuggingFaceRows(RowDataset):
    """Rows of a ``datasets.Dataset``: one column of images or arrays, or several of numbers.

    Args:
        dataset: The dataset.
        columns: The columns that make a row. Left out, the only column of images, or else all those of
            numbers that are not conditions.
        cond: The column of labels (N,), or those of numbers that make a vector (N, k).
        size: As for image folders.
        mode: As for image folders.
        shape: Shape of a row of arrays.

    Raises:
        ValueError: If there is no such column, or none that fits; while reading, naming column and row, if a
            value is missing.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        columns: Sequence[str] | None = None,
        cond: str | Sequence[str] | None = None,
        size: Size | None = None,
        mode: Mode | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        self.name = f"the dataset {dataset.info.dataset_name or ''}".strip()
        if not len(dataset):
            raise ValueError(f"{self.name} is empty: it needs at least one row")
        self.size, self.mode = check_size(size), check_mode(mode)
        self.conds = [cond] if isinstance(cond, str) else list(cond or ())
        self.kinds = {name: _kind(feature) for name, feature in dataset.features.items()}
        self.chosen = self._choose(columns)
        self.labels = isinstance(cond, str) and self.kinds[cond] in ("number", "label")
        self.pictures = self.kinds[self.chosen[0]] == "image"
        self.data = dataset.select_columns([*self.chosen, *self.conds])
        self.data = self.data.with_format(None if self.pictures else "numpy")
        if isinstance(cond, str) and self.kinds[cond] == "label":
            self.classes = list(dataset.features[cond].names)
        self._first = (0, 0), ""
        self.shape = self._shape(None if shape is None else tuple(shape))
        self.columns = None if self.pictures or len(self.shape) > 1 else self._names()

    def _shape(self, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        if self.pictures:
            image = self.data[0][self.chosen[0]]
            self._first = self._look(image)
            self.levels = 65536 if self._first[1] == "I;16" else 256
            return (3 if self._first[1] == "RGB" else 1, *self._first[0])
        first, _ = self._read(np.arange(1))
        own = natural_shape(tuple(first.shape[1:]) or (1,)) if shape is None else shape
        as_rows(first, own, self.name, finite=False)
        self.levels = 256 if first.dtype == torch.uint8 else None
        return own

    def _names(self) -> list[str] | None:
        return self.chosen if len(self.chosen) == self.shape[0] else None

    def _choose(self, columns: Sequence[str] | None) -> list[str]:
        held = ", ".join(f"{name} ({kind})" for name, kind in self.kinds.items())
        for name in (*(columns or ()), *self.conds):
            if name not in self.kinds:
                raise ValueError(f"{self.name} has no column {name!r}: it holds {held}")
        free = {name: kind for name, kind in self.kinds.items() if name not in self.conds}
        images = [name for name, kind in free.items() if kind == "image"]
        numbers = [name for name, kind in free.items() if kind == "number"]
        chosen = list(columns) if columns else images or numbers
        kinds = [self.kinds[name] for name in chosen]
        alone = len(chosen) == 1 and kinds[0] in ("image", "array", "number", "label")
        if not alone and not (chosen and all(kind in ("number", "label") for kind in kinds)):
            raise ValueError(
                f"{self.name} holds {held}: choose one column of images or arrays, or several of numbers, by "
                "columns="
            )
        return chosen

    def __len__(self) -> int:
        return len(self.data)

    def _look(self, image: Any) -> tuple[tuple[int, int], str]:
        if image is None:
            raise ValueError(
                f"{self.name}: an image is missing in column {self.chosen[0]!r}: drop those rows"
            )
        return (self.size or upright(image)), (self.mode or own_mode(image, self.name))

    def _read(self, rows: np.ndarray) -> Batch:
        with reading(Path(self.name)):
            batch = self.data[rows.tolist()]
        if self.pictures:
            x = self._decoded(batch[self.chosen[0]], rows)
        else:
            x = self._stacked(batch, self.chosen, rows)
        return x, self._conditions(batch, rows)

    def _decoded(self, images: list[Any], rows: np.ndarray) -> Tensor:
        for row, image in zip(rows, images, strict=True):
            if (other := self._look(image)) != self._first:
                differ(self.name, ("row 0", *self._first), (f"row {row}", *other))
        return torch.stack([decode(image, self.size, self.mode) for image in images])

    def _conditions(self, batch: dict[str, Any], rows: np.ndarray) -> Tensor | None:
        if not self.conds:
            return None
        x = self._stacked(batch, self.conds, rows)
        if self.labels and not x.is_floating_point():
            return x.reshape(-1).long()
        return x.reshape(len(rows), -1).to(torch.get_default_dtype())

    def _stacked(self, batch: dict[str, Any], names: list[str], rows: np.ndarray) -> Tensor:
        """Columns side by side; a single one as it is."""
        parts = []
        for name in names:
            values = np.asarray(batch[name])
            with suppress(TypeError, ValueError):  # rows of other lengths, say
                values = values.astype(np.float64) if values.dtype.kind == "O" else values  # None becomes NaN
            if values.dtype.kind not in "biuf":
                raise ValueError(
                    f"{self.name}, rows {rows[0]} to {rows[-1]}, column {name!r}: the values are no numbers, "
                    "or not as many in each row: choose others by columns="
                )
            bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
            if bad.any():
                raise ValueError(
                    f"{self.name}, row {rows[bad.argmax()]} (counted from 0), column {name!r}: the value is "
                    "missing or not finite; fill it, drop the row or choose others by columns="
                )
            parts.append(values)
        stacked = parts[0] if len(parts) == 1 else np.stack(parts, axis=1)
        return torch.from_numpy(np.array(stacked))


def is_huggingface(source: Any) -> bool:
    """Whether an object is a ``datasets`` one; that it exists means that the package was imported."""
    module = sys.modules.get("datasets")
    return module is not None and isinstance(source, (module.Dataset, module.DatasetDict))


def is_saved(path: str) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return any(Path(path, name).is_file() for name in _SAVED)


def open_huggingface(source: Any, *, key: str | None = None, **options: Any) -> HuggingFaceRows:
    """Rows of a ``datasets`` object or of a folder that one was saved to."""
    if isinstance(source, str):
        try:
            import datasets
        except ImportError as error:
            raise ImportError(
                f"{source} was saved by Hugging Face datasets, which is not installed: "
                "pip install 'sdediff[hf]'"
            ) from error
        source = datasets.load_from_disk(source)
    if isinstance(source, dict):
        parts = ", ".join(source)
        if key not in source:
            raise ValueError(
                f"the dataset has the parts {parts}: choose one, such as key={next(iter(source))!r}"
            )
        source = source[key]
    elif key is not None:
        raise ValueError(f"the dataset is one part, but {key!r} was asked for: leave the key out")
    return HuggingFaceRows(source, **options)


def _kind(feature: Any) -> str:
    """What a column holds: image, label, number, array, or other things."""
    name, kind = type(feature).__name__, str(getattr(feature, "dtype", ""))
    if name == "Image":
        return "image"
    if name == "ClassLabel":
        return "label"
    if name == "Value":
        return "number" if kind.startswith(("int", "uint", "float", "bool")) else kind
    if name.startswith("Array") or name in ("List", "LargeList", "Sequence"):
        return "array"
    return name.lower()
