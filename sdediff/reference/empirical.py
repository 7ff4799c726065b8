r"""The uniform distribution over given points: what a model that memorises its training set has learnt."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdediff.reference.base import ArrayLike, ClosedForm, Time, dtype_of, parameter

if TYPE_CHECKING:
    from sdediff.processes import GaussianProcess

#: Elements of the (rows, N, d) differences held at once: 64 MB in float64.
CHUNK = 2**23


class Atoms(ClosedForm):
    """Data that lie on points, and so have a density under noise only."""

    def _inputs(
        self, process: GaussianProcess | None, x: Tensor, t: Time | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, alpha, sigma = super()._inputs(process, x, t)
        if bool((sigma == 0).any()):
            raise ValueError(
                "points have no density without noise: give a process and a time at which sigma is positive"
            )
        return x, alpha, sigma


class Empirical(Atoms):
    r"""N equally likely points :math:`x^{(n)}`; noised, the mixture of :math:`N(\alpha x^{(n)}, \sigma^2 I)`.

    .. math:: r = \mathrm{softmax}_n\big(-|x - \alpha x^{(n)}|^2 / 2\sigma^2\big), \quad
              \mathrm{x0} = \sum_n r_n x^{(n)}, \quad
              \mathrm{score} = (\alpha\,\mathrm{x0} - x)/\sigma^2.

    This is the minimiser of denoising score matching over all functions (Karras et al. 2022, arXiv
    2206.00364, Eq. 57): a baseline for memorisation. It has no density without noise, so ``t=None`` and
    times of zero sigma are errors. Distances come from differences, not from expanded squares, and stay
    exact at small sigma; rows are taken in chunks to bound memory.

    Args:
        points: The data, shape (N, d).

    Raises:
        ValueError: If the shape does not fit or a value is not finite.

    Example:
        >>> import torch, sdediff
        >>> data = Empirical([[0.0, 0.0], [1.0, 1.0]])
        >>> data.denoise(sdediff.EDM(), torch.tensor([[0.9, 0.8]]), t=0.01)
        tensor([[1., 1.]])
    """

    def __init__(self, points: ArrayLike) -> None:
        self.dtype = dtype_of(points)
        self.points = parameter("points", points, 2)
        self.mean = self.points.mean(0)
        centred = self.points - self.mean
        self.cov = centred.T @ centred / len(self.points)

    def _rows(self, compute: Callable[..., Tensor], x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """compute(x, standardised differences (rows, N, d), sigma) on chunks of rows."""
        points, size = self.points.to(x), max(1, CHUNK // self.points.numel())
        alpha, sigma = alpha.expand(len(x), 1), sigma.expand(len(x), 1)
        chunks = zip(x.split(size), alpha.split(size), sigma.split(size), strict=True)
        return torch.cat(
            [compute((a[..., None] * points - rows[:, None]) / s[..., None], s) for rows, a, s in chunks]
        )

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        def compute(difference: Tensor, sigma: Tensor) -> Tensor:
            per_axis = 0.5 * math.log(2 * math.pi) + sigma[:, 0].log()
            return _logits(difference).logsumexp(-1) - math.log(len(self.points)) - self.dim * per_axis

        return self._rows(compute, x, alpha, sigma)

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        x0 = self._rows(
            lambda difference, _: _logits(difference).softmax(-1) @ self.points.to(x), x, alpha, sigma
        )
        return (alpha * x0 - x) / sigma.square(), x0

    def _jacobian(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        def compute(difference: Tensor, sigma: Tensor) -> Tensor:
            r = _logits(difference).softmax(-1)[..., None]
            spread = difference - (r * difference).sum(1, keepdim=True)
            identity = torch.eye(self.dim, dtype=x.dtype, device=x.device)
            return ((r * spread).mT @ spread - identity) / sigma.square()[..., None]

        return self._rows(compute, x, alpha, sigma)

    def _sample(self, uniform: Tensor, normal: Tensor) -> Tensor:
        chosen = (uniform[:, 0] * len(self.points)).long().clamp(max=len(self.points) - 1)
        return self.points[chosen]

    def __repr__(self) -> str:
        return f"Empirical(dim={self.dim}, points={len(self.points)})"


def _logits(difference: Tensor) -> Tensor:
    return -0.5 * difference.square().sum(-1)
