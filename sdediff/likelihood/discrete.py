r"""Log-probabilities of discrete data: bounds from draws of dequantised points, with their errors.

With w the width of a cell and u_k draws of a dequantisation q, the log-weight of a draw is

.. math:: \ell_k = \log p(y(x, u_k)) + d \log w - \log q(u_k \mid x) .

Its mean is a lower bound of log P(x), the integral of the model's density over the cell of x; importance
weighting tightens it over K draws (Burda et al. 2016, arXiv 1509.00519, Eq. 8):

.. math:: E\,\ell \;\le\; E \log \tfrac1K \sum_{k \le K} e^{\ell_k} \;\le\; \log P(x) .

The second holds for weights that are unbiased, so it needs the exact trace: probes are unbiased for log p,
and their exponential is too large on average.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from solvers import Solver
from solvers.noise import Stream, uniform

from ..model import DiffusionModel, solving
from ..run import check_span, rows_of
from .dequantisation import Dequantisation, half_cell, resolve_dequantisation
from .divergence import Divergence
from .engine import choose_divergence, log_likelihood
from .quantisation import Quantisation
from .result import Kind, LogLikelihood

_POINTS = 256  # points of several draws evaluated in one batch
_NAMES = 40  # bits of a sample's name; those above number the draw


@solving
def discrete_log_likelihood(
    model: DiffusionModel,
    x: Tensor,
    quantisation: Quantisation,
    solver: str | Solver = "dopri5",
    *,
    dequantisation: str | Dequantisation = "uniform",
    draws: int = 1,
    importance_weighted: bool = False,
    divergence: Divergence | None = None,
    cond: Any = None,
    seed: int = 0,
    indices: Any = None,
    t_span: tuple[float, float] | None = None,
    **options: Any,
) -> LogLikelihood:
    r"""Lower bound of the log-probability of discrete data, in nats, with its errors.

    The probability of x is the integral over its cell of the density that :func:`log_likelihood` returns. The
    bound is the mean over draws or, importance-weighted, the logarithm of the mean weight, which rises with
    `draws` towards the log-probability itself.

    Args:
        model: The model.
        x: Data on the levels, (n, *data_shape), in data units, floating or integer.
        quantisation: Which levels there are, and their cells.
        solver: A solver of ODEs or its name.
        dequantisation: "uniform", "truncated-normal", or an object: :class:`TruncatedNormal`, what
            :func:`fit_dequantiser` returns, or a :class:`Dequantisation` of your own.
        draws: Number of draws K; two or more give a standard error.
        importance_weighted: Take the logarithm of the mean weight in place of the mean log-weight; the exact
            trace only.
        divergence: As for :func:`log_likelihood`.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of draws and probes. Those of a row are functions of (seed, its name, number of the draw):
            more draws keep the first ones, whatever the batches.
        indices: Names of the samples, (n,) integers below 2^40; 0 .. n-1 by default.
        t_span: (t_min, t_max); the dequantisation's choice by default, reported with the result.
        **options: steps, grid, rtol, atol, nodes, prior, batch_size, on_failure of :func:`log_likelihood`.

    Returns:
        A :class:`LogLikelihood` of kind "probability/lower bound", whose bits_per_dim() takes no width.
        `std_error` has the scatter of the draws (probes included), by the jackknife where they are
        importance-weighted, with draws - 1 degrees of freedom: nan for one draw. `solver_error` is the mean
        over draws, or their mean by weight; `nfe` and `divergence_evaluations` are sums.

    Raises:
        TypeError: If quantisation or dequantisation is none.
        ValueError: If x holds values that are no levels, if draws is not positive, or if importance weighting
            is asked for with random probes.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.GaussianMixture([[4.0, 6.0], [9.0, 5.0]], [2.0, 3.0])
        >>> x = data.sample(4, seed=0).round()
        >>> r = discrete_log_likelihood(data.model(sdediff.VP()), x, Quantisation(levels=17), draws=4)
        >>> str(r.kind), r.bits_per_dim().shape
        ('probability/lower bound', torch.Size([4]))
    """
    _check(model, quantisation, draws, importance_weighted, divergence)
    options |= {"cond": cond, "seed": seed, "indices": indices, "t_span": t_span, "divergence": divergence}
    dequantisation = resolve_dequantisation(dequantisation)
    drawn = draw(model, x, quantisation, solver, dequantisation, draws, **options)
    return combine(*drawn, importance_weighted)


def _check(
    model: DiffusionModel,
    quantisation: Quantisation,
    draws: int,
    importance_weighted: bool,
    divergence: Divergence | None,
) -> None:
    if not isinstance(quantisation, Quantisation):
        raise TypeError(
            f"quantisation={quantisation!r} is no description of levels: give "
            "sdediff.Quantisation(levels=..., low=..., high=...)"
        )
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws={draws!r}: give a whole number of at least 1 (2 for a standard error)")
    exact = choose_divergence(model, divergence).estimator == "exact"
    if importance_weighted and draws > 1 and not exact:
        raise ValueError(
            "importance weighting needs the exact trace, because the exponential of a log-density with "
            "random probes is too large on average and no bound is left: give divergence=sdediff.Exact(), or "
            "importance_weighted=False"
        )


def _floating(model: DiffusionModel, x: Any) -> Any:
    """Integers as the model's floating dtype; anything else as it is."""
    if not isinstance(x, Tensor) or x.is_floating_point():
        return x
    return x.to(torch.get_default_dtype() if model.state_type is None else model.state_type[0])


def draw(
    model: DiffusionModel,
    x: Tensor,
    quantisation: Quantisation,
    solver: str | Solver,
    dequantisation: Dequantisation,
    draws: int,
    *,
    cond: Any,
    seed: int,
    indices: Any,
    t_span: tuple[float, float] | None,
    **options: Any,
) -> tuple[LogLikelihood, Tensor]:
    """Densities of the dequantised points, draw by draw (draws n), and the draws' log-weights (draws, n)."""
    x = model.check_batch(_floating(model, x))
    index = quantisation.index(x)
    if t_span is None and (start := dequantisation.start(model, quantisation)) != model.process.t_min:
        t_span = (start, model.process.t_max)
    tau = half_cell(model, quantisation, check_span(model, t_span)[0]).to(x.device)
    rows, cond = rows_of(len(x), indices), model.expand_condition(cond, len(x), x.device)
    options |= {"seed": seed, "t_span": t_span}
    parts, weights = [], []
    for numbers in torch.arange(draws).split(max(1, _POINTS // len(x))):
        points, log_q = [], []
        for number in numbers.tolist():
            v = uniform(seed, rows, Stream.DEQUANTISE, number, x.shape[1:], x.dtype, x.device)
            u, density = dequantisation.warp(v, quantisation.unit(index), tau)
            points.append(quantisation.point(index, u.to(x.dtype)))
            log_q.append(density)
        c = None if cond is None else torch.cat([cond] * len(numbers))
        names = (rows + (numbers[:, None] << _NAMES)).flatten()
        part = log_likelihood(model, torch.cat(points), solver, cond=c, indices=names, **options)
        log_p = part.log_prob.reshape(len(numbers), -1)
        weights.append(log_p + model.dim * math.log(quantisation.width) - torch.stack(log_q).to(log_p))
        parts.append(replace(part, latent=None))
    return LogLikelihood.join(parts), torch.cat(weights)


def combine(points: LogLikelihood, log_weights: Tensor, importance_weighted: bool) -> LogLikelihood:
    """The bound from the log-weights (K, n) of draws and what is known of their points, draw by draw (K n).

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.eight_gaussians()
        >>> points = data.model(sdediff.VP()).log_likelihood(data.sample(2))
        >>> w = torch.tensor([[0.1], [0.3]]).log()
        >>> round(float(combine(points, w, True).log_prob.exp()), 6)  # the mean weight
        0.2
    """
    draws = len(log_weights)

    def columns(name: str) -> Tensor:
        return getattr(points, name).reshape(draws, -1)

    if importance_weighted:
        value = log_weights.logsumexp(dim=0) - math.log(draws)
        share = log_weights.softmax(dim=0)
        # The jackknife: without draw k the mean weight is (1 - share_k) K/(K-1) of what it was.
        others = torch.log1p(-share.clamp(max=1 - torch.finfo(share.dtype).eps))
        error = ((draws - 1) * others.var(dim=0, correction=0)).sqrt()
    else:
        value, share = log_weights.mean(dim=0), torch.full_like(log_weights, 1 / draws)
        error = (log_weights.var(dim=0, correction=0) / max(draws - 1, 1)).sqrt()
    unknown = torch.full_like(value, math.nan)
    bound = points.kind.estimand == "density" and points.kind.estimator in ("exact", "unbiased")
    return replace(
        points,
        log_prob=value,
        std_error=error if draws > 1 else unknown,
        degrees=torch.full_like(value, draws - 1) if draws > 1 else unknown,
        solver_error=(share * columns("solver_error")).sum(dim=0),
        nfe=columns("nfe").sum(dim=0),
        divergence_evaluations=columns("divergence_evaluations").sum(dim=0),
        status=columns("status").amax(dim=0),
        kind=Kind("probability/lower bound" if bound else "probability/biased"),
        latent=None,
        prior_mismatch=None,
        truncation=None,
    )
