"""Processes against formulas from the literature, mpmath, autograd and simulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import pytest
import torch
from scipy.stats import chi2
from torch import Tensor

import sdediff
import solvers
from sdediff.processes import GaussianProcess

F64 = torch.float64
PI = math.pi


def own(t_max: float = 0.99) -> GaussianProcess:
    """A process that knows its alpha and sigma only: bisection inverse, autograd derivatives."""
    return GaussianProcess(alpha=lambda t: 1 - t**2, sigma=lambda t: t.sqrt(), t_min=1e-3, t_max=t_max)


def integral(t):
    return 0.1 * t + 0.5 * 19.9 * t**2


PROCESSES: dict[str, GaussianProcess] = {
    "VP": sdediff.VP(),
    "SubVP": sdediff.SubVP(),
    "VE": sdediff.VE(),
    "Cosine": sdediff.Cosine(),
    "EDM": sdediff.EDM(),
    "RectifiedFlow": sdediff.RectifiedFlow(),
    "own": own(),
}
every_process = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES.keys())

#: f and g^2 of dx = f x dt + g dW, written out (Song et al. 2021, Eqs. 9, 11, 13; Karras et al. 2022, Eq. 1
#: with sigma = t; the last three from alpha'/alpha and d(sigma^2)/dt - 2 f sigma^2 by hand).
FORWARD: dict[str, tuple[Callable, Callable]] = {
    "VP": (lambda t: -(0.1 + 19.9 * t) / 2, lambda t: 0.1 + 19.9 * t),
    "SubVP": (
        lambda t: -(0.1 + 19.9 * t) / 2,
        lambda t: (0.1 + 19.9 * t) * -math.expm1(-2 * integral(t)),
    ),
    "VE": (lambda t: 0.0, lambda t: 2 * (0.01 * 5000**t) ** 2 * math.log(5000)),
    "EDM": (lambda t: 0.0, lambda t: 2 * t),
    "RectifiedFlow": (lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
    "Cosine": (lambda t: -PI / 2 * math.tan(PI * t / 2), lambda t: PI * math.tan(PI * t / 2)),
    "own": (lambda t: -2 * t / (1 - t**2), lambda t: 1 + 4 * t**2 / (1 - t**2)),
}

#: alpha and sigma in mpmath.
SCHEDULES: dict[str, tuple[Callable, Callable]] = {
    "VP": (lambda t: mpmath.exp(-integral(t) / 2), lambda t: mpmath.sqrt(1 - mpmath.exp(-integral(t)))),
    "SubVP": (lambda t: mpmath.exp(-integral(t) / 2), lambda t: 1 - mpmath.exp(-integral(t))),
    "VE": (lambda t: mpmath.mpf(1), lambda t: mpmath.mpf("0.01") * mpmath.mpf(5000) ** t),
    "EDM": (lambda t: mpmath.mpf(1), lambda t: t),
    "RectifiedFlow": (lambda t: 1 - t, lambda t: t),
    "Cosine": (lambda t: mpmath.cos(mpmath.pi * t / 2), lambda t: mpmath.sin(mpmath.pi * t / 2)),
    "own": (lambda t: 1 - t**2, lambda t: mpmath.sqrt(t)),
}
by_name = pytest.mark.parametrize("name", PROCESSES)


def times(process: GaussianProcess, n: int = 41) -> Tensor:
    """Times across the interval, dense at both ends: a logistic sweep, and the ends themselves."""
    u = torch.sigmoid(torch.linspace(-14, 14, n, dtype=F64))
    t = process.t_min + (process.t_max - process.t_min) * u
    return torch.cat([t.new_tensor([process.t_min]), t, t.new_tensor([process.t_max])])


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs() / b.abs().clamp(min=1e-300)).max())


# -- the schedule against formulas that are not the code's ---------------------------------------------------


@by_name
def test_drift_and_diffusion_are_those_of_the_literature(name):
    process, (f, g2) = PROCESSES[name], FORWARD[name]
    t = times(process)
    want_f = torch.tensor([f(s) for s in t.tolist()], dtype=F64)
    want_g2 = torch.tensor([g2(s) for s in t.tolist()], dtype=F64)
    tolerance = (
        1e-10 if name in ("RectifiedFlow", "Cosine", "own") else 1e-12
    )  # 1 - t and tan amplify rounding
    assert torch.allclose(process.drift_coefficient(t), want_f, rtol=tolerance, atol=0)
    assert torch.allclose(process.diffusion(t) ** 2, want_g2, rtol=tolerance, atol=0)


@by_name
def test_alpha_sigma_and_lam_hold_all_digits(name):
    """Against 50 digits: nothing cancels at either end, where a naive 1 - exp(-B) would lose 5 digits."""
    process, (alpha, sigma) = PROCESSES[name], SCHEDULES[name]
    with mpmath.workdps(50):
        for s in times(process).tolist():
            t = mpmath.mpf(s)
            assert float(process.alpha(s)) == pytest.approx(float(alpha(t)), rel=1e-13)
            assert float(process.sigma(s)) == pytest.approx(float(sigma(t)), rel=1e-13)
            lam = float(mpmath.log(alpha(t) / sigma(t)))
            assert float(process.lam(s)) == pytest.approx(lam, rel=1e-12, abs=1e-12)


@every_process
def test_time_inverts_lam(process):
    t = times(process)
    lam = process.lam(t)
    # Rounding of lam (a few ulps of numbers up to 10) moves t by 1 / lam'.
    slack = 1e-14 / process.d_lam(t).abs() + 1e-14 * t
    assert bool(((process.time(lam) - t).abs() <= slack).all())
    # And lam of the time is lam again.
    mid = torch.linspace(float(lam[-1]), float(lam[0]), 501, dtype=F64)
    assert float((process.lam(process.time(mid)) - mid).abs().max()) < 1e-10


@every_process
def test_derivatives_match_autograd_and_each_other(process):
    t = times(process)[1:-1].clone().requires_grad_()
    for value, slope in (
        (process._alpha(t), process.d_alpha(t)),
        (process._sigma(t), process.d_sigma(t)),
        (process._lam(t), process.d_lam(t)),
    ):
        (want,) = torch.autograd.grad(value.sum(), t) if value.requires_grad else (torch.zeros_like(t),)
        assert torch.allclose(slope.detach(), want, rtol=1e-9, atol=1e-14)


@every_process
def test_moments_follow_their_differential_equation(process):
    """d mean/dt = f mean and d var/dt = 2 f var + g^2, by central differences of alpha and sigma^2."""
    t = torch.linspace(0.02, 0.98, 25, dtype=F64) * (process.t_max - process.t_min) + process.t_min
    h = 1e-5 * torch.minimum(t, t.max() * 1.02 - t + 1e-3)
    f, g2 = process.drift_coefficient(t), process.diffusion(t) ** 2
    d_mean = (process.alpha(t + h) - process.alpha(t - h)) / (2 * h)
    d_var = (process.sigma(t + h) ** 2 - process.sigma(t - h) ** 2) / (2 * h)
    assert torch.allclose(d_mean, f * process.alpha(t), rtol=1e-6, atol=1e-9)
    assert torch.allclose(d_var, 2 * f * process.sigma(t) ** 2 + g2, rtol=1e-6, atol=1e-9)


# -- transitions ---------------------------------------------------------------------------------------------


@every_process
def test_transitions_compose(process):
    """Chapman-Kolmogorov, and q(x_t|x_s) after q(x_s|x_0) is q(x_t|x_0); close times included."""
    t = times(process)
    for near in (1.0, 1e-6):
        s = torch.minimum(process.t_min + (t - process.t_min) * (1 - near / 2), t)
        r = torch.minimum(process.t_min + (s - process.t_min) * (1 - near / 3), s)
        (a1, b1), (a2, b2), (a, b) = (
            process.transition(r, s),
            process.transition(s, t),
            process.transition(r, t),
        )
        assert torch.allclose(a1 * a2, a, rtol=1e-12)
        assert torch.allclose((a2 * b1) ** 2 + b2**2, b**2, rtol=1e-7, atol=1e-18)
        assert torch.allclose(a * process.alpha(r), process.alpha(t), rtol=1e-12)
        assert torch.allclose((a * process.sigma(r)) ** 2 + b**2, process.sigma(t) ** 2, rtol=1e-9)


@every_process
def test_a_transition_to_the_same_time_is_the_identity(process):
    t = times(process)
    scale, std = process.transition(t, t)
    assert torch.equal(scale, torch.ones_like(t)) and not bool(std.any())


def test_a_short_transition_keeps_its_digits():
    """b^2 = g^2 dt to first order, where sigma_t^2 - a^2 sigma_s^2 would cancel."""
    for process in PROCESSES.values():
        s = 0.5 * (process.t_min + process.t_max)
        dt = 1e-9 * s
        b = process.transition(s, s + dt)[1]
        assert float(b**2) == pytest.approx(float(process.diffusion(s) ** 2) * dt, rel=1e-5)


def test_transitions_run_forward_and_broadcast():
    process = sdediff.VP()
    with pytest.raises(ValueError, match="runs forward in time: give s <= t"):
        process.transition(0.5, 0.4)
    scale, std = process.transition(0.1, torch.tensor([0.2, 0.3]))
    assert scale.shape == std.shape == (2,) and scale.dtype == F64


# -- noising -------------------------------------------------------------------------------------------------


@every_process
def test_perturb_is_the_marginal_and_depends_on_seed_and_row(process):
    x0 = torch.arange(12.0, dtype=F64).reshape(4, 3)
    t = torch.linspace(process.t_min, process.t_max, 4, dtype=F64)
    x_t, eps = process.perturb(x0, t, seed=1)
    mean, std = process.marginal(x0, t)
    assert torch.equal(mean, process.alpha(t)[:, None] * x0) and torch.equal(std[:, 0], process.sigma(t))
    assert torch.equal(x_t, mean + std * eps)
    assert torch.equal(process.perturb(x0[:2], t[:2], seed=1)[0], x_t[:2])
    assert torch.equal(process.perturb(x0, t, seed=1)[1], eps)
    assert not torch.equal(process.perturb(x0, t, seed=2)[1], eps)
    assert process.perturb(x0.reshape(4, 3, 1, 1), process.t_max, 0)[0].shape == (4, 3, 1, 1)


def moment_statistic(x: Tensor, mean: float, variance: float) -> float:
    """Chi-square of sample mean and variance of a Gaussian, independent there, so 2 degrees."""
    n = x.numel()
    z1 = (float(x.mean()) - mean) / math.sqrt(variance / n)
    z2 = (float(x.var()) - variance) / (variance * math.sqrt(2 / (n - 1)))
    return z1**2 + z2**2


#: Family-wise false alarm 1e-3 over the 21 statistics of the two tests below.
LIMIT = float(chi2.isf(1e-3 / 21, df=2))
N = 20_000


@every_process
def test_simulated_paths_have_the_marginals(process):
    """Exact transitions from one datum: mean and variance at the last time."""
    grid = process.default_grid(12).flip(0)
    start = torch.full((N, 1), 0.7, dtype=F64)
    first = process.perturb(start, process.t_min, seed=3)[0]
    path = process.simulate(first, grid, seed=4)
    assert path.shape == (13, N, 1) and torch.equal(path[0], first)
    for k in (6, 12):
        alpha, sigma = float(process.alpha(grid[k])), float(process.sigma(grid[k]))
        assert moment_statistic(path[k], 0.7 * alpha, sigma**2) < LIMIT
    assert torch.equal(process.simulate(first[:5], grid, seed=4), path[:, :5])


@every_process
def test_the_sde_forward_in_time_has_the_marginals(process):
    """Euler-Maruyama of process.sde() in equal steps of log-SNR, from t_min to lam = -1.

    Its weak error at 400 steps is removed by comparing with the exact mean and variance of the *scheme*, a
    two-line recursion on the literature's f and g^2, and that in turn is within 3 % of the process's own.
    """
    name = next(k for k, v in PROCESSES.items() if v is process)
    f, g2 = FORWARD[name]
    end = float(process.time(-1.0))
    grid = process.time(torch.linspace(float(process.lam(process.t_min)), -1.0, 401, dtype=F64))
    grid[0], grid[-1] = process.t_min, end
    x = process.perturb(torch.full((N, 1), 0.7, dtype=F64), process.t_min, seed=5)[0]
    sol = solvers.solve(process.sde(), x, grid=grid, solver="euler-maruyama", seed=6)
    mean, variance = 0.7 * float(process.alpha(process.t_min)), float(process.sigma(process.t_min)) ** 2
    for s, t in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        mean, variance = mean * (1 + f(s) * (t - s)), variance * (1 + f(s) * (t - s)) ** 2 + g2(s) * (t - s)
    assert moment_statistic(sol.x, mean, variance) < LIMIT
    assert mean == pytest.approx(0.7 * float(process.alpha(end)), rel=0.03)
    assert variance == pytest.approx(float(process.sigma(end)) ** 2, rel=0.03)


# -- precision, grids, processes of one's own ----------------------------------------------------------------


@every_process
def test_float32_times_give_float64_values(process):
    """At each process's own extremes; the float32 time itself is the input, so only the output is rounded."""
    t32 = times(process).float().clamp(process.t_min, process.t_max)
    inside = (t32.double() >= process.t_min) & (t32.double() <= process.t_max)
    t32 = t32[inside]
    for name in ("alpha", "sigma", "lam", "d_alpha", "d_sigma", "d_lam", "drift_coefficient", "diffusion"):
        got, want = getattr(process, name)(t32), getattr(process, name)(t32.double())
        assert got.dtype == torch.float32 and got.shape == t32.shape
        assert torch.allclose(got.double(), want, rtol=1e-7, atol=1e-30), name
    x = torch.ones(len(t32), 2)
    got, want = process.marginal(x, t32), process.marginal(x.double(), t32.double())
    assert max(relative(a.double(), b) for a, b in zip(got, want, strict=True)) < 1e-6


@every_process
def test_times_may_be_numbers_or_tensors_of_any_shape(process):
    middle = 0.5 * (process.t_min + process.t_max)
    assert process.alpha(middle).dtype == F64 and process.alpha(middle).shape == ()
    assert process.sigma(torch.full((2, 3), middle)).shape == (2, 3)
    assert process.lam(torch.tensor(middle, dtype=F64)).shape == ()


@every_process
def test_the_default_grid_runs_from_noise_to_data(process):
    for n in (1, 2, 7, 500):
        grid = process.default_grid(n)
        assert grid.shape == (n + 1,) and grid.dtype == F64
        assert float(grid[0]) == process.t_max and float(grid[-1]) == process.t_min
        assert bool((grid.diff() < 0).all())
    middle = 0.5 * (process.t_min + process.t_max)
    grid = process.default_grid(5, (process.t_max, middle))
    assert float(grid[0]) == process.t_max and float(grid[-1]) == middle


def test_a_process_of_ones_own_equals_vp_given_its_schedule():
    vp = sdediff.VP()
    mine = GaussianProcess(
        alpha=lambda t: torch.exp(-0.5 * integral(t)),
        sigma=lambda t: torch.sqrt(-torch.expm1(-integral(t))),
        t_min=vp.t_min,
        t_max=vp.t_max,
    )
    t = times(vp)
    for name in ("alpha", "sigma", "lam", "d_alpha", "d_sigma", "d_lam", "drift_coefficient", "diffusion"):
        assert torch.allclose(getattr(mine, name)(t), getattr(vp, name)(t), rtol=1e-9, atol=1e-15), name
    assert torch.allclose(mine.time(vp.lam(t)), t, rtol=1e-10)
    for a, b in zip(mine.transition(t[:-1], t[1:]), vp.transition(t[:-1], t[1:]), strict=True):
        assert torch.allclose(a, b, rtol=1e-7)
    for grid in solvers.GRIDS.values():
        assert torch.allclose(grid(mine, 30), grid(vp, 30), rtol=1e-9)


def test_a_given_inverse_is_used_and_a_constant_schedule_has_no_slope():
    called = []

    def inverse(lam: Tensor) -> Tensor:
        called.append(lam)
        return torch.exp(-lam)

    process = GaussianProcess(alpha=torch.ones_like, sigma=lambda t: t, t_min=0.01, t_max=10.0, time=inverse)
    assert float(process.time(0.0)) == 1.0 and len(called) == 1
    assert float(process.d_alpha(2.0)) == 0.0 and float(process.drift_coefficient(2.0)) == 0.0
    assert float(process.diffusion(2.0)) == pytest.approx(2.0, rel=1e-12)


def test_schedules_are_differentiable_by_their_users():
    t = torch.tensor(0.3, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(sdediff.VP().lam(t), t)
    assert float(slope) == pytest.approx(float(sdediff.VP().d_lam(0.3)), rel=1e-12)


@every_process
def test_config_rebuilds_the_process(process):
    if type(process) is GaussianProcess:
        assert process.config is None  # functions are in no file: load(path, process=...) brings them back
        return
    again = type(process)(**process.config)
    assert again.config == process.config and type(process).__name__ in repr(process)
    t = times(process)
    assert torch.equal(again.lam(t), process.lam(t))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sdediff.VP(beta_min=20.0, beta_max=0.1), "give 0 < beta_min < beta_max"),
        (lambda: sdediff.VP(beta_min=math.nan), "give 0 < beta_min < beta_max"),
        (lambda: sdediff.SubVP(beta_min=0.0), "give 0 < beta_min < beta_max"),
        (lambda: sdediff.VE(sigma_min=50.0, sigma_max=0.01), "give 0 < sigma_min < sigma_max"),
        (lambda: sdediff.VP(t_min=0.5, t_max=0.5), "is empty: give t_min < t_max"),
        (lambda: sdediff.VP(t_min=0.0), "positive and finite"),
        (lambda: sdediff.VP(t_min=math.nan), "is empty: give t_min < t_max"),
        (lambda: sdediff.RectifiedFlow(t_max=1.0), "positive and finite"),
        (lambda: sdediff.Cosine(t_max=1.0), "positive and finite"),
        (lambda: sdediff.EDM(t_min=0.0), "positive and finite"),
        (lambda: GaussianProcess(lambda t: t, lambda t: 1 - t, t_min=0.1, t_max=0.9), "must fall strictly"),
        (lambda: GaussianProcess(lambda t: 1 - t, lambda t: t), "positive and finite"),
    ],
)
def test_bad_arguments_get_one_sentence(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
