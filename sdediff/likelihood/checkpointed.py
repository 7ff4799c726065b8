"""Log-densities whose gradient is that of the computation itself: backpropagation through a fixed grid."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from solvers import Solver, StepSolver
from solvers.noise import Noise
from solvers.solution import uniform_solution
from solvers.solver import Request

from ..model import DiffusionModel, evaluating
from ..prior import Prior
from ..run import Run, chunks, rows_of
from .coupled import Flow
from .divergence import Divergence
from .engine import choose_divergence
from .nodes import fixed_grid
from .recording import dependencies, recomputed


def checkpointed_log_prob(
    model: DiffusionModel,
    x: Tensor,
    solver: str | Solver = "rk4",
    *,
    parameters: bool = True,
    divergence: Divergence | None = None,
    steps: int | None = None,
    grid: Any = None,
    cond: Any = None,
    seed: int = 0,
    indices: Any = None,
    t_span: tuple[float, float] | None = None,
    prior: str | Prior | None = None,
    batch_size: int | None = None,
    on_failure: str = "warn",
) -> Tensor:
    """Log-densities (n,) as `coupled_log_likelihood` finds them on a fixed grid, step by step.

    The state after each step is kept and no graph: the backward pass takes each step again.

    Args:
        model: The model.
        x: Data in data units, (n, *data_shape).
        solver: A one-step solver on a fixed grid, or its name.
        parameters: Whether the model's parameters are to have gradients.
        divergence: :class:`Exact` or :class:`Hutchinson`, whose probes are those of one node throughout.
        steps: Steps.
        grid: Times, or the name of a grid.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of the probes.
        indices: Names of the samples, (n,) integers, for the probes; 0 .. n-1 by default.
        t_span: (t_min, t_max) in place of the process's.
        prior: "matched", "standard" or an object with log_prob.
        batch_size: Rows solved at once.
        on_failure: "warn", "raise" or "ignore" where a sample's state is no longer finite.

    Raises:
        TypeError: If the solver has memory, noise, or steps of its own choice.
        ValueError: If x or another argument does not fit.
    """
    run = Run.of(
        model,
        solver,
        t_span=t_span,
        steps=steps,
        grid=grid,
        eta=0.0,
        seed=seed,
        prior=prior,
        on_failure=on_failure,
    )
    run.check_flow("a log-likelihood")
    if not isinstance(run.solver, StepSolver) or run.solver.multistep:
        raise TypeError(
            f'gradient="checkpoint" takes the steps of a fixed grid one by one and {run.solver.name} has '
            'none, or memory of earlier ones: take a one-step solver such as "rk4", or gradient="adjoint"'
        )
    z = model.as_state(x)
    rows, cond = rows_of(len(z), indices).to(z.device), model.expand_condition(cond, len(z), z.device)
    flow = Flow(model, choose_divergence(model, divergence), seed, 1.0)
    leaves = dependencies(model, run, z, cond) if parameters else []
    start = z * float(model.process.alpha(run.span[0]))
    values = [
        _march(flow, run, start[part], rows[part], None if cond is None else cond[part], leaves)
        for part in chunks(len(z), model.dim, batch_size)
    ]
    return torch.cat(values)


def _march(flow: Flow, run: Run, z: Tensor, rows: Tensor, cond: Any, leaves: list[Tensor]) -> Tensor:
    """Log-densities of some samples, (B,)."""
    model, solver, grid = flow.model, run.solver, fixed_grid(flow.model, run)
    with evaluating(model):
        solver.check(flow.problem(rows, cond)[0])
        state = flow.state(run.span[0], z, rows, cond)
    noise, conditions = Noise.like(state, run.seed, rows), [] if cond is None else [cond]
    for times in pairwise(grid):

        def step(y: Tensor, *cond: Tensor, times: tuple[float, float] = times) -> Tensor:
            with evaluating(model):
                problem, _ = flow.problem(rows, *cond or (None,))
                return solver.integrate(problem, y, Request(times, noise)).x

        state = recomputed(step, [state, *conditions], leaves)
    solution = uniform_solution(state.detach(), grid[-1], 0, len(grid) - 1)
    run.report(solution)
    return flow.log_prob(run, state) * torch.where(solution.ok, 1.0, torch.nan)
