r"""Anomaly scores: how unlikely, or how untypical, a datum is under a model of normal data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .likelihood import LogLikelihood, log_likelihood
from .model import DiffusionModel

KINDS = ("log-density", "typicality")


@dataclass(frozen=True, repr=False)
class AnomalyScores:
    """Scores of n data: the larger, the more anomalous.

    Attributes:
        kind: "log-density" or "typicality".
        likelihood: Log-likelihoods of the data, with their errors.
        reference: Log-likelihoods of the reference data, or None.
    """

    kind: str
    likelihood: LogLikelihood
    reference: LogLikelihood | None = None

    @property
    def value(self) -> Tensor:
        """The scores, (n,), nats; nan where a solve failed."""
        return self._of(self.likelihood.log_prob)

    def _of(self, log_prob: Tensor) -> Tensor:
        return (log_prob - self._centre).abs() if self.kind == "typicality" else -log_prob

    @property
    def _centre(self) -> float:
        assert self.reference is not None, "checked when typicality is asked for"
        return self.reference.mean().value

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Interval for the scores from the log-likelihoods' own errors, ``(low, high)``, each (n,).

        The mean of the reference is taken as it is: its error moves all scores alike.

        Args:
            level: Coverage, in (0, 1).
        """
        ends = torch.stack(self.likelihood.interval(level))
        low, high = self._of(ends).aminmax(dim=0)
        if self.kind == "typicality":  # folded at the centre
            low = torch.where((ends[0] < self._centre) & (self._centre < ends[1]), 0.0, low)
        return low, high

    def p_value(self) -> Tensor:
        r"""Conformal p-values from the reference, (n,): :math:`(1 + \#\{r_j \ge s\})/(1 + m)`.

        Where reference and normal data are alike and neither was trained on, a normal datum gets p <= q with
        probability at most q, whatever the model: calling p <= 0.05 odd calls at most one normal datum in
        20 so. (For "typicality" but for the error of the reference's mean.)

        Raises:
            ValueError: If there was no reference.

        Source: Bates et al. 2023, Testing for outliers with conformal p-values, Ann. Statist. 51, Eq. 2
            (arXiv 2104.08279), with larger scores odd.
        """
        if self.reference is None:
            raise ValueError("p-values compare with normal data: give anomaly_score a reference=")
        own, value = self._of(self.reference.log_prob), self.value
        own = own[~own.isnan()].sort().values
        at_least = len(own) - torch.searchsorted(own, value.contiguous())
        return torch.where(value.isnan(), torch.nan, (1 + at_least).to(value) / (1 + len(own)))

    def __repr__(self) -> str:
        value = self.value
        return f"AnomalyScores({len(value)} rows, median {float(value.nanmedian()):.4g}, kind={self.kind!r})"


def anomaly_score(
    model: DiffusionModel,
    x: Tensor,
    reference: Tensor | LogLikelihood | None = None,
    kind: str = "log-density",
    **options: Any,
) -> AnomalyScores:
    r"""How anomalous data are under a model of normal data.

    "log-density" is :math:`-\log p(x)`. "typicality" is :math:`|\log p(x) - \overline{\log p}|`, the mean
    taken over the reference: in many dimensions almost all data have about one log-density, and what is far
    *more* likely than that is as odd as what is less (Nalisnick et al. 2019, arXiv 1906.02994, Eq. 4, for one
    datum). Take as reference normal data that were not trained on, or its mean is too high.

    Args:
        model: A model of normal data.
        x: Data in data units, (n, *data_shape).
        reference: Normal data, (m, *data_shape), or their :class:`LogLikelihood`, evaluated with the same
            options. "typicality" needs it, and so do p-values.
        kind: "log-density" or "typicality".
        **options: Those of :func:`~sdediff.likelihood.log_likelihood`, for x and the reference alike.

    Returns:
        :class:`AnomalyScores`; :func:`sdediff.roc` compares the `value` of normal and of odd data.

    Raises:
        ValueError: If the kind is unknown, typicality has no reference, or the reference's likelihoods are of
            another kind, prior or interval than those of x.

    Example:
        >>> import torch, sdediff
        >>> data = sdediff.reference.eight_gaussians()
        >>> x = torch.tensor([[2.0, 0.0], [0.0, 0.0]])  # on a mode, and amidst them
        >>> scores = anomaly_score(data.model(sdediff.VP()), x, reference=data.sample(50, seed=0))
        >>> bool(scores.value[1] > scores.value[0] + 10), scores.p_value()[1]
        (True, tensor(0.0196, dtype=torch.float64))
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not known: take one of {', '.join(KINDS)}")
    if kind == "typicality" and reference is None:
        raise ValueError("typicality compares with normal data: give reference=, data not trained on")
    likelihood = log_likelihood(model, x, **options)
    if reference is not None and not isinstance(reference, LogLikelihood):
        reference = log_likelihood(model, reference, **options)
    if reference is not None:
        likelihood.check_same(reference)
    return AnomalyScores(kind, likelihood, reference)
