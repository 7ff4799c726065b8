r"""Rotated products of one-dimensional mixtures: an exact nonlinear flow in any dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdediff.reference.base import ArrayLike, ClosedForm, Time, dtype_of, log_weights, noised, parameter

if TYPE_CHECKING:
    from sdediff.processes import GaussianProcess


class RotatedProduct(ClosedForm):
    r"""Data :math:`x = R z + c` with independent 1-D mixtures :math:`z_i`: up to :math:`K^d` modes.

    Isotropic noise commutes with the rotation, so score, density and denoiser act axis by axis on
    :math:`R^T(x - \alpha c)`, and so does the probability flow: in one dimension it preserves order, hence
    :math:`F_t(z_t) = F_s(z_s)` with F the distribution functions, which :meth:`flow` solves to rounding.

    Args:
        means: Component means of every axis, shape (d, K).
        variances: Component variances, shape (d, K), (K,) shared by all axes, or ().
        weights: Weights (d, K) or (K,), normalised over K; equal when left out. A weight of zero is
            an absent component.
        rotation: Orthogonal matrix R (d, d), orthonormal to 1e-5 (a float32 matrix is): the nearest exactly
            orthogonal matrix, its polar factor, is used. The identity when left out.
        shift: The shift c, shape (d,); zero when left out.

    Raises:
        ValueError: If shapes disagree, a variance is not positive, the rotation is not orthogonal, or weights
            have no positive sum.

    Example:
        >>> import torch, sdediff
        >>> data = RotatedProduct(means=[[-1.0, 1.0]] * 8, variances=0.05)
        >>> x = data.sample(3, seed=0, dtype=torch.float64)
        >>> noise = data.flow(sdediff.VP(), x, None, 1.0)
        >>> torch.allclose(data.flow(sdediff.VP(), noise, 1.0, None), x, atol=1e-9)
        True
    """

    def __init__(
        self,
        means: ArrayLike,
        variances: ArrayLike,
        weights: ArrayLike | None = None,
        rotation: ArrayLike | None = None,
        shift: ArrayLike | None = None,
    ) -> None:
        self.dtype = dtype_of(means)
        self.means = parameter("means", means, 2)
        dim, components = self.means.shape
        shapes: list[tuple[int, ...]] = [(), (components,), (dim, components)]
        self.variances = _fit("variances", variances, shapes).expand(dim, components).clone()
        if bool((self.variances <= 0).any()):
            raise ValueError(
                f"the smallest of variances is {self.variances.min().item():.3g}: give positive ones"
            )
        self.log_weights = log_weights(weights, (dim, components))
        self.rotation = (
            torch.eye(dim, dtype=torch.float64) if rotation is None else _orthogonal(rotation, dim)
        )
        self.shift = (
            torch.zeros(dim, dtype=torch.float64) if shift is None else _fit("shift", shift, [(dim,)])
        )
        axis_mean = (self.weights * self.means).sum(-1)
        axis_variance = (self.weights * (self.variances + (self.means - axis_mean[:, None]).square())).sum(-1)
        self.mean = self.rotation @ axis_mean + self.shift
        self.cov = (self.rotation * axis_variance) @ self.rotation.T

    @property
    def weights(self) -> Tensor:
        """Normalised weights (d, K)."""
        return self.log_weights.exp()

    def flow(self, process: GaussianProcess | None, x: Tensor, s: Time | None, t: Time | None) -> Tensor:
        r"""Exact probability-flow map from s to t, either way: :math:`F_t^{-1} \circ F_s` on each axis.

        Computed in float64 whatever the dtype of ``x``, to rounding in both tails and in the gaps between
        modes. (From noise to data the map itself is steep where modes part: there a rounded input moves the
        output by its slope.) Its first derivative in ``x`` by autograd is exact, the ratio of the two
        densities; a second derivative, or one in time, is not provided.

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
        self._inputs(process, x, s)  # refuses what .double() would hide
        x64, alpha_s, sigma_s = self._inputs(process, x.double(), s)
        _, alpha_t, sigma_t = self._inputs(process, x.double(), t)
        z = self._axes(x64, alpha_s)
        at_s, at_t = self._marginal(z, alpha_s, sigma_s), self._marginal(z, alpha_t, sigma_t)
        log_weight = self.log_weights.to(z)
        with torch.no_grad():
            z_t = match_quantiles(z, log_weight, at_s, at_t)
            slope = _log_density(z, log_weight, *at_s) - _log_density(z_t, log_weight, *at_t)
        # The added term is zero and carries the derivative p_s / p_t; the clamp keeps 0 * inf out of it.
        z_t = z_t + slope.clamp(max=700).exp() * (z - z.detach())
        return (z_t @ self.rotation.to(z).T + alpha_t * self.shift.to(z)).to(x.dtype)

    def _axes(self, x: Tensor, alpha: Tensor) -> Tensor:
        return (x - alpha * self.shift.to(x)) @ self.rotation.to(x)

    def _marginal(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Component means and standard deviations (B or 1, d, K) of the noised axes."""
        alpha, sigma = alpha[..., None], sigma[..., None]
        return alpha * self.means.to(x), (alpha.square() * self.variances.to(x) + sigma.square()).sqrt()

    def _terms(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted log-densities, residuals and variances, each (B, d, K)."""
        alpha_k, sigma_k = alpha[..., None], sigma[..., None]
        residual = self._axes(x, alpha)[..., None] - alpha_k * self.means.to(x)
        log_density, q = noised(residual, self.variances.to(x), alpha_k, sigma_k)
        return self.log_weights.to(x) + log_density, residual, q

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self._terms(x, alpha, sigma)[0].logsumexp(-1).sum(-1)

    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        logits, residual, q = self._terms(x, alpha, sigma)
        r, rotation = logits.softmax(-1), self.rotation.to(x)
        score = -(r * residual / q).sum(-1)
        z0 = (r * (self.means.to(x) + alpha[..., None] * self.variances.to(x) * residual / q)).sum(-1)
        return score @ rotation.T, z0 @ rotation.T + self.shift.to(x)

    def _jacobian(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        logits, residual, q = self._terms(x, alpha, sigma)
        r, scores, rotation = logits.softmax(-1), -residual / q, self.rotation.to(x)
        spread = scores - (r * scores).sum(-1, keepdim=True)
        curvature = (r * (spread.square() - 1 / q)).sum(-1)
        return (rotation * curvature[:, None]) @ rotation.T

    def _sample(self, uniform: Tensor, normal: Tensor) -> Tensor:
        edges = self.weights.cumsum(-1)[:, :-1].contiguous()
        chosen = torch.searchsorted(edges, uniform.T.contiguous(), right=True)
        z = self.means.gather(1, chosen) + self.variances.gather(1, chosen).sqrt() * normal.T
        return (self.rotation @ z).T + self.shift


def match_quantiles(
    z: Tensor, log_weight: Tensor, at_s: tuple[Tensor, Tensor], at_t: tuple[Tensor, Tensor]
) -> Tensor:
    r"""Solve :math:`F_t(y) = F_s(z)` for y, where F are one-dimensional mixtures with common weights.

    With component scores :math:`a_k = (y - m_k^t)/\tau_k^t`, :math:`b_k = (z - m_k^s)/\tau_k^s` the
    equation is :math:`\sum_k w_k [\Phi(a_k) - \Phi(b_k)] = 0`. A component on whose upper side z lies is
    counted by its survival function instead, and the positive and negative terms are compared as
    logarithms, so nothing cancels in either tail or in a gap between modes:

    .. math:: h(y) = \log\Big[\sum_{b_k \le 0} w_k \Phi(a_k) + \sum_{b_k > 0} w_k \Phi(-b_k)\Big]
                   - \log\Big[\sum_{b_k \le 0} w_k \Phi(b_k) + \sum_{b_k > 0} w_k \Phi(-a_k)\Big].

    h increases; its root lies between the points where :math:`a_k = b_k`. Newton's method, with bisection
    wherever the step leaves the bracket or is not half of the last but one (Press et al., Numerical
    Recipes, ``rtsafe``).

    Args:
        z: Points at s, float64 of shape (B, d).
        log_weight: Log-weights (d, K).
        at_s: Component means and standard deviations at s, (B or 1, d, K).
        at_t: Those at t.

    Returns:
        Points at t, shape (B, d).

    Raises:
        RuntimeError: If the bracket does not close, which finite input cannot cause.
    """
    (mean_s, std_s), (mean_t, std_t) = at_s, at_t
    b = (z[..., None] - mean_s) / std_s
    upper = b > 0
    same_quantile = (mean_t + std_t * b).masked_fill(log_weight == -torch.inf, torch.nan)
    low, high = (torch.nan_to_num(same_quantile, nan=fill) for fill in (torch.inf, -torch.inf))
    low, high = low.amin(-1), high.amax(-1)
    fixed = log_weight + torch.special.log_ndtr(torch.where(upper, -b, b))
    y, step = 0.5 * (low + high), high - low
    before = step
    # Newton doubles its digits: behind a step of 1e-9 standard deviations only rounding is left.
    settled = 1e-9 * std_t.amin(-1)
    for _ in range(250):
        h, slope = _imbalance((y[..., None] - mean_t) / std_t, std_t, log_weight, fixed, upper)
        low, high = torch.where(h < 0, y, low), torch.where(h < 0, high, y)
        newton = torch.where(h == 0, y, y - h / slope)
        close = (newton - y).abs() <= settled + 4e-16 * y.abs()
        safe = (newton >= low) & (newton <= high) & ((newton - y).abs() <= 0.5 * before)
        y_next = torch.where(close | safe, newton, 0.5 * (low + high))
        before, step, y = step, (y_next - y).abs(), y_next
        if not bool((~close & y.isfinite()).any()):
            return y
    raise RuntimeError(
        "quantile matching did not converge in 250 steps: give x, means and variances of moderate size"
    )


def _imbalance(
    a: Tensor, std: Tensor, log_weight: Tensor, fixed: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """The h of :func:`match_quantiles` and its derivative in y."""
    moving = log_weight + torch.special.log_ndtr(torch.where(upper, -a, a))
    gain = torch.where(upper, fixed, moving).logsumexp(-1)
    loss = torch.where(upper, moving, fixed).logsumexp(-1)
    log_rate = log_weight + _log_normal(a) - std.log()
    relative = torch.where(upper, loss[..., None], gain[..., None])
    return gain - loss, (log_rate - relative).exp().sum(-1)


def _log_normal(a: Tensor) -> Tensor:
    return -0.5 * a.square() - 0.9189385332046727  # log sqrt(2 pi)


def _log_density(z: Tensor, log_weight: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return (log_weight + _log_normal((z[..., None] - mean) / std) - std.log()).logsumexp(-1)


def _fit(name: str, value: ArrayLike, shapes: list[tuple[int, ...]]) -> Tensor:
    """A parameter of one of the given shapes."""
    result = parameter(name, value, [len(shape) for shape in shapes])
    if tuple(result.shape) not in shapes:
        raise ValueError(
            f"{name} has shape {tuple(result.shape)} but needs {' or '.join(map(str, shapes))}: reshape it"
        )
    return result


def _orthogonal(rotation: ArrayLike, dim: int) -> Tensor:
    matrix = _fit("rotation", rotation, [(dim, dim)])
    error = (matrix.T @ matrix - torch.eye(dim, dtype=torch.float64)).abs().max().item()
    if error > 1e-5:
        raise ValueError(
            f"rotation is not orthogonal (R.T @ R is off by {error:.2g}): give torch.linalg.qr(rotation)[0]"
        )
    left, _, right = torch.linalg.svd(matrix)
    return left @ right
