"""Stochastic solvers: orders in both directions of time, weak ones without chance, and adaptive steps."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import solvers
from sdediff.processes import VP
from solvers import SDE, BrownianPath, GottaGoFast, Noise, SemiLinear, Status, Stream

F64 = torch.float64
SLACK = 0.15
ALARM = 1e-3


def takes(name: str, noise: str) -> bool:
    """Whether a native fixed-grid solver takes an SDE with this noise."""
    solver = solvers.get(name)
    return (
        "/" not in name
        and isinstance(solver, solvers.StepSolver)
        and solver.stochastic
        and not solver.needs_linear_part
        and noise in solver.noises
    )


ADDITIVE = [n for n in solvers.available() if takes(n, "additive")]
DIAGONAL = [n for n in solvers.available() if takes(n, "diagonal")]
both_ways = pytest.mark.parametrize("span", ((0.0, 1.0), (1.0, 0.0)), ids=("rising", "falling"))


def slopes(errors: list[float]) -> list[float]:
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def rms(value: Tensor) -> float:
    return float(value.square().mean().sqrt())


def grid(span: tuple[float, float], steps: int) -> Tensor:
    return torch.linspace(*span, steps + 1, dtype=F64)


def starts(rows: int, width: int = 1) -> Tensor:
    return solvers.noise.normal(5, torch.arange(rows), Stream.PRIOR, 0, (width,), F64)


def path_of(x: Tensor, span: tuple[float, float], cells: int) -> BrownianPath:
    return BrownianPath(Noise.like(x, 11), tuple(grid(span, cells).tolist()))


def ends(
    name: str, problem: Any, x: Tensor, span: tuple[float, float], steps: int, path: BrownianPath
) -> Tensor:
    return solvers.solve(problem, x, span, solvers.get(name), grid=grid(span, steps), brownian=path).x


# -- strong orders, where the diffusion depends on time -------------------------------------------------


Case = tuple[Any, Tensor, BrownianPath, Tensor]


@cache
def changing(span: tuple[float, float]) -> Case:
    """A problem, its starts, a path, and where SRA1 of 1024 steps takes them along it."""
    sign = math.copysign(1.0, span[1] - span[0])
    problem = SDE(lambda t, x: sign * (torch.sin(2 * x) - x), lambda t, x: (0.5 + t) * torch.ones_like(x))
    x = starts(400)
    path = path_of(x, span, 1024)
    return problem, x, path, ends("sra1", problem, x, span, 1024, path)


@both_ways
@pytest.mark.parametrize("name", ADDITIVE)
def test_strong_order_with_noise_that_changes_in_time(name: str, span: tuple[float, float]) -> None:
    """A nonlinear drift; the reference is SRA1 with 16 times the steps."""
    problem, x, path, fine = changing(span)
    errors = [rms(ends(name, problem, x, span, n, path) - fine) for n in (8, 64)]
    order, slope = solvers.get(name).orders.strong, math.log2(errors[0] / errors[-1]) / 3
    assert order is not None and order - SLACK <= slope <= order + 0.5, f"observed order {slope:.2f}"


@both_ways
@pytest.mark.parametrize("name", DIAGONAL)
def test_strong_order_with_diagonal_noise_that_changes_in_time(name: str, span: tuple[float, float]) -> None:
    """Geometric Brownian motion of volatility b(t) = 0.4 + t: x exp(drift - 1/2 int b^2 + int b dW)."""
    x = torch.full((1000, 1), 0.7, dtype=F64)
    sign = math.copysign(1.0, span[1] - span[0])
    problem = SDE(lambda t, x: sign * 0.3 * x, lambda t, x: (0.4 + t) * x, noise="diagonal")
    path = path_of(x, span, 256)
    w, area = path.with_integral(*span)
    # By parts: int r dW = W - int W dr, r the time since the start.
    integral = 0.4 * w + (w - area if sign > 0 else area)
    exact = x * torch.exp(0.3 - 0.5 * (1.4**3 - 0.4**3) / 3 + integral)
    errors = [rms(ends(name, problem, x, span, n, path) - exact) for n in (16, 256)]
    order, slope = solvers.get(name).orders.strong_diagonal, math.log2(errors[0] / errors[-1]) / 4
    assert order is not None and order - SLACK <= slope <= order + 0.4, f"observed order {slope:.2f}"


PROCESS = VP(t_min=0.02)


def wide(t: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    value = function(torch.as_tensor(t, dtype=F64))
    return value.reshape(-1, *(1,) * (x.ndim - 1)) if value.ndim else value


def squared(t: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and the noise's variance."""
    return wide(t, x, PROCESS.alpha), wide(t, x, PROCESS.sigma) ** 2


@cache
def schedule(t: float) -> tuple[float, float]:
    alpha, variance = squared(t, torch.empty(0))
    return float(alpha), float(variance)


def blurred_signs(t: Any, x: Tensor) -> Tensor:
    """Denoiser of independent entries, +-1 with a Gaussian blur."""
    alpha, variance = schedule(t) if isinstance(t, float) else squared(t, x)
    total = 0.25 * alpha**2 + variance
    return (0.25 * alpha * x + variance * torch.tanh(alpha * x / total)) / total


@cache
def of_changing_eta(span: tuple[float, float]) -> Case:
    """The same for a reverse diffusion."""
    x = starts(200, 2)
    problem = SemiLinear(PROCESS, blurred_signs, lambda t: 0.5 + torch.sin(3 * t))
    path = path_of(x, span, 1024)
    return problem, x, path, ends("sra1", problem, x, span, 1024, path)


@pytest.mark.parametrize("name", ADDITIVE)
def test_strong_order_where_eta_is_a_function_of_time(name: str) -> None:
    span = (0.9, 0.1)
    problem, x, path, fine = of_changing_eta(span)
    errors = [rms(ends(name, problem, x, span, n, path) - fine) for n in (16, 128)]
    order, slope = solvers.get(name).orders.strong, math.log2(errors[0] / errors[-1]) / 3
    assert order is not None and order - SLACK <= slope <= order + 0.5, f"observed order {slope:.2f}"


# -- weak orders: the backward equation, no Monte Carlo -------------------------------------------------

POINTS, MODES = 33, 16


@dataclass(frozen=True)
class Given(Noise):
    """Noise whose step has the normals given."""

    normals: tuple[Tensor, ...] = ()

    def normal(self, stream: int = Stream.STEP, draw: int = 0, draws: int = 1) -> Tensor:
        return self.normals[(Stream.STEP, Stream.AREA).index(stream)]  # type: ignore[arg-type]


def waves(x: Tensor) -> Tensor:
    """The trigonometric basis that interpolates on POINTS equal points of a circle, (..., POINTS)."""
    modes = torch.arange(-MODES, MODES + 1, dtype=F64)
    nodes = torch.arange(POINTS, dtype=F64) * (2 * math.pi / POINTS)
    return torch.cos((x[..., None, None] - nodes[:, None]) * modes).sum(dim=-1) / POINTS


def transition(solver: solvers.StepSolver, problem: SDE, h: float) -> Tensor:
    """The matrix of ``u -> E u(one step from x)`` for periodic u: Gauss-Hermite in the two normals."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(10)
    z, n = (v.reshape(-1) for v in torch.meshgrid(*[torch.tensor(nodes)] * 2, indexing="ij"))
    weight = torch.outer(*[torch.tensor(weights / weights.sum())] * 2).reshape(-1)
    x = (torch.arange(POINTS, dtype=F64) * (2 * math.pi / POINTS)).repeat_interleave(len(z))[:, None]
    normals = tuple(v.repeat(POINTS)[:, None] for v in (z, n))
    noise = Given(0, torch.arange(len(x)), (1,), F64, normals=normals)
    end = solver.step(problem, 0.0, h, x, solver.begin(problem, (0.0, h)), noise).x
    return torch.einsum("pqm,q->pm", waves(end.reshape(POINTS, -1)), weight)


def expectation(problem: SDE, u: Tensor, time: float) -> Tensor:
    """``exp(time L) u`` with the generator L = f d/dx + g^2/2 d^2/dx^2, by collocation on the circle."""
    x = torch.arange(POINTS, dtype=F64) * (2 * math.pi / POINTS)
    modes = torch.arange(-MODES, MODES + 1, dtype=F64)
    phase = (x[:, None, None] - x[:, None]) * modes
    first = (-modes * torch.sin(phase)).sum(dim=-1) / POINTS
    second = (-(modes**2) * torch.cos(phase)).sum(dim=-1) / POINTS
    t = torch.zeros((), dtype=F64)
    drift, diffusion = problem.drift(t, x[:, None]), problem.diffusion(t, x[:, None])
    return torch.linalg.matrix_exp(time * (drift * first + 0.5 * diffusion**2 * second)) @ u


def weak_errors(name: str, problem: SDE) -> list[float]:
    """Largest error of E u(x_T) over starting points, 8 to 64 steps."""
    solver = solvers.get(name)
    assert isinstance(solver, solvers.StepSolver)
    x = torch.arange(POINTS, dtype=F64) * (2 * math.pi / POINTS)
    u = torch.cos(x) + 0.5 * torch.sin(2 * x)
    exact, errors = expectation(problem, u, 1.0), []
    for steps in (8, 16, 32, 64):
        p = transition(solver, problem, 1.0 / steps)
        errors.append(float((torch.linalg.matrix_power(p, steps) @ u - exact).abs().max()))
    return errors


@pytest.mark.parametrize("name", ADDITIVE)
def test_weak_order_with_a_nonlinear_drift(name: str) -> None:
    problem = SDE(lambda t, x: torch.sin(x) + 0.3, lambda t, x: 0.7 * torch.ones_like(x))
    errors, order = weak_errors(name, problem), solvers.get(name).orders.weak
    slope = math.log2(errors[0] / errors[-1]) / 3
    assert order is not None and order - SLACK <= slope <= order + 0.5, f"observed orders {slopes(errors)}"


@pytest.mark.parametrize("name", DIAGONAL)
def test_weak_order_with_diagonal_noise(name: str) -> None:
    problem = SDE(lambda t, x: torch.sin(x) + 0.3, lambda t, x: 0.6 + 0.3 * torch.cos(x), noise="diagonal")
    errors, order = weak_errors(name, problem), solvers.get(name).orders.weak_diagonal
    slope = math.log2(errors[0] / errors[-1]) / 3
    assert order is not None and order - SLACK <= slope <= order + 0.5, f"observed orders {slopes(errors)}"


# -- what a step is -------------------------------------------------------------------------------------


def test_where_noise_is_additive_milstein_is_euler_maruyama_and_srk_is_sra1() -> None:
    x = starts(5, 3)
    for problem in (
        SDE(lambda t, x: torch.sin(x), lambda t, x: 0.3 + t),
        SemiLinear(PROCESS, blurred_signs, 0.7),
    ):
        run = lambda name: solvers.solve(problem, x, (0.8, 0.3), name, grid=grid((0.8, 0.3), 7)).x  # noqa: B023, E731
        assert torch.equal(run("milstein"), run("euler-maruyama"))
        assert torch.equal(run("srk"), run("sra1"))
        assert not torch.equal(run("sra1"), run("stochastic-heun"))


def test_without_noise_they_are_runge_kutta_methods() -> None:
    x, tableau = starts(5, 3), solvers.Tableau(2, (0.0, 0.75), ((), (0.75,)), (1 / 3, 2 / 3))
    twins = {"euler-maruyama": "euler", "milstein": "euler", "stochastic-heun": "heun"}
    ralston = solvers.RungeKutta(tableau)
    for name in ADDITIVE:
        twin = twins.get(name, ralston)
        for problem in (solvers.ODE(lambda t, x: torch.sin(t + x)), SemiLinear(PROCESS, blurred_signs, 0.0)):
            for span in ((0.8, 0.3), (0.3, 0.8)):
                mine, theirs = (
                    solvers.solve(problem, x, span, s, grid=grid(span, 6)).x for s in (name, twin)
                )
                torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "drifts", "diffusions"),
    (("euler-maruyama", 1, 1), ("milstein", 1, 2), ("srk", 2, 4), ("sra1", 2, 2), ("stochastic-heun", 2, 2)),
)
def test_evaluations_a_step(name: str, drifts: int, diffusions: int) -> None:
    calls = {"drift": 0, "diffusion": 0}

    def drift(t: Tensor, x: Tensor) -> Tensor:
        calls["drift"] += 1
        return -x

    def diffusion(t: Tensor, x: Tensor) -> Tensor:
        calls["diffusion"] += 1
        return torch.ones_like(x)

    kind = "diagonal" if name in DIAGONAL else "additive"
    sol = solvers.solve(SDE(drift, diffusion, kind), starts(3), (0.0, 1.0), name, steps=10)  # type: ignore[arg-type]
    assert calls == {"drift": 10 * drifts, "diffusion": 10 * diffusions}
    assert sol.nfe.tolist() == [10 * drifts] * 3


@pytest.mark.parametrize("name", ("sra1", "stochastic-heun", "gotta-go-fast"))
def test_state_dependent_noise_is_refused(name: str) -> None:
    with pytest.raises(TypeError, match="needs additive noise, not diagonal"):
        solvers.solve(SDE(lambda t, x: x, lambda t, x: x, "diagonal"), starts(3), (0.0, 1.0), name)


@pytest.mark.parametrize("name", DIAGONAL)
def test_a_diffusion_may_broadcast(name: str) -> None:
    """A column that scales all entries of a row, and a single number."""
    x = starts(4, 3)
    for diffusion in (
        lambda t, x: torch.full((4, 1), 0.3, dtype=F64),
        lambda t, x: torch.tensor(0.3, dtype=F64),
    ):
        for kind in ("additive", "diagonal"):
            mine, full = (
                solvers.solve(SDE(lambda t, x: -x, g, kind), x, (0.0, 1.0), name, steps=5).x  # type: ignore[arg-type]
                for g in (diffusion, lambda t, x: torch.full_like(x, 0.3))
            )
            torch.testing.assert_close(mine, full, rtol=1e-13, atol=1e-13)


# -- adaptive steps -------------------------------------------------------------------------------------

REVERSE = SemiLinear(PROCESS, blurred_signs, 1.0)


def adaptive(
    problem: Any, x: Tensor, tol: float, span: tuple[float, float] = (1.0, 0.02), **more: Any
) -> Any:
    return solvers.solve(problem, x, span, GottaGoFast(rtol=tol, atol=tol), **more)


def test_adaptive_solves_approach_the_solution_on_their_path() -> None:
    """Against a fine fixed grid on one path, which a rejected step that drew its noise anew would leave."""
    x = starts(100, 2)
    path = BrownianPath(Noise.like(x, 3), (1.0, 0.02))
    fine = solvers.solve(REVERSE, x, solver="sra1", grid=grid((1.0, 0.02), 1024), brownian=path).x
    errors, nfe = [], []
    for tol in (0.1, 0.02, 4e-3):
        sol = adaptive(REVERSE, x, tol, brownian=path)
        assert bool(sol.ok.all()) and float(sol.rejected.double().mean()) > 2
        errors.append(rms(sol.x - fine))
        nfe.append(float(sol.nfe.double().mean()))
    assert errors[0] > 1.8 * errors[1] > 3.2 * errors[2], errors
    assert errors[-1] < 0.03
    # Strong order 1: the error falls like the number of steps rises.
    slope = math.log(errors[0] / errors[-1]) / math.log(nfe[-1] / nfe[0])
    assert slope > 1 - SLACK, f"observed order {slope:.2f}"


def test_without_a_path_given_it_follows_its_own() -> None:
    x = starts(5, 2)
    own = BrownianPath(Noise.like(x, 9), (1.0, 0.02))
    assert torch.equal(adaptive(REVERSE, x, 0.05, seed=9).x, adaptive(REVERSE, x, 0.05, brownian=own).x)
    assert not torch.equal(adaptive(REVERSE, x, 0.05, seed=8).x, adaptive(REVERSE, x, 0.05, seed=9).x)


def test_law_of_an_adaptive_solve() -> None:
    """Reverse diffusion of Gaussian data from its exact law at t = 1: KS and two moments of 8000 numbers.

    False alarm 1e-3 for the three together; the bias at this tolerance is less than a tenth of what they see.
    """
    mean, variance = 0.7, 0.3

    def denoiser(t: Any, x: Tensor) -> Tensor:
        alpha, sigma = wide(t, x, PROCESS.alpha), wide(t, x, PROCESS.sigma)
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)

    def law(t: float) -> tuple[float, float]:
        alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
        return alpha * mean, math.sqrt(alpha**2 * variance + sigma**2)

    (m, s), (m_end, s_end) = law(1.0), law(0.02)
    x = m + s * starts(4000, 2)
    sol = adaptive(SemiLinear(PROCESS, denoiser, 1.0), x, 0.02, seed=1)
    assert bool(sol.ok.all()) and float(sol.rejected.double().mean()) > 3
    z = ((sol.x - m_end) / s_end).flatten()
    limit = stats.norm.isf(ALARM / 6)
    assert stats.kstest(z.numpy(), "norm").pvalue > ALARM / 3
    assert abs(float(z.mean())) * math.sqrt(len(z)) < limit
    assert abs(float(z.square().mean()) - 1) * math.sqrt(len(z) / 2) < limit


def easy_and_stiff(t: Tensor, x: Tensor, rate: Tensor) -> Tensor:
    return -rate * torch.sin(x)


def test_samples_take_their_own_steps() -> None:
    """Together or alone: the same steps, evaluations and states."""
    rate = torch.tensor([[1.0], [60.0], [5.0], [1.0]], dtype=F64)
    x, names = starts(4, 2), torch.tensor([7, 3, 20, 0])

    def run(rows: Tensor) -> solvers.Solution:
        problem = SDE(easy_and_stiff, lambda t, x, rate: 0.3 * torch.ones_like(x), per_sample=(rate[rows],))
        return adaptive(problem, x[rows], 0.02, (0.0, 1.0), indices=names[rows], save_at=(0.3, 1.0))

    whole = run(torch.arange(4))
    assert int(whole.nfe[1]) > 4 * int(whole.nfe[0]) and bool(
        (whole.nfe == 2 * (whole.accepted + whole.rejected)).all()
    )
    for rows in map(torch.tensor, ([1], [3, 1], [2, 0], [0])):
        part = run(rows)
        for name in ("nfe", "accepted", "rejected", "status", "t"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rows]), name
        torch.testing.assert_close(part.x, whole.x[rows], rtol=1e-10, atol=1e-10)
        assert part.path is not None and whole.path is not None
        torch.testing.assert_close(part.path, whole.path[:, rows], rtol=1e-10, atol=1e-10)


def test_kept_states_lie_on_the_solve() -> None:
    x, times = starts(4, 2), (1.0, 0.7, 0.31, 0.02)
    sol = adaptive(REVERSE, x, 0.02, save_at=times)
    path = sol.path
    assert path.shape == (4, 4, 2) and bool(torch.isfinite(path).all())
    assert torch.equal(path[0], x) and torch.equal(path[-1], sol.x)
    own = BrownianPath(Noise.like(x, 0), (1.0, 0.02))
    for state, t in zip(path[1:], times[1:], strict=True):
        fine = solvers.solve(REVERSE, x, (1.0, t), "sra1", grid=grid((1.0, t), 256), brownian=own).x
        assert rms(state - fine) < 0.1


def test_without_noise_it_is_an_adaptive_heun_method() -> None:
    x = starts(10, 2)
    flow = SemiLinear(PROCESS, blurred_signs, 0.0)
    exact = solvers.solve(flow, x, (1.0, 0.02), "rk4", grid=grid((1.0, 0.02), 800)).x
    errors = [float((adaptive(flow, x, tol).x - exact).abs().max()) for tol in (1e-3, 1e-4, 1e-5)]
    assert errors[0] > 4 * errors[1] > 16 * errors[2] and errors[2] < 2e-4


def test_failures_are_told_by_sample() -> None:
    """One that becomes NaN, one that explodes, one that costs too much, one that is well."""
    kind = torch.arange(4.0, dtype=F64)[:, None]

    def drift(t: Tensor, x: Tensor, kind: Tensor) -> Tensor:
        broken = torch.where(t[:, None] > 0.5, math.nan, 0.0)
        wild = -1e4 * torch.sin(30 * x)
        return torch.where(
            kind == 0, broken, torch.where(kind == 1, x**3 * 50, torch.where(kind == 2, wild, -x))
        )

    problem = SDE(drift, lambda t, x, kind: 0.1 * torch.ones_like(x), per_sample=(kind,))
    solver = GottaGoFast(rtol=1e-2, atol=1e-2, max_nfe=1000)
    sol = solvers.solve(problem, torch.full((4, 2), 0.8, dtype=F64), (0.0, 1.0), solver)
    expected = [Status.NON_FINITE, Status.STEP_TOO_SMALL, Status.MAX_NFE, Status.OK]
    assert sol.status.tolist() == [int(s) for s in expected]
    assert bool(torch.isfinite(sol.x).all()), "the last state reached is kept"
    assert 0.3 < float(sol.t[0]) <= 0.5 and 0 < float(sol.t[1]) < 0.1 and float(sol.t[3]) == 1.0
    assert int(sol.nfe[2]) == 1000
    assert "row 0" in sol.describe_failure()


@pytest.mark.parametrize(
    "options",
    (
        {"max_nfe": 0}, {"max_nfe": 2.5}, {"max_nfe": math.inf}, {"max_nfe": math.nan}, {"max_nfe": "many"},
        {"max_nfe": True}, {"min_step": -1.0}, {"min_step": 1.0}, {"min_step": "small"},
    ),
)  # fmt: skip
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="give max_nfe >= 1 and 0 <= min_step < 1"):
        GottaGoFast(**options)
    with pytest.raises(ValueError, match="give max_nfe >= 1 and 0 <= min_step < 1"):
        solvers.Tsit5(**options)
    with pytest.raises(ValueError, match="positive tolerances"):
        GottaGoFast(rtol=0.0)


@pytest.mark.usefixtures("new_objects")
def test_memory_does_not_grow_with_the_number_of_steps() -> None:
    x, held, calls = starts(20, 2), [], itertools.count()

    def denoiser(t: Any, y: Tensor) -> Tensor:
        if next(calls) % 20 == 9:
            gc.collect()
            held.append(sum(v.nbytes for v in gc.get_objects() if type(v) is Tensor))
        return blurred_signs(t, y)

    adaptive(SemiLinear(PROCESS, denoiser, 1.0), x, 0.03)
    assert len(held) > 5 and max(held[1:]) < 1.2 * held[0]
