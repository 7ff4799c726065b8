"""The exponential SDE solvers against diffusers' schedulers: same network, noise levels, start and normals.

The schedulers' tables are replaced by the grid's own in float64, and their noise by the normals of our solve.
No step goes to sigma = 0, which no process here has.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from sdediff.processes import EDM, VP
from sdediff.reference import random_mixture
from solvers.noise import Noise
from solvers.solver import Request

diffusers = pytest.importorskip("diffusers")
# diffusers hands numpy tensors, which have an old idea of its protocol.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
]

F64, INF = torch.float64, math.inf
PROCESS = VP(t_max=1.2)
MIXTURE = random_mixture(2, 3, seed=0, dtype=F64)
SEED, STEPS = 6, 20
# Asked for is 1e-5. The DPM-Solver and Euler schedulers cast the state to float32 at each step.
RELATIVE, IN_FLOAT32 = 1e-9, 2e-6


def start(scale: float = 1.0) -> Tensor:
    return scale * solvers.noise.normal(1, torch.arange(5), solvers.Stream.PRIOR, 0, (2,), F64)


def uneven_grid(t_max: float = 0.95, t_min: float = 0.02) -> Tensor:
    u = torch.linspace(0, 1, STEPS + 1, dtype=F64)
    return t_max + (u + 0.03 * torch.sin(9 * u) - 0.03 * math.sin(9) * u) * (t_min - t_max)


GRID = uneven_grid()
LAM = PROCESS.lam(GRID)
ALPHA, SIGMA, RATIO = PROCESS.alpha(GRID), PROCESS.sigma(GRID), torch.exp(-LAM)


def ours(solver: solvers.Solver, eta: Any = 1.0) -> Tensor:
    problem = solvers.SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x, t), eta)
    return solvers.solve(problem, start(), solver=solver, grid=GRID, seed=SEED).x


def eps(x: Tensor, k: int) -> Tensor:
    return (x - ALPHA[k] * MIXTURE.denoise(PROCESS, x, GRID[k])) / SIGMA[k]


def normals() -> Iterator[Tensor]:
    """The normals of our solve, step by step."""
    noise = Noise.like(start(), SEED)
    return (noise.at(k).normal() for k in range(STEPS))


def made(name: str, **options: Any) -> Any:
    """A scheduler whose sigmas, or cumulative alphas, are the grid's."""
    scheduler = getattr(diffusers, name)(num_train_timesteps=STEPS + 1, **options)
    if hasattr(scheduler, "sigmas"):
        scheduler.set_timesteps(STEPS)
        scheduler.sigmas = RATIO
        scheduler.set_begin_index(0)
    else:
        scheduler.set_timesteps(STEPS + 1)
        scheduler.alphas_cumprod = (ALPHA**2).flip(0)
    return scheduler


def replay(scheduler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scheduler draw the normals of our solve."""
    drawn = normals()
    module = importlib.import_module(type(scheduler).__module__)
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: next(drawn))


def agree(mine: Tensor, theirs: Tensor, relative: float = RELATIVE) -> None:
    assert float((mine - theirs).norm() / theirs.norm()) < relative
    assert float((mine - start()).norm()) > 1, "nothing happened"


# -- first order ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("ancestral", "seeds-1", "er-sde-1"))
def test_ddpm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, x = made("DDPMScheduler", clip_sample=False), start()
    replay(scheduler, monkeypatch)
    for k in range(STEPS):
        x = scheduler.step(eps(x, k), STEPS - k, x).prev_sample
    agree(ours(solvers.get(name)), x)


@pytest.mark.parametrize("level", (0.0, 0.4, 1.0))
def test_ddim_at_its_own_eta(level: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """DDIM's eta scales the posterior's deviation: another of ours at each step, the same at 0 and 1."""
    scheduler, x = made("DDIMScheduler", clip_sample=False, set_alpha_to_one=False), start()
    for k, z in enumerate(normals()):
        x = scheduler.step(eps(x, k), STEPS - k, x, eta=level, variance_noise=z).prev_sample
    posterior = 1 - torch.exp(-2 * LAM.diff())  # its variance, over sigma^2 at the end of the step
    equal = torch.sqrt(-torch.log1p(-(level**2) * posterior) / (2 * LAM.diff()))
    assert level not in (0, 1) or torch.allclose(equal, torch.full_like(equal, level))
    table = dict(zip(GRID.tolist(), [*equal.tolist(), 0.0], strict=True))
    agree(
        ours(solvers.DDIM(), lambda t: torch.tensor([table[s] for s in t.flatten().tolist()], dtype=F64)), x
    )


def test_euler_ancestral(monkeypatch: pytest.MonkeyPatch) -> None:
    """In x/alpha it is the ancestral step."""
    scheduler, x = made("EulerAncestralDiscreteScheduler"), start() / ALPHA[0]
    replay(scheduler, monkeypatch)
    for k, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        x = scheduler.step(eps(x * ALPHA[k], k), t, x).prev_sample
    agree(ours(solvers.Ancestral()), x * ALPHA[-1], IN_FLOAT32)


# -- DPM-Solver++ SDE -------------------------------------------------------------------------------------


def multistep(order: int, kind: str) -> Tensor:
    options = {"solver_order": order, "solver_type": kind, "final_sigmas_type": "sigma_min"}
    scheduler, x = made("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", **options), start()
    for k, (t, z) in enumerate(zip(scheduler.timesteps, normals(), strict=True)):
        x = scheduler.step(eps(x, k), t, x, variance_noise=z).prev_sample
    return x


class Wrong3M(solvers.DPMSolverPP3MSDE):
    """Diffusers' third order: of the second divided difference (M_2/2 - 1) in place of M_2."""

    def moments(self, z: float, count: int) -> list[float]:
        m = super().moments(z, count)
        return [m[0], m[1], m[2] - 1] if count == 3 else m


@pytest.mark.parametrize(
    ("order", "kind", "solver"),
    [
        (1, "midpoint", solvers.Ancestral()),
        (2, "midpoint", solvers.DPMSolverPP2MSDE(INF)),
        (2, "heun", solvers.SASolver(2, 0, caution=INF)),
        (3, "midpoint", Wrong3M(INF, published=True)),
    ],
)
def test_dpm_solver_multistep_sde(order: int, kind: str, solver: solvers.Solver) -> None:
    agree(ours(solver), multistep(order, kind), IN_FLOAT32)


def test_the_third_order_of_diffusers_is_first_order() -> None:
    """Without its noise, on a denoiser that is a parabola in lam, which k-diffusion's has at order 2."""

    def error(solver: solvers.StepSolver, steps: int) -> float:
        problem = solvers.SemiLinear(
            PROCESS, lambda t, x: torch.full_like(x, float(PROCESS.lam(t)) ** 2), 1.0
        )
        grid = PROCESS.time(torch.linspace(-1.0, 1.5, steps + 1, dtype=F64))
        x = solver.integrate(problem, torch.zeros(1, 1, dtype=F64), Request(tuple(grid.tolist()), Silent())).x
        u, w = solvers.exponential.deis.gauss_legendre(40)
        exact = (w * 5 * torch.exp(-5 * (1 - u)) * (2.5 * u - 1) ** 2).sum()
        return abs(float(x) - float(PROCESS.alpha(grid[-1]) * exact))

    def order(solver: solvers.StepSolver) -> float:
        return math.log2(error(solver, 80) / error(solver, 160))

    assert 0.85 < order(Wrong3M(INF, published=True)) < 1.3
    assert 1.85 < order(solvers.DPMSolverPP3MSDE(INF, published=True)) < 2.3
    assert order(solvers.DPMSolverPP3MSDE(INF)) > 2.85


class Silent(Noise):
    """Noise of zeros for one row."""

    def __init__(self) -> None:
        super().__init__(0, torch.arange(1), (1,), F64)

    def at(self, counter: int) -> Any:
        return self

    def normal(self, *_: Any) -> Tensor:
        return torch.zeros(1, 1, dtype=F64)


def test_dpm_solver_sde_singlestep() -> None:
    """In x/alpha; its Brownian tree has one normal for half of a step and one for the whole."""
    scheduler = diffusers.DPMSolverSDEScheduler()
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = torch.cat([RATIO[:1], RATIO[1:-1].repeat_interleave(2), RATIO[-1:]])
    scheduler.set_begin_index(0)
    x, noise = start() / ALPHA[0], Noise.like(start(), SEED)
    for k, (a, b) in enumerate(pairwise(GRID.tolist())):
        inner = float(PROCESS.time((LAM[k] + LAM[k + 1]) / 2))
        for t, z in ((a, noise.at(k).split((inner - a) / (b - a))[0]), (inner, noise.at(k).normal())):
            scheduler.noise_sampler = lambda *_, z=z: z
            alpha, sigma = PROCESS.alpha(t), PROCESS.sigma(t)
            predicted = (x - MIXTURE.denoise(PROCESS, x * alpha, t)) * alpha / sigma
            x = scheduler.step(predicted, scheduler.timesteps[2 * k], x).prev_sample
    agree(ours(solvers.DPMSolverPPSDE()), x * ALPHA[-1])


@pytest.mark.parametrize(
    ("kind", "solver"),
    [("midpoint", solvers.DPMSolverPP2MSDE(INF)), ("heun", solvers.SASolver(2, 0, caution=INF))],
)
def test_cosine_dpm_solver(kind: str, solver: solvers.Solver) -> None:
    process, grid = EDM(), 10 * uneven_grid() ** 2
    scheduler = diffusers.CosineDPMSolverMultistepScheduler(solver_type=kind, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas = grid
    scheduler.set_begin_index(0)
    x, drawn = start(10.0), normals()
    scheduler.noise_sampler = lambda *_: next(drawn)
    for k, t in enumerate(scheduler.timesteps):
        skip, out = 1 / (grid[k] ** 2 + 1), -grid[k] / (grid[k] ** 2 + 1).sqrt()
        value = MIXTURE.denoise(process, x, grid[k])
        x = scheduler.step((value - skip * x) / out, t, x).prev_sample
    problem = solvers.SemiLinear(process, lambda t, x: MIXTURE.denoise(process, x, t), 1.0)
    agree(solvers.solve(problem, start(10.0), solver=solver, grid=grid, seed=SEED).x, x)


# -- SA-Solver --------------------------------------------------------------------------------------------

LEVELS: dict[str, Callable[[float], float]] = {
    "0": lambda t: 0.0,
    "0.6": lambda t: 0.6,
    "1": lambda t: 1.0,
    "window": lambda t: 1.0 if 0.2 <= t <= 0.8 else 0.0,
}


ORDERS = ((1, 1), (1, 2), (2, 1), (2, 2), (3, 2), (2, 4), (3, 3), (3, 4))


@pytest.mark.parametrize(
    ("orders", "level", "lower_final"),
    [
        *((orders, level, k % 2 == 0) for k, orders in enumerate(ORDERS[:-1]) for level in ("0.6", "window")),
        *(((3, 4), level, lower) for level in LEVELS for lower in (False, True)),
    ],
)
def test_sa_solver(
    orders: tuple[int, int], level: str, lower_final: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = made(
        "SASolverScheduler",
        predictor_order=orders[0],
        corrector_order=orders[1],
        tau_func=lambda k: torch.tensor(LEVELS[level](float(GRID[k])), dtype=F64),
        lower_order_final=lower_final,
    )
    replay(scheduler, monkeypatch)
    x = start()
    for k in range(STEPS):
        x = scheduler.step(eps(x, k), k, x).prev_sample
    solver = solvers.SASolver(*orders, "flat", caution=INF, lower_final=lower_final)
    eta = lambda t: torch.tensor([LEVELS[level](s) for s in t.flatten().tolist()], dtype=F64)  # noqa: E731
    agree(ours(solver, eta), x)


def test_the_exact_slope_of_sa_solver_is_what_differs() -> None:
    """The moment of the slope is 1 - (1 - e^-z)/z, for which the authors' code has z/2."""
    z = 0.4
    exact, flat = (solvers.SASolver(2, 2, variant).moments(z, 2)[1] for variant in ("exact", "flat"))
    assert exact == pytest.approx(1 + math.expm1(-z) / z, rel=1e-14)
    assert flat == z / 2
