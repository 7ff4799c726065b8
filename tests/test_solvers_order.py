"""Orders of convergence, measured: every order that a registered solver states, on problems of its class.

One table drives it: the solvers themselves, each of which states its `orders`. A fixed-grid solver that
states none fails, unless it is named in UNORDERED with the reason.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from sdediff.processes import VP, GaussianProcess
from sdediff.reference import random_mixture
from solvers import BrownianPath
from solvers.noise import Noise, Stream
from solvers.runge_kutta import DOPRI5
from solvers.solver import Request

F64 = torch.float64
SLACK = 0.15
#: A corrector or a restart leaves a bias that no finer grid removes: test_solvers_compose.py bounds it.
UNORDERED = {"pc", "pc-song", "pc-underdamped", "restart"}
# Kutta's third-order method.
KUTTA3 = solvers.Tableau(3, (0.0, 0.5, 1.0), ((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6))
MADE: dict[str, Callable[[], solvers.StepSolver]] = {
    "runge-kutta(dopri5)": lambda: solvers.RungeKutta(DOPRI5),
    "runge-kutta(kutta3)": lambda: solvers.RungeKutta(KUTTA3),
    "step-doubling(heun)": lambda: solvers.StepDoubling(solvers.Heun()),
}


def make(name: str) -> solvers.StepSolver:
    solver = MADE[name]() if name in MADE else solvers.get(name)
    assert isinstance(solver, solvers.StepSolver)
    return solver


FIXED = [n for n in solvers.available() if isinstance(solvers.get(n), solvers.StepSolver)]


def stating(kind: str) -> list[str]:
    """Solvers that state an order of this kind."""
    return [n for n in (*FIXED, *MADE) if getattr(make(n).orders, kind) is not None]


def slopes(errors: Sequence[float]) -> list[float]:
    """Observed orders, step sizes halving."""
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def test_every_fixed_grid_solver_states_its_orders() -> None:
    """Wrapped ones too: what they state is their authors', or measured in test_solvers_backends.py."""
    for name in (n for n in solvers.available() if not solvers.get(n).adaptive):
        solver = solvers.get(name)
        orders = solver.orders
        if name in UNORDERED:
            assert not any(orders), f"{name} states an order: measure it here"
            continue
        assert orders.headline > 0, f"{name} states no order"
        assert solver.order == orders.headline
        if solver.stochastic:
            assert orders.strong and orders.weak and orders.ode, f"{name}: state the orders at every eta"
        if solver.stochastic and "diagonal" in solver.noises and not solver.needs_linear_part:
            assert orders.strong_diagonal and orders.weak_diagonal, f"{name}: state those for diagonal noise"


# -- ODEs -----------------------------------------------------------------------------------------------

PROCESS = VP(t_min=0.05)
MIXTURE = random_mixture(2, 3, seed=0, dtype=F64)
SPAN = (0.9, 0.1)
# So many steps that the error is asymptotic and yet far from rounding; the order is the dictionary's key.
FIRST = {1: 160, 2: 80, 3: 60, 4: 50, 5: 30, 6: 25, 7: 20, 8: 15}


def mixture_problem(eta: float = 0.0) -> solvers.SemiLinear:
    return solvers.SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x, t), eta)


def starts(n: int = 4) -> Tensor:
    return solvers.noise.normal(3, torch.arange(n), Stream.PRIOR, 0, (2,), F64)


@cache
def amounts(process: GaussianProcess, t: float) -> tuple[float, float]:
    """Alpha and sigma."""
    return float(process.alpha(t)), float(process.sigma(t))


@pytest.fixture(scope="module")
def reference() -> Tensor:
    """The mixture's flow, to 1e-11: two methods agree."""
    tight = {"rtol": 1e-12, "atol": 1e-12}
    ours = solvers.solve(mixture_problem(), starts(), SPAN, "dopri5", **tight).x
    theirs = solvers.solve(mixture_problem(), starts(), SPAN, "scipy/DOP853", **tight).x
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    return theirs


def ode_slope(solver: solvers.Solver, problem: Any, order: float, exact: Tensor, refinements: int) -> float:
    """The order observed on the two finest grids whose errors are far from rounding."""
    errors: list[float] = []
    for steps in (FIRST[int(order)] * 2**k for k in reversed(range(refinements))):
        x = solvers.solve(problem, starts(), SPAN, solver, steps=steps, grid="uniform").x
        error = float((x - exact).abs().max())
        errors += [error] if error >= 2e-13 else []
        if len(errors) == 2:
            return math.log2(errors[1] / errors[0])
    raise AssertionError("exact from the start: this problem tests nothing")


@pytest.mark.parametrize("name", stating("ode"))
def test_ode_order_on_the_flow_of_a_mixture(name: str, reference: Tensor) -> None:
    solver = make(name)
    order = solver.orders.ode
    assert order is not None
    slope = ode_slope(solver, mixture_problem(), order, reference, 3)
    assert order - SLACK <= slope <= order + 1.2, f"observed order {slope:.2f}"


@pytest.mark.parametrize("name", stating("ode"))
def test_ode_order_on_a_linear_problem(name: str) -> None:
    """Gaussian data: the flow is a scaling about the mean."""
    solver = make(name)
    order = solver.orders.ode_linear or solver.orders.ode
    assert order is not None
    mean, variance = 0.7, 0.05
    (m, v), (m_end, v_end) = (law(mean, variance, t) for t in SPAN)
    exact = m_end + (starts() - m) * math.sqrt(v_end / v)
    slope = ode_slope(solver, gaussian_problem(PROCESS, mean, variance, 0.0), order, exact, 4)
    assert slope >= order - SLACK, f"observed order {slope:.2f}"


# -- strong order ---------------------------------------------------------------------------------------


def blurred_signs(eta: float) -> solvers.SemiLinear:
    """Data of independent entries, +-1 with a Gaussian blur: nonlinear but nowhere steep."""

    def denoiser(t: float, x: Tensor) -> Tensor:
        alpha, sigma = amounts(PROCESS, t)
        variance = sigma**2
        total = 0.25 * alpha**2 + variance
        return (0.25 * alpha * x + variance * torch.tanh(alpha * x / total)) / total

    return solvers.SemiLinear(PROCESS, denoiser, eta)


PATHS, FINEST = 200, 1024


def path_of(x: Tensor, span: tuple[float, float], cells: int = 64) -> BrownianPath:
    times = torch.linspace(*span, cells + 1, dtype=F64).tolist()
    return BrownianPath(Noise.like(x, 11), tuple(times))


@cache
def one_path() -> tuple[Tensor, BrownianPath]:
    """Starts, and the path that every solver follows."""
    x = starts(PATHS)
    return x, path_of(x, SPAN)


def on_path(name: str, problem: Any, steps: int) -> Tensor:
    x, path = one_path()
    grid = torch.linspace(*SPAN, steps + 1, dtype=F64)
    return solvers.solve(problem, x, SPAN, make(name), grid=grid, brownian=path).x


@pytest.fixture(scope="module")
def strong_references() -> dict[float, Tensor]:
    """Both diffusions on one path, by a method of order 1.5 and many steps."""
    return {eta: on_path("sra1", blurred_signs(eta), FINEST) for eta in (0.5, 1.0)}


@pytest.mark.parametrize("eta", (0.5, 1.0))
@pytest.mark.parametrize("name", stating("strong"))
def test_strong_order_with_additive_noise(
    name: str, eta: float, strong_references: dict[float, Tensor]
) -> None:
    """A reverse diffusion, nonlinear: root mean square difference of end points on one Brownian path."""
    order = make(name).orders.strong
    errors = [
        float((on_path(name, blurred_signs(eta), n) - strong_references[eta]).square().mean().sqrt())
        for n in (32, 128)
    ]
    slope = math.log2(errors[0] / errors[1]) / 2
    assert order is not None and order - SLACK <= slope <= order + 1.2, f"observed order {slope:.2f}"


def geometric(x: Tensor, path: BrownianPath) -> tuple[solvers.SDE, Tensor]:
    """Geometric Brownian motion and its end on the path: Kloeden & Platen (1992), Eq. 4.4.2."""
    a, b = 0.5, 1.0
    problem = solvers.SDE(lambda t, x: a * x, lambda t, x: b * x, noise="diagonal")
    return problem, x * torch.exp(a - b * b / 2 + b * path(0.0, 1.0))


def arctangent(x: Tensor, path: BrownianPath) -> tuple[solvers.SDE, Tensor]:
    """A nonlinear SDE with diagonal noise solved in closed form: Kloeden & Platen (1992), Eq. 4.4.18."""
    a = 1.0
    problem = solvers.SDE(
        lambda t, x: -(a**2) * torch.sin(x) * torch.cos(x) ** 3,
        lambda t, x: a * torch.cos(x) ** 2,
        noise="diagonal",
    )
    return problem, torch.arctan(a * path(0.0, 1.0) + torch.tan(x))


@pytest.mark.parametrize("case", (geometric, arctangent))
@pytest.mark.parametrize("name", stating("strong_diagonal"))
def test_strong_order_with_diagonal_noise(name: str, case: Callable[..., tuple[solvers.SDE, Tensor]]) -> None:
    x = torch.full((2000, 1), 0.6, dtype=F64)
    path = path_of(x, (0.0, 1.0), 256)
    problem, exact = case(x, path)
    order = make(name).orders.strong_diagonal
    errors = []
    for steps in (16, 256):
        grid = torch.linspace(0, 1, steps + 1, dtype=F64)
        y = solvers.solve(problem, x, (0.0, 1.0), make(name), grid=grid, brownian=path).x
        errors.append(float((y - exact).square().mean().sqrt()))
    slope = math.log2(errors[0] / errors[1]) / 4
    assert order is not None and order - SLACK <= slope <= order + 0.6, f"observed order {slope:.2f}"


# -- weak order: mean and variance of a Gaussian go through a solve exactly -----------------------------


@dataclass(frozen=True)
class Impulses(Noise):
    """Noise in which row r of the batch has a one in its own normal, and zeros elsewhere.

    A solve of a linear problem is affine in the state it starts from and in every normal it draws, so one
    batch gives all its coefficients. The last row has random normals throughout and shows that it is affine.
    """

    rows: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def normal(self, stream: int = Stream.STEP, draw: int = 0, draws: int = 1) -> Tensor:
        key = (self.counter, int(stream), draw)
        row = self.rows.setdefault(key, len(self.rows) + 2)
        z = torch.zeros(len(self.indices), *self.shape, dtype=self.dtype)
        if row < len(z):
            z[row] = 1.0
        z[-1] = math.sin(12.9898 * row)
        return z


def end_law(
    solver: solvers.StepSolver, problem: Any, start: tuple[float, float], grid: Sequence[float]
) -> tuple[float, float]:
    """Mean and variance of the solve's end when it starts from N(mean, variance)."""
    mean, variance = start

    def run(rows: dict[tuple[int, int, int], int], n: int) -> Tensor:
        x = torch.full((n, 1), mean, dtype=F64)
        x[1] += math.sqrt(variance)
        noise = Impulses(0, torch.arange(n), (1,), F64, rows=rows)
        return solver.integrate(problem, x, Request(tuple(grid), noise)).x[:, 0]

    rows: dict[tuple[int, int, int], int] = {}
    run(rows, 3)
    end = run(rows, len(rows) + 3)
    parts = end[1:-1] - end[0]
    drawn = torch.tensor([math.sin(12.9898 * row) for row in rows.values()], dtype=F64)
    torch.testing.assert_close(end[-1], end[0] + (drawn * parts[1:]).sum(), rtol=1e-10, atol=1e-10)
    return float(end[0]), float(parts.square().sum())


def gaussian_problem(
    process: GaussianProcess, mean: float, variance: float, eta: float
) -> solvers.SemiLinear:
    def denoiser(t: float, x: Tensor) -> Tensor:
        alpha, sigma = amounts(process, t)
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return mean + gain * (x - alpha * mean)

    return solvers.SemiLinear(process, denoiser, eta)


def law(mean: float, variance: float, t: float) -> tuple[float, float]:
    """Mean and variance of noised Gaussian data."""
    alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
    return alpha * mean, alpha**2 * variance + sigma**2


@pytest.mark.parametrize("eta", (0.5, 1.0))
@pytest.mark.parametrize("name", stating("weak"))
def test_weak_order_on_a_gaussian(name: str, eta: float) -> None:
    """From the exact law at 0.8 to that at 0.2: error of mean and variance, no Monte Carlo in it."""
    solver, mean, variance = make(name), 0.7, 0.3
    order = solver.orders.weak_linear or solver.orders.weak
    problem = gaussian_problem(PROCESS, mean, variance, eta)
    errors = []
    for steps in (80, 160):
        grid = torch.linspace(0.8, 0.2, steps + 1, dtype=F64).tolist()
        m, v = end_law(solver, problem, law(mean, variance, 0.8), grid)
        exact = law(mean, variance, grid[-1])
        errors.append(abs(m - exact[0]) + abs(v - exact[1]))
    assert order is not None and slopes(errors)[-1] >= order - SLACK, f"observed orders {slopes(errors)}"
