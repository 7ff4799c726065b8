r"""Grids of few steps fitted to a model: dynamic programming over teacher trajectories, then descent.

A jump between two candidate times costs the local error of the solver's step from the teacher's state; the
cheapest path of n jumps is found exactly. Local errors know neither of each other nor of a multistep method's
real history, so the grid found is then moved, node by node, downhill in the error at the end of whole solves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from .grids import GRIDS, FittedGrid, Span, check_steps, logistic_grid
from .noise import Noise
from .problems import SemiLinear
from .registry import resolve
from .runge_kutta import Dopri5
from .solution import SolverError
from .solve import default_grid, solve
from .solver import Solver, StepSolver

#: Scale of the logistic clock in which candidates are even and nodes are moved: wider than any useful grid.
_CLOCK = 3.0
_HISTORY = 3  # steps a multistep method takes before the one whose error is measured
_FIRST_MOVE, _LAST_MOVE = 0.5, 0.02  # of the gap to the neighbour


def fit_grid(
    problem: SemiLinear,
    x: Tensor,
    steps: int,
    solver: str | Solver = "ddim",
    *,
    t: Span | None = None,
    candidates: int = 64,
    evaluations: int = 12_000,
    tolerance: float | None = None,
) -> FittedGrid:
    r"""Fit a grid of few steps to a model and a solver.

    Teacher trajectories :math:`x_i` at candidate times :math:`t_i` come from an adaptive solve. With
    :math:`\Phi_{ij}` the solver's step, the path :math:`0 = i_0 < \dots < i_n = m` of least

    .. math:: \sum_k c_{i_k i_{k+1}}, \qquad
              c_{ij}^2 = \frac{E|\Phi_{ij}(x_i) - x_j|^2}{\alpha_j^2 s^2 + \sigma_j^2}

    is found by dynamic programming (s is the problem's scale: errors are compared in units of the noised
    data's spread, in which the flow of Gaussian data neither grows nor shrinks them). This grid, and the best
    of the process's default and the named ones, are then improved by moving one node at a time, as long as
    that lowers the root mean square error of whole solves at the end, and the better one is taken: on the
    fit's own samples it is never worse than any of them.

    Args:
        problem: The probability flow (eta = 0).
        x: States at the noise end, (B, *E); a few hundred.
        steps: Steps of the grid.
        solver: The fixed-grid ODE solver it is for, or its name.
        t: (t_max, t_min) in place of the process's, in either order.
        candidates: Intervals between candidate times; as many evaluations, or their square for methods of
            several evaluations a step.
        evaluations: About the most evaluations of the descent, each of all rows of x: enough for 10 steps,
            all that time allows for 50; 0 takes dynamic programming's grid as it is.
        tolerance: Of the teacher; 1e-6 in float64, else 1e-5.

    Returns:
        The grid.

    Raises:
        TypeError: If the solver is adaptive, draws noise or the problem is no probability flow.
        ValueError: If a number does not fit.
        SolverError: If a teacher trajectory fails.

    References:
        Chen, Zhou, Wang, Shen & Lyu (2024), On the trajectory regularity of ODE-based diffusion sampling,
        arXiv 2405.11326, section 5 (dynamic programming over local errors of teacher trajectories; theirs are
        unscaled, at alpha = 1); Pei, Hu & Gu (2025), arXiv 2503.21774, for errors of whole solves.

    Example:
        >>> import torch, sdediff, solvers
        >>> model = sdediff.reference.eight_gaussians(dtype=torch.float64).model(sdediff.VP())
        >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> grid = fit_grid(model.problem(), x, steps=6, solver="ddim", candidates=32)
        >>> len(grid), grid.error < 0.9 * grid.default_error
        (7, True)
    """
    solver, steps = _check(problem, solver, steps, candidates, evaluations), check_steps(steps)
    ends = (problem.process.t_max, problem.process.t_min) if t is None else (max(t), min(t))
    times = tuple(logistic_grid(problem.process, candidates, ends, _CLOCK).tolist())
    path = _teacher(problem, x, times, tolerance)

    def error(grid: tuple[float, ...]) -> float:
        end = solve(problem, x, solver=solver, grid=grid).x
        value = float((end - path[-1]).square().mean().sqrt())
        return value if math.isfinite(value) else math.inf

    default = tuple(default_grid(problem.process, steps, ends).tolist())
    nodes = best_path(jump_costs(solver, problem, path, times), steps)
    starts = [tuple(times[i] for i in nodes)]
    if evaluations:
        starts.append(min([default, *_named(problem, steps, ends)], key=error))
    solves = evaluations // (len(starts) * steps)
    best = min((_descend(problem, start, error, solves) for start in starts), key=error)
    s = torch.tensor(best, dtype=torch.float64)
    alpha, sigma = (tuple(f(s).tolist()) for f in (problem.process.alpha, problem.process.sigma))
    return FittedGrid(best, alpha, sigma, repr(problem.process), repr(solver), error(best), error(default))


def _check(problem: Any, solver: str | Solver, steps: Any, candidates: int, evaluations: int) -> StepSolver:
    solver = resolve(solver)
    if not isinstance(problem, SemiLinear) or not problem.deterministic:
        raise TypeError("a grid is fitted to a probability flow: give a SemiLinear problem with eta=0")
    if not isinstance(solver, StepSolver) or solver.noisy:
        raise TypeError(
            f"{solver.name} has no grid to fit, or draws noise: give a solver of ODEs with fixed steps, such "
            'as "ddim"'
        )
    solver.check(problem)
    if check_steps(candidates) < check_steps(steps):
        raise ValueError(f"candidates={candidates} are fewer than steps={steps}: give several times as many")
    if evaluations < 0:
        raise ValueError(f"evaluations={evaluations} is negative: give a budget, or 0 for no descent")
    return solver


def _teacher(problem: SemiLinear, x: Tensor, times: tuple[float, ...], tolerance: float | None) -> Tensor:
    """States of the exact flow at the candidate times, (m + 1, B, *E)."""
    tolerance = tolerance or (1e-6 if x.dtype == torch.float64 else 1e-5)
    ends = (times[0], times[-1])
    solution = solve(problem, x, ends, Dopri5(rtol=tolerance, atol=tolerance), save_at=times)
    if not bool(solution.ok.all()):
        raise SolverError(f"teacher trajectories failed: {solution.describe_failure()}", solution)
    assert solution.path is not None
    return solution.path


def _named(problem: SemiLinear, steps: int, ends: Span) -> list[tuple[float, ...]]:
    """The named grids that are usable here."""
    grids = [tuple(grid(problem.process, steps, ends).tolist()) for grid in GRIDS.values()]
    return [g for g in grids if all(map(math.isfinite, g)) and all(a > b for a, b in pairwise(g))]


# -- dynamic programming -------------------------------------------------------------------------------------


class _Remembered:
    """A denoiser that knows its values at the teacher's states."""

    def __init__(self, denoiser: Callable[..., Tensor], states: dict[float, Tensor]) -> None:
        self.denoiser, self.states = denoiser, states
        self.values: dict[float, Tensor] = {}

    def __call__(self, t: float, x: Tensor, *per_sample: Tensor) -> Tensor:
        if self.states.get(t) is not x:
            return self.denoiser(t, x, *per_sample)
        if t not in self.values:
            self.values[t] = self.denoiser(t, x, *per_sample)
        return self.values[t]

    def tabulate(self, times: list[float]) -> None:
        getattr(self.denoiser, "tabulate", lambda _: None)(times)


def jump_costs(solver: StepSolver, problem: SemiLinear, path: Tensor, times: tuple[float, ...]) -> Tensor:
    """Local error of the solver's step between any two candidate times, in units of the data's spread there.

    Args:
        solver: A fixed-grid solver; a multistep one gets a history of steps of (nearly) the same size.
        problem: The probability flow.
        path: The exact flow at the times, (m + 1, B, *E).
        times: Falling times.

    Returns:
        (m + 1, m + 1) float64, infinite on and below the diagonal.
    """
    states = dict(zip(times, path.unbind(), strict=True))
    problem = replace(problem, denoiser=_Remembered(problem.denoiser, states)).tabulate(times)
    noise, last = Noise.like(path[0], 0), len(times) - 1
    costs = torch.full((len(times), len(times)), math.inf, dtype=torch.float64)
    for i in range(last):
        for j in range(i + 1, last + 1):
            first = max(i % (j - i), i - _HISTORY * (j - i)) if solver.multistep else i
            nodes = [*range(first, i, j - i), i, j] + ([min(j + j - i, last)] if j < last else [])
            state = solver.begin(problem, tuple(times[k] for k in nodes))
            for a, b in pairwise(nodes[: nodes.index(j) + 1]):
                step = solver.step(problem, times[a], times[b], states[times[a]], state, noise)
                state = step.state
            c = problem.at(times[j], step.x)
            spread = math.sqrt((c.alpha * problem.scale) ** 2 + c.sigma**2)
            costs[i, j] = float((step.x - path[j]).double().square().mean().sqrt()) / spread
    return costs.nan_to_num(nan=math.inf, posinf=math.inf)


def best_path(costs: Tensor, steps: int) -> list[int]:
    """The cheapest path from the first node to the last in so many jumps forward.

    Args:
        costs: Cost of the jump from i to j, (m + 1, m + 1); infinite where there is none.
        steps: Jumps, at most m.

    Returns:
        The nodes, steps + 1 of them.

    Example:
        >>> costs = torch.tensor([[9.0, 1.0, 4.0], [9.0, 9.0, 2.0], [9.0, 9.0, 9.0]])
        >>> best_path(costs, 2)
        [0, 1, 2]
    """
    costs = costs + torch.full_like(costs, math.inf).tril()
    value = torch.full((len(costs),), math.inf, dtype=costs.dtype)
    value[0] = 0.0
    origin = []
    for _ in range(steps):
        value, back = (value[:, None] + costs).min(dim=0)
        origin.append(back.tolist())
    node = len(costs) - 1
    nodes = [node]
    for back in reversed(origin):
        node = back[node]
        nodes.append(node)
    return nodes[::-1]


# -- descent -------------------------------------------------------------------------------------------------


def _descend(
    problem: SemiLinear,
    grid: tuple[float, ...],
    error: Callable[[tuple[float, ...]], float],
    solves: int,
) -> tuple[float, ...]:
    """Move one node at a time where that lowers the error; halve the moves when none does."""
    process = problem.process
    clock = torch.sigmoid(process.lam(torch.tensor(grid, dtype=torch.float64)) / _CLOCK).tolist()
    best, move = error(grid), _FIRST_MOVE
    while solves > 0 and move >= _LAST_MOVE:
        improved = False
        for k in range(1, len(grid) - 1):
            for neighbour in (k - 1, k + 1):
                solves -= 1
                trial = clock[k] + move * (clock[neighbour] - clock[k])
                time = float(process.time(_CLOCK * torch.logit(torch.tensor(trial, dtype=torch.float64))))
                moved = (*grid[:k], time, *grid[k + 1 :])
                if grid[k - 1] > time > grid[k + 1] and (value := error(moved)) < best:
                    best, grid, clock[k], improved = value, moved, trial, True
                    break
        if not improved:
            move /= 2
    return grid
