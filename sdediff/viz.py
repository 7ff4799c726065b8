"""Pictures: grids of images, trajectories, histograms of log-likelihoods, samples and densities of the plane.

Every function returns a :class:`matplotlib.figure.Figure` of its own; `pyplot` and its global state are never
touched. :func:`save` writes it, whole or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator
from torch import Tensor

from sdediff import files

#: Colours that stay apart for every kind of colour vision (Okabe & Ito 2008), the first ones first.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 150) -> None:
    """Write a figure to a PNG file, whole or not at all.

    Args:
        figure: The figure.
        path: The file.
        dpi: Pixels per inch.

    Raises:
        FileNotFoundError: If the folder does not exist.
    """
    with files.whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


def image_grid(
    rows: Mapping[str, Tensor],
    *,
    columns: int = 16,
    title: str = "",
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Images in labelled rows, in grey; small values are black.

    Args:
        rows: Images by label, (n, H, W) or (n, 1, H, W); the first `columns` of each are shown.
        columns: Images a row.
        title: Title of the figure.
        limits: Values shown black and white; the smallest and largest of all by default.

    Returns:
        The figure.

    Raises:
        ValueError: If there are no rows, or one holds no grey images.

    Example:
        >>> image_grid({"noise": torch.rand(4, 8, 8)}, columns=4).axes[0].get_images()[0].get_array().shape
        (8, 8)
    """
    images = {label: _grey(value, label)[:columns] for label, value in rows.items()}
    if not images:
        raise ValueError("there are no rows of images to show: give at least one label with its images")
    low, high = limits or _limits(list(images.values()))
    side, margin, top = 0.55, 2.3, 0.55 if title else 0.15
    figure, axes = _canvas(margin + side * columns + 0.05, top + side * len(images) + 0.1)
    for i, (label, row) in enumerate(images.items()):
        y = side * (len(images) - 1 - i) + 0.1
        for j, image in enumerate(row):
            _show(axes, image, (margin + side * j, y, 0.92 * side), low, high)
        axes.text(margin - 0.12, y + side / 2, label, ha="right", va="center", size=10)
    if title:
        axes.text(
            sum(axes.get_xlim()) / 2, axes.get_ylim()[1] - 0.25, title, ha="center", va="center", size=12
        )
    return figure


def trajectories(
    paths: Mapping[str, Tensor],
    noise_levels: Sequence[float] | Tensor,
    *,
    direction: Tensor | None = None,
    frames: int = 9,
    strips: int = 2,
    lines: int = 24,
    limits: tuple[float, float] | None = None,
    title: str = "",
) -> Figure:
    r"""How samples form: above, images along the way; below, one coordinate of many samples.

    The states are shown as they are given: divide by :math:`\sqrt{\alpha^2+\sigma^2}` for one scale at all
    times. Every solver's panel has the same samples.

    Args:
        paths: States by solver, (S, B, H, W) or (S, B, 1, H, W), noise first.
        noise_levels: Noise to signal ratio sigma/alpha of each state, (S,).
        direction: The coordinate drawn is the product with this image, (H, W) or (1, H, W); the first
            principal component of the last states of all solvers by default.
        frames: Images of a strip, equally spaced among the states.
        strips: Samples shown as strips, for each solver.
        lines: Samples drawn as lines.
        limits: Values shown black and white; by default those between which 96 % of the last states lie.
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If there are no paths, or they do not fit the noise levels.
    """
    level = np.asarray(torch.as_tensor(noise_levels, dtype=torch.float64))
    states = {name: _states(path, len(level), name) for name, path in paths.items()}
    if not states:
        raise ValueError("there are no paths to show: give at least one solver's states")
    last = torch.cat([s[-1] for s in states.values()]).flatten(1)
    if direction is None:
        centred = last - last.mean(dim=0)
        direction = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    direction = direction.detach().double().flatten() / direction.detach().double().norm()
    low, high = limits or np.quantile(last.numpy(), (0.02, 0.98)).tolist()
    shown = np.linspace(0, len(level) - 1, frames).round().astype(int).tolist()
    count, side, margin, top = len(states), 0.95, 2.4, 0.8 if title else 0.45
    width, below = margin + side * frames + 0.3, 3.6
    height = top + side * strips * count + 0.25 * count + below
    figure, axes = _canvas(width, height)
    if title:
        axes.text(width / 2, height - 0.22, title, ha="center", va="center", size=13)
    y = height - top
    axes.text(margin - 0.12, y + 0.06, "noise to signal, σ/α", ha="right", size=11)
    for j, k in enumerate(shown):
        label = f"{level[k]:.3g}" if level[k] >= 10 else f"{level[k]:.2g}"
        axes.text(margin + side * (j + 0.47), y + 0.06, label, ha="center", size=11)
    for i, (name, state) in enumerate(states.items()):
        for strip in range(strips):
            y -= side
            for j, k in enumerate(shown):
                _show(axes, state[k, strip], (margin + side * j, y, 0.94 * side), low, high)
        axes.text(
            margin - 0.12, y + side * strips / 2, name, ha="right", va="center", size=11, color=COLOURS[i]
        )
        y -= 0.25
    _lines(figure, states, level, direction, lines, (width, height, below))
    return figure


def _lines(
    figure: Figure,
    states: Mapping[str, Tensor],
    level: np.ndarray,
    direction: Tensor,
    lines: int,
    size: tuple[float, float, float],
) -> None:
    """A panel a solver: one coordinate of its samples against the noise level."""
    width, height, below = size
    gap, left = 0.25, 0.75
    panel = (width - left - 0.25 - gap * (len(states) - 1)) / len(states)
    values = {name: (s[:, :lines].flatten(2) @ direction).numpy() for name, s in states.items()}
    reach = 1.05 * max(float(np.abs(v).max()) for v in values.values())
    for i, (name, value) in enumerate(values.items()):
        x = left + i * (panel + gap)
        axes = figure.add_axes((x / width, 0.6 / height, panel / width, (below - 1.15) / height))
        axes.plot(level, value, color=COLOURS[i], lw=0.8, alpha=0.75)
        axes.set_xscale("log")
        axes.invert_xaxis()
        axes.set_ylim(-reach, reach)
        axes.margins(x=0.01)
        axes.set_title(name.replace("\n", ", "), size=11, color=COLOURS[i])
        axes.set_xlabel("noise to signal, σ/α  (time of sampling →)", size=10)
        _plain(axes)
        if i:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("first principal component", size=10)


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
        _plain(axes)
    if log:
        panels[-1].set_xscale("log")
        panels[-1].xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panels[-1].xaxis.set_major_formatter("{x:g}")
    panels[-1].set_xlabel(xlabel, size=11)
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
        _plain(axes)
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


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure and axes that fill it, whose units are inches."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.set_axis_off()
    return figure, axes


def _show(axes: Axes, image: Tensor, box: tuple[float, float, float], low: float, high: float) -> None:
    """An image at (x, y), its longer side as given; an axes for each would take seconds."""
    x, y, side = box
    rows, columns = image.shape
    width, height = (side * n / max(rows, columns) for n in (columns, rows))
    shown = AxesImage(
        axes,
        cmap="gray",
        norm=Normalize(low, high),
        extent=(x, x + width, y, y + height),
        interpolation="nearest",
    )
    shown.set_data(image.numpy())
    axes.add_image(shown)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def _grey(value: Any, label: str) -> Tensor:
    if not isinstance(value, Tensor) or value.ndim not in (3, 4) or value.shape[1:-2] not in ((), (1,)):
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{label!r} is {given}: give grey images, a tensor (n, H, W) or (n, 1, H, W)")
    return value.detach().cpu().double().reshape(len(value), *value.shape[-2:])


def _states(path: Tensor, count: int, name: str) -> Tensor:
    if path.ndim not in (4, 5) or len(path) != count:
        raise ValueError(
            f"the path of {name!r} is {tuple(path.shape)}: "
            f"give ({count}, B, H, W), a state for each noise level"
        )
    return torch.stack([_grey(state, name) for state in path])


def _plane(value: Tensor, label: str) -> Tensor:
    if value.ndim != 2 or value.shape[1] != 2:
        raise ValueError(f"{label!r} is {tuple(value.shape)}: give samples of the plane, (n, 2)")
    return value.detach().cpu().double()


def _limits(images: Sequence[Tensor]) -> tuple[float, float]:
    finite = [v[torch.isfinite(v)] for v in images]
    return min(float(v.min()) for v in finite), max(float(v.max()) for v in finite)
