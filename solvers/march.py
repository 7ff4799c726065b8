"""The fixed-grid loop. There is one; it reads no tensor value back on the host."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from .problems import Problem, SemiLinear, as_time, counted
from .solution import Solution, uniform_solution
from .solver import Request, Step, StepSolver


def march(solver: StepSolver, problem: Problem, x: Tensor, request: Request) -> Solution:
    """Take the solver's step over every interval of the grid."""
    problem, calls = counted(problem)
    if isinstance(problem, SemiLinear):
        problem = problem.tabulate(s for pair in pairwise(request.times) for s in solver.stage_times(*pair))
    wanted = set(request.save_at or ())
    path = [x] if request.times[0] in wanted else []
    state = solver.begin(problem, request.times)
    error = x.new_zeros(len(x)) if request.dual else None
    for k, (t, t_next) in enumerate(pairwise(request.times)):
        before = x
        step = solver.step(problem, t, t_next, before, state, request.noise.at(k))
        if not isinstance(step, Step):
            raise TypeError(
                f"{solver.name}.step returned a {type(step).__name__}: return solvers.Step(x), with an error "
                "and a state where there are any"
            )
        x, local, state = step
        if x.shape != before.shape:
            raise ValueError(
                f"{solver.name}.step returned shape {tuple(x.shape)} for a state of shape "
                f"{tuple(before.shape)}: return the shape it is given"
            )
        if t_next in wanted:
            path.append(x)
        if error is not None:
            error = error + _weighted(request, problem, t, before, local)
    saved = torch.stack(path) if request.save_at else None
    return uniform_solution(x, request.times[-1], calls.calls, len(request.times) - 1, saved, error)


def _weighted(request: Request, problem: Problem, t: float, x: Tensor, local: Tensor | None) -> Tensor:
    if local is None or request.dual is None:
        return x.new_full((len(x),), math.nan)
    value = problem.denoise(t, x) if isinstance(problem, SemiLinear) else problem.velocity(t, x)
    weight = request.dual(as_time(t, x.double()), x, value)
    return (weight * local).flatten(1).sum(dim=1).abs()
