"""What a solver adds to the network: microseconds a step, ours beside the leanest peer for the same method.

`python tests/benchmarks/overhead.py [name ...]` prints, for each method that a peer offers too, what ours and
each peer add to the network's own time, for an MLP of two dimensions (3-128-128-2), 512 samples, 200 steps,
two threads; and Euler-Maruyama, its noise per sample included, as a ratio to a hand-written loop with
Python-float coefficients. All runs of a method are interleaved; medians. Peers as installed: diffusers,
azula, flow_matching, torchdiffeq, torchsde (k-diffusion needs torchvision).
"""

from __future__ import annotations

import logging
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sdediff
import solvers

BATCH, STEPS, REPEATS = 512, 200, 15
VP = sdediff.VP()
GRID = VP.default_grid(STEPS)
Run = Callable[[], Any]


class Net(nn.Module):
    """Predicts eps; time is its third input."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(3, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU(), nn.Linear(128, 2)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.body(torch.cat([x, t.reshape(-1, 1).expand(len(x), 1)], dim=1))


torch.manual_seed(0)
NET = Net().eval().requires_grad_(False)
# Whatever a loop of an untrained network drifts to, and whatever a library takes for time: activations stay
# where their cost is the ordinary one.
NET.body[0].weight.mul_(1e-3)  # type: ignore[operator, union-attr]
MODEL = sdediff.DiffusionModel(NET, VP, "eps", (2,))


def alone(evaluations: int = STEPS) -> Run:
    """The network and nothing else."""

    def run() -> None:
        x, t = torch.randn(BATCH, 2), torch.empty(BATCH)
        with torch.no_grad():
            for _ in range(evaluations):
                NET(x, t.fill_(0.1))

    return run


def by_hand() -> Tensor:
    """Euler-Maruyama as one would write it for this model alone, its coefficients Python floats."""
    t, h = GRID[:-1], GRID.diff()
    alpha, sigma = VP.alpha(t), VP.sigma(t)
    square = -2 * sigma**2 * VP.d_lam(t)
    level_of_network = 0.25 * torch.log(sigma / alpha)
    columns = (1 + h * VP.d_alpha(t) / alpha, h * square / sigma, (-h * square).sqrt(), level_of_network)
    x, level = torch.randn(BATCH, 2), torch.empty(BATCH)
    with torch.no_grad():
        for a, b, noise, t_net in zip(*(c.tolist() for c in columns), strict=True):
            eps = NET(x, level.fill_(t_net))
            x = torch.add(x * a, eps, alpha=b).add_(torch.randn(BATCH, 2), alpha=noise)
    return x


# -- peers: each a loop over STEPS steps of the method's own, from noise ----------------------------------


def torchdiffeq_run(method: str) -> Run:
    from torchdiffeq import odeint

    def run() -> None:
        with torch.no_grad():
            odeint(lambda t, x: NET(x, t), torch.randn(BATCH, 2), GRID.float(), method=method)

    return run


def flow_matching_run(method: str) -> Run:
    from flow_matching.solver import ODESolver
    from flow_matching.utils import ModelWrapper

    class Wrapped(ModelWrapper):  # type: ignore[misc]
        def forward(self, x: Tensor, t: Tensor, **_: Any) -> Tensor:
            return NET(x, t)

    solver = ODESolver(velocity_model=Wrapped(NET))
    times = GRID.float().flip(0)
    return lambda: solver.sample(torch.randn(BATCH, 2), step_size=None, method=method, time_grid=times)


def torchsde_run(method: str) -> Run:
    import torchsde

    class System(nn.Module):
        noise_type, sde_type = "diagonal", "ito"

        def f(self, t: Tensor, x: Tensor) -> Tensor:
            return NET(x, t)

        def g(self, t: Tensor, x: Tensor) -> Tensor:
            return torch.ones_like(x)

    system, times = System(), torch.tensor([0.0, 1.0])
    options = {"grad_free": True} if method == "milstein" else {}

    def run() -> None:
        with torch.no_grad():
            x = torch.randn(BATCH, 2)
            torchsde.sdeint(system, x, times, method=method, dt=1 / STEPS, options=options)

    return run


def diffusers_run(name: str, **options: Any) -> Run:
    import diffusers

    scheduler: Any = getattr(diffusers, name)(**options)

    def run() -> None:
        scheduler.set_timesteps(STEPS)
        x = torch.randn(BATCH, 2)
        with torch.no_grad():
            for t in scheduler.timesteps[:STEPS] if name != "HeunDiscreteScheduler" else scheduler.timesteps:
                scaled = scheduler.scale_model_input(x, t)
                x = scheduler.step(NET(scaled, t.float().expand(BATCH)), t, x).prev_sample

    return run


def azula_run(name: str, **options: Any) -> Run:
    from azula import noise, sample
    from azula.denoise import SimpleDenoiser

    made = getattr(sample, name)(SimpleDenoiser(NET, noise.VPSchedule()), steps=STEPS, silent=True, **options)
    return lambda: made(torch.randn(BATCH, 2))


#: Solved as `ODE(drift)`, as the peers do that know of no diffusion; all others through `model.sample`.
OPAQUE = ("euler", "midpoint", "heun", "rk4")
#: Our name -> evaluations a step, and the peers that offer the method.
METHODS: dict[str, tuple[int, dict[str, Callable[[], Run]]]] = {
    "euler": (
        1,
        {
            "flow_matching": lambda: flow_matching_run("euler"),
            "torchdiffeq": lambda: torchdiffeq_run("euler"),
        },
    ),
    "midpoint": (
        2,
        {
            "flow_matching": lambda: flow_matching_run("midpoint"),
            "torchdiffeq": lambda: torchdiffeq_run("midpoint"),
        },
    ),
    "heun": (
        2,
        {
            "flow_matching": lambda: flow_matching_run("heun2"),
            "torchdiffeq": lambda: torchdiffeq_run("heun2"),
        },
    ),
    "rk4": (
        4,
        {"flow_matching": lambda: flow_matching_run("rk4"), "torchdiffeq": lambda: torchdiffeq_run("rk4")},
    ),
    "euler-maruyama": (
        1, {"torchsde": lambda: torchsde_run("euler"), "azula": lambda: azula_run("ItoSampler")},
    ),
    "milstein": (1, {"torchsde": lambda: torchsde_run("milstein")}),
    "srk": (2, {"torchsde": lambda: torchsde_run("srk")}),
    "edm-heun": (
        2,
        {
            "diffusers": lambda: diffusers_run("HeunDiscreteScheduler"),
            "azula": lambda: azula_run("HeunSampler"),
        },
    ),
    "ddim": (
        1,
        {
            "diffusers, Euler": lambda: diffusers_run("EulerDiscreteScheduler"),
            "azula, Euler": lambda: azula_run("EulerSampler"),
            "diffusers": lambda: diffusers_run("DDIMScheduler", clip_sample=False),
            "azula": lambda: azula_run("DDIMSampler"),
        },
    ),
    "ancestral": (
        1,
        {
            "diffusers": lambda: diffusers_run("DDPMScheduler", clip_sample=False),
            "azula": lambda: azula_run("DDPMSampler"),
        },
    ),
    "dpm++2m": (
        1,
        {
            "diffusers": lambda: diffusers_run("DPMSolverMultistepScheduler"),
            "azula": lambda: azula_run("xEABSampler", order=2),
        },
    ),
    "dpm++3m": (
        1,
        {
            "diffusers": lambda: diffusers_run("DPMSolverMultistepScheduler", solver_order=3),
            "azula": lambda: azula_run("xEABSampler", order=3),
        },
    ),
    "unipc-3": (1, {"diffusers": lambda: diffusers_run("UniPCMultistepScheduler", solver_order=3)}),
    "deis-tab2": (
        1,
        {
            "diffusers": lambda: diffusers_run("DEISMultistepScheduler", solver_order=3),
            "azula": lambda: azula_run("zABSampler", order=3),
        },
    ),
    "exponential-ab": (1, {"azula": lambda: azula_run("xEABSampler", order=3)}),
    "ipndm": (1, {"diffusers": lambda: diffusers_run("IPNDMScheduler")}),
    "dpm++2m-sde": (
        1,
        {"diffusers": lambda: diffusers_run("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++")},
    ),
    "sa-solver": (1, {"diffusers": lambda: diffusers_run("SASolverScheduler")}),
}  # fmt: skip


def medians(runs: dict[str, Run]) -> dict[str, float]:
    """Median microseconds a step, the runs interleaved."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(REPEATS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) / STEPS * 1e6)
    return {name: statistics.median(v) for name, v in times.items()}


def main() -> None:
    """Print the tables."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(2)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, two threads")
    print(f"MLP 3-128-128-2, B={BATCH}, {STEPS} steps; medians of {REPEATS} interleaved runs")

    def sample(name: str) -> Run:
        if name in OPAQUE:
            field = solvers.ODE(lambda t, x: NET(x, t))
            return lambda: solvers.solve(field, torch.randn(BATCH, 2), solver=name, grid=GRID)
        return lambda: MODEL.sample(BATCH, solver=name, steps=STEPS)

    wanted = sys.argv[1:] or list(METHODS)
    times = medians({"network": alone(), "by hand": by_hand, "ours": sample("euler-maruyama")})
    print("\nEuler-Maruyama, us a step: " + ", ".join(f"{k} {v:.0f}" for k, v in times.items()))
    print(f"ours / by hand: {times['ours'] / times['by hand']:.3f} (asked: at most 1.08)\n")
    print(f"{'method':16} {'network':>8} {'ours adds':>10} {'leanest peer adds':>18} {'ratio':>6}   all")
    for name in wanted:
        evaluations, peers = METHODS[name]
        runs = {"network": alone(evaluations * STEPS), "ours": sample(name)}
        for peer, make in peers.items():
            try:
                runs[peer] = make()
                runs[peer]()
            except Exception as error:  # not installed here, or not offered by the version that is
                runs.pop(peer, None)
                print(f"  ({peer}: {type(error).__name__}: {str(error)[:60]})")
        times = medians(runs)
        base = times.pop("network")
        added = {peer: t - base for peer, t in times.items()}
        own = added.pop("ours")
        least = min(added, key=lambda k: added[k])
        everyone = ", ".join(f"{k} {v:.0f}" for k, v in added.items())
        lean = f"{added[least]:.0f} {least}"
        print(f"{name:16} {base:8.0f} {own:10.0f} {lean:>18} {own / added[least]:6.2f}   {everyone}")


if __name__ == "__main__":
    main()
