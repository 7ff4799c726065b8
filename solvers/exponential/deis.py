r"""Multistep noise prediction in other coordinates: DEIS in t, and iPNDM, which counts steps."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from ..problems import Coefficients, SemiLinear
from ..solver import Orders
from .multistep import Multistep, Rule

_NODES = 24  # integrates what a step of any length in lam needs to rounding


class DEIS(Multistep):
    r"""DEIS-tAB: eps as a polynomial in t, integrated against the exponential; one evaluation a step.

    .. math:: \frac{x_s}{\alpha_s} = \frac{x_t}{\alpha_t}
              + \int_t^s P(\tau)\,\frac{d\tilde\sigma}{d\tau}\,d\tau, \qquad \tilde\sigma = \sigma/\alpha,

    with P of the given degree through the last degree + 1 values of eps: tAB1, tAB2, tAB3 of the paper. The
    integrals are Gauss-Legendre sums in lam, in which t is smooth at either end of every process, and are
    computed once a grid. In the coordinate lam the method is
    ``ExponentialAdamsBashforth(prediction="noise")``, which is what diffusers calls DEIS (the paper's log-rho
    AB), and in sigma/alpha it is the classical variable-step Adams-Bashforth.

    ODE order degree + 1 up to 3: the first steps are of rising order and corrected, as those of
    :class:`ExponentialAdamsBashforth`.

    Args:
        degree: Of the polynomial, 1 to 7; the number after tAB.
        caution: See :class:`Multistep`; inf keeps the full order on every grid.
        published: Leave the first steps uncorrected, as published; of order 2 then.

    Raises:
        ValueError: If an argument is not one of these.

    References:
        Zhang & Chen (2022), arXiv 2204.13902, section 3, tAB-DEIS (their Psi(s, t) is
        alpha_s/alpha_t, their L is sigma).

    Example:
        >>> DEIS(2)
        DEIS(degree=2)
    """

    def __init__(self, degree: int = 3, caution: float = 1.25, published: bool = False) -> None:
        if isinstance(degree, bool | str) or degree not in range(1, 8):
            raise ValueError(f"degree={degree!r} is none of DEIS: give a whole number from 1 to 7")
        super().__init__(degree + 1, "noise", "none" if published else "start", caution)
        self.orders = Orders(ode=min(degree + 1, 2 if published else 3))

    def rule(self, problem: SemiLinear, times: tuple[float, ...], grid: list[Coefficients]) -> Rule:
        u, weights = gauss_legendre(_NODES)
        lam, t = (torch.tensor(v, dtype=torch.float64) for v in ([c.lam for c in grid], times))
        lam = lam.nan_to_num(posinf=0.0, neginf=0.0)  # a step from or to infinity is of first order
        h = lam.diff()[:, None]
        v = (problem.process.time(lam[:-1, None] + u * h) - t[:-1, None]) / t.diff()[:, None]
        mass = -h * weights * torch.exp((1 - u) * h)
        powers = v[..., None] ** torch.arange(self.terms + 1, dtype=torch.float64)
        table = torch.einsum("kq,kqj->kj", mass, powers).tolist()
        return Rule(times, lambda k, z, count: table[k][:count])

    def __repr__(self) -> str:
        return f"{self.name}(degree={self.terms - 1})"


@functools.lru_cache(maxsize=4)
def gauss_legendre(n: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the integral over (0, 1), float64 (n,) each.

    Golub & Welsch (1969), Math. Comp. 23, 221-230.
    """
    k = torch.arange(1, n, dtype=torch.float64)
    off = k / torch.sqrt(4 * k**2 - 1)
    values, vectors = torch.linalg.eigh(torch.diag(off, 1) + torch.diag(off, -1))
    return 0.5 * (1 + values), vectors[0] ** 2


class IPNDM(Multistep):
    r"""iPNDM: Adams and Bashforth's fixed coefficients on eps; one evaluation a step.

    .. math:: \tilde x_s = \tilde x_t + (\tilde\sigma_s-\tilde\sigma_t)
              \tfrac1{24}(55\epsilon_k - 59\epsilon_{k-1} + 37\epsilon_{k-2} - 9\epsilon_{k-3}),
              \qquad \tilde x = x/\alpha,\ \tilde\sigma = \sigma/\alpha,

    begun with the formulas of orders 1, 2, 3. It takes the steps of sigma/alpha for equal, which they are
    not: order 4 on a grid of equal steps of sigma/alpha but for its first steps, ODE order 2 on other smooth
    grids. It is of the best at ten evaluations and fewer all the same, where steps are too long for an order
    to tell. It is the form of Karras et al.'s clock (zju-pi/diff-sampler, `ipndm_sampler`), and diffusers'
    `IPNDMScheduler` in other letters: that one averages eps and takes a DDIM step with it.

    Args:
        order: Values that are averaged, 1 to 8; published is 4.
        lower_final: Fall to order 1 at the end.

    References:
        Liu et al. (2022), arXiv 2202.09778, Eqs. 9 and 12 (PNDM: the DDIM step, the coefficients); Zhang &
        Chen (2022), arXiv 2204.13902 (iPNDM: begun with lower orders in place of Runge-Kutta steps).

    Example:
        >>> IPNDM()
        IPNDM(order=4)
    """

    def __init__(self, order: int = 4, lower_final: bool = False) -> None:
        super().__init__(order, "noise", "none", math.inf, lower_final)
        self.orders = Orders(ode=min(order, 2))

    def rule(self, problem: SemiLinear, times: tuple[float, ...], grid: list[Coefficients]) -> Rule:
        def moments(k: int, z: float, count: int) -> list[float]:
            length = -math.expm1(-z)  # of the step, over sigma/alpha at its end
            return [length / (j + 1) for j in range(count)]

        return Rule(range(len(times)), moments)
