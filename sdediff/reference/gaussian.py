r"""Gaussian data: everything is known, the flow and the transition kernels included."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdediff.reference.base import ArrayLike, Time, dtype_of, noised, parameter
from sdediff.reference.mixture import GaussianMixture

if TYPE_CHECKING:
    from sdediff.processes import GaussianProcess


class Gaussian(GaussianMixture):
    r"""Gaussian data :math:`N(m, C)`: the one-component mixture, with a linear flow and Gaussian kernels.

    Args:
        mean: Mean, shape (d,).
        cov: Covariance: full (d, d), diagonal variances (d,), or one variance ().

    Raises:
        ValueError: If shapes disagree or the covariance is not symmetric positive definite.

    Example:
        >>> import torch, sdediff
        >>> data, process = Gaussian([1.0, -1.0], [[2.0, 0.5], [0.5, 1.0]]), sdediff.VP()
        >>> x = data.sample(4, seed=0)
        >>> noise = data.flow(process, x, None, process.t_max)
        >>> torch.allclose(data.flow(process, noise, process.t_max, None), x, atol=1e-5)
        True
    """

    def __init__(self, mean: ArrayLike, cov: ArrayLike) -> None:
        m, c = parameter("mean", mean, 1), parameter("cov", cov, range(3))
        super().__init__(m[None], c if c.ndim == 0 else c[None])
        self.dtype = dtype_of(mean)

    def flow(self, process: GaussianProcess | None, x: Tensor, s: Time | None, t: Time | None) -> Tensor:
        r"""Exact probability-flow map from time s to time t, either way: where the ODE carries ``x``.

        .. math:: x_t = \alpha_t m + U \sqrt{q_t/q_s}\,U^T (x_s - \alpha_s m), \quad q = \alpha^2 l + \sigma^2

        In the coordinates :math:`y = x/\alpha` this is :math:`y_t - m = U \sqrt{q_t/q_s}\,U^T (y_s - m)` with
        :math:`q = l + (\sigma/\alpha)^2`; here nothing is divided by alpha.

        Args:
            process: The Gaussian process.
            x: Points at time ``s``, shape (B, d).
            s: Time of ``x``: a float, () or (B,); None for the noise-free data.
            t: Time of the result, likewise.

        Returns:
            Points at time ``t``, shape (B, d).

        Raises:
            ValueError: If a shape does not fit.
        """
        residual, q_s, q_t, centre, _ = self._pair(process, x, s, t)
        return (centre + (residual * (q_t / q_s).sqrt()) @ self._basis[0].to(residual).T).to(x.dtype)

    def transition(self, process: GaussianProcess, x: Tensor, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        r"""Mean and covariance of :math:`x_t` given :math:`x_s = x`, forward (t > s) or reverse (t < s).

        With the forward kernel :math:`N(a x, v)` between the earlier and the later of the two times,

        .. math:: x_t | x_s \sim N\big(\alpha_t m + a\rho\,(x_s - \alpha_s m),\; v \rho\big), \qquad
                  \rho = 1 \text{ forward},\quad \rho = q_t/q_s \text{ reverse, in the eigenbasis of } C.

        The forward kernel does not depend on the data; the reverse one is what an exact sampler of the
        reverse SDE draws from.

        Args:
            process: The Gaussian process.
            x: Points at time ``s``, shape (B, d).
            s: Time of ``x``: a float, () or (B,).
            t: Time of the result, likewise.

        Returns:
            The mean, shape (B, d), and the covariance, shape (d, d), or (B, d, d) when a time has shape (B,).

        Raises:
            ValueError: If a shape does not fit.
        """
        residual, q_s, q_t, centre, basis = self._pair(process, x, s, t)
        s, t = torch.as_tensor(s, dtype=torch.float64), torch.as_tensor(t, dtype=torch.float64)
        forward = t >= s
        scale, std = process.transition(torch.minimum(s, t), torch.maximum(s, t))
        scale, std = (c.reshape(-1, 1).to(residual) for c in (scale, std))
        ratio = torch.where(forward.reshape(-1, 1).to(x.device), torch.ones_like(q_s), q_t / q_s)
        mean = centre + (residual * scale * ratio) @ basis.T
        cov = torch.einsum("ij,bj,kj->bik", basis, std.square() * ratio, basis)
        return mean.to(x.dtype), (cov if s.ndim or t.ndim else cov[0]).to(x.dtype)

    def _pair(
        self, process: GaussianProcess | None, x: Tensor, s: Time | None, t: Time | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Residual at s and variances at s and t in the eigenbasis; the mean at t; the basis."""
        x, alpha_s, sigma_s = self._inputs(process, x, s)
        _, alpha_t, sigma_t = self._inputs(process, x, t)
        mean, variance, basis = self.mean.to(x), self._variances[0].to(x), self._basis[0].to(x)
        residual = (x - alpha_s * mean) @ basis
        q_s, q_t = (noised(residual, variance, a, c)[1] for a, c in ((alpha_s, sigma_s), (alpha_t, sigma_t)))
        return residual, q_s, q_t, alpha_t * mean, basis
