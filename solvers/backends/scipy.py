"""SciPy's `solve_ivp` methods."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..problems import ODE, Problem, counted
from ..solution import Solution, uniform_solution
from ..solver import Request, Solver

METHODS = {"RK45": 5, "RK23": 3, "DOP853": 8, "Radau": 5, "BDF": 5, "LSODA": 5}


class SciPy(Solver):
    """A method of `scipy.integrate.solve_ivp`, on the whole batch as one system in float64 on the host.

    All samples share their steps (`batch_coupled`). Radau and BDF form a dense Jacobian of the whole batch by
    differences: for small problems only.

    Args:
        method: One of `METHODS`.
        rtol: Relative tolerance.
        atol: Absolute tolerance.

    Raises:
        ValueError: For an unknown method.
    """

    adaptive = True
    batch_coupled = True

    def __init__(self, method: str = "RK45", rtol: float = 1e-5, atol: float = 1e-5) -> None:
        if method not in METHODS:
            raise ValueError(f"SciPy has no method {method!r}: take one of {', '.join(METHODS)}")
        self.method, self.rtol, self.atol = method, rtol, atol
        self.order = float(METHODS[method])  # type: ignore[misc]

    @property
    def name(self) -> str:
        return f"scipy/{self.method}"

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        from scipy.integrate import solve_ivp

        problem, calls = counted(problem)
        low, high = sorted(request.times)

        def to_tensor(y: np.ndarray) -> Tensor:
            return torch.as_tensor(y, device="cpu").to(x.dtype).to(x.device).reshape(x.shape)

        def field(t: float, y: np.ndarray) -> np.ndarray:
            state = to_tensor(np.ascontiguousarray(y))
            t = min(max(t, low), high)  # implicit methods probe an ulp beyond the end
            time = t if isinstance(problem, ODE) else torch.full((len(x),), t, dtype=torch.float64)
            return problem.velocity(time, state).detach().double().cpu().numpy().ravel()

        wanted = request.save_at or ()
        points = (
            None
            if request.save_at is None
            else [*(t for t in wanted if t != request.times[-1]), request.times[-1]]
        )
        start = x.detach().double().cpu().numpy().ravel()
        result = solve_ivp(
            field, request.times, start, method=self.method, t_eval=points, rtol=self.rtol, atol=self.atol
        )
        states = [to_tensor(np.ascontiguousarray(column)) for column in result.y.T] or [x]
        path = None
        if points is not None:
            lost = [torch.full_like(x, float("nan"))] * (
                len(points) - len(states)
            )  # times that a failed solve never reached
            path = torch.stack((states + lost)[: len(wanted)])
        reached = float(result.t[-1]) if len(result.t) else request.times[0]
        steps = len(result.t) - 1 if points is None else 0
        return uniform_solution(states[-1], reached, calls.calls, steps, path, failed=not result.success)

    def __repr__(self) -> str:
        return f"SciPy({self.method!r}, rtol={self.rtol:g}, atol={self.atol:g})"
