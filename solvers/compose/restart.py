r"""Restarts: noise is added again and the ODE solved again, which contracts the error made so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..noise import Stream
from ..problems import Problem, SemiLinear
from ..solution import Solution, uniform_solution
from ..solver import Request, Solver, StepSolver


class Interval(NamedTuple):
    """Solved `repeats` times again, between two values of the clock sigma/alpha."""

    low: float
    high: float
    repeats: int


class Restart(Solver):
    r"""An ODE solver that restarts: below an interval noise is added again, and the interval solved again.

    With :math:`\tilde\sigma = \sigma/\alpha`, at the first grid time s with :math:`\tilde\sigma_s \le low`
    the state is carried back to t, the first grid time with :math:`\tilde\sigma_t \le high`, by the forward
    transition

    .. math:: x_t = \frac{\alpha_t}{\alpha_s} x_s + \sqrt{\sigma_t^2 - (\alpha_t\sigma_s/\alpha_s)^2}\;z,

    and from there solved down to s again over the grid's own steps; so `repeats` times, and so for each
    interval from the noisiest on. The noise forgets part of the error made above s, the ODE makes little of
    its own. The cost is that of the steps taken, each reported in `nfe` and `accepted`. No time outside the
    grid is asked for.

    An interval whose lower end the times do not reach is left out; one between two neighbouring times spans
    the step that leads to its lower end. States kept by `save_at` are those of the first pass, and at s those
    after its restarts.

    Args:
        solver: A fixed-grid solver of ODEs; multistep ones begin anew at each restart.
        intervals: (low, high, repeats) each, in sigma/alpha.

    Raises:
        TypeError: If the solver chooses its own steps or adds noise of its own.
        ValueError: If an interval is empty or has no repeats; in a solve, if times rise.

    References:
        Xu et al. (2023), arXiv 2306.14878, algorithm 1, with sigma(t) = t; they choose the number of steps in
        an interval apart. The default interval is the one their code names for unconditional CIFAR-10
        (github.com/Newbeeer/diffusion_restart_sampling), where the data's standard deviation is 1/2; good
        intervals differ between data sets.

    Example:
        >>> import solvers
        >>> Restart(solvers.Heun(), intervals=[(0.06, 0.3, 2), (0.6, 1.1, 4)])
        Restart(Heun(), intervals=((0.6, 1.1, 4), (0.06, 0.3, 2)))
    """

    needs_linear_part = True
    noisy = True

    def __init__(
        self, solver: StepSolver, intervals: Sequence[tuple[float, float, int]] = ((0.06, 0.3, 2),)
    ) -> None:
        if not isinstance(solver, StepSolver) or solver.noisy or not solver.orders.ode:
            raise TypeError(
                f"{solver!r} is no ODE solver on a fixed grid, free of noise of its own: take one, such as "
                '"edm-heun" or "dpm++2m"'
            )
        for given in intervals:
            if not _is_interval(given):
                raise ValueError(
                    f"{given!r} is no interval to restart in: give (low, high, repeats), 0 < low < high in "
                    "sigma/alpha and a whole number of repeats"
                )
        self.solver = solver
        self.intervals = tuple(Interval(*given) for given in sorted(intervals, reverse=True))
        self.batch_coupled, self.default_steps = solver.batch_coupled, solver.default_steps

    def check(self, problem: Problem) -> None:
        super().check(problem)
        self.solver.check(problem)

    def pieces(self, problem: SemiLinear, times: tuple[float, ...]) -> list[tuple[int, int, bool]]:
        """What is solved, in order: first and last index in `times`, and whether noise is added before."""
        lam = problem.process.lam(torch.tensor(times, dtype=torch.float64)).tolist()
        done, parts = 0, []
        for low, high, repeats in self.intervals:
            end = _first_below(lam, low)
            if end is None or end == 0:
                continue
            if end > done:
                parts.append((done, end, False))
            start = min(_first_below(lam, high) or 0, end - 1)
            parts += [(start, end, True)] * repeats
            done = end
        return parts + ([(done, len(times) - 1, False)] if done < len(times) - 1 else [])

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        assert isinstance(problem, SemiLinear)
        times, wanted = request.times, set(request.save_at or ())
        if times[-1] > times[0]:
            raise ValueError(
                f"restarts add noise on the way to the data and times rise here, from {times[0]:g} to "
                f"{times[-1]:g}: let t fall, or take the solver without restarts"
            )
        problem, kept = problem.tabulate(times), dict[float, Tensor]()
        nfe, taken, restarts = torch.zeros(len(x), dtype=torch.int64, device=x.device), 0, 0
        for start, end, again in self.pieces(problem, times):
            if again:
                z = request.noise.at(restarts).normal(Stream.RESTART)
                x, restarts = back(problem, times[end], times[start], x, z), restarts + 1
            inside = () if again else tuple(t for t in times[start:end] if t in wanted - kept.keys())
            part = self.solver.integrate(
                problem, x, Request(times[start : end + 1], request.noise, inside or None)
            )
            if part.path is not None:
                kept.update(zip(inside, part.path, strict=True))
            x, nfe, taken = part.x, nfe + part.nfe, taken + end - start
            kept[times[end]] = x
        path = torch.stack([kept[t] for t in request.save_at]) if request.save_at else None
        error = x.new_full((len(x),), math.nan) if request.dual else None
        done = uniform_solution(x, times[-1], 0, taken, path, error)
        return Solution(x, done.t, nfe, done.accepted, done.rejected, done.status, path, error)

    def __repr__(self) -> str:
        return f"Restart({self.solver!r}, intervals={tuple(map(tuple, self.intervals))})"


def _is_interval(given: Any) -> bool:
    """Whether this is (low, high, repeats), each in its range."""
    try:
        low, high, repeats = given
        return bool(0 < low < high and repeats >= 1 and int(repeats) == repeats)
    except (TypeError, ValueError, OverflowError):
        return False


def _first_below(lam: list[float], clock: float) -> int | None:
    """The first index at which sigma/alpha is at most `clock`, to rounding."""
    level = -math.log(clock) - 1e-9
    return next((k for k, value in enumerate(lam) if value >= level), None)


def back(problem: SemiLinear, t: float, t_up: float, x: Tensor, z: Tensor) -> Tensor:
    """A sample at the noisier time t_up given x at t: the forward transition, driven by the normal z."""
    now, up = problem.coefficients(t), problem.coefficients(t_up)
    added = up.sigma * math.sqrt(-math.expm1(2 * (up.lam - now.lam)))
    return torch.add(x * (up.alpha / now.alpha), z, alpha=added)
