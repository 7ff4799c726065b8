"""Columns of CSV and Parquet tables by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .readers import CsvRows, plain
from .rows import Arrays

#: Lines of a CSV file that are held as words at once.
_LINES = 8192
_MISSING = ("", "nan", "na", "n/a", "null", "none", "?")


@dataclass
class Column:
    """Numbers (N,), NaN where a cell holds none, and those cells by row; `place` says where a row stands."""

    values: np.ndarray
    cells: dict[int, str]
    lines: np.ndarray | None = None

    @property
    def bad(self) -> np.ndarray:
        """Rows without a finite number."""
        return np.flatnonzero(~np.isfinite(self.values))

    def complaint(self, file: str, name: str) -> str:
        """What the first such row is, and how many there are."""
        row = int(self.bad[0])
        place = f"row {row} (counted from 0)" if self.lines is None else f"line {self.lines[row]}"
        cell = self.cells.get(row, str(self.values[row]))
        what = "is missing" if cell.lower() in _MISSING else f"is {cell!r}, not a finite number"
        count = f"as in {len(self.bad)} of {len(self.values)} rows"
        return f"{file}, {place}, column {name!r}: the value {what}, {count}"


def open_table(
    file: str, *, columns: Sequence[str] | None = None, cond: str | Sequence[str] | None = None
) -> Arrays:
    """Rows of a table; arguments as in :func:`open_dataset`."""
    names = _names(file)
    conds = [cond] if isinstance(cond, str) else list(cond or ())
    chosen = [n for n in names if n not in conds] if columns is None else list(columns)
    _check(file, names, [*chosen, *conds])
    if not chosen:
        raise ValueError(f"{file} has no columns left to model: it holds {', '.join(names)}")
    asked = [*chosen, *conds]
    held = _parquet(file, asked) if _is_parquet(file) else _csv(file, names, asked)
    for name in chosen:
        if len(held[name].bad):
            fit = [n for n in chosen if not len(held[n].bad)]
            ways = "fill it, drop the row or encode the column as numbers"
            ways += f", or read others by columns={fit}" if fit else ""
            raise ValueError(f"{held[name].complaint(file, name)}; {ways}")
    x = torch.empty(len(held[chosen[0]].values), len(chosen))
    for i, name in enumerate(chosen):
        x[:, i] = torch.from_numpy(held[name].values)
    c, classes = _conditions(file, {n: held[n] for n in conds}, labels=isinstance(cond, str))
    named = columns is not None or _is_parquet(file) or CsvRows(file).named
    return Arrays(x, c, name=file, columns=chosen if named else None, classes=classes)


def _conditions(
    file: str, held: dict[str, Column], *, labels: bool
) -> tuple[Tensor | None, list[str] | None]:
    """One column of whole numbers or words as labels (N,); columns of numbers as vectors (N, k)."""
    if not held:
        return None, None
    if labels:
        ((name, column),) = held.items()
        if len(column.cells) == len(column.values) and not _has_missing(column):
            classes = sorted(set(column.cells.values()))
            number = {word: i for i, word in enumerate(classes)}
            return torch.tensor([number[column.cells[i]] for i in range(len(column.values))]), classes
        if not len(column.bad) and (column.values == column.values.round()).all():
            return torch.from_numpy(column.values).long(), None
    for name, column in held.items():
        if len(column.bad):
            raise ValueError(f"{column.complaint(file, name)}; a condition is words in every row, or numbers")
    values = np.stack([column.values for column in held.values()], axis=1)
    return torch.from_numpy(values).to(torch.get_default_dtype()), None


def _has_missing(column: Column) -> bool:
    return any(cell.lower() in _MISSING for cell in set(column.cells.values()))


def _is_parquet(file: str) -> bool:
    return file.lower().endswith(".parquet")


def _check(file: str, names: list[str], asked: list[str]) -> None:
    for name in asked:
        if names.count(name) != 1:
            what = "no column" if name not in names else "several columns"
            raise ValueError(f"{file} has {what} {name!r}: it holds {', '.join(names)}")
        if asked.count(name) > 1:
            raise ValueError(f"the column {name!r} was asked for twice: name it once")


def _names(file: str) -> list[str]:
    if not _is_parquet(file):
        return CsvRows(file).columns
    parquet = _pyarrow_parquet()
    with plain(file):
        return list(parquet.read_schema(file).names)


def _csv(file: str, names: list[str], chosen: list[str]) -> dict[str, Column]:
    rows, places = CsvRows(file), [names.index(name) for name in chosen]
    lines, numbered = rows.lines(), list[int]()
    parts: list[list[np.ndarray]] = [[] for _ in chosen]
    cells: list[dict[int, str]] = [{} for _ in chosen]
    if rows.header:
        next(lines)
    while part := list(islice(lines, _LINES)):
        for line, row in part:
            if len(row) != len(names):
                raise ValueError(f"{file}, line {line}: {len(row)} cells where {len(names)} are needed")
        for i, place in enumerate(places):
            words = [row[place] for _, row in part]
            parts[i].append(_numbers(words, len(numbered), cells[i]))
        numbered += [line for line, _ in part]
    if not numbered:
        raise ValueError(f"{file} has a header and no rows: it needs at least one line of numbers")
    where = np.array(numbered)
    held = zip(chosen, parts, cells, strict=True)
    return {name: Column(np.concatenate(values), words, where) for name, values, words in held}


def _numbers(words: list[str], start: int, cells: dict[int, str]) -> np.ndarray:
    """Numbers, and NaN for cells that hold none, which are kept by their rows."""
    try:
        return np.array(words, dtype=np.float64)
    except ValueError:
        values = np.full(len(words), np.nan)
        for i, word in enumerate(words):
            try:
                values[i] = float(word)
            except ValueError:
                cells[start + i] = word.strip()
        return values


def _parquet(file: str, chosen: list[str]) -> dict[str, Column]:
    parquet = _pyarrow_parquet()
    with plain(file):
        table = parquet.read_table(file, columns=chosen)
    if not len(table):
        raise ValueError(f"{file} has no rows: it needs at least one")
    return {name: arrow_column(table[name]) for name in chosen}


def arrow_column(column: Any) -> Column:
    """A column of an Arrow table."""
    import pyarrow as pa

    kind, types = column.type, pa.types
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return Column(np.array(column.cast(pa.float64(), safe=False).to_numpy()), {})  # one that is ours
    cells = {i: "" if cell is None else str(cell) for i, cell in enumerate(column.to_pylist())}
    return Column(np.full(len(column), np.nan), cells)


def _pyarrow_parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ImportError(
            "Parquet files are read by pyarrow, which is not installed: pip install 'sdediff[parquet]'"
        ) from error
    return parquet
