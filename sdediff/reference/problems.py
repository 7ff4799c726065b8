r"""Ready-made closed-form problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from sdediff.reference.mixture import GaussianMixture
from sdediff.reference.product import RotatedProduct

Problem = TypeVar("Problem", GaussianMixture, RotatedProduct)


def random_mixture(
    dim: int = 16,
    components: int = 4,
    seed: int = 0,
    *,
    spread: float = 2.0,
    dtype: torch.dtype | None = None,
) -> GaussianMixture:
    """A mixture with full random covariances, unequal weights and a mean away from zero.

    Component means are normal about (1, -1, 1, ...) with standard deviation ``spread``; covariances have
    random axes and variances log-uniform in [0.05, 1]; weights are within a factor of three of each other.

    Args:
        dim: Dimension d.
        components: Number of components K.
        seed: Seed of the problem; the global random state is not touched.
        spread: Standard deviation of the component means.
        dtype: What ``sample`` returns; torch's default when left out.

    Raises:
        ValueError: If ``dim`` or ``components`` is not positive.

    Example:
        >>> random_mixture(dim=16, components=4, seed=0)
        GaussianMixture(dim=16, components=4)
    """
    generator = _generator(dim, components, seed)
    offset = torch.ones(dim, dtype=torch.float64)
    offset[1::2] = -1
    means = offset + spread * torch.randn(components, dim, generator=generator, dtype=torch.float64)
    variances = 0.05 ** torch.rand(components, dim, generator=generator, dtype=torch.float64)
    bases = torch.stack([_rotation(dim, generator) for _ in range(components)])
    covs = (bases * variances[:, None]) @ bases.mT
    weights = 1 + 2 * torch.rand(components, generator=generator, dtype=torch.float64)
    return _with_dtype(GaussianMixture(means, 0.5 * (covs + covs.mT), weights), dtype)


def random_product(
    dim: int = 8, components: int = 3, seed: int = 0, *, dtype: torch.dtype | None = None
) -> RotatedProduct:
    """A randomly rotated and shifted product of mixtures, with an exact nonlinear flow.

    Args:
        dim: Dimension d.
        components: Components per axis.
        seed: Seed of the problem.
        dtype: What ``sample`` returns; torch's default when left out.

    Raises:
        ValueError: If ``dim`` or ``components`` is not positive.

    Example:
        >>> random_product(dim=8, seed=0)
        RotatedProduct(dim=8)
    """
    generator = _generator(dim, components, seed)
    means = 1.5 * torch.randn(dim, components, generator=generator, dtype=torch.float64)
    variances = 0.1 + 0.3 * torch.rand(dim, components, generator=generator, dtype=torch.float64)
    weights = 1 + 2 * torch.rand(dim, components, generator=generator, dtype=torch.float64)
    shift = torch.randn(dim, generator=generator, dtype=torch.float64)
    return _with_dtype(RotatedProduct(means, variances, weights, _rotation(dim, generator), shift), dtype)


def eight_gaussians(
    radius: float = 2.0, std: float = 0.2, *, dtype: torch.dtype | None = None
) -> GaussianMixture:
    """Eight equal round Gaussians on a circle in the plane.

    Args:
        radius: Radius of the circle.
        std: Standard deviation of each Gaussian.
        dtype: What ``sample`` returns; torch's default when left out.

    Example:
        >>> eight_gaussians().sample(5, seed=0).shape
        torch.Size([5, 2])
    """
    return rings((radius,), (8,), std, dtype=dtype)


def rings(
    radii: Sequence[float] = (1.0, 2.0),
    counts: Sequence[int] = (8, 16),
    std: float = 0.15,
    *,
    dtype: torch.dtype | None = None,
) -> GaussianMixture:
    """Concentric rings in the plane made of equal round Gaussians, evenly spaced on each ring.

    Args:
        radii: Radius of each ring.
        counts: Number of Gaussians on each ring.
        std: Standard deviation of each Gaussian.
        dtype: What ``sample`` returns; torch's default when left out.

    Raises:
        ValueError: If ``radii`` and ``counts`` differ in length, or a parameter is out of range.

    Example:
        >>> rings()
        GaussianMixture(dim=2, components=24)
    """
    if len(radii) != len(counts) or min(counts, default=0) < 1:
        raise ValueError(
            f"{len(radii)} radii and counts {tuple(counts)} do not match: give one positive count per radius"
        )
    angles = [2 * math.pi * i / count for count in counts for i in range(count)]
    radius = [r for r, count in zip(radii, counts, strict=True) for _ in range(count)]
    means = [[r * math.cos(a), r * math.sin(a)] for r, a in zip(radius, angles, strict=True)]
    return _with_dtype(GaussianMixture(means, std**2), dtype)


def _with_dtype(problem: Problem, dtype: torch.dtype | None) -> Problem:
    problem.dtype = dtype or torch.get_default_dtype()
    return problem


def _generator(dim: int, components: int, seed: int) -> torch.Generator:
    if dim < 1 or components < 1:
        raise ValueError(f"dim={dim} and components={components} must both be positive")
    return torch.Generator().manual_seed(seed)


def _rotation(dim: int, generator: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
