"""`solve`: one call for every problem and every solver."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .brownian import BrownianPath, Driven
from .grids import GRIDS, FittedGrid, check_steps, logistic_grid
from .noise import Noise
from .problems import Problem, Schedule, SemiLinear, is_deterministic
from .registry import resolve
from .solution import Solution
from .solver import Dual, Request, Solver

Grid = str | Tensor | Sequence[float]


def solve(
    problem: Problem,
    x_init: Tensor,
    t: tuple[float, float] | None = None,
    solver: str | Solver = "dopri5",
    *,
    steps: int | None = None,
    grid: Grid | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    indices: Tensor | None = None,
    save_at: Tensor | Sequence[float] | None = None,
    dual: Dual | None = None,
    brownian: BrownianPath | None = None,
) -> Solution:
    """Solve an ODE, an SDE or a semi-linear diffusion problem for a batch of initial states.

    Args:
        problem: The problem.
        x_init: States at t[0], (B, *E), floating point.
        t: Start and end; either direction. For a SemiLinear problem the default is from t_max to t_min.
        solver: A solver or its name (:func:`solvers.available`).
        steps: Number of steps, for fixed-grid solvers; the solver's own default when neither this nor `grid`
            is given.
        grid: Times, (n+1,), for fixed-grid solvers; or for a SemiLinear problem the name of a grid
            (:data:`solvers.GRIDS`) or a :class:`FittedGrid`.
        rtol: Relative tolerance, for adaptive solvers.
        atol: Absolute tolerance, for adaptive solvers.
        seed: Seed of the noise.
        indices: Names of the samples, (B,): sample i's noise is a function of (seed, indices[i]); 0 .. B-1 by
            default.
        save_at: Times at which to keep the state, in the order of the solve; on a fixed grid they must be
            grid times.
        dual: See :data:`solvers.solver.Dual`.
        brownian: The Brownian path that drives a stochastic solver, of these samples and over these times;
            two solvers, or two grids, can so be driven by one path. Each solver has its own from `seed` when
            this is left out.

    Returns:
        A :class:`Solution`; failures are told in its status, per sample.

    Raises:
        TypeError: If the solver cannot solve the problem, or is given the options of another kind of solver.
        ValueError: If a time, a grid or the state is not usable.

    Example:
        >>> import torch, solvers
        >>> problem = solvers.ODE(lambda t, x: -x)
        >>> sol = solvers.solve(problem, torch.ones(2, 3), t=(0.0, 1.0), solver="heun", steps=64)
        >>> sol.x.shape, sol.nfe.tolist()
        (torch.Size([2, 3]), [128, 128])
    """
    solver = resolve(solver, rtol, atol)
    solver.check(problem)
    _check_state(x_init)
    names = _check_indices(indices, len(x_init))
    times = time_grid(problem, solver, t, steps, grid)
    if times[-1] > times[0] and isinstance(problem, SemiLinear) and not problem.deterministic:
        raise ValueError(
            f"a reverse diffusion (eta={problem.eta}) runs from noise to data and was given rising times: "
            "let t fall, or take eta=0, whose flow runs both ways"
        )
    if isinstance(problem, SemiLinear) and float(problem.process.sigma(times[0])) == 0:  # type: ignore[arg-type]
        raise ValueError(
            f"sigma vanishes at t={times[0]:g}, where nothing tells the data from their noise: begin at a "
            "small t in its place, such as the process's t_min"
        )
    saved = _save_times(solver, times, save_at)
    noise = Noise.like(x_init, seed, names)
    if brownian is not None:
        noise = _driven(noise, brownian, solver, problem, times)
    request = Request(times, noise, saved, dual)
    solution = solver.integrate(problem, x_init, request)
    if dual is not None and solution.error is None:  # the solver gives no estimate
        solution = replace(solution, error=x_init.new_full((len(x_init),), math.nan))
    return solution


def _driven(
    noise: Noise, path: BrownianPath, solver: Solver, problem: Problem, times: tuple[float, ...]
) -> Driven:
    if not solver.stochastic or is_deterministic(problem):
        raise TypeError(
            f"brownian= was given and {solver.name} solves an ODE here, which no noise drives: leave it "
            "out, or take a stochastic solver with eta > 0"
        )
    own = path.noise
    if (own.dtype, torch.device(own.device)) != (noise.dtype, torch.device(noise.device)):
        raise ValueError(
            f"the Brownian path is of {own.dtype} on {own.device} and the state of {noise.dtype} on "
            f"{noise.device}: make it with Noise.like(x_init, seed)"
        )
    if (len(own.indices), tuple(own.shape)) != (len(noise.indices), tuple(noise.shape)):
        raise ValueError(
            f"the Brownian path is one of {len(own.indices)} samples of shape {tuple(own.shape)} and the "
            f"state has {len(noise.indices)} of shape {tuple(noise.shape)}: make it with "
            "Noise.like(x_init, seed)"
        )
    return Driven(noise, path, times)


def _check_state(x: Any) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.ndim < 2 or len(x) == 0:
        given = f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x_init is {given}: give a floating-point tensor of shape (B, *E) with B >= 1")
    if not bool(torch.isfinite(x).all()):
        row = int((~torch.isfinite(x.reshape(len(x), -1)).all(dim=1)).nonzero()[0])
        raise ValueError(f"x_init has NaN or infinite values, first in row {row}: give finite states")


def _check_indices(indices: Any, rows: int) -> Tensor | None:
    if indices is None:
        return None
    names = torch.as_tensor(indices)
    if names.shape != (rows,) or names.is_floating_point() or names.dtype == torch.bool:
        raise ValueError(
            f"indices has shape {tuple(names.shape)}, dtype {names.dtype}: give {rows} integers, one a sample"
        )
    return names


def _span(problem: Problem, t: tuple[float, float] | None) -> tuple[float, float]:
    if t is None:
        if not isinstance(problem, SemiLinear):
            raise ValueError("no interval was given: give t=(start, end)")
        return problem.process.t_max, problem.process.t_min
    try:
        start, end = (float(s) for s in t)
    except (TypeError, ValueError):
        raise ValueError(f"t={t!r} is not an interval: give two times, (start, end)") from None
    if not (math.isfinite(start) and math.isfinite(end)) or start == end:
        raise ValueError(f"t=({start}, {end}) is not an interval: give two different finite times")
    return start, end


def time_grid(
    problem: Problem, solver: Solver, t: tuple[float, float] | None, steps: int | None, grid: Grid | None
) -> tuple[float, ...]:
    """The times a solver steps through: its whole grid, or the two ends for an adaptive one."""
    t = None if t is None else _span(problem, t)
    if solver.adaptive:
        if steps is not None or grid is not None:
            raise TypeError(
                f"{solver.name} chooses its own steps and takes rtol= and atol=, not steps= or grid="
            )
        return _span(problem, t)
    if grid is not None and not isinstance(grid, str):
        if steps is not None:
            raise TypeError(
                "steps= and grid= were both given: a grid has its own number of steps, give one of them"
            )
        if isinstance(grid, FittedGrid) and isinstance(problem, SemiLinear):
            grid.check(problem.process, t)
            grid = grid.times if t is None or t[0] > t[1] else grid.times[::-1]
        return _explicit(grid, t)
    start, end = _span(problem, t)
    n = check_steps(solver.default_steps if steps is None else steps)
    if isinstance(problem, SemiLinear):
        if grid is None and solver.equal_steps:
            grid = "uniform"
        return _named(problem, grid, n, start, end)
    if grid not in (None, "uniform"):
        raise TypeError(
            f'grid={grid!r} needs a SemiLinear problem, whose log-SNR is known: give times, or "uniform"'
        )
    return _checked(torch.linspace(start, end, n + 1, dtype=torch.float64))


def _named(problem: SemiLinear, grid: str | None, n: int, start: float, end: float) -> tuple[float, ...]:
    process, falling = problem.process, (max(start, end), min(start, end))
    if grid is None:
        times = default_grid(process, n, falling)
    elif grid in GRIDS:
        times = GRIDS[grid](process, n, falling)
    else:
        raise ValueError(
            f"there is no grid named {grid!r}: take one of {', '.join(GRIDS)}, or give the times"
        )
    return _checked(times if start > end else times.flip(0))


def default_grid(process: Schedule, n: int, span: tuple[float, float]) -> Tensor:
    """The process's own default grid over a span, or the logistic one."""
    own = getattr(process, "default_grid", None)
    return logistic_grid(process, n, span) if own is None else own(n, span)


def _checked(grid: Tensor) -> tuple[float, ...]:
    times = tuple(grid.tolist())
    if not _monotone(times):
        raise ValueError(
            f"no grid of {len(times) - 1} steps from {times[0]:g} to {times[-1]:g} comes of this spacing: "
            'take fewer steps, or grid="uniform" where the log-SNR is infinite at an end'
        )
    return times


def _monotone(times: Sequence[float]) -> bool:
    """Whether times are finite and strictly rising or strictly falling."""
    rises = [b - a for a, b in itertools.pairwise(times)]
    return all(map(math.isfinite, times)) and (all(r > 0 for r in rises) or all(r < 0 for r in rises))


def _explicit(grid: Tensor | Sequence[float], t: tuple[float, float] | None) -> tuple[float, ...]:
    times = torch.as_tensor(grid, dtype=torch.float64).flatten().tolist()
    if len(times) < 2 or not _monotone(times):
        raise ValueError("grid must hold at least two finite times, strictly rising or strictly falling")
    if t is not None and (times[0], times[-1]) != (float(t[0]), float(t[1])):
        raise ValueError(
            f"the grid runs from {times[0]:g} to {times[-1]:g} and t from {t[0]:g} to {t[1]:g}: leave t "
            "out, or let them agree"
        )
    return tuple(times)


def _save_times(
    solver: Solver, times: tuple[float, ...], save_at: Tensor | Sequence[float] | None
) -> tuple[float, ...] | None:
    if save_at is None:
        return None
    wanted = tuple(torch.as_tensor(save_at, dtype=torch.float64).flatten().tolist())
    low, high = sorted((times[0], times[-1]))
    if (
        not wanted
        or list(wanted) != sorted(set(wanted), reverse=times[0] > times[-1])
        or not all(low <= s <= high for s in wanted)
    ):
        raise ValueError(
            f"save_at must hold times between {low:g} and {high:g} in the order of the solve, each once"
        )
    if not solver.adaptive and not set(wanted) <= set(times):
        raise ValueError(
            f"{solver.name} keeps states at grid times only: give save_at times that are on its grid"
        )
    return wanted
