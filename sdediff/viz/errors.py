"""Log-likelihoods with their errors: how they spread, and whether their errors hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from sdediff.likelihood.calibration import Calibration

from .figures import COLOURS, plain


class Bins(NamedTuple):
    """How many values lie in each bin, so that the values themselves need not be kept.

    Attributes:
        edges: Edges of the bins, (n + 1,).
        counts: Values in each, (n,).
        below: Values left of all bins, and the smallest of them.
        above: Values right of all bins, and the largest of them.
        mean: Mean of all values.
        std_error: Its standard error.
        half_width: Half the width of a typical value's 95 % interval, nan where it is unknown.
        failed: Rows without a value.
    """

    edges: np.ndarray
    counts: np.ndarray
    below: tuple[int, float]
    above: tuple[int, float]
    mean: float
    std_error: float
    half_width: float
    failed: int = 0

    @property
    def total(self) -> int:
        """All values."""
        return int(self.counts.sum()) + self.below[0] + self.above[0]


def binned_log_prob(groups: Mapping[str, Bins], *, title: str = "") -> Figure:
    """Histograms of log-likelihoods, a panel each, with the scale of a row's error.

    Above the bars a line as long as a typical row's 95 % interval is drawn at the mean.

    Args:
        groups: Bins by label.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no group, or one holds no value.

    Example:
        >>> bins = Bins(np.array([-2.0, -1.0, 0.0]), np.array([3, 5]), (0, 0.0), (0, 0.0), -1.1, 0.2, 0.1)
        >>> len(binned_log_prob({"density/exact": bins}).axes)
        1
    """
    if not groups or not all(bins.total for bins in groups.values()):
        raise ValueError("there are no log-likelihoods to show: leave the figure out, or see their status")
    figure = Figure(figsize=(9, 0.9 + 3.1 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for i, (axes, (label, bins)) in enumerate(zip(panels, groups.items(), strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        axes.stairs(bins.counts, bins.edges, fill=True, color=colour, alpha=0.75)
        note = f"{label}: {bins.total} rows, mean {bins.mean:.4f} ± {bins.std_error:.4f}"
        axes.set_title(note + f", {bins.failed} failed" * bool(bins.failed), loc="left", size=11)
        _error_scale(axes, bins)
        _outside(axes, bins)
        axes.set_ylabel("rows", size=10)
        axes.set_xlabel("log-likelihood, nats", size=11)
        plain(axes)
    if title:
        figure.suptitle(title, size=13)
    return figure


def _error_scale(axes: Axes, bins: Bins) -> None:
    """A typical 95 % interval to scale, above the bars."""
    top = max(int(bins.counts.max()), 1)
    axes.set_ylim(0, 1.3 * top)
    known = np.isfinite(bins.half_width)
    if known:
        axes.errorbar(bins.mean, 1.12 * top, xerr=bins.half_width, fmt=".", ms=5, color="black", capsize=5)
    text = f"a row's own 95 % interval: ± {bins.half_width:.2g} nats (median)" if known else "errors unknown"
    axes.annotate(text, (bins.mean, 1.17 * top), ha="center", va="bottom", size=10)


def _outside(axes: Axes, bins: Bins) -> None:
    for (count, end), x, side, arrow in ((bins.below, 0, "left", "← "), (bins.above, 1, "right", "→ ")):
        if count:
            text = f"{arrow}{count} more, to {end:.4g}"
            axes.text(x, 0.6, text, transform=axes.transAxes, ha=side, size=10, color=COLOURS[1])


def calibration(outcome: Calibration, *, title: str = "") -> Figure:
    """Whether stated errors hold: coverage at every level, and differences against stated errors.

    Args:
        outcome: Values compared with an independent evaluation of the same rows.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If no row has a value and a known error.
    """
    n = len(outcome.difference)
    if n == 0:
        raise ValueError("no row has a value and a known error to compare: leave the figure out")
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _coverage(left, outcome, n)
    _differences(right, outcome)
    unknown = f" ({outcome.unknown} rows left out: value or error unknown)" * bool(outcome.unknown)
    colour = COLOURS[1] if outcome.too_small else "black"
    figure.suptitle((f"{title}\n" if title else "") + outcome.verdict + unknown, size=12, color=colour)
    return figure


def _coverage(axes: Axes, outcome: Calibration, n: int) -> None:
    levels = np.concatenate([[0.0], outcome.levels.numpy(), [1.0]])
    low, high = (np.concatenate([[0.0], end.numpy(), [1.0]]) for end in (outcome.low, outcome.high))
    band = f"where it lies 95 % of the time, {n} rows"
    axes.fill_between(levels, low, high, color="0.85", lw=0, label=band)
    axes.plot([0, 1], [0, 1], color="0.5", lw=1, label="as stated")
    bound = "" if bool(outcome.random.any()) else ": nothing random, one bound for all levels"
    axes.plot(outcome.levels, outcome.observed, ".-", color=COLOURS[0], label="observed" + bound)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="level of the interval", ylabel="rows inside")
    axes.text(0.04, 0.96, "errors smaller\nthan stated", transform=axes.transAxes, va="top", color="0.4")
    axes.text(0.96, 0.3, "errors LARGER\nthan stated", transform=axes.transAxes, ha="right", color=COLOURS[1])
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.set_title("Coverage", loc="left", size=11)
    plain(axes)


def _differences(axes: Axes, outcome: Calibration) -> None:
    error, size = (v.abs().numpy() for v in (outcome.half_width, outcome.difference))
    positive = np.concatenate([v[v > 0] for v in (error, size)])
    least = positive.min() if len(positive) else 1e-12
    inside = size <= error
    error, size = np.maximum(error, least), np.maximum(size, least)  # zeros, on logarithmic axes
    ends = (least / 2, 2 * max(error.max(), size.max()))
    for chosen, colour, label in ((inside, COLOURS[0], "inside"), (~inside, COLOURS[1], "outside")):
        text = f"{label}: {int(chosen.sum())}"
        axes.scatter(error[chosen], size[chosen], s=22, color=colour, alpha=0.75, linewidths=0, label=text)
    axes.plot(ends, ends, color="0.5", lw=1)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    axes.set(xlabel="stated: half width of the 95 % interval, nats", ylabel="|difference|, nats")
    axes.legend(loc="upper left", frameon=False, fontsize=9)
    axes.set_title("Difference of each row against its stated error", loc="left", size=11)
    plain(axes)
