r"""Distances between sets of samples (how far two laws are apart, whether samples are copies), ROC curves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_PAIRS = 1 << 22  # distances held at once


def energy_distance(x: Tensor, y: Tensor, *, unbiased: bool = False) -> Tensor:
    r"""Energy distance between the laws of two sets of samples, in units of the Euclidean distance.

    .. math:: D(x, y) = \frac{2}{nm}\sum_{ij}|x_i-y_j| - \frac{1}{n^2}\sum_{ij}|x_i-x_j|
                        - \frac{1}{m^2}\sum_{ij}|y_i-y_j|

    estimates :math:`2E|X-Y| - E|X-X'| - E|Y-Y'|`, which is 0 for equal laws and positive for any others. This
    sum (the V-statistic) is never negative and, for equal laws, :math:`(1/n + 1/m)\,E|X-X'|` on average:
    compare it with the value of two sets of real data of the same sizes. Dividing the last two sums by n(n-1)
    and m(m-1) (the U-statistic) takes that away, at the price of negative values.

    Args:
        x: Samples, (n, *E).
        y: Samples, (m, *E).
        unbiased: The U-statistic; it needs two rows of each.

    Returns:
        The distance, () float64 (float32 where the device has no float64). Its square root is a metric
        between laws.

    Raises:
        ValueError: If the shapes differ, there are too few rows, or a value is not finite.

    References:
        Székely & Rizzo (2013), Energy statistics: a class of statistics based on distances, J. Stat. Plan.
        Inference 143, 1249-1272. `scipy.stats.energy_distance` (one dimension) is the V-statistic's root.

    Example:
        >>> x = torch.tensor([[0.0], [1.0]])
        >>> energy_distance(x, x + 3)  # 2 * 3 - 1/2 - 1/2
        tensor(5., dtype=torch.float64)
    """
    x, y = _rows(x, y, "x", "y")
    fewest = 2 if unbiased else 1
    if min(len(x), len(y)) < fewest:
        raise ValueError(
            f"energy_distance was given {len(x)} and {len(y)} rows: give at least {fewest} of each"
        )
    n, m = (len(v) - 1 if unbiased else len(v) for v in (x, y))
    between = 2 * _sum_of_distances(x, y) / (len(x) * len(y))
    return between - _sum_of_distances(x, x) / (len(x) * n) - _sum_of_distances(y, y) / (len(y) * m)


def nearest_neighbour_distance(x: Tensor, reference: Tensor) -> Tensor:
    r"""Euclidean distance of each sample to the nearest row of a reference set, :math:`\min_j |x_i - r_j|`.

    Against the training data it tells copies from new samples: where samples lie nearer to them than held-out
    data do, the model memorises.

    Args:
        x: Samples, (n, *E).
        reference: Reference set, (m, *E).

    Returns:
        Distances, (n,) float64 (float32 where the device has no float64).

    Raises:
        ValueError: If the shapes differ, a set is empty, or a value is not finite.

    Example:
        >>> nearest_neighbour_distance(torch.tensor([[0.0], [5.0]]), torch.tensor([[1.0], [7.0]]))
        tensor([1., 2.], dtype=torch.float64)
    """
    x, reference = _rows(x, reference, "x", "reference")
    if min(len(x), len(reference)) < 1:
        raise ValueError(
            f"nearest_neighbour_distance was given {len(x)} and {len(reference)} rows: "
            "give at least one of each"
        )
    size = max(1, _PAIRS // len(reference))
    return torch.cat([_distances(part, reference).min(dim=1).values for part in x.split(size)])


@dataclass(frozen=True, repr=False)
class ROC:
    """A receiver operating characteristic: the rates of calls at every threshold.

    Attributes:
        fpr: Share of normal scores at or above each threshold, rising from 0 to 1.
        tpr: Share of anomalous scores likewise.
        thresholds: Falling; the first is infinite.
        auc: Area under the curve: the probability that an anomalous score exceeds a normal one, ties counted
            by half.
        std_error: Its standard error, from the choice of both sets (DeLong et al. 1988); 0 where they are
            perfectly apart, which `interval` is not fooled by.
        sizes: Numbers of normal and of anomalous scores.
    """

    fpr: Tensor
    tpr: Tensor
    thresholds: Tensor
    auc: float
    std_error: float
    sizes: tuple[int, int]

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Interval for the area, ``(low, high)``.

        Two are made and the wider bound is taken at either end: DeLong's error on the logit scale, right for
        any laws but too narrow for few data or an area near 1; and Newcombe's (2006, method 5), the areas
        from which the observed one is within its exponential-law error, good there but for laws of unequal
        spread. At 95 % they covered 0.94 to 1 for areas from 0.6 to 0.99, 10 to 200 scores a set and four
        pairs of laws.

        Args:
            level: Coverage, in (0, 1).

        Raises:
            ValueError: If the level is not in (0, 1).
        """
        from scipy.special import expit, logit, ndtri

        if not 0 < level < 1:
            raise ValueError(f"level={level}: give a coverage between 0 and 1, such as 0.95")
        quantile = float(ndtri(0.5 + level / 2))
        low = _newcombe(self.auc, self.sizes, quantile)
        high = 1 - _newcombe(1 - self.auc, self.sizes, quantile)
        if 0 < self.auc < 1:
            spread = quantile * self.std_error / (self.auc * (1 - self.auc))
            ends = expit(logit(self.auc) + torch.tensor([-spread, spread]).double().numpy())
            low, high = min(low, float(ends[0])), max(high, float(ends[1]))
        return low, high

    def __repr__(self) -> str:
        low, high = self.interval()
        return f"ROC(auc={self.auc:.4f}, 95 % interval {low:.4f} to {high:.4f}, sizes={self.sizes})"


def roc(scores_normal: Tensor, scores_anomalous: Tensor) -> ROC:
    r"""The ROC curve of a score that should be larger for anomalous data, and its area with an error.

    The area is the Mann-Whitney statistic. With the share of anomalous scores above each normal one, and of
    normal scores below each anomalous one (the *placements*), its variance is that of the placements over
    their numbers, summed over both sets.

    Args:
        scores_normal: Scores of normal data, (n,).
        scores_anomalous: Scores of anomalous data, (m,).

    Returns:
        A :class:`ROC`.

    Raises:
        ValueError: If a set has fewer than two scores, is no vector, or has NaN.

    Source: DeLong, DeLong & Clarke-Pearson (1988), Biometrics 44, 837-845, section 3; the placements by
        midranks as Sun & Xu (2014), IEEE Signal Process. Lett. 21, 1389-1393, Eq. 11. Newcombe (2006), Stat.
        Med. 25, 559-573.

    Example:
        >>> curve = roc(torch.tensor([0.1, 0.4, 0.6]), torch.tensor([0.5, 0.8, 0.9]))
        >>> round(curve.auc, 4), curve.fpr.tolist()[0], curve.tpr.tolist()[-1]  # 8 of 9 pairs in order
        (0.8889, 0.0, 1.0)
    """
    from scipy.stats import rankdata
    from sklearn.metrics import roc_curve

    normal, odd = _scores(scores_normal, "scores_normal"), _scores(scores_anomalous, "scores_anomalous")
    n, m = len(normal), len(odd)
    together = torch.cat([normal, odd]).numpy()
    ranks = torch.from_numpy(rankdata(together))  # midranks
    below = (ranks[n:] - torch.from_numpy(rankdata(odd))) / n  # normal scores below each anomalous one
    above = 1 - (ranks[:n] - torch.from_numpy(rankdata(normal))) / m
    variance = float(below.var()) / m + float(above.var()) / n
    curve = roc_curve([0] * n + [1] * m, together)
    fpr, tpr, thresholds = (torch.from_numpy(v) for v in curve)
    return ROC(fpr, tpr, thresholds, float(below.mean()), math.sqrt(variance), (n, m))


def _newcombe(area: float, sizes: tuple[int, int], quantile: float) -> float:
    """The smallest area from which the observed one is `quantile` standard errors away, or less."""
    from scipy.optimize import brentq

    pairs, more = math.prod(sizes), sum(sizes) / 2 - 1

    def excess(theta: float) -> float:
        shape = 1 + more * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (area - theta) ** 2 - quantile**2 * theta * (1 - theta) * shape / pairs

    if area == 0:
        return 0.0
    # At area = 1 the ends of the interval are both roots: stop short of the upper one.
    return float(brentq(excess, 0.0, area if area < 1 else 1 - 1e-9))


def _scores(value: Tensor, name: str) -> Tensor:
    """A set of scores as a float64 vector on the host, checked."""
    if not isinstance(value, Tensor) or value.ndim != 1 or len(value) < 2:
        given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} is {given}: give a tensor of two scores or more")
    if bool(value.isnan().any()):
        raise ValueError(f"{name} has NaN: leave out the rows whose likelihood failed, and say how many")
    return value.detach().cpu().double()


def _rows(x: Tensor, y: Tensor, x_name: str, y_name: str) -> tuple[Tensor, Tensor]:
    """Both sets as wide matrices, checked."""
    for name, value in ((x_name, x), (y_name, y)):
        if not isinstance(value, Tensor) or value.ndim < 2:
            given = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name} is {given}: give a tensor (n, *E), a row for each sample")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"{name} has NaN or infinite values: remove those rows")
    if x.shape[1:] != y.shape[1:]:
        raise ValueError(
            f"{x_name} has rows of shape {tuple(x.shape[1:])} and {y_name} of shape {tuple(y.shape[1:])}: "
            "give rows of one shape"
        )
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    x, y = (v.detach().to(x.device, wide) for v in (x, y))
    return x.flatten(1), y.flatten(1)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    # The product form of cdist loses half the digits of small distances.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _sum_of_distances(x: Tensor, y: Tensor) -> Tensor:
    parts = [_distances(part, y).sum() for part in x.split(max(1, _PAIRS // len(y)))]
    return torch.stack(parts).sum()
