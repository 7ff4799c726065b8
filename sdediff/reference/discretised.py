r"""A Gaussian mixture rounded to levels: discrete data of known probabilities, exact at any noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdediff.reference.empirical import Atoms
from sdediff.reference.mixture import GaussianMixture

if TYPE_CHECKING:
    from sdediff.likelihood.quantisation import Quantisation
    from sdediff.processes import GaussianProcess


class DiscretisedMixture(Atoms):
    r"""A mixture with diagonal covariances whose draws are rounded to levels, entry by entry.

    With cells :math:`[e_j, e_{j+1})` (the outermost open), components k of means m and standard deviations s,

    .. math:: P(x) = \sum_k w_k \prod_i P_{ki}(x_i), \qquad
              P_{ki}(v_j) = \Phi\big((e_{j+1}-m_{ki})/s_{ki}\big) - \Phi\big((e_j-m_{ki})/s_{ki}\big).

    Two models go with it. ``model(process)`` is this law's own, trained, so to speak, on the levels: noised,
    the law is a mixture of products of one-dimensional mixtures. ``continuous.model(process)`` is that of the
    mixture before rounding; its density integrates over the closed cell of x to
    :meth:`log_continuous_cell_mass`. These integrals are what bounds by dequantisation are bounds of.

    Args:
        mixture: The mixture before rounding, with diagonal covariances.
        quantisation: The levels and their cells, the same for all entries.

    Raises:
        ValueError: If a covariance is not diagonal.

    Example:
        >>> import torch, sdediff
        >>> before = GaussianMixture([[0.0, 1.0], [2.0, 1.0]], [0.5, 0.7])
        >>> data = DiscretisedMixture(before, sdediff.Quantisation(levels=3))
        >>> every = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
        >>> round(float(data.log_probability(every).exp().sum()), 6)
        1.0
    """

    def __init__(self, mixture: GaussianMixture, quantisation: Quantisation) -> None:
        variances = mixture.covs.diagonal(dim1=1, dim2=2)
        if not torch.equal(variances.diag_embed(), mixture.covs):
            raise ValueError("a covariance has entries off its diagonal: give diagonal ones, covs of (K, d)")
        self.continuous, self.quantisation, self.dtype = mixture, quantisation, mixture.dtype
        self._stds, self._levels = variances.sqrt(), quantisation.values
        edges = quantisation.edges.clone()
        edges[0], edges[-1] = -torch.inf, torch.inf
        self._table = _log_masses(edges, mixture.means[..., None], self._stds[..., None])
        own = self._table.exp()
        means = own @ self._levels  # of each component, (K, d)
        spread = own @ self._levels.square() - means.square()
        weights = mixture.weights
        self.mean = weights @ means
        centred = means - self.mean
        self.cov = torch.diag(weights @ spread) + (weights[:, None] * centred).mT @ centred

    def log_probability(self, x: Tensor) -> Tensor:
        """Log P(x) in nats, (B,) float64; x holds levels, (B, d)."""
        return self._log_mass(x, self._table)

    def log_cell_mass(self, process: GaussianProcess, x: Tensor, t: float) -> Tensor:
        r"""Logarithm of the integral over the closed cell of x of this law's density under noise, (B,).

        With centred cells it tends to :meth:`log_probability` as the noise gets small against a cell.

        Args:
            process: The Gaussian process.
            x: Levels, (B, d).
            t: The density is that of :math:`x_0 + (\sigma/\alpha) \epsilon` at this time, as a model
                evaluates it at its t_min.
        """
        kept = _log_masses(self.quantisation.edges, self._levels[:, None], _noise(process, t))  # from, to
        return self._log_mass(x, torch.logsumexp(self._table[..., None] + kept, dim=2))

    def log_continuous_cell_mass(self, process: GaussianProcess | None, x: Tensor, t: float | None) -> Tensor:
        """The same integral of the mixture's density before rounding; without noise for ``t=None``."""
        stds = (self._stds.square() + _noise(process, t) ** 2).sqrt()
        return self._log_mass(
            x, _log_masses(self.quantisation.edges, self.continuous.means[..., None], stds[..., None])
        )

    def _log_mass(self, x: Tensor, table: Tensor) -> Tensor:
        index = self.quantisation.index(x).long()
        entries = torch.arange(self.dim)
        return (self.continuous.log_weights + table[:, entries, index].sum(-1).T).logsumexp(-1)

    # -- the law under noise ---------------------------------------------------------------------------------

    def _terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted log-densities (B, K); mean and variance of x_0 in each component, (B, K, d), float64."""
        x, alpha, sigma = x.double(), alpha.double()[..., None], sigma.double()[..., None]
        levels = self._levels.to(x)
        exponent = -0.5 * ((x[..., None] - alpha * levels) / sigma).square()  # (B, d, levels)
        top = exponent.amax(-1, keepdim=True)
        kernel = (exponent - top).exp().transpose(0, 1)  # (d, B, levels)
        table = self._table.to(x).exp().permute(1, 2, 0)  # (d, levels, K)
        total, first, second = (
            (kernel @ (table * power[:, None])).permute(1, 2, 0)  # (B, K, d)
            for power in (torch.ones_like(levels), levels, levels.square())
        )
        total = total.clamp(min=torch.finfo(x.dtype).tiny)  # of components that are out of the question
        log_density = total.log().sum(-1) + top.sum((1, 2))[:, None]
        mean = first / total
        return self.continuous.log_weights.to(x) + log_density, mean, second / total - mean.square()

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        constant = self.dim * (sigma.double()[:, 0].log() + 0.5 * torch.log(torch.tensor(2 * torch.pi)))
        return self._terms(x, alpha, sigma)[0].logsumexp(-1) - constant

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        logits, mean, _ = self._terms(x, alpha, sigma)
        x0 = (logits.softmax(-1)[..., None] * mean).sum(1)
        return (alpha * x0 - x) / sigma.square(), x0

    def _jacobian(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        logits, mean, variance = self._terms(x, alpha, sigma)
        r = logits.softmax(-1)[..., None]
        spread = mean - (r * mean).sum(1, keepdim=True)
        cov = torch.diag_embed((r * variance).sum(1)) + (r * spread).mT @ spread
        ratio = (alpha / sigma)[..., None]
        return (ratio.square() * cov - torch.eye(self.dim).to(cov)) / sigma.square()[..., None]

    def _sample(self, uniform: Tensor, normal: Tensor) -> Tensor:
        cells = self.quantisation.cell_of(self.continuous._sample(uniform, normal))
        return self._levels[cells.long()]


def _noise(process: GaussianProcess | None, t: float | None) -> float:
    return 0.0 if process is None or t is None else float(process.sigma(t) / process.alpha(t))


def _log_masses(edges: Tensor, mean: Tensor, std: Tensor | float) -> Tensor:
    """Log-probabilities of the cells between edges (levels + 1,) under N(mean, std^2), (..., levels)."""
    z = (edges - mean) / std
    return log_normal_mass(z[..., :-1], z[..., 1:])


def log_normal_mass(low: Tensor, high: Tensor) -> Tensor:
    """Log-probability that a standard normal lies between low and high, which may be infinite.

    Example:
        >>> log_normal_mass(torch.tensor([-1.0, 30.0]), torch.tensor([1.0, torch.inf]))
        tensor([-3.8172e-01, -4.5432e+02])
    """
    upper = low + high > 0  # mirrored: differences of the distribution function keep their digits below 0
    low, high = torch.where(upper, -high, low), torch.where(upper, -low, high)
    low, high = torch.special.log_ndtr(low), torch.special.log_ndtr(high)
    return high + torch.log(-torch.expm1(low - high))
