r"""Stochastic Runge-Kutta methods of strong order 1.5, which use the time integral of the Brownian motion."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..noise import Noise, Stream
from ..problems import SDE, Problem, is_deterministic
from ..solver import Orders, Step, StepSolver
from .euler import add_scaled


def increments(noise: Noise, h: float) -> tuple[Tensor, Tensor]:
    r"""Of a step, its increment W and the mean :math:`\bar W = \frac{1}{|h|}\int (W_r - W_t)\,dr` over it."""
    root = math.sqrt(abs(h))
    w = noise.normal() * root
    return w, torch.add(0.5 * w, noise.normal(Stream.AREA), alpha=root / math.sqrt(12))


class SRA1(StepSolver):
    r"""Rössler's SRA1 for additive noise.

    .. math:: \hat x = x + \tfrac34 h f_1 + \tfrac32 g(t_{next})\,\bar W, \qquad
              x_{next} = x + \tfrac h3 [f_1 + 2 f(t + \tfrac34 h, \hat x)] + g(t_{next})\,W +
              [g(t) - g(t_{next})]\,\bar W

    with :math:`f_1 = f(t, x)`, W the step's increment and :math:`\bar W` the mean of the path over the step,
    its time integral over abs(h). Strong order 1.5, weak order 2. Two evaluations a step. With eta = 0 it is
    Ralston's method of order 2.

    References:
        Rössler (2010), "Runge-Kutta methods for the strong approximation of solutions of stochastic
        differential equations", SIAM J. Numer. Anal. 48(3), 922-952, the scheme SRA1; his I_(1,0) / h is our
        mean.

    Example:
        >>> import torch, solvers
        >>> problem = solvers.SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x))
        >>> x = torch.zeros(4000, 1)
        >>> sol = solvers.solve(problem, x, t=(0.0, 8.0), solver=SRA1(), steps=40, seed=0)
        >>> 0.45 < float(sol.x.var()) < 0.55
        True
    """

    orders = Orders(ode=2, strong=1.5, weak=2)
    stochastic = True
    noises: tuple[str, ...] = ("additive",)
    default_steps = 250
    default_eta = 1.0

    def stage_times(self, t: float, t_next: float) -> tuple[float, ...]:
        return (t, t + 0.75 * (t_next - t), t_next)

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        h, slope = t_next - t, problem.velocity(t, x)
        ahead = torch.add(x, slope, alpha=0.75 * h)
        if is_deterministic(problem):
            slopes = torch.add(slope, problem.velocity(t + 0.75 * h, ahead), alpha=2)
            return Step(torch.add(x, slopes, alpha=h / 3))
        w, mean = increments(noise, h)
        here, there = problem.noise_scale(t, x), problem.noise_scale(t_next, x)
        ahead = add_scaled(ahead, there, mean, 1.5)
        slopes = torch.add(slope, problem.velocity(t + 0.75 * h, ahead), alpha=2)
        x_next = add_scaled(torch.add(x, slopes, alpha=h / 3), there, w)
        return Step(add_scaled(x_next, here - there, mean))


class SRK(SRA1):
    r"""Rössler's SRI1W1 for diagonal noise; where the noise is additive the step is :class:`SRA1`'s.

    .. math:: \hat x = x + \tfrac34 h f_1 + \tfrac32 g_1\bar W, \qquad
              x_{next} = x + \tfrac h3 [f_1 + 2 f(t + \tfrac34 h, \hat x)] + \sum_{i=1}^4 b_i g_i

    with :math:`f_1 = f(t, x)`, r = sqrt(abs(h)) and the diffusion's values

    .. math:: g_1 &= g(t, x) \\ g_2 &= g(t + \tfrac h4,\ x + \tfrac h4 f_1 + \tfrac r2 g_1) \\
              g_3 &= g(t + h,\ x + h f_1 - r g_1) \\
              g_4 &= g(t + \tfrac h4,\ x + \tfrac h4 f_1 + r\,[-5 g_1 + 3 g_2 + \tfrac12 g_3])

    weighted by multiple integrals of the step, :math:`I_{11} = (W^2 - |h|)/2` and
    :math:`I_{111} = (W^3 - 3 |h| W)/6`:

    .. math:: b_1 &= -W - I_{11}/r + 2\bar W - 2 I_{111}/|h| \\
              b_2 &= \tfrac43 (W + I_{11}/r - \bar W) + \tfrac53 I_{111}/|h| \\
              b_3 &= \tfrac23 (W - \bar W - I_{111}/|h|) - \tfrac13 I_{11}/r \\
              b_4 &= I_{111}/|h|

    Strong order 1.5, weak order 1.5 (2 is often quoted; the error of one step's law falls like the power 2.5
    of it, because r enters the stages without chance). Each entry of the diffusion may depend on t and on
    that entry of x alone. Two evaluations of the drift and four of the diffusion a step.

    References:
        Rössler (2010), SIAM J. Numer. Anal. 48(3), 922-952, the scheme SRI1W1.
    """

    orders = SRA1.orders._replace(strong_diagonal=1.5, weak_diagonal=1.5)
    noises = ("additive", "diagonal")

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        if not isinstance(problem, SDE) or problem.noise == "additive":
            return super().step(problem, t, t_next, x, state, noise)
        h, g = t_next - t, problem.noise_scale
        root, quarter = math.sqrt(abs(h)), t + 0.25 * h
        slope, g1 = problem.velocity(t, x), g(t, x)
        w, mean = increments(noise, h)
        slopes = problem.velocity(
            t + 0.75 * h, add_scaled(torch.add(x, slope, alpha=0.75 * h), g1, mean, 1.5)
        )
        near = torch.add(x, slope, alpha=0.25 * h)
        g2 = g(quarter, torch.add(near, g1, alpha=0.5 * root))
        g3 = g(t_next, torch.sub(torch.add(x, slope, alpha=h), g1, alpha=root))
        g4 = g(quarter, torch.add(near, 3 * g2 - 5 * g1 + 0.5 * g3, alpha=root))
        once, twice = w / root, w * w / abs(h)
        i11, i111 = 0.5 * root * (twice - 1), root / 6 * once * (twice - 3)  # over r, over |h|
        x_next = torch.add(x, torch.add(slope, slopes, alpha=2), alpha=h / 3)
        x_next = torch.addcmul(x_next, g1, 2 * (mean - i111) - w - i11)
        x_next = torch.addcmul(x_next, g2, 4 / 3 * (w + i11 - mean) + 5 / 3 * i111)
        x_next = torch.addcmul(x_next, g3, 2 / 3 * (w - mean - i111) - i11 / 3)
        return Step(torch.addcmul(x_next, g4, i111))
