r"""Distances between sets of samples: how far two laws are apart, and whether samples are copies."""

from __future__ import annotations

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
