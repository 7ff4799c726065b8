"""Exponential SDE solvers: DPM-Solver++ SDE, SEEDS, SA-Solver and ER-SDE at every eta.

Nothing here is statistical: laws are exact, from unit impulses in the normals, of which a solve of a linear
problem is an affine function, or from the known normals of a solve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from sdediff.processes import EDM, VE, VP, Cosine, GaussianProcess, RectifiedFlow
from solvers import BrownianPath, noise_scale_eta
from solvers.noise import Noise
from solvers.solver import Request

F64 = torch.float64
INF = math.inf
PROCESS = VP(t_min=0.05)
SPAN = (0.9, 0.1)
ETAS = (0.5, 1.0, 1.5)
Make = Callable[[], solvers.StepSolver]

NAMED = ["dpm++sde", "dpm++2m-sde", "dpm++3m-sde", "seeds-1", "seeds-2", "seeds-3", "sa-solver"]
NAMED += ["er-sde-1", "er-sde-2", "er-sde-3"]
MAKE: dict[str, Make] = {name: lambda name=name: solvers.get(name) for name in NAMED}  # type: ignore[misc]
MAKE |= {
    f"sa-{p}-{q}": lambda p=p, q=q: solvers.SASolver(p, q)  # type: ignore[misc]
    for p, q in ((1, 0), (1, 1), (2, 0), (2, 2), (2, 3), (4, 4))
}
MAKE["er-sde-5th-scale"] = lambda: solvers.ERSDE(3, "sde-5")
every = pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
at_eta = pytest.mark.parametrize("eta", (*ETAS, lambda t: 0.3 + 1.2 * t), ids=(*map(str, ETAS), "eta(t)"))


def uneven(n: int, span: tuple[float, float] = SPAN) -> Tensor:
    """A grid whose steps of time and of lam vary by half and more, up and down."""
    u = torch.linspace(0, 1, n + 1, dtype=F64)
    return span[0] + (u + 0.04 * torch.sin(9 * u) - 0.04 * math.sin(9) * u) * (span[1] - span[0])


def starts(n: int = 5) -> Tensor:
    return solvers.noise.normal(3, torch.arange(n), solvers.Stream.PRIOR, 0, (2,), F64)


@cache
def schedule(process: Any, t: float) -> tuple[float, float]:
    """Alpha and the noise's variance."""
    return float(process.alpha(t)), float(process.sigma(t)) ** 2


def signs(eta: Any = 0.0, process: Any = PROCESS) -> solvers.SemiLinear:
    """A denoiser that is not linear: data of entries +-1 with a Gaussian blur."""

    def denoiser(t: float, x: Tensor) -> Tensor:
        alpha, variance = schedule(process, t)
        total = 0.25 * alpha**2 + variance
        return (0.25 * alpha * x + variance * torch.tanh(alpha * x / total)) / total

    return solvers.SemiLinear(process, denoiser, eta)


def run(
    solver: solvers.StepSolver, problem: Any, grid: Tensor, x: Tensor | None = None, **options: Any
) -> Tensor:
    return solvers.solve(problem, starts() if x is None else x, solver=solver, grid=grid, **options).x


# -- members that are one another -----------------------------------------------------------------------

AT_ZERO: dict[str, tuple[Make, Make]] = {
    "dpm++2m-sde": (MAKE["dpm++2m-sde"], lambda: solvers.DPMSolverPP2M()),
    "dpm++3m-sde": (MAKE["dpm++3m-sde"], lambda: solvers.DPMSolverPP3M()),
    "dpm++sde": (MAKE["dpm++sde"], lambda: solvers.DPMSolverPP2S()),
    "seeds-1": (MAKE["seeds-1"], lambda: solvers.DDIM()),
    "seeds-2": (MAKE["seeds-2"], lambda: solvers.DPMSolverPP2S()),
    "sa-1-0": (MAKE["sa-1-0"], lambda: solvers.DDIM()),
    "sa-2-0": (MAKE["sa-2-0"], lambda: solvers.ExponentialAdamsBashforth(2, corrected="none")),
    "sa-2-3": (lambda: solvers.SASolver(2, 3, "flat"), lambda: solvers.UniPC(2, "bh1")),
    "sa-3-4": (lambda: solvers.SASolver(3, 4, "flat"), lambda: solvers.UniPC(3, "bh1")),
    "er-sde-1": (MAKE["er-sde-1"], lambda: solvers.DDIM()),
    "er-sde-5th-scale": (MAKE["er-sde-5th-scale"], MAKE["er-sde-3"]),
}


@pytest.mark.parametrize("pair", AT_ZERO.values(), ids=AT_ZERO)
def test_without_noise_each_is_its_ode_method(pair: tuple[Make, Make]) -> None:
    ours, ode = (run(make(), signs(), uneven(12)) for make in pair)
    torch.testing.assert_close(ours, ode, rtol=1e-12, atol=1e-13)


@at_eta
@pytest.mark.parametrize("name", ("seeds-1", "sa-1-0", "er-sde-1"))
def test_first_order_members_are_the_ancestral_step(name: str, eta: Any) -> None:
    ours, ddim = (run(make(), signs(eta), uneven(12), seed=5) for make in (MAKE[name], solvers.DDIM))
    torch.testing.assert_close(ours, ddim, rtol=1e-12, atol=1e-13)


def test_power_noise_scales_are_constant_eta() -> None:
    """phi = s^(1 + eta^2); and phi = s^2 takes any eta of the problem."""
    for scale, eta in ((lambda s: s**2, 0.7), (lambda s: s**1.49, 1.0)):
        scaled = run(solvers.ERSDE(3, scale), signs(eta), uneven(12), seed=5)
        plain = run(solvers.ERSDE(3), signs(0.7), uneven(12), seed=5)
        torch.testing.assert_close(scaled, plain, rtol=1e-12, atol=1e-12)


# -- formulas, against quadrature -----------------------------------------------------------------------


def exact_mean(x: Tensor, start: float, end: float, eta: float, value: Callable[[Tensor], Tensor]) -> Tensor:
    """The SDE's mean at `end` when D is a function of lam alone: variation of constants, 64-point Gauss."""
    lam = [float(PROCESS.lam(t)) for t in (start, end)]
    u, w = solvers.exponential.deis.gauss_legendre(64)
    rate, h = 1 + eta**2, lam[1] - lam[0]
    integral = (w * rate * h * torch.exp(-rate * h * (1 - u)) * value(lam[0] + u * h)).sum()
    damped = float(PROCESS.sigma(end) / PROCESS.sigma(start)) * math.exp(-(eta**2) * h)
    return damped * x + float(PROCESS.alpha(end)) * integral


def polynomial(degree: int, of_s: bool) -> Callable[[Tensor], Tensor]:
    return lambda lam: sum((0.4 * (torch.exp(-lam) if of_s else lam) - 0.3) ** j for j in range(degree + 1))  # type: ignore[return-value]


EXACT = {
    "dpm++2m-sde": (0, False),
    "dpm++3m-sde": (2, False),
    "seeds-1": (0, False),
    "seeds-2": (0, False),
    "seeds-3": (2, False),
    "sa-1-1": (0, False),
    "sa-2-0": (1, False),
    "sa-2-2": (1, False),
    "sa-solver": (2, False),
    "sa-4-4": (3, False),
    "er-sde-1": (0, True),
    "er-sde-2": (1, True),
    "er-sde-3": (2, True),
}


@pytest.mark.parametrize(
    ("name", "eta"),
    # SEEDS-2 and -3 have several normals a step: the law of their noise is tested below.
    [(n, e) for n in EXACT for e in (0.0, *ETAS) if e == 0 or n not in ("seeds-2", "seeds-3")],
)
def test_exact_for_polynomials_of_lam_or_of_sigma_over_alpha(name: str, eta: float) -> None:
    """Once the history is full, a step is the exact step of the SDE, its noise included."""
    degree, of_s = EXACT[name]
    value = polynomial(degree, of_s)
    problem = solvers.SemiLinear(
        PROCESS, lambda t, x: value(PROCESS.lam(torch.tensor(t, dtype=F64))).expand_as(x), eta
    )
    solver = MAKE[name]()
    if isinstance(solver, solvers.exponential.multistep.Multistep):
        solver.caution = INF
    grid = uneven(9)
    sol = solvers.solve(problem, starts(), solver=solver, grid=grid, seed=2, save_at=grid)
    assert sol.path is not None
    noise = Noise.like(starts(), 2)
    # From here on the history is full, and no correction is due that is not 0.
    for k, (t, t_next) in list(enumerate(pairwise(grid.tolist())))[max(degree, 1) + 1 :]:
        h = float(PROCESS.lam(t_next) - PROCESS.lam(t))
        std = float(PROCESS.sigma(t_next)) * math.sqrt(-math.expm1(-2 * eta**2 * h))
        moved = sol.path[k + 1] - exact_mean(sol.path[k], t, t_next, eta, value)
        torch.testing.assert_close(moved, std * noise.at(k).normal(), rtol=1e-10, atol=1e-12)


def test_flat_and_published_moments() -> None:
    """The authors' second-order SA-Solver weighs the slope by rho h / 2, and differs by O(h^3) a step."""
    solver = solvers.SASolver(2, 2, "flat")
    assert solver.moments(0.3, 2) == [-math.expm1(-0.3), 0.15]
    assert solver.moments(0.3, 3) == solvers.SASolver(2, 2).moments(0.3, 3)
    apart = []
    for n in (40, 80, 160):
        a, b = (run(solvers.SASolver(2, 2, v), signs(1.0), uneven(n)) for v in ("exact", "flat"))
        c = run(solvers.SASolver(2, 2, "exact"), signs(0.0), uneven(n))
        d = run(solvers.SASolver(2, 2, "flat"), signs(0.0), uneven(n))
        assert not torch.equal(a, b)
        apart.append(float((c - d).abs().max()))
    assert math.log2(apart[0] / apart[2]) / 2 > 1.85


@pytest.mark.parametrize("scale", solvers.NOISE_SCALES)
def test_er_sde_is_the_formula_of_its_paper(scale: str) -> None:
    """The second order, whose difference is the slope of the line: its integral by a fine trapezoidal sum."""
    grid, phi, solver = uneven(9).tolist(), solvers.NOISE_SCALES[scale], solvers.ERSDE(2, scale, INF)
    plan = solver.begin(signs(1.0).tabulate(grid), tuple(grid)).plan
    s = [float(PROCESS.sigma(t) / PROCESS.alpha(t)) for t in grid]
    for k in range(1, 9):
        r = torch.linspace(s[k + 1], s[k], 20001, dtype=F64)
        ends = phi(torch.tensor(s[k : k + 2], dtype=F64))
        ratio, alpha = float(ends[1] / ends[0]), float(PROCESS.alpha(grid[k + 1]))
        slope = (s[k + 1] - s[k] + float(ends[1] * torch.trapezoid(1 / phi(r), r))) / (s[k] - s[k - 1])
        assert plan[k].keep == pytest.approx(alpha / float(PROCESS.alpha(grid[k])) * ratio, rel=1e-12)
        assert plan[k].predict == pytest.approx([alpha * (1 - ratio + slope), -alpha * slope], rel=1e-6)
        assert plan[k].noise == pytest.approx(
            alpha * math.sqrt(s[k + 1] ** 2 - (s[k] * ratio) ** 2), rel=1e-9
        )


@pytest.fixture(scope="module")
def flow() -> Tensor:
    """The probability flow of the blurred signs, to 1e-11, by its own account."""
    coarse, fine = (
        run(solvers.RungeKutta4(), signs(), torch.linspace(*SPAN, n + 1, dtype=F64)) for n in (400, 800)
    )
    torch.testing.assert_close(coarse, fine, rtol=0, atol=1e-10)
    return fine


ORDERED: dict[str, Make] = {
    **{
        f"sa-{p}-{q}": lambda p=p, q=q: solvers.SASolver(p, q)  # type: ignore[misc]
        for p, q in ((1, 0), (3, 0), (1, 1), (3, 1), (1, 2), (2, 2), (3, 2), (2, 3), (3, 4))
    },
    "sa-flat": lambda: solvers.SASolver(2, 2, "flat"),
    "dpm++3m-sde, published": lambda: solvers.DPMSolverPP3MSDE(published=True),
}


@pytest.mark.parametrize("make", ORDERED.values(), ids=ORDERED)
def test_ode_orders_of_members_without_a_name(make: Make, flow: Tensor) -> None:
    """Those with a name are measured in tests/test_solvers_order.py."""
    stated, errors = make().orders.ode, []
    for n in (320, 640) if stated == 1 else (80, 160, 320):
        errors.append(
            float((run(make(), signs(), torch.linspace(*SPAN, n + 1, dtype=F64)) - flow).abs().max())
        )
    observed = [math.log2(a / b) for a, b in pairwise(errors)]
    assert stated is not None and stated - 0.15 <= max(observed) <= stated + 1.2, observed


# -- laws -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Impulses(Noise):
    """Noise in which row r + 2 of the batch has `size` in the r-th normal asked for, and zeros elsewhere."""

    rows: dict[tuple[int, int, int], int] = field(default_factory=dict)
    size: float = 1.0

    def normal(self, stream: int = 1, draw: int = 0, draws: int = 1) -> Tensor:
        row = self.rows.setdefault((self.counter, int(stream), draw), len(self.rows) + 2)
        z = torch.zeros(len(self.indices), *self.shape, dtype=self.dtype)
        z[row : row + 1] = self.size
        return z


def end_law(
    solver: solvers.StepSolver, problem: Any, start: tuple[float, float], grid: list[float], size: float = 1.0
) -> tuple[float, float]:
    """Mean and variance at the end, of a solve that starts from N(mean, variance)."""
    rows: dict[tuple[int, int, int], int] = {}
    for n in (2, 0):  # the first run counts the normals
        n = n or len(rows) + 2
        x = torch.full((n, 1), start[0], dtype=F64)
        x[1] += math.sqrt(start[1])
        noise = Impulses(0, torch.arange(n), (1,), F64, rows=rows, size=size)
        x = solver.integrate(problem, x, Request(tuple(grid), noise)).x
    return float(x[0]), float((x[1:] - x[0]).square().sum())


def gaussian(process: Any, mean: float, variance: float, eta: Any) -> solvers.SemiLinear:
    """Gaussian data, whose denoiser is affine."""

    def denoiser(t: float, x: Tensor) -> Tensor:
        alpha, noise = schedule(process, t)
        return mean + alpha * variance / (alpha**2 * variance + noise) * (x - alpha * mean)

    return solvers.SemiLinear(process, denoiser, eta)


def constant(eta: Any) -> solvers.SemiLinear:
    """Data that are one point: D is constant."""
    return solvers.SemiLinear(PROCESS, lambda t, x: torch.full_like(x, 0.7), eta)


@every
@at_eta
def test_law_of_a_point_is_exact_on_any_grid(make: Make, eta: Any) -> None:
    grid = uneven(3).tolist()
    alpha, sigma = (float(f(grid[0])) for f in (PROCESS.alpha, PROCESS.sigma))
    m, v = end_law(make(), constant(eta), (0.7 * alpha, sigma**2), grid)
    assert m == pytest.approx(0.7 * float(PROCESS.alpha(grid[-1])), rel=1e-12)
    assert v == pytest.approx(float(PROCESS.sigma(grid[-1])) ** 2, rel=1e-12)


@every
def test_a_wrong_diffusion_is_caught(make: Make) -> None:
    """One whose variance is 6 % too large."""
    grid = uneven(3).tolist()
    start = (0.7 * float(PROCESS.alpha(grid[0])), float(PROCESS.sigma(grid[0])) ** 2)
    _, v = end_law(make(), constant(1.0), start, grid, math.sqrt(1.06))
    assert v > 1.01 * float(PROCESS.sigma(grid[-1])) ** 2


@every
@at_eta
def test_marginal_law_of_a_gaussian(make: Make, eta: Any) -> None:
    """Every eta, constant or not, ends with the marginal; the error of 120 steps is small, and shrinks."""
    mean, variance = 0.7, 0.3

    def law(t: float) -> tuple[float, float]:
        alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
        return alpha * mean, alpha**2 * variance + sigma**2

    problem, errors = gaussian(PROCESS, mean, variance, eta), []
    for n in (30, 120):
        grid = uneven(n).tolist()
        (m, v), (m_exact, v_exact) = end_law(make(), problem, law(grid[0]), grid), law(grid[-1])
        errors.append(abs(m - m_exact) + abs(v / v_exact - 1))
    order = make().orders.weak
    assert order is not None
    assert errors[1] < (0.09 if order == 1 else 0.004)
    assert order == 1 or errors[1] < 0.25 * errors[0] + 1e-5


@at_eta
@pytest.mark.parametrize("name", ("seeds-2", "seeds-3"))
def test_noise_inside_a_seeds_step_has_the_exact_joint_law(name: str, eta: Any) -> None:
    """States at the stages and at the end: covariances of the Ornstein-Uhlenbeck noise."""
    seen: list[tuple[float, Tensor]] = []

    def denoiser(t: float, x: Tensor) -> Tensor:
        seen.append((t, x))
        return torch.zeros_like(x)

    problem, grid = solvers.SemiLinear(PROCESS, denoiser, eta), (0.8, 0.3)
    n = 6
    noise = Impulses(0, torch.arange(n), (1,), F64)
    end = MAKE[name]().integrate(problem, torch.zeros(n, 1, dtype=F64), Request(grid, noise)).x
    points = [(t, x[2:-1, 0]) for t, x in seen[1:]] + [(grid[-1], end[2:-1, 0])]
    level = eta(torch.tensor(grid[0])) if callable(eta) else eta
    lam = {t: float(PROCESS.lam(t)) for t in (grid[0], *(t for t, _ in points))}
    for i, (s, x) in enumerate(points):
        for t, y in points[i:]:
            variance = -math.expm1(-2 * float(level) ** 2 * (lam[s] - lam[grid[0]]))
            exact = variance * math.exp(-(float(level) ** 2) * (lam[t] - lam[s]))
            scale = float(PROCESS.sigma(s)) * float(PROCESS.sigma(t))
            assert float((x * y).sum()) == pytest.approx(scale * exact, rel=1e-6)


# -- Brownian paths, eta(t), noise scales -----------------------------------------------------------------


@every
def test_a_given_path_is_followed(make: Make) -> None:
    """On cells that are the grid's steps the path's normals are the solve's own."""
    grid, x = uneven(12), starts()
    own = run(make(), signs(1.0), grid, x, seed=5)
    path = BrownianPath(Noise.like(x, 5), tuple(grid.tolist()))
    driven = run(make(), signs(1.0), grid, x, seed=6, brownian=path)
    if isinstance(make(), solvers.SEEDS2 | solvers.SEEDS3):
        assert torch.isfinite(driven).all()  # inside a step the path has normals of its own
    else:
        torch.testing.assert_close(own, driven, rtol=1e-9, atol=1e-10)


def test_a_noise_scale_solves_the_problem_of_its_eta() -> None:
    """On one path ER-SDE with phi and SEEDS-2 with the eta(t) of phi meet at strong order 1."""
    x, finest = starts(50), 512
    path = BrownianPath(Noise.like(x, 7), tuple(torch.linspace(*SPAN, finest + 1, dtype=F64).tolist()))
    for scale in ("sde-4", "sde-5"):
        eta, errors = noise_scale_eta(PROCESS, scale), []
        for n in (32, 128, 512):
            grid = torch.linspace(*SPAN, n + 1, dtype=F64)
            a = run(solvers.ERSDE(3, scale), signs(1.0), grid, x, brownian=path)
            b = run(solvers.SEEDS2(), signs(eta), grid, x, brownian=path)
            errors.append(float((a - b).square().mean().sqrt()))
        assert errors[0] > 3 * errors[1] > 8 * errors[2], (scale, errors)


@pytest.mark.parametrize("process", (VP(), VE(), EDM(), RectifiedFlow()), ids=lambda p: type(p).__name__)
def test_eta_of_a_noise_scale(process: GaussianProcess) -> None:
    t = torch.linspace(0.2, 0.8, 7, dtype=F64)
    assert torch.allclose(noise_scale_eta(process, lambda s: s**2)(t), torch.ones(7, dtype=F64), atol=1e-10)
    s = process.sigma(t) / process.alpha(t)
    grown = 0.3 * s**0.3 * torch.exp(s**0.3) / (torch.exp(s**0.3) + 10)  # d log(phi/s) / d log s, by hand
    torch.testing.assert_close(noise_scale_eta(process, "sde-5")(t), grown.sqrt(), rtol=1e-9, atol=1e-9)


# -- the interval and its ends ----------------------------------------------------------------------------


class ToTheEnd:
    """Straight paths up to t = 1, where alpha = 0 and lam = -inf."""

    t_min, t_max = 0.01, 1.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        return 1 * t

    def lam(self, t: Tensor) -> Tensor:
        return torch.log((1 - t) / t)

    def d_alpha(self, t: Tensor) -> Tensor:
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def d_lam(self, t: Tensor) -> Tensor:
        return -1 / (t * (1 - t))

    def time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)


@every
@pytest.mark.parametrize("eta", (0.0, 1.0))
def test_from_infinite_noise(make: Make, eta: float) -> None:
    """The first step is DDIM's and no value is lost: point data end with their exact law."""
    process = ToTheEnd()
    problem = solvers.SemiLinear(process, lambda t, x: torch.full_like(x, 0.7), eta)
    grid = torch.linspace(1.0, 0.1, 7, dtype=F64).tolist()
    m, v = end_law(make(), problem, (0.0, 1.0), grid)
    assert m == pytest.approx(0.7 * 0.9, rel=1e-12)
    assert v == pytest.approx(0.01, rel=1e-12)
    x = run(make(), signs(eta, _floats(process)), torch.tensor(grid, dtype=F64))
    assert torch.isfinite(x).all()


class FromData(ToTheEnd):
    """The same down to t = 0, where sigma = 0 and lam = inf."""

    t_min = 0.0


@every
@pytest.mark.parametrize("eta", (0.0, 1.0))
def test_to_no_noise(make: Make, eta: float) -> None:
    """The last step ends on the denoised value itself."""
    problem = solvers.SemiLinear(FromData(), lambda t, x: torch.full_like(x, 0.7), eta)
    grid = torch.linspace(0.9, 0.0, 7, dtype=F64).tolist()
    m, v = end_law(make(), problem, (0.07, 0.81), grid)
    assert m == pytest.approx(0.7, rel=1e-13)
    assert v == 0


def _floats(process: ToTheEnd) -> Any:
    """The process for a denoiser that calls it with floats."""

    class Floats(ToTheEnd):
        def alpha(self, t: Any) -> Tensor:
            return process.alpha(torch.as_tensor(t, dtype=F64))

        def sigma(self, t: Any) -> Tensor:
            return process.sigma(torch.as_tensor(t, dtype=F64))

    return Floats()


@every
@pytest.mark.parametrize(
    "process", (VP(), VE(), EDM(), RectifiedFlow(), Cosine()), ids=lambda p: type(p).__name__
)
def test_times_stay_in_the_interval(make: Make, process: GaussianProcess) -> None:
    seen: list[float] = []

    def denoiser(t: float, x: Tensor) -> Tensor:
        seen.append(t)
        return x / (1 + schedule(process, t)[1])

    for steps in (1, 7):
        sol = solvers.solve(solvers.SemiLinear(process, denoiser, 1.0), starts(), solver=make(), steps=steps)
        assert torch.isfinite(sol.x).all()
    assert seen and min(seen) >= process.t_min and max(seen) <= process.t_max


# -- a solver is not changed by its solves ---------------------------------------------------------------


@every
def test_solves_are_repeatable_and_rows_are_independent(make: Make) -> None:
    solver, grid = make(), uneven(6)
    whole = run(solver, signs(1.0), grid, seed=4)
    run(solver, signs(0.5), uneven(11), seed=1)
    assert torch.equal(run(solver, signs(1.0), grid, seed=4), whole)
    rows = torch.tensor([4, 1])
    part = run(solver, signs(1.0), grid, starts()[rows], seed=4, indices=rows)
    torch.testing.assert_close(part, whole[rows], rtol=1e-12, atol=1e-12)


@every
def test_float32_and_a_corrector(make: Make) -> None:
    """float32 states stay float32; a corrector may move x between steps."""
    assert run(make(), signs(1.0), uneven(6), starts().float()).dtype == torch.float32
    both = solvers.PredictorCorrector(make(), solvers.Langevin(snr=0.05))
    assert torch.isfinite(run(both, signs(1.0), uneven(6))).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: solvers.SASolver(0, 2), "predictor_order=0"),
        (lambda: solvers.SASolver(2, 5), "corrector_order=5"),
        (lambda: solvers.SASolver(2, 2, "steep"), 'give "exact" or "flat"'),  # type: ignore[arg-type]
        (lambda: solvers.ERSDE(4), "order=4"),
        (lambda: solvers.ERSDE(2, "er-9"), "no noise scale named 'er-9'"),
        (
            lambda: run(solvers.ERSDE(2, lambda s: s**0.5), signs(1.0), uneven(3)),
            "grows at least as fast as s",
        ),
        (lambda: Noise.like(starts(), 0).split(0.7, 0.3), "split no step"),
    ],
)
def test_wrong_arguments_are_told(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("name", NAMED)
def test_they_need_the_linear_part(name: str) -> None:
    with pytest.raises(TypeError, match="linear part"):
        solvers.solve(solvers.ODE(lambda t, x: -x), starts(), t=(0.0, 1.0), solver=name, steps=2)


def test_a_split_cuts_the_increment() -> None:
    """Parts of a step: independent unit normals whose increments add up to the step's."""
    noise = Impulses(0, torch.arange(6), (1,), F64)
    parts = [z[2:5, 0] for z in noise.split(0.2, 0.7)]
    gram = torch.stack([torch.stack([(a * b).sum() for a in parts]) for b in parts])
    torch.testing.assert_close(gram, torch.eye(3, dtype=F64), rtol=0, atol=1e-14)
    whole = sum(math.sqrt(h) * z for h, z in zip((0.2, 0.5, 0.3), parts, strict=True))
    torch.testing.assert_close(whole, noise.normal()[2:5, 0], rtol=0, atol=1e-14)
