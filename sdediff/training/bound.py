r"""The variational bound as a loss: nats of negative log-likelihood, in expectation.

With :math:`\lambda = \log(\alpha/\sigma)` and :math:`\tilde\sigma = \sigma/\alpha`, noising a datum and
undoing it costs (Kingma et al. 2021, arXiv 2107.00630, Eqs. 11-12; Song et al. 2021, arXiv 2101.09258,
theorem 3)

.. math:: KL\big(q(z_T|x)\,\big\|\,\pi\big) + \int E\,|\epsilon-\hat\epsilon|^2\,d\lambda + R(x)

R, the reconstruction from the least noise, is for densities the entropy of that noise,
:math:`\tfrac d2\log(2\pi e\,\tilde\sigma_{min}^2)` and the logarithm of the data's scale, which makes the sum
what :meth:`~sdediff.DiffusionModel.elbo` estimates at data with that noise on. For discrete data it is the
mean of :math:`-\log P(x|z)` with :math:`P(x|z) \propto q(z|x)` over the levels, entry by entry (Kingma et al.
2021, section 3.3), and the sum bounds the negative log-probability. Prior and reconstruction know nothing of
the network: only the integral is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from sdediff.training.denoising import DenoisingLoss
from sdediff.training.objective import DenoisingObjective
from sdediff.training.times import Times, UniformLogSNR
from sdediff.training.weightings import Eps

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel


class Levels(Protocol):
    """Evenly spaced levels of discrete data, such as :class:`sdediff.Quantisation`."""

    @property
    def levels(self) -> int:
        """How many there are."""

    @property
    def width(self) -> float:
        """Their distance, in data units."""

    def index(self, x: Tensor) -> Tensor:
        """Numbers of the levels that x holds; an error where it holds none."""


@dataclass(frozen=True)
class VariationalBound:
    """The bound in nats a datum, for densities or, given `levels`, for probabilities of discrete data.

    The gradient is that of the mean weighted error, as for the other losses, so that rates and clipping mean
    the same: the bound's own is larger by a constant.

    Args:
        levels: Levels of discrete data, such as ``sdediff.Quantisation(levels=256)``; the rows trained on are
            then levels, not dequantised. None for densities.
        proposal: The distribution times are drawn from, divided out; uniform in lam when left out.
        low_discrepancy: As for :class:`~sdediff.training.DenoisingLoss`.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.Gaussian([0.0, 0.0], [[1.0, 0.5], [0.5, 1.0]])
        >>> model, x = data.model(sdediff.VP()), data.sample(1000, seed=0)
        >>> draw = sdediff.training.Draw(0, 0, torch.arange(1000), 1000)
        >>> nats = VariationalBound().objective(model)(model, model.to_model(x), None, draw).loss.mean()
        >>> bool(abs(nats - (-data.log_prob(None, x, None).mean())) < 0.3)
        True
    """

    levels: Levels | None = None
    proposal: Times | None = None
    low_discrepancy: bool = True

    def objective(self, model: DiffusionModel) -> BoundObjective:
        """What a run carries along."""
        loss = DenoisingLoss(Eps(), UniformLogSNR(), self.proposal, self.low_discrepancy)
        return BoundObjective(loss, model, self.levels)


class BoundObjective(DenoisingObjective):
    """The run-time half of :class:`VariationalBound`."""

    def __init__(self, loss: DenoisingLoss, model: DiffusionModel, levels: Levels | None) -> None:
        super().__init__(loss, model)
        self.levels, process = levels, model.process
        self.low, self.high = (float(process.lam(t)) for t in (process.t_max, process.t_min))
        self.table = None if levels is None else _reconstruction(levels, model, self.high)

    def combine(
        self, model: DiffusionModel, errors: Tensor, importance: Tensor, z: Tensor, eps: Tensor, t: Tensor
    ) -> Tensor:
        """The bound's value and the weighted errors' gradient, (B,)."""
        errors = importance * errors
        nats = model.dim * (self.high - self.low) * self.scale * errors
        constant = self.prior(model, z, eps) + self.reconstruction(model, z)
        return (nats + constant - errors).detach() + errors

    @torch.no_grad()
    def prior(self, model: DiffusionModel, z: Tensor, eps: Tensor) -> Tensor:
        """Unbiased estimates of KL(q(z_T|x) || prior), (B,) nats, by the log-ratio at z_T."""
        t = model.process.t_max
        alpha, sigma = float(model.process.alpha(t)), float(model.process.sigma(t))
        log_q = -0.5 * eps.flatten(1).square().sum(1) - model.dim * math.log(sigma * math.sqrt(2 * math.pi))
        return log_q - model.prior_at(t).log_prob((alpha * z + sigma * eps).flatten(1))

    @torch.no_grad()
    def reconstruction(self, model: DiffusionModel, z: Tensor) -> Tensor | float:
        """R of every row, nats."""
        if self.levels is None or self.table is None:
            return 0.5 * model.dim * (math.log(2 * math.pi * math.e) - 2 * self.high) + float(model.log_scale)
        index = self.levels.index(model.to_data(z)).long().flatten(1)
        return self.table.to(z.device).gather(0, index).sum(1)


def _reconstruction(levels: Levels, model: DiffusionModel, lam: float) -> Tensor:
    r"""Mean of :math:`-\log P(x|z)` of every level and entry, (levels, d), float64.

    With h the levels' distance over :math:`\tilde\sigma` it is
    :math:`E_n \log\sum_j \exp(-\tfrac12 h^2 (j-k)^2 + h (j-k)\,n)`, by the trapezium rule in n.
    """
    steps = (levels.width * math.exp(lam) / model.scale.double().cpu()).expand(model.data_shape).flatten()
    values, places = steps.unique(return_inverse=True)
    n = torch.linspace(-10, 10, 401, dtype=torch.float64)
    share = torch.exp(-0.5 * n**2)
    share = share / share.sum()
    columns = []
    for h in values.tolist():
        reach = min(levels.levels - 1, math.ceil(30 / h))  # beyond it terms are below exp(-150)
        m = torch.arange(-reach, reach + 1)
        terms = -0.5 * h**2 * m[:, None] ** 2 + h * m[:, None] * n
        means = []
        for k in range(levels.levels):
            inside = (k + m >= 0) & (k + m < levels.levels)
            means.append((terms[inside].logsumexp(0) * share).sum())
        columns.append(torch.stack(means))
    return torch.stack(columns, dim=1)[:, places]
