"""Milstein's method for diagonal noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..noise import Noise
from ..problems import SDE, Problem
from ..solver import Step
from .euler import EulerMaruyama, add_scaled


class Milstein(EulerMaruyama):
    r"""Milstein's method for diagonal noise, without derivatives.

    .. math:: x_{next} = x + h\,f + g\sqrt{|h|}\,z + \tfrac12\sqrt{|h|}\,(z^2 - 1)\,[g(t, \hat x) - g(t, x)],
              \qquad \hat x = x + g(t, x)\sqrt{|h|}

    The difference stands for :math:`\sqrt{|h|}\,g\,\partial g/\partial x`. Each entry of the diffusion may
    depend on t and on that entry of x alone: noise that mixes entries needs Lévy areas. Strong order 1, weak
    order 1. One evaluation of the drift and two of the diffusion a step; where the noise is additive the
    correction vanishes, and the step is Euler-Maruyama's.

    References:
        Kloeden & Platen (1992), Numerical Solution of Stochastic Differential Equations, Eq. 11.1.3 (their
        supporting value has the drift added, which leaves the order as it is), and Eq. 10.3.1 with
        derivatives.

    Example:
        >>> import torch, solvers
        >>> geometric = solvers.SDE(lambda t, x: 0 * x, lambda t, x: x, noise="diagonal")
        >>> x = torch.ones(1000, 1, dtype=torch.float64)
        >>> path = solvers.BrownianPath(solvers.Noise.like(x, 0), (0.0, 1.0))
        >>> sol = solvers.solve(geometric, x, (0.0, 1.0), Milstein(), steps=64, brownian=path)
        >>> float((sol.x - torch.exp(path(0.0, 1.0) - 0.5)).abs().mean()) < 0.02
        True
    """

    orders = EulerMaruyama.orders._replace(strong_diagonal=1)

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        if not isinstance(problem, SDE) or problem.noise == "additive":
            return super().step(problem, t, t_next, x, state, noise)
        h, z, scale = t_next - t, noise.normal(), problem.noise_scale(t, x)
        root = math.sqrt(abs(h))
        change = problem.noise_scale(t, torch.add(x, scale, alpha=root)) - scale
        x_next = add_scaled(problem.advance(t, x, h), scale, z, root)
        return Step(add_scaled(x_next, change, z * z - 1, 0.5 * root))
