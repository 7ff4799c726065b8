"""torchdiffeq's ODE solvers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problems import ODE, Problem, counted
from ..solution import Solution, Status, uniform_solution
from ..solver import Orders, Request, Solver, check_tolerances

# Its Adams methods are left out: their coefficients suppose equal steps, which a grid need not have.
_FIXED = {"euler": 1, "midpoint": 2, "heun2": 2, "heun3": 3, "rk4": 4}
_ADAPTIVE = {"dopri8": 8, "dopri5": 5, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
METHODS = (*_ADAPTIVE, *_FIXED)
# How its assertions begin: the only way it has of giving up.
_SURRENDER = ("underflow in dt", "non-finite values", "max_num_steps exceeded")


class TorchDiffEq(Solver):
    """A solver of torchdiffeq (Chen 2018) on a probability-flow ODE or any ODE.

    Adaptive methods share the steps of all samples, so a result depends on its batch-mates (`batch_coupled`).
    They are told to stop at the end of the interval, which torchdiffeq otherwise steps past. States are held
    in float64, because torchdiffeq rounds times to the dtype of the state.

    Args:
        method: One of `METHODS`.
        rtol: Relative tolerance (adaptive methods).
        atol: Absolute tolerance (adaptive methods).

    Raises:
        ValueError: For an unknown method, or a tolerance that is not positive.
    """

    def __init__(self, method: str = "dopri5", rtol: float = 1e-5, atol: float = 1e-5) -> None:
        if method not in METHODS:
            raise ValueError(f"torchdiffeq has no method {method!r}: take one of {', '.join(METHODS)}")
        self.method = method
        self.rtol, self.atol = check_tolerances(rtol, atol)
        self.adaptive = self.batch_coupled = method in _ADAPTIVE
        self.orders = Orders(ode=_ADAPTIVE.get(method) or _FIXED[method])

    @property
    def name(self) -> str:
        return f"torchdiffeq/{self.method}"

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        from torchdiffeq import odeint

        problem, calls = counted(problem)
        wide = torch.float32 if x.device.type == "mps" else torch.float64
        times = request.save_at or ()
        points = sorted(
            {*times, request.times[0], request.times[-1]}, reverse=request.times[0] > request.times[-1]
        )
        t = torch.tensor(points, dtype=wide, device=x.device)
        grid = torch.tensor(request.times, dtype=wide, device=x.device)
        options = {"step_t": t[-1:]} if self.adaptive else {"grid_constructor": lambda f, y, s: grid}
        field = _Field(problem, x, request.times)
        tolerances = {"rtol": self.rtol, "atol": self.atol} if self.adaptive else {}
        try:
            states = odeint(field, x.to(wide), t, method=self.method, options=options, **tolerances).to(
                x.dtype
            )
        except AssertionError as error:
            if not str(error).startswith(_SURRENDER):
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
        path = torch.stack([states[points.index(s)] for s in times]) if times else None
        rejected = len(field.starts) - field.accepted
        return uniform_solution(states[-1], points[-1], calls.calls, field.accepted, path, rejected=rejected)

    def __repr__(self) -> str:
        return f"TorchDiffEq({self.method!r}, rtol={self.rtol:g}, atol={self.atol:g})"


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
