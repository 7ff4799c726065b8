r"""The discrete-time Markov chain of DDPM: a process seen at T of its times.

Index 0 is the data, with :math:`\alpha_0 = 1, \sigma_0 = 0`; index k = 1 .. T is
:math:`x_k = \alpha_k x_0 + \sigma_k\epsilon` at the time :math:`t_k`. Every law between two indices follows
from alpha and sigma, so the chain serves every Gaussian process. Ho, Jain & Abbeel (2020), arXiv 2006.11239,
write :math:`\bar\alpha_k` for our :math:`\alpha_k^2`.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from solvers import noise
from solvers.grids import GRIDS
from solvers.problems import expand

from ..processes import VP, GaussianProcess
from .reverse import ReverseChain

if TYPE_CHECKING:
    from ..model import DiffusionModel
    from .bound import ChainBound

Index = int | Tensor

_NO_SIGNAL = (
    "{what}, so that no signal is left at the end (zero terminal SNR) and neither log-SNR nor noise level "
    "are finite there: leave that step out, the matched prior then holds what signal is left"
)


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
        >>> from sdediff.chain import linear_betas
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
        if bool((betas == 1).any()):
            raise ValueError(_NO_SIGNAL.format(what="a beta is 1"))
        if betas.ndim != 1 or len(betas) < 2 or not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError(
                f"betas of shape {tuple(betas.shape)} are no chain: give at least two, each between 0 and 1"
            )
        return cls._preserving(-torch.log1p(-betas).cumsum(0))

    @classmethod
    def from_alpha_bars(cls, alpha_bars: Tensor) -> Chain:
        r"""The chain of :math:`\bar\alpha_k = \alpha_k^2`, as a VP process.

        Args:
            alpha_bars: Products of ``1 - beta`` (Ho et al. 2020, arXiv 2006.11239, Eq. 4), (T,), falling
                strictly inside (0, 1).

        Raises:
            ValueError: If they do not, or there are fewer than two.

        Example:
            >>> bars = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
            >>> Chain.from_alpha_bars(bars).betas
            tensor([0.1000, 0.4444, 0.8000], dtype=torch.float64)
        """
        bars = torch.as_tensor(alpha_bars, dtype=torch.float64)
        if bool((bars == 0).any()):
            raise ValueError(_NO_SIGNAL.format(what="an alpha-bar is 0"))
        if (
            bars.ndim != 1
            or len(bars) < 2
            or not bool(((bars > 0) & (bars < 1)).all() & (bars.diff() < 0).all())
        ):
            raise ValueError(
                f"alpha_bars of shape {tuple(bars.shape)} are no chain: give at least two, falling strictly, "
                "each between 0 and 1"
            )
        return cls._preserving(-bars.log())

    @classmethod
    def _preserving(cls, integral: Tensor) -> Chain:
        """The variance-preserving chain of -log alpha_k^2."""
        times = VP().time(-0.5 * torch.log(torch.expm1(integral)))
        return cls(VP(t_min=float(times[0]), t_max=float(times[-1])), times)

    @classmethod
    def of(cls, process: GaussianProcess, steps: int, grid: str | None = None) -> Chain:
        """A process in this many steps, the first of them at t_min, the last at t_max.

        The way back is :attr:`process`: a model of it is one in continuous time, for any solver and
        for ``log_prob``, and agrees with the chain at every index.

        Args:
            process: The process.
            steps: T, at least 2.
            grid: Name of a grid (:data:`solvers.GRIDS`); the process's own when left out.

        Raises:
            ValueError: If there are fewer than two steps or no grid of that name.

        Example:
            >>> import sdediff
            >>> Chain.of(sdediff.Cosine(), 100).times[[0, -1]]
            tensor([0.0010, 0.9990], dtype=torch.float64)
        """
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
            raise ValueError(f"steps={steps!r} make no chain: give a whole number of at least 2")
        name = process.grid if grid is None else grid
        if name not in GRIDS:
            raise ValueError(f"grid={grid!r} is not known: give one of {', '.join(GRIDS)}")
        return cls(process, GRIDS[name](process, steps - 1, None).flip(0))

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

    def variances(self, kind: str) -> Tensor:
        r"""Variances of p(x_{k-1} | x_k) that Ho et al. choose from, of shape (T,), k = 1 .. T.

        "posterior" is that of :math:`q(x_{k-1}|x_k, x_0)`, right for data that are one point. "forward" is
        :math:`(\alpha_{k-1}^2+\sigma_{k-1}^2)\,b^2/(\alpha_k^2+\sigma_k^2)` with b the standard deviation of
        the forward step: right for white data of unit scale, beta_k where the process preserves their
        variance. These are the extremes of what the reverse step can need (Ho, Jain & Abbeel 2020, arXiv
        2006.11239, section 3.2). At k = 1, where the posterior has none, "posterior" is the same share of
        "forward" as at k = 2, and so below it in every chain (the code of Ho et al. and of Nichol & Dhariwal
        2021, arXiv 2102.09672, takes the variance of k = 2 itself).

        Raises:
            ValueError: For another kind.

        Example:
            >>> from sdediff.chain import linear_betas
            >>> chain = Chain.from_betas(linear_betas(100))
            >>> torch.allclose(chain.variances("forward"), chain.betas)
            True
        """
        k = torch.arange(1, self.steps + 1)
        power = self.alpha.square() + self.sigma.square()
        gain = self._gain(k)
        forward = power[:-1] / power[1:] * self.sigma[1:].square() * gain
        if kind == "forward":
            return forward
        if kind != "posterior":
            raise ValueError(f'there is no variance {kind!r}: give "posterior" or "forward"')
        posterior = self.posterior(k).std.square()
        posterior[0] = forward[0] * posterior[1] / forward[1]
        return posterior

    def reverse(self, model: DiffusionModel, variance: str | Tensor = "forward") -> ReverseChain:
        """The chain of a model that runs backwards, :math:`p(x_{k-1} | x_k)`.

        Args:
            model: A model of any process that reaches the chain's noise levels.
            variance: "posterior", "forward" (:meth:`variances`), "learned" (the network is a
                :class:`sdediff.networks.WithVariance`), or variances for k = 1 .. T in the chain's units,
                (T,) or (T, *data_shape), such as :meth:`ReverseChain.fit_variances` finds.

        Raises:
            ValueError: If the model's process does not reach the chain's noise levels, or the variances do
                not fit.
            TypeError: If "learned" is asked of a network that has none.
        """
        return ReverseChain(self, model, variance)

    def sample(
        self,
        model: DiffusionModel,
        n: int,
        *,
        variance: str | Tensor = "posterior",
        seed: int = 0,
        **options: Any,
    ) -> Tensor:
        r"""Ancestral sampling; see :meth:`ReverseChain.sample`.

        Args:
            model: A trained model.
            n: Number of samples.
            variance: As for :meth:`reverse`.
            seed: Sample i's noise is a function of (seed, i).
            **options: cond, indices, prior, batch_size, dtype ... of :func:`sdediff.sampling.sample`.

        Returns:
            Samples in data units, (n, \*data_shape).

        Example:
            >>> import sdediff
            >>> from sdediff.chain import linear_betas
            >>> model = sdediff.reference.eight_gaussians().model(sdediff.VP())
            >>> Chain.from_betas(linear_betas(50)).sample(model, 5).shape
            torch.Size([5, 2])
        """
        return self.reverse(model, variance).sample(n, seed=seed, **options)

    def bound(
        self, model: DiffusionModel, x: Tensor, *, variance: str | Tensor = "forward", **options: Any
    ) -> ChainBound:
        """The variational bound of data; see :meth:`ReverseChain.bound`.

        Args:
            model: A trained model.
            x: Data in data units, (n, *data_shape).
            variance: As for :meth:`reverse`.
            **options: quantisation, terms, draws, cond, seed, indices, prior, batch_size.
        """
        return self.reverse(model, variance).bound(x, **options)

    def __repr__(self) -> str:
        times = zlib.crc32((self.times * 1e9).round().long().numpy().tobytes())  # of two grids of one length
        return f"Chain({self.process}, steps={self.steps}, times={times:08x})"

    def _gain(self, k: Tensor) -> Tensor:
        """Share of x_k's noise that step k adds."""
        return -torch.expm1(2 * (self.lam[k] - self.lam[k - 1]))

    def _index(self, k: Index, first: int) -> Tensor:
        k = torch.as_tensor(k).cpu()  # where the tables are
        if (
            k.is_floating_point()
            or k.dtype == torch.bool
            or not bool(((k >= first) & (k <= self.steps)).all())
        ):
            raise ValueError(
                f"k={k.tolist()} is no index of the chain: give whole numbers from {first} to {self.steps}"
            )
        return k
