r"""Losses of the chain: the simplified one, the variational bound, and both together.

All draw an index of the chain uniformly and are used as ``fit(loss=...)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdediff.processes import GaussianProcess
from sdediff.training.losses import DenoisingLoss
from sdediff.training.objective import DenoisingObjective, Draw, StepLoss, wide
from sdediff.training.weightings import Eps
from solvers.problems import expand

from .bound import constant, cost
from .discrete import Chain

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel
    from sdediff.training.objective import Objective


@dataclass(frozen=True)
class Indices:
    """The times of a chain, each as often: a distribution of times for any loss, of any process.

    Args:
        chain: The chain.

    Example:
        >>> import sdediff
        >>> chain = Chain.of(sdediff.VP(), 10)
        >>> u = torch.tensor([0.0, 0.35, 1.0], dtype=torch.float64)
        >>> torch.allclose(Indices(chain).sample(u, chain.process), chain.times[[0, 3, 9]])
        True
    """

    chain: Chain

    def sample(self, u: Tensor, process: GaussianProcess) -> Tensor:
        """Times of the process with the chain's log-SNR, for uniform numbers u in [0, 1]."""
        k = (u.double() * self.chain.steps).long().clamp(max=self.chain.steps - 1) + 1
        return process.time(self.chain.lam.to(u.device)[k])

    def density(self, t: Tensor, process: GaussianProcess) -> Tensor:
        """Density per unit time if each index is spread evenly in log-SNR, halfway to its neighbours."""
        lam = self.chain.lam[1:].flip(0).to(t.device)
        middle = 0.5 * (lam[1:] + lam[:-1])
        edges = torch.cat([2 * lam[:1] - middle[:1], middle, 2 * lam[-1:] - middle[-1:]])
        cell = torch.searchsorted(edges, process.lam(t.double()), right=True) - 1
        inside = (cell >= 0) & (cell < self.chain.steps)
        height = (1 / (self.chain.steps * edges.diff()))[cell.clamp(0, self.chain.steps - 1)]
        return torch.where(inside, height * -process.d_lam(t.double()), 0.0).to(t.dtype)


def simple_loss(chain: Chain) -> DenoisingLoss:
    r"""The simplified loss, :math:`E_k |\epsilon - \hat\epsilon(x_k)|^2` with k uniform on 1 .. T.

    Source: Ho, Jain & Abbeel (2020), arXiv 2006.11239, Eq. 14.

    Args:
        chain: The chain.

    Example:
        >>> import sdediff
        >>> chain = Chain.of(sdediff.VP(), 20)
        >>> net = sdediff.networks.MLP(dim=2, hidden=8)
        >>> model = sdediff.DiffusionModel(net, chain.process, data_shape=(2,))
        >>> sdediff.fit(model, torch.randn(64, 2), loss=simple_loss(chain), steps=2, progress=False).steps
        2
    """
    return DenoisingLoss(Eps(), Indices(chain))


@dataclass(frozen=True)
class VariationalLoss:
    r"""The variational bound as a loss, alone or beside the simplified one.

    .. math:: L = simple\; E_k \tfrac1d|\epsilon-\hat\epsilon|^2 + weight\; \tfrac Td\,E_k L_k

    with :math:`L_k` the terms of :mod:`sdediff.chain.bound` in nats, -log p(x_0 | x_1) at k = 1; the prior's
    has no parameters. As defined here it is the whole bound in nats a dimension, in model units.

    Alone, half of the indices are drawn in proportion to what the terms are for white data, with the weights
    divided out: in chains of 1000 betas a few terms near the data are most of the bound, and the gradient's
    variance was 8 to 10 times lower so than uniformly (linear and cosine, digits). Beside the simplified loss
    they are uniform.

    Args:
        chain: The chain.
        variance: "posterior", "forward", "learned", or a tensor, as for :meth:`Chain.reverse`.
        simple: Weight of the simplified loss.
        weight: Weight of the bound.
        stop_mean: Whether the bound teaches the variances alone, not the means.

    Raises:
        ValueError: If a weight is negative, or both are 0.

    Source: Ho, Jain & Abbeel (2020), arXiv 2006.11239, Eq. 5; Nichol & Dhariwal (2021), arXiv 2102.09672, Eq.
    16.

    Example:
        >>> import sdediff
        >>> chain = Chain.of(sdediff.VP(), 20)
        >>> net = sdediff.networks.MLP(dim=2, hidden=8)
        >>> model = sdediff.DiffusionModel(net, chain.process, data_shape=(2,))
        >>> loss = VariationalLoss(chain, "forward")
        >>> sdediff.fit(model, torch.randn(64, 2), loss=loss, steps=2, progress=False).steps
        2
    """

    chain: Chain
    variance: str | Tensor = "learned"
    simple: float = 0.0
    weight: float = 1.0
    stop_mean: bool = False

    def __post_init__(self) -> None:
        if not (self.simple >= 0 and self.weight >= 0 and self.simple + self.weight > 0):
            raise ValueError(
                f"simple={self.simple}, weight={self.weight}: give weights that are not negative, and one "
                "above 0"
            )

    @property
    def mass(self) -> Tensor:
        """Probabilities of the indices 1 .. T, (T,) float64."""
        uniform = torch.full_like(self.chain.times, 1 / self.chain.steps)
        if self.simple:
            return uniform
        # For white data and their own variance a transition is half of this; the decoder counts as the next.
        term = torch.log(self.chain.variances("forward") / self.chain.variances("posterior"))
        return 0.5 * uniform + 0.5 * term / term.sum()

    def objective(self, model: DiffusionModel) -> Objective:
        """What a run carries along."""
        return VariationalObjective(self, model)


def hybrid_loss(chain: Chain, weight: float = 1e-3) -> VariationalLoss:
    """The simplified loss for the means and the bound for learned variances.

    Source: Nichol & Dhariwal (2021), arXiv 2102.09672, Eq. 16, with lambda = 0.001 and the mean stopped in
    the bound.

    Args:
        chain: The chain.
        weight: Of the bound, in nats a dimension.

    Example:
        >>> import sdediff
        >>> from sdediff.networks import MLP, WithVariance
        >>> chain = Chain.of(sdediff.VP(), 20)
        >>> net = WithVariance(MLP(dim=2, hidden=8), MLP(dim=2, hidden=8, blocks=1))
        >>> model = sdediff.DiffusionModel(net, chain.process, data_shape=(2,))
        >>> sdediff.fit(model, torch.randn(64, 2), loss=hybrid_loss(chain), steps=2, progress=False).steps
        2
        >>> chain.sample(model, 5, variance="learned").shape
        torch.Size([5, 2])
    """
    return VariationalLoss(chain, "learned", simple=1.0, weight=weight, stop_mean=True)


class VariationalObjective(DenoisingObjective):
    """The run-time half of :class:`VariationalLoss`.

    Args:
        loss: The loss.
        model: The model it is for.
    """

    def __init__(self, loss: VariationalLoss, model: DiffusionModel) -> None:
        super().__init__(simple_loss(loss.chain), model)
        self.loss, self.reverse = loss, loss.chain.reverse(model, loss.variance)
        self.above, self.importance = loss.mass.cumsum(0), 1 / (loss.chain.steps * loss.mass)

    def forward(
        self,
        model: DiffusionModel,
        z: Tensor,
        cond: Tensor | None,
        draw: Draw,
        augment: Tensor | None = None,
    ) -> StepLoss:
        """Losses of a batch at this draw's indices and noise."""
        u = draw.uniform().cpu() * self.above[-1]
        index = torch.searchsorted(self.above, u, right=True).clamp(max=len(self.above) - 1)
        t = self.reverse.times[index].to(z.device, wide(z.device))
        loss = self.at(model, z, self.noise(draw, z), t, cond, augment)
        return StepLoss(loss * self.importance[index].to(loss), t, loss.detach())

    def at(
        self,
        model: DiffusionModel,
        z: Tensor,
        eps: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Losses (B,) at times of the chain and noise."""
        loss, process, k = self.loss, model.process, self.index(t)
        alpha, sigma = (expand(c.to(z), z) for c in (process.alpha(t), process.sigma(t)))
        z_t = alpha * z + sigma * eps
        c_out = expand(model.coefficients(t).c_out.to(z), z)
        error = c_out * (model(z_t, t, cond, augment) - model.target(z, eps, t))  # D - z, with all its digits
        simple = (error * alpha / sigma).square().flatten(1).mean(1)
        if not loss.weight:
            return loss.simple * simple
        squares = (error.detach() if loss.stop_mean else error).square().flatten(1).to(wide(z.device))
        x_k = z_t / expand(self.reverse.ratio[k.cpu() - 1].to(z), z)
        variance = self.reverse.variance(x_k, k, cond).flatten(1).to(squares)
        entry = cost(self.reverse, squares, variance, k) / squares.shape[1] + constant(
            self.reverse, k, squares
        )
        return loss.simple * simple + (loss.weight * self.loss.chain.steps * entry).to(simple)

    def index(self, t: Tensor) -> Tensor:
        """Indices of the chain nearest to times, (B,)."""
        times = self.reverse.times.to(t)
        return torch.bucketize(t, 0.5 * (times[1:] + times[:-1])) + 1

    def validation_times(self, u: Tensor, model: DiffusionModel) -> tuple[Tensor, Tensor]:
        """The chain's own times, equally often."""
        t = self.description.times.sample(u, model.process)
        return t, torch.ones_like(t)
