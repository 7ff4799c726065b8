r"""Targets averaged over the data that a noised row may have come from: less variance, the same mean.

Given :math:`z_t`, the datum it was made from is one draw of a posterior. With a reference batch
:math:`z^{(1)}, \ldots, z^{(n)}` that holds it, the posterior's mean is estimated by self-normalised weights,

.. math:: w_j \propto \exp\big(-|z_t - \alpha z^{(j)}|^2 / 2\sigma^2\big), \qquad
          \bar z = \sum_j w_j z^{(j)}, \qquad \bar\epsilon = (z_t - \alpha\bar z)/\sigma,

and every prediction's target is linear in :math:`(\bar z, \bar\epsilon)` (Xu, Tong & Jaakkola 2023, arXiv
2302.00670, Eq. 6, where it is written for the score). A batch that is the whole training set gives the
targets of the exact score of that set, and with n the scatter about the mean goes to zero.

The rows of a batch are exchangeable, so the weights are the exact posterior of the source given the batch and
:math:`z_t`, and :math:`E[\bar z \mid z_t] = E[z_0 \mid z_t]` for every n: what is minimised stays as it is.
(The bias of order 1/n in the paper is that of independent references at a given :math:`z_t`.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdediff.training.objective import Rows
from solvers.problems import expand


@dataclass(frozen=True)
class StableTargets:
    """Targets from all rows of a step's batch that may share a row's condition.

    Rows of another condition are left out, and so are those of another augmentation; a row without a
    condition learns from all. Continuous conditions have no equals, and leave the plain target.

    Example:
        >>> z, eps = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.5], [-0.5]])
        >>> mean, noise = StableTargets()(z, eps, torch.zeros(2, dtype=torch.float64))
        >>> mean  # either datum's noised value is 0.5 with sigma = alpha: both were as likely its source
        tensor([[0.5000],
                [0.5000]])
    """

    def __call__(
        self,
        z: Tensor,
        eps: Tensor,
        lam: Tensor,
        cond: Tensor | None = None,
        augment: Tensor | None = None,
        batch: Rows | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Means of data and noise given the noised rows.

        Args:
            z: Data in model units, (B, *E).
            eps: Their noise, (B, *E).
            lam: log(alpha/sigma) of every row, (B,).
            cond: Conditions, (B, ...); rows of NaN or labels -1 are without.
            augment: Augmentation labels, (B, augment_dim).
            batch: The rows that may be sources, (N, ...) each; these rows when left out.

        Returns:
            Mean data and mean noise, each (B, *E).
        """
        batch = batch or Rows(z, cond, augment)
        logits = log_weights(z, eps, lam, batch.z)
        for labels, others, free in ((cond, batch.cond, True), (augment, batch.augment, False)):
            if labels is not None and others is not None:
                logits = logits.masked_fill(~_alike(labels, others, free), -torch.inf)
        mean = (logits.softmax(dim=1).to(z) @ batch.z.flatten(1)).view_as(z)
        # alpha z + sigma eps is what it was: eps changes by what z does.
        return mean, eps + expand(torch.exp(lam).to(z), z) * (z - mean)


def log_weights(z: Tensor, eps: Tensor, lam: Tensor, sources: Tensor | None = None) -> Tensor:
    r"""How likely source j made noised row i, by its logarithm and up to a constant a row, (B, N).

    .. math:: \log w_{ij} = -\tfrac12 r_i^2\,|z_i - z_j|^2 - r_i\,\epsilon_i\cdot(z_i - z_j) + \ldots,
              \qquad r = \alpha/\sigma

    which is :math:`-|z_t - \alpha z_j|^2/2\sigma^2` less its value at :math:`z_j = z_i`, in the precision of
    lam: float64, since r is large where sigma is small. The sources are the rows themselves when left out.
    """
    wide = z.flatten(1).to(lam.dtype)
    others = wide if sources is None else sources.flatten(1).to(lam.dtype)
    noise, r = eps.flatten(1).to(wide), torch.exp(lam)[:, None]
    apart = _square(wide)[:, None] + _square(others) - 2 * wide @ others.T
    along = (noise * wide).sum(dim=1, keepdim=True) - noise @ others.T
    return -0.5 * r**2 * apart - r * along


def _square(rows: Tensor) -> Tensor:
    return rows.square().sum(dim=1)


def _alike(labels: Tensor, others: Tensor, free: bool) -> Tensor:
    """Which sources (B, N) row i may learn from: those of its label and, where it has none and may, all."""
    rows, sources = labels.reshape(len(labels), 1, -1), others.reshape(1, len(others), -1)
    same = (rows == sources).all(dim=2)
    if not free:
        return same
    none = (rows.isnan() if rows.is_floating_point() else rows < 0).any(dim=2)
    return same | none
