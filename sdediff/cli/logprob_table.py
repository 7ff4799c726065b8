"""The table of ``sdediff logprob``: every field of a likelihood, written a batch at a time."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdediff import files
from sdediff.likelihood import Kind, LogLikelihood
from solvers import Status

from .tables import csv_text

#: Columns that hold no tensor of the result, beside `status`, which is told by name.
_APART = {"latent", "t_span", "status"}


class Table:
    """A table that grows in a file beside it, ``OUT.partial``, and goes on where it was interrupted.

    The file's first line says what is evaluated; then come the lines of the table, of which those of whole
    batches are kept when it is opened again.

    Args:
        out: Where the table shall stand once it is whole.
        identity: What is evaluated, and how: anything JSON can hold.
        size: Rows in a batch.
        total: Rows in all.

    Raises:
        ValueError: If the file beside it is of another identity, or no such file.
    """

    def __init__(self, out: str, identity: Mapping[str, Any], size: int, total: int) -> None:
        self.out, self.path = out, Path(f"{out}.partial")
        self.identity = json.loads(json.dumps(identity))
        self.size, self.total = size, total
        #: Rows that are in the file.
        self.done = self._open()

    def _open(self) -> int:
        if not self.path.exists():
            files.write_text(self.path, json.dumps(self.identity) + "\n")
            return 0
        with open(self.path, "rb") as file:
            line = file.readline()
            self._check(line)
            kept, end = 0, len(line)
            place = end + len(file.readline())
            for row, line in enumerate(file):
                place += len(line)
                if not line.startswith(b"%d," % row) or not line.endswith(b"\n"):
                    break  # it was cut
                if (row + 1) % self.size == 0 or row + 1 == self.total:
                    kept, end = row + 1, place
        os.truncate(self.path, end)
        return kept

    def _check(self, line: bytes) -> None:
        try:
            stored = dict(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{self.path} is no part of a table that could go on: move it away, or give another --out"
            ) from error
        names = [n for n in {**stored, **self.identity} if stored.get(n) != self.identity.get(n)]
        if names:
            was = ", ".join(f"{n} {stored.get(n)} instead of {self.identity.get(n)}" for n in names)
            raise ValueError(
                f"{self.path} was begun with {was}: give that to go on, or another --out, or delete it"
            )

    def append(self, result: LogLikelihood, bin_width: float | None) -> None:
        """Add the next rows, and make sure that they are on disk."""
        table = columns(result, self.done, bin_width)
        lines = [list(row) for row in zip(*table.values(), strict=True)]
        with open(self.path, "a", encoding="utf-8", newline="") as file:
            file.write(csv_text([list(table), *lines] if self.done == 0 else lines))
            file.flush()
            os.fsync(file.fileno())
        self.done += len(lines)

    def rows(self) -> Iterator[dict[str, str]]:
        """The rows there are, in order."""
        with open(self.path, newline="", encoding="utf-8") as file:
            file.readline()
            yield from csv.DictReader(file)

    def publish(self) -> None:
        """Write the table to its place, whole."""
        with open(self.path, "rb") as source, files.whole(self.out) as temporary:
            source.readline()
            with open(temporary, "wb") as target:
                while block := source.read(1 << 16):
                    target.write(block)

    def remove_partial(self) -> None:
        """Remove the file beside the table, once nothing is left to do."""
        self.path.unlink()


def columns(result: LogLikelihood, first: int, bin_width: float | None) -> dict[str, list[Any]]:
    """Columns of a table: every field that has a value a row, or one for all, and the 95 % interval.

    Args:
        result: The likelihoods.
        first: Number of the first row.
        bin_width: Width of a bin in the data's units: adds bits per dimension; probabilities need none.
    """
    n = len(result.log_prob)
    table: dict[str, list[Any]] = {"row": list(range(first, first + n))}
    for field in fields(result):
        value = getattr(result, field.name)
        if field.name == "status":
            table["status"] = [Status(number).name for number in value.tolist()]
        elif field.name not in _APART and value is not None:
            table[field.name] = value.tolist() if isinstance(value, Tensor) else [value] * n
    table["t_min"], table["t_max"] = ([float(t)] * n for t in result.t_span)
    table["low"], table["high"] = (bound.tolist() for bound in result.interval(0.95))
    if bin_width is not None or result.kind.estimand == "probability":
        table["bits_per_dim"] = result.bits_per_dim(bin_width).tolist()
    return table


def likelihood(rows: list[dict[str, str]]) -> LogLikelihood:
    """The likelihoods in rows of a table, all of one kind; their latents are not kept."""
    one = rows[0]

    values: dict[str, Any] = {
        f.name: torch.tensor([float(row[f.name]) for row in rows], dtype=torch.float64)
        for f in fields(LogLikelihood)
        if f.name in one and f.name not in ("status", "kind", "prior", "dim")
    }
    status = torch.tensor([Status[row["status"]] for row in rows])
    span = (float(one["t_min"]), float(one["t_max"]))
    return LogLikelihood(
        **values, status=status, kind=Kind(one["kind"]), prior=one["prior"], t_span=span, dim=int(one["dim"])
    )
