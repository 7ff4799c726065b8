r"""The variational bound of the chain, its three terms kept apart.

.. math:: \log p(x_0) \ge E_q \Big[\underbrace{\log p(x_0|x_1)}_{decoder}
          - \sum_{k=2}^T \underbrace{KL\big(q(x_{k-1}|x_k,x_0)\,\|\,p(x_{k-1}|x_k)\big)}_{transitions}
          \Big] - \underbrace{KL\big(q(x_T|x_0)\,\|\,\pi\big)}_{prior}

(Ho, Jain & Abbeel 2020, arXiv 2006.11239, Eq. 5). With the error :math:`e = x_0 - D(x_k)` of the denoiser and
the posterior's variance :math:`\tilde\beta_k`, each transition is

.. math:: \tfrac12 \sum_i \Big[\frac{c_0^2 e_i^2 + \tilde\beta_k}{\Sigma_{k,i}} - 1
          + \log\frac{\Sigma_{k,i}}{\tilde\beta_k}\Big]

and the decoder's Gaussian density has the same form. Its mean over the noise of x_k is estimated: exactly,
where the denoiser is that of the Gaussian with the model's moments, whose mean error is known; only what a
model's own error has in excess of that one's at the same noise is left to chance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from solvers import Noise, Status, Stream
from solvers.active import wide
from solvers.noise import uniform
from solvers.problems import expand

from ..likelihood.bounds import GaussianReference
from ..likelihood.quantisation import Quantisation
from ..likelihood.result import Kind, LogLikelihood
from ..model import Condition, DiffusionModel, solving
from ..prior import GaussianPrior, Prior, StandardPrior
from ..reference.discretised import log_normal_mass
from ..run import chunks, rows_of
from .reverse import ReverseChain


@dataclass(frozen=True)
class ChainBound:
    """A variational bound and its terms, in nats; every tensor has a row a sample, float64.

    Attributes:
        prior: Divergence of q(x_T | x_0) from the prior, (n,).
        transitions: Divergences of q(x_{k-1} | x_k, x_0) from the model's steps, for k = 2 .. T, (n, T - 1).
            Of a bound by some terms, what was not drawn has the value of the Gaussian with the model's
            moments, and what was drawn stands for its neighbours too: each is unbiased.
        decoder: Log-density or log-probability of the data given x_1, (n,).
        likelihood: The bound, ``decoder - transitions.sum(1) - prior``, as a :class:`sdediff.LogLikelihood`:
            with standard errors, intervals, means.
    """

    prior: Tensor
    transitions: Tensor
    decoder: Tensor
    likelihood: LogLikelihood

    @property
    def total(self) -> Tensor:
        """The bound in nats, (n,)."""
        return self.likelihood.log_prob

    @property
    def std_error(self) -> Tensor:
        """Its standard error from the draws, (n,); nan for a single one."""
        return self.likelihood.std_error

    @property
    def kind(self) -> Kind:
        """What it bounds: "density/lower bound" or "probability/lower bound"."""
        return self.likelihood.kind

    def bits_per_dim(self, bin_width: float | None = None) -> Tensor:
        """Bits per dimension, (n,), as :meth:`sdediff.LogLikelihood.bits_per_dim`."""
        return self.likelihood.bits_per_dim(bin_width)

    def __repr__(self) -> str:
        terms = (self.prior.mean(), self.transitions.sum(dim=1).mean(), self.decoder.mean())
        prior, transitions, decoder = (f"{float(value):.5g}" for value in terms)
        return (
            f"ChainBound({len(self.total)} rows, mean {float(self.total.mean()):.6g} nats = decoder "
            f"{decoder} - transitions {transitions} - prior {prior}, kind={str(self.kind)!r})"
        )


@solving
def bound(
    model: DiffusionModel,
    reverse: ReverseChain,
    x: Tensor,
    *,
    quantisation: Quantisation | None = None,
    terms: int | None = None,
    draws: int = 2,
    cond: Any = None,
    seed: int = 0,
    indices: Any = None,
    prior: str | Prior | None = None,
    batch_size: int | None = None,
) -> ChainBound:
    r"""The variational bound of data under a reverse chain, unbiased, with its standard error.

    Args:
        model: The model of the chain.
        reverse: The reverse chain.
        x: Data in data units, (n, *data_shape).
        quantisation: Of data on levels: the decoder is then the integral of its Gaussian over the cell of
            each entry, the outermost cells open (Ho et al., Eq. 13, where ``centred=True``), and the middle
            of the cell is what is noised.
        terms: Number of transitions to evaluate, one at random in each of as many equal shares of 2 .. T; all
            by default.
        draws: Independent estimates of each; two or more give a standard error.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of the noise.
        indices: Names of the samples, (n,) integers, for the noise; 0 .. n-1 by default.
        prior: "matched", "standard" or an object with log_prob, in place of the model's; reported.
        batch_size: Evaluations made at once; about a million numbers by default.

    Returns:
        A :class:`ChainBound` of kind "density/lower bound", in nats per data unit, or, with levels,
        "probability/lower bound", whose bits_per_dim() takes no width. The density is that of the chain's own
        data.

    Raises:
        ValueError: If x has another shape or NaN, holds values that are no levels, or a number does not fit.

    Example:
        >>> import sdediff
        >>> from sdediff.chain import Chain
        >>> data = sdediff.reference.eight_gaussians(dtype=torch.float64)
        >>> model, x = data.model(sdediff.VP()), data.sample(100, seed=0)
        >>> r = Chain.of(sdediff.VP(), 200).bound(model, x)
        >>> r.transitions.shape, bool(torch.allclose(r.decoder - r.transitions.sum(1) - r.prior, r.total))
        (torch.Size([100, 199]), True)
        >>> 0 < float((data.log_prob(None, x, None) - r.total).mean()) < 0.15
        True
    """
    if quantisation is not None and not isinstance(quantisation, Quantisation):
        raise TypeError(
            f"quantisation={quantisation!r} is no description of levels: give "
            "sdediff.Quantisation(levels=..., low=..., high=...)"
        )
    strata = _strata(reverse.chain.steps, terms, draws)
    x = _floating(model, x)
    index = None if quantisation is None else quantisation.index(model.check_batch(x))
    if quantisation is not None and index is not None:
        x = quantisation.point(index, torch.full_like(index, 0.5))
    errors = Errors.of(model, reverse, x, cond, seed, indices, batch_size)
    transitions, spread = _transitions(errors, strata, draws)
    decoder = _density(errors, draws) if index is None else _mass(errors, draws, quantisation, index)
    held = model.prior_at(float(reverse.times[-1]), prior)
    ends = _prior(errors, held, draws)
    likelihood = _result(errors, transitions, spread, decoder, ends, strata)
    kind = Kind(f"{'density' if index is None else 'probability'}/lower bound")
    span = (float(reverse.times[0]), float(reverse.times[-1]))
    return ChainBound(
        ends.mean(dim=1),
        transitions,
        decoder.mean(dim=1),
        LogLikelihood(**likelihood, kind=kind, prior=held.name, t_span=span, dim=model.dim),
    )


@solving
def fit_variances(
    model: DiffusionModel,
    reverse: ReverseChain,
    x: Tensor,
    *,
    per_entry: bool = False,
    draws: int = 1,
    cond: Any = None,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    r"""The variances of the reverse steps that make the bound of data largest, given the model's means.

    .. math:: \Sigma_k = \tilde\beta_k + c_0^2\,E\big[(x_0 - D(x_k))_i^2\big]

    averaged over data and noise, and over entries i unless `per_entry`. For the exact denoiser they are the
    optimal ones of Bao et al. (2022), arXiv 2201.06503, theorem 1, who estimate them from the size of the
    score; for a learned one this form, from its errors, stays the best (Bao et al. 2022, arXiv 2206.07309,
    Eq. 13).

    Args:
        model: The model of the chain.
        reverse: The reverse chain; its own variances do not matter.
        x: Data in data units, (n, *data_shape), such as some hundred rows of the training data.
        per_entry: Whether each entry of a datum has variances of its own.
        draws: Noises a row and step.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of the noise.
        batch_size: Evaluations made at once.

    Returns:
        (T,) or (T, *data_shape), float64, in the chain's units.

    Raises:
        ValueError: If x has another shape or NaN.

    Example:
        >>> import sdediff
        >>> from sdediff.chain import Chain
        >>> data = sdediff.reference.eight_gaussians()
        >>> model, chain = data.model(sdediff.VP()), Chain.of(sdediff.VP(), 10)
        >>> best = chain.reverse(model).fit_variances(data.sample(200, seed=1))
        >>> x = data.sample(200, seed=2)
        >>> gain = chain.bound(model, x, variance=best).total - chain.bound(model, x).total
        >>> bool(gain.mean() > 0.1)
        True
    """
    errors = Errors.of(model, reverse, x, cond, seed, None, batch_size)
    n, steps, dim = len(errors.z), reverse.chain.steps, model.dim
    total = errors.z.new_zeros(steps, dim)
    k = torch.arange(1, steps + 1).repeat(n * draws)
    row = torch.arange(n).repeat_interleave(steps * draws)
    draw = torch.arange(draws).repeat_interleave(steps).repeat(n)
    for part in chunks(len(k), dim, batch_size):
        e, control = errors.pair(row[part], k[part], draw[part])[1:]
        total.index_add_(0, (k[part] - 1).to(total.device), e.square() - control.square())
    squares = total.cpu() / (n * draws)
    for part in chunks(n, steps * dim, batch_size):
        squares += errors.reference_squares(errors.z[part], torch.arange(1, steps + 1)).sum(dim=0).cpu() / n
    squares = squares.clamp(min=0) if per_entry else squares.mean(dim=1, keepdim=True)
    posterior = reverse.chain.posterior(torch.arange(1, steps + 1))
    table = posterior.std.square()[:, None] + posterior.c_0.square()[:, None] * squares
    table = table.maximum(1e-6 * reverse.lower[:, None])  # of a constant entry nothing would be left at k = 1
    return table.reshape(steps, *model.data_shape) if per_entry else table[:, 0]


@dataclass(frozen=True)
class Errors:
    """Errors of the denoiser at noised data, and those of the Gaussian with the model's moments.

    Attributes:
        reverse: The reverse chain.
        z: Data in model units, (n, d), float64 where the device has it.
        rows: Names of the samples, (n,).
        cond: Conditions, (n, ...), or None.
        seed: Seed of the noise.
        batch_size: Evaluations made at once.
        gaussian: The Gaussian.
    """

    reverse: ReverseChain
    z: Tensor
    rows: Tensor
    cond: Condition
    seed: int
    batch_size: int | None
    gaussian: GaussianReference

    @classmethod
    def of(
        cls,
        model: DiffusionModel,
        reverse: ReverseChain,
        x: Tensor,
        cond: Any,
        seed: int,
        indices: Any,
        batch_size: int | None,
    ) -> Errors:
        """Check what a caller asked for."""
        state = model.check_batch(x)
        z = model.to_model(state.to(wide(state))).flatten(1)
        cond = model.expand_condition(cond, len(z), z.device)
        return cls(reverse, z, rows_of(len(z), indices), cond, seed, batch_size, GaussianReference.of(model))

    @cached_property
    def clock(self) -> Tensor:
        """(sigma/alpha)^2 at k = 1 .. T."""
        return torch.exp(-2 * self.reverse.chain.lam[1:])

    @cached_property
    def control(self) -> Tensor:
        """Variances that the Gaussian's errors are weighed with, (T, 1) or (T, d)."""
        return self.reverse.table.reshape(self.reverse.chain.steps, -1)

    def noise(self, row: Tensor, k: Tensor, draw: Tensor) -> Tensor:
        """The noise of x_k, (P, d)."""
        names, counters = self.rows[row], draw * (self.reverse.chain.steps + 1) + k
        source = Noise(self.seed, names, (self.z.shape[1],), self.z.dtype, self.z.device)
        return source.each(Stream.PERTURB, counters[None].to(self.z.device))[0]

    def pair(self, row: Tensor, k: Tensor, draw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x_k, and the errors x_0 - D of model and Gaussian there, all (P, d); row, k and draw (P,)."""
        chain, z = self.reverse.chain, self.z[row.to(self.z.device)]
        alpha, clock = (expand(c.to(z), z) for c in (chain.alpha[k], self.clock[k - 1]))
        noisy = z + clock.sqrt() * self.noise(row, k, draw)  # x_k/alpha_k
        denoised = self.reverse.denoise(
            (alpha * noisy).view(-1, *self.reverse.model.data_shape), k, self.condition(row)
        )
        control = noisy + clock * self.gaussian.score(noisy, clock)
        return alpha * noisy, z - denoised.flatten(1), z - control

    def condition(self, row: Tensor) -> Condition:
        """Conditions of rows."""
        return None if self.cond is None else self.cond[row.to(self.cond.device)]

    def variance(self, x: Tensor, row: Tensor, k: Tensor) -> Tensor:
        """The model's variances at x_k, (P, 1) or (P, d)."""
        shaped = x.view(-1, *self.reverse.model.data_shape)
        return self.reverse.variance(shaped, k, self.condition(row)).flatten(1)

    def reference_squares(self, z: Tensor, k: Tensor) -> Tensor:
        r"""Mean squared errors of the Gaussian over the noise, at each k (K,), (n, K, d).

        With C the covariance, v the clock and :math:`A = C(C+v)^{-1}` the error is
        :math:`v(C+v)^{-1}(x_0-m) - \sqrt v A\epsilon`.
        """
        clock = self.clock[k - 1].to(z)[:, None]
        bias = clock * self.gaussian.score(z[:, None], clock)
        return bias.square() + clock * self._gain(clock)

    def _gain(self, clock: Tensor) -> Tensor:
        """Diagonal of A A^T, (K, d)."""
        m = self.gaussian.moments
        basis, inside, rest = m.basis.to(clock), m.variances.to(clock), m.rest.to(clock)
        gain, off = (inside / (inside + clock)).square(), (rest / (rest + clock)).square()
        if not len(basis):
            return gain if len(inside) else off.expand(-1, self.z.shape[1])
        weight = basis.square().T
        return gain @ weight + off * (1 - weight.sum(dim=0)).clamp(min=0)


def cost(reverse: ReverseChain, squares: Tensor, variance: Tensor, k: Tensor) -> Tensor:
    r"""What steps cost for squared errors.

    .. math:: \tfrac12\sum_i\big[(c_0^2e_i^2+\tilde\beta)/\Sigma_i + \log\Sigma_i\big]

    Args:
        reverse: The reverse chain.
        squares: Squared errors of the denoiser, (*, K, d).
        variance: Variances, (*, K, 1) or (*, K, d).
        k: Steps, (K,).

    Returns:
        (*, K); with :func:`constant` it is the divergence of the step, or minus the decoder's log-density.
    """
    posterior = reverse.chain.posterior(k.cpu())
    c_0, std = (c[:, None].to(squares) for c in (posterior.c_0, posterior.std))
    return 0.5 * ((c_0.square() * squares + std.square()) / variance + variance.log()).expand_as(squares).sum(
        -1
    )


def constant(reverse: ReverseChain, k: Tensor, like: Tensor) -> Tensor:
    r"""What :func:`cost` lacks an entry: :math:`-\tfrac12(1+\log\tilde\beta_k)`, or log(2 pi)/2 at k = 1."""
    variance = reverse.chain.posterior(k.cpu()).std.square()
    rest = torch.where(k.cpu() == 1, 0.5 * math.log(2 * math.pi), -0.5 * (1 + variance.log()))
    return rest.to(like)


def _strata(steps: int, terms: int | None, draws: int) -> Tensor:
    """Edges of the shares of 2 .. T, (S + 1,)."""
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws={draws!r}: give a whole number of at least 1 (2 for a standard error)")
    most = steps - 1
    count = most if terms is None else terms
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise ValueError(
            f"terms={terms!r}: give a whole number from 1 to {most}, the transitions of the chain"
        )
    return torch.arange(count + 1) * most // count + 2


def _floating(model: DiffusionModel, x: Any) -> Any:
    """Integers as floating-point numbers."""
    return x if not isinstance(x, Tensor) or x.is_floating_point() else x.to(torch.get_default_dtype())


def _excess(errors: Errors, row: Tensor, k: Tensor, draw: Tensor) -> Tensor:
    """What each step (P,) costs the model beyond the Gaussian, at the same noise."""
    x, e, control = errors.pair(row, k, draw)
    reverse, weight = errors.reverse, errors.control[k - 1].to(x)
    own = cost(reverse, e.square(), errors.variance(x, row, k), k)
    return own - cost(reverse, control.square(), weight, k)


def _transitions(errors: Errors, strata: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Divergences (n, T - 1), and the draws' estimates of what each share adds, (n, draws, S)."""
    z, reverse = errors.z, errors.reverse
    n, count, every = len(z), len(strata) - 1, torch.arange(2, reverse.chain.steps + 1)
    u = torch.stack(
        [uniform(errors.seed, errors.rows, Stream.CLOCK, i, (count,), torch.float64) for i in range(draws)], 1
    )
    size = strata.diff()
    k = (strata[:-1] + (u * size).long()).flatten()
    row = torch.arange(n).repeat_interleave(draws * count)
    draw = torch.arange(draws).repeat_interleave(count).repeat(n)
    parts = [
        _excess(errors, row[part], k[part], draw[part])
        for part in chunks(len(k), z.shape[1], errors.batch_size)
    ]
    excess = size.to(z) * torch.cat(parts).view(n, draws, count)
    transitions = torch.cat(
        [
            cost(reverse, errors.reference_squares(z[part], every), errors.control[every - 1].to(z), every)
            for part in chunks(n, len(every) * z.shape[1], errors.batch_size)
        ]
    )
    transitions += z.shape[1] * constant(reverse, every, z)
    transitions.index_put_(
        (row.to(z.device), (k - 2).to(z.device)), excess.flatten() / draws, accumulate=True
    )
    return transitions, excess


def _first(errors: Errors, draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, steps and draws (n draws,) of the decoder."""
    n = len(errors.z)
    row = torch.arange(n).repeat_interleave(draws)
    return row, torch.ones_like(row), torch.arange(draws).repeat(n)


def _density(errors: Errors, draws: int) -> Tensor:
    """Log-densities of the decoder by draw, (n, draws)."""
    row, k, draw = _first(errors, draws)
    one, dim = k[:1], errors.z.shape[1]
    parts = [_excess(errors, row[p], k[p], draw[p]) for p in chunks(len(row), dim, errors.batch_size)]
    known = cost(
        errors.reverse, errors.reference_squares(errors.z, one), errors.control[one - 1].to(errors.z), one
    )
    known = known + dim * constant(errors.reverse, one, errors.z)
    return -(torch.cat(parts).view(-1, draws) + known) - errors.reverse.model.log_scale.to(errors.z)


def _mass(errors: Errors, draws: int, quantisation: Quantisation | None, index: Tensor) -> Tensor:
    """Log-probabilities of levels number `index` by draw, (n, draws)."""
    assert quantisation is not None
    model, (row, k, draw) = errors.reverse.model, _first(errors, draws)
    edges = quantisation.edges.to(errors.z)
    edges[0], edges[-1] = -math.inf, math.inf
    scale = model.scale.to(errors.z).expand(model.data_shape).flatten()
    parts = []
    for part in chunks(len(row), model.dim, errors.batch_size):
        x, e, _ = errors.pair(row[part], k[part], draw[part])
        mean = model.to_data((errors.z[row[part]] - e).view(-1, *model.data_shape)).flatten(1)
        std = scale * errors.variance(x, row[part], k[part]).sqrt()
        cell = index[row[part]].flatten(1).long()
        low, high = ((edges[cell + end] - mean) / std for end in (0, 1))
        parts.append(log_normal_mass(low, high).sum(dim=1))
    return torch.cat(parts).view(-1, draws)


def _prior(errors: Errors, prior: Prior, draws: int) -> Tensor:
    """Divergences of q(x_T | x_0) from the prior by draw, (n, draws)."""
    model, z, t = errors.reverse.model, errors.z, errors.reverse.times[-1]
    alpha, sigma = float(model.process.alpha(t)), float(model.process.sigma(t))
    entropy = 0.5 * model.dim * math.log(2 * math.pi * math.e * sigma**2)
    trace = _precision(prior, model.dim)
    if trace is not None:
        cross = prior.log_prob(alpha * z) - 0.5 * sigma**2 * trace
        return (-entropy - cross)[:, None].expand(-1, draws)
    row, _, draw = _first(errors, draws)
    noise = errors.noise(row, torch.full_like(row, errors.reverse.chain.steps), draw)
    return -entropy - prior.log_prob(alpha * z[row] + sigma * noise).view(-1, draws)


def _precision(prior: Prior, dim: int) -> float | None:
    """Trace of a Gaussian prior's inverse covariance; None for another prior."""
    if isinstance(prior, StandardPrior):
        return dim / prior.std**2
    if isinstance(prior, GaussianPrior):
        off = dim - len(prior.variances)
        return float((1 / prior.variances).sum()) + (off / float(prior.rest) if off else 0.0)
    return None


def _result(
    errors: Errors, transitions: Tensor, excess: Tensor, decoder: Tensor, prior: Tensor, strata: Tensor
) -> dict[str, Any]:
    """The columns of the result: shares and draws are independent, so their variances add up."""
    n, draws = decoder.shape
    value = decoder.mean(dim=1) - transitions.sum(dim=1) - prior.mean(dim=1)
    error = degrees = torch.full_like(value, math.nan)
    if draws > 1:
        parts = torch.cat([excess.var(dim=1), decoder.var(dim=1)[:, None], prior.var(dim=1)[:, None]], dim=1)
        total, squares = parts.sum(dim=1), parts.square().sum(dim=1)
        error = (total / draws).sqrt()
        # Welch and Satterthwaite's degrees of freedom.
        degrees = torch.where(squares > 0, (draws - 1) * total.square() / squares, math.inf)
    failed = ~torch.isfinite(value)
    return {
        "log_prob": torch.where(failed, math.nan, value),
        "std_error": error,
        "solver_error": torch.zeros_like(value),
        "degrees": degrees,
        "nfe": torch.full((n,), draws * len(strata), device=value.device),
        "divergence_evaluations": torch.zeros(n, dtype=torch.int64, device=value.device),
        "status": torch.where(failed, int(Status.NON_FINITE), int(Status.OK)),
    }
