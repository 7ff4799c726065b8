"""torchode's ODE solvers."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..active import wide
from ..problems import Problem, counted, take
from ..solution import Solution, Status
from ..solver import Orders, Request, Solver, check_tolerances

# Its Euler's method estimates no error, so its controllers have nothing to go by.
_METHODS = {"dopri5": ("Dopri5", 5), "tsit5": ("Tsit5", 5), "heun": ("Heun", 2)}
METHODS = tuple(_METHODS)
_FAILURES = {
    "REACHED_DT_MIN": Status.STEP_TOO_SMALL, "REACHED_MAX_STEPS": Status.MAX_NFE,
    "INFINITE_NORM": Status.NON_FINITE,
}  # fmt: skip


class TorchOde(Solver):
    """A solver of torchode (Lienen & Gunnemann 2022, arXiv 2210.12375) on a probability-flow ODE or any ODE.

    Steps are per sample; all samples stay in the batch until the last one is done. It stops them all at the
    first that fails: those that were cut short are then solved again without it. A failing sample's state is
    the last that was kept before. It runs eagerly, states flattened, times in float64, with the integral
    controller.

    Args:
        method: One of `METHODS`.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_steps: Steps a sample may take.

    Raises:
        ValueError: For an unknown method, or a tolerance that is not positive.
    """

    adaptive = True

    def __init__(
        self, method: str = "dopri5", rtol: float = 1e-5, atol: float = 1e-5, max_steps: int = 10_000
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"torchode has no method {method!r}: take one of {', '.join(METHODS)}")
        self.method, self.max_steps = method, max_steps
        self.rtol, self.atol = check_tolerances(rtol, atol)
        self.orders = Orders(ode=_METHODS[method][1])

    @property
    def name(self) -> str:
        return f"torchode/{self.method}"

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        start, end = request.times[0], request.times[-1]
        points = tuple(dict.fromkeys((start, *(request.save_at or ()), end)))
        kept = x.new_full((len(points), *x.shape), math.nan)
        counts = torch.zeros(
            (4, len(x)), dtype=torch.int64, device=x.device
        )  # points, calls, steps, accepted
        status = torch.full_like(counts[0], int(Status.OK))
        rows = torch.arange(len(x), device=x.device)
        while len(rows):
            found, calls = self._solve(take(problem, rows), x[rows], points)
            reached = found.stats["n_initialized"]
            states = found.ys.transpose(0, 1).reshape(len(points), len(rows), *x.shape[1:])
            for point in range(len(points)):
                there = reached > point  # the rest is memory that nothing was written to
                kept[point, rows[there]] = states[point, there]
            steps = (found.stats["n_steps"], found.stats["n_accepted"])
            counts[:, rows] = torch.stack([reached, torch.full_like(reached, calls), *steps])
            done, failed = reached == len(points), found.status != 0
            if not bool((done | failed).any()):
                failed = ~done
            status[rows] = torch.where(done, int(Status.OK), _translated(found.status))
            rows = rows[~(done | failed)]
        last, nfe, tried, accepted = (counts[0] - 1, *counts[1:])
        times = torch.tensor(points, dtype=wide(x), device=x.device)
        final = kept[last, torch.arange(len(x), device=x.device)]
        path = None if request.save_at is None else kept[[points.index(s) for s in request.save_at]]
        return Solution(final, times[last], nfe, accepted, tried - accepted, status, path)

    def _solve(self, problem: Problem, x: Tensor, points: tuple[float, ...]) -> tuple[Any, int]:
        """Return torchode's own solution, and the number of evaluations."""
        import torchode

        problem, calls = counted(problem)
        low, high = min(points), max(points)

        def field(t: Tensor, y: Tensor) -> Tensor:
            time = t.clamp(low, high)  # the probe that sizes the first step may lie anywhere
            return problem.velocity(time, y.view_as(x)).reshape(y.shape)

        times = torch.tensor(points, dtype=wide(x), device=x.device).expand(len(x), -1)
        term: Any = torchode.ODETerm(field)
        step = getattr(torchode, _METHODS[self.method][0])(term=term)
        # No dt_min: a finished sample's step is 0, which would stop the batch.
        control = torchode.IntegralController(atol=self.atol, rtol=self.rtol, term=term)
        loop = torchode.AutoDiffAdjoint(step, control, max_steps=self.max_steps)
        return loop.solve(torchode.InitialValueProblem(y0=x.reshape(len(x), -1), t_eval=times)), calls.calls

    def __repr__(self) -> str:
        return f"TorchOde({self.method!r}, rtol={self.rtol:g}, atol={self.atol:g})"


def _translated(status: Tensor) -> Tensor:
    """Our status for each of torchode's; a failure of its own for one without a name here."""
    from torchode.status_codes import Status as Theirs

    ours = torch.full_like(status, int(Status.FOREIGN_FAILURE))
    for name, value in _FAILURES.items():
        ours = torch.where(status == Theirs[name].value, int(value), ours)
    return ours
