"""Few steps: error against the exact flow, beside the ODE schedulers of diffusers and samplers of azula.

`python tests/benchmarks/few_steps.py` prints, for each number of evaluations, the root mean square error over
256 samples of a 16-dimensional rotated product of three-mode mixtures, float64. Every method starts from the
exact noised data at its own largest noise level and is compared with the exact flow from there to the data,
so that neither its interval nor a final denoising counts against it. Of each library the best over all its
methods, grids and options is shown; ours is one solver at its defaults. Needs `diffusers` and `azula` (see
pyproject.toml).
"""

from __future__ import annotations

import itertools
import logging
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import sdediff
import solvers
from sdediff.reference import random_product

F64 = torch.float64
BUDGETS = (5, 8, 10, 15, 20)
OURS = "gaussian-multistep"
EDM = sdediff.EDM()


class Target:
    """Data with their noise, and where the exact flow ends from every noise level, in x/alpha."""

    def __init__(self, seed: int, n: int = 256) -> None:
        self.data = random_product(dim=16, components=3, seed=seed, dtype=F64)
        self.x0 = self.data.sample(n, seed=5)
        self.eps = torch.randn(n, 16, generator=torch.Generator().manual_seed(1), dtype=F64)
        self.ends: dict[float, Tensor] = {}
        self.calls = 0

    def start(self, sigma: float) -> Tensor:
        return self.x0 + sigma * self.eps

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        self.calls += 1
        return self.data.denoise(EDM, x, sigma)

    def error(self, x: Tensor, sigma: float) -> float:
        """Of x, reached from the noise level sigma."""
        if sigma not in self.ends:
            self.ends[sigma] = self.data.flow(EDM, self.start(sigma), sigma, None)
        return float((x - self.ends[sigma]).square().mean().sqrt())


Result = tuple[float, str]
#: A method by name: from a step count to its error; evaluations are counted by the target.
Method = tuple[str, Callable[[Target, int], float]]


def ours(name: str, process: sdediff.GaussianProcess, **options: Any) -> Method:
    """A solver of this package through `model.problem`, at its defaults."""

    def run(target: Target, steps: int) -> float:
        model = target.data.model(process)
        t, t_min = process.t_max, process.t_min
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        problem = model.problem(0.0)
        counted = solvers.problems.counted(problem)
        x = solvers.solve(
            counted[0], alpha * target.start(sigma / alpha), solver=name, steps=steps, **options
        ).x
        target.calls += counted[1].calls
        return target.error(x / float(process.alpha(t_min)), sigma / alpha)

    return f"{name} {process} {options or ''}", run


# -- diffusers -----------------------------------------------------------------------------------------------


def diffusers_methods() -> Iterator[Method]:
    import diffusers as d

    d.logging.set_verbosity_error()
    base = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    spacings = [{"timestep_spacing": s} for s in ("linspace", "leading", "trailing")]
    sigmas = [{"use_karras_sigmas": True}, {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}]
    ends = [{"final_sigmas_type": e} for e in ("zero", "sigma_min")]
    grids = spacings + sigmas
    table: list[tuple[type, list[list[dict[str, Any]]]]] = [
        (
            d.DPMSolverMultistepScheduler,
            [
                [*grids, {"use_lu_lambdas": True}], ends, [{"solver_order": o} for o in (2, 3)],
                [{"algorithm_type": a} for a in ("dpmsolver++", "dpmsolver")],
                [{"lower_order_final": True}, {"lower_order_final": False}],
            ],
        ),
        (d.DPMSolverSinglestepScheduler, [[{}, *sigmas], ends, [{"solver_order": o} for o in (2, 3)]]),
        (
            d.UniPCMultistepScheduler,
            [
                grids, ends, [{"solver_order": o} for o in (2, 3)],
                [{"solver_type": b} for b in ("bh1", "bh2")],
            ],
        ),
        (d.DEISMultistepScheduler, [grids, [{"solver_order": o} for o in (2, 3)]]),
        (d.EulerDiscreteScheduler, [grids]),
        (d.HeunDiscreteScheduler, [grids]),
        (d.KDPM2DiscreteScheduler, [grids]),
        (d.LMSDiscreteScheduler, [grids]),
        (d.DDIMScheduler, [spacings]),
        (
            d.SASolverScheduler,
            [grids, [{"predictor_order": o} for o in (2, 3)], [{"tau_func": lambda t: 0}]],
        ),
        (d.PNDMScheduler, [spacings, [{"skip_prk_steps": True}, {"skip_prk_steps": False}]]),
    ]  # fmt: skip
    for kind, axes in table:
        for choice in itertools.product(*axes):
            options = {k: v for part in choice for k, v in part.items()}
            yield f"{kind.__name__} {options}", scheduler_run(kind, base | options)
    edm = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 1.0, "prediction_type": "epsilon"}
    for schedule, order, end in itertools.product(("karras", "exponential"), (2, 3), ("zero", "sigma_min")):
        options = {"sigma_schedule": schedule, "solver_order": order, "final_sigmas_type": end}
        yield (
            f"EDMDPMSolverMultistep {options}",
            scheduler_run(d.EDMDPMSolverMultistepScheduler, edm | options),
        )
    for schedule in ("karras", "exponential"):
        yield f"EDMEuler {schedule}", scheduler_run(d.EDMEulerScheduler, edm | {"sigma_schedule": schedule})
    # Those whose own spacing is that of one of our processes, through this package's wrapper of them.
    yield ours("diffusers/IPNDM", sdediff.Cosine(), grid="uniform")
    for name in ("FlowMatchEulerDiscrete", "FlowMatchHeunDiscrete"):
        yield ours(f"diffusers/{name}", sdediff.RectifiedFlow(), grid="uniform")


def scheduler_run(kind: type, options: dict[str, Any]) -> Callable[[Target, int], float]:
    """The scheduler's own loop, with the exact denoiser at the scheduler's noise level."""

    def run(target: Target, steps: int) -> float:
        scheduler: Any = kind(**options)
        scheduler.set_timesteps(steps)
        edm = kind.__name__.startswith("EDM")
        # These keep states at x/alpha; the others at x.
        unscaled = edm or kind.__name__.split("Discrete")[0] in ("Euler", "Heun", "KDPM2", "LMS")
        x, first, final = None, 0.0, 0.0
        for t in scheduler.timesteps:
            if hasattr(scheduler, "sigmas"):
                sigma = float(scheduler.sigmas[scheduler.step_index or 0])
            else:
                kept = float(scheduler.alphas_cumprod[int(t)])
                sigma = math.sqrt((1 - kept) / kept)
            scale = 1.0 if unscaled else math.sqrt(1 + sigma**2)
            if x is None:
                x, first = target.start(sigma) / scale, sigma
            at = x * scale
            value = target.denoise(at, max(sigma, 1e-6))
            output = (at - value) / sigma
            if edm:  # what the preconditioned network would return
                output = (value - at / (1 + sigma**2)) * math.sqrt(1 + sigma**2) / sigma
            x = scheduler.step(output, t, x).prev_sample
        if hasattr(scheduler, "sigmas"):
            final = float(scheduler.sigmas[-1])
        assert x is not None
        return target.error(x if unscaled else x * math.sqrt(1 + final**2), first)

    return run


# -- azula ---------------------------------------------------------------------------------------------------


def azula_methods() -> Iterator[Method]:
    from azula import noise, sample
    from azula.denoise import Denoiser, DiracPosterior

    class Exact(Denoiser):
        def __init__(self, target: Target, schedule: Any) -> None:
            super().__init__()
            self.target, self.schedule = target, schedule

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = (float(v) for v in self.schedule(t))
            return DiracPosterior(self.target.denoise(x_t / alpha, sigma / alpha))

    def make(sampler: Any, schedule: Any, options: dict[str, Any]) -> Callable[[Target, int], float]:
        def run(target: Target, steps: int) -> float:
            made = sampler(Exact(target, schedule), steps=steps, silent=True, dtype=F64, **options)
            alpha, sigma = (float(v) for v in schedule(made.timesteps[0]))
            x = made(alpha * target.start(sigma / alpha))
            alpha_end = float(schedule(made.timesteps[-1])[0])
            return target.error(x / alpha_end, sigma / alpha)

        return run

    schedules = [noise.VPSchedule(), noise.CosineSchedule(), noise.RectifiedSchedule(), noise.VESchedule()]
    plain = [sample.DDIMSampler, sample.EulerSampler, sample.HeunSampler]
    several = [
        s
        for s in ("zABSampler", "vABSampler", "zEABSampler", "xEABSampler", "REABSampler")
        if hasattr(sample, s)
    ]
    cases: list[tuple[Any, dict[str, Any]]] = [(s, {}) for s in plain]
    cases += [(sample.ItoSampler, {"eta": 0.0})]
    cases += [(getattr(sample, s), {"order": o}) for s in several for o in (2, 3)]
    for (sampler, options), schedule in itertools.product(cases, schedules):
        yield f"{sampler.__name__} {options} {type(schedule).__name__}", make(sampler, schedule, options)


def best(methods: list[Method], target: Target, budget: int) -> Result:
    """The least error of all methods, each with as many steps as the evaluations allow."""
    results: list[Result] = []
    refused: set[str] = set()
    for name, run in methods:
        for steps in range(budget + 1, 1, -1):
            target.calls = 0
            try:
                error = run(target, steps)
            except (ValueError, IndexError, RuntimeError, AttributeError, TypeError, NotImplementedError):
                refused.add(name)  # a combination of options, or a number of steps, that the library refuses
                continue
            if target.calls <= budget:
                refused.discard(name)
                results += [(error, f"{name}, {steps} steps")] if math.isfinite(error) else []
                break
    error, how = min(results)
    lost = len(methods) - len(refused) - len(results)
    return error, f"{how} ({len(methods)} tried, {len(refused)} refused, {lost} not finite)"


def main() -> None:
    logging.disable(logging.WARNING)
    seed = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    target = Target(seed)
    libraries = {"diffusers": list(diffusers_methods()), "azula": list(azula_methods())}
    mine = [ours(OURS, sdediff.VP())]
    print(
        f"rotated product of 3-mode mixtures, d = 16, seed {seed}; data standard deviation "
        f"{float(target.x0.std()):.2f}"
    )
    print(f"{'NFE':>4} {'ours':>9} {'diffusers':>10} {'azula':>9} {'ratio':>6}")
    for budget in BUDGETS:
        own = best(mine, target, budget)
        peers = {name: best(methods, target, budget) for name, methods in libraries.items()}
        ratio = min(p[0] for p in peers.values()) / own[0]
        print(
            f"{budget:4d} {own[0]:9.4f} {peers['diffusers'][0]:10.4f} {peers['azula'][0]:9.4f} {ratio:6.2f}"
        )
        print(f"     ours: {own[1]}")
        for name, (_, how) in peers.items():
            print(f"     {name}: {how}")


if __name__ == "__main__":
    main()
