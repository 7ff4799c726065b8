"""torchsde's SDE solvers."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..brownian import BrownianPath, path_of
from ..problems import Problem, counted
from ..solution import Solution, Status, uniform_solution
from ..solver import Orders, Request, Solver, check_tolerances
from .rows import one_by_one

_ITO = {
    "euler": Orders(ode=1, strong=1, weak=1, strong_diagonal=0.5, weak_diagonal=1),
    "milstein": Orders(ode=1, strong=1, weak=1, strong_diagonal=1, weak_diagonal=1),
    "srk": Orders(ode=2, strong=1.5, weak=1, strong_diagonal=1.5, weak_diagonal=1),
}
# Where noise is additive, Stratonovich's integral is Ito's.
_STRATONOVICH = {
    "euler_heun": Orders(ode=1, strong=1, weak=1),
    "heun": Orders(ode=2, strong=1, weak=2),
    "midpoint": Orders(ode=2, strong=1, weak=2),
    "log_ode": Orders(ode=2, strong=1, weak=2),
    "reversible_heun": Orders(ode=2, strong=1, weak=2),
}
METHODS = {**_ITO, **_STRATONOVICH}
_NOT_ADAPTIVE = {
    "euler": 'are not sure to converge where noise depends on the state: take "milstein"',
    "reversible_heun": 'cannot be rejected, for it carries a second state along: take "heun"',
}
_FIRST_STEP, _MIN_STEP = 0.02, 1e-9  # of the interval


class _GaveUpError(Exception):
    """An adaptive solve cannot go on."""

    def __init__(self, status: Status) -> None:
        super().__init__()
        self.status = status


class TorchSDE(Solver):
    """A solver of torchsde (Li et al. 2020), in either direction of time.

    The Ito methods take diagonal noise; the Stratonovich ones additive noise, for which both calculi agree.
    torchsde takes flat states, rising times and one step size. On a fixed grid it is given the flattened
    state and a clock u = 0, 1, ... on which the grid is uniform: the grid's points are joined by a monotone
    C1 curve t(u), and drift and diffusion pick up dt/du and its root; where the grid is not uniform, orders
    above 2 for the ODE and 1 with noise are so lost. The Brownian path is ours, so the noise
    of sample i is that of a native solver on the same grid. Milstein's method is the derivative-free one.

    An adaptive solve compares a step with two of half its length on the same path, whose rejected parts are
    bridged and not drawn again. All samples share its steps.

    Args:
        method: One of `METHODS`.
        adaptive: Choose steps by rtol and atol.
        rtol: Relative tolerance (adaptive).
        atol: Absolute tolerance (adaptive).
        max_nfe: Evaluations that an adaptive solve may take.
        per_sample: Solve an adaptive batch one sample at a time, so that none depends on its batch-mates.

    Raises:
        ValueError: For an unknown method, a tolerance that is not positive, or adaptive steps of a method
            that cannot do with them ("euler", "reversible_heun").
    """

    stochastic = True
    default_steps = 250
    default_eta = 1.0

    def __init__(
        self,
        method: str = "srk",
        adaptive: bool = False,
        rtol: float = 1e-3,
        atol: float = 1e-3,
        max_nfe: int = 100_000,
        per_sample: bool = False,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"torchsde has no method {method!r}: take one of {', '.join(METHODS)}")
        if adaptive and method in _NOT_ADAPTIVE:
            raise ValueError(f"adaptive steps of torchsde's {method} {_NOT_ADAPTIVE[method]}")
        self.method, self.adaptive, self.per_sample = method, adaptive, per_sample
        self.rtol, self.atol = check_tolerances(rtol, atol)
        self.max_nfe, self.batch_coupled = max_nfe, adaptive and not per_sample
        self.orders = METHODS[method]
        self.noises = ("additive", "diagonal") if method in _ITO else ("additive",)

    @property
    def name(self) -> str:
        return f"torchsde/{self.method}"

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        if self.adaptive and self.per_sample and len(x) > 1:
            return one_by_one(self, problem, x, request)
        problem, calls = counted(problem)
        if self.adaptive:
            return self._adapt(problem, calls, x, request)
        steps = len(request.times) - 1
        clock = _Clock(request.times)
        saved = [i for i, t in enumerate(request.times) if t in set(request.save_at or ())]
        points = sorted({0, *saved, steps})
        path = BrownianPath(request.noise, tuple(float(i) for i in range(steps + 1)))
        brownian = _Brownian(path, x.flatten(1), self.method)
        states = self._solve(
            _System(problem, clock, x.shape, self.method), x.flatten(1), points, brownian, 1.0
        )
        states = states.reshape(-1, *x.shape).to(x.dtype)
        kept = torch.stack([states[points.index(i)] for i in saved]) if request.save_at else None
        return uniform_solution(states[-1], request.times[-1], calls.calls, steps, kept)

    def _solve(self, system: Any, y: Tensor, points: Any, brownian: Any, dt: float) -> Tensor:
        from torchsde import sdeint

        wide = torch.float32 if y.device.type == "mps" else torch.float64
        u = torch.tensor([float(i) for i in points], dtype=wide, device=y.device)
        # Differentiating g would make states require gradients that nobody asked for.
        options = {"grad_free": True} if self.method == "milstein" else {}
        tolerances = {"rtol": self.rtol, "atol": self.atol, "dt_min": 0.0} if self.adaptive else {}
        return sdeint(
            system,
            y,
            u,
            bm=brownian,
            method=self.method,
            dt=dt,
            adaptive=self.adaptive,
            options=options,
            **tolerances,
        )

    def _adapt(self, problem: Problem, calls: Any, x: Tensor, request: Request) -> Solution:
        """The clock is the part of the interval done; states are kept by stopping there."""
        start, end = request.times
        stops = [t for t in request.save_at or () if t not in (start, end)]
        points = [0.0, *((t - start) / (end - start) for t in stops), 1.0]
        path = _Whole(path_of(request.noise, request.times), start, end)
        brownian = _Attempts(path, x.flatten(1), self.method, lambda: calls.calls >= self.max_nfe)
        system = _System(problem, _Straight(start, end), x.shape, self.method, brownian)
        kept, status = {start: x}, Status.OK
        try:
            for (u, v), t in zip(pairwise(points), [*stops, end], strict=True):
                brownian.reached, system.state = u, x.flatten(1)
                state = self._solve(system, x.flatten(1), (u, v), brownian, min(_FIRST_STEP, v - u))[-1]
                brownian.finish()
                x = kept[t] = state.reshape(x.shape).to(x.dtype)
        except _GaveUpError as failure:
            status = failure.status
        except AssertionError as failure:
            if not str(failure).startswith("Found nans"):
                raise
            status = Status.NON_FINITE
        reached = end if status is Status.OK else start + brownian.reached * (end - start)
        if status is not Status.OK:
            x = system.state.reshape(x.shape).to(x.dtype)
        lost = torch.full_like(x, math.nan)
        saved = torch.stack([kept.get(t, lost) for t in request.save_at]) if request.save_at else None
        return uniform_solution(
            x, reached, calls.calls, brownian.accepted, saved, rejected=brownian.rejected, status=status
        )

    def __repr__(self) -> str:
        steps = f", adaptive=True, rtol={self.rtol:g}, atol={self.atol:g}" if self.adaptive else ""
        return f"TorchSDE({self.method!r}{steps})"


class _Clock:
    """A monotone C1 curve t(u) through the grid, u = 0, 1, ..., n."""

    def __init__(self, times: tuple[float, ...]) -> None:
        from scipy.interpolate import PchipInterpolator

        self.times = PchipInterpolator(range(len(times)), times)
        self.rate = self.times.derivative()
        self.low, self.high = sorted((times[0], times[-1]))

    def __call__(self, u: Tensor) -> tuple[float, float]:
        """``(t, dt/du)``."""
        t = min(max(float(self.times(float(u))), self.low), self.high)
        return t, float(self.rate(float(u)))


class _Straight:
    """The clock of an adaptive solve, from 0 to 1."""

    def __init__(self, start: float, end: float) -> None:
        self.start, self.end = start, end

    def __call__(self, u: Tensor) -> tuple[float, float]:
        part, span = float(u), self.end - self.start
        return (self.end if part == 1.0 else self.start + part * span), span


class _System(nn.Module):
    """The problem as torchsde wants it."""

    noise_type = "diagonal"

    def __init__(
        self, problem: Any, clock: Any, shape: torch.Size, method: str, attempts: _Attempts | None = None
    ) -> None:
        super().__init__()
        self.problem, self.clock, self.shape, self.attempts = problem, clock, shape, attempts
        self.sde_type = "ito" if method in _ITO else "stratonovich"
        self.state = torch.empty(0)

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        t, rate = self.clock(u)
        if self.attempts is not None and float(u) == self.attempts.reached:
            self.state = y
        return (self.problem.velocity(t, y.reshape(self.shape)) * rate).flatten(1)

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        t, rate = self.clock(u)
        x = y.reshape(self.shape)
        scale = torch.as_tensor(self.problem.noise_scale(t, x), dtype=x.dtype, device=x.device)
        return (scale * abs(rate) ** 0.5).expand_as(x).flatten(1)


class _Brownian:
    """A :class:`BrownianPath` as torchsde's `bm`: flat increments, and U, the integral of W, on demand."""

    def __init__(self, path: Any, like: Tensor, method: str) -> None:
        self.path = path
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device
        # The areas between components, which the log-ODE method asks for, play no part in diagonal noise.
        self.levy_area_approximation = "foster" if method == "log_ode" else "space-time"

    def __call__(self, start: Any, end: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        w, area = self.path.with_integral(float(start), float(end))
        if return_A:
            return w.flatten(1), None
        return (w.flatten(1), area.flatten(1)) if return_U else w.flatten(1)


class _Whole:
    """A path over [start, end] in the clock u of [0, 1]."""

    def __init__(self, path: BrownianPath, start: float, end: float) -> None:
        self.path, self.clock, self.length = path, _Straight(start, end), abs(end - start)

    def with_integral(self, u: Any, v: Any) -> tuple[Tensor, Tensor]:
        w, area = self.path.with_integral(self.clock(u)[0], self.clock(v)[0])
        return w * self.length**-0.5, area * self.length**-1.5


class _Attempts(_Brownian):
    """The path of an adaptive solve, which asks for a step, its first half and its second half in turn."""

    def __init__(self, path: Any, like: Tensor, method: str, spent: Any) -> None:
        super().__init__(path, like, method)
        self.spent, self.reached = spent, 0.0
        self.queries = self.accepted = self.rejected = 0

    def __call__(self, start: Any, end: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        if self.queries % 3 == 0:
            self._begin(float(start), float(end))
        self.queries += 1
        return super().__call__(start, end, return_U, return_A)

    def _begin(self, start: float, end: float) -> None:
        if start > self.reached:
            self.accepted += 1
        elif self.queries:
            self.rejected += 1
        self.reached = start
        if self.spent():
            raise _GaveUpError(Status.MAX_NFE)
        if end - start < _MIN_STEP and end < 1.0:
            raise _GaveUpError(Status.STEP_TOO_SMALL)

    def finish(self) -> None:
        """A stretch between two kept states is done."""
        self.accepted, self.queries = self.accepted + 1, 0
