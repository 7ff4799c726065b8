"""Print exact log-likelihoods beside other libraries' recipes: `python tests/benchmarks/likelihood_exact.py`.

One run, one thread, held-out points, repeats of all contestants interleaved; times are medians. Errors are
nats against tight settings in float64 (1e-9, 257 nodes) under the contestant's own prior, or against the
mixture's density with the noise at t_min. Needs flow_matching and zuko. For each peer the settings that reach
its error are found on tuning points, and reported on held-out ones. The score_sde recipe is re-created from
its description (Song et al. 2021, arXiv 2011.13456, section 4.3): SciPy's RK45 at 1e-5 on the whole batch,
the network evaluated once for the drift and again for the divergence, the standard prior; with the exact
trace by one vector-Jacobian product a dimension.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import trained
from scipy import integrate
from torch import Tensor

import sdediff
from sdediff import DiffusionModel, Exact

Evaluate = Callable[[DiffusionModel, Tensor], Tensor]
TOLERANCE = 1e-5
#: What is tried on tuning points for the peers' error: nodes and tolerance.
SETTINGS = [(17, 1e-4), (25, 1e-4), (33, 1e-4), (33, 1e-5), (49, 1e-5), (49, 1e-6), (65, 1e-6)]


# -- others --------------------------------------------------------------------------------------------------


def velocity(model: DiffusionModel, t: Tensor, z: Tensor) -> Tensor:
    """dx/dt of the probability flow in the model's units, for flat states; t () or (B,)."""
    c = model.problem(0.0).coefficients(t.double().expand(len(z)))
    x = z.view(-1, *model.data_shape)
    denoised = model.problem(0.0).denoise(t.double().expand(len(z)), x).flatten(1)
    return c.drift_x[:, None].to(z) * z + c.drift_d[:, None].to(z) * denoised


def ends(model: DiffusionModel, x: Tensor) -> tuple[Tensor, float]:
    """Flat states at t_min, and what the units add to their log-density."""
    alpha = model.process.alpha(model.process.t_min)
    z = model.as_state(x).flatten(1) * float(alpha)
    return z, model.dim * float(alpha.log()) - float(model.log_scale)


def score_sde(model: DiffusionModel, x: Tensor) -> Tensor:
    """The recipe of the docstring above."""
    z, units = ends(model, x)
    batch, dim = z.shape

    def slope(t: float, y: object) -> object:
        state = torch.as_tensor(y[: z.numel()]).to(z.dtype).view_as(z)
        when = torch.full((batch,), t, dtype=torch.float64)
        with torch.no_grad():
            drift = velocity(model, when, state)
        with torch.enable_grad():
            point = state.requires_grad_()
            value, trace = velocity(model, when, point), torch.zeros(batch, dtype=z.dtype)
            for i in range(dim):
                trace += torch.autograd.grad(value[:, i].sum(), point, retain_graph=True)[0][:, i]
        return torch.cat([drift.flatten(), trace]).double().numpy()

    start = torch.cat([z.flatten(), torch.zeros(batch)]).double().numpy()
    span = (model.process.t_min, model.process.t_max)
    end = torch.from_numpy(
        integrate.solve_ivp(slope, span, start, method="RK45", rtol=TOLERANCE, atol=TOLERANCE).y[:, -1]
    )
    prior = model.prior_at(span[1], "standard")
    return prior.log_prob(end[: z.numel()].view_as(z)) + end[z.numel() :] + units


def flow_matching(model: DiffusionModel, x: Tensor) -> Tensor:
    """flow_matching's solver; its time runs from noise at 0 to data at 1. It is given the matched prior."""
    from flow_matching.solver import ODESolver

    z, units = ends(model, x)
    low, high = model.process.t_min, model.process.t_max

    def field(x: Tensor, t: Tensor) -> Tensor:
        return (low - high) * velocity(model, high + t.double() * (low - high), x)

    _, log_prob = ODESolver(field).compute_likelihood(
        z,
        model.prior_at(high).log_prob,
        step_size=None,
        method="dopri5",
        atol=TOLERANCE,
        rtol=TOLERANCE,
        exact_divergence=True,
    )
    return log_prob.detach() + units


def zuko(model: DiffusionModel, x: Tensor) -> Tensor:
    """zuko's free-form flow. It is given the matched prior."""
    from zuko.transforms import FreeFormJacobianTransform

    z, units = ends(model, x)
    low, high = model.process.t_min, model.process.t_max
    transform = FreeFormJacobianTransform(
        lambda t, z: velocity(model, t, z), low, high, atol=TOLERANCE, rtol=TOLERANCE, exact=True
    )
    with torch.no_grad():
        end, ladj = transform.call_and_ladj(z)
    return model.prior_at(high).log_prob(end) + ladj + units


# -- ours ----------------------------------------------------------------------------------------------------


def ours(**options: object) -> Evaluate:
    """log_prob with options."""
    return lambda model, x: model.log_prob(x, **options)


PEERS: dict[str, Evaluate] = {"score_sde recipe": score_sde, "flow_matching": flow_matching, "zuko": zuko}
TIGHT = {"rtol": TOLERANCE, "atol": TOLERANCE}
LOOP = Exact(method="loop")
#: Each row changes one thing of the row above.
ABLATION: dict[str, Evaluate] = {
    "coupled, shared RK45, standard prior": ours(
        solver="scipy/RK45", coupled=True, divergence=LOOP, prior="standard", **TIGHT
    ),
    "+ our per-sample dopri5": ours(coupled=True, divergence=LOOP, prior="standard", **TIGHT),
    "+ matched prior": ours(coupled=True, divergence=LOOP, **TIGHT),
    "+ path first, trace at 65 nodes": ours(divergence=LOOP, **TIGHT),
    "+ trace by the quickest method": ours(**TIGHT),
    "+ path at 1e-6: the defaults": ours(),
}


@dataclass
class Subject:
    """A model with points and their log-densities under each prior."""

    name: str
    model: DiffusionModel
    mixture: sdediff.reference.GaussianMixture | None
    truths: dict[str, Tensor]

    def truth(self, x: Tensor, key: str, standard: bool = False) -> Tensor:
        """Tight log-density of x under the model with its matched or the standard prior, float64."""
        if self.mixture is not None:  # with the noise at t_min, as everyone evaluates it
            alpha, t_min = self.model.process.alpha, self.model.process.t_min
            units = self.model.dim * alpha(t_min).log()
            return self.mixture.log_prob(self.model.process, float(alpha(t_min)) * x, t_min) + units
        if key not in self.truths:
            path = trained.folder() / f"truth-{self.name}-{key}-{len(x)}.pt"
            if not path.exists():
                wide = copy.deepcopy(self.model).double()
                r = wide.log_likelihood(x, rtol=1e-9, atol=1e-9, nodes=257, divergence=Exact())
                torch.save([r.log_prob, r.latent], path)
            self.truths[key], self.truths[key + "-latent"] = torch.load(path, weights_only=True)
        value, latent = self.truths[key], self.truths[key + "-latent"].flatten(1)
        if standard:
            t = self.model.process.t_max
            value = value + self.model.prior_at(t, "standard").log_prob(latent)
            value = value - self.model.prior_at(t, "matched").log_prob(latent)
        return value


def timed(subject: Subject, x: Tensor, runs: dict[str, Evaluate], repeats: int) -> dict[str, tuple]:
    """Median seconds and values of each run, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    values = {}
    for _ in range(repeats):
        for name, run in runs.items():
            begin = time.perf_counter()
            values[name] = run(subject.model, x)
            seconds[name].append(time.perf_counter() - begin)
    return {name: (statistics.median(seconds[name]), values[name]) for name in runs}


def errors(subject: Subject, name: str, x: Tensor, key: str, value: Tensor) -> Tensor:
    """|value - truth|, each against the truth under its own prior."""
    return (
        value - subject.truth(x, key, "score_sde" in name or "standard" in name or "our per" in name)
    ).abs()


def show(subject: Subject, x: Tensor, found: dict[str, tuple], against: list[str]) -> None:
    """Print one row a contestant."""
    print(f"{'':38} {'mean error':>10} {'max':>8} {'seconds':>8}  wall time of {', '.join(against)} over it")
    for name, (seconds, value) in found.items():
        error = errors(subject, name, x, "held_out", value)
        ratios = "  ".join(f"{found[peer][0] / seconds:5.1f}" for peer in against)
        print(
            f"{name:38} {float(error.mean()):10.5f} {float(error.max()):8.4f} {seconds:8.2f}  {ratios}",
            flush=True,
        )


def settings_for(subject: Subject, tuning: Tensor) -> dict[str, tuple[int, float]]:
    """For each peer, the first of SETTINGS whose mean error on tuning points is at most the peer's own."""
    reached = {}
    for nodes, tolerance in SETTINGS:
        value = subject.model.log_prob(tuning, nodes=nodes, rtol=tolerance, atol=tolerance)
        reached[nodes, tolerance] = float(errors(subject, "", tuning, "tuning", value).mean())
    chosen = {}
    for peer, run in PEERS.items():
        goal = float(errors(subject, peer, tuning, "tuning", run(subject.model, tuning)).mean())
        chosen[peer] = next((s for s, error in reached.items() if error <= goal), SETTINGS[-1])
        nodes, tolerance = chosen[peer]
        print(
            f"tuning: {peer} {goal:.5f}; {nodes} nodes, {tolerance:g}: {reached[nodes, tolerance]:.5f}",
            flush=True,
        )
    return chosen


def beside_peers(subject: Subject, x: Tensor, tuning: Tensor, repeats: int) -> None:
    """Print the contestants, ours also with the settings that reach each peer's error on tuning points."""
    mine = {"ours, defaults": ours()}
    for nodes, tolerance in settings_for(subject, tuning).values():
        mine[f"ours, {nodes} nodes, {tolerance:g}"] = ours(nodes=nodes, rtol=tolerance, atol=tolerance)
    show(subject, x, timed(subject, x, {**PEERS, **mine}, repeats), list(PEERS))


def main() -> None:
    """Print a table and an ablation for each subject."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="*", default=["digits_mlp", "digits_mixture"])
    parser.add_argument("--points", type=int, default=32)
    parser.add_argument("--tuning", type=int, default=8, help="points to choose settings on")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=("peers", "ablation"), help="print one of the two tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{options.points} points, one thread, Python {platform.python_version()}, torch {torch.__version__}"
    )
    for name in options.subjects:
        made = getattr(trained, name)()
        subject = Subject(name, made.model, made.mixture, {})
        x, tuning = made.held_out[: options.points], made.tuning[: options.tuning]
        print(f"\n{name}")
        if options.only != "ablation":
            beside_peers(subject, x, tuning, options.repeats)
        if options.only != "peers":
            show(subject, x, timed(subject, x, ABLATION, 1), [next(iter(ABLATION))])


if __name__ == "__main__":
    main()
