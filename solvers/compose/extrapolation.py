r"""Error estimates from solving twice: of each step, and of a whole solve."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..noise import Noise
from ..problems import Problem
from ..solver import Orders, Step, StepSolver


class StepDoubling(StepSolver):
    r"""A deterministic solver with an estimate of each step's error, from two steps of half its length.

    .. math:: e = (x_{two} - x_{one})\,/\,(2^p - 1)

    The finer result is kept. Three times the evaluations of the solver alone; history is not carried between
    steps.

    Args:
        solver: A fixed-grid solver of ODEs of order p.

    Raises:
        TypeError: If the solver chooses its own steps, adds noise of its own, or is a multistep method.

    References:
        Hairer, Norsett & Wanner (1993), Solving ODEs I, section II.4, Eq. 4.4.
    """

    def __init__(self, solver: StepSolver) -> None:
        if not isinstance(solver, StepSolver) or solver.noisy or solver.multistep:
            raise TypeError(
                f"the error of {solver!r} is not seen by halving its steps: take a one-step ODE solver such "
                'as "heun"'
            )
        self.solver = solver
        self.orders = Orders(ode=solver.order)
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
