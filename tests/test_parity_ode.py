"""The exponential ODE solvers against diffusers' schedulers: same network, same noise levels, same start.

The schedulers' tables are made float64 after `set_timesteps`, and their options are set so that the same
algorithm runs to the same end: no step to sigma = 0, which no process here has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import solvers
from sdediff.processes import VP, Cosine
from sdediff.reference import random_mixture

diffusers = pytest.importorskip("diffusers")
# diffusers hands numpy tensors, which have an old idea of its protocol, and warns of noise prediction.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:`algorithm_types:FutureWarning"),
]

F64 = torch.float64
PROCESS = VP(t_max=1.2)
MIXTURE = random_mixture(2, 3, seed=0, dtype=F64)
# Asked for is 1e-5. The DPM-Solver schedulers and DEIS cast the state to float32 at each step.
RELATIVE, IN_FLOAT32 = 1e-9, 1e-6


def start(n: int = 5) -> Tensor:
    return solvers.noise.normal(1, torch.arange(n), solvers.Stream.PRIOR, 0, (2,), F64)


def alpha_sigma(ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Of the variance-preserving process, from sigma/alpha."""
    alpha = 1 / torch.sqrt(1 + ratio**2)
    return alpha, ratio * alpha


def times_of(ratios: Tensor) -> Tensor:
    return PROCESS.time(-torch.log(ratios))


def ours(solver: solvers.Solver, ratios: Tensor, x: Tensor | None = None) -> Tensor:
    problem = solvers.SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x, t))
    return solvers.solve(problem, start() if x is None else x, solver=solver, grid=times_of(ratios)).x


def eps_of(x: Tensor, ratio: Tensor) -> Tensor:
    """What an eps network would say of a variance-preserving state."""
    alpha, sigma = alpha_sigma(ratio)
    t = times_of(ratio)
    return (x - alpha * MIXTURE.denoise(PROCESS, x, t)) / sigma


def scheduler_of(name: str, steps: int, ratios: Tensor | None = None, **options: Any) -> Any:
    """A scheduler with its sigmas (our sigma/alpha) in float64; `ratios` in place of its own."""
    made = getattr(diffusers, name)(**options)
    made.set_timesteps(steps)
    made.sigmas = made.sigmas.double() if ratios is None else ratios
    return made


def run(scheduler: Any) -> Tensor:
    x = start()
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(eps_of(x, scheduler.sigmas[k]), t, x).prev_sample
    return x


def agree(mine: Tensor, theirs: Tensor, relative: float = RELATIVE) -> None:
    assert float((mine - theirs).norm() / theirs.norm()) < relative
    assert float((mine - start()).norm()) > 1, "nothing happened"


Make = Callable[[bool], solvers.Solver]

MULTISTEP: dict[str, tuple[str, dict[str, Any], Make]] = {
    "DPM-Solver++ 1": (
        "DPMSolverMultistepScheduler", {"solver_order": 1}, lambda lower: solvers.DDIM(),
    ),
    "DPM-Solver++ 2M": (
        "DPMSolverMultistepScheduler", {"solver_order": 2},
        lambda lower: solvers.DPMSolverPP2M(caution=math.inf, lower_final=lower),
    ),
    "DPM-Solver++ 2M, exact moments": (
        "DPMSolverMultistepScheduler", {"solver_order": 2, "solver_type": "heun"},
        lambda lower: solvers.ExponentialAdamsBashforth(
            2, corrected="none", caution=math.inf, lower_final=lower
        ),
    ),
    "DPM-Solver 2M, exact moments": (
        "DPMSolverMultistepScheduler",
        {"solver_order": 2, "solver_type": "heun", "algorithm_type": "dpmsolver"},
        lambda lower: solvers.ExponentialAdamsBashforth(
            2, "noise", corrected="none", caution=math.inf, lower_final=lower
        ),
    ),
    "DPM-Solver++ 3M": (
        "DPMSolverMultistepScheduler", {"solver_order": 3},
        lambda lower: solvers.DPMSolverPP3M(caution=math.inf, lower_final=lower, published=True),
    ),
    **{
        f"UniPC-{order} {variant}": (
            "UniPCMultistepScheduler", {"solver_order": order, "solver_type": variant},
            lambda lower, order=order, variant=variant: solvers.UniPC(
                order, variant, caution=math.inf, lower_final=lower
            ),
        )
        for order in (1, 2, 3)
        for variant in ("bh1", "bh2")
    },
    "UniPC-2 on eps": (
        "UniPCMultistepScheduler", {"solver_order": 2, "predict_x0": False},
        lambda lower: solvers.UniPC(2, "bh2", "noise", caution=math.inf, lower_final=lower),
    ),
    # The paper's log-rho AB: a polynomial in log(sigma/alpha). The tAB of the paper they do not have.
    **{
        f"DEIS-{order}": (
            "DEISMultistepScheduler", {"solver_order": order},
            lambda lower, order=order: solvers.ExponentialAdamsBashforth(
                order, "noise", corrected="none", caution=math.inf, lower_final=lower
            ),
        )
        for order in (1, 2, 3)
    },
}  # fmt: skip


@pytest.mark.parametrize("lower", (False, True), ids=("full order to the end", "lower at the end"))
@pytest.mark.parametrize("case", MULTISTEP)
def test_multistep_methods_are_those_of_diffusers(case: str, lower: bool) -> None:
    name, options, make = MULTISTEP[case]
    if not name.startswith("DEIS"):  # which ends above 0 without being told
        options = {**options, "final_sigmas_type": "sigma_min"}
    scheduler = scheduler_of(name, 12, **options, lower_order_final=lower)
    relative = RELATIVE if name.startswith("UniPC") else IN_FLOAT32
    agree(ours(make(lower), scheduler.sigmas), run(scheduler), relative)


def test_the_published_third_order_formula_is_of_order_two() -> None:
    """Half of M_2, an uncorrected start: either costs an order. Theirs is ours with `published`."""
    errors: dict[bool, list[float]] = {False: [], True: []}
    span = (times_of(torch.tensor(20.0)).item(), times_of(torch.tensor(0.05)).item())
    problem = solvers.SemiLinear(PROCESS, lambda t, x: MIXTURE.denoise(PROCESS, x, t))
    exact = solvers.solve(problem, start(), span, "dopri5", rtol=1e-12, atol=1e-12).x
    for published in (False, True):
        for steps in (200, 400):
            solver = solvers.DPMSolverPP3M(published=published)
            x = solvers.solve(problem, start(), span, solver, steps=steps, grid="log-snr").x
            errors[published].append(float((x - exact).norm()))
    slopes = {p: math.log2(a / b) for p, (a, b) in errors.items()}
    assert 2.85 < slopes[False] < 3.3 and 1.85 < slopes[True] < 2.3, slopes
    assert errors[False][1] < 0.2 * errors[True][1]


SINGLESTEP = {
    "2S": (2, "dpmsolver++", solvers.DPMSolverPP2S()),
    "3S": (3, "dpmsolver++", solvers.DPMSolverPP3S()),
    "DPM-Solver-2": (2, "dpmsolver", solvers.DPMSolver2()),
    "DPM-Solver-3": (3, "dpmsolver", solvers.DPMSolver3()),
}


def singlestep_scheduler(order: int, algorithm: str) -> Any:
    """Theirs has the stages at the grid's own times: with equal steps of lam at the paper's fractions."""
    ratios = torch.exp(torch.linspace(math.log(80), math.log(0.02), 12 + 1, dtype=F64))
    options = {"solver_order": order, "algorithm_type": algorithm, "final_sigmas_type": "sigma_min"}
    return scheduler_of("DPMSolverSinglestepScheduler", 12, ratios, **options, lower_order_final=False)


@pytest.mark.parametrize("case", SINGLESTEP)
def test_singlestep_methods_are_those_of_diffusers(case: str) -> None:
    """Of order 3: with the exact moment in the second stage, which is the paper's and theirs with "heun"."""
    order, algorithm, solver = SINGLESTEP[case]
    scheduler = singlestep_scheduler(order, algorithm)
    x = start()
    for k, t in enumerate(scheduler.timesteps):
        exact = order == 3 and k % 3 == 1
        scheduler.register_to_config(solver_type="heun" if exact else "midpoint")
        x = scheduler.step(eps_of(x, scheduler.sigmas[k]), t, x).prev_sample
    agree(ours(solver, scheduler.sigmas[::order]), x)


class Halved(solvers.DPMSolverPP3S):
    """With half of the zeroth moment for the first in the second stage, as diffusers has it by default."""

    def _line(self, i: int, *arguments: Any) -> list[tuple[int, float]]:
        return super()._line(i, *arguments[:-1], i == 1)


def test_diffusers_third_order_singlestep_has_another_second_stage() -> None:
    scheduler = singlestep_scheduler(3, "dpmsolver++")
    ratios, theirs = scheduler.sigmas[::3], run(scheduler)
    agree(ours(Halved(), ratios), theirs)
    assert float((ours(solvers.DPMSolverPP3S(), ratios) - theirs).norm()) > 1e-3


def test_ddim_is_diffusers_ddim() -> None:
    scheduler = diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(20)
    squares = torch.stack([*scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod])
    ratios = torch.sqrt((1 - squares) / squares)[
        :-1
    ]  # its last step but one ends at index 0, the last there too
    x = start()
    for t, ratio in zip(scheduler.timesteps[:-1], ratios, strict=False):
        x = scheduler.step(eps_of(x, ratio), t, x, eta=0.0).prev_sample
    agree(ours(solvers.DDIM(), ratios), x)


def test_heun_is_diffusers_heun() -> None:
    """In x/alpha and sigma/alpha, to sigma = 0: the last step is Euler's in either."""
    scheduler = scheduler_of("HeunDiscreteScheduler", 12)
    ratios = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2], scheduler.sigmas[-1:]])
    x = start() / alpha_sigma(ratios[0])[0]
    for k, t in enumerate(scheduler.timesteps):
        ratio = ratios[(k + 1) // 2]
        x = scheduler.step(eps_of(alpha_sigma(ratio)[0] * x, ratio), t, x).prev_sample
    assert float(ratios[-1]) == 0.0
    agree(ours(solvers.EDMHeun(), ratios), x)


def test_ipndm_is_diffusers_ipndm() -> None:
    """On a grid inside (0, 1): at alpha = 0 theirs takes D for 0, at sigma = 0 no process here ends."""
    process, steps = Cosine(), 12
    grid = torch.linspace(0.97, 0.02, steps + 1, dtype=F64)
    scheduler = diffusers.IPNDMScheduler(trained_betas=process.sigma(grid).tolist())
    scheduler.set_timesteps(steps)
    scheduler.betas, scheduler.alphas = process.sigma(grid), process.alpha(grid)
    x = start()
    for k, t in enumerate(scheduler.timesteps):
        denoised = MIXTURE.denoise(process, x, grid[k])
        eps = (x - process.alpha(grid[k]) * denoised) / process.sigma(grid[k])
        v = process.alpha(grid[k]) * eps - process.sigma(grid[k]) * denoised
        x = scheduler.step(v, t, x).prev_sample
    problem = solvers.SemiLinear(process, lambda t, x: MIXTURE.denoise(process, x, t))
    agree(solvers.solve(problem, start(), solver=solvers.IPNDM(), grid=grid).x, x)
