"""The outcome of a comparison: table, picture, page."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sdediff import files, viz
from sdediff.text import aligned, markdown

_HEAD = ("solver", "of", "setting", "NFE", "seconds", "error", "energy distance", "/ floor")
_LEFT = 3  # columns of words


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        solver: Its label.
        kind: "ODE" (it follows the probability flow) or "SDE".
        setting: Steps or tolerance.
        nfe: Evaluations of the network a sample, on average; None where it did not run.
        nfe_max: Those of the most expensive sample.
        seconds: Wall clock of the run, all samples.
        error: Root mean square error of an entry, in data units, sample by sample; or None.
        distance: Energy distance to exact samples, or None.
        failure: What went wrong, or nothing.
    """

    solver: str
    kind: str
    setting: str
    nfe: float | None
    nfe_max: int | None
    seconds: float | None
    error: float | None
    distance: float | None
    failure: str


@dataclass(frozen=True)
class Report:
    """What :func:`sdediff.bench.compare` returns.

    Attributes:
        title: The model.
        rows: The runs.
        samples: Samples of each.
        dim: Entries of a sample.
        process: The process in words.
        measure: As asked for.
        truth: What the flow's error is measured against, or None.
        truth_error: About how wrong that is itself.
        floor: Mean and standard deviation of the energy distance of exact sets of that size, or None.
        seed: Seed of the runs.
        dtype: Of the samples.
        repeats: Timed runs behind each number of seconds; 0: the first run.
        ran_on: Machine, threads, versions, seconds in all.
    """

    title: str
    rows: list[Row]
    samples: int
    dim: int
    process: str
    measure: str
    truth: str | None
    truth_error: float | None
    floor: tuple[float, float] | None
    seed: int
    dtype: str
    repeats: int
    ran_on: dict[str, Any]

    def cells(self) -> list[tuple[str, ...]]:
        """The table's rows as words, the head first."""
        return [_HEAD, *(self._cells(row) for row in self.rows)]

    def _cells(self, row: Row) -> tuple[str, ...]:
        times = row.distance / self.floor[0] if row.distance is not None and self.floor else None
        if row.nfe is None:
            return row.solver, row.kind, row.setting, "", "", row.failure[:60], "", ""
        return (
            row.solver,
            row.kind,
            row.setting,
            f"{row.nfe:.0f}",
            _number(row.seconds),
            row.failure or _number(row.error),
            _number(row.distance),
            "" if times is None else f"{times:.2f}",
        )

    def table(self, kind: str = "text") -> str:
        """The table, with what it ran on.

        Args:
            kind: "text" or "markdown".

        Raises:
            ValueError: For another kind.
        """
        if kind not in ("text", "markdown"):
            raise ValueError(f'kind={kind!r} is not known: give "text" or "markdown"')
        body = (aligned if kind == "text" else markdown)(self.cells(), _LEFT)
        return "\n\n".join([body, *self.notes()])

    def notes(self) -> list[str]:
        """How the table is to be read, and what it ran on."""
        lines = [
            f"{self.title}, {self.dim} dimension{'s' * (self.dim > 1)}, {self.process}: {self.samples} "
            f"samples in {self.dtype}, all from the same draws of the prior, seed {self.seed}."
        ]
        if self.truth is not None:
            own = "" if not self.truth_error else f" (itself right to about {self.truth_error:.0e})"
            lines.append(f"Error: root mean square of an entry, sample by sample, against {self.truth}{own}.")
        if self.measure == "strong":
            lines.append(
                "Error of an SDE: against a solve with very many steps along the same Brownian path."
            )
        if self.floor is not None:
            lines.append(
                f"Energy distance: to {4 * self.samples} exact samples; {self.samples} exact ones come to "
                f"{self.floor[0]:.2g} +- {self.floor[1]:.1g}, the noise floor: less is no better."
            )
        m = self.ran_on
        how = f"medians of {self.repeats} interleaved runs" if self.repeats > 1 else "a single run"
        lines.append(
            f"Seconds: wall clock of all samples, {how}, on {m['cpus']} CPUs with {m['threads']} "
            f"thread{'s' * (m['threads'] > 1)}, Python {m['python']}, torch {m['torch']}; the comparison "
            f"took {m['seconds']:.0f} s."
        )
        return lines

    def to_csv(self) -> str:
        """The rows as CSV, a column an attribute."""
        text = io.StringIO()
        writer = csv.DictWriter(text, [f.name for f in fields(Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return text.getvalue()

    def to_json(self) -> str:
        """Everything, as JSON; numbers that are not finite become null."""
        return json.dumps(_finite(asdict(self)), indent=2, allow_nan=False) + "\n"

    def figure(self) -> Figure:
        """The work-precision diagram."""
        from .picture import draw

        return draw(self)

    def to_html(self) -> str:
        """A page with the diagram and a table that can be sorted; it needs nothing from anywhere else."""
        from .page import page

        return page(self)

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write diagram.png, report.html, table.txt, table.csv and table.json.

        Args:
            folder: The folder; made if need be. Files of an earlier comparison are replaced.

        Returns:
            The files.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        texts = {
            "table.txt": self.table() + "\n",
            "table.csv": self.to_csv(),
            "table.json": self.to_json(),
            "report.html": self.to_html(),
        }
        for name, text in texts.items():
            files.write_text(place / name, text)
        viz.save(self.figure(), place / "diagram.png")
        return [place / name for name in ("diagram.png", *sorted(texts))]


def _finite(value: Any) -> Any:
    """The same with None for inf and NaN."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    """Three significant digits, in plain notation where that is short.

    Example:
        >>> _number(0.0012345), _number(1.5e-7), _number(None)
        ('0.00123', '1.5e-07', '')
    """
    return "" if value is None else f"{value:.3g}"
