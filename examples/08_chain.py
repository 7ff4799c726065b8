"""The discrete chain of DDPM and its limit: one network in continuous time, as chains of few and many steps.

A network is trained in continuous time. As a chain it needs variances: fixed, fitted to data (one a step), or
learned by a second, small network for a chain of 8 steps. Their variational bounds, the three terms apart,
stand next to the ELBO of the reverse SDE, which is their limit, and to the density of the probability flow.
The data's own density is known here.
"""

from __future__ import annotations

import time

import torch

import sdediff
from sdediff.chain import Chain, VariationalLoss
from sdediff.networks import MLP, WithVariance

DATA = sdediff.reference.GaussianMixture(
    means=[[-1.0, 0.0], [1.0, 0.0]], covs=[[[0.01, 0.0], [0.0, 0.005]], [[0.3, 0.1], [0.1, 1.0]]]
)
PROCESS = sdediff.VP(t_min=3e-3)
SHORT = Chain.of(PROCESS, 8)


def train() -> sdediff.DiffusionModel:
    """Means in continuous time, then variances of the short chain, some seconds."""
    torch.manual_seed(0)  # the networks' initial weights
    net = WithVariance(MLP(dim=2, hidden=64, blocks=2), head=MLP(dim=2, hidden=32, blocks=1))
    model, x = sdediff.DiffusionModel(net, PROCESS, data_shape=(2,)), DATA.sample(20_000, seed=0)
    start = time.perf_counter()
    sdediff.fit(model, x, steps=300, progress=False)
    print(f"trained in continuous time, 300 steps in {time.perf_counter() - start:.1f} s")
    net.network.requires_grad_(False)
    start = time.perf_counter()
    sdediff.fit(model, x, loss=VariationalLoss(SHORT, "learned"), steps=200, units="keep", progress=False)
    print(f"variances of 8 steps learned, 200 steps in {time.perf_counter() - start:.1f} s")
    return model


def print_bounds(model: sdediff.DiffusionModel, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The bounds of chains of several lengths, all of the same network."""
    print("\nsteps  variance   decoder  transitions   prior    bound  bits/dim in cells of 1/8")
    bounds = {}
    for chain in (SHORT, Chain.of(PROCESS, 40), Chain.of(PROCESS, 200)):
        fitted = chain.reverse(model).fit_variances(DATA.sample(100, seed=3))
        kinds = {"posterior": "posterior", "forward": "forward", "fitted": fitted}
        for name, variance in (kinds | ({"learned": "learned"} if chain is SHORT else {})).items():
            terms, draws = (7, 32) if chain is SHORT else (20, 2)
            r = chain.bound(model, x, variance=variance, terms=terms, draws=draws)
            parts = (float(p.mean()) for p in (r.decoder, -r.transitions.sum(1), -r.prior, r.total))
            bits = float(r.bits_per_dim(1 / 8).mean())
            print(
                f"{chain.steps:5d}  {name:9s}" + "{:9.3f} {:12.3f} {:7.3f} {:8.3f}".format(*parts),
                f"{bits:8.3f}",
            )
            bounds[f"{chain.steps} {name}"] = r.total
    return bounds


def print_continuous(model: sdediff.DiffusionModel, x: torch.Tensor) -> torch.Tensor:
    """The same network as a diffusion in continuous time; returns the ELBO."""
    elbo, flow = model.elbo(x, draws=32), model.log_prob(x, rtol=1e-4, atol=1e-4)
    print(f"\ncontinuous: ELBO {elbo.log_prob.mean():.3f}, probability flow {flow.mean():.3f} nats;")
    print(f"            the data's own density {DATA.log_prob(None, x, None).mean():.3f}")
    return elbo.log_prob


def main() -> None:
    """Train, score, sample."""
    model, x = train(), DATA.sample(300, seed=1)
    bounds, elbo = print_bounds(model, x), print_continuous(model, x)
    print("\nlearned variances of 8 steps gain, in nats (standard error):")
    for other in ("posterior", "forward", "fitted"):
        gain = bounds["8 learned"] - bounds[f"8 {other}"]
        error = float(gain.std()) / len(x) ** 0.5
        print(f"  on {other:9s} {float(gain.mean()):8.3f} ({error:.3f})")
        assert float(gain.mean()) > 3 * error
    for steps in (8, 40, 200):
        gap = elbo - bounds[f"{steps} fitted"]
        print(f"ELBO less bound of {steps:3d} steps {gap.mean():6.3f} ({gap.std() / len(x) ** 0.5:.3f})")
    print("largest error of the samples' covariance (standard error about 0.02):")
    for variance in ("posterior", "forward", "learned"):
        cov = torch.cov(SHORT.sample(model, 4000, variance=variance).double().T)
        print(f"  8 steps, {variance:9s} {float((cov - DATA.cov).abs().max()):.3f}")


if __name__ == "__main__":
    main()
