r"""Error estimates from solving twice: of each step, and of a whole solve."""

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from ..brownian import Driven, path_of
from ..noise import Noise
from ..problems import Problem, SemiLinear, is_deterministic
from ..solution import Solution
from ..solver import Orders, Request, Solver, Step, StepSolver


class StepDoubling(StepSolver):
    r"""A deterministic solver with an estimate of each step's error, from two steps of half its length.

    .. math:: e = (x_{two} - x_{one})\,/\,(2^p - 1)

    The finer result is kept. Three times the evaluations of the solver alone; history is not carried between
    steps.

    Args:
        solver: A fixed-grid solver of ODEs of order p.

    Raises:
        TypeError: If the solver chooses its own steps, adds noise of its own, is a multistep method, or
            states no order for ODEs.

    References:
        Hairer, Norsett & Wanner (1993), Solving ODEs I, section II.4, Eq. 4.4.
    """

    def __init__(self, solver: StepSolver) -> None:
        if not isinstance(solver, StepSolver) or solver.noisy or solver.multistep:
            raise TypeError(
                f"the error of {solver!r} is not seen by halving its steps: take a one-step ODE solver such "
                'as "heun"'
            )
        if not solver.orders.ode:
            raise TypeError(
                f"{solver!r} states no order for ODEs, so half steps tell no error: set its orders to "
                'solvers.Orders(ode=...), or take a solver that states one, such as "heun"'
            )
        self.solver = solver
        self.orders = Orders(ode=solver.orders.ode)
        self.needs_linear_part, self.default_steps = solver.needs_linear_part, solver.default_steps
        self.batch_coupled = solver.batch_coupled

    def check(self, problem: Problem) -> None:
        super().check(problem)
        self.solver.check(problem)

    def stage_times(self, t: float, t_next: float) -> tuple[float, ...]:
        middle, inner = 0.5 * (t + t_next), self.solver.stage_times
        return inner(t, t_next) + inner(t, middle) + inner(middle, t_next)

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        middle = 0.5 * (t + t_next)
        whole = self.solver.step(problem, t, t_next, x, None, noise).x
        half = self.solver.step(problem, t, middle, x, None, noise).x
        fine = self.solver.step(problem, middle, t_next, half, None, noise).x
        return Step(fine, (fine - whole) / (2.0**self.order - 1))

    def __repr__(self) -> str:
        return f"StepDoubling({self.solver!r})"


class Richardson(Solver):
    r"""Any solver with an estimate of its *global* error, per sample, from a second solve on a finer grid.

    A fixed-grid solver of order p runs on the grid and on its halving (halved in lam where that is finite, in
    t elsewhere, and in t throughout for a solver of equal steps); the finer result is kept, and

    .. math:: e = (x_{coarse} - x_{fine})\,/\,(2^p - 1) \;\approx\; x_{fine} - x_{exact}

    is reported as `Solution.global_error`, of the state's shape. As the grid is refined e over the true error
    tends to 1 for an ODE, for multistep methods too. Three times the evaluations of the solver alone.

    With noise, both solves follow one Brownian path, and e estimates the strong error: in root mean square,
    not sample by sample. The finer grid sees noise that the coarser one did not, so that e comes out larger
    than the error, by up to :math:`\sqrt3` at order 1, never smaller as the grid is refined.

    An adaptive solver runs at its tolerances and at a hundredth of them; the finer result is kept, and e is
    the plain difference: the error of the *looser* solve, to about a hundredth, and so a safe bound on that
    of the result.

    Args:
        solver: A solver whose order for the problem is known, or an adaptive one.
        keep: "fine", or, for an ODE on a fixed grid, "extrapolated" for :math:`x_{fine} - e`, of order p + 1
            where the error has an expansion in steps; states kept by `save_at` are extrapolated too; e stays
            the error of the finer solve.

    Raises:
        TypeError: If the solver adds noise of its own (correctors, churn, restarts), no order is known for
            the problem, or an SDE or adaptive solve is to be extrapolated.
        ValueError: If `keep` is neither.

    References:
        Hairer, Norsett & Wanner (1993), Solving ODEs I, sections II.4 (Eq. 4.4) and II.8 (Eq. 8.13).

    Example:
        >>> import math, torch, solvers
        >>> problem = solvers.ODE(lambda t, x: -x)
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> sol = solvers.solve(problem, x, t=(0.0, 1.0), solver=Richardson(solvers.Heun()), steps=20)
        >>> round(float(sol.global_error / (sol.x - math.exp(-1))), 1)
        1.0
    """

    #: How much tighter the second solve of an adaptive solver is.
    tighter = 100.0

    def __init__(self, solver: Solver, keep: Literal["fine", "extrapolated"] = "fine") -> None:
        if not isinstance(solver, Solver) or solver.noisy:
            raise TypeError(
                f"{solver!r} adds noise of its own, of which two solves have not the same: take a solver "
                'that follows an ODE or an SDE alone, such as "heun" or "euler-maruyama"'
            )
        if keep not in ("fine", "extrapolated"):
            raise ValueError(f'keep={keep!r} is not known: give "fine" or "extrapolated"')
        if keep == "extrapolated" and solver.adaptive:
            raise TypeError(
                f'{solver!r} chooses its own steps, which no order extrapolates: give keep="fine"'
            )
        self.solver, self.keep = solver, keep
        copied = ("adaptive", "stochastic", "needs_linear_part", "batch_coupled", "equal_steps", "noises")
        for name in copied:
            setattr(self, name, getattr(solver, name))
        self.default_steps, self.default_eta = solver.default_steps, solver.default_eta
        self.orders = solver.orders
        if solver.adaptive:
            self.rtol, self.atol = solver.rtol, solver.atol  # type: ignore[attr-defined]

    def check(self, problem: Problem) -> None:
        super().check(problem)
        self.solver.check(problem)
        if not self.adaptive and not self._order(problem):
            raise TypeError(
                f"{self.solver.name} states no order for this problem, so two solves tell no error: take one "
                'that does, such as "heun" for an ODE or "euler-maruyama" for an SDE'
            )
        if self.keep == "extrapolated" and not is_deterministic(problem):
            raise TypeError(
                "the error of one noisy solve has no expansion in its steps to extrapolate: give "
                'keep="fine", or take eta=0'
            )

    def _order(self, problem: Problem) -> float:
        orders = self.solver.orders
        if is_deterministic(problem):
            return orders.ode or 0.0
        diagonal = getattr(problem, "noise", "additive") == "diagonal"
        return (orders.strong_diagonal if diagonal else orders.strong) or 0.0

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        if self.adaptive:
            coarse, fine = (
                self._at(scale).integrate(problem, x, request) for scale in (1.0, 1 / self.tighter)
            )
            factor = 1.0
        else:
            times, halved = request.times, halve(problem, request.times, self.equal_steps)
            grids = dict.fromkeys((times, halved), request.noise)
            if not is_deterministic(problem):
                path = path_of(request.noise, times)
                grids = {grid: Driven(request.noise, path, grid) for grid in grids}
            kept = request.save_at if self.keep == "extrapolated" else None
            coarse = self.solver.integrate(problem, x, Request(times, grids[times], kept))
            fine = self.solver.integrate(problem, x, replace(request, times=halved, noise=grids[halved]))
            factor = 2.0 ** self._order(problem) - 1
        error = (coarse.x - fine.x) / factor
        state, kept_states = fine.x, fine.path
        if self.keep == "extrapolated":
            state = fine.x - error
            if fine.path is not None and coarse.path is not None:
                kept_states = fine.path - (coarse.path - fine.path) / factor
        return replace(
            fine,
            x=state,
            path=kept_states,
            nfe=coarse.nfe + fine.nfe,
            accepted=coarse.accepted + fine.accepted,
            rejected=coarse.rejected + fine.rejected,
            status=torch.where(fine.status == 0, coarse.status, fine.status),
            global_error=error,
        )

    def _at(self, scale: float) -> Solver:
        """The adaptive solver at other tolerances."""
        solver = copy.copy(self.solver)
        vars(solver).update(rtol=self.rtol * scale, atol=self.atol * scale)
        return solver

    def __repr__(self) -> str:
        return f"Richardson({self.solver!r}, keep={self.keep!r})"


def halve(problem: Problem, times: tuple[float, ...], equal_steps: bool = False) -> tuple[float, ...]:
    """The grid with a time more in each step: halfway in lam where finite, else, or if equal, in t."""
    middles = 0.5 * (
        torch.tensor(times[:-1], dtype=torch.float64) + torch.tensor(times[1:], dtype=torch.float64)
    )
    if isinstance(problem, SemiLinear) and not equal_steps:
        lam = problem.process.lam(torch.tensor(times, dtype=torch.float64))
        finite = torch.isfinite(lam[:-1]) & torch.isfinite(lam[1:])
        level = torch.where(finite, 0.5 * (lam[:-1] + lam[1:]), 0.0)
        middles = torch.where(finite, problem.process.time(level), middles)
    inner = [
        m if min(a, b) < m < max(a, b) else 0.5 * (a + b)
        for m, (a, b) in zip(middles.tolist(), pairwise(times), strict=True)
    ]
    return tuple(t for pair in zip(times, inner, strict=False) for t in pair) + times[-1:]
