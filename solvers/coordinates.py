r"""Gaussian coordinates: where a probability-flow ODE is nearly constant and adaptive steps are long.

With :math:`\tilde x = x/\alpha`, :math:`\tilde\sigma = \sigma/\alpha` and the clock
:math:`s = \ln\tilde\sigma = -\lambda`, the ODE of every process is :math:`d\tilde x/ds = \tilde x - D`. For
data of mean m and variance l, :math:`y = (\tilde x - m)/q`, :math:`q = \sqrt{l + \tilde\sigma^2}`, has mean 0
and unit variance at all times, and

.. math:: dy/ds = (l\,y/q - (D - m))/q,

which vanishes identically where the data are Gaussian with those moments.
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
        times: Ends of the interval of times.
    """

    def __init__(self, problem: SemiLinear, times: tuple[float, ...]) -> None:
        self.problem, self.variance = problem, problem.scale**2
        self.low, self.high = min(times), max(times)

    @property
    def process(self) -> Schedule:
        return self.problem.process

    def clock(self, t: float) -> float:
        """``s = -lam(t)``; infinite where alpha or sigma vanishes."""
        return -float(self.process.lam(torch.tensor(t, dtype=torch.float64)))

    def time(self, s: Tensor) -> Tensor:
        """The time of clock s, inside the interval whatever rounding the way through lam did."""
        return self.process.time(-s).clamp(self.low, self.high)

    def spread(self, s: Tensor) -> Tensor:
        """``q = sqrt(l + sigma~^2)`` at clock s."""
        return torch.sqrt(self.variance + torch.exp(2 * s))

    def centre(self, y: Tensor) -> Tensor:
        """The data's mean, ready to broadcast against y."""
        return torch.as_tensor(self.problem.centre, dtype=y.dtype, device=y.device)

    def to_y(self, t: float, x: Tensor) -> Tensor:
        """Y of a state x at time t."""
        s = torch.tensor(self.clock(t), dtype=torch.float64)
        alpha = float(self.process.alpha(torch.tensor(t, dtype=torch.float64)))
        return (x / alpha - self.centre(x)) / float(self.spread(s))

    def to_x(self, s: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The state at clock s, time t; both (B,) or ()."""
        q, alpha = (expand(v.to(y.dtype), y) for v in (self.spread(s), self.process.alpha(t)))
        return (y * q + self.centre(y)) * alpha

    def drift(self, s: Tensor, y: Tensor, *per_sample: Tensor) -> Tensor:
        """``dy/ds``, with s float64 () or (B,)."""
        t = self.time(s)
        denoised = self.problem.denoiser(t, self.to_x(s, t, y), *per_sample)
        inverse = expand((1 / self.spread(s)).to(y.dtype), y)
        return (self.variance * inverse * y - denoised + self.centre(y)) * inverse


class _ClockODE(ODE):
    """An ODE whose drift takes the clock in float64."""

    def velocity(self, t: object, x: Tensor) -> Tensor:
        return self.drift(t, x, *self.per_sample)


def in_gaussian_coordinates(
    problem: Problem, x: Tensor, request: Request, solve: Callable[[Problem, Tensor, Request], Solution]
) -> Solution:
    """Run `solve` in Gaussian coordinates where the problem has them; the result is in x and t either way."""
    if not isinstance(problem, SemiLinear):
        return solve(problem, x, request)
    coordinates = GaussianCoordinates(problem, request.times)
    clock = [coordinates.clock(t) for t in request.times]
    if not all(math.isfinite(s) for s in clock):  # alpha = 0 at the end: the velocity form is regular there
        return solve(problem, x, replace(request, dual=None))
    ends = dict(zip(request.times, clock, strict=True))
    save_at = request.save_at and tuple(ends.get(t, coordinates.clock(t)) for t in request.save_at)
    dual = request.dual and _dual(request, coordinates)
    inner = replace(request, times=tuple(clock), save_at=save_at, dual=dual)
    solution = solve(
        _ClockODE(coordinates.drift, problem.per_sample), coordinates.to_y(request.times[0], x), inner
    )
    t = torch.where(solution.ok, request.times[-1], coordinates.time(solution.t))
    path = None
    if solution.path is not None and request.save_at is not None:
        when = torch.tensor(request.save_at, dtype=torch.float64, device=x.device)
        clocks = torch.tensor(save_at, dtype=torch.float64, device=x.device)
        path = coordinates.to_x(clocks, when, solution.path)
    return replace(solution, x=coordinates.to_x(solution.t, t, solution.x), t=t, path=path)


def _dual(request: Request, coordinates: GaussianCoordinates) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The dual weight in y: the caller's is asked in x and t, and a gradient picks up the factor dx/dy."""

    def dual(s: Tensor, y: Tensor, dy: Tensor) -> Tensor:
        assert request.dual is not None
        t = coordinates.time(s)
        q, alpha = (expand(v.to(y.dtype), y) for v in (coordinates.spread(s), coordinates.process.alpha(t)))
        # D from dy/ds, so that no evaluation is spent.
        denoised = coordinates.variance * y / q - q * dy + coordinates.centre(y)
        return request.dual(t, coordinates.to_x(s, t, y), denoised) * (q * alpha)

    return dual
