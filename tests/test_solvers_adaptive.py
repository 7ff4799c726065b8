"""Adaptive solves: error against tolerance, samples' own steps, dense output, step doubling."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor

import solvers
from sdediff.processes import VP
from sdediff.reference import random_mixture
from solvers.adapt import adapt
from solvers.grids import log_snr_grid
from solvers.noise import Noise, Stream
from solvers.runge_kutta import DOPRI5
from solvers.solver import Request

F64 = torch.float64
PROCESS = VP(t_min=0.05)
MIXTURE = random_mixture(2, 3, seed=0, dtype=F64)
SPAN = (0.9, 0.1)


def slopes(errors: Sequence[float]) -> list[float]:
    """Observed orders, step sizes halving."""
    return [math.log2(a / b) for a, b in itertools.pairwise(errors)]


def mixture_problem() -> solvers.SemiLinear:
    return solvers.SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x, t))


def starts(n: int = 16) -> Tensor:
    return solvers.noise.normal(3, torch.arange(n), Stream.PRIOR, 0, (2,), F64)


@pytest.fixture(scope="module")
def reference() -> Tensor:
    return solvers.solve(mixture_problem(), starts(), SPAN, "scipy/DOP853", rtol=1e-12, atol=1e-12).x


NATIVE = [n for n in solvers.available() if "/" not in n and solvers.get(n).adaptive]


def test_every_native_adaptive_solver_is_measured_here() -> None:
    assert set(ODE_SOLVERS) | {"gotta-go-fast"} == set(NATIVE)


ODE_SOLVERS = {"bosh3": 7, "dopri5": 10, "tsit5": 10, "dopri8": 12}


@pytest.mark.parametrize(("name", "tightest"), ODE_SOLVERS.items())
def test_adaptive_error_follows_the_tolerance(name: str, tightest: int, reference: Tensor) -> None:
    """Monotone, and proportional over up to nine decades."""
    tolerances = [10.0**-k for k in range(3, tightest)]
    errors, nfe = [], []
    for tol in tolerances:
        sol = solvers.solve(mixture_problem(), starts(), SPAN, name, rtol=tol, atol=tol)
        assert bool(sol.ok.all())
        errors.append(float((sol.x - reference).abs().max()))
        nfe.append(int(sol.nfe.max()))
    assert errors == sorted(errors, reverse=True) and nfe == sorted(nfe)
    ratios = [e / tol for e, tol in zip(errors, tolerances, strict=True)]
    assert max(ratios) < 30 and max(ratios) / min(ratios) < 30, [f"{r:.2g}" for r in ratios]
    order = solvers.get(name).order
    growth = (tolerances[0] / tolerances[-1]) ** (1 / order)
    assert nfe[-1] < 3 * growth * nfe[0], "cost grows with the root of the order"


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


@cache
def unmarked() -> tuple[solvers.SemiLinear, Tensor, Tensor]:
    """A reverse diffusion, starts, and the evaluations that each takes where no state is kept."""
    process = VP()
    problem = solvers.SemiLinear(process, lambda t, x: MIXTURE.denoise(process, x, t), eta=1.0)
    return problem, starts(4), solvers.solve(problem, starts(4), solver="gotta-go-fast").nfe


@pytest.mark.parametrize("marks", ([0.5, 0.5 - 5e-7], [0.5, 0.5 - 1e-8], "log-snr"))
def test_marks_close_together_are_no_steps_too_small(marks: list[float] | str) -> None:
    problem, x, nfe = unmarked()
    grid = log_snr_grid(problem.process, 500).tolist() if marks == "log-snr" else marks
    sol = solvers.solve(problem, x, solver="gotta-go-fast", save_at=grid)
    assert bool(sol.ok.all()) and sol.path is not None and bool(torch.isfinite(sol.path).all())
    assert bool((sol.nfe <= nfe + 4 * len(grid)).all())
