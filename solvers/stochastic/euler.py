"""Euler-Maruyama and Heun's method for additive noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..noise import Noise
from ..problems import Problem, is_deterministic
from ..solver import Orders, Step, StepSolver


def add_scaled(x: Tensor, scale: Any, z: Tensor, factor: float = 1.0) -> Tensor:
    """``x + factor scale z``; scale a float or a tensor that broadcasts against x."""
    if isinstance(scale, Tensor):
        return torch.addcmul(x, scale, z, value=factor)
    return torch.add(x, z, alpha=scale * factor)


def add_noise(x: Tensor, scale: Any, h: float, z: Tensor) -> Tensor:
    """``x + scale sqrt(|h|) z``; scale a float or a tensor."""
    return add_scaled(x, scale, z, math.sqrt(abs(h)))


class EulerMaruyama(StepSolver):
    r"""The Euler-Maruyama method.

    .. math:: x_{next} = x + h\,f(t, x) + g(t, x)\sqrt{|h|}\,z

    Strong order 1 for additive noise (all diffusions), 1/2 for diagonal noise; weak order 1. One evaluation a
    step. With eta = 0 it is Euler's method.

    References:
        Kloeden & Platen (1992), Numerical Solution of Stochastic Differential Equations, section 10.2.

    Example:
        >>> import torch, solvers
        >>> process = solvers.SDE(lambda t, x: -x, lambda t, x: torch.full_like(x, 2**0.5))
        >>> x = torch.zeros(4000, 1)
        >>> sol = solvers.solve(process, x, t=(0.0, 8.0), solver=EulerMaruyama(), steps=400, seed=0)
        >>> 0.9 < float(sol.x.var()) < 1.1
        True
    """

    orders = Orders(ode=1, strong=1, weak=1, strong_diagonal=0.5, weak_diagonal=1)
    stochastic = True
    default_steps = 500
    default_eta = 1.0

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        h = t_next - t
        x_next = problem.advance(t, x, h)
        if not is_deterministic(problem):
            x_next = add_noise(x_next, problem.noise_scale(t, x), h, noise.normal())
        return Step(x_next)


class StochasticHeun(StepSolver):
    r"""Heun's method for additive noise: trapezoidal drift, and the diffusion averaged over the step.

    .. math:: \hat x = x + h f(t, x) + g(t)\sqrt{|h|}\,z, \qquad
              x_{next} = x + \tfrac h2 [f(t, x) + f(t_{next}, \hat x)] + \tfrac12 [g(t) +
              g(t_{next})]\sqrt{|h|}\,z

    Strong order 1, weak order 2 for additive noise. Two evaluations a step. With eta = 0 it is Heun's method.

    References:
        Kloeden & Platen (1992), Numerical Solution of Stochastic Differential Equations, Eq. 15.1.3, for
        additive noise.
    """

    orders = Orders(ode=2, strong=1, weak=2)
    stochastic = True
    noises = ("additive",)
    default_steps = 250
    default_eta = 1.0

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        h, slope = t_next - t, problem.velocity(t, x)
        if is_deterministic(problem):
            ahead = torch.add(x, slope, alpha=h)
            return Step(torch.add(x, slope + problem.velocity(t_next, ahead), alpha=h / 2))
        z, scale = noise.normal(), problem.noise_scale(t, x)
        ahead = add_noise(torch.add(x, slope, alpha=h), scale, h, z)
        x_next = torch.add(x, slope + problem.velocity(t_next, ahead), alpha=h / 2)
        return Step(add_noise(x_next, (scale + problem.noise_scale(t_next, ahead)) / 2, h, z))
