r"""The discrete-time Markov chain of DDPM: a process seen at T of its times.

Index 0 is the data, with :math:`\alpha_0 = 1, \sigma_0 = 0`; index k = 1 .. T is
:math:`x_k = \alpha_k x_0 + \sigma_k\epsilon` at the time :math:`t_k`. Every law between two indices follows
from alpha and sigma, so the chain serves every Gaussian process. Ho, Jain & Abbeel (2020), arXiv 2006.11239,
write :math:`\bar\alpha_k` for our :math:`\alpha_k^2`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from solvers import Ancestral, noise
from solvers.problems import expand

from .processes import VP, GaussianProcess

if TYPE_CHECKING:
    from .model import DiffusionModel

Index = int | Tensor


class Posterior(NamedTuple):
    """``q(x_{k-1} | x_k, x_0) = N(c_t x_k + c_0 x_0, std^2 I)``; float64, of the shape of the index."""

    c_t: Tensor
    c_0: Tensor
    std: Tensor


class Chain:
    r"""A Gaussian process at T rising times.

    Args:
        process: The process.
        times: Its times t_1 < ... < t_T, (T,), T >= 2, inside its interval.

    Raises:
        ValueError: If the times are too few, do not rise or leave the interval.

    Example:
        >>> chain = Chain.from_betas(linear_betas(1000))
        >>> chain.steps, round(float(chain.alpha[1000]) ** 2, 8)  # alpha-bar_T of Ho et al.
        (1000, 4.036e-05)
    """

    def __init__(self, process: GaussianProcess, times: Tensor) -> None:
        times = torch.as_tensor(times, dtype=torch.float64)
        if times.ndim != 1 or len(times) < 2 or not bool((times.diff() > 0).all()):
            raise ValueError(
                f"times of shape {tuple(times.shape)} are no chain: give at least two, strictly rising"
            )
        if not (process.t_min <= float(times[0]) and float(times[-1]) <= process.t_max):
            raise ValueError(
                f"the times run from {float(times[0]):g} to {float(times[-1]):g}: give times inside "
                f"[{process.t_min:g}, {process.t_max:g}], the interval of {process}"
            )
        self.process, self.times = process, times
        one = times.new_ones(1)
        #: alpha, sigma and log(alpha/sigma) at index 0 .. T, (T + 1,) float64.
        self.alpha = torch.cat([one, process.alpha(times)])
        self.sigma = torch.cat([0 * one, process.sigma(times)])
        self.lam = torch.cat([one * torch.inf, process.lam(times)])

    @classmethod
    def from_betas(cls, betas: Tensor) -> Chain:
        r"""The chain of a list of betas, as the VP process at the times where its alpha is the chain's.

        .. math:: \alpha_k^2 = \prod_{j\le k}(1 - \beta_j)

        Args:
            betas: Variances of the steps (Ho et al. 2020, arXiv 2006.11239, Eq. 2), (T,), each in (0, 1).

        Raises:
            ValueError: If a beta is not in (0, 1), or there are fewer than two.

        Example:
            >>> chain = Chain.from_betas(torch.tensor([0.1] * 10, dtype=torch.float64))
            >>> round(float(chain.alpha[10]) ** 2 / 0.9**10, 12)
            1.0
        """
        betas = torch.as_tensor(betas, dtype=torch.float64)
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(
                f"betas of shape {tuple(betas.shape)} are no chain: give at least two, each between 0 and 1"
            )
        integral = -torch.log1p(-betas).cumsum(0)  # -log alpha_k^2
        times = VP().time(-0.5 * torch.log(torch.expm1(integral)))
        return cls(VP(t_min=float(times[0]), t_max=float(times[-1])), times)

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.times)

    @property
    def betas(self) -> Tensor:
        """``1 - (alpha_k/alpha_{k-1})^2``, (T,): variances of the steps of a variance-preserving process."""
        return -torch.expm1(2 * self.alpha.log().diff())

    def marginal(self, x0: Tensor, k: Index) -> tuple[Tensor, Tensor]:
        """Mean, like x0, and standard deviation of q(x_k | x_0) (Ho et al., Eq. 4); k () or (B,), 0 .. T."""
        k = self._index(k, 0)
        alpha, sigma = (expand(c[k].to(x0), x0) for c in (self.alpha, self.sigma))
        return alpha * x0, sigma

    def perturb(self, x0: Tensor, k: Index, seed: int) -> tuple[Tensor, Tensor]:
        """Draw x_k given x_0; returns ``(x_k, eps)``. Row i's noise is a function of (seed, i)."""
        mean, std = self.marginal(x0, k)
        rows = torch.arange(len(x0), device=x0.device)
        eps = noise.normal(seed, rows, noise.Stream.PERTURB, 0, x0.shape[1:], x0.dtype, x0.device)
        return mean + std * eps, eps

    def transition(self, k: Index) -> tuple[Tensor, Tensor]:
        """``(scale, std)`` of q(x_k | x_{k-1}) = N(scale x_{k-1}, std^2 I) (Ho et al., Eq. 2); k 1 .. T."""
        k = self._index(k, 1)
        return self.alpha[k] / self.alpha[k - 1], self.sigma[k] * torch.sqrt(self._gain(k))

    def posterior(self, k: Index) -> Posterior:
        r"""q(x_{k-1} | x_k, x_0) (Ho et al., Eqs. 6-7), for k an index 1 .. T.

        .. math:: r = e^{2(\lambda_k - \lambda_{k-1})}, \quad
                  c_t = \frac{\alpha_k\sigma_{k-1}^2}{\alpha_{k-1}\sigma_k^2}, \quad
                  c_0 = \alpha_{k-1}(1 - r), \quad std = \sigma_{k-1}\sqrt{1 - r}

        At k = 1 it is the data themselves, (0, 1, 0).

        Raises:
            ValueError: If the index is none of the chain's.
        """
        k = self._index(k, 1)
        before, gain = k - 1, self._gain(k)
        c_t = self.alpha[k] / self.alpha[before] * (self.sigma[before] / self.sigma[k]) ** 2
        return Posterior(c_t, self.alpha[before] * gain, self.sigma[before] * torch.sqrt(gain))

    def sample(self, model: DiffusionModel, n: int, *, seed: int = 0, **options: Any) -> Tensor:
        r"""Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, algorithm 2, with the posterior's variance).

        Each step draws from :math:`q(x_{k-1} \mid x_k, \hat x_0)` with the model's denoised
        :math:`\hat x_0`, the last one returns it: the stochastic exponential step
        (:class:`solvers.Ancestral`) on the chain's times. A model of another process is sampled at
        its own times of the same log-SNR: the same chain in other units.

        Args:
            model: A trained model.
            n: Number of samples.
            seed: Sample i's noise is a function of (seed, i).
            **options: cond, indices, prior, batch_size, dtype ... of :func:`sdediff.sampling.sample`.

        Returns:
            Samples in data units, (n, \*data_shape).

        Raises:
            ValueError: If the model's process does not reach the chain's noise levels.

        Example:
            >>> import sdediff
            >>> model = sdediff.reference.eight_gaussians().model(sdediff.VP())
            >>> Chain.from_betas(linear_betas(50)).sample(model, 5).shape
            torch.Size([5, 2])
        """
        from .sampling import sample

        grid = model.process.time(self.lam[1:]).flip(0)
        if not torch.allclose(model.process.lam(grid), self.lam[1:].flip(0), rtol=1e-6, atol=1e-6):
            raise ValueError(
                f"{model.process} does not reach the chain's noise levels, log(alpha/sigma) from "
                f"{float(self.lam[1]):g} to {float(self.lam[-1]):g}: widen its interval, or take fewer betas"
            )
        return sample(model, n, Ancestral(), grid=grid, seed=seed, **({"denoise": True} | options))

    def __repr__(self) -> str:
        return f"Chain({self.process}, steps={self.steps})"

    def _gain(self, k: Tensor) -> Tensor:
        """Share of x_k's noise that step k adds."""
        return -torch.expm1(2 * (self.lam[k] - self.lam[k - 1]))

    def _index(self, k: Index, first: int) -> Tensor:
        k = torch.as_tensor(k)
        if (
            k.is_floating_point()
            or k.dtype == torch.bool
            or not bool(((k >= first) & (k <= self.steps)).all())
        ):
            raise ValueError(
                f"k={k.tolist()} is no index of the chain: give whole numbers from {first} to {self.steps}"
            )
        return k


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
