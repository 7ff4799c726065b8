r"""Bayes' rule with a conditional model: which condition explains a datum best, and how sure that is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .likelihood import LogLikelihood, log_likelihood
from .model import DiffusionModel
from .run import rows_of


@dataclass(frozen=True, repr=False)
class Classification:
    r"""Likelihoods of n data under C conditions, and what Bayes' rule makes of them.

    .. math:: P(c\,|\,x) = \frac{\pi_c\, p(x|c)}{\sum_k \pi_k\, p(x|k)}

    A row in which the likelihood of a class failed (nan) is unknown: its posterior is nan, its class -1.

    Attributes:
        likelihoods: A :class:`LogLikelihood` of n rows for each class.
        conds: The conditions, (C, ...).
        class_prior: Probability pi of each class, (C,) float64.
    """

    likelihoods: tuple[LogLikelihood, ...]
    conds: Tensor
    class_prior: Tensor

    @property
    def log_prob(self) -> Tensor:
        """Log-densities log p(x | c), (n, C), nats."""
        return torch.stack([r.log_prob for r in self.likelihoods], dim=1)

    @property
    def log_joint(self) -> Tensor:
        """Their sums with the log-priors, log p(x | c) + log pi_c, (n, C), nats."""
        return self.log_prob + self.class_prior.log().to(self.log_prob)

    @property
    def log_evidence(self) -> Tensor:
        """Log-density log p(x) of the mixture of all classes, (n,), nats."""
        return self.log_joint.logsumexp(dim=1)

    @property
    def posterior(self) -> Tensor:
        """P(c | x), (n, C)."""
        return self.log_joint.softmax(dim=1)

    @property
    def predicted(self) -> Tensor:
        """Number of the most probable class, (n,) int64, a row of `conds`; -1 where it is unknown."""
        return torch.where(self._known, self.log_joint.argmax(dim=1), -1)

    @property
    def _known(self) -> Tensor:
        return ~self.log_joint.isnan().any(dim=1)

    def log_odds(self, first: int | Tensor, second: int | Tensor) -> LogLikelihood:
        r"""Log-odds :math:`\log P(a|x) - \log P(b|x)` of two classes, with their errors.

        The probes are the same ones under both conditions. Errors that similar conditions share cancel in the
        difference, but nothing forbids that they add up instead: the standard error stated is the sum of
        both, which bounds it whatever their correlation, with the degrees of freedom of the less certain one.

        Args:
            first: Number of class a, or one a datum, (n,).
            second: Number of class b, likewise.

        Returns:
            A difference of two likelihoods, n rows; its `log_prob` are the log-odds and ``interval(0.95)``
            says where they lie. Rows that are unknown are nan.

        Raises:
            ValueError: If the likelihoods are of different kinds, or a number is none of a class.
        """
        n = len(self.likelihoods[0].log_prob)
        a, b = (self._numbers(v, n) for v in (first, second))
        rows, together = torch.arange(n, device=a.device), LogLikelihood.join(list(self.likelihoods))
        one, two = together.take(a * n + rows), together.take(b * n + rows)
        difference = one - two
        log_prior = self.class_prior.log().to(difference.log_prob)
        value = difference.log_prob + log_prior[a] - log_prior[b]
        return replace(
            difference,
            log_prob=torch.where(self._known, value, torch.nan),
            std_error=one.std_error + two.std_error,
            degrees=torch.minimum(one.degrees, two.degrees),
        )

    def sure(self, level: float = 0.95) -> Tensor:
        """Whether the predicted class leads every other by more than the numbers' own errors, (n,) bool.

        Its log-odds against each other class have an interval (:meth:`log_odds`) above 0. It says nothing of
        how well the model was trained; False where an error is unknown (one probe, a foreign solver).

        Args:
            level: Coverage of the intervals, in (0, 1).
        """
        best = self.predicted.clamp(min=0)
        leads = [
            (self.log_odds(best, c).interval(level)[0] > 0) | (best == c)
            for c in range(len(self.likelihoods))
        ]
        return torch.stack(leads).all(dim=0) & self._known

    def _numbers(self, classes: int | Tensor, n: int) -> Tensor:
        """Numbers of classes, one a datum."""
        numbers = torch.as_tensor(classes, device=self.likelihoods[0].log_prob.device)
        count = len(self.likelihoods)
        if numbers.shape not in ((), (n,)) or not bool(((numbers >= 0) & (numbers < count)).all()):
            raise ValueError(f"class {classes}: give a number from 0 to {count - 1}, or {n} of them")
        return numbers.long().expand(n)

    def __repr__(self) -> str:
        n, known = len(self._known), int(self._known.sum())
        return f"Classification({n} rows, {len(self.conds)} classes, {known} rows known)"


def classify(
    model: DiffusionModel,
    x: Tensor,
    conds: Any = None,
    class_prior: Any = None,
    *,
    indices: Any = None,
    **options: Any,
) -> Classification:
    r"""Classify data by log p(x | c): the class that explains them best, by Bayes' rule.

    The likelihood is evaluated under every condition; datum i has the same probes under all of them (common
    random numbers), so that differences between similar classes are sharper than the values.

    Args:
        model: A conditional model.
        x: Data in data units, (n, *data_shape).
        conds: The conditions, one a class, (C, ...); the labels 0 .. num_classes-1 of the network by default.
        class_prior: Probabilities of the classes, (C,), or numbers proportional to them; equal by default.
        indices: Names of the data, (n,) integers, for the probes; 0 .. n-1 by default.
        **options: solver, divergence, nodes, steps, grid, rtol, atol, seed, t_span, prior (the one at t_max),
            batch_size and on_failure of :func:`~sdediff.likelihood.log_likelihood`. All classes are one
            evaluation: messages of failures count its rows, class by class.

    Returns:
        A :class:`Classification`.

    Raises:
        ValueError: If conditions are lacking or fewer than two, or `class_prior` is not a distribution over
            them.

    Example:
        >>> import torch, sdediff
        >>> process = sdediff.VP()
        >>> def score(x, t, mean):  # x_0 ~ N(mean, 1)
        ...     return process.alpha(t)[:, None] * mean - x
        >>> model = sdediff.from_callable(score, process, data_shape=(1,))
        >>> x = torch.tensor([[-2.0], [0.1], [3.0]], dtype=torch.float64)
        >>> result = classify(model, x, conds=torch.tensor([[-1.0], [1.0]]))
        >>> result.predicted, result.posterior[1].round(decimals=2)  # 1 / (1 + exp(2 x)) and the rest
        (tensor([0, 1, 1]), tensor([0.4500, 0.5500], dtype=torch.float64))
    """
    x = model.check_batch(x)
    conds = _conditions(model, conds).to(x.device)
    n, count = len(x), len(conds)
    distribution = _distribution(class_prior, count)
    joint = log_likelihood(
        model,
        x.repeat(count, *(1,) * (x.ndim - 1)),
        cond=conds.repeat_interleave(n, dim=0),
        indices=rows_of(n, indices).repeat(count),
        **options,
    )
    likelihoods = tuple(joint.take(slice(c * n, (c + 1) * n)) for c in range(count))
    return Classification(likelihoods, conds, distribution)


def _conditions(model: DiffusionModel, conds: Any) -> Tensor:
    """A condition a class, (C, ...)."""
    if conds is None:
        count = getattr(model.network, "config", {}).get("num_classes", 0)
        if not count:
            raise ValueError("the network knows no number of classes: give conds=, a condition for each")
        return torch.arange(count)
    conds = conds if isinstance(conds, Tensor) else torch.tensor(conds)
    if conds.ndim == 0 or len(conds) < 2:
        raise ValueError(f"conds of shape {tuple(conds.shape)}: give the conditions of two classes or more")
    return conds


def _distribution(class_prior: Any, count: int) -> Tensor:
    """Probabilities of the classes, (C,) float64."""
    if class_prior is None:
        return torch.full((count,), 1 / count, dtype=torch.float64)
    try:
        weights = torch.as_tensor(class_prior, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):  # words, or an object meant for prior=
        weights = torch.empty(0)
    valid = weights.shape == (count,) and bool(torch.isfinite(weights).all() and (weights >= 0).all())
    if not valid or not bool(weights.sum() > 0):
        raise ValueError(
            f"class_prior={class_prior}: give {count} numbers that are not negative, a probability for each "
            "class (the prior at t_max is prior=)"
        )
    return weights / weights.sum()
