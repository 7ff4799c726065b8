"""Fitting a variational dequantisation to a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from solvers.noise import Stream, uniform

from ..model import DiffusionModel
from ..networks.blocks import CONVOLUTIONS
from ..run import check_span
from ..training.sources import Shuffle, isolated_rng, step_seed
from .dequantisation import TruncatedNormal, Variational, half_cell
from .quantisation import Quantisation


class CellNetwork(nn.Module):
    """A shift and a log-scale an entry from the levels: dense layers for vectors, convolutions for images.

    The shift is ``a(x) + b(x) x``: about a mode, the slope of log p is linear in x. The last layer starts at
    zero, so that the dequantisation starts uniform.

    Args:
        data_shape: Shape of a datum: (d,), or channels and up to three axes.
        hidden: Width of the two hidden layers.

    Example:
        >>> import torch
        >>> CellNetwork((1, 8, 8), hidden=4)(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 2, 1, 8, 8])
    """

    def __init__(self, data_shape: tuple[int, ...], hidden: int = 64) -> None:
        super().__init__()
        axes, entries = len(data_shape) - 1, data_shape[0]
        if axes not in (0, *CONVOLUTIONS):
            raise ValueError(f"data_shape={data_shape} has {axes + 1} axes: give a network= of your own")

        def layer(inputs: int, outputs: int) -> nn.Module:
            return (
                nn.Linear(inputs, outputs) if not axes else CONVOLUTIONS[axes](inputs, outputs, 3, padding=1)
            )

        last = layer(hidden, 3 * entries)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.layers = nn.Sequential(layer(entries, hidden), nn.SiLU(), layer(hidden, hidden), nn.SiLU(), last)

    def forward(self, level: Tensor) -> Tensor:
        """Levels scaled to [-1, 1], (B, *E), to (B, 2, *E)."""
        shift, slope, log_scale = self.layers(level).reshape(len(level), 3, *level.shape[1:]).unbind(dim=1)
        return torch.stack([shift + slope * level, log_scale], dim=1)


def fit_dequantiser(
    model: DiffusionModel,
    x: Tensor,
    quantisation: Quantisation,
    *,
    steps: int = 1000,
    batch_size: int = 64,
    lr: float = 3e-3,
    network: nn.Module | None = None,
    t_min: float | None = None,
    noise: float = 0.15,
    cond: Any = None,
    seed: int = 0,
) -> Variational:
    r"""Fit a density over the cells to a model, by raising the bound that it gives.

    .. math:: \max_q\; E_{x,\,u \sim q}\,[\log p(y(x, u)) - \log q(u \mid x)]

    The draw is a differentiable function of the network's output, and the gradient of log p at it is the
    model's score at little noise: no ODE is solved. At t_min itself the error of a trained network, divided
    by the noise, would drown the slope of log p, so the score is taken where the noise is `noise` of a cell.
    That is not quite the gradient of the density that the probability flow has; the bound stays one, whatever
    the fit, but compare it with :class:`Uniform` on held-out data.

    Args:
        model: The model; it is not changed.
        x: Data on the levels, (n, *data_shape).
        quantisation: Which levels there are, and their cells.
        steps: Steps of Adam, whose rate falls to zero by a cosine.
        batch_size: Rows of a step.
        lr: Its first rate.
        network: Maps levels scaled to [-1, 1] to (shift, log-scale), (B, *E) -> (B, 2, *E), and is trained in
            place; a :class:`CellNetwork` when left out.
        t_min: The time whose density is bounded; the process's own when left out.
        noise: Noise at which the score is taken, in widths of a cell, unless that of t_min is more.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of weights, batches and draws.

    Returns:
        The :class:`Variational` dequantisation, for :func:`discrete_log_likelihood`.

    Raises:
        ValueError: If x holds values that are no levels, or an argument does not fit.

    Example:
        >>> import torch, sdediff
        >>> data = sdediff.reference.GaussianMixture([[4.0, 6.0], [9.0, 5.0]], [1.0, 0.5])
        >>> x, cells = data.sample(100, seed=0).floor(), Quantisation(levels=17)
        >>> q = fit_dequantiser(data.model(sdediff.VP()), x, cells, steps=20)
        >>> u, log_q = q.warp(torch.full((1, 2), 0.5), torch.zeros(1, 2), torch.ones(()))
    """
    if steps < 1 or batch_size < 1 or not lr > 0 or not noise > 0:
        raise ValueError(
            f"steps={steps}, batch_size={batch_size}, lr={lr}, noise={noise}: give positive numbers"
        )
    x = model.check_batch(x)
    index, cond = quantisation.index(x), model.expand_condition(cond, len(x), x.device)
    if network is None:
        with isolated_rng(seed):
            network = CellNetwork(model.data_shape)
    network = network.to(x.device)
    start = check_span(model, None if t_min is None else (t_min, model.process.t_max))[0]
    near = max(start, TruncatedNormal(tau=0.5 / noise).start(model, quantisation))
    tau, q = half_cell(model, quantisation, start).to(x.device), Variational(network, t_min)
    optimiser = torch.optim.Adam(network.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    order = Shuffle(len(x), seed)
    with torch.inference_mode(False), torch.enable_grad():
        for step in range(steps):
            rows = order(step * batch_size, batch_size).to(x.device)
            names, key = torch.arange(batch_size), step_seed(seed, "dequantiser", step)
            v = uniform(key, names, Stream.DEQUANTISE, 0, x.shape[1:], x.dtype, x.device)
            u, log_q = q.warp(v, quantisation.unit(index[rows]), tau)
            y = quantisation.point(index[rows], u)
            score = _score(model, y.detach().to(x.dtype), near, None if cond is None else cond[rows])
            loss = (log_q - (score.to(y) * y).flatten(1).sum(dim=1)).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    return Variational(network.eval().requires_grad_(False), t_min)


@torch.no_grad()
def _score(model: DiffusionModel, y: Tensor, t: float, cond: Any) -> Tensor:
    """Gradient of the log-density of x_0 + (sigma/alpha) eps at y: alpha times the score at alpha y."""
    alpha = float(model.process.alpha(t))
    return alpha * model.score(model.to_data(alpha * model.to_model(y)), t, cond)
