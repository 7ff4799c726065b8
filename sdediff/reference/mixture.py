r"""Gaussian mixtures with full covariances, exact at every noise level."""

from __future__ import annotations

import torch
from torch import Tensor

from sdediff.reference.base import ArrayLike, ClosedForm, dtype_of, log_weights, noised, parameter


class GaussianMixture(ClosedForm):
    r"""A mixture of K Gaussians, :math:`p(x_0) = \sum_k w_k\,N(x_0; m_k, C_k)`.

    Noise keeps it a mixture, of :math:`N_k = N(\alpha m_k, Q_k)` with :math:`Q_k = \alpha^2 C_k + \sigma^2
    I`. With :math:`C_k = U_k\,\mathrm{diag}(l_k)\,U_k^T` stored, an evaluation at any time costs two
    products by :math:`U_k` and no solve. With component scores :math:`s_k = -Q_k^{-1}(x - \alpha m_k)` and
    responsibilities :math:`r_k \propto w_k N_k(x)`,

    .. math:: s = \sum_k r_k s_k, \qquad \nabla s = \sum_k r_k\big[(s_k - s)(s_k - s)^T - Q_k^{-1}\big].

    Args:
        means: Component means, shape (K, d).
        covs: Covariances: full (K, d, d), diagonal variances (K, d), one per component (K,), or one ().
        weights: Non-negative weights (K,), normalised to sum to one; equal when left out.

    Raises:
        ValueError: If shapes disagree, a covariance is not symmetric positive definite, or the weights
            have no positive sum.

    Example:
        >>> import torch, sdediff
        >>> data = GaussianMixture(means=[[-2.0, 0.0], [2.0, 1.0]], covs=[0.1, 0.3], weights=[1, 3])
        >>> data.mean.tolist()
        [1.0, 0.75]
        >>> data.score(sdediff.VP(), torch.zeros(5, 2), t=0.5).shape
        torch.Size([5, 2])
    """

    def __init__(self, means: ArrayLike, covs: ArrayLike, weights: ArrayLike | None = None) -> None:
        self.dtype = dtype_of(means)
        self.means = parameter("means", means, 2)
        components, _ = self.means.shape
        self.covs = _full(parameter("covs", covs, range(4)), self.means)
        self.log_weights = log_weights(weights, (components,))
        self._variances, self._basis = _eigh(self.covs)
        self._axes = self._basis.transpose(0, 1).flatten(1)  # all eigenvectors side by side, (d, K d)
        self._centres = torch.einsum("ki,kij->kj", self.means, self._basis).flatten()
        self.mean = self.weights @ self.means
        centred = self.means - self.mean
        self.cov = torch.einsum(
            "k,kij->ij", self.weights, self.covs + centred[:, :, None] * centred[:, None, :]
        )

    @property
    def components(self) -> int:
        """Number of components K."""
        return self.means.shape[0]

    @property
    def weights(self) -> Tensor:
        """Normalised weights (K,)."""
        return self.log_weights.exp()

    def _terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted log-densities (B, K); residuals and variances in each eigenbasis, (B, K, d)."""
        residual = (x @ self._axes.to(x) - alpha * self._centres.to(x)).unflatten(-1, self.means.shape)
        log_density, q = noised(residual, self._variances.to(x), alpha[..., None], sigma[..., None])
        return self.log_weights.to(x) + log_density.sum(-1), residual, q

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._terms(x, alpha, sigma)[0].logsumexp(-1)

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        logits, residual, q = self._terms(x, alpha, sigma)
        r, axes = logits.softmax(-1), self._axes.to(x)
        pull = r[..., None] * residual / q
        shrunk = (pull * self._variances.to(x)).flatten(1) @ axes.T
        return -pull.flatten(1) @ axes.T, r @ self.means.to(x) + alpha * shrunk

    def _jacobian(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        logits, residual, q = self._terms(x, alpha, sigma)
        r, basis = logits.softmax(-1), self._basis.to(x)
        scores = -torch.einsum("bkj,kij->bki", residual / q, basis)
        spread = scores - (r[..., None] * scores).sum(1, keepdim=True)
        precision = torch.einsum("kij,bkj,klj->bil", basis, r[..., None] / q, basis)
        return torch.einsum("bk,bki,bkl->bil", r, spread, spread) - precision

    def _sample(self, uniform: Tensor, normal: Tensor) -> Tensor:
        chosen = torch.searchsorted(self.weights.cumsum(0)[:-1], uniform[:, 0].contiguous(), right=True)
        scaled = self._variances[chosen].sqrt() * normal
        return self.means[chosen] + torch.einsum("nij,nj->ni", self._basis[chosen], scaled)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim}, components={self.components})"


def _full(covs: Tensor, means: Tensor) -> Tensor:
    """Covariances (K, d, d) from full, diagonal, per-component or shared ones."""
    components, dim = means.shape
    shapes = [(), (components,), (components, dim), (components, dim, dim)]
    if tuple(covs.shape) != shapes[covs.ndim]:
        raise ValueError(
            f"covs has shape {tuple(covs.shape)} but {components} means of dimension {dim} need one of "
            f"{', '.join(map(str, shapes))}: reshape it"
        )
    if covs.ndim == 3:
        return covs
    diagonal = covs if covs.ndim == 2 else covs.reshape(-1, 1)
    return diagonal.expand(components, dim).diag_embed()


def _eigh(covs: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of symmetric positive definite matrices."""
    scale = covs.abs().amax((-2, -1), keepdim=True)
    if bool(((covs - covs.mT).abs() > 1e-6 * scale).any()):
        raise ValueError("a covariance is not symmetric: give (C + C.T) / 2")
    values, vectors = torch.linalg.eigh(covs)
    if bool((values <= 1e-15 * scale[..., 0]).any()):
        least = values.min().item()
        raise ValueError(
            f"a covariance is not positive definite (smallest eigenvalue {least:.3g}): add to its diagonal"
        )
    return values, vectors
