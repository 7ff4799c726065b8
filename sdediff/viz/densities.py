"""Log-likelihoods, ROC curves, samples and densities of the plane."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from sdediff.metrics import ROC

from .figures import COLOURS, plain


def log_prob_histogram(
    groups: Mapping[str, Tensor],
    *,
    xlabel: str = "log-likelihood, nats",
    title: str = "",
    bins: int = 80,
    log: bool = False,
) -> Figure:
    """Histograms of log-likelihoods (or bits/dim) of several sets, a panel each over one axis.

    The dotted line is the median of the first set.

    Args:
        groups: Values by label, (n,); those that are not finite are left out, and counted in the label.
        xlabel: Label of the axis.
        title: Title of the figure.
        bins: Bins between the smallest and the largest of all values.
        log: Logarithmic axis, for positive values far apart, such as bits/dim.

    Returns:
        The figure.

    Raises:
        ValueError: If a set has nothing finite to show, or a logarithmic axis values that are not positive.

    Example:
        >>> len(log_prob_histogram({"a": torch.randn(50), "b": torch.randn(50) - 9}).axes)
        2
    """
    values = {label: v.detach().cpu().double().flatten() for label, v in groups.items()}
    finite = {label: v[torch.isfinite(v)].numpy() for label, v in values.items()}
    if not finite or not all(len(v) for v in finite.values()):
        raise ValueError("a set has no finite log-likelihood to show: leave it out, or look at its status")
    together = np.concatenate(list(finite.values()))
    if log and together.min() <= 0:
        raise ValueError("log=True needs positive values, such as bits/dim: leave it out for nats")
    edges = np.histogram_bin_edges(np.log(together) if log else together, bins)
    figure = Figure(figsize=(9, 0.9 + 1.5 * len(finite)), layout="constrained")
    panels = figure.subplots(len(finite), 1, sharex=True, squeeze=False)[:, 0]
    for i, (axes, (label, value)) in enumerate(zip(panels, finite.items(), strict=True)):
        colour, lost = COLOURS[i % len(COLOURS)], len(values[label]) - len(value)
        axes.hist(value, bins=np.exp(edges) if log else edges, color=colour)
        note = f"{label}: median {np.median(value):.4g} of {len(value)}" + f", {lost} failed" * bool(lost)
        axes.set_title(note, loc="left", size=11, color=colour)
        axes.set_ylabel("count", size=10)
        axes.axvline(np.median(next(iter(finite.values()))), color="0.5", lw=1, ls=":")
        plain(axes)
    if log:
        panels[-1].set_xscale("log")
        panels[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[-1].xaxis.set_major_formatter("{x:g}")
    panels[-1].set_xlabel(xlabel, size=11)
    if title:
        figure.suptitle(title, size=13)
    return figure


def roc_curves(curves: Mapping[str, ROC], *, title: str = "") -> Figure:
    """ROC curves on one panel; the legend gives areas with their 95 % intervals, the dotted line is chance.

    Args:
        curves: Curves by label, of :func:`sdediff.roc`.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no curve.

    Example:
        >>> from sdediff import roc
        >>> curve = roc(torch.tensor([0.0, 1.0, 3.0]), torch.tensor([2.0, 4.0]))
        >>> len(roc_curves({"log-density": curve}).axes[0].lines)
        2
    """
    if not curves:
        raise ValueError("there is no ROC curve to show: give at least one label with its curve")
    figure = Figure(figsize=(4.6, 4.6 + 0.3 * bool(title) + 0.2 * len(curves)), layout="constrained")
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color="0.5", lw=1, ls=":")
    for i, (label, curve) in enumerate(curves.items()):
        low, high = curve.interval()
        note = f"{label}: {curve.auc:.3f} ({low:.3f} to {high:.3f})"
        axes.plot(curve.fpr, curve.tpr, color=COLOURS[i % len(COLOURS)], drawstyle="steps-post", label=note)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.set_xlabel("normal data called anomalous", size=11)
    axes.set_ylabel("anomalous data called so", size=11)
    figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    plain(axes)
    if title:
        figure.suptitle(title, size=13)
    return figure


def scatter_2d(groups: Mapping[str, Tensor], *, limit: float | None = None, title: str = "") -> Figure:
    """Two-dimensional samples, a panel for each set, on one scale.

    Args:
        groups: Samples by label, (n, 2).
        limit: Half the side of the square shown; by default it holds all finite samples.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If a set is not (n, 2), or there is none.

    Example:
        >>> len(scatter_2d({"data": torch.randn(9, 2), "samples": torch.randn(9, 2)}).axes)
        2
    """
    points = {label: _plane(v, label) for label, v in groups.items()}
    if not points:
        raise ValueError("there are no samples to show: give at least one label with its samples (n, 2)")
    if limit is None:
        limit = 1.05 * max(float(v[torch.isfinite(v)].abs().max()) for v in points.values())
    figure = Figure(figsize=(3.6 * len(points), 4.0 if title else 3.8), layout="constrained")
    panels = figure.subplots(1, len(points), squeeze=False, sharex=True, sharey=True)[0]
    for axes, (label, v) in zip(panels, points.items(), strict=True):
        axes.scatter(v[:, 0], v[:, 1], s=4, alpha=0.5, color=COLOURS[0], linewidths=0)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=label)
        plain(axes)
    if title:
        figure.suptitle(title)
    return figure


def density_2d(
    log_probs: Mapping[str, Callable[[Tensor], Tensor]],
    *,
    limit: float,
    resolution: int = 80,
    dtype: torch.dtype = torch.float32,
    title: str = "",
) -> Figure:
    """Densities of the plane as heat maps on one colour scale, a panel each.

    Args:
        log_probs: Functions by label, points (n, 2) -> log-density (n,), such as ``model.log_prob``.
        limit: Half the side of the square shown.
        resolution: Points along a side; each function is called once, with resolution^2 points.
        dtype: Of the points.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If there is no function.

    Example:
        >>> bell = lambda x: -0.5 * x.square().sum(1)
        >>> len(density_2d({"bell": bell}, limit=3.0, resolution=8).axes)  # a panel and the colour bar
        2
    """
    if not log_probs:
        raise ValueError("there is no density to show: give at least one label with its function")
    side = torch.linspace(-limit, limit, resolution + 1, dtype=dtype)
    middle = (side[1:] + side[:-1]) / 2
    points = torch.cartesian_prod(middle, middle)
    maps = {
        label: function(points).detach().cpu().double().exp().reshape(resolution, resolution).T
        for label, function in log_probs.items()
    }
    top = max(float(m[torch.isfinite(m)].max()) for m in maps.values())
    figure = Figure(figsize=(3.6 * len(maps) + 0.7, 4.0 if title else 3.8), layout="constrained")
    panels = figure.subplots(1, len(maps), squeeze=False)[0]
    for axes, (label, density) in zip(panels, maps.items(), strict=True):
        shown = axes.imshow(
            density.numpy(),
            origin="lower",
            extent=(-limit, limit, -limit, limit),
            cmap="viridis",
            vmin=0,
            vmax=top,
        )
        axes.set_title(label)
    figure.colorbar(shown, ax=list(panels), shrink=0.85, label="density")
    if title:
        figure.suptitle(title)
    return figure


def _plane(value: Tensor, label: str) -> Tensor:
    if value.ndim != 2 or value.shape[1] != 2:
        raise ValueError(f"{label!r} is {tuple(value.shape)}: give samples of the plane, (n, 2)")
    return value.detach().cpu().double()
