"""Data opened by what they are, read whole, and split into parts to train on and to hold out."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from .digits import digits
from .hub import is_huggingface, is_saved, open_huggingface
from .images import ImageFolder
from .mapping import open_array
from .patches import patches
from .readers import BUNDLED, FOLDER, PARTS, SUFFIXES, as_tensor, choose, locate, plain, read_csv
from .rows import Arrays, RowDataset
from .tables import open_table

T = TypeVar("T")


def open_dataset(source: Any, **options: Any) -> RowDataset:
    r"""Open training data of any kind as a map-style torch Dataset of rows x, or (x, cond).

    - ``.npy``, ``.npz``, ``.pt`` files (options `key`, `cond`, `shape`) are mapped into memory, so they may
      be larger than it; not so an array of a compressed ``.npz`` file, which is read as a whole.
    - ``.csv`` and ``.parquet`` tables (`columns`, `cond`) are read into memory, all columns or those named.
    - Folders of images (`size`, `mode`, `cond`) give (1, H, W) or (3, H, W), uint8, decoded when asked for.
    - Hugging Face datasets, and folders that ``save_to_disk`` wrote (`key`, `columns`, `cond`, `size`,
      `mode`, `shape`), are read from their files when asked for; nothing is downloaded.
    - "digits" and "patches" (`key`) are the data that come along: :func:`digits`, :func:`patches`.
    - Tensors and arrays (`cond`, `shape`) are taken as they are.

    No code in a file is run. Whole numbers keep their type, other numbers come in torch's default one.

    Args:
        source: A path (``data.npz:images`` chooses an array), or data.
        **options: The options of the kind of data:

            - `key`: which array of a file, which part of a dataset ("train", say) or of the data that come
              along ("train", "val" or "test").
            - `columns`: names of the columns that make a row.
            - `cond`: the condition of a row. A column, whose whole numbers or words become labels (N,) and
              other numbers vectors (N, 1), or columns, vectors (N, k); another array of the same file;
              "folder", the number of an image's subfolder; an array beside an array.
            - `size`: height and width of images, or one number for both: they are cut to that shape about
              their middle and resized.
            - `mode`: "L" or "RGB", to convert images to grey or colours.
            - `shape`: of a row, where that is not the natural one.

    Returns:
        The rows, with `shape`, `columns`, `levels` and `classes`.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If an option is of another kind of data.
        ValueError: If there are no rows, cells are missing or no numbers (naming column and row), images are
            unreadable or of several sizes (naming two). NaN in an array is found when its row is read.
        ImportError: If pyarrow or datasets is needed and not installed.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.csv"
        >>> _ = path.write_text("height,width,kind\n1.5,2,oak\n3,4,elm\n")
        >>> rows = open_dataset(path, columns=["width", "height"], cond="kind")
        >>> rows.columns, rows.classes, rows[0]
        (['width', 'height'], ['elm', 'oak'], (tensor([2.0000, 1.5000]), tensor(1)))
    """
    given = {name: value for name, value in options.items() if value is not None}
    kind, target = _kind(source, given)
    name, opener, known = _KINDS[kind]
    for option in given:
        if option not in known:
            shown = target if isinstance(target, str) else type(target).__name__
            raise TypeError(
                f"{option}= is no option of {shown}, which is {name}: it takes {', '.join(known)}"
            )
    return opener(target, **given)


def _kind(source: Any, options: dict[str, Any]) -> tuple[str, Any]:
    """The kind of data, and what to open it with; the key in a path joins the options."""
    if is_huggingface(source):
        return "huggingface", source
    if not isinstance(source, (str, os.PathLike)):
        if not isinstance(source, (Tensor, np.ndarray)):
            raise TypeError(
                f"a {type(source).__name__} is no data that can be opened: give a path, a tensor, an array "
                "or a Hugging Face dataset"
            )
        return "array", source
    file, key, suffix = locate(source, options.get("key"))
    if key is not None:
        options["key"] = key
    if suffix == FOLDER:
        return ("huggingface" if is_saved(file) else "images"), file
    return {".csv": "table", ".parquet": "table", BUNDLED: BUNDLED}.get(suffix, "file"), file


def _file(file: str, *, key: str | None = None, cond: str | None = None, shape: Any = None) -> Arrays:
    reopen = partial(_arrays, file, key, cond)
    x, c = reopen()
    return Arrays(as_array(x, file), c, name=file, shape=shape, reopen=reopen)


def _arrays(file: str, key: str | None, cond: str | None) -> tuple[Any, Any]:
    return open_array(file, key), None if cond is None else open_array(file, cond)


def as_array(x: Any, file: str) -> Any:
    """What can be indexed by rows; of what cannot, as_tensor says why."""
    return x if hasattr(x, "shape") else as_tensor(x, file)


def _array(x: Any, *, cond: Any = None, shape: Sequence[int] | None = None) -> Arrays:
    return Arrays(x, cond, shape=shape)


def _bundled(name: str, *, key: str = "train") -> Arrays:
    if key not in PARTS:
        raise ValueError(f"{name} has no part {key!r}: choose one of {', '.join(PARTS)}")
    rows = Arrays(getattr(digits() if name == "digits" else patches(), key), name=f"{name}:{key}")
    rows.levels = 17 if name == "digits" else 256
    return rows


_KINDS: dict[str, tuple[str, Any, tuple[str, ...]]] = {
    "file": ("a file of arrays", _file, ("key", "cond", "shape")),
    "table": ("a table", open_table, ("columns", "cond")),
    "images": ("a folder of images", ImageFolder, ("size", "mode", "cond")),
    "huggingface": ("a dataset", open_huggingface, ("key", "columns", "cond", "size", "mode", "shape")),
    "array": ("an array", _array, ("cond", "shape")),
    BUNDLED: ("one of the data that come along", _bundled, ("key",)),
}


def read(path: str | os.PathLike[str], *, key: str | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """Read a tensor from a file.

    Args:
        path: A ``.npy``, ``.npz``, ``.pt`` (a tensor or a dict of tensors), ``.csv`` or ``.parquet`` file.
            ``"data.npz:images"`` chooses an array.
        key: Which array of an ``.npz`` or ``.pt`` file; may be left out when there is one.
        dtype: Floating type of the result; torch's default when left out. Integers, which may be labels, keep
            theirs then.

    Returns:
        The tensor; (N, D) for tables.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another kind, damaged, would need code to run, holds no or several
            arrays and no key chooses one, or a cell of a table is missing or no number.

    Example:
        >>> import tempfile, pathlib
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "a.npy"
        >>> np.save(path, np.eye(2))
        >>> read(path)
        tensor([[1., 0.],
                [0., 1.]])
    """
    file, key, suffix = locate(path, key)
    if suffix == ".csv":
        return read_csv(file, dtype=dtype).values
    if suffix not in SUFFIXES:
        raise ValueError(f"{file} is no file of numbers: open it by sdediff.data.open_dataset")
    if suffix == ".parquet":
        return as_tensor(open_table(file).x, file, dtype)
    return as_tensor(choose(_load(file, suffix), file, key), file, dtype)


def _load(file: str, suffix: str) -> Any:
    with plain(file):
        if suffix == ".pt":
            return torch.load(file, map_location="cpu", weights_only=True)
        array = np.load(file, allow_pickle=False)
        return {name: array[name] for name in array.files} if suffix == ".npz" else array


def split(data: T, val_fraction: float = 0.1, seed: int = 0) -> tuple[T, T]:
    """Training and held-out rows of a tensor, an array, a Dataset, or a tuple of them with rows in common.

    Rows are shuffled by ``numpy.random.default_rng(seed).permutation(n)``; the first ones train, the last
    ``ceil(val_fraction * n)`` are held out. Of a Dataset or a mapped array no row is copied or read.

    Args:
        data: The data, n rows.
        val_fraction: Fraction that is held out; with 0 nothing is.
        seed: Seed of the shuffling.

    Returns:
        Two of the same kind: copies of tensors and arrays, views of Datasets; of a mapped array two
        :class:`RowDataset`.

    Raises:
        ValueError: If the fraction is out of range or leaves fewer than two rows to train on.

    Example:
        >>> train, val = split(torch.arange(10.0), val_fraction=0.2, seed=0)
        >>> train.tolist(), val.tolist()
        ([4.0, 6.0, 2.0, 7.0, 3.0, 5.0, 9.0, 0.0], [8.0, 1.0])
    """
    parts: tuple[Any, ...] = data if isinstance(data, tuple) else (data,)
    n = len(parts[0])
    if not 0 <= val_fraction < 1:
        raise ValueError(
            f"val_fraction={val_fraction}: give a fraction of at least 0 and less than 1, such as 0.1"
        )
    if any(len(part) != n for part in parts):
        counts = ", ".join(str(len(part)) for part in parts)
        raise ValueError(f"the data have parts of {counts} rows: give as many of each")
    held = math.ceil(val_fraction * n) if val_fraction else 0
    if n - held < 2:
        raise ValueError(
            f"{n} rows less {held} held out are too few to train on: give more or a smaller val_fraction"
        )
    order = np.random.default_rng(seed).permutation(n)
    return _choose_rows(data, order[: n - held]), _choose_rows(data, order[n - held :])


def _choose_rows(data: Any, rows: np.ndarray) -> Any:
    if isinstance(data, tuple):
        return tuple(_choose_rows(part, rows) for part in data)
    if isinstance(data, np.memmap):
        return Arrays(data).subset(rows)
    if isinstance(data, RowDataset):
        return data.subset(rows)
    if isinstance(data, Dataset):
        return Subset(data, rows.tolist())
    return (
        data[torch.from_numpy(rows).to(data.device)] if isinstance(data, Tensor) else np.asarray(data)[rows]
    )
