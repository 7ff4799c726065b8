"""Exponential ODE solvers: their integrals, what they solve exactly, their orders, their relations."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import mpmath
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

import solvers
from sdediff.processes import EDM, VE, VP, Cosine, GaussianProcess, RectifiedFlow
from sdediff.reference import random_mixture
from solvers.exponential.deis import gauss_legendre
from solvers.exponential.integrals import interpolation_weights, moments, polynomial_weights
from solvers.exponential.multistep import Multistep

F64 = torch.float64
INF = math.inf
PROCESS = VP(t_min=0.05)
MIXTURE = random_mixture(2, 3, seed=0, dtype=F64)

NAMES = [
    "dpm++1", "dpm++2s", "dpm++3s", "dpm++2m", "dpm++3m", "dpm-solver-2", "dpm-solver-3", "unipc-1",
    "unipc-2", "unipc-3", "deis-tab1", "deis-tab2", "deis-tab3", "exponential-ab", "ipndm", "edm-heun",
]  # fmt: skip
every_solver = pytest.mark.parametrize("name", NAMES)


def mixture_problem(process: GaussianProcess = PROCESS) -> solvers.SemiLinear:
    return solvers.SemiLinear(process, lambda t, x: MIXTURE.denoise(process, x, t))


def starts(n: int = 4) -> Tensor:
    return solvers.noise.normal(3, torch.arange(n), solvers.Stream.PRIOR, 0, (2,), F64)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


# -- integrals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", (1, 2, 3, 5, 8))
@pytest.mark.parametrize("size", (1e-13, 1e-6, 0.02, 0.7, 1.0, 2.5, 4.999, 5.001, 7.9, 30.0, 200.0))
def test_moments_against_forty_digits(size: float, count: int) -> None:
    with mpmath.workdps(40):
        for z in (size, -size):
            for j, value in enumerate(moments(z, count)):
                exact = z * mpmath.hyp1f1(j + 1, j + 2, z) * mpmath.exp(-z) / (j + 1)
                assert type(value) is float
                assert abs((value - exact) / exact) < 1e-13, (z, j)


def test_moments_of_a_step_from_infinity() -> None:
    assert moments(INF, 4) == [1.0] * 4


@pytest.mark.parametrize("nodes", ([0.0], [0.0, -1.0], [0.0, -0.3, -2.0], [1.0, 0.0, -0.2, -0.9, -1.1]))
def test_interpolation_weights_reproduce_the_moments(nodes: list[float]) -> None:
    wanted = [0.7, -0.2, 0.35, 0.1, 0.9][: len(nodes)]
    weights = interpolation_weights(nodes, wanted)
    for j, moment in enumerate(wanted):
        assert math.isclose(sum(w * u**j for w, u in zip(weights, nodes, strict=True)), moment, abs_tol=1e-13)


def test_equal_steps_have_adams_and_bashforths_weights() -> None:
    """Hairer, Norsett & Wanner (1993), Solving ODEs I, Eq. III.1.5'."""
    weights = interpolation_weights([0.0, -1.0, -2.0, -3.0], [1.0, 1 / 2, 1 / 3, 1 / 4])
    assert weights == pytest.approx([55 / 24, -59 / 24, 37 / 24, -9 / 24], rel=1e-14)


@pytest.mark.parametrize("rate", (1.0, -1.0, 1.25, 2.0))
@pytest.mark.parametrize("step", (0.01, 0.6, -0.6, 4.0, -4.0))
def test_polynomial_weights_against_quadrature(rate: float, step: float) -> None:
    start, end = 0.4, 0.4 + step
    nodes = [start, start - 0.5 * step, start - 1.7 * step, end]
    weights = polynomial_weights(rate, start, end, nodes)
    for degree in range(4):
        exact, _ = quad(
            lambda lam, degree=degree: rate * math.exp(-rate * (end - lam)) * lam**degree,
            start, end, epsabs=0, epsrel=1e-13,
        )  # fmt: skip
        value = sum(w * lam**degree for w, lam in zip(weights, nodes, strict=True))
        scale = sum(abs(w * lam**degree) for w, lam in zip(weights, nodes, strict=True))
        assert abs(value - exact) < 1e-12 * scale


def test_gauss_legendre_is_exact_to_its_degree() -> None:
    u, w = gauss_legendre(12)
    for degree in range(24):
        assert math.isclose(float((w * u**degree).sum()), 1 / (degree + 1), rel_tol=1e-13)


def test_deis_weights_against_quadrature() -> None:
    """Integral of a Lagrange polynomial in t against d(sigma/alpha), over the last step of an uneven grid."""
    times = (0.9, 0.5, 0.35, 0.06)
    now = solvers.DEIS(2, caution=INF).begin(mixture_problem(), times).plan[-1]
    sigma, alpha, lam = (float(f(times[-1])) for f in (PROCESS.sigma, PROCESS.alpha, PROCESS.lam))
    assert math.isclose(sigma / alpha, math.exp(-lam), rel_tol=1e-14)
    for weight, node in zip(now.predict, (0.35, 0.5, 0.9), strict=True):
        others = [s for s in (0.35, 0.5, 0.9) if s != node]

        def integrand(t: float, node: float = node, others: Sequence[float] = others) -> float:
            basis = math.prod((t - s) / (node - s) for s in others)
            return basis * -float(PROCESS.d_lam(t)) * math.exp(-float(PROCESS.lam(t)))

        exact, _ = quad(integrand, 0.35, 0.06, epsabs=0, epsrel=1e-11)
        assert math.isclose(weight, alpha * exact, rel_tol=1e-9)


# -- what is exact ---------------------------------------------------------------------------------------


def exact_step(
    process: GaussianProcess,
    t: float,
    t_next: float,
    x: float,
    function: Callable[[float], float],
    rate: int,
) -> float:
    """The flow where D (rate 1) or eps (rate -1) is a function of lam alone."""
    now, end = float(process.lam(t)), float(process.lam(t_next))
    integral, _ = quad(
        lambda lam: rate * math.exp(-rate * (end - lam)) * function(lam), now, end, epsabs=1e-13, epsrel=1e-12
    )
    keep, scale = (process.sigma, process.alpha) if rate > 0 else (process.alpha, process.sigma)
    return float(keep(t_next) / keep(t)) * x + float(scale(t_next)) * integral


def given(process: GaussianProcess, function: Callable[[float], float], data: bool) -> solvers.SemiLinear:
    """The problem where D or eps is this function of t, whatever x."""

    def denoiser(t: float, x: Tensor) -> Tensor:
        value = torch.full_like(x, function(t))
        return value if data else (x - float(process.sigma(t)) * value) / float(process.alpha(t))

    return solvers.SemiLinear(process, denoiser)


UNEVEN = (0.8, 0.72, 0.6, 0.45, 0.4, 0.22, 0.13)


@pytest.mark.parametrize("times", (UNEVEN, UNEVEN[::-1]), ids=("to data", "to noise"))
@pytest.mark.parametrize("prediction", ("data", "noise"))
@pytest.mark.parametrize("order", (1, 2, 3, 4, 5))
def test_adams_bashforth_is_exact_on_polynomials_in_lam(
    order: int, prediction: Any, times: tuple[float, ...]
) -> None:
    """Every step that has its history, on a grid of uneven steps; one degree more is not exact."""
    rate = 1 if prediction == "data" else -1
    solver = solvers.ExponentialAdamsBashforth(order, prediction, corrected="none", caution=INF)
    x = torch.full((1, 1), 0.3, dtype=F64)
    for degree in (order - 1, order):
        function = lambda lam, degree=degree: (0.5 + lam) ** degree - 0.2  # noqa: E731
        problem = given(PROCESS, lambda t: function(float(PROCESS.lam(t))), rate > 0)  # noqa: B023
        path = solvers.solve(problem, x, solver=solver, grid=times, save_at=times).path
        assert path is not None
        errors = [
            abs(
                float(path[k + 1])
                - exact_step(PROCESS, times[k], times[k + 1], float(path[k]), function, rate)
            )
            for k in range(order - 1, len(times) - 1)
        ]
        assert (max(errors) < 1e-11) == (degree < order), errors


def test_deis_is_exact_on_polynomials_in_t_and_ipndm_on_equal_steps_of_its_clock() -> None:
    cubic = lambda t: 0.3 - t + 2 * t**2 - 1.5 * t**3  # noqa: E731
    x = torch.full((1, 1), 0.3, dtype=F64)
    even = tuple(torch.linspace(4.0, 0.2, 8, dtype=F64).tolist())
    cases: tuple[tuple[solvers.Solver, GaussianProcess, tuple[float, ...]], ...] = (
        (solvers.DEIS(3, INF, published=True), PROCESS, UNEVEN),
        (solvers.DEIS(3, INF, published=True), EDM(), even),
        (solvers.IPNDM(), EDM(), even),
    )
    for solver, process, times in cases:
        path = solvers.solve(given(process, cubic, False), x, solver=solver, grid=times, save_at=times).path
        assert path is not None
        of_lam = lambda lam, process=process: cubic(float(process.time(lam)))  # noqa: E731
        for k in range(3, len(times) - 1):
            exact = exact_step(process, times[k], times[k + 1], float(path[k]), of_lam, -1)
            assert math.isclose(float(path[k + 1]), exact, abs_tol=1e-11), (solver, k)


@pytest.mark.parametrize(
    ("solver", "degree", "rate"),
    (
        (solvers.DPMSolverPP2S(), 0, 1),
        (solvers.DPMSolverPP3S(), 1, 1),
        (solvers.DPMSolver2(), 0, -1),
        (solvers.DPMSolver3(), 1, -1),
        (solvers.EDMHeun(), 0, -1),
    ),
    ids=repr,
)
def test_one_step_methods_are_exact_on_these(solver: solvers.StepSolver, degree: int, rate: int) -> None:
    function = lambda lam: (0.5 + lam) ** degree  # noqa: E731
    problem = given(PROCESS, lambda t: function(float(PROCESS.lam(t))), rate > 0)
    for t, t_next in ((0.8, 0.3), (0.3, 0.8)):
        x = torch.full((1, 1), 0.3, dtype=F64)
        value = float(solvers.solve(problem, x, solver=solver, grid=(t, t_next)).x)
        assert math.isclose(value, exact_step(PROCESS, t, t_next, 0.3, function, rate), rel_tol=1e-12)


# -- orders where tests/test_solvers_order.py does not look ----------------------------------------------


@pytest.fixture(scope="module")
def encoded() -> Tensor:
    """The flow to noise."""
    return solvers.solve(mixture_problem(), starts(), (0.4, 0.9), "scipy/DOP853", rtol=1e-13, atol=1e-13).x


def slope(solver: str | solvers.Solver, exact: Tensor, steps: int) -> float:
    errors = []
    for n in (steps, 2 * steps):
        x = solvers.solve(mixture_problem(), starts(), (0.4, 0.9), solver, steps=n, grid="uniform").x
        errors.append(float((x - exact).norm()))
    return math.log2(errors[0] / errors[1])


@every_solver
def test_order_on_the_way_to_noise(name: str, encoded: Tensor) -> None:
    order = solvers.get(name).orders.ode
    assert order is not None
    assert order - 0.15 < slope(name, encoded, 100) < order + 0.6


RK4 = solvers.RungeKutta4()


@pytest.mark.parametrize(
    ("solver", "order"),
    (
        (solvers.ExponentialAdamsBashforth(3, corrected="none"), 2),
        (solvers.DEIS(2, published=True), 2),
        (solvers.DPMSolverPP3M(published=True), 2),
        (solvers.ExponentialAdamsBashforth(3, "noise", corrected="none"), 2),
        (solvers.ExponentialAdamsBashforth(4), 3),
        (solvers.DEIS(3), 3),
        (solvers.ExponentialAdamsBashforth(4, starter=RK4), 4),
        (solvers.ExponentialAdamsBashforth(4, "noise", starter=RK4), 4),
        (solvers.ExponentialAdamsBashforth(5, starter=RK4), 5),
        (solvers.ExponentialAdamsBashforth(2, "noise", corrected="all"), 3),
    ),
    ids=repr,
)
def test_the_start_decides_the_order(solver: solvers.Solver, order: int, encoded: Tensor) -> None:
    """To noise, where the first step's error is not a small one."""
    assert solver.orders.ode == order
    assert abs(slope(solver, encoded, 100) - order) < 0.15


# -- a step from or to infinite lam ----------------------------------------------------------------------

FLOW = RectifiedFlow()
NOISE, DATA = 1.0, 0.1


@pytest.fixture(scope="module", params=(FLOW, Cosine()), ids=repr)
def corner(request: Any) -> tuple[solvers.SemiLinear, dict[tuple[float, float], Tensor]]:
    """A problem whose alpha vanishes at time 1, and its flow from there and to there."""
    problem = mixture_problem(request.param)
    assert float(request.param.alpha(NOISE)) == 0.0
    spans = ((NOISE, DATA), (DATA, NOISE))
    tight = {"rtol": 1e-10, "atol": 1e-10}
    return problem, {s: solvers.solve(problem, starts(), s, "scipy/DOP853", **tight).x for s in spans}


@pytest.mark.parametrize("name", [*NAMES, "ddim"])
def test_the_end_where_alpha_vanishes_is_reached_and_left(
    name: str, corner: tuple[solvers.SemiLinear, dict[tuple[float, float], Tensor]]
) -> None:
    problem, flow = corner
    for span, exact in flow.items():
        errors = []
        for steps in (32, 128):
            x = solvers.solve(problem, starts(), span, name, steps=steps, grid="uniform").x
            assert bool(torch.isfinite(x).all())
            errors.append(float((x - exact).norm()))
        assert errors[1] < 0.35 * errors[0] and errors[1] < 0.3, errors


def test_the_infinite_step_itself_is_ddims() -> None:
    for times in ((1.0, 0.9), (0.9, 1.0)):
        wanted = solvers.solve(mixture_problem(FLOW), starts(), solver="ddim", grid=times).x
        for name in NAMES:
            x = solvers.solve(mixture_problem(FLOW), starts(), solver=name, grid=times).x
            torch.testing.assert_close(x, wanted, rtol=1e-13, atol=1e-13)


@every_solver
@pytest.mark.parametrize("process", (EDM(), FLOW), ids=repr)
def test_the_last_step_may_go_to_the_data(process: GaussianProcess, name: str) -> None:
    """To sigma = 0, where lam is infinite and alpha 1: what the denoiser says at the last state."""
    problem, grid = mixture_problem(process), (0.8, 0.7, 0.55, 0.4, 0.2, 0.0)
    path = solvers.solve(problem, starts(), solver=name, grid=grid, save_at=grid).path
    assert path is not None
    same(path[-1], MIXTURE.denoise(process, path[-2], 0.2))


# -- orders on a grid ------------------------------------------------------------------------------------


def orders_of(solver: Multistep, times: Sequence[float]) -> list[int]:
    return [len(now.predict) for now in solver.begin(mixture_problem(), tuple(times)).plan]


def log_snr_times(steps: Sequence[float]) -> list[float]:
    lam = torch.tensor([-2.0, *steps], dtype=F64).cumsum(0)
    return PROCESS.time(lam).tolist()


def test_orders_climb_and_fall() -> None:
    times = log_snr_times([0.1] * 7)
    full = solvers.ExponentialAdamsBashforth(4)
    assert orders_of(full, times) == [1, 2, 3, 4, 4, 4, 4]
    assert orders_of(solvers.ExponentialAdamsBashforth(4, lower_final=True), times) == [1, 2, 3, 4, 3, 2, 1]
    assert orders_of(full, times[:3]) == [1, 2]
    assert orders_of(solvers.IPNDM(lower_final=True), times) == [1, 2, 3, 4, 3, 2, 1]


def test_caution_lowers_the_order_where_steps_grow() -> None:
    growing = log_snr_times([0.02 * 2**k for k in range(7)])
    for make in (solvers.ExponentialAdamsBashforth, solvers.UniPC):
        assert orders_of(make(3, caution=INF), growing) == [1, 2, 3, 3, 3, 3, 3]
        assert max(orders_of(make(3), growing)) < 3
        assert max(orders_of(make(3), growing[::-1])) == 3, "steps that shrink amplify less"
    for weights in (now.predict for now in solvers.UniPC(3).begin(mixture_problem(), tuple(growing)).plan):
        limit = {1: 1.0, 2: 2.0, 3: 44 / 12}[len(weights)]
        assert sum(map(abs, weights)) <= 1.25 * limit * abs(sum(weights)) * (1 + 1e-12)


def test_no_correction_feeds_on_itself() -> None:
    """By eps on long steps: its weight times eps's largest slope, 1/sigma, is at most 1."""
    times = tuple(PROCESS.default_grid(5).tolist())
    gains: dict[float, list[float]] = {}
    for caution in (1.25, INF):
        plan = solvers.UniPC(2, prediction="noise", caution=caution).begin(mixture_problem(), times).plan
        gains[caution] = [
            abs(now.correct[0] - now.predict[0]) / now.keep / float(PROCESS.sigma(now.t)) for now in plan
        ]
    assert max(gains[INF]) > 1.5 and max(gains[1.25]) <= 1 + 1e-12
    assert 0 < sum(g > 0 for g in gains[1.25]) < sum(g > 0 for g in gains[INF]) == 4


@pytest.mark.parametrize("process", (PROCESS, VE(), EDM(), Cosine(), FLOW), ids=repr)
def test_caution_leaves_fine_smooth_grids_alone(process: GaussianProcess) -> None:
    """Of every named multistep solver, on the process's own grid and on equal steps of log-SNR."""
    for grid in (process.default_grid(300), solvers.log_snr_grid(process, 300)):
        times = tuple(grid.tolist())
        problem = mixture_problem(process).tabulate(times)
        for name in NAMES:
            solver = solvers.get(name)
            if isinstance(solver, Multistep):
                plan = solver.begin(problem, times).plan
                orders = [len(now.predict) for now in plan]
                assert orders.count(solver.terms) > 290, (name, orders)


@every_solver
def test_plans_hold_python_floats(name: str) -> None:
    """On the hot path nothing is a tensor but the state and what the network says."""

    def leaves(value: Any) -> list[Any]:
        if isinstance(value, dict):
            value = tuple(value.values())
        return [v for part in value for v in leaves(part)] if isinstance(value, tuple) else [value]

    solver = solvers.get(name)
    assert isinstance(solver, solvers.StepSolver)
    plan = solver.begin(mixture_problem(), tuple(log_snr_times([0.3] * 5)))
    assert {type(v) for v in leaves(plan)} <= {float, int, bool, type(None)}


@every_solver
def test_evaluations_a_step(name: str) -> None:
    cost = {"dpm++2s": 2, "dpm++3s": 3, "dpm-solver-2": 2, "dpm-solver-3": 3, "edm-heun": 2}.get(name, 1)
    assert solvers.solve(mixture_problem(), starts(), solver=name, steps=9).nfe.tolist() == [9 * cost] * 4


def test_history_is_no_longer_than_later_steps_use() -> None:
    times = log_snr_times([0.1] * 8)
    for solver, most in ((solvers.UniPC(2), 2), (solvers.UniPC(3), 3), (solvers.DPMSolverPP2M(), 1)):
        state, x = solver.begin(mixture_problem(), tuple(times)), starts()
        kept = []
        for t, t_next in itertools.pairwise(times):
            x, _, state = solver.step(mixture_problem(), t, t_next, x, state, solvers.Noise.like(x, 0))
            kept.append(len(state.values))
        assert max(kept) == most and kept[-1] == 0


# -- relations between methods ---------------------------------------------------------------------------

GRID = log_snr_times([0.24, 0.3, 0.35, 0.4, 0.37, 0.45, 0.5])


def solved(solver: str | solvers.Solver, process: GaussianProcess = PROCESS, grid: Any = GRID) -> Tensor:
    return solvers.solve(mixture_problem(process), starts(), solver=solver, grid=grid).x


class Nothing(solvers.Corrector):
    """Moves x by nothing, which a predictor cannot know."""

    def correct(self, problem: solvers.SemiLinear, t: float, x: Tensor, noise: solvers.Noise) -> Tensor:
        return x


def test_first_order_members_are_ddim() -> None:
    ddim = solved("ddim")
    same(solved("dpm++1"), ddim)
    for prediction in ("data", "noise"):
        same(solved(solvers.ExponentialAdamsBashforth(1, prediction)), ddim)
    assert float((solved("unipc-1") - ddim).norm()) > 1e-3


def test_a_moved_state_is_not_corrected() -> None:
    """UniPC without its corrector is its predictor: DDIM; DPM-Solver++(2M), with bh2; its third-order kin."""
    third = solvers.DPMSolverPP3M()
    third.corrected = "none"
    for order, predictor in ((1, solvers.DDIM()), (2, solvers.DPMSolverPP2M()), (3, third)):
        moved = solved(solvers.PredictorCorrector(solvers.UniPC(order), Nothing()))
        same(moved, solved(predictor))
        assert float((moved - solved(solvers.UniPC(order))).norm()) > 1e-4


def test_unipc_is_a_corrected_adams_bashforth() -> None:
    """From order 3 on B drops out but of the first two steps; the two B differ there only."""
    a, b = (
        solvers.UniPC(3, variant, caution=INF).begin(mixture_problem(), tuple(GRID))
        for variant in ("bh1", "bh2")
    )
    c = solvers.ExponentialAdamsBashforth(3, corrected="all", caution=INF).begin(
        mixture_problem(), tuple(GRID)
    )
    for k in range(len(a.plan)):
        alike = k >= 3
        assert (a.plan[k].correct == pytest.approx(b.plan[k].correct, rel=1e-12)) == (alike or k == 0)
        if alike:
            assert a.plan[k].correct == pytest.approx(c.plan[k].correct, rel=1e-12)


def test_edm_heun_is_heun_in_its_clock() -> None:
    """Under EDM, whose time is the clock; under VP, in x/alpha."""
    process = EDM()
    grid = process.default_grid(9)
    same(solved(solvers.EDMHeun(), process, grid), solved("heun", process, grid))
    ratios = torch.exp(-PROCESS.lam(torch.tensor(GRID, dtype=F64)))
    scale = PROCESS.alpha(torch.tensor(GRID, dtype=F64))
    x = solvers.solve(mixture_problem(process), starts() / scale[0], solver=solvers.EDMHeun(), grid=ratios).x
    torch.testing.assert_close(x * scale[-1], solved(solvers.EDMHeun()), rtol=1e-9, atol=1e-9)


def test_deis_and_its_relatives() -> None:
    """Where t is linear in lam it is Adams-Bashforth on eps; on equal steps of EDM's t it is iPNDM."""
    process = VE(t_min=0.05)
    grid = (1.0, 0.85, 0.6, 0.5, 0.3, 0.2, 0.05)
    for degree in (1, 2, 3):
        adams = solvers.ExponentialAdamsBashforth(degree + 1, "noise")
        same(solved(solvers.DEIS(degree), process, grid), solved(adams, process, grid))
    even = torch.linspace(3.0, 0.3, 10, dtype=F64)
    same(solved(solvers.DEIS(3, published=True), EDM(), even), solved(solvers.IPNDM(), EDM(), even))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("deis-tab1", "deis-tab2", "deis-tab3")])
def test_every_process_is_solved_alike(name: str) -> None:
    """In x/alpha, at the same log-SNRs; DEIS looks at t and differs."""
    process = FLOW
    lam = PROCESS.lam(torch.tensor(GRID, dtype=F64))
    grid = process.time(lam)
    scale = process.alpha(grid) / PROCESS.alpha(torch.tensor(GRID, dtype=F64))
    x = solvers.solve(mixture_problem(process), starts() * scale[0], solver=name, grid=grid).x
    torch.testing.assert_close(x / scale[-1], solved(name), rtol=1e-10, atol=1e-10)


@every_solver
def test_float32_agrees_with_float64(name: str) -> None:
    problem = solvers.SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x.double(), t).to(x.dtype))
    x = solvers.solve(problem, starts().float(), solver=name, grid=GRID).x
    assert x.dtype == torch.float32
    assert float((x - solved(name)).norm() / solved(name).norm()) < 2e-5


# -- churn -----------------------------------------------------------------------------------------------


def test_churn_adds_the_processs_own_noise() -> None:
    """Up to sigma/alpha (1 + gamma), by the process's transition kernel, inside the range of the solve."""
    grid = tuple(PROCESS.default_grid(20).tolist())
    churned = solvers.EDMHeun(churn=5.0, s_min=0.3, s_max=30.0, s_noise=1.0)
    plan = churned.begin(mixture_problem(), grid)
    raised = 0
    for (t, _), now in plan.items():
        ratio = math.exp(-float(PROCESS.lam(t)))
        assert (now.up is not None) == (0.3 <= ratio <= 30.0)
        if now.up is None:
            assert now.t_hat == t
            continue
        raised += 1
        assert math.isclose(math.exp(-float(PROCESS.lam(now.t_hat))), ratio * 1.25, rel_tol=1e-9)
        assert now.up == pytest.approx([float(v) for v in PROCESS.transition(t, now.t_hat)], rel=1e-9)
    assert 5 < raised < 20
    wild = solvers.EDMHeun(churn=1e9).begin(mixture_problem(), grid)
    largest = max(
        math.exp(float(PROCESS.lam(t)) - float(PROCESS.lam(now.t_hat))) for (t, _), now in wild.items()
    )
    assert math.isclose(largest, math.sqrt(2), rel_tol=1e-9), "gamma stops at sqrt 2 - 1"
    assert all(now.t_hat <= grid[0] for now in wild.values())


def test_churn_keeps_the_law_of_a_gaussian() -> None:
    """Mean and variance at the end, 20,000 rows: 5 standard errors, false alarm below 2e-6."""
    mean, variance, n = 0.7, 0.3, 20_000

    def denoiser(t: float, x: Tensor) -> Tensor:
        alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
        return mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)

    alpha, sigma = (float(f(PROCESS.t_max)) for f in (PROCESS.alpha, PROCESS.sigma))
    z = solvers.noise.normal(5, torch.arange(n), solvers.Stream.PRIOR, 0, (1,), F64)
    x = alpha * mean + math.sqrt(alpha**2 * variance + sigma**2) * z
    plain, churned = (
        solvers.solve(
            solvers.SemiLinear(PROCESS, denoiser), x, solver=solvers.EDMHeun(churn), steps=60, seed=2
        ).x
        for churn in (0.0, 20.0)
    )
    alpha, sigma = (float(f(PROCESS.t_min)) for f in (PROCESS.alpha, PROCESS.sigma))
    total = alpha**2 * variance + sigma**2
    assert abs(float(churned.mean()) - alpha * mean) < 5 * math.sqrt(total / n)
    assert abs(float(churned.var()) / total - 1) < 5 * math.sqrt(2 / n)
    assert abs(float(torch.corrcoef(torch.cat([plain, churned], 1).T)[0, 1])) < 0.9, "churn forgets the start"


# -- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    (
        (lambda: solvers.ExponentialAdamsBashforth(0), ValueError, "order=0 .* from 1 to 8"),
        (lambda: solvers.UniPC(2.5), ValueError, "order=2.5 .* from 1 to 8"),
        (lambda: solvers.DEIS(8), ValueError, "degree=8 .* from 1 to 7"),
        (lambda: solvers.UniPC(2, "bh3"), ValueError, 'give "bh1" or "bh2"'),
        (lambda: solvers.ExponentialAdamsBashforth(2, "score"), ValueError, 'give "data" or "noise"'),
        (lambda: solvers.ExponentialAdamsBashforth(2, corrected="some"), ValueError, '"start" or "all"'),
        (lambda: solvers.DPMSolverPP2M(caution=0.5), ValueError, "give at least 1, or inf"),
        (lambda: solvers.ExponentialAdamsBashforth(starter=solvers.UniPC(2)), TypeError, "one-step ODE"),
        (lambda: solvers.ExponentialAdamsBashforth(starter=solvers.Dopri5()), TypeError, "one-step ODE"),
        (lambda: solvers.EDMHeun(churn=-1.0), ValueError, "at least 0"),
        (lambda: solvers.EDMHeun(s_min=2.0, s_max=1.0), ValueError, "s_min not above s_max"),
    ),
)  # fmt: skip
def test_arguments_out_of_range_are_refused(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_churn_on_the_way_to_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="let t fall, or take churn=0"):
        solvers.solve(mixture_problem(), starts(), (0.1, 0.9), solvers.EDMHeun(churn=1.0), steps=3)


def test_the_state_of_another_grid_is_refused() -> None:
    solver, x = solvers.UniPC(2), starts()
    state = solver.begin(mixture_problem(), (0.9, 0.5, 0.1))
    with pytest.raises(ValueError, match=r"begin\(problem, times\) returns for this grid"):
        solver.step(mixture_problem(), 0.9, 0.6, x, state, solvers.Noise.like(x, 0))
