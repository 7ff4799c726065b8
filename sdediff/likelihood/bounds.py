r"""Lower bounds of the log-density that need no path: the noised datum at random noise levels, nothing else.

In canonical coordinates :math:`\tilde x = x/\alpha` with clock :math:`v = \tilde\sigma^2` noising is Brownian
motion, and the reverse SDE with score :math:`s = (D - X)/v` and prior :math:`\pi` at V has, at
:math:`\tilde x` and clock u, a log-density of at least (Song et al. 2021, arXiv 2101.09258, theorem 3; Huang
et al. 2021, arXiv 2106.02808)

.. math:: E \log\pi(X_V) - \tfrac12\int_u^V E\big[|s|^2 + 2\,s\cdot z/\sqrt{v-u}\big]\,dv,
          \qquad X_v = \tilde x + \sqrt{v-u}\,z,

the divergence of s taken by parts. The slack is the Kullback-Leibler divergence of noising from x to the time
reversal of the model's paths that end there: none where s is the score of a diffusion. A Gaussian N with the
model's moments has no slack, so it serves as a control variate,

.. math:: \log N_u(\tilde x) + E\log\frac{\pi}{N_V}(X_V)
          - \tfrac12\int_u^V E\big[\delta\cdot(\delta + 2 s_N + 2 z/\sqrt{v-u})\big]\,dv,
          \qquad \delta = s - s_N,

and Gaussian data have no variance. From clean data, u = 0, the same integrand is
:math:`(|x-D|^2-|x-D_N|^2)/v^2`, draw by draw: then this is the I-MMSE identity (Kong et al. 2023, arXiv
2302.03792). The integral over ln v is taken at one random point in each of the cells of a rule that
clusters where modes are decided, each z with both signs, which leaves :math:`z^T \nabla s\,z` where
1/sqrt(v-u) diverges.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from solvers import Noise, Status, Stream
from solvers.active import wide
from solvers.noise import uniform

from ..model import Condition, DiffusionModel, solving
from ..prior import Moments, Prior
from ..run import check_span, chunks, rows_of
from .nodes import CENTRE, data_scale
from .quadrature import clustered_rule
from .result import Kind, LogLikelihood

CELLS = 16  # of the clock; each group of draws has one in each


@solving
def elbo(
    model: DiffusionModel,
    x: Tensor,
    *,
    draws: int = 256,
    cond: Any = None,
    seed: int = 0,
    indices: Any = None,
    t_span: tuple[float, float] | None = None,
    prior: str | Prior | None = None,
    batch_size: int | None = None,
) -> LogLikelihood:
    r"""Lower bound of the reverse SDE's log-density at data, unbiased, with its standard error.

    It bounds the density that the reverse SDE (eta = 1) has at t_min, at :math:`\tilde x = x`: the density
    that :func:`log_likelihood` evaluates for the probability-flow ODE. For the score of a diffusion the two
    are equal and so is the bound; a learned score's differ. There is no solver and no trace.

    Args:
        model: The model.
        x: Data in data units, (n, *data_shape).
        draws: Noises a row, a multiple of 16: each is used with both signs, so that a row takes 2 draws
            evaluations. Every 16, one a cell of the clock, make an independent estimate, and the scatter of
            these makes the standard error, so 16 draws alone have none.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of the noise.
        indices: Names of the samples, (n,) integers, for the noise; 0 .. n-1 by default.
        t_span: (t_min, t_max) in place of the process's; reported.
        prior: "matched", "standard" or an object with log_prob, in place of the model's; reported.
        batch_size: Estimates made at once, of 32 evaluations each; about a million numbers by default.

    Returns:
        A :class:`LogLikelihood` of kind "density/lower bound".

    Raises:
        ValueError: If x has another shape or NaN, or another argument does not fit.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.eight_gaussians(dtype=torch.float64)
        >>> x = data.sample(3, seed=0)
        >>> r = elbo(data.model(sdediff.VP()), x)
        >>> error = (r.log_prob - data.log_prob(None, x, None)).abs()
        >>> bool((error < 5 * r.std_error).all())
        True
    """
    options = _Options(draws, cond, seed, indices, t_span, prior, batch_size)
    return _bound(model, x, options, clean=False)


@solving
def i_mmse(
    model: DiffusionModel,
    x: Tensor,
    *,
    draws: int = 256,
    cond: Any = None,
    seed: int = 0,
    indices: Any = None,
    t_span: tuple[float, float] | None = None,
    prior: str | Prior | None = None,
    batch_size: int | None = None,
) -> LogLikelihood:
    r"""Log-density of clean data from the errors of the denoiser, unbiased, with its standard error.

    With :math:`\gamma = 1/\tilde\sigma^2` and the Gaussian of the model's moments,

    .. math:: \log N(x; m, C) + \tfrac12\int E\big[|x - D_N|^2 - |x - D|^2\big]\,d\gamma,

    which is log p_0(x) for the exact denoiser (Kong et al. 2023, arXiv 2302.03792) and for any other a
    lower bound of the log-density of a reverse SDE (see the module). What lies outside t_span is estimated:
    below t_min the score's difference from the Gaussian's is kept as it is at t_min, an error of order
    sigma^4 for densities smooth at that scale; beyond t_max the prior stands for the noised data. So the
    estimand is an "extrapolated density", whose `truncation` is 0.

    Args:
        model: The model.
        x: Data in data units, (n, *data_shape).
        draws: As for :func:`elbo`; the draws themselves are others, so that the two are independent.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of the noise.
        indices: Names of the samples, (n,) integers, for the noise; 0 .. n-1 by default.
        t_span: (t_min, t_max) in place of the process's; reported.
        prior: "matched", "standard" or an object with log_prob, in place of the model's; reported.
        batch_size: Estimates made at once, of 32 evaluations each; about a million numbers by default.

    Returns:
        A :class:`LogLikelihood` of kind "extrapolated density/lower bound".

    Raises:
        ValueError: If x has another shape or NaN, or another argument does not fit.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.Gaussian([1.0, -1.0], [[2.0, 0.5], [0.5, 1.0]])
        >>> x = data.sample(3, seed=0).double()
        >>> r = i_mmse(data.model(sdediff.VP()), x, draws=32)
        >>> bool(((r.log_prob - data.log_prob(None, x, None)).abs() < 1e-9).all())
        True
    """
    options = _Options(draws, cond, seed, indices, t_span, prior, batch_size)
    return _bound(model, x, options, clean=True)


@dataclass(frozen=True)
class _Options:
    draws: int
    cond: Any
    seed: int
    indices: Any
    t_span: tuple[float, float] | None
    prior: str | Prior | None
    batch_size: int | None

    @property
    def groups(self) -> int:
        """Independent estimates a row."""
        if isinstance(self.draws, bool) or self.draws < CELLS or self.draws % CELLS:
            raise ValueError(
                f"draws={self.draws}: give a multiple of {CELLS}, one draw a cell of the clock, and at least "
                f"{2 * CELLS} for a standard error"
            )
        return int(self.draws) // CELLS


@dataclass(frozen=True)
class GaussianReference:
    """The Gaussian of the model's moments in canonical coordinates, N(0, I) where they are unknown."""

    moments: Moments

    @classmethod
    def of(cls, model: DiffusionModel, floor: float = 0.0) -> GaussianReference:
        """With no variance below `floor`."""
        m = model.moments
        if m is None:
            m = Moments.of(model.shift.new_zeros(model.dim), model.shift.new_ones(()))
        return cls(Moments(m.mean, m.basis, m.variances.clamp(min=floor), m.rest.clamp(min=floor)))

    def log_prob(self, x: Tensor, v: float) -> Tensor:
        """Log-density of the noised Gaussian at x (B, d), (B,)."""
        return self.moments.noised(1.0, math.sqrt(v)).log_prob(x)

    def score(self, x: Tensor, v: Tensor) -> Tensor:
        """Score at x (*, d) of the Gaussian noised to v (*, 1)."""
        mean, basis, variances, rest = (
            getattr(self.moments, f).to(x) for f in ("mean", "basis", "variances", "rest")
        )
        centred = mean - x
        if not len(basis):  # diagonal
            return centred / (variances + v)
        inside = centred @ basis
        if len(variances) == len(mean):
            return (inside / (variances + v)) @ basis.T
        return centred / (rest + v) + (inside * (1 / (variances + v) - 1 / (rest + v))) @ basis.T


def excess(
    model: DiffusionModel, reference: GaussianReference, x: Tensor, s: Tensor, cond: Condition
) -> Tensor:
    """The model's score less the reference's at x (R, d), canonical, noise levels s = ln sigma~ (R,)."""
    t = model.process.time(-s)
    alpha, level = model.process.alpha(t)[:, None].to(x), torch.exp(2 * s)[:, None].to(x)
    z = alpha * x
    if model.state_type is not None:
        z = z.to(model.state_type[0])
    rounded = z.to(x) / alpha  # where the network really looks
    denoised = model.problem(0.0, cond).denoise(t, z.view(-1, *model.data_shape)).flatten(1).to(x)
    return (denoised - rounded) / level - reference.score(rounded, level)


def prior_excess(
    model: DiffusionModel, reference: GaussianReference, prior: Prior, t: float, x: Tensor
) -> Tensor:
    """The prior's log-density less the reference's at x (*, d), canonical, at time t; (*)."""
    alpha, points = float(model.process.alpha(_time(t))), x.flatten(0, -2)
    ratio = prior.log_prob(alpha * points).to(x) - reference.log_prob(points, _clock(model, t)).to(x)
    return ratio.view(x.shape[:-1]) + model.dim * math.log(alpha)


def _clock(model: DiffusionModel, t: float) -> float:
    """The clock v at time t."""
    return float(torch.exp(-2 * model.process.lam(_time(t))))


def _time(t: float) -> Tensor:
    return torch.tensor(t, dtype=torch.float64)


@dataclass(frozen=True)
class _Estimator:
    """Independent estimates of what a bound adds to the reference's log-density.

    Attributes:
        start: Clock u at which the datum is taken: v at t_min, or 0.
        floor: ln sigma~ at t_min.
        edges: Of the cells in s, rising, (CELLS + 1,). Where s < floor, v goes on along the tangent of
            exp(2 s), to 0 at floor - 1/2.
        series: Which of two disjoint sets of draws.
    """

    model: DiffusionModel
    reference: GaussianReference
    prior: Prior
    span: tuple[float, float]
    start: float
    floor: float
    edges: Tensor
    series: int
    seed: int

    def estimate(self, x: Tensor, rows: Tensor, group: Tensor, place: Tensor, cond: Condition) -> Tensor:
        """One estimate of each row, (R,).

        Args:
            x: Data in model units, (R, d).
            rows: Names of the samples, (R,).
            group: Number of the estimate, (R,).
            place: Where in its cell each draw lies, in (0, 1), (R,).
            cond: Conditions, (R, ...), or None.
        """
        cells = torch.arange(CELLS, device=x.device)[:, None]
        noise = Noise(self.seed, rows, (self.model.dim,), x.dtype, x.device)
        z = noise.each(Stream.PERTURB, 2 * (CELLS * group + cells) + self.series)
        z = torch.stack([z, -z])  # (2, CELLS, R, d)
        width = self.edges.diff()[:, None]
        s = self.edges[:-1, None] + width * place
        level = torch.exp(2 * s.clamp(min=self.floor))
        v = level * (1 + 2 * (s - self.floor).clamp(max=0))
        root = (v - self.start).sqrt()[..., None]
        points = x + root * z
        names = torch.arange(len(x), device=x.device).repeat(2 * CELLS)
        delta = excess(
            self.model,
            self.reference,
            points.flatten(0, 2),
            s.clamp(min=self.floor).expand(2, -1, -1).flatten(),
            None if cond is None else cond[names],
        ).view_as(points)
        other = delta + 2 * self.reference.score(points, v[..., None]) + 2 * z / root
        integral = (level * width * (delta * other).sum(dim=3)).mean(dim=0).sum(dim=0)
        t = self.span[1]
        far = x + math.sqrt(_clock(self.model, t) - self.start) * z
        return prior_excess(self.model, self.reference, self.prior, t, far).mean(dim=(0, 1)) - integral


def _bound(model: DiffusionModel, x: Tensor, options: _Options, *, clean: bool) -> LogLikelihood:
    """A bound for data at t_min, or for clean data."""
    state, groups = model.as_state(x), options.groups
    z = state.flatten(1).to(wide(state))
    n, span = len(z), check_span(model, options.t_span)
    rows, cond = rows_of(n, options.indices), model.expand_condition(options.cond, n, z.device)
    low, high = (-float(model.process.lam(_time(t))) for t in span)
    noise = math.exp(2 * low)
    centre = math.log(data_scale(model) * CENTRE)
    edges = clustered_rule(low - 0.5 if clean else low, high, centre, CELLS + 1)[0]
    start, reference = 0.0 if clean else noise, GaussianReference.of(model, noise if clean else 0.0)
    prior = model.prior_at(span[1], options.prior)
    estimator = _Estimator(
        model, reference, prior, span, start, low, torch.from_numpy(edges).to(z), int(clean), options.seed
    )
    place = uniform(options.seed, rows, Stream.CLOCK, int(clean), (groups,), z.dtype, z.device).flatten()
    who = torch.arange(n).repeat_interleave(groups)
    number = torch.arange(groups).repeat(n).to(z.device)
    parts = []
    for part in chunks(n * groups, 2 * CELLS * model.dim, options.batch_size):
        here = who[part]
        c = None if cond is None else cond[here.to(cond.device)]
        parts.append(estimator.estimate(z[here.to(z.device)], rows[here], number[part], place[part], c))
    estimates = torch.cat(parts).view(n, groups) + reference.log_prob(z, start)[:, None].to(z)
    return _result(model, options, estimates, prior, span, clean)


def _result(
    model: DiffusionModel,
    options: _Options,
    estimates: Tensor,
    prior: Prior,
    span: tuple[float, float],
    clean: bool,
) -> LogLikelihood:
    """The mean of independent estimates (n, groups), and what their scatter says."""
    n, groups = estimates.shape
    value = estimates.mean(dim=1) - model.log_scale.to(estimates)
    zero, unknown = torch.zeros_like(value), torch.full_like(value, math.nan)
    failed = ~torch.isfinite(value)
    several = groups > 1
    return LogLikelihood(
        log_prob=torch.where(failed, math.nan, value),
        std_error=estimates.std(dim=1) / math.sqrt(groups) if several else unknown,
        solver_error=zero,
        degrees=zero + (groups - 1) if several else unknown,
        nfe=torch.full((n,), 2 * options.draws, device=value.device),
        divergence_evaluations=torch.zeros(n, dtype=torch.int64, device=value.device),
        status=torch.where(failed, int(Status.NON_FINITE), int(Status.OK)),
        kind=Kind("extrapolated density/lower bound" if clean else "density/lower bound"),
        prior=prior.name,
        t_span=span,
        dim=model.dim,
        truncation=zero if clean else None,
    )
