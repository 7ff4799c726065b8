"""Orders of convergence, measured: ODEs, SDEs strongly and weakly, adaptive solves, dense output."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from sdediff.processes import VP, GaussianProcess
from sdediff.reference import random_mixture
from solvers import registry
from solvers.adapt import adapt
from solvers.noise import Noise, Stream
from solvers.runge_kutta import DOPRI5
from solvers.solver import Request

F64 = torch.float64
# Kutta's third-order method.
KUTTA3 = solvers.Tableau(3, (0.0, 0.5, 1.0), ((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6))


@dataclass(frozen=True)
class Row:
    """Documented orders of a solver: of the ODE, strong, weak; None where it solves no such problem."""

    ode: float | None
    strong: float | None = None
    weak: float | None = None


#: Every step solver of the registry must have its row here. A predictor-corrector has no order: its
#: corrector's bias stays.
ORDERS: dict[str, Row] = {
    "euler": Row(1),
    "heun": Row(2),
    "rk4": Row(4),
    "ddim": Row(1, strong=1, weak=1),
    "ancestral": Row(1, strong=1, weak=1),
    "euler-maruyama": Row(1, strong=1, weak=1),
    "stochastic-heun": Row(2, strong=1, weak=2),
    "pc": Row(None),
    "pc-song": Row(None),
}
MADE: dict[str, tuple[solvers.StepSolver, float]] = {
    "runge-kutta(dopri5)": (solvers.RungeKutta(DOPRI5), 5),
    "runge-kutta(kutta3)": (solvers.RungeKutta(KUTTA3), 3),
    "step-doubling(heun)": (solvers.StepDoubling(solvers.Heun()), 2),
}


def slopes(errors: Sequence[float]) -> list[float]:
    """Observed orders, step sizes halving."""
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def test_every_step_solver_has_its_order_measured_here() -> None:
    native = {n for n in solvers.available() if isinstance(solvers.get(n), solvers.StepSolver)}
    assert native == set(ORDERS), "give the new solver a row in ORDERS"
    for name, row in ORDERS.items():
        solver = solvers.get(name)
        said = (solver.order, solver.weak_order)
        if row.ode is None:
            assert said == (0, 0)
        elif row.strong is None:
            assert said == (row.ode, None) and not solver.stochastic
        else:
            assert said == (row.strong, row.weak) and solver.stochastic
    assert set(registry._FACTORIES) - native == {"dopri5"}


# -- ODEs -----------------------------------------------------------------------------------------------

PROCESS = VP(t_min=0.05)
MIXTURE = random_mixture(2, 3, seed=0, dtype=F64)


def mixture_problem(eta: float = 0.0) -> solvers.SemiLinear:
    return solvers.SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x, t), eta)


def starts(n: int = 4) -> Tensor:
    return solvers.noise.normal(3, torch.arange(n), Stream.PRIOR, 0, (2,), F64)


SPAN = (0.9, 0.1)


@pytest.fixture(scope="module")
def reference() -> Tensor:
    """The mixture's flow, to 1e-11: two methods agree."""
    tight = {"rtol": 1e-12, "atol": 1e-12}
    ours = solvers.solve(mixture_problem(), starts(), SPAN, "dopri5", **tight).x
    theirs = solvers.solve(mixture_problem(), starts(), SPAN, "scipy/DOP853", **tight).x
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    return theirs


ODE_CASES = [(n, solvers.get(n), row.ode) for n, row in ORDERS.items() if row.ode is not None]
ODE_CASES += [(n, solver, order) for n, (solver, order) in MADE.items()]


def ode_slope(solver: solvers.Solver, order: float, reference: Tensor) -> float:
    # So many steps that the error is asymptotic and yet far from rounding.
    first = {1: 160, 2: 80, 3: 60, 4: 40, 5: 30}[int(order)]
    errors = []
    for steps in (first, 2 * first, 4 * first):
        x = solvers.solve(mixture_problem(), starts(), SPAN, solver, steps=steps, grid="uniform").x
        errors.append(float((x - reference).abs().max()))
    assert errors[-1] > 1e-9 or order >= 4, "too near to rounding"
    return slopes(errors)[-1]


@pytest.mark.parametrize(("solver", "order"), [c[1:] for c in ODE_CASES], ids=[c[0] for c in ODE_CASES])
def test_order_on_the_flow_of_a_mixture(solver: solvers.Solver, order: float, reference: Tensor) -> None:
    slope = ode_slope(solver, order, reference)
    assert order - 0.15 <= slope <= order + 0.6, f"observed order {slope:.2f}"


# -- strong order ---------------------------------------------------------------------------------------


@dataclass
class Path:
    """Normals of a fine grid, served to coarser grids of the same Brownian path.

    An exponential step weighs the increments of its interval: `weights[k]` are those of
    step k, of sum of squares 1.
    """

    fine: Tensor
    weights: Tensor

    @classmethod
    def plain(cls, fine: Tensor, steps: int) -> Path:
        factor = len(fine) // steps
        return cls(fine, torch.full((steps, factor), factor**-0.5, dtype=F64))

    @classmethod
    def exponential(
        cls, fine: Tensor, steps: int, problem: solvers.SemiLinear, span: tuple[float, float]
    ) -> Path:
        r"""With D = 0 a fine step is x' = a x + b z; a coarse one adds up (prod_{i>j} a_i) b_j z_j."""
        assert isinstance(problem.eta, float)
        factor, eta2 = len(fine) // steps, problem.eta**2
        t = torch.linspace(*span, len(fine) + 1, dtype=F64)
        lam, sigma = problem.process.lam(t), problem.process.sigma(t)
        # With u = e^{eta^2 lam}/sigma the products telescope: u_last x' = u x + sum_j u_{j+1} b_j z_j.
        terms = torch.exp(eta2 * lam[1:]) * torch.sqrt(-torch.expm1(-2 * eta2 * lam.diff()))
        weights = terms.reshape(steps, factor)
        ends = torch.exp(eta2 * lam[factor::factor])
        total = ends * torch.sqrt(-torch.expm1(-2 * eta2 * (lam[factor::factor] - lam[:-1:factor])))
        weights = weights / total[:, None]
        torch.testing.assert_close(weights.square().sum(1), torch.ones(steps, dtype=F64), rtol=1e-9, atol=0)
        assert bool((sigma > 0).all())
        return cls(fine, weights)

    def noise(self) -> PathNoise:
        n = self.fine.shape[1]
        made = PathNoise(0, torch.arange(n), tuple(self.fine.shape[2:]), F64)
        made._blocks[-1] = (0, self)  # type: ignore[assignment]
        return made


class PathNoise(Noise):
    """Noise that takes a step's normal from a :class:`Path`."""

    def normal(self, stream: int = Stream.STEP, draw: int = 0, draws: int = 1) -> Tensor:
        assert stream == Stream.STEP and draws == 1
        path: Any = self._blocks[-1][1]
        weights = path.weights[self.counter]
        first = self.counter * len(weights)
        return torch.tensordot(weights, path.fine[first : first + len(weights)], dims=1)


def strong_slope(name: str, problem: solvers.SemiLinear, x: Tensor, span: tuple[float, float]) -> float:
    """From root mean square differences to a solve with so many steps that its own error does not count."""
    solver, finest = solvers.get(name), 4096
    assert isinstance(solver, solvers.StepSolver)
    fine = solvers.noise.normal(11, torch.arange(finest), Stream.STEP, 0, tuple(x.shape), F64)
    results = []
    for steps in (32, 64, 128, finest):
        exponential = isinstance(solver, solvers.DDIM)
        path = Path.exponential(fine, steps, problem, span) if exponential else Path.plain(fine, steps)
        grid = tuple(torch.linspace(*span, steps + 1, dtype=F64).tolist())
        results.append(solver.integrate(problem, x, Request(grid, path.noise())).x)
    errors = [float((r - results[-1]).square().mean().sqrt()) for r in results[:-1]]
    return sum(slopes(errors)) / 2


def blurred_signs(eta: float) -> solvers.SemiLinear:
    """Data of independent entries, +-1 with a Gaussian blur: nonlinear but nowhere steep."""

    def denoiser(t: float, x: Tensor) -> Tensor:
        alpha, variance = float(PROCESS.alpha(t)), float(PROCESS.sigma(t)) ** 2
        total = 0.25 * alpha**2 + variance
        return (0.25 * alpha * x + variance * torch.tanh(alpha * x / total)) / total

    return solvers.SemiLinear(PROCESS, denoiser, eta)


STRONG = [
    (name, eta) for name in ("euler-maruyama", "stochastic-heun", "ddim", "ancestral") for eta in (0.5, 1.0)
]


@pytest.mark.parametrize(("name", "eta"), STRONG)
def test_strong_order_on_one_path(name: str, eta: float) -> None:
    """Of a reverse diffusion, whose noise is additive."""
    order = ORDERS[name].strong
    slope = strong_slope(name, blurred_signs(eta), starts(200), (0.9, 0.1))
    assert order is not None and order - 0.15 <= slope <= order + 0.6, f"observed order {slope:.2f}"


def test_euler_maruyama_has_strong_order_one_half_for_diagonal_noise() -> None:
    """Geometric Brownian motion, against its closed form on the same path."""
    a, b, finest, paths = 0.5, 1.0, 512, 2000
    problem = solvers.SDE(lambda t, x: a * x, lambda t, x: b * x, noise="diagonal")
    x = torch.ones(paths, 1, dtype=F64)
    fine = solvers.noise.normal(11, torch.arange(finest), Stream.STEP, 0, (paths, 1), F64)
    exact = torch.exp(a - b * b / 2 + b * fine.sum(0) / math.sqrt(finest))
    errors = []
    for steps in (16, 32, 64, 128, 256, 512):
        grid = tuple(torch.linspace(0, 1, steps + 1, dtype=F64).tolist())
        request = Request(grid, Path.plain(fine, steps).noise())
        errors.append(
            float((solvers.EulerMaruyama().integrate(problem, x, request).x - exact).square().mean().sqrt())
        )
    slope = sum(slopes(errors)) / 5
    assert 0.35 <= slope <= 0.65, f"observed order {slope:.2f}"


# -- weak order: mean and variance of a Gaussian go through a step exactly ------------------------------


class Probe(Noise):
    """Noise whose normals are all one given number."""

    value = 0.0

    def at(self, counter: int) -> Noise:
        return self

    def normal(self, stream: int = Stream.STEP, draw: int = 0, draws: int = 1) -> Tensor:
        return torch.full((len(self.indices), *self.shape), self.value, dtype=self.dtype)


def affine(solver: solvers.StepSolver, problem: Any, t: float, t_next: float) -> tuple[float, float, float]:
    """``(a, b, c)`` of the step ``x -> a x + b + c z``."""

    def step(x: float, z: float) -> float:
        noise = Probe(0, torch.arange(1), (1,), F64)
        object.__setattr__(noise, "value", z)
        return float(solver.step(problem, t, t_next, torch.full((1, 1), x, dtype=F64), None, noise).x)

    b = step(0.0, 0.0)
    a, c = step(1.0, 0.0) - b, step(0.0, 1.0) - b
    assert math.isclose(step(2.0, -3.0), 2 * a + b - 3 * c, rel_tol=1e-12), "the step is not affine"
    return a, b, c


def gaussian_problem(
    process: GaussianProcess, mean: float, variance: float, eta: float
) -> solvers.SemiLinear:
    def denoiser(t: float, x: Tensor) -> Tensor:
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return mean + gain * (x - alpha * mean)

    return solvers.SemiLinear(process, denoiser, eta)


def weak_slope(name: str, eta: float) -> float:
    """From the exact law at 0.8 to that at 0.2: error of mean and variance, no Monte Carlo in it."""
    solver, mean, variance = solvers.get(name), 0.7, 0.3
    assert isinstance(solver, solvers.StepSolver)
    problem = gaussian_problem(PROCESS, mean, variance, eta)
    law = lambda t: (  # noqa: E731
        float(PROCESS.alpha(t)) * mean,
        float(PROCESS.alpha(t)) ** 2 * variance + float(PROCESS.sigma(t)) ** 2,
    )
    errors = []
    for steps in (80, 160, 320):
        m, v = law(0.8)
        grid = torch.linspace(0.8, 0.2, steps + 1, dtype=F64).tolist()
        for t, t_next in itertools.pairwise(grid):
            a, b, c = affine(solver, problem, t, t_next)
            m, v = a * m + b, a * a * v + c * c
        exact = law(grid[-1])
        errors.append(abs(m - exact[0]) + abs(v - exact[1]))
    return slopes(errors)[-1]


@pytest.mark.parametrize("eta", (0.5, 1.0))
@pytest.mark.parametrize("name", [n for n, row in ORDERS.items() if row.weak is not None])
def test_weak_order_on_a_gaussian(name: str, eta: float) -> None:
    order = ORDERS[name].weak
    slope = weak_slope(name, eta)
    assert order is not None and order - 0.15 <= slope <= order + 0.6, f"observed order {slope:.2f}"


# -- adaptive -------------------------------------------------------------------------------------------


def test_adaptive_error_follows_the_tolerance(reference: Tensor) -> None:
    tolerances = [10.0**-k for k in range(3, 10)]
    errors, nfe = [], []
    for tol in tolerances:
        sol = solvers.solve(mixture_problem(), starts(), SPAN, "dopri5", rtol=tol, atol=tol)
        assert bool(sol.ok.all())
        errors.append(float((sol.x - reference).abs().max()))
        nfe.append(int(sol.nfe.max()))
    assert errors == sorted(errors, reverse=True) and nfe == sorted(nfe)
    ratios = [e / tol for e, tol in zip(errors, tolerances, strict=True)]
    assert max(ratios) < 30 and max(ratios) / min(ratios) < 30, [f"{r:.2g}" for r in ratios]
    assert nfe[-1] < 40 * nfe[0], "cost grows with the fifth root"


def test_samples_take_their_own_steps() -> None:
    """An easy, a stiff and an oscillating sample: together as each alone."""
    rate = torch.tensor([[0.3], [400.0], [9.0]], dtype=F64)

    def drift(t: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return -rate * (x - torch.cos(t)[:, None])

    x = torch.tensor([[1.0, 0.2], [2.0, -1.0], [-1.0, 0.5]], dtype=F64)
    solver = solvers.Dopri5(rtol=1e-6, atol=1e-6)
    whole = solvers.solve(solvers.ODE(drift, (rate,)), x, (0.0, 2.0), solver)
    assert (
        bool(whole.ok.all()) and int(whole.nfe[1]) > 10 * int(whole.nfe[0]) and int(whole.rejected.max()) > 0
    )
    for i in range(3):
        alone = solvers.solve(solvers.ODE(drift, (rate[i : i + 1],)), x[i : i + 1], (0.0, 2.0), solver)
        for field in ("nfe", "accepted", "rejected", "status", "t"):
            assert getattr(alone, field).tolist() == getattr(whole, field)[i : i + 1].tolist(), field
        torch.testing.assert_close(alone.x, whole.x[i : i + 1], rtol=1e-10, atol=1e-10)
    assert whole.nfe.tolist() == (2 + 6 * (whole.accepted + whole.rejected)).tolist()


def oscillator(t: Tensor, x: Tensor) -> Tensor:
    return torch.stack([x[:, 1], -x[:, 0] + 0.2 * torch.sin(3 * t)], dim=1)


def dense_errors(tableau: solvers.Tableau) -> list[float]:
    """Largest error of states kept inside one step of length h, h/2, ... from an exact state."""
    problem = solvers.ODE(oscillator)
    x = torch.tensor([[1.0, 0.3]], dtype=F64)
    errors = []
    for h in (0.4, 0.2, 0.1):
        times = [f * h for f in (0.15, 0.35, 0.5, 0.8, 0.95)]
        exact = torch.stack(
            [solvers.solve(problem, x, (0.0, s), "scipy/DOP853", rtol=1e-13, atol=1e-14).x for s in times]
        )
        loose = solvers.AdaptiveRungeKutta(tableau, rtol=1e3, atol=1e3)
        noise = Noise.like(x, 0)
        sol = adapt(loose, problem, x, Request((0.0, h), noise, tuple(times)))
        assert int(sol.accepted) == 1, "one step was meant"
        assert sol.path is not None
        errors.append(float((sol.path - exact).abs().max()))
    return errors


def test_dense_output_is_of_order_four() -> None:
    """In one step of length h the interpolant's error is O(h^5)."""
    assert slopes(dense_errors(DOPRI5))[-1] >= 5 - 0.15


def test_kept_states_are_as_good_as_the_tolerance() -> None:
    x = torch.tensor([[1.0, 0.3]], dtype=F64)
    problem, times = solvers.ODE(oscillator), torch.linspace(0, 6, 61, dtype=F64)
    exact = solvers.solve(problem, x, (0.0, 6.0), "scipy/DOP853", rtol=1e-13, atol=1e-13, save_at=times).path
    assert exact is not None
    errors = []
    for tol in (1e-4, 1e-6, 1e-8):
        sol = solvers.solve(problem, x, (0.0, 6.0), "dopri5", rtol=tol, atol=tol, save_at=times)
        assert sol.path is not None
        errors.append(float((sol.path - exact).abs().max()))
        assert errors[-1] < 30 * tol
    assert errors == sorted(errors, reverse=True)


@pytest.mark.parametrize("name", ("euler", "heun", "rk4"))
def test_step_doubling_estimates_the_local_error_of_the_state_it_keeps(name: str) -> None:
    inner = solvers.get(name)
    assert isinstance(inner, solvers.StepSolver)
    solver, problem = solvers.StepDoubling(inner), solvers.ODE(oscillator)
    x, h = torch.tensor([[1.0, 0.3]], dtype=F64), 0.05
    exact = solvers.solve(problem, x, (0.0, h), "scipy/DOP853", rtol=1e-13, atol=1e-14).x
    step = solver.step(problem, 0.0, h, x, None, Noise.like(x, 0))
    assert step.error is not None
    torch.testing.assert_close(step.error, exact - step.x, rtol=0.1, atol=1e-12)
