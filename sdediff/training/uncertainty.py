r"""Weights over noise levels that are learnt along with the model.

.. math:: L = E_t\; \frac{w(t)\,|F - F^*|^2/d}{e^{u(t)}} + u(t)

is smallest in u where :math:`e^u` is the mean weighted error of that noise level, so that every level ends up
with the same share of the loss (Karras et al. 2024, arXiv 2312.02696, Eq. 21; after Kendall et al. 2018,
arXiv 1705.07115). u is a linear function of Fourier features of the noise level, used in training only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sdediff.networks.embeddings import FourierFeatures
from sdediff.training.denoising import DenoisingLoss
from sdediff.training.objective import DenoisingObjective
from sdediff.training.times import LogNormal
from sdediff.training.weightings import Karras

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel


@dataclass(frozen=True)
class LearnedUncertainty:
    """A denoising loss divided by its own mean at each noise level, as learnt; it may fall below zero.

    Args:
        loss: The loss whose weighted errors are balanced.
        features: Fourier features of the noise level, an even number.

    Example:
        >>> import sdediff
        >>> sdediff.fit(
        ...     sdediff.DiffusionModel(sdediff.networks.MLP(dim=2, hidden=16), sdediff.VP(), "edm", (2,)),
        ...     torch.randn(100, 2), loss=LearnedUncertainty(), steps=3, progress=False,
        ... ).steps
        3
    """

    loss: DenoisingLoss = DenoisingLoss(Karras(), LogNormal())  # noqa: RUF009 - frozen
    features: int = 128

    def objective(self, model: DiffusionModel) -> UncertaintyObjective:
        """What a run carries along."""
        return UncertaintyObjective(self.loss, model, self.features)


class UncertaintyObjective(DenoisingObjective):
    """The run-time half of :class:`LearnedUncertainty`."""

    def __init__(self, loss: DenoisingLoss, model: DiffusionModel, features: int) -> None:
        super().__init__(loss, model)
        self.features = FourierFeatures(features)
        self.log_error = nn.Linear(features, 1, bias=False)
        nn.init.zeros_(self.log_error.weight)
        first = next(iter(model.parameters()), None)
        if first is not None:
            self.to(first.device)

    def uncertainty(self, model: DiffusionModel, t: Tensor) -> Tensor:
        """U at times (B,), of the dtype of the parameters."""
        level = (-0.25 * model.process.lam(t)).to(self.log_error.weight.dtype)
        return self.log_error(self.features(level)).squeeze(1)

    def combine(
        self, model: DiffusionModel, errors: Tensor, importance: Tensor, z: Tensor, eps: Tensor, t: Tensor
    ) -> Tensor:
        """Losses from weighted errors, all (B,)."""
        u = self.uncertainty(model, t)
        return importance * (errors * torch.exp(-u) + u)
