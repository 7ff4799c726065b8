"""An adaptive SDE solver whose rejected steps are bridged."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..active import Gathered, Rows, outcome, propose, rms, tolerance, wide
from ..brownian import BrownianPath, path_of
from ..problems import Problem, expand, is_deterministic, take
from ..solution import Solution
from ..solver import Orders, Request, Solver, check_limits, check_tolerances
from .euler import add_scaled

_SAFETY, _EXPONENT, _SHRINK, _GROW = 0.8, 0.5, 0.2, 5.0  # a step in five is then rejected
_FIRST_STEP = 0.01  # of the interval
_DIGITS = 3  # binary digits of a step that are kept after the first


class GottaGoFast(Solver):
    r"""Euler-Maruyama inside Heun's method for additive noise, adaptive per sample.

    .. math:: \hat x = x + h f(t, x) + g(t)\,W, \qquad
              x_{next} = x + \tfrac h2 [f(t, x) + f(t_{next}, \hat x)] + \tfrac12 [g(t) + g(t_{next})]\,W

    W is the Brownian path's increment over the step. A step is accepted, with :math:`x_{next}`, where the
    root mean square E over the sample's own entries of :math:`(x_{next} - \hat x) / (atol + rtol \max(|x|,
    |x_{next}|))` is at most 1; the next is :math:`0.8\,E^{-0.5}` times as long, within [0.2, 5]. A shorter
    step after a rejection asks the same path for its increment: nothing is drawn again, so what steps were
    tried does not bias the noise, and solves of other tolerances follow the same path. Steps are rounded down
    to four binary digits, whereby the path is asked at times it reaches by few halvings. Two evaluations a
    step, taken or rejected. Strong order 1 in the step; with eta = 0 it is an adaptive Heun's method.

    Args:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_nfe: Evaluations a sample may take.
        min_step: Smallest step, as a fraction of the interval; a shorter one that ends where a state is to
            be kept is none.

    Raises:
        ValueError: If a tolerance is not positive and finite, `max_nfe` no whole number of at least 1, or
            `min_step` not in [0, 1).

    References:
        Jolicoeur-Martineau et al. (2021), "Gotta go fast when generating data with score-based models", arXiv
        2105.14080, algorithm 1; there the error is measured by max(atol, rtol max(...)) over the Euler
        states, the next step is 0.9 E^-0.9 times as long, and a rejected step's noise is drawn anew.

    Example:
        >>> import torch, solvers
        >>> problem = solvers.SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x))
        >>> sol = solvers.solve(problem, torch.ones(3, 2), (0.0, 1.0), GottaGoFast(rtol=0.05, atol=0.05))
        >>> bool(sol.ok.all()), torch.equal(sol.nfe, 2 * (sol.accepted + sol.rejected))
        (True, True)
    """

    orders = Orders(ode=2, strong=1)
    adaptive = True
    stochastic = True
    noises = ("additive",)
    default_eta = 1.0

    def __init__(
        self, rtol: float = 1e-2, atol: float = 1e-2, max_nfe: int = 20_000, min_step: float = 1e-6
    ) -> None:
        self.rtol, self.atol = check_tolerances(rtol, atol)
        self.max_nfe, self.min_step = check_limits(max_nfe, min_step)

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        clock = _Clock(x, request)
        path = None if is_deterministic(problem) else path_of(request.noise, request.times)
        result, active = Gathered(x), clock.begin(x)
        while len(active.row):
            euler, x_new = _trial(problem, path, clock, active)
            ratio = rms((x_new - euler).detach() / tolerance(active.x.detach(), x_new.detach(), self))
            self._advance(active, clock, ratio, x_new)
            nfe = 2 * (active.accepted + active.rejected)
            short = (active.step <= self.min_step) | (active.t_next <= active.t)
            status = outcome(active, short, nfe >= self.max_nfe, ratio, 1.0)
            done = status >= 0
            if bool(done.any()):
                counts = {"accepted": active.accepted, "rejected": active.rejected}
                result.finish(active, done, status=status, nfe=nfe, **counts)
                rest = (~done).nonzero().flatten()
                active, problem = active.select(rest), take(problem, rest)
                path = path.take(rest) if path else None
        solution = result.solution()
        error = None if request.dual is None else torch.full_like(solution.t, math.nan)
        return replace(solution, t=clock.time(solution.t), path=clock.path, error=error)

    def _advance(self, active: _Active, clock: _Clock, ratio: Tensor, x_new: Tensor) -> None:
        """Take the accepted steps and propose the next ones."""
        accept = ratio <= 1  # False for NaN
        growth = _SAFETY * ratio.clamp(min=1e-10) ** -_EXPONENT
        growth = torch.nan_to_num(growth, nan=_SHRINK).clamp(_SHRINK, _GROW)
        step = (active.t_next - active.t) * torch.where(accept, growth, growth.clamp(max=_SAFETY))
        cut = accept & clock.keeps(active.t_next)  # for the sake of a state to keep, not of the error
        active.step = torch.where(cut, torch.maximum(step, active.step), step)
        active.x = torch.where(expand(accept, x_new), x_new, active.x)
        active.t = torch.where(accept, active.t_next, active.t)
        active.accepted, active.rejected = active.accepted + accept, active.rejected + ~accept
        clock.save(active, accept)
        active.t_next = clock.propose(active.t, active.step)

    def __repr__(self) -> str:
        return f"{self.name}(rtol={self.rtol:g}, atol={self.atol:g})"


@dataclass
class _Active(Rows):
    """The samples under way."""

    accepted: Tensor
    rejected: Tensor
    step: Tensor  # as proposed, before a stop cuts it


class _Clock:
    """Times as fractions of the interval, whose steps are dyadic, and the states kept on the way."""

    def __init__(self, x: Tensor, request: Request) -> None:
        (self.start, self.end), saves = request.times, request.save_at
        marks = [(t - self.start) / (self.end - self.start) for t in saves or ()]
        self.marks = torch.tensor(marks, dtype=wide(x), device=x.device)
        self.stops = torch.cat([self.marks, self.marks.new_ones(1)])
        self.path: Tensor | None = None
        if saves is not None:
            self.path = x.new_full((len(saves), *x.shape), math.nan)
            self.path[self.marks == 0] = x

    def begin(self, x: Tensor) -> _Active:
        rows = torch.arange(len(x), device=x.device)
        zero, t = torch.zeros_like(rows), self.stops.new_zeros(len(x))
        step = torch.full_like(t, _FIRST_STEP)
        return _Active(rows, t, self.propose(t, step), x, zero, zero, step)

    def time(self, s: Tensor) -> Tensor:
        return torch.where(s == 1, self.end, self.start + s * (self.end - self.start))

    def propose(self, s: Tensor, step: Tensor) -> Tensor:
        """Fraction after a step: the next that is to be kept or the end, or a multiple of a power of two."""
        stop = self.stops[torch.searchsorted(self.stops, s, right=True).clamp(max=len(self.stops) - 1)]
        s_next = propose(s, step, stop)
        unit = torch.ldexp(torch.ones_like(s), torch.frexp(s_next - s).exponent - 1 - _DIGITS)
        return torch.where(s_next == stop, stop, torch.floor(s_next / unit) * unit)

    def keeps(self, s: Tensor) -> Tensor:
        """Whether a state is kept at a fraction, (B,)."""
        return (self.marks[:, None] == s).any(dim=0)

    def save(self, active: _Active, accept: Tensor) -> None:
        """Keep the states that have just reached a time asked for."""
        if self.path is None:
            return
        when, who = ((self.marks[:, None] == active.t) & accept).nonzero(as_tuple=True)
        self.path = self.path.index_put((when, active.row[who]), active.x[who])


def _trial(
    problem: Problem, path: BrownianPath | None, clock: _Clock, active: _Active
) -> tuple[Tensor, Tensor]:
    """Euler-Maruyama's state after a step, and Heun's."""
    t, t_next, x = clock.time(active.t), clock.time(active.t_next), active.x
    h, slope = expand((t_next - t).to(x.dtype), x), problem.velocity(t, x)
    euler = torch.addcmul(x, h, slope)
    if path is None:
        return euler, torch.addcmul(x, h, slope + problem.velocity(t_next, euler), value=0.5)
    w, scale = path(t, t_next), problem.noise_scale(t, x)
    euler = add_scaled(euler, scale, w)
    x_new = torch.addcmul(x, h, slope + problem.velocity(t_next, euler), value=0.5)
    return euler, add_scaled(x_new, scale + problem.noise_scale(t_next, euler), w, 0.5)
