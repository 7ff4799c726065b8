r"""Where on the time axis a loss is taken: maps from uniform numbers to times, with their densities.

A stratified batch ``u_i = (u + i/B) mod 1`` (Kingma et al. 2021, arXiv 2107.00630, appendix I.1) goes through
the inverse distribution function of one of these. Their densities (per unit time) let importance weights be
divided out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
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
