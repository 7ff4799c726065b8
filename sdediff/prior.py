r"""The law of x_t at t_max: what sampling starts from, and what the likelihood ends in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

FULL_COVARIANCE = 1024  # dimensions up to which the covariance is kept whole
LOW_RANK = 256
LOW_RANK_ROWS = 4096  # rows, drawn at random, that it is learned from


class Prior(Protocol):
    """A density over latents (B, d), in the model's units; yours can take the place of the model's own."""

    @property
    def name(self) -> str:
        """How results call it."""

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density (B,) in nats."""

    def transform(self, normal: Tensor) -> Tensor:
        """Standard normals (B, d) turned into draws (B, d)."""


@dataclass(frozen=True)
class StandardPrior:
    """The textbook prior N(0, std^2 I)."""

    std: float
    name: str = "standard"

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density (B,) in nats, float64 where the device has it."""
        squares = _wide(z).square().sum(dim=1) / self.std**2
        return -0.5 * squares - z.shape[1] * (math.log(self.std) + 0.5 * math.log(2 * math.pi))

    def transform(self, normal: Tensor) -> Tensor:
        """Standard normals (B, d) turned into draws (B, d)."""
        return normal * self.std

    def whiten(self, z: Tensor) -> Tensor:
        """Draws (B, d) turned into standard normals (B, d): the inverse of `transform`."""
        return z / self.std


@dataclass(frozen=True)
class GaussianPrior:
    r"""N(mean, U diag(variances) U^T + rest (I - U U^T)), U orthonormal columns, or the identity.

    Attributes:
        mean: (d,).
        basis: U, (d, r) with r from 0 (isotropic) to d (full); (0, 0) stands for the identity (diagonal).
        variances: (r,).
        rest: Variance off the basis, ().
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    rest: Tensor
    name: str = "matched"

    def log_prob(self, z: Tensor) -> Tensor:
        """Log-density (B,) in nats, float64 where the device has it."""
        d, r = len(self.mean), len(self.variances)
        variances, centred = _wide(self.variances), _wide(z) - _wide(self.mean)
        inside = self._coordinates(centred)
        log_det = variances.log().sum()
        squares = (inside.square() / variances).sum(dim=1)
        if r < d:
            rest = _wide(self.rest)
            log_det = log_det + (d - r) * rest.log()
            squares = squares + (centred.square().sum(dim=1) - inside.square().sum(dim=1)) / rest
        return -0.5 * (squares + log_det + d * math.log(2 * math.pi))

    def transform(self, normal: Tensor) -> Tensor:
        """Standard normals (B, d) turned into draws (B, d)."""
        return self.mean.to(normal.dtype) + self._stretch(normal, self.variances.sqrt(), self.rest.sqrt())

    def whiten(self, z: Tensor) -> Tensor:
        """Draws (B, d) turned into standard normals (B, d): the inverse of `transform`."""
        return self._stretch(z - self.mean.to(z.dtype), self.variances.rsqrt(), self.rest.rsqrt())

    def _stretch(self, x: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
        """Multiply coordinates in the basis by `inside`, and what is left by `outside`."""
        coordinates = self._coordinates(x)
        stretched = self._vectors(coordinates * inside.to(x.dtype))
        if len(inside) < len(self.mean):
            stretched = stretched + (x - self._vectors(coordinates)) * outside.to(x.dtype)
        return stretched

    def _coordinates(self, x: Tensor) -> Tensor:
        return x @ self.basis.to(x.dtype) if len(self.basis) else x

    def _vectors(self, c: Tensor) -> Tensor:
        return c @ self.basis.to(c.dtype).T if len(self.basis) else c


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of the data in the model's units, the covariance by its eigenvectors; float64.

    Attributes:
        mean: (d,).
        basis: Leading eigenvectors, (d, r), all up to d = 1024; (0, 0) where the covariance is diagonal.
        variances: Their eigenvalues, (r,).
        rest: Mean eigenvalue of the rest, ().
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor
    rest: Tensor

    @classmethod
    def of(cls, mean: Tensor, cov: Tensor) -> Moments:
        """From a mean (d,) and a covariance (d, d), a diagonal (d,) or a scalar ()."""
        mean = mean.double().flatten()
        d = len(mean)
        cov = cov.double()
        if not bool(torch.isfinite(mean).all()) or not bool(torch.isfinite(cov).all()):
            raise ValueError("data_mean or data_cov has NaN or infinite values: give finite moments")
        if cov.ndim < 2:
            if not bool((cov >= 0).all()):
                raise ValueError("data_cov has a negative variance: give variances")
            if cov.ndim == 0:
                return cls(mean, cov.new_zeros(d, 0), cov.new_zeros(0), cov)
            return cls(mean, cov.new_zeros(0, 0), cov, cov.new_zeros(()))
        if not torch.allclose(cov, cov.T, rtol=1e-5, atol=1e-6 * float(cov.abs().max())):
            raise ValueError("data_cov is not symmetric: give a covariance matrix")
        variances, basis = torch.linalg.eigh(0.5 * (cov + cov.T))
        if not bool((variances > -1e-9 * variances.abs().max()).all()):
            raise ValueError("data_cov has a negative eigenvalue: give a covariance matrix")
        return cls(mean, basis, variances.clamp(min=0), torch.zeros((), dtype=torch.float64))

    @classmethod
    def learn(cls, z: Tensor) -> Moments:
        """From data (N, d), N >= 2: exact up to d = 1024, beyond it low rank plus isotropic (4096 rows)."""
        z = z.double()
        mean = z.mean(dim=0)
        if z.shape[1] <= FULL_COVARIANCE:
            return cls.of(mean, torch.cov(z.T, correction=0).reshape(z.shape[1], -1))
        chosen = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))[:LOW_RANK_ROWS]
        rows = z[chosen.to(z.device)] - mean
        _, left = torch.linalg.eigh(rows @ rows.T)  # (n, n): cheaper than a decomposition of (n, d)
        rank = min(LOW_RANK, len(rows) - 1)
        basis = torch.linalg.qr(rows.T @ left[:, -rank:]).Q
        variances = (rows @ basis).square().mean(dim=0)
        rest = (z.var(dim=0, correction=0).sum() - variances.sum()).clamp(min=0) / (z.shape[1] - rank)
        return cls(mean, basis, variances, rest)

    @property
    def scale(self) -> float:
        """Root mean variance."""
        d, r = len(self.mean), len(self.variances)
        return math.sqrt(float(self.variances.sum() + (d - r) * self.rest) / d)

    def noised(self, alpha: float, sigma: float) -> GaussianPrior:
        """The Gaussian with the mean and covariance of ``alpha x_0 + sigma eps``."""
        return GaussianPrior(
            alpha * self.mean,
            self.basis,
            alpha**2 * self.variances + sigma**2,
            alpha**2 * self.rest + sigma**2,
        )


def _wide(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()
