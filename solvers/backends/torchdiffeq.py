"""torchdiffeq's ODE solvers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..problems import ODE, Problem, counted
from ..solution import Solution, Status, uniform_solution
from ..solver import Orders, Request, Solver, check_tolerances
from .rows import one_by_one

_FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
_ADAPTIVE = {"dopri8": 8, "dopri5": 5, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
# Their coefficients suppose equal steps. "fixed_adams" is torchdiffeq's older name of "implicit_adams".
_ADAMS = {"explicit_adams": False, "implicit_adams": True, "fixed_adams": True}
METHODS = (*_ADAPTIVE, *_FIXED, *_ADAMS)
# How its assertions begin: the only way it has of giving up.
_SURRENDER = ("underflow in dt", "non-finite values", "max_num_steps exceeded")


class TorchDiffEq(Solver):
    """A solver of torchdiffeq (Chen 2018) on a probability-flow ODE or any ODE.

    Adaptive methods share the steps of all samples, so a result depends on its batch-mates (`batch_coupled`).
    They are told to stop at the end of the interval, which torchdiffeq otherwise steps past. States are held
    in float64, because torchdiffeq rounds times to the dtype of the state.

    The Adams methods begin with steps of Runge and Kutta's 3/8 rule and take grids of equal steps only,
    which is then the default. Their `max_order` is 4 here: torchdiffeq's own, 12, leaves an explicit method
    almost no region of stability. The implicit ones iterate to `rtol` and `atol`, at most 20 times (theirs:
    4); a step that has not converged then is a failure, where torchdiffeq only warns. That takes steps short
    against the drift's own scale: hundreds of them, for uniform ones that end near the data.

    Its "scipy_solver" is left out, since "scipy/..." are here themselves.

    Args:
        method: One of `METHODS`.
        rtol: Relative tolerance (adaptive methods, and the iterations of implicit ones).
        atol: Absolute tolerance (likewise).
        per_sample: Solve an adaptive or implicit batch one sample at a time, so that none depends on its
            batch-mates.
        max_order: Of the Adams methods, 4 to 12; the explicit ones are of one order less.

    Raises:
        ValueError: For an unknown method, a tolerance that is not positive, or a `max_order` out of range;
            for an Adams method on a grid of unequal steps.
    """

    def __init__(
        self,
        method: str = "dopri5",
        rtol: float = 1e-5,
        atol: float = 1e-5,
        per_sample: bool = False,
        max_order: int = 4,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"torchdiffeq has no method {method!r}: take one of {', '.join(METHODS)}")
        self.method = method
        self.rtol, self.atol = check_tolerances(rtol, atol)
        if not 4 <= max_order <= 12:
            raise ValueError(
                f"max_order={max_order} is none of torchdiffeq's: give a whole number from 4 to 12"
            )
        self.adaptive, self.equal_steps = method in _ADAPTIVE, method in _ADAMS
        self.per_sample, self.max_order = per_sample, max_order
        self.batch_coupled = not per_sample and (self.adaptive or _ADAMS.get(method, False))
        # Whatever the Adams method, its first steps are those of a method of order 4.
        adams = min(max_order if _ADAMS.get(method) else max_order - 1, 5)
        self.orders = Orders(ode=_ADAPTIVE.get(method) or _FIXED.get(method) or adams)

    @property
    def name(self) -> str:
        return f"torchdiffeq/{self.method}"

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        from torchdiffeq import odeint

        if self.per_sample and (self.adaptive or _ADAMS.get(self.method)) and len(x) > 1:
            return one_by_one(self, problem, x, request)
        if self.equal_steps:
            _check_equal(self, request.times)
        problem, calls = counted(problem)
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        times = request.save_at or ()
        points = sorted(
            {*times, request.times[0], request.times[-1]}, reverse=request.times[0] > request.times[-1]
        )
        t = torch.tensor(points, dtype=wide, device=x.device)
        grid = torch.tensor(request.times, dtype=wide, device=x.device)
        options: dict[str, Any] = {"step_t": t[-1:]}
        if not self.adaptive:
            options = {"grid_constructor": lambda f, y, s: grid}
        field = _Field(problem, x, request.times)
        tolerances = {"rtol": self.rtol, "atol": self.atol} if self.adaptive else {}
        try:
            if self.equal_steps:
                states = self._adams(field, x.to(wide), t, grid)
            else:
                states = odeint(field, x.to(wide), t, method=self.method, options=options, **tolerances)
        except (AssertionError, _NotConvergedError) as error:
            if isinstance(error, AssertionError) and not str(error).startswith(_SURRENDER):
                raise
            finite = bool(torch.isfinite(field.slope).all())
            status = Status.FOREIGN_FAILURE if finite else Status.NON_FINITE
            lost = torch.full_like(x, float("nan"))
            path = torch.stack([x if s == points[0] else lost for s in times]) if times else None
            accepted, tried = field.accepted - 1, len(field.starts) - 1  # the last step was not taken
            return uniform_solution(
                field.state.to(x.dtype), field.starts[-1], calls.calls, accepted, path,
                rejected=tried - accepted, status=status,
            )  # fmt: skip
        states = states.to(x.dtype)
        path = torch.stack([states[points.index(s)] for s in times]) if times else None
        rejected = len(field.starts) - field.accepted
        return uniform_solution(states[-1], points[-1], calls.calls, field.accepted, path, rejected=rejected)

    def _adams(self, field: _Field, y: Tensor, t: Tensor, grid: Tensor) -> Tensor:
        """The Adams methods, told apart from torchdiffeq's own call by not going on unconverged."""
        from torchdiffeq._impl.fixed_adams import AdamsBashforthMoulton

        class Adams(AdamsBashforthMoulton):
            tries = 0

            def _step_func(self, *arguments: Any) -> Any:
                self.tries = 0
                return super()._step_func(*arguments)

            def _has_converged(self, y0: Tensor, y1: Tensor) -> bool:
                self.tries += 1
                converged = bool(super()._has_converged(y0, y1))
                if not converged and self.tries == self.max_iters:
                    raise _NotConvergedError
                return converged

        sign = 1.0 if bool(t[-1] > t[0]) else -1.0
        solver = Adams(
            _Rising(field, sign), y, rtol=self.rtol, atol=self.atol, implicit=_ADAMS[self.method],
            max_iters=20, max_order=self.max_order, grid_constructor=lambda f, y, s: sign * grid,
        )  # fmt: skip
        return solver.integrate(sign * t)

    def __repr__(self) -> str:
        return f"TorchDiffEq({self.method!r}, rtol={self.rtol:g}, atol={self.atol:g})"


class _NotConvergedError(Exception):
    """The iterations of an implicit step have not converged."""


def _check_equal(solver: TorchDiffEq, times: tuple[float, ...]) -> None:
    steps = [b - a for a, b in pairwise(times)]
    if max(steps) - min(steps) > 1e-6 * max(map(abs, steps)):
        raise ValueError(
            f"the coefficients of {solver.name} suppose equal steps and this grid's differ: give "
            'grid="uniform", or take "torchdiffeq/rk4"'
        )


class _Rising:
    """A field in rising time, as torchdiffeq's methods call it."""

    def __init__(self, field: _Field, sign: float) -> None:
        self.field, self.sign = field, sign

    def __call__(self, t: Tensor, y: Tensor, perturb: Any = None) -> Tensor:
        return self.sign * self.field(self.sign * t, y)

    def callback_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        self.field.callback_step(self.sign * t, y, dt)


class _Field:
    """The problem as torchdiffeq calls it, and what is known of its steps."""

    def __init__(self, problem: Problem, x: Tensor, times: tuple[float, ...]) -> None:
        self.problem, self.dtype, self.state, self.slope = problem, x.dtype, x, x
        self.low, self.high = min(times), max(times)
        self.starts: list[float] = []

    def __call__(self, t: Tensor, y: Tensor) -> Tensor:
        t = t.clamp(self.low, self.high)  # the probe that sizes the first step may lie anywhere
        time = t if isinstance(self.problem, ODE) else t.expand(len(y))
        self.slope = self.problem.velocity(time, y.to(self.dtype)).to(y.dtype)
        return self.slope

    def callback_step(self, t: Tensor, y: Tensor, dt: Tensor) -> None:
        """Called by torchdiffeq before each attempt at a step, with the last accepted time and state."""
        self.starts.append(float(t))
        self.state = y

    @property
    def accepted(self) -> int:
        """Accepted steps, the last attempt taken for one."""
        return len(set(self.starts))
