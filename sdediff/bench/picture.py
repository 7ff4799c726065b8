"""The work-precision diagram: error against evaluations and seconds, curves labelled where they end."""

from __future__ import annotations

import math
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from sdediff.viz import COLOURS

if TYPE_CHECKING:
    from .report import Report, Row

_MARKERS, _STYLES = "osD^vPX", ("-", (0, (5, 2)), (0, (1, 1.5)))
_PANEL, _HEIGHT, _TOP, _LEFT, _LINE, _LETTER = 3.7, 4.8, 0.8, 0.85, 0.19, 0.088  # inches
_INK, _GREY = "#222222", "#8a8a8a"


class Group(NamedTuple):
    """Curves that share a measure."""

    title: str
    axis: str
    attribute: str
    rows: list[Row]


def groups(report: Report) -> list[Group]:
    """The measures that were taken, with the runs that have one."""
    kinds = [
        Group("probability flow, error of each sample", "RMS error, data units", "error", []),
        Group("stochastic, error along a shared Brownian path", "RMS error, data units", "error", []),
        Group("law of the samples", "energy distance to exact samples", "distance", []),
    ]
    for row in report.rows:
        if not math.isfinite(row.error or row.distance or 0.0):
            continue
        if row.error is not None:
            kinds[row.kind != "ODE"].rows.append(row)
        elif row.distance is not None:
            kinds[2].rows.append(row)
    return [kind for kind in kinds if kind.rows]


def draw(report: Report) -> Figure:
    """The diagram: a row of panels a measure, against evaluations on the left and seconds on the right."""
    found = groups(report)
    labels = 0.4 + _LETTER * max([11, *(len(row.solver) for group in found for row in group.rows)])
    width, height = 2 * (_LEFT + _PANEL + labels), _TOP + _HEIGHT * max(1, len(found))
    figure = Figure(figsize=(width, height))
    figure.text(
        _LEFT / width, 1 - 0.28 / height, report.title, size=15, weight="bold", color=_INK, va="center"
    )
    words = f"{report.samples} samples of {report.dim} dimension{'s' * (report.dim > 1)}, {report.process}"
    figure.text(_LEFT / width, 1 - 0.58 / height, words, size=10, color=_GREY, va="center")
    if not found:
        figure.text(0.5, 0.4, "no run has a result", ha="center", size=13)
        return figure
    for k, group in enumerate(found):
        bottom = (height - _TOP - _HEIGHT * (k + 1) + 0.7) / height
        low, high = _limits(group, report)
        for side, (name, label) in enumerate(
            (("nfe", "network evaluations a sample"), ("seconds", "seconds"))
        ):
            left = (_LEFT + side * (_LEFT + _PANEL + labels)) / width
            axes = figure.add_axes((left, bottom, _PANEL / width, (_HEIGHT - 1.1) / height))
            axes.set_ylim(low, high)
            _curves(axes, group, name, report)
            axes.set_xlabel(label, size=10)
            if side == 0:
                axes.set_ylabel(group.axis, size=10)
                axes.set_title(group.title, loc="left", size=12, color=_INK, pad=9)
    return figure


#: Leading digits of tick numbers, from dense to sparse.
_ROUND = ((1, 1.5, 2, 3, 4, 5, 7), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,))


def _limits(group: Group, report: Report) -> tuple[float, float]:
    values = [max(getattr(row, group.attribute), 1e-16) for row in group.rows]
    if group.attribute == "distance" and report.floor:
        values.append(report.floor[0])
    low, high = math.log10(min(values)), math.log10(max(values))
    room = 0.06 * max(high - low, 0.5)
    return 10 ** (low - room), 10 ** (high + room)


def _curves(axes: Axes, group: Group, name: str, report: Report) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends: list[tuple[str, str, float, float]] = []
    for k, (solver, rows) in enumerate(groupby(group.rows, key=lambda row: row.solver)):
        points = [(getattr(r, name), max(getattr(r, group.attribute), 1e-16)) for r in rows]
        colour = COLOURS[k % len(COLOURS)]
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            marker=_MARKERS[(k + k // len(COLOURS)) % len(_MARKERS)],
            ls=_STYLES[k // len(COLOURS) % len(_STYLES)],
            lw=1.8,
            ms=5.5,
            mec="white",
            mew=0.6,
        )
        ends.append((solver, colour, *points[-1]))
    if group.attribute == "distance" and report.floor:
        top = report.floor[0] + 2 * report.floor[1]
        axes.axhspan(1e-20, top, color="#eeeeee", lw=0, zorder=0)
        ends.append(("noise floor", _GREY, math.nan, report.floor[0]))
    _ticks(axes)
    _label(axes, ends)
    axes.grid(True, color="#e6e6e6", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, which="both")


def _ticks(axes: Axes) -> None:
    """Plain numbers at round values, as many as fit: side by side below, above each other at the side."""
    for axis, (low, high), most in ((axes.xaxis, axes.get_xlim(), 6), (axes.yaxis, axes.get_ylim(), 8)):
        decades = [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
        choices = [[d * m for d in decades for m in subs if low <= d * m <= high] for subs in _ROUND]
        axis.set_major_locator(FixedLocator(next((c for c in choices if len(c) <= most), choices[-1])))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _label(axes: Axes, ends: list[tuple[str, str, float, float]]) -> None:
    """Names right of the panel, as near as they fit to the height of the curves' ends, with thin lines."""
    low, high = (math.log10(v) for v in axes.get_ylim())
    left, right = (math.log10(v) for v in axes.get_xlim())
    inches = axes.get_window_extent().height / axes.figure.dpi
    places = spread([(math.log10(y) - low) / (high - low) for *_, y in ends], _LINE / inches)
    for (name, colour, x, y), place in zip(ends, places, strict=True):
        at = (math.log10(y) - low) / (high - low)
        start = 1.0 if math.isnan(x) else (math.log10(x) - left) / (right - left)
        axes.plot(
            (start, 1.015, 1.045), (at, at, place), transform=axes.transAxes, color=colour, lw=0.6, alpha=0.6,
            clip_on=False,
        )  # fmt: skip
        axes.text(1.055, place, name, transform=axes.transAxes, color=colour, size=9.5, va="center")


def spread(heights: list[float], gap: float) -> list[float]:
    """Heights moved as little as needed to lie `gap` apart, within [0, 1] where they fit.

    Example:
        >>> spread([0.5, 0.5, 0.9], 0.1)
        [0.45, 0.55, 0.9]
    """
    order = sorted(range(len(heights)), key=heights.__getitem__)
    blocks: list[tuple[float, int]] = []  # middle and members of runs of labels that touch
    for i in order:
        middle, count = heights[i], 1
        while blocks and middle - blocks[-1][0] < gap * (count + blocks[-1][1]) / 2 - 1e-12:
            other, more = blocks.pop()
            middle, count = (middle * count + other * more) / (count + more), count + more
        blocks.append((middle, count))
    placed: list[float] = []
    for middle, count in blocks:
        placed += [middle + gap * (j - (count - 1) / 2) for j in range(count)]
    above = max(0.0, max(placed, default=0.0) - 1.0) + min(0.0, min(placed, default=0.0))
    result = dict(zip(order, (p - above for p in placed), strict=True))
    return [round(result[i], 12) for i in range(len(heights))]
