"""Other libraries' solvers: they agree with closed forms and with our own, and their failures are told."""

from __future__ import annotations

import itertools
import math
from functools import cache
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from sdediff.processes import VE, VP, RectifiedFlow
from sdediff.reference import random_mixture
from solvers import ODE, SDE, BrownianPath, Noise, SemiLinear, Status, solve
from solvers.backends import diffusers as diffusers_backend
from solvers.backends import scipy as scipy_backend
from solvers.backends import torchdiffeq as torchdiffeq_backend
from solvers.backends import torchsde as torchsde_backend
from solvers.problems import expand

F32, F64 = torch.float32, torch.float64
SCIPY = [f"scipy/{m}" for m in scipy_backend.METHODS]
TORCHDIFFEQ = [f"torchdiffeq/{m}" for m in torchdiffeq_backend.METHODS]
ADAPTIVE = [n for n in SCIPY + TORCHDIFFEQ if solvers.get(n).adaptive]
TORCHSDE = [f"torchsde/{m}" for m in torchsde_backend.METHODS]
FIXED = [n for n in TORCHDIFFEQ if not solvers.get(n).adaptive]


def rows(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


def test_every_wrapped_method_is_available_and_no_other() -> None:
    wrapped = {n for n in solvers.available() if "/" in n}
    expected = {*SCIPY, *TORCHDIFFEQ, *(f"torchsde/{m}" for m in torchsde_backend.METHODS)}
    expected |= {f"diffusers/{m}" for m in diffusers_backend.METHODS} if find_spec("diffusers") else set()
    assert {n for n in wrapped if not n.startswith("torchode/")} == expected
    for cls in (scipy_backend.SciPy, torchdiffeq_backend.TorchDiffEq, torchsde_backend.TorchSDE):
        with pytest.raises(ValueError, match="take one of"):
            cls("dopri9")


ADAMS = ("explicit_adams", "implicit_adams", "fixed_adams")


@pytest.mark.parametrize("method", ADAMS)
def test_methods_that_suppose_equal_steps_take_no_others(method: str) -> None:
    """torchdiffeq's Adams methods use constant-step coefficients on whatever grid they are given."""
    problem = SemiLinear(VP(t_min=1e-2), lambda t, x: 0.5 * x)
    name = f"torchdiffeq/{method}"
    for grid in ("log-snr", [1.0, 0.5, 0.3]):
        with pytest.raises(ValueError, match="suppose equal steps and this grid's differ"):
            solve(problem, rows(1.0), solver=name, grid=grid)
    assert torch.equal(
        solve(problem, rows(1.0), solver=name, steps=20).x,
        solve(problem, rows(1.0), solver=name, steps=20, grid="uniform").x,
    )
    with pytest.raises(ValueError, match="from 4 to 12"):
        solvers.get(name, max_order=3)


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


@cache
def flow(start: float, end: float) -> tuple[Tensor, Tensor]:
    """Four states at `start` and where the mixture's flow takes them, to 1e-11."""
    problem = SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x, t))
    x = solvers.noise.normal(3, torch.arange(4), 0, 0, (2,), F64)
    return x, solve(problem, x, (start, end), "dopri5", rtol=1e-11, atol=1e-11).x


@pytest.mark.parametrize("name", [n for n in ADAPTIVE if solvers.get(n).order >= 5])
def test_flows_of_a_mixture_agree_with_ours(name: str) -> None:
    problem = SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x, t))
    x, mine = flow(PROCESS.t_max, PROCESS.t_min)
    theirs = solve(problem, x, solver=name, rtol=1e-7, atol=1e-7).x
    torch.testing.assert_close(theirs, mine, rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "native"),
    (("euler", "euler"), ("heun2", "heun"), ("midpoint", None), ("heun3", None), ("rk4", None)),
)
def test_fixed_methods_of_torchdiffeq_on_an_uneven_grid(name: str, native: str | None) -> None:
    """The same step where we have the method, and the method's order on a grid whose steps differ."""
    problem = SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x, t))
    x, exact = flow(0.9, 0.1)
    run = lambda solver, n: solve(problem, x, (0.9, 0.1), solver, steps=n, grid="rho").x  # noqa: E731
    if native is not None:
        torch.testing.assert_close(run(f"torchdiffeq/{name}", 12), run(native, 12), rtol=1e-10, atol=1e-10)
    order = solvers.get(f"torchdiffeq/{name}").order
    errors = [float((run(f"torchdiffeq/{name}", n) - exact).abs().max()) for n in (80, 160)]
    assert order - 0.15 <= math.log2(errors[0] / errors[1]) <= order + 0.6


@pytest.mark.parametrize("name", ADAPTIVE)
def test_statistics_of_adaptive_methods(name: str) -> None:
    """Steps are counted the same whether states are kept or not; kept states include the ends."""
    problem = ODE(lambda t, x: torch.cos(40 * t) * (1 + 0 * x) * 40)
    tol = {1: 1e-3, 2: 1e-3, 3: 1e-5}.get(int(solvers.get(name).order), 1e-6)
    options: dict[str, Any] = dict.fromkeys(("rtol", "atol"), tol)
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
    if drift is blow_up and name == "torchdiffeq/adaptive_heun":
        pytest.skip("thousands of steps towards the pole, which its four relatives reach sooner")
    options = dict.fromkeys(("rtol", "atol"), 1e-4 if solvers.get(name).order <= 3 else 1e-5)
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


ITERATED = ("torchdiffeq/implicit_adams", "torchdiffeq/fixed_adams")  # to one tolerance for the batch


@pytest.mark.parametrize("name", [n for n in FIXED + TORCHSDE if n not in ITERATED])
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
    linear = solvers.get(name).needs_linear_part
    problem = SemiLinear(PROCESS, lambda t, x: 0.5 * x) if linear else ODE(lambda t, x: -x)
    how = {} if solvers.get(name).adaptive else {"steps": 8}
    assert not solve(problem, rows(1.0), (0.9, 0.5), name, **how).x.requires_grad


# -- one sample at a time --------------------------------------------------------------------------------

COUPLED = [n for n in SCIPY + TORCHDIFFEQ if solvers.get(n).batch_coupled]


@pytest.mark.parametrize("name", COUPLED)
def test_one_sample_at_a_time_no_sample_depends_on_its_batch_mates(name: str) -> None:
    """A stiff, an easy and a failing row: each as alone, and only the failing one fails."""

    def drift(t: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        return torch.where(x > 2, math.nan, -rate * (x - torch.cos(t).reshape(-1, 1)))

    rate, x = rows(40.0, 0.5, -3.0), rows(0.1, -0.4, 1.5)
    solver = solvers.get(name, per_sample=True)
    assert not solver.batch_coupled
    adaptive = dict.fromkeys(("rtol", "atol"), 1e-3 if solver.order < 3 else 1e-6)
    how: dict[str, Any] = adaptive if solver.adaptive else {"steps": 300}
    whole = solve(ODE(drift, (rate,)), x, (0.0, 1.0), solver, save_at=[0.0, 1.0], **how)
    assert whole.ok.tolist() == [True, True, False] and whole.path is not None
    assert solver.adaptive is False or int(whole.nfe[0]) > 2 * int(whole.nfe[1])
    for row in range(2):
        keep = torch.tensor([row])
        alone = solve(ODE(drift, (rate[keep],)), x[keep], (0.0, 1.0), name, save_at=[0.0, 1.0], **how)
        assert alone.path is not None and torch.equal(alone.path[:, 0], whole.path[:, row])
        for field in ("x", "t", "nfe", "accepted", "rejected", "status"):
            assert torch.equal(getattr(alone, field)[0], getattr(whole, field)[row]), field


# -- implicit steps --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ITERATED)
def test_steps_that_do_not_converge_are_a_failure_not_a_warning(name: str) -> None:
    sol = solve(
        ODE(lambda t, x: -300 * torch.sin(x)), rows(1.0, 0.5), (0.0, 1.0), name, steps=50, save_at=[0.0, 1.0]
    )
    assert sol.status.tolist() == [int(Status.FOREIGN_FAILURE)] * 2
    assert 0 < float(sol.t[0]) < 1 and bool(torch.isfinite(sol.x).all())
    assert sol.path is not None and bool(torch.isnan(sol.path[-1]).all())
    assert "the wrapped solver gave up" in sol.describe_failure()


@pytest.mark.parametrize(
    ("method", "max_order"),
    (("explicit_adams", 4), ("explicit_adams", 5), ("implicit_adams", 4), ("fixed_adams", 4)),
)
def test_orders_of_adams_methods(method: str, max_order: int) -> None:
    problem = ODE(lambda t, x: torch.stack([x[:, 1], -x[:, 0] + 0.2 * torch.sin(3 * t)], dim=1))
    x = torch.tensor([[1.0, 0.3]], dtype=F64)
    exact = solve(problem, x, (2.0, 0.0), "scipy/DOP853", rtol=1e-13, atol=1e-14).x
    solver = solvers.get(f"torchdiffeq/{method}", max_order=max_order, rtol=1e-10, atol=1e-12)
    errors = [
        float((solve(problem, x, (2.0, 0.0), solver, steps=n).x - exact).abs().max()) for n in (80, 160)
    ]
    slope = math.log2(errors[0] / errors[1])
    assert solver.order - 0.15 <= slope <= solver.order + 1.3, (solver.order, slope)


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


@cache
def schedule(t: float) -> tuple[float, float]:
    """Alpha and the noise's variance."""
    return float(PROCESS.alpha(t)), float(PROCESS.sigma(t)) ** 2


def blurred_signs(eta: float) -> SemiLinear:
    """Data of independent entries, +-1 with a Gaussian blur: nonlinear but nowhere steep."""

    def denoiser(t: float | Tensor, x: Tensor) -> Tensor:
        if isinstance(t, Tensor):
            alpha, variance = (expand(c, x) for c in (PROCESS.alpha(t), PROCESS.sigma(t) ** 2))
        else:
            alpha, variance = schedule(t)
        total = 0.25 * alpha**2 + variance
        return (0.25 * alpha * x + variance * torch.tanh(alpha * x / total)) / total

    return SemiLinear(PROCESS, denoiser, eta)


def grid(steps: int) -> Tensor:
    return torch.linspace(0.9, 0.2, steps + 1, dtype=F64)


@cache
def strong_truth() -> tuple[Tensor, BrownianPath, Tensor]:
    """100 starts, a path, and where a native method of 1024 steps takes them along it."""
    x = solvers.noise.normal(3, torch.arange(100), 0, 0, (2,), F64)
    path = BrownianPath(Noise.like(x, 0), tuple(grid(128).tolist()))
    return x, path, solve(blurred_signs(1.0), x, solver="stochastic-heun", grid=grid(1024), brownian=path).x


def strong_slope(name: str, first: int = 16) -> float:
    """From root mean square errors of 100 rows on one path, against a native method 16 times finer."""
    x, path, truth = strong_truth()

    def error(steps: int) -> float:
        sol = solve(blurred_signs(1.0), x, solver=name, grid=grid(steps), brownian=path)
        return float((sol.x - truth).square().mean().sqrt())

    return math.log2(error(first) / error(4 * first)) / 2


@cache
def blurred_flow() -> tuple[Tensor, Tensor]:
    """20 starts, and where the flow of blurred signs takes them from 0.9 to 0.2."""
    x = solvers.noise.normal(3, torch.arange(20), 0, 0, (2,), F64)
    return x, solve(blurred_signs(0.0), x, (0.9, 0.2), "dopri5", rtol=1e-11, atol=1e-11).x


@pytest.mark.parametrize("method", [m for m in torchsde_backend.METHODS if m != "srk"])
def test_orders_of_torchsde_methods_for_a_reverse_diffusion(method: str) -> None:
    x, exact = blurred_flow()
    name, orders = f"torchsde/{method}", solvers.get(f"torchsde/{method}").orders
    assert orders.ode is not None and orders.strong is not None
    errors = [
        float((solve(blurred_signs(0.0), x, (0.9, 0.2), name, steps=n, grid="uniform").x - exact).abs().max())
        for n in (64, 128)
    ]
    ode, strong = (
        math.log2(errors[0] / errors[1]),
        strong_slope(name, 64 if method == "reversible_heun" else 16),
    )
    assert orders.ode - 0.15 <= ode <= orders.ode + 0.6, ode
    assert orders.strong - 0.15 <= strong <= orders.strong + 1.1, strong


@pytest.mark.parametrize("method", ("euler_heun", "heun", "midpoint", "log_ode", "reversible_heun"))
def test_stratonovich_methods_refuse_noise_that_depends_on_the_state(method: str) -> None:
    problem = SDE(lambda t, x: -x, lambda t, x: 0.3 * x, noise="diagonal")
    with pytest.raises(TypeError, match="needs additive noise"):
        solve(problem, rows(1.0), (0.0, 1.0), f"torchsde/{method}", steps=4)


ADAPTIVE_SDE = [m for m in torchsde_backend.METHODS if m not in ("euler", "reversible_heun")]


#: An Ornstein-Uhlenbeck process that grows stiffer.
QUICKENING = SDE(lambda t, x: -(1 + 20 * t) * x, lambda t, x: torch.ones_like(x))


@cache
def ornstein_uhlenbeck() -> tuple[Tensor, Tensor]:
    """Three starts, and where 1024 steps take them along the path of seed 7."""
    x = rows(1.0, -2.0, 0.3)
    path = BrownianPath(Noise.like(x, 7), (0.0, 1.0))
    fine = torch.linspace(0, 1, 1025, dtype=F64)
    return x, solve(QUICKENING, x, solver="stochastic-heun", grid=fine, brownian=path).x


def test_methods_of_torchsde_that_can_be_adaptive() -> None:
    assert all(solvers.get(f"torchsde/{method}", adaptive=True).adaptive for method in ADAPTIVE_SDE)


@pytest.mark.parametrize("method", ("milstein", "srk", "heun"))  # the loop and the clock are those of all
def test_adaptive_torchsde_follows_the_path(method: str) -> None:
    """Ornstein-Uhlenbeck on one path: the error falls with the tolerance, rejected steps and all."""
    x, truth = ornstein_uhlenbeck()
    errors, nfe = [], []
    for tol in (1e-1, 5e-3):
        solver = solvers.get(f"torchsde/{method}", adaptive=True)
        sol = solve(QUICKENING, x, (0.0, 1.0), solver, rtol=tol, atol=tol, seed=7, save_at=[0.0, 0.4, 1.0])
        assert bool(sol.ok.all()) and sol.t.tolist() == [1.0] * 3 and solver.batch_coupled
        assert sol.path is not None and torch.equal(sol.path[-1], sol.x) and torch.equal(sol.path[0], x)
        errors.append(float((sol.x - truth).abs().max()))
        nfe.append(int(sol.nfe[0]))
    assert errors[1] < 0.5 * errors[0] and errors[1] < 0.03, errors
    assert nfe == sorted(nfe) and int(sol.rejected[0]) + int(sol.accepted[0]) > 20


def test_adaptive_torchsde_one_sample_at_a_time() -> None:
    solver = solvers.get("torchsde/srk", adaptive=True, per_sample=True)
    assert not solver.batch_coupled
    x, keep, loose = rows(1.0, -2.0), torch.tensor([1]), {"rtol": 2e-2, "atol": 2e-2}
    whole = solve(QUICKENING, x, (0.0, 1.0), solver, seed=3, **loose)
    alone = solve(QUICKENING, x[keep], (0.0, 1.0), solver, seed=3, indices=keep, **loose)
    assert torch.equal(whole.x[keep], alone.x) and int(whole.nfe[1]) == int(alone.nfe[0])


def test_adaptive_torchsde_tells_its_failures() -> None:
    still = lambda t, x: 0.1 * torch.ones_like(x)  # noqa: E731
    cases = {
        Status.NON_FINITE: (SDE(lambda t, x: torch.where(t > 0.5, math.nan, -x), still), {}),
        Status.MAX_NFE: (SDE(lambda t, x: -x, still), {"max_nfe": 200, "rtol": 1e-6, "atol": 1e-6}),
        Status.STEP_TOO_SMALL: (SDE(lambda t, x: 1e3 * x**2, still), {}),
    }
    for status, (problem, options) in cases.items():
        solver = solvers.get("torchsde/heun", adaptive=True, **options)
        sol = solve(problem, rows(1.0, 2.0), (0.0, 1.0), solver, save_at=[0.0, 1.0])
        assert sol.status.tolist() == [int(status)] * 2, (status, sol.status)
        assert 0 <= float(sol.t[0]) < 0.9 and bool(torch.isfinite(sol.x).all())
        assert sol.path is not None and bool(torch.isnan(sol.path[-1]).all())
    for method in ("euler", "reversible_heun"):
        with pytest.raises(ValueError, match="adaptive steps of torchsde's"):
            solvers.get(f"torchsde/{method}", adaptive=True)


# -- diffusers -------------------------------------------------------------------------------------------

needs_diffusers = pytest.mark.skipif(not find_spec("diffusers"), reason="diffusers is not installed")
SCHEDULERS = diffusers_backend.METHODS


@needs_diffusers
@pytest.mark.parametrize(
    "process", (VP(t_min=1e-2), VE(sigma_max=20.0), RectifiedFlow()), ids=lambda p: type(p).__name__
)
@pytest.mark.parametrize(
    ("theirs", "ours", "eta", "close"),
    (
        ("DDIM", "ddim", 0.0, 1e-12), ("DDIM", "ancestral", 1.0, 1e-12), ("DDPM", "ancestral", 1.0, 1e-12),
        ("EulerDiscrete", "ddim", 0.0, 1e-5), ("EulerAncestralDiscrete", "ancestral", 1.0, 1e-5),
        ("EDMEuler", "ddim", 0.0, 1e-5), ("FlowMatchEulerDiscrete", "ddim", 0.0, 1e-5),
        ("HeunDiscrete", "edm-heun", 0.0, 1e-12), ("IPNDM", "ipndm", 0.0, 1e-12),
        ("SASolver", "ddim", 0.0, None),
    ),
)  # fmt: skip
def test_schedulers_on_our_grids_are_our_solvers(
    theirs: str, ours: str, eta: float, close: float | None, process: Any
) -> None:
    """The same grid and noise, any process: to rounding (of float32, where diffusers computes in it)."""
    task = SemiLinear(process, lambda t, x: MIXTURE.denoise(process, x, t), eta)
    x = process.prior_std * solvers.noise.normal(3, torch.arange(6), 0, 0, (2,), F64)
    run = lambda name: solve(task, x, solver=name, steps=12, seed=4).x  # noqa: E731
    if close is None:
        assert bool(torch.isfinite(run(f"diffusers/{theirs}")).all())
        return
    torch.testing.assert_close(run(f"diffusers/{theirs}"), run(ours), rtol=close, atol=close)


@needs_diffusers
@pytest.mark.parametrize("method", SCHEDULERS)
def test_ode_orders_of_schedulers(method: str) -> None:
    """On a mixture's flow; those that compute in float32 are measured where that does not show."""
    task = SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x, t))
    x, exact = flow(0.9, 0.1)
    solver = solvers.get(f"diffusers/{method}")
    fine = 120 if method == "LMSDiscrete" else 240  # its coefficients are integrals that SciPy computes
    errors = [
        float((solve(task, x, (0.9, 0.1), solver, steps=n, grid="uniform").x - exact).abs().max())
        for n in (60, fine)
    ]
    slope, order = math.log(errors[0] / errors[1], fine / 60), solver.order
    assert order - 0.15 <= slope <= order + 1.6, slope


@needs_diffusers
@pytest.mark.parametrize("method", [m for m, spec in SCHEDULERS.items() if spec.noisy])
def test_noisy_schedulers_converge_to_the_path_and_keep_the_law(method: str) -> None:
    """Strongly, of order 1 on one path; mean and variance of 2000 rows within 4 sigma (6e-5 each)."""
    assert strong_slope(f"diffusers/{method}") >= 0.85
    mean, variance, n = 0.7, 0.3, 2000

    def denoiser(t: float, x: Tensor) -> Tensor:
        alpha, noise = schedule(t)
        return mean + alpha * variance / (alpha**2 * variance + noise) * (x - alpha * mean)

    alphas, sigmas = ([float(f(t)) for t in (1.0, PROCESS.t_min)] for f in (PROCESS.alpha, PROCESS.sigma))
    spread = [alphas[i] ** 2 * variance + sigmas[i] ** 2 for i in (0, 1)]
    x = alphas[0] * mean + spread[0] ** 0.5 * solvers.noise.normal(1, torch.arange(n), 0, 0, (1,), F64)
    sol = solve(SemiLinear(PROCESS, denoiser, 1.0), x, solver=f"diffusers/{method}", steps=100, seed=2)
    assert abs(float(sol.x.mean()) - alphas[1] * mean) < 4 * (spread[1] / n) ** 0.5 + 2e-3
    assert abs(float(sol.x.var()) / spread[1] - 1) < 4 * (2 / n) ** 0.5 + 2e-2


@needs_diffusers
def test_schedulers_begin_where_alpha_vanishes() -> None:
    task = SemiLinear(RectifiedFlow(), lambda t, x: 0.5 * torch.tanh(x))
    for method in SCHEDULERS:
        for t in ((1.0, 0.1), (0.1, 1.0)):
            sol = solve(task, rows(1.0), t, f"diffusers/{method}", steps=5, grid="uniform")
            assert bool(sol.ok.all()) and sol.t.tolist() == [t[1]], method
        assert bool(
            solve(task, rows(1.0), (1.0, 0.1), f"diffusers/{method}", steps=1, grid="uniform").ok.all()
        )


@needs_diffusers
def test_schedulers_leave_torchs_generator_alone_and_take_options() -> None:
    task = SemiLinear(PROCESS, lambda t, x: 0.5 * torch.tanh(x), 1.0)
    before = torch.get_rng_state()
    first = solve(task, rows(1.0), solver="diffusers/DDPM", steps=5, seed=1).x
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first, solve(task, rows(1.0), solver="diffusers/DDPM", steps=5, seed=1).x)
    clipped = solvers.get("diffusers/DDPM", clip_sample=True, clip_sample_range=0.01)
    assert "clip_sample=True" in repr(clipped)
    assert not torch.equal(first, solve(task, rows(1.0), solver=clipped, steps=5, seed=1).x)
    with pytest.raises(TypeError, match="has no option 'order'"):
        solvers.get("diffusers/DDIM", order=3)
    with pytest.raises(ValueError, match="take one of DDIM"):
        diffusers_backend.Diffusers("DDI")
    for eta in (0.5, lambda t: 0.5):
        with pytest.raises(TypeError, match="knows eta=0 and eta=1 only"):
            solve(SemiLinear(PROCESS, lambda t, x: x, eta), rows(1.0), solver="diffusers/DDIM", steps=3)
    half = SemiLinear(PROCESS, lambda t, x: 0.5 * x, 0.5)
    assert bool(solve(half, rows(1.0), solver="diffusers/SASolver", steps=6).ok.all())


@needs_diffusers
def test_a_failure_inside_a_scheduler_is_a_status_and_a_users_own_error_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import diffusers

    task = SemiLinear(PROCESS, lambda t, x: 0.5 * x)
    original = diffusers.DDIMScheduler.step

    def step(self: Any, output: Tensor, t: int, *rest: Any, **options: Any) -> Any:
        if t <= 2:
            raise RuntimeError("singular")
        return original(self, output, t, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(diffusers.DDIMScheduler, "step", step)
        grid = PROCESS.default_grid(5).tolist()
        sol = solve(task, rows(1.0, 2.0), solver="diffusers/DDIM", grid=grid, save_at=[grid[0], grid[-1]])
    assert sol.status.tolist() == [int(Status.FOREIGN_FAILURE)] * 2 and sol.t.tolist() == [grid[3]] * 2
    assert (
        sol.path is not None and bool(torch.isnan(sol.path[-1]).all()) and bool(torch.isfinite(sol.x).all())
    )

    def mine(t: float, x: Tensor) -> Tensor:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        solve(SemiLinear(PROCESS, mine), rows(1.0), solver="diffusers/DDIM", steps=3)
