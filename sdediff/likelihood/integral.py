r"""The integral of ``d - tr dD/dx~`` along a path, and what is known of its error.

The trace of a Gaussian with the data's variances l is integrated in closed form, so only the difference from
it is left to quadrature:

.. math:: \int d - \mathrm{tr}\,J\,ds = \sum_i \tfrac12\ln\frac{l_i+\tilde\sigma_T^2}{l_i+\tilde\sigma_0^2}
          + \int \Big(\sum_i \frac{l_i}{l_i+\tilde\sigma^2} - \mathrm{tr}\,J\Big)ds .

Random probes: with independent signs s the weighted sum errs by the quadratic form
:math:`\sum_{i\ne j} s_i s_j A_{ij}`, of variance
:math:`\sum_{i<j}(A_{ij}+A_{ji})^2 \le 2\sum_{i\ne j}A_{ij}^2`, with equality where A is symmetric, as the
Jacobian of an exact denoiser is. Part j of the sum is :math:`A_{jj} + s_j\sum_{i\ne j}s_i A_{ij}`, of
variance :math:`\sum_{i\ne j}A_{ij}^2`: two independent sets of signs thus give d estimates of the parts'
variances, not one of the sum's, and a standard error with many degrees of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial

import torch
from torch import Tensor

from solvers.active import wide

from ..model import Condition, DiffusionModel
from .divergence import Divergence, RowFunction
from .hutchinson import Hutchinson
from .nodes import Rule

_AGAIN = 1 << 48  # from the seed of a pilot's draws to that of the next: far from any other seed


@dataclass(frozen=True)
class Integral:
    """Integrals of samples; every tensor (B,).

    Attributes:
        value: The integral.
        variance: Its variance from random probes; 0 where the trace is exact, nan where it is unknown.
        degrees: Degrees of freedom of the variance.
        quadrature_error: Estimated error of the nodes.
        first: The trace at the first node.
        products: Vector-Jacobian products.
    """

    value: Tensor
    variance: Tensor
    degrees: Tensor
    quadrature_error: Tensor
    first: Tensor
    products: Tensor

    @classmethod
    def join(cls, parts: list[Integral]) -> Integral:
        """Integrals of consecutive rows as one."""
        return cls(*(torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)))

    def variance_bound(self) -> Tensor:
        """Upper end of a one-sided 90 % interval of the variance: few degrees tell little."""
        from scipy.stats import chi2

        degrees = self.degrees.detach().cpu().clamp(min=0.5, max=1e6).numpy()
        return self.variance * torch.as_tensor(degrees / chi2.ppf(0.1, degrees)).to(self.variance)

    def redraw(self, rows: Tensor, other: Integral) -> Integral:
        """These, with those of some rows replaced, whose cost adds up."""
        other = replace(other, products=other.products + self.products[rows])
        return Integral(
            *(getattr(self, f.name).index_put((rows,), getattr(other, f.name)) for f in fields(self))
        )


def integrate(
    model: DiffusionModel,
    rule: Rule,
    divergence: Divergence,
    path: Tensor,
    cond: Condition,
    rows: Tensor,
    seed: int,
) -> Integral:
    """Integrate along paths (nodes, B, *E).

    Where a divergence names a standard error, the first draws only tell how many probes a row needs, and
    new ones make its value (Stein's two stages, 1945, Ann. Math. Stat. 16, 243-258): were the same draws to
    decide and to count, those would stop that scatter least by luck.
    """
    integral = _integrate(model, rule, divergence, path, cond, rows, seed)
    if not isinstance(divergence, Hutchinson) or divergence.std_error is None:
        return integral
    needed = integral.variance_bound() / divergence.std_error**2
    most = divergence.max_probes // divergence.probes
    factors = torch.exp2(torch.log2(needed.clamp(1, most)).ceil()).clamp(max=most).long()
    for factor in factors.unique().tolist():
        chosen = (factors == factor).nonzero().flatten()
        c, names = None if cond is None else cond[chosen], rows[chosen.to(rows.device)]
        more = replace(divergence, probes=factor * divergence.probes)
        again = _integrate(model, rule, more, path[:, chosen], c, names, seed + _AGAIN)
        integral = integral.redraw(chosen, again)
    return integral


def _integrate(
    model: DiffusionModel,
    rule: Rule,
    divergence: Divergence,
    path: Tensor,
    cond: Condition,
    rows: Tensor,
    seed: int,
) -> Integral:
    """Traces at all nodes, batched over samples and times, and their weighted sums."""
    nodes, batch = path.shape[:2]
    means = torch.empty(nodes, batch, dtype=wide(path), device=path.device)
    weights, half = rule.weights.to(means), rule.coarse[0].to(means)
    fine, gap = (_Scatter(w, divergence, batch) for w in (weights, weights - half))
    for parts, node, who in traces_along(model, rule, divergence, path, cond, rows, seed):
        means[node, who] = parts.mean(dim=0).sum(dim=1)
        for scatter in (fine, gap):
            scatter.add(parts, node, who)
    return _combine(model, rule, divergence, means, fine, gap)


def traces_along(
    model: DiffusionModel,
    rule: Rule,
    divergence: Divergence,
    path: Tensor,
    cond: Condition,
    rows: Tensor,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Parts (P, R, K) of ``tr dD/dx~`` at points of the paths, with their nodes and samples, (R,)."""
    nodes, batch = path.shape[:2]
    device, points = path.device, path.flatten(0, 1)
    nodes_of = torch.arange(nodes, device=device).repeat_interleave(batch)
    samples = torch.arange(batch, device=device).repeat(nodes)
    times = torch.tensor(rule.times, dtype=wide(path), device=device)
    alpha = model.process.alpha(times)

    def at(here: slice) -> tuple[RowFunction, Tensor]:
        c = None if cond is None else cond[samples[here]]
        return partial(model.problem(0.0, c).denoise, times[nodes_of[here]]), points[here]

    divergence = divergence.suited(model.network, at, len(points))
    size = divergence.points(model.dim)
    for here in (slice(start, start + size) for start in range(0, len(points), size)):
        node, who, (denoise, x) = nodes_of[here], samples[here], at(here)
        parts = divergence.traces(denoise, x, rows.to(device)[who], node, seed).detach().to(alpha)
        parts = parts if parts.ndim == 3 else parts[..., None]
        yield parts * alpha[node][:, None], node, who  # tr dD/dx~ = alpha tr dD/dx


def _combine(
    model: DiffusionModel, rule: Rule, divergence: Divergence, traces: Tensor, fine: _Scatter, gap: _Scatter
) -> Integral:
    """The integral from the traces (nodes, B), and from how random ones scatter."""
    weights, (half, quarter), clock = (v.to(traces) for v in (rule.weights, rule.coarse, rule.clock))
    noise, variances = torch.exp(2 * clock), _variances(model).to(traces)
    rest = (variances / (variances + noise[:, None])).sum(dim=1)[:, None] - traces
    closed = 0.5 * torch.log((variances + noise[-1]) / (variances + noise[0])).sum()
    variance, degrees = fine.result()
    # Errors of a spectral rule fall faster from step to step: e_n <= e_half^2 / e_quarter.
    change, before = ((weights - half) @ rest).abs(), ((half - quarter) @ rest).abs()
    shrinks = torch.nan_to_num(change / before, nan=1.0).clamp(rule.fastest, 1)
    # What the probes' own noise puts into the changes says nothing of the quadrature.
    scatter = gap.result()[0].nan_to_num().sqrt()
    if divergence.estimator != "exact":  # it hides how fast they fall, too
        shrinks = torch.full_like(shrinks, rule.fastest)
    error = shrinks * (change - 2 * scatter).clamp(min=0)
    products = torch.full_like(degrees, len(clock) * divergence.evaluations(model.dim), dtype=torch.int64)
    return Integral(closed + weights @ rest, variance, degrees, error, traces[0], products)


def _variances(model: DiffusionModel) -> Tensor:
    """Variances of the data along their principal axes, in the model's units, (d,) float64."""
    moments = model.moments
    if moments is None or moments.scale == 0:
        return torch.ones(model.dim, dtype=torch.float64)
    known = moments.variances
    return torch.cat([known, moments.rest.expand(model.dim - len(known))])


class _Scatter:
    """Variance of a weighted sum over nodes of the estimates' mean, from how the estimates differ.

    Args:
        weights: Weights of the nodes, (nodes,).
        divergence: What makes the estimates.
        batch: Number of samples.
    """

    def __init__(self, weights: Tensor, divergence: Divergence, batch: int) -> None:
        self.weights, self.divergence, self.batch = weights, divergence, batch
        self.sums: Tensor | None = None  # of estimates that share their draws, (P, B, K)
        self.variance, self.squares = weights.new_zeros(batch), weights.new_zeros(batch)
        self.estimates = self.parts = 1

    def add(self, parts: Tensor, node: Tensor, who: Tensor) -> None:
        """Take in parts (P, R, K) of the traces at some nodes of some samples."""
        self.estimates, _, self.parts = parts.shape
        if self.divergence.estimator == "exact" or self.estimates == 1:
            return
        weighted = parts * self.weights[node][:, None]
        if self.divergence.shared:
            if self.sums is None:
                self.sums = parts.new_zeros(self.estimates, self.batch, self.parts)
            self.sums.index_add_(1, who, weighted)
        else:
            self._count(weighted, who)

    def _count(self, sums: Tensor, who: Tensor) -> None:
        """Independent sums (P, R, K): their variances add up."""
        variances = sums.var(dim=0)
        self.variance.index_add_(0, who, variances.sum(dim=1))
        self.squares.index_add_(0, who, variances.square().sum(dim=1))

    def result(self) -> tuple[Tensor, Tensor]:
        """The variance and its degrees of freedom, each (B,).

        Satterthwaite's formula (1946, Biometrics Bulletin 2, 110-114) for variances that are estimated
        themselves, of nu degrees each: with r the squared sum over the sum of squares, (nu + 2) r - 2, which
        is nu for a single one. For parts it is halved, since each pair of signs is in two, and one r is taken
        off: where few pairs dominate, the scatter is small just where the error is large.
        """
        if self.divergence.estimator == "exact":
            return self.variance, torch.full_like(self.variance, torch.inf)
        if self.estimates == 1:
            unknown = torch.full_like(self.variance, math.nan)
            return unknown, unknown
        if self.sums is not None:
            self._count(self.sums, torch.arange(self.batch, device=self.sums.device))
            self.sums = None
        # A pair of signs is in two parts: it counts twice in the variance, and the parts are half as many.
        pairs = 2 if self.parts > 1 else 1
        degrees = ((self.estimates + 2 - pairs) * self.variance**2 / self.squares - 2) / pairs
        variance = pairs * self.variance / self.estimates
        degrees = degrees.clamp(min=self.estimates - 1)
        return variance, torch.where(self.squares > 0, degrees, torch.inf)
