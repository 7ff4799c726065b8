"""Losses by name."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Protocol

from sdediff.training.adaptive import Adaptive
from sdediff.training.bound import VariationalBound
from sdediff.training.denoising import DenoisingLoss
from sdediff.training.objective import Objective
from sdediff.training.stf import StableTargets
from sdediff.training.times import LogitNormal, LogNormal, UniformLogSNR, UniformTime
from sdediff.training.uncertainty import LearnedUncertainty
from sdediff.training.weightings import (
    P2,
    X0,
    Balanced,
    Eps,
    Karras,
    Likelihood,
    MinSNR,
    Native,
    Score,
    Sigmoid,
    TruncatedSNR,
)

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel

__all__ = ["LOSSES", "DenoisingLoss", "Loss", "get_loss"]


class Loss(Protocol):
    """What ``fit(loss=...)`` takes besides a name: a frozen description with an objective."""

    def objective(self, model: DiffusionModel) -> Objective:
        """What a run carries along."""


_BALANCED = DenoisingLoss(Balanced(), LogNormal(mean=-1.0, std=2.0))

#: Losses by name, for ``fit(loss=...)``. "balanced" is the default because every noise level gets its share
#: of the steps: after equal numbers of them its score was nearest to the exact one on a ring of Gaussians
#: (against "native", "eps", "x0", "edm", "likelihood"), and its noise estimate the best on held-out digits
#: (against "native", "edm", "likelihood"), for "eps" and "edm" predictions, VP. Those of uniform time are as
#: the textbooks have them. One weight has several names: "snr" is its name on the denoiser's error.
LOSSES: dict[str, Loss] = {
    "balanced": _BALANCED,
    "native": DenoisingLoss(Native(), UniformTime()),
    "eps": DenoisingLoss(Eps(), UniformTime()),
    "x0": DenoisingLoss(X0(), UniformTime()),
    "score": DenoisingLoss(Score(), UniformTime()),
    "snr": DenoisingLoss(Eps(), UniformTime()),
    "truncated-snr": DenoisingLoss(TruncatedSNR(), UniformTime()),
    "min-snr": DenoisingLoss(MinSNR(), UniformTime()),
    "p2": DenoisingLoss(P2(), UniformTime()),
    "sigmoid": DenoisingLoss(Sigmoid(), UniformLogSNR()),
    "sigmoid-stable": DenoisingLoss(Sigmoid(), UniformLogSNR(), Adaptive(), targets=StableTargets()),
    "edm": DenoisingLoss(Karras(), LogNormal()),
    "flow": DenoisingLoss(Native(), LogitNormal()),
    "uncertainty": LearnedUncertainty(),
    "likelihood": DenoisingLoss(Likelihood(), UniformTime(), proposal=UniformLogSNR()),
    "likelihood-adaptive": DenoisingLoss(Likelihood(), UniformTime(), proposal=Adaptive()),
    "likelihood-stable": DenoisingLoss(
        Likelihood(), UniformTime(), proposal=Adaptive(), targets=StableTargets()
    ),
    "vlb": VariationalBound(),
    "adaptive": DenoisingLoss(_BALANCED.weighting, _BALANCED.times, proposal=Adaptive()),
    "stable-targets": DenoisingLoss(_BALANCED.weighting, _BALANCED.times, targets=StableTargets()),
}


def get_loss(loss: str | Loss) -> Loss:
    """The loss of a name, or the loss itself.

    Raises:
        ValueError: If no loss has this name.

    Example:
        >>> get_loss("edm").times
        LogNormal(mean=-0.5, std=1.2)
    """
    if not isinstance(loss, str) and hasattr(loss, "objective"):
        return loss
    if loss not in LOSSES:
        near = difflib.get_close_matches(str(loss), LOSSES, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"there is no loss {loss!r}{hint}: give one of {', '.join(LOSSES)} or a DenoisingLoss"
        )
    return LOSSES[loss]
