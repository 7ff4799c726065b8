r"""The denoising score-matching loss: a weighting, a distribution of times, and where the times are drawn.

.. math:: L = E_{t\sim times}\; w(t)\, E_{z_0,\epsilon}\, \tfrac1d\,|F(z_t, t) - F^*|^2, \qquad z_t = \alpha
z_0 + \sigma\epsilon

(Vincent 2011; Song et al. 2021, arXiv 2011.13456, Eq. 7.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdediff.processes import GaussianProcess
from sdediff.training.objective import DenoisingObjective, Objective, Targets
from sdediff.training.times import Times, UniformTime, stratified
from sdediff.training.weightings import Balanced, Native, Weighting, network_weight

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel


_NATIVE, _UNIFORM = Native(), UniformTime()


@dataclass(frozen=True)
class DenoisingLoss:
    """A denoising loss.

    Args:
        weighting: Weight of the errors over time; an object of :mod:`sdediff.training.weightings` or any
            function (process, t) giving the weight on the squared error of the noise estimate.
        times: The distribution the loss is an average over.
        proposal: The distribution times are drawn from; the ratio of densities is divided out, so it changes
            the variance of the gradient and not its mean. `times` itself when left out;
            :class:`~sdediff.training.Adaptive` learns it.
        low_discrepancy: Whether a batch has one time in each of as many equal shares of the proposal, which
            makes the gradient less noisy (Kingma et al. 2021, arXiv 2107.00630, appendix I.1), or
            independent ones.
        targets: What the network learns in place of each row's own target, such as
            :class:`~sdediff.training.StableTargets`; validation is by the rows' own.

    Example:
        >>> from sdediff.processes import VE
        >>> from sdediff.training import Likelihood, UniformLogSNR
        >>> loss = DenoisingLoss(Likelihood(), UniformTime(), proposal=UniformLogSNR())
        >>> t, importance = loss.draw(VE(), stratified(0.5, 4))
        >>> importance  # VE's time is log-SNR already
        tensor([1., 1., 1., 1.], dtype=torch.float64)
    """

    weighting: Weighting | Native | Balanced = _NATIVE
    times: Times = _UNIFORM
    proposal: Times | None = None
    low_discrepancy: bool = True
    targets: Targets | None = None

    def draw(self, process: GaussianProcess, u: Tensor) -> tuple[Tensor, Tensor]:
        """Times of the proposal for uniform numbers u, and importance weights; both float64, of u's shape."""
        t = (self.proposal or self.times).sample(u, process)
        return t, self.importance(process, t, self.proposal or self.times)

    def importance(self, process: GaussianProcess, t: Tensor, proposal: Times) -> Tensor:
        """Density of `times` over that of `proposal` at t."""
        if proposal == self.times:
            return torch.ones_like(t)
        return self.times.density(t, process) / proposal.density(t, process)

    def objective(self, model: DiffusionModel) -> Objective:
        """What a run carries along."""
        return DenoisingObjective(self, model)

    def mean_weight(self, model: DiffusionModel, nodes: int = 4096) -> float:
        """Mean over `times` of the weight on the network's squared error, by midpoint quadrature."""
        t, importance = self.draw(model.process, stratified(0.5 / nodes, nodes))
        return float((importance * network_weight(self.weighting, model, t)).mean())
