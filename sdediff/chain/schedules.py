"""Schedules of betas, the variances of a chain's steps; a user's own go to :meth:`Chain.from_betas`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def linear_betas(steps: int, beta_min: float = 0.1, beta_max: float = 20.0) -> Tensor:
    r"""Betas that rise linearly, with a sum that does not depend on the number of steps.

    .. math:: \beta_k = \frac1T\Big(\beta_{min} + \frac{k-1}{T-1}(\beta_{max} - \beta_{min})\Big)

    With T = 1000 these are the 1e-4 ... 0.02 of Ho, Jain & Abbeel (2020), arXiv 2006.11239, section 4; in
    general those of Song et al. (2021), arXiv 2011.13456, appendix C.

    Args:
        steps: T, at least 2 and above beta_max.
        beta_min: T times the first beta.
        beta_max: T times the last beta.

    Returns:
        (T,) float64.

    Raises:
        ValueError: If a beta would not lie in (0, 1).

    Example:
        >>> [round(float(beta), 12) for beta in linear_betas(1000)[[0, -1]]]
        [0.0001, 0.02]
    """
    if steps < 2 or not 0 < beta_min <= beta_max < steps:
        raise ValueError(
            f"steps={steps}, beta_min={beta_min:g}, beta_max={beta_max:g}: "
            "give at least two steps and 0 < beta_min <= beta_max < steps"
        )
    return torch.linspace(beta_min, beta_max, steps, dtype=torch.float64) / steps


def cosine_betas(steps: int, offset: float = 0.008, max_beta: float = 0.999) -> Tensor:
    r"""The cosine schedule, with its clip.

    .. math:: \bar\alpha_k = f(k)/f(0), \quad f(k) = \cos^2\Big(\frac{k/T + s}{1+s}\,\frac\pi2\Big), \quad
              \beta_k = \min(1 - \bar\alpha_k/\bar\alpha_{k-1},\ \beta_{max})

    Source: Nichol & Dhariwal (2021), arXiv 2102.09672, Eq. 17 and the sentence after it. Without the clip the
    last beta is 1.

    Args:
        steps: T, at least 2.
        offset: s, which keeps the first steps from being too small.
        max_beta: Largest beta, below 1.

    Returns:
        (T,) float64.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> cosine_betas(4).round(decimals=4)
        tensor([0.1530, 0.4170, 0.7079, 0.9990], dtype=torch.float64)
    """
    if not 0 < offset < math.inf:
        raise ValueError(f"offset={offset!r}: give a positive number, such as 0.008")
    return _betas(lambda u: torch.cos((u + offset) / (1 + offset) * math.pi / 2).square(), steps, max_beta)


def sigmoid_betas(
    steps: int, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
) -> Tensor:
    r"""The sigmoid schedule of alpha-bar.

    .. math:: \bar\alpha(u) = \frac{s(end) - s(start + u\,(end - start))}{s(end) - s(start)}, \quad
              s(a) = \mathrm{sigmoid}(a/\tau), \quad u = k/T

    Source: Chen (2023), arXiv 2301.10972, algorithm 1 (its gamma is alpha-bar), clipped as the cosine
    schedule is. The schedule of betas along a sigmoid that molecule models use is another one; it is
    ``from_betas`` of ``torch.sigmoid(torch.linspace(-6, 6, T)) * (high - low) + low``.

    Args:
        steps: T, at least 2.
        start: Where the sigmoid begins.
        end: Where it ends, above `start`.
        tau: Temperature, positive: larger ones take longer over noisy steps.
        max_beta: Largest beta, below 1.

    Returns:
        (T,) float64.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> sigmoid_betas(4).round(decimals=4)
        tensor([0.1491, 0.4124, 0.7017, 0.9990], dtype=torch.float64)
    """
    if not (start < end and tau > 0):
        raise ValueError(f"start={start:g}, end={end:g}, tau={tau:g}: give start < end and a positive tau")
    top = torch.sigmoid(torch.tensor(end / tau, dtype=torch.float64))
    return _betas(lambda u: top - torch.sigmoid((start + u * (end - start)) / tau), steps, max_beta)


def _betas(alpha_bar: Callable[[Tensor], Tensor], steps: int, max_beta: float) -> Tensor:
    """Betas from any multiple of alpha-bar on [0, 1]."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2 or not 0 < max_beta < 1:
        raise ValueError(
            f"steps={steps!r}, max_beta={max_beta!r}: give a whole number of steps of at least 2, and a "
            "largest beta between 0 and 1"
        )
    bar = alpha_bar(torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    return (1 - bar[1:] / bar[:-1]).clamp(max=max_beta)
