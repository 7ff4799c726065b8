r"""Gaussian coordinates: where a probability-flow ODE is nearly constant, so that an adaptive solver takes few steps.

With :math:`\tilde x = x/\alpha`, :math:`\tilde\sigma = \sigma/\alpha` and the clock :math:`s = \ln\tilde\sigma = -\lambda`, the ODE of every
process is :math:`d\tilde x/ds = \tilde x - D`. For data of variance l, :math:`y = \tilde x/q`, :math:`q = \sqrt{l + \tilde\sigma^2}`, has unit
variance at all times, and

.. math:: dy/ds = (l\,y/q - D)/q,

which vanishes identically where the data are Gaussian with that variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .problems import ODE, Problem, Schedule, SemiLinear, expand
from .solution import Solution
from .solver import Request


class GaussianCoordinates:
    """The change of coordinates and clock for one semi-linear problem.

    Args:
        problem: A deterministic semi-linear problem.
    """

    def __init__(self, problem: SemiLinear) -> None:
        self.problem, self.variance = problem, problem.scale**2

    @property
    def process(self) -> Schedule:
        return self.problem.process

    def clock(self, t: float) -> float:
        """``s = -lam(t)``; infinite where alpha or sigma vanishes."""
        return -float(self.process.lam(torch.tensor(t, dtype=torch.float64)))

    def spread(self, s: Tensor) -> Tensor:
        """``q = sqrt(l + sigma~^2)`` at clock s."""
        return torch.sqrt(self.variance + torch.exp(2 * s))

    def factor(self, t: float) -> float:
        """``x = factor * y`` at time t."""
        alpha, sigma = (float(f(torch.tensor(t, dtype=torch.float64))) for f in (self.process.alpha, self.process.sigma))
        return math.sqrt(self.variance * alpha**2 + sigma**2)

    def drift(self, s: Tensor, y: Tensor, *per_sample: Tensor) -> Tensor:
        """``dy/ds``, with s float64 () or (B,)."""
        t = self.process.time(-s)
        q = self.spread(s)
        x = y * expand((q * self.process.alpha(t)).to(y.dtype), y)
        denoised = self.problem.denoiser(t, x, *per_sample)
        inverse = expand((1 / q).to(y.dtype), y)
        return (self.variance * inverse * y - denoised) * inverse


class _ClockODE(ODE):
    """An ODE whose drift takes the clock in float64."""

    def velocity(self, t: object, x: Tensor) -> Tensor:
        return self.drift(t, x, *self.per_sample)


def in_gaussian_coordinates(
    problem: Problem, x: Tensor, request: Request, solve: Callable[[Problem, Tensor, Request], Solution]
) -> Solution:
    """Run `solve` in Gaussian coordinates where the problem has them, else as it is; the result is in x and t either way."""
    if not isinstance(problem, SemiLinear):
        return solve(problem, x, request)
    coordinates = GaussianCoordinates(problem)
    clock = [coordinates.clock(t) for t in request.times]
    if not all(math.isfinite(s) for s in clock):  # alpha = 0 at the end: the velocity form is regular there
        return solve(problem, x, replace(request, dual=None))
    ends = dict(zip(request.times, clock, strict=True))
    save_at = request.save_at and tuple(ends.get(t, coordinates.clock(t)) for t in request.save_at)
    dual = request.dual and _dual(request, coordinates)
    inner = replace(request, times=tuple(clock), save_at=save_at, dual=dual)
    solution = solve(_ClockODE(coordinates.drift, problem.per_sample), x / coordinates.factor(request.times[0]), inner)
    t = problem.process.time(-solution.t)
    return replace(
        solution,
        x=solution.x * expand((coordinates.spread(solution.t) * problem.process.alpha(t)).to(x.dtype), x),
        t=torch.where(solution.ok, request.times[-1], t),
        path=_scaled_path(solution.path, request.save_at, coordinates),
    )


def _scaled_path(path: Tensor | None, save_at: tuple[float, ...] | None, coordinates: GaussianCoordinates) -> Tensor | None:
    if path is None or save_at is None:
        return None
    factors = torch.tensor([coordinates.factor(t) for t in save_at], dtype=path.dtype, device=path.device)
    return path * expand(factors, path)


def _dual(request: Request, coordinates: GaussianCoordinates) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The dual weight in y: the caller's is asked in x and t, and a gradient picks up the factor dx/dy."""

    def dual(s: Tensor, y: Tensor, dy: Tensor) -> Tensor:
        t = coordinates.process.time(-s)
        factor = expand((coordinates.spread(s) * coordinates.process.alpha(t)).to(y.dtype), y)
        q = expand(coordinates.spread(s).to(y.dtype), y)
        # D from dy/ds, so that no evaluation is spent.
        denoised = coordinates.variance * y / q - q * dy
        assert request.dual is not None
        return request.dual(t, y * factor, denoised) * factor

    return dual
