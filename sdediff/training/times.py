r"""Where on the time axis a loss is taken: maps from uniform numbers to times, with their densities.

A stratified batch ``u_i = (u + i/B) mod 1`` (Kingma et al. 2021, arXiv 2107.00630, appendix I.1) goes through
the inverse distribution function of one of these. Their densities (per unit time) let importance weights be
divided out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from sdediff.processes import GaussianProcess


class Times(Protocol):
    """A distribution of times on [t_min, t_max] of a process."""

    def sample(self, u: Tensor, process: GaussianProcess) -> Tensor:
        """Times for uniform numbers u in [0, 1], float64, of u's shape; rising with u."""

    def density(self, t: Tensor, process: GaussianProcess) -> Tensor:
        """Probability density per unit time at t."""


def stratified(u: float | Tensor, n: int) -> Tensor:
    """``n`` uniform numbers ``(u + i/n) mod 1``, float64, one in every interval of length 1/n.

    Example:
        >>> stratified(0.9, 4)
        tensor([0.9000, 0.1500, 0.4000, 0.6500], dtype=torch.float64)
    """
    return (torch.as_tensor(u, dtype=torch.float64).cpu() + torch.arange(n, dtype=torch.float64) / n) % 1


def _clamp(t: Tensor, process: GaussianProcess) -> Tensor:
    return t.clamp(process.t_min, process.t_max)  # rounding only: u lies in [0, 1]


@dataclass(frozen=True)
class UniformTime:
    """Uniform in t on [t_min, t_max].

    Example:
        >>> from sdediff.processes import VE
        >>> UniformTime().sample(torch.tensor([0.25], dtype=torch.float64), VE())
        tensor([0.2500], dtype=torch.float64)
    """

    def sample(self, u: Tensor, process: GaussianProcess) -> Tensor:
        """Times for uniform numbers."""
        return _clamp(process.t_min + u.double() * (process.t_max - process.t_min), process)

    def density(self, t: Tensor, process: GaussianProcess) -> Tensor:
        """Density per unit time."""
        return torch.full_like(t, 1 / (process.t_max - process.t_min))


@dataclass(frozen=True)
class UniformLogSNR:
    r"""Uniform in :math:`\lambda = \log(\alpha/\sigma)` between its ends.

    .. math:: p(t) = -\lambda'(t)/(\lambda_{max}-\lambda_{min})

    Example:
        >>> from sdediff.processes import EDM
        >>> u = torch.tensor([0.5], dtype=torch.float64)
        >>> UniformLogSNR().sample(u, EDM(t_min=0.01, t_max=100.0))
        tensor([1.0000], dtype=torch.float64)
    """

    def sample(self, u: Tensor, process: GaussianProcess) -> Tensor:
        """Times for uniform numbers."""
        high, low = process.lam(process.t_min), process.lam(process.t_max)
        return _clamp(process.time(high + u.double() * (low - high)), process)

    def density(self, t: Tensor, process: GaussianProcess) -> Tensor:
        """Density per unit time."""
        return -process.d_lam(t) / (process.lam(process.t_min) - process.lam(process.t_max)).to(t.dtype)


@dataclass(frozen=True)
class LogNormal:
    r"""Log-normal in the noise-to-signal ratio :math:`\tilde\sigma = \sigma/\alpha`, cut to the process.

    .. math:: \ln\tilde\sigma \sim N(\mu, s^2) \text{ on } [-\lambda(t_{min}), -\lambda(t_{max})]

    Args:
        mean: Mean of the logarithm. Model units have data of standard deviation 1: Karras et al.'s -1.2 at
            sigma_data = 0.5 is ``-1.2 + ln 2 = -0.5`` here.
        std: Its standard deviation.

    Source: Karras et al. 2022, arXiv 2206.00364, table 1.

    Example:
        >>> from sdediff.processes import EDM
        >>> u = torch.tensor([0.5], dtype=torch.float64)
        >>> LogNormal(mean=0.0, std=1.0).sample(u, EDM(t_min=0.01, t_max=100.0)).round(decimals=6)
        tensor([1.], dtype=torch.float64)
    """

    mean: float = -0.5
    std: float = 1.2

    def _ends(self, process: GaussianProcess) -> tuple[Tensor, Tensor]:
        ends = -torch.stack([process.lam(process.t_min), process.lam(process.t_max)])
        low, high = torch.special.ndtr((ends - self.mean) / self.std)
        return low, high

    def sample(self, u: Tensor, process: GaussianProcess) -> Tensor:
        """Times for uniform numbers."""
        low, high = self._ends(process)
        z = torch.special.ndtri(low + u.double() * (high - low))
        return _clamp(process.time(-(self.mean + self.std * z)), process)

    def density(self, t: Tensor, process: GaussianProcess) -> Tensor:
        """Density per unit time."""
        low, high = self._ends(process)
        z = (-process.lam(t).double() - self.mean) / self.std
        normal = torch.exp(-0.5 * z**2) / (self.std * math.sqrt(2 * math.pi))
        return (normal / (high - low) * -process.d_lam(t).double()).to(t.dtype)


@dataclass(frozen=True)
class LogitNormal:
    r"""Logit-normal in the time's place on its interval.

    .. math:: \ln\frac{r}{1-r} \sim N(m, s^2), \qquad r = \frac{t - t_{min}}{t_{max} - t_{min}}

    For a rectified flow on all of (0, 1) the logit of t is :math:`-\lambda`: there this is
    ``LogNormal(mean, std)``.

    Args:
        mean: m; negative values favour data, positive ones noise.
        std: s.

    Source: Esser et al. 2024, arXiv 2403.03206, Eq. 19.

    Example:
        >>> from sdediff.processes import RectifiedFlow
        >>> u = torch.tensor([0.5], dtype=torch.float64)
        >>> LogitNormal().sample(u, RectifiedFlow()).round(decimals=6)
        tensor([0.5000], dtype=torch.float64)
    """

    mean: float = 0.0
    std: float = 1.0

    def sample(self, u: Tensor, process: GaussianProcess) -> Tensor:
        """Times for uniform numbers."""
        r = torch.sigmoid(self.mean + self.std * torch.special.ndtri(u.double()))
        return _clamp(process.t_min + r * (process.t_max - process.t_min), process)

    def density(self, t: Tensor, process: GaussianProcess) -> Tensor:
        """Density per unit time."""
        width = process.t_max - process.t_min
        r = (t.double() - process.t_min) / width
        z = (torch.logit(r) - self.mean) / self.std
        normal = torch.exp(-0.5 * z**2) / (self.std * math.sqrt(2 * math.pi))
        inside = (r > 0) & (r < 1)
        return torch.where(inside, normal / (r * (1 - r) * width), 0.0).to(t.dtype)


@dataclass(frozen=True)
class Mixture:
    """Several distributions, each with its share of the uniform numbers, and so each stratified in a batch.

    Args:
        parts: The distributions.
        shares: Their shares, positive, of any sum; equal ones when left out.

    Raises:
        ValueError: If there is no part, or the shares are not one positive number a part.

    Example:
        >>> from sdediff.processes import VE
        >>> times = Mixture((UniformTime(), LogNormal()), (1.0, 3.0))
        >>> times.sample(torch.tensor([0.125]), VE())  # the middle of the first share
        tensor([0.5000], dtype=torch.float64)
    """

    parts: tuple[Times, ...]
    shares: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        shares = self.shares or (1.0,) * len(self.parts)
        if not self.parts or len(shares) != len(self.parts) or not all(share > 0 for share in shares):
            raise ValueError(
                f"shares={self.shares} for {len(self.parts)} distributions: give at least one distribution "
                "and a positive share for each"
            )
        object.__setattr__(self, "shares", tuple(share / sum(shares) for share in shares))

    def sample(self, u: Tensor, process: GaussianProcess) -> Tensor:
        """Times for uniform numbers."""
        u, low, t = u.double(), 0.0, torch.empty_like(u, dtype=torch.float64)
        for i, (part, share) in enumerate(zip(self.parts, self.shares, strict=True)):
            last = i == len(self.parts) - 1
            here = (u >= low) & ((u < low + share) | last)
            t[here] = part.sample(((u[here] - low) / share).clamp(0, 1), process)
            low += share
        return t

    def density(self, t: Tensor, process: GaussianProcess) -> Tensor:
        """Density per unit time."""
        parts = zip(self.parts, self.shares, strict=True)
        return torch.stack([share * part.density(t, process) for part, share in parts]).sum(0)


class Cells:
    r"""Cells of equal width in :math:`\lambda` between a process's ends, and distributions uniform in each.

    Args:
        process: The process.
        count: Number of cells; the first has the least noise.
    """

    def __init__(self, process: GaussianProcess, count: int) -> None:
        self.process, self.count = process, count
        self.high, self.low = float(process.lam(process.t_min)), float(process.lam(process.t_max))
        self.width = (self.high - self.low) / count

    def sample(self, u: Tensor, mass: Tensor) -> Tensor:
        """Times for uniform numbers u where the cells have these masses, (count,) of sum 1."""
        above = mass.cumsum(0)
        above = above / above[-1]
        cell = torch.searchsorted(above, u.double(), right=True).clamp(max=self.count - 1)
        place = (1 - (above[cell] - u.double()) / mass[cell]).clamp(0, 1)
        return _clamp(self.process.time(self.high - (cell + place) * self.width), self.process)

    def density(self, t: Tensor, mass: Tensor) -> Tensor:
        """Density per unit time at t."""
        host = t.cpu().double()
        return (mass[self.index(host)] / self.width * -self.process.d_lam(host)).to(t)

    def index(self, t: Tensor) -> Tensor:
        """Numbers of the cells that times, float64, lie in."""
        place = (self.high - self.process.lam(t)) / self.width
        return place.long().clamp(0, self.count - 1)


@dataclass(frozen=True)
class Tabulated:
    """Any density of times, drawn by the inverse of its tabulated distribution function.

    Args:
        function: ``(process, t) -> density`` per unit time, not normalised, of t's shape.
        cells: Cells in lam of the table; within a cell the distribution is uniform in lam.

    Example:
        >>> from sdediff.processes import RectifiedFlow
        >>> def cosmap(process, t):  # Esser et al. 2024, arXiv 2403.03206, section 3.1
        ...     return 2 / (torch.pi - 2 * torch.pi * t + 2 * torch.pi * t**2)
        >>> t = torch.tensor([0.5], dtype=torch.float64)
        >>> Tabulated(cosmap).density(t, RectifiedFlow()).round(decimals=2)
        tensor([1.2700], dtype=torch.float64)
    """

    function: Callable[[GaussianProcess, Tensor], Tensor]
    cells: int = 4096

    def sample(self, u: Tensor, process: GaussianProcess) -> Tensor:
        """Times for uniform numbers."""
        cells, mass = _table(self.function, process, self.cells)
        return cells.sample(u.cpu(), mass)

    def density(self, t: Tensor, process: GaussianProcess) -> Tensor:
        """Density per unit time: the table's, so that importance weights are exact."""
        cells, mass = _table(self.function, process, self.cells)
        return cells.density(t, mass)


@lru_cache(maxsize=16)
def _table(
    function: Callable[[GaussianProcess, Tensor], Tensor], process: GaussianProcess, count: int
) -> tuple[Cells, Tensor]:
    """Cells and their masses, by the midpoint rule."""
    cells = Cells(process, count)
    middles = cells.high - (torch.arange(count, dtype=torch.float64) + 0.5) * cells.width
    t = process.time(middles)
    mass = function(process, t) / -process.d_lam(t)
    if not bool((torch.isfinite(mass) & (mass >= 0)).all()) or not float(mass.sum()) > 0:
        raise ValueError(
            f"{function!r} is no density of times: give a function (process, t) that is finite, not "
            "negative, and positive somewhere"
        )
    return cells, mass / mass.sum()
