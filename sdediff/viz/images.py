"""Images: in labelled rows, and on their way from noise to data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from torch import Tensor

from .figures import COLOURS, plain


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
        plain(axes)
        if i:
            axes.set_yticklabels([])
        else:
            axes.set_ylabel("first principal component", size=10)


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


def _limits(images: Sequence[Tensor]) -> tuple[float, float]:
    finite = [v[torch.isfinite(v)] for v in images]
    return min(float(v.min()) for v in finite), max(float(v.max()) for v in finite)
