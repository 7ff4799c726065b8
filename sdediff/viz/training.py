"""A run in pictures: samples of any shape, the error by noise level, losses."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from .densities import scatter_2d
from .figures import COLOURS, plain

if TYPE_CHECKING:
    from sdediff.training import NoiseLevels

#: Columns or signals shown of wide data.
_MOST = 12


def samples(x: Tensor, *, data: Tensor | None = None, title: str = "") -> Figure:
    """Samples, each kind in its way.

    Images (n, 1 or 3, H, W) are tiled, points of the plane (n, 2) scattered, signals (n, C, L) drawn as
    lines, and of other data the columns' histograms are shown, over those of `data` where given.

    Args:
        x: Samples, (n, *E).
        data: Data to compare with, (m, *E).
        title: Title of the figure.

    Returns:
        The figure.

    Raises:
        ValueError: If there are none.

    Example:
        >>> len(samples(torch.randn(9, 3)).axes)  # a histogram a column
        3
    """
    if x.ndim < 2 or len(x) == 0:
        raise ValueError(f"samples of shape {tuple(x.shape)} cannot be shown: give (n, ...) with n > 0")
    x = x.detach().float().cpu()
    if x.ndim == 4 and x.shape[1] in (1, 3):
        return _tiles(x, title)
    if x.shape[1:] == (2,):
        groups = {"samples": x} | ({} if data is None else {"data": data.detach().float().cpu()})
        return scatter_2d(groups, title=title)
    if x.ndim == 3:
        return _signals(x, title)
    return _histograms(x.flatten(1), None if data is None else data.detach().float().cpu().flatten(1), title)


def noise_levels(levels: NoiseLevels | Mapping[str, NoiseLevels], *, title: str = "") -> Figure:
    """Held-out error of the noise estimate by noise level; 1 is what guessing no noise earns.

    Args:
        levels: Of a run (``fit(...).noise_levels``), or of several by label.
        title: Title of the figure.

    Example:
        >>> from sdediff.training import NoiseLevels
        >>> figure = noise_levels(NoiseLevels(torch.logspace(-2, 1, 4), torch.tensor([0.9, 0.4, 0.1])))
        >>> figure.axes[0].get_xscale()
        'log'
    """
    several = levels if isinstance(levels, Mapping) else {"": levels}
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for colour, (label, one) in zip(COLOURS, several.items(), strict=False):
        axes.stairs(one.eps_error.cpu().numpy(), one.edges.cpu().numpy(), color=colour, label=label or None)
    axes.set(xscale="log", ylim=(0, None), title=title)
    axes.set_xlabel("noise to signal, sigma/alpha", size=10)
    axes.set_ylabel("squared error of the noise, an element", size=10)
    axes.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    if len(several) > 1:
        axes.legend(frameon=False, fontsize=9)
    plain(axes)
    return figure


def losses(history: Sequence[Mapping[str, Any]], *, title: str = "") -> Figure:
    """Training and validation loss over the steps of ``fit(...).history``.

    Example:
        >>> lines = [{"step": 10, "loss": 1.0, "val_loss": None}, {"step": 20, "loss": 0.5, "val_loss": 0.6}]
        >>> figure = losses(lines)
        >>> [len(line.get_xdata()) for line in figure.axes[0].get_lines()]
        [2, 1]
    """
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for colour, key, label in zip(COLOURS, ("loss", "val_loss"), ("training", "held out"), strict=False):
        points = [(line["step"], line[key]) for line in history if line.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), color=colour, label=label)
    axes.set(title=title)
    axes.set_xlabel("step", size=10)
    axes.set_ylabel("loss", size=10)
    axes.legend(frameon=False, fontsize=9)
    plain(axes)
    return figure


def _tiles(x: Tensor, title: str) -> Figure:
    """Images in a square of them; black and white are the values that leave 0.5 % beyond."""
    columns = math.ceil(math.sqrt(len(x)))
    lines = math.ceil(len(x) / columns)
    shown = x.nan_to_num()
    ends = (0.005 * shown.numel(), 0.995 * shown.numel())
    low, high = (float(shown.flatten().kthvalue(min(max(1, int(k)), shown.numel())).values) for k in ends)
    tiles = torch.ones(lines * columns, x.shape[1], x.shape[2] + 1, x.shape[3] + 1)
    tiles[: len(x), :, :-1, :-1] = ((shown - low) / max(high - low, 1e-12)).clamp(0, 1)
    grid = tiles.reshape(lines, columns, *tiles.shape[1:]).permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    side = 0.55 * columns
    figure = Figure(figsize=(side, side * lines / columns + (0.35 if title else 0)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(grid.squeeze(-1).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    if title:
        figure.suptitle(title, size=11)
    return figure


def _signals(x: Tensor, title: str) -> Figure:
    figure = Figure(figsize=(6, 1.1 * min(len(x), _MOST) / 2 + 0.5), layout="constrained")
    panels = figure.subplots(math.ceil(min(len(x), _MOST) / 2), 2, sharex=True, sharey=True, squeeze=False)
    for axes, signal in zip(panels.flat, x, strict=False):
        for colour, channel in zip(COLOURS, signal, strict=False):
            axes.plot(channel.numpy(), color=colour, linewidth=0.9)
        plain(axes)
    figure.suptitle(title, size=11)
    return figure


def _histograms(x: Tensor, data: Tensor | None, title: str) -> Figure:
    count = min(x.shape[1], _MOST)
    columns = min(count, 4)
    lines = math.ceil(count / columns)
    figure = Figure(figsize=(2.2 * columns, 1.8 * lines + 0.3), layout="constrained")
    panels: list[Axes] = list(figure.subplots(lines, columns, squeeze=False).flat)
    for j, axes in enumerate(panels[:count]):
        column = x[:, j][torch.isfinite(x[:, j])]
        own: dict[str, Any] = {"density": True, "bins": 40, "histtype": "step"}
        if data is not None:
            axes.hist(data[:, j].numpy(), color=COLOURS[1], label="data", **own)
        axes.hist(column.numpy(), color=COLOURS[0], label="samples", **own)
        axes.set_title(f"column {j}", size=9)
        axes.set_yticks([])
        plain(axes)
    for axes in panels[count:]:
        axes.remove()
    if data is not None:
        panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(title, size=11)
    return figure
