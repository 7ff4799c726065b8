"""What every closed-form problem shares: checked inputs, views of one posterior, sampling and its model."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from solvers.noise import Stream, normal, uniform

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel
    from sdediff.processes import GaussianProcess

Time = float | Tensor
ArrayLike = Any

#: Model predictions a closed form can play, and the method that gives each.
PREDICTIONS = {"score": "score", "eps": "eps", "x0": "denoise", "v": "v", "velocity": "velocity"}


class ClosedForm(ABC):
    r"""Data whose noised marginals :math:`x_t = \alpha x_0 + \sigma \epsilon` are known exactly.

    A subclass states ``mean`` and ``cov`` of the data, how to draw them, and three functions of ``(x,
    alpha, sigma)``: :meth:`_log_prob`, :meth:`_posterior` (score and denoiser together, because either
    alone loses digits: the score from a denoiser at small noise, the denoiser from a score at large noise)
    and :meth:`_jacobian`. They never divide by alpha, so a process may end at alpha = 0.

    Every method takes ``(process, x, t)``: any Gaussian process, ``x`` of shape (B, d), ``t`` a float, a ()
    or a (B,) tensor. ``t=None`` means the data themselves, free of noise (alpha = 1, sigma = 0);
    ``process`` may then be None. Results have the dtype and device of ``x``; parameters and schedules are
    float64 and cast once.

    Attributes:
        mean: Mean of the data, float64 of shape (d,).
        cov: Covariance of the data, float64 of shape (d, d).
        dtype: What :meth:`sample` returns: the dtype the parameters were given in.
    """

    mean: Tensor
    cov: Tensor
    dtype: torch.dtype

    @property
    def dim(self) -> int:
        """Number of coordinates d."""
        return self.mean.shape[0]

    # -- what a subclass states: x (B, d), alpha and sigma (B, 1) or (1, 1), all of one floating dtype -------

    @abstractmethod
    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Log-density (B,) of alpha x_0 + sigma eps."""

    @abstractmethod
    def _posterior(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Score and E[x_0 | x], both (B, d)."""

    @abstractmethod
    def _jacobian(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Jacobian (B, d, d) of the score."""

    @abstractmethod
    def _sample(self, uniform: Tensor, normal: Tensor) -> Tensor:
        """Data (n, d) in float64 from uniforms (n, d) and standard normals (n, d), row by row."""

    # -- the views -------------------------------------------------------------------------------------------

    def log_prob(self, process: GaussianProcess | None, x: Tensor, t: Time | None) -> Tensor:
        r"""Log-density in nats of :math:`x_t` at ``x``, shape (B,).

        ``log_prob(None, x, None)`` is the density of the data.

        Args:
            process: The Gaussian process; None with ``t=None``.
            x: Points, shape (B, d).
            t: Time, a float, () or (B,); None for the noise-free data.

        Raises:
            ValueError: If a shape does not fit, or the data have no density without noise.
            TypeError: If ``x`` is not a floating tensor.
        """
        return self._log_prob(*self._inputs(process, x, t)).to(x.dtype)

    def score(self, process: GaussianProcess | None, x: Tensor, t: Time | None) -> Tensor:
        r"""Score :math:`\nabla_x \log p_t(x)`, shape (B, d). Arguments as in :meth:`log_prob`."""
        return self._posterior(*self._inputs(process, x, t))[0].to(x.dtype)

    def denoise(self, process: GaussianProcess | None, x: Tensor, t: Time | None) -> Tensor:
        r"""Posterior mean :math:`E[x_0 | x_t = x]`, shape (B, d). Arguments as in :meth:`log_prob`."""
        return self._posterior(*self._inputs(process, x, t))[1].to(x.dtype)

    def jacobian(self, process: GaussianProcess | None, x: Tensor, t: Time | None) -> Tensor:
        """Jacobian (B, d, d) of the score, the Hessian of the log-density, as in :meth:`log_prob`."""
        return self._jacobian(*self._inputs(process, x, t)).to(x.dtype)

    def eps(self, process: GaussianProcess | None, x: Tensor, t: Time | None) -> Tensor:
        r"""Expected noise :math:`E[\epsilon | x_t = x] = -\sigma\,\mathrm{score}`, shape (B, d)."""
        x_work, alpha, sigma = self._inputs(process, x, t)
        return (-sigma * self._posterior(x_work, alpha, sigma)[0]).to(x.dtype)

    def v(self, process: GaussianProcess | None, x: Tensor, t: Time | None) -> Tensor:
        r"""The v-prediction :math:`\alpha\,\mathrm{eps} - \sigma\,\mathrm{x0}`, shape (B, d)."""
        x_work, alpha, sigma = self._inputs(process, x, t)
        score, x0 = self._posterior(x_work, alpha, sigma)
        return (-alpha * sigma * score - sigma * x0).to(x.dtype)

    def velocity(self, process: GaussianProcess, x: Tensor, t: Time) -> Tensor:
        r"""Probability-flow drift :math:`\alpha'\,\mathrm{x0} + \sigma'\,\mathrm{eps}`, shape (B, d)."""
        x_work, alpha, sigma = self._inputs(process, x, t)
        score, x0 = self._posterior(x_work, alpha, sigma)
        d_alpha, d_sigma = (_column(rate, t, x_work) for rate in (process.d_alpha, process.d_sigma))
        return (d_alpha * x0 - d_sigma * sigma * score).to(x.dtype)

    def sample(self, n: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> Tensor:
        """Draw ``n`` data points, shape (n, d), from ``seed`` alone.

        Row i depends on (seed, i) only, whatever ``n``; values are drawn in float64, so another dtype
        rounds the same points.

        Args:
            n: Number of points.
            seed: Integer seed; the global random state is neither read nor changed.
            dtype: Of the result; that of the parameters when left out.

        Raises:
            ValueError: If ``n`` is negative.
        """
        if n < 0:
            raise ValueError(f"cannot draw {n} points: give n >= 0")
        rows, shape = torch.arange(n), (self.dim,)
        u = uniform(seed, rows, Stream.DATA, 0, shape, torch.float64)
        z = normal(
            seed, rows, Stream.DATA, 1, shape, torch.float64
        )  # counter 1: words the uniforms leave alone
        return self._sample(u, z).to(dtype or self.dtype)

    def model(self, process: GaussianProcess, prediction: str = "score") -> DiffusionModel:
        """The exact :class:`~sdediff.model.DiffusionModel`, with the data's moments for the matched prior.

        Args:
            process: The Gaussian process.
            prediction: What the callable returns: score, eps, x0, v or velocity.

        Raises:
            ValueError: If ``prediction`` is none of these.
        """
        if prediction not in PREDICTIONS:
            names = ", ".join(PREDICTIONS)
            raise ValueError(f"a closed form cannot predict {prediction!r}: choose one of {names}")
        from sdediff.callables import from_callable

        view: Callable[[GaussianProcess, Tensor, Time], Tensor] = getattr(self, PREDICTIONS[prediction])
        return from_callable(
            lambda x, t: view(process, x, t),
            process=process,
            prediction=prediction,
            data_shape=(self.dim,),
            data_mean=self.mean,
            data_cov=self.cov,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(dim={self.dim})"

    # -- inputs ----------------------------------------------------------------------------------------------

    def _inputs(
        self, process: GaussianProcess | None, x: Tensor, t: Time | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Checked x in a dtype fit for arithmetic, alpha and sigma as columns."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            given = getattr(x, "dtype", type(x).__name__)
            raise TypeError(
                f"x must be a floating-point tensor, not {given}: convert it with torch.as_tensor(x).double()"
            )
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)} but these data need (B, {self.dim}): reshape it")
        x = x if x.dtype == torch.float64 else x.float()  # half precision cannot hold sigma^2
        if t is None:
            return x, x.new_ones(1, 1), x.new_zeros(1, 1)
        if process is None:
            raise ValueError("a time needs a process: pass one, or t=None for the noise-free data")
        return x, _column(process.alpha, t, x), _column(process.sigma, t, x)


def _column(schedule: Callable[[Tensor], Tensor], t: Time, x: Tensor) -> Tensor:
    """schedule(t), computed in float64, as a (B, 1) or (1, 1) tensor beside x."""
    if isinstance(t, Tensor) and t.shape == x.shape[:1] and len(t) and t.stride(0) == 0:
        t = t[0]  # one time for all rows, expanded: all that depends on it alone is computed once
    t = torch.as_tensor(t, dtype=torch.float64)
    if t.ndim > 1 or (t.ndim == 1 and t.shape != x.shape[:1]):
        raise ValueError(
            f"t has shape {tuple(t.shape)} but {len(x)} rows of x need () or ({len(x)},): reshape it"
        )
    return schedule(t).reshape(-1, 1).to(x)


# -- parameters ----------------------------------------------------------------------------------------------


def parameter(name: str, value: ArrayLike, ndim: int | Sequence[int]) -> Tensor:
    """A finite float64 CPU tensor of one of the given numbers of dimensions."""
    result = torch.as_tensor(value, dtype=torch.float64).detach().cpu()
    allowed = (ndim,) if isinstance(ndim, int) else tuple(ndim)
    if result.ndim not in allowed or 0 in result.shape:
        need = " or ".join(str(n) for n in allowed)
        raise ValueError(
            f"{name} has shape {tuple(result.shape)} but needs {need} non-empty dimensions: reshape it"
        )
    if not bool(torch.isfinite(result).all()):
        raise ValueError(f"{name} holds NaN or infinite values: give finite numbers")
    return result


def dtype_of(value: ArrayLike) -> torch.dtype:
    """The floating dtype a parameter was given in; torch's default for lists and integers."""
    given = torch.as_tensor(value).dtype
    return given if given.is_floating_point and hasattr(value, "dtype") else torch.get_default_dtype()


def log_weights(weights: ArrayLike | None, shape: tuple[int, ...]) -> Tensor:
    """Logarithms of weights normalised over the last axis; uniform when None, a shared row is repeated."""
    if weights is None:
        return torch.full(shape, -math.log(shape[-1]), dtype=torch.float64)
    w = parameter("weights", weights, range(1, len(shape) + 1))
    if w.shape != shape[len(shape) - w.ndim :]:
        raise ValueError(
            f"weights have shape {tuple(w.shape)} but the means need {shape}: give one weight per component"
        )
    if bool((w < 0).any()) or not bool((w.sum(-1) > 0).all()):
        raise ValueError("weights must be non-negative with a positive sum: they are normalised to one")
    return (w / w.sum(-1, keepdim=True)).log().expand(shape).clone()


def noised(residual: Tensor, variance: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    r"""Independent Gaussians after noising: log-density and variance :math:`q = \alpha^2 l + \sigma^2`.

    The residual is :math:`x - \alpha m`; the score is ``-residual / q`` and the posterior mean ``m + alpha
    l residual / q``.
    """
    q = alpha.square() * variance + sigma.square()
    return -0.5 * (residual.square() / q + (2 * math.pi * q).log()), q
