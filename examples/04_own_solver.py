"""A solver of one's own: the two-step Adams-Bashforth method, and its order of convergence, measured.

A solver is one pure step; what it remembers travels in `state`. Registered, its name works wherever a solver
is expected. The probability flow of a rotated product of mixtures is known exactly (quantiles match along
it), so the error is measured against the truth and not against a finer run.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import sdediff
import solvers


class AdamsBashforth2(solvers.StepSolver):
    r"""The two-step Adams-Bashforth method on any grid: one evaluation a step, order 2.

    .. math:: x_{next} = x + h\,[(1 + r/2)\,k - (r/2)\,k_{prev}], \qquad r = h/h_{prev}

    Source: Hairer, Norsett & Wanner (1993), Solving ODEs I, section III.5 (variable steps).
    """

    orders = solvers.Orders(ode=2)
    default_steps = 100

    def step(
        self,
        problem: solvers.ODE | solvers.SDE | solvers.SemiLinear,
        t: float,
        t_next: float,
        x: Tensor,
        state: Any,
        noise: solvers.Noise,
    ) -> solvers.Step:
        """One step; `state` holds the last slope and step length, None at the start (Euler's method then)."""
        h, slope = t_next - t, problem.velocity(t, x)
        if state is None:
            return solvers.Step(x + h * slope, state=(slope, h))
        last, h_last = state
        r = h / h_last
        return solvers.Step(x + h * ((1 + r / 2) * slope - r / 2 * last), state=(slope, h))


def measure(names: tuple[str, ...]) -> None:
    """Error of the flow from t = 0.9 to t = 0.05, by number of evaluations."""
    data = sdediff.reference.random_product(dim=6, dtype=torch.float64)
    process = sdediff.VP()
    problem = data.model(process).problem(eta=0.0)
    start = data.flow(process, data.sample(256, seed=0), None, 0.9)
    exact = data.flow(process, start, 0.9, 0.05)
    for name in names:
        print(f"{name}:")
        before = None
        for steps in (25, 50, 100, 200, 400):
            sol = solvers.solve(problem, start, t=(0.9, 0.05), solver=name, steps=steps, grid="quadratic")
            error = float((sol.x - exact).square().mean().sqrt())
            order = "" if before is None else f"   order {math.log2(before / error):.2f}"
            print(f"  {steps:4d} steps, {int(sol.nfe[0]):4d} evaluations: error {error:.1e}{order}")
            before = error


def main() -> None:
    """Register, measure, use."""
    solvers.register("ab2", AdamsBashforth2)
    measure(("euler", "heun", "ab2"))
    model = sdediff.reference.eight_gaussians().model(sdediff.VP())
    x, solution = model.sample(1000, solver="ab2", steps=60, return_solution=True)
    print(f"samples by name: {tuple(x.shape)}, {int(solution.nfe[0])} evaluations each")
    try:
        model.sample(10, solver="ab2", eta=1.0)
    except TypeError as error:
        print(f"asked for an SDE: {error}")


if __name__ == "__main__":
    main()
