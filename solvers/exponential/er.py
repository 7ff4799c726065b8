r"""ER-SDE: multistep methods in sigma/alpha, whose noise is given by eta or by a noise-scale function."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..problems import Coefficients, Schedule, SemiLinear
from ..solver import Orders
from .deis import gauss_legendre
from .integrals import Linear, damped
from .multistep import Multistep, Rule

#: ``noise_scale(s)`` of float64 s = sigma/alpha, elementwise; positive, growing at least as fast as s.
NoiseScale = Callable[[Tensor], Tensor]

#: The noise scales of Cui et al. (their ER SDE 1 to 5); the last is their choice.
NOISE_SCALES: dict[str, NoiseScale] = {
    "sde-1": lambda s: s * (torch.exp(-1 / s) + 10),
    "sde-2": lambda s: s**1.5,
    "sde-3": lambda s: s**2.5,
    "sde-4": lambda s: s**0.9 * torch.log10(1 + 100 * s**1.5),
    "sde-5": lambda s: s * (torch.exp(s**0.3) + 10),
}
_NODES = 32


class ERSDE(Multistep):
    r"""ER-SDE-Solver of order 1, 2, 3: multistep in :math:`s = \sigma/\alpha`, one evaluation a step.

    With a noise scale :math:`\phi(s)`, from t to t' (their values of s being s and s'),

    .. math:: \frac{x_{t'}}{\alpha_{t'}} = \frac{\phi(s')}{\phi(s)}\frac{x_t}{\alpha_t}
              + \phi(s')\int_{s'}^{s} P(r)\,\frac{\phi'(r)}{\phi(r)^2}\,dr
              + \sqrt{s'^2 - s^2\,\phi(s')^2/\phi(s)^2}\;z

    P being the polynomial through the last values of D in the coordinate s. The integral, by parts one of
    P'/phi, is a Gauss-Legendre sum in log s, computed once a grid.

    What noise this is: in :math:`\tilde x = x/\alpha`, the family of :class:`SemiLinear` has a drift towards
    D at the rate :math:`(1+\eta^2)\,d\ln s`, and phi is the factor by which that pulls, so

    .. math:: \frac{d\ln\phi}{d\ln s} = 1 + \eta^2 : \qquad \phi = s \text{ is the ODE},\quad
              \phi = s^2 \text{ the reverse SDE},\quad \phi = s^{1+\eta^2} \text{ a constant eta}.

    Without `noise_scale` the method takes the last, with the problem's eta (at the start of the step, where
    it is a function of t). With one, the problem's eta scales it, :math:`\phi_\eta = s\,(\phi/s)^{\eta^2}`:
    the noise scale as given at eta = 1, the ODE at 0. It then solves the problem whose eta is
    :func:`noise_scale_eta` times its own, exactly so however large the step.

    The paper's second- and third-order methods put differences of past values for the derivatives of D at
    the start of the step. Its third takes the first backward difference for the first derivative, whose
    error is of the order of the term it adds, and is of order 2 in all; here P is the interpolating
    polynomial and the first steps are corrected. ODE order as stated, strong order 1, weak order 2 from order
    2 on.

    Args:
        order: Values that P goes through, 1 to 3.
        noise_scale: phi, a function of float64 tensors, or the name of one of the paper's ("sde-1" to
            "sde-5").
        caution: See :class:`Multistep`; inf keeps the full order on every grid.
        lower_final: Fall to order 1 by one a step at the end.

    Raises:
        ValueError: If an argument is not one of these, or phi(s)/s falls with s somewhere on the grid.

    References:
        Cui et al. (2023), arXiv 2309.06169 (the noise scales in appendix A.8 and in the authors' code,
        er_sde_solver.py); their sigma of VE and lambda of VP are our s.

    Example:
        >>> import solvers
        >>> solvers.get("er-sde", noise_scale="sde-5")
        ERSDE(order=3)
    """

    stochastic = True
    default_eta = 1.0

    def __init__(
        self,
        order: int = 3,
        noise_scale: NoiseScale | str | None = None,
        caution: float = 1.25,
        lower_final: bool = False,
    ) -> None:
        if order not in (1, 2, 3):
            raise ValueError(f"order={order!r} is none of ER-SDE: give 1, 2 or 3")
        super().__init__(order, "data", "none" if order == 1 else "start", caution, lower_final)
        self.noise_scale = _named(noise_scale)
        self.orders = Orders(ode=order, strong=1, weak=min(order, 2))

    def linear(self, problem: SemiLinear, now: Coefficients, after: Coefficients) -> Linear:
        if not now.eta:
            return super().linear(problem, now, after)
        h = after.lam - now.lam
        decay = now.eta**2 * h
        if self.noise_scale is not None and math.isfinite(h):
            lam = torch.tensor([now.lam, after.lam], dtype=torch.float64)
            start, end = _log_excess(self.noise_scale, lam).tolist()
            decay = now.eta**2 * (start - end)
            if not decay >= 0:
                raise ValueError(
                    f"noise_scale(s)/s is not a growing function between s={math.exp(-after.lam):g} and "
                    f"s={math.exp(-now.lam):g}: give one that grows at least as fast as s, such as s**2"
                )
        return damped(now, after, decay, 1 + now.eta**2)

    def rule(self, problem: SemiLinear, times: tuple[float, ...], grid: list[Coefficients]) -> Rule:
        lam = torch.tensor([c.lam for c in grid], dtype=torch.float64)
        lam = lam.nan_to_num(posinf=0.0, neginf=0.0)  # a step from or to infinity is of first order
        eta2 = torch.tensor([c.eta for c in grid[:-1]], dtype=torch.float64).square()[:, None]
        v, weights = gauss_legendre(_NODES)
        v = torch.cat([torch.zeros(1, dtype=torch.float64), v])  # the start too, for the moment of 1
        h = lam.diff()[:, None]
        inner = lam[:-1, None] + v * h
        grown = (1 - v) * h * (1 + eta2)
        if self.noise_scale is not None:
            excess = _log_excess(self.noise_scale, inner) - _log_excess(self.noise_scale, lam[1:, None])
            grown = (1 - v) * h + eta2 * excess
        pulled = -torch.expm1(-grown)  # 1 - phi(s') / phi(s)
        u = torch.expm1(-v * h) / torch.expm1(-h)
        density = weights * (pulled * h * torch.exp(-v * h) / -torch.expm1(-h))[:, 1:]
        table = [pulled[:, 0]]
        table += [j * (density * u[:, 1:] ** (j - 1)).sum(dim=1) for j in range(1, self.terms + 1)]
        moments = torch.stack(table, dim=1).tolist()
        coordinate = [c.sigma / c.alpha if c.alpha else math.inf for c in grid]
        return Rule(coordinate, lambda k, z, count: moments[k][:count])


def noise_scale_eta(process: Schedule, noise_scale: NoiseScale | str) -> Callable[[Tensor], Tensor]:
    r"""The eta(t) of an ER-SDE noise scale, for any other solver.

    .. math:: \eta(t)^2 = \frac{d\ln\phi}{d\ln s} - 1, \qquad s = \sigma(t)/\alpha(t)

    Args:
        process: Schedule of the problem.
        noise_scale: phi, or its name, as for :class:`ERSDE`; differentiable by autograd.

    Returns:
        A function of float64 times, to be given to :class:`SemiLinear` as eta.

    References:
        Cui et al. (2023), arXiv 2309.06169, in other words: the diffusion h(t) of their SDE is our eta g.

    Example:
        >>> import torch, sdediff
        >>> eta = noise_scale_eta(sdediff.VP(), lambda s: s**1.25)
        >>> float(eta(torch.tensor(0.3, dtype=torch.float64)).round(decimals=9))
        0.5
    """
    scale = _named(noise_scale)
    assert scale is not None

    def eta(t: Tensor) -> Tensor:
        with torch.inference_mode(False), torch.enable_grad():
            lam = process.lam(t.detach().clone()).detach().requires_grad_()
            (slope,) = torch.autograd.grad(_log_excess(scale, lam).sum(), lam)
        return (-slope).clamp(min=0.0).sqrt()

    return eta


def _named(noise_scale: NoiseScale | str | None) -> NoiseScale | None:
    if isinstance(noise_scale, str):
        if noise_scale not in NOISE_SCALES:
            raise ValueError(
                f"there is no noise scale named {noise_scale!r}: take one of {', '.join(NOISE_SCALES)}, or "
                "give a function"
            )
        return NOISE_SCALES[noise_scale]
    return noise_scale


def _log_excess(noise_scale: NoiseScale, lam: Tensor) -> Tensor:
    """``log(phi(s)/s)`` at s = e^-lam: what phi grows by beyond the ODE's."""
    return torch.log(noise_scale(torch.exp(-lam))) + lam
