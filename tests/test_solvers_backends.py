"""Other libraries' solvers: they agree with closed forms and with our own, and their failures are told."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from sdediff.processes import VP, RectifiedFlow
from sdediff.reference import random_mixture
from solvers import ODE, SDE, BrownianPath, Noise, SemiLinear, Status, solve
from solvers.backends import scipy as scipy_backend
from solvers.backends import torchdiffeq as torchdiffeq_backend
from solvers.backends import torchsde as torchsde_backend

F32, F64 = torch.float32, torch.float64
SCIPY = [f"scipy/{m}" for m in scipy_backend.METHODS]
TORCHDIFFEQ = [f"torchdiffeq/{m}" for m in torchdiffeq_backend.METHODS]
ADAPTIVE = [n for n in SCIPY + TORCHDIFFEQ if solvers.get(n).adaptive]
FIXED = [n for n in TORCHDIFFEQ if not solvers.get(n).adaptive]


def rows(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


def test_every_wrapped_method_is_available_and_no_other() -> None:
    wrapped = {n for n in solvers.available() if "/" in n}
    assert wrapped == {*SCIPY, *TORCHDIFFEQ, *(f"torchsde/{m}" for m in torchsde_backend.METHODS)}
    for cls in (scipy_backend.SciPy, torchdiffeq_backend.TorchDiffEq, torchsde_backend.TorchSDE):
        with pytest.raises(ValueError, match="take one of"):
            cls("dopri9")


def test_methods_that_suppose_equal_steps_are_not_offered() -> None:
    """torchdiffeq's Adams methods use constant-step coefficients on whatever grid they are given."""
    assert not [n for n in solvers.available() if "adams" in n]


# -- ODEs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADAPTIVE)
def test_adaptive_methods_meet_their_tolerance_on_a_closed_form(name: str) -> None:
    """x' = -2 t x, x = exp(-t^2), both ways."""
    loose = 1e-3 if solvers.get(name).order < 3 else 1e-6
    for start, end in ((0.0, 1.5), (1.5, 0.0)):
        x = rows(0.5, -2.0) * math.exp(-(start**2))
        sol = solve(ODE(lambda t, x: -2 * t * x), x, (start, end), name, rtol=loose, atol=loose)
        assert bool(sol.ok.all()) and int(sol.accepted[0]) > 2
        error = float((sol.x - rows(0.5, -2.0) * math.exp(-(end**2))).abs().max())
        assert 0 < error < 300 * loose, f"{error:.1e}"


MIXTURE, PROCESS = random_mixture(2, 3, seed=0, dtype=F64), VP(t_min=1e-2)


@pytest.mark.parametrize("name", [n for n in ADAPTIVE if solvers.get(n).order >= 5])
def test_flows_of_a_mixture_agree_with_ours(name: str) -> None:
    problem = SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x, t))
    x = solvers.noise.normal(3, torch.arange(4), 0, 0, (2,), F64)
    mine = solve(problem, x, solver="dopri5", rtol=1e-10, atol=1e-10).x
    theirs = solve(problem, x, solver=name, rtol=1e-7, atol=1e-7).x
    torch.testing.assert_close(theirs, mine, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "native"),
    (("euler", "euler"), ("heun2", "heun"), ("midpoint", None), ("heun3", None), ("rk4", None)),
)
def test_fixed_methods_of_torchdiffeq_on_an_uneven_grid(name: str, native: str | None) -> None:
    """The same step where we have the method, and the method's order on a grid whose steps differ."""
    problem = SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x, t))
    x = solvers.noise.normal(3, torch.arange(4), 0, 0, (2,), F64)
    run = lambda solver, n: solve(problem, x, (0.9, 0.1), solver, steps=n, grid="rho").x  # noqa: E731
    if native is not None:
        torch.testing.assert_close(run(f"torchdiffeq/{name}", 12), run(native, 12), rtol=1e-10, atol=1e-10)
    exact = solve(problem, x, (0.9, 0.1), "dopri5", rtol=1e-11, atol=1e-11).x
    order = solvers.get(f"torchdiffeq/{name}").order
    errors = [float((run(f"torchdiffeq/{name}", n) - exact).abs().max()) for n in (80, 160)]
    assert order - 0.15 <= math.log2(errors[0] / errors[1]) <= order + 0.6


@pytest.mark.parametrize("name", ADAPTIVE)
def test_statistics_of_adaptive_methods(name: str) -> None:
    """Steps are counted the same whether states are kept or not; kept states include the ends."""
    problem = ODE(lambda t, x: torch.cos(40 * t) * (1 + 0 * x) * 40)
    options: dict[str, Any] = dict.fromkeys(("rtol", "atol"), 1e-3 if solvers.get(name).order < 3 else 1e-6)
    plain = solve(problem, rows(0.0), (0.0, 1.0), name, **options)
    times = [0.0, 0.21, 0.5, 1.0]
    kept = solve(problem, rows(0.0), (0.0, 1.0), name, save_at=times, **options)
    assert kept.accepted.tolist() == plain.accepted.tolist() and int(plain.accepted) > 10
    assert kept.path is not None
    expected = torch.sin(40 * torch.tensor(times, dtype=F64))
    torch.testing.assert_close(
        kept.path[:, 0, 0], expected, rtol=0, atol=3e-2 if solvers.get(name).order < 3 else 2e-3
    )
    if name.startswith("torchdiffeq/"):
        stages = {"dopri8": 13, "dopri5": 6, "bosh3": 3, "fehlberg2": 2, "adaptive_heun": 1}[
            name.split("/")[1]
        ]
        assert int(plain.rejected) >= 0
        assert int(plain.nfe) == 2 + stages * int(plain.accepted + plain.rejected)


@pytest.mark.parametrize("name", [*SCIPY, *TORCHDIFFEQ])
def test_a_schedule_that_is_singular_at_its_end_keeps_its_digits_in_single_precision(name: str) -> None:
    """Near t = 1 a time rounded to float32 would be wrong by 6e-8 / 1e-4: times arrive in double."""
    process, times = RectifiedFlow(t_max=1 - 1e-4), []

    def denoiser(t: float | Tensor, x: Tensor) -> Tensor:
        times.append(torch.as_tensor(t, dtype=F64).flatten()[0])
        return torch.zeros_like(x)

    options = {"steps": 3} if name in FIXED else {"rtol": 1e-3, "atol": 1e-3}
    sol = solve(SemiLinear(process, denoiser), rows(1.0).float(), solver=name, **options)
    assert sol.x.dtype == F32
    distance = 1 - torch.stack(times).max()
    torch.testing.assert_close(distance, torch.tensor(1e-4, dtype=F64), rtol=1e-9, atol=0)


# -- failures --------------------------------------------------------------------------------------------


def nan_at_once(t: Tensor, x: Tensor) -> Tensor:
    return x * math.nan


def nan_later(t: Tensor, x: Tensor) -> Tensor:
    return torch.where(t > 0.5, math.nan, -x)


def infinite_later(t: Tensor, x: Tensor) -> Tensor:
    return torch.where(t > 0.5, math.inf, -x)


def blow_up(t: Tensor, x: Tensor) -> Tensor:
    return x**2


@pytest.mark.parametrize("drift", (nan_at_once, nan_later, infinite_later, blow_up), ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_failures_become_a_status(name: str, drift: Any) -> None:
    """None hangs, none raises, none is silent; what was reached before is kept."""
    options = dict.fromkeys(("rtol", "atol"), 1e-4 if solvers.get(name).order < 3 else 1e-5)
    sol = solve(ODE(drift), rows(2.0, 1.0), (0.0, 1.0), name, save_at=[0.0, 0.2, 0.9], **options)
    assert not bool(sol.ok.any())
    assert all(Status(s) in (Status.NON_FINITE, Status.FOREIGN_FAILURE) for s in sol.status.tolist())
    if drift is nan_at_once:
        assert sol.t.tolist() == [0.0, 0.0] and sol.status.tolist() == [int(Status.NON_FINITE)] * 2
    t = float(sol.t[0])
    assert 0 <= t <= 0.53 and bool(torch.isfinite(sol.x).all())
    if drift is not blow_up:
        torch.testing.assert_close(sol.x, rows(2.0, 1.0) * math.exp(-t), rtol=5e-3, atol=0)
    assert sol.path is not None
    assert torch.equal(sol.path[0], rows(2.0, 1.0)) and bool(torch.isnan(sol.path[-1]).all())
    message = sol.describe_failure()
    assert message.startswith(f"2 of 2 samples failed, the first at row 0, t = {t:.6g}")


@pytest.mark.parametrize("name", (*FIXED, "torchsde/euler", "torchsde/srk"))
def test_rows_that_become_nan_are_reported_by_fixed_methods(name: str) -> None:
    sol = solve(ODE(lambda t, x: torch.where(x > 2, math.nan, x)), rows(0.1, 1.5), (0.0, 1.0), name, steps=20)
    assert sol.status.tolist() == [0, int(Status.NON_FINITE)]


@pytest.mark.parametrize("error", (AssertionError, ValueError, RuntimeError))
@pytest.mark.parametrize(
    "name", ("torchdiffeq/dopri5", "torchdiffeq/rk4", "scipy/RK45", "scipy/LSODA", "torchsde/euler")
)
def test_a_users_own_error_is_not_swallowed(name: str, error: type[Exception]) -> None:
    def drift(t: Tensor, x: Tensor) -> Tensor:
        if float(t.max()) > 0.4:
            raise error("mine")
        return -x

    with pytest.raises(error, match="mine"):
        solve(ODE(drift), rows(1.0), (0.0, 1.0), name, **({} if name in ADAPTIVE else {"steps": 5}))


@pytest.mark.parametrize("name", [n for n in solvers.available() if "/" in n])
def test_nothing_requires_gradients_that_nobody_asked_for(name: str) -> None:
    assert not solve(ODE(lambda t, x: -x), rows(1.0), (0.0, 1.0), name).x.requires_grad


# -- torchsde --------------------------------------------------------------------------------------------


def reverse(eta: float = 1.0) -> SemiLinear:
    process = VP(t_min=0.05)
    return SemiLinear(process, lambda t, x: MIXTURE.denoise(process, x, t), eta)


@pytest.mark.parametrize("eta", (0.0, 0.5, 1.0))
@pytest.mark.parametrize("dtype", (F64, F32), ids=("float64", "float32"))
def test_torchsde_euler_is_our_euler_maruyama(eta: float, dtype: torch.dtype) -> None:
    """On a grid uniform in t and with the same seed, to rounding."""
    x = solvers.noise.normal(3, torch.arange(5), 0, 0, (2,), dtype)
    names = torch.tensor([8, 1, 4, 1000, 2])
    run = lambda name: solve(  # noqa: E731
        reverse(eta), x, (0.9, 0.05), name, steps=40, grid="uniform", seed=5, indices=names
    )
    tolerance = 1e-9 if dtype == F64 else 2e-3
    torch.testing.assert_close(
        run("torchsde/euler").x, run("euler-maruyama").x, rtol=tolerance, atol=tolerance
    )


def test_torchsde_euler_is_our_euler_maruyama_on_a_rising_sde_with_diagonal_noise() -> None:
    problem = SDE(lambda t, x: torch.sin(t) - x, lambda t, x: 0.3 * x, noise="diagonal")
    run = lambda name: solve(problem, rows(1.0, 2.0), (0.0, 2.0), name, steps=30, seed=9).x  # noqa: E731
    torch.testing.assert_close(run("torchsde/euler"), run("euler-maruyama"), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ("additive", "diagonal"))
def test_strong_orders_of_torchsde_methods(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against closed forms on one path: Ornstein-Uhlenbeck and geometric Brownian motion."""
    n, finest, seed = 300, 256, 4
    x = torch.ones(n, 1, dtype=F64)
    if kind == "additive":
        problem = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x))
    else:
        problem = SDE(lambda t, x: 0.5 * x, lambda t, x: 0.8 * x, noise="diagonal")
    path = BrownianPath(
        Noise(seed, torch.arange(n), (1,), F64), tuple(torch.linspace(0, 1, finest + 1, dtype=F64).tolist())
    )
    if kind == "additive":
        # By parts in each cell, whose integral of W is known: exact to O(h^2).
        total = torch.zeros_like(x)
        for a, b in itertools.pairwise(torch.linspace(0, 1, finest + 1, dtype=F64).tolist()):
            w, area = path.with_integral(a, b)
            total += math.exp(b) * w - math.exp((a + b) / 2) * area  # by parts within the cell
        exact = math.exp(-1) * (x + total)
    else:
        exact = torch.exp((0.5 - 0.32) + 0.8 * path(0.0, 1.0))

    def error(method: str, steps: int) -> float:
        original = torchsde_backend.BrownianPath
        # The same path for every number of steps: cells of the finest grid, in the clock of this one.
        with monkeypatch.context() as patch:
            patch.setattr(
                torchsde_backend,
                "BrownianPath",
                lambda noise, times: _Rescaled(original, noise, steps, finest),
            )
            sol = solve(problem, x, (0.0, 1.0), f"torchsde/{method}", steps=steps, seed=seed)
        return float((sol.x - exact).square().mean().sqrt())

    slopes = {}
    for method in ("euler", "milstein", "srk"):
        errors = [error(method, k) for k in (8, 16, 32)]
        slopes[method] = math.log2(errors[0] / errors[-1]) / 2
    expected = {"euler": 1.0 if kind == "additive" else 0.5, "milstein": 1.0, "srk": 1.5}
    for method, order in expected.items():
        assert order - 0.2 <= slopes[method] <= order + 0.7, slopes
    assert error("srk", 32) < 0.2 * error("euler", 32)


class _Rescaled:
    """A path on [0, 1], asked in the clock u = 0 .. steps that torchsde sees."""

    def __init__(self, make: type[BrownianPath], noise: Noise, steps: int, finest: int) -> None:
        self.path = make(noise, tuple(torch.linspace(0, 1, finest + 1, dtype=F64).tolist()))
        self.steps = steps

    def with_integral(self, u: float, v: float) -> tuple[Tensor, Tensor]:
        w, area = self.path.with_integral(u / self.steps, v / self.steps)
        # W(u) of the clock has variance u: stretched by the root; its integral by one factor more.
        return w * self.steps**0.5, area * self.steps**1.5


def test_torchsde_keeps_the_law_on_an_uneven_grid() -> None:
    """From the law of Gaussian data at t_max to that at t_min: moments of 4000 rows within 4 sigma (6e-5)."""
    process, mean, variance = VP(t_min=0.05), 0.7, 0.3

    def denoiser(t: float, x: Tensor) -> Tensor:
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)

    n = 4000
    law = lambda t: (  # noqa: E731
        float(process.alpha(t)) * mean,
        float(process.alpha(t)) ** 2 * variance + float(process.sigma(t)) ** 2,
    )
    start = law(process.t_max)
    x = start[0] + start[1] ** 0.5 * solvers.noise.normal(1, torch.arange(n), 0, 0, (1,), F64)
    sol = solve(SemiLinear(process, denoiser, 1.0), x, solver="torchsde/srk", steps=80, seed=2)
    m, v = law(process.t_min)
    assert abs(float(sol.x.mean()) - m) < 4 * (v / n) ** 0.5 + 2e-3
    assert abs(float(sol.x.var()) / v - 1) < 4 * (2 / n) ** 0.5 + 5e-3
