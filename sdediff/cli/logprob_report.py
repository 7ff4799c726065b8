"""What ``sdediff logprob`` says of a finished table: lines, a histogram and a calibration plot.

The table is read a row at a time and never held, so its length does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace

from sdediff import viz
from sdediff.group import Group
from sdediff.likelihood import LogLikelihood
from sdediff.likelihood.calibration import Calibration

from .logprob_rows import Evaluation
from .logprob_table import Table, likelihood
from .tables import RowFile
from .trained import describe

#: Rows kept to find out where most values lie.
_KEPT = 4096
_BINS = 80
Row = dict[str, str]


class Running:
    """Mean, scatter, range and number of the finite values among those that come by (Welford 1962)."""

    def __init__(self) -> None:
        self.n, self.mean, self.squares = 0, 0.0, 0.0
        self.low, self.high = math.inf, -math.inf

    def add(self, value: float) -> None:
        """Take one more value into account."""
        if not math.isfinite(value):
            return
        self.n += 1
        step = value - self.mean
        self.mean += step / self.n
        self.squares += step * (value - self.mean)
        self.low, self.high = min(self.low, value), max(self.high, value)

    @property
    def std_error(self) -> float:
        """Standard error of the mean, nan for a single value."""
        return math.sqrt(self.squares / (self.n - 1) / self.n) if self.n > 1 else math.nan

    def __str__(self) -> str:
        return f"{self.mean:.4f} +- {self.std_error:.4f}" if self.n else "nan"


class Summary:
    """Rows of one kind: a running mean of every number, and some of them, evenly spread, as they are."""

    def __init__(self) -> None:
        self.rows, self.stride = 0, 1
        self.columns: dict[str, Running] = {}
        self.kept: list[tuple[float, float]] = []

    def add(self, row: Row) -> None:
        """Take one more row into account."""
        for name, text in row.items():
            if name not in ("row", "status", "kind", "prior"):
                self.columns.setdefault(name, Running()).add(float(text))
        if self.rows % self.stride == 0:
            self.kept.append((float(row["log_prob"]), (float(row["high"]) - float(row["low"])) / 2))
        if len(self.kept) > _KEPT:
            self.kept, self.stride = self.kept[::2], 2 * self.stride
        self.rows += 1

    @property
    def failed(self) -> int:
        """Rows without a value."""
        return self.rows - self.columns["log_prob"].n

    def edges(self) -> np.ndarray:
        """Edges of bins that hold most rows: those within five times the middle half's width of it."""
        value = self.columns["log_prob"]
        first, third = np.nanquantile([v for v, _ in self.kept], [0.25, 0.75])
        reach = 5 * (third - first)
        low, high = max(value.low, first - reach), min(value.high, third + reach)
        low, high = (low, high) if low < high else (low - 0.5, high + 0.5)
        return np.linspace(low, high, 1 + min(_BINS, 5 + round(2 * value.n**0.5)))

    def half_width(self) -> float:
        """Half the width of a typical row's 95 % interval."""
        known = [half for _, half in self.kept if math.isfinite(half)]
        return float(np.median(known)) if known else math.nan


def kind_of(row: Row) -> str:
    """What a row's value is, and of which distribution: only such values may be averaged."""
    low, high = float(row["t_min"]), float(row["t_max"])
    return f"{row['kind']}, prior {row['prior']}, t_span ({low:g}, {high:g})"


def summarise(rows: Iterable[Row]) -> dict[str, Summary]:
    """A summary of each kind: values of different kinds are never averaged."""
    found: dict[str, Summary] = {}
    for row in rows:
        found.setdefault(kind_of(row), Summary()).add(row)
    return found


def report(evaluation: Evaluation, rows: RowFile, table: Table, options: Namespace, group: Group) -> None:
    """Print what is in a whole table, and draw it; all processes evaluate the rows of the check."""
    stem = Path(options.out).with_suffix("")
    written, spent = group.on_main(lambda: _summary(table, options, f"{stem}.histogram.png", group.note))
    if options.plots and options.check_rows:
        outcome, how = check(evaluation, rows, table, options.check_rows, spent, group)
        if outcome is not None:
            written += _verdict(outcome, how, f"{stem}.calibration.png")
    if group.main:
        print(f"wrote     {', '.join(written)}")


def _summary(table: Table, options: Namespace, path: str, note: str) -> tuple[list[str], float]:
    """Print and draw the values; returns the files written, and the vector-Jacobian products spent."""
    summaries = summarise(table.rows())
    for kind, summary in summaries.items():
        _tell(kind, summary)
    print(f"solver    {describe(options)}{note}")
    columns = [summary.columns["divergence_evaluations"] for summary in summaries.values()]
    spent = sum(column.mean * column.n for column in columns)
    if not options.plots or not any(summary.columns["log_prob"].n for summary in summaries.values()):
        return [options.out], spent
    title = f"{options.data} under {options.model}"
    viz.save(viz.binned_log_prob(histogram(table, summaries), title=title), path)
    return [options.out, path], spent


def _tell(kind: str, summary: Summary) -> None:
    column = summary.columns
    value = column["log_prob"]
    print(f"log_prob  {value} nats, mean of {value.n} rows +- its standard error")
    if summary.failed:
        print(f"failed    {summary.failed} of {summary.rows} rows, left out of the mean; nan in the table")
    if "bits_per_dim" in column:
        print(f"bits/dim  {column['bits_per_dim']}")
    errors = (f"{name} {_most(column[name])}" for name in ("std_error", "solver_error"))
    print(f"errors    of a row, at most: {', '.join(errors)}")
    for name in ("prior_mismatch", "truncation"):
        if name in column and column[name].n:
            print(f"ends      {name} {column[name].mean:.2g} nats on average, at most {_most(column[name])}")
    print(f"kind      {kind}")
    nfe, products = (column[n].mean for n in ("nfe", "divergence_evaluations"))
    print(f"NFE       {nfe:.4g} a row, and {products:.4g} vector-Jacobian products")


def _most(column: Running) -> str:
    """The value farthest from zero."""
    return f"{max(column.low, column.high, key=abs):.2g}" if column.n else "unknown"


def histogram(table: Table, summaries: dict[str, Summary]) -> dict[str, viz.Bins]:
    """Counts of the log-likelihoods of each kind, from one more reading of the table."""
    shown = {kind: summary for kind, summary in summaries.items() if summary.columns["log_prob"].n}
    edges = {kind: summary.edges() for kind, summary in shown.items()}
    counts = {kind: np.zeros(len(edge) + 1, dtype=np.int64) for kind, edge in edges.items()}
    rows = table.rows()
    while part := list(islice(rows, _KEPT)):
        values = np.array([float(row["log_prob"]) for row in part])
        kinds = np.array([kind_of(row) for row in part])
        for kind, edge in edges.items():
            value = values[(kinds == kind) & np.isfinite(values)]
            # Of the last bin both ends belong to it, as in numpy.histogram.
            place = np.where(value == edge[-1], len(edge) - 1, np.searchsorted(edge, value, side="right"))
            counts[kind] += np.bincount(place, minlength=len(edge) + 1)
    return {
        kind: viz.Bins(
            edges[kind],
            count[1:-1],
            (int(count[0]), shown[kind].columns["log_prob"].low),
            (int(count[-1]), shown[kind].columns["log_prob"].high),
            shown[kind].columns["log_prob"].mean,
            shown[kind].columns["log_prob"].std_error,
            shown[kind].half_width(),
            shown[kind].failed,
        )
        for kind, count in counts.items()
    }


def check(
    evaluation: Evaluation, rows: RowFile, table: Table, count: int, spent: float, group: Group
) -> tuple[Calibration | None, str]:
    """Compare rows of the table, drawn at random, with another evaluation of them, and say which.

    Args:
        evaluation: The table's.
        rows: The data.
        table: The table.
        count: Number of rows, at most those there are.
        spent: Vector-Jacobian products that the table took.
        group: The processes that share the work; None is returned to all but the first.
    """
    count = min(count, table.done)
    other, how = evaluation.anew(count, spent)
    if group.main:
        print(f"check     {count} rows anew: {how}", flush=True)
    draw = np.random.default_rng(evaluation.seed).choice(table.done, count, replace=False)
    chosen = np.sort(draw).tolist()
    own = chosen[group.share(count)]
    parts = group.together(lambda: other(rows.take(own), torch.tensor(own)).cpu() if own else None, to="main")
    if not group.main:
        return None, how
    wanted = set(chosen)
    stated = likelihood([row for row in table.rows() if int(row["row"]) in wanted])
    anew = LogLikelihood.join([part for part in parts if part is not None])
    return Calibration.of(stated, anew), how


def _verdict(outcome: Calibration, how: str, path: str) -> list[str]:
    """Say how the table's errors hold, and draw it; returns the files written."""
    if not len(outcome.difference):
        print("          none of them has a value and a known error")
        return []
    print(f"          {outcome.verdict}")
    viz.save(viz.calibration(outcome, title=f"Stated errors against {how}"), path)
    return [path]
