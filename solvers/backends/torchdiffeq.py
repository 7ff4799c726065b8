"""torchdiffeq's ODE solvers."""

from __future__ import annotations

import torch
from torch import Tensor

from ..problems import ODE, Problem, counted
from ..solution import Solution, uniform_solution
from ..solver import Request, Solver

_FIXED = {
    "euler": 1,
    "midpoint": 2,
    "heun2": 2,
    "heun3": 3,
    "rk4": 4,
    "explicit_adams": 4,
    "implicit_adams": 4,
}
_ADAPTIVE = {"dopri8": 8, "dopri5": 5, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 2}
METHODS = (*_ADAPTIVE, *_FIXED)


class TorchDiffEq(Solver):
    """A solver of torchdiffeq (Chen 2018) on a probability-flow ODE or any ODE.

    All samples share their steps, so a result depends on its batch-mates (`batch_coupled`). Adaptive methods
    are told to stop at the end of the interval, which torchdiffeq otherwise steps past.

    Args:
        method: One of `METHODS`.
        rtol: Relative tolerance (adaptive methods).
        atol: Absolute tolerance (adaptive methods).

    Raises:
        ValueError: For an unknown method.
    """

    batch_coupled = True

    def __init__(self, method: str = "dopri5", rtol: float = 1e-5, atol: float = 1e-5) -> None:
        if method not in METHODS:
            raise ValueError(f"torchdiffeq has no method {method!r}: take one of {', '.join(METHODS)}")
        self.method, self.rtol, self.atol = method, rtol, atol
        self.adaptive = method in _ADAPTIVE
        self.order = float(_ADAPTIVE.get(method) or _FIXED[method])  # type: ignore[misc]

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

        def field(s: Tensor, y: Tensor) -> Tensor:
            # torchdiffeq nudges times by an ulp at the ends; the float keeps schedules off their singular
            # side.
            if isinstance(problem, ODE):
                return problem.velocity(s.to(y.dtype), y)
            return problem.velocity(s.expand(len(y)), y)

        try:
            states = odeint(field, x, t, rtol=self.rtol, atol=self.atol, method=self.method, options=options)
        except AssertionError:  # "underflow in dt": the only way torchdiffeq has of saying so
            states = x.new_full((len(points), *x.shape), float("nan"))
        path = torch.stack([states[points.index(s)] for s in times]) if times else None
        steps = 0 if self.adaptive else len(request.times) - 1
        return uniform_solution(states[-1], points[-1], calls.calls, steps, path)

    def __repr__(self) -> str:
        return f"TorchDiffEq({self.method!r}, rtol={self.rtol:g}, atol={self.atol:g})"
