"""A diffusion model as the prior of an inverse problem: the most probable signal, and MALA.

A signal x of six numbers is seen through three noisy averages, y = A x + noise. The prior is a diffusion
model: log p(x) and its gradient come from `model.distribution()`, as those of any torch distribution would.
Its data are Gaussian here, so the posterior is known: the most probable signal is compared with its mean, and
samples by the Metropolis-adjusted Langevin algorithm (Roberts & Tweedie 1996) with its mean and covariance.
"""

from __future__ import annotations

import torch
from torch import Tensor

import sdediff
from solvers.noise import Stream, normal, uniform

DIM, NOISE = 6, 0.3
PLACES = torch.arange(DIM, dtype=torch.float64)
MEAN = torch.sin(PLACES)
COV = torch.exp(-0.5 * (PLACES[:, None] - PLACES) ** 2) + 0.05 * torch.eye(DIM, dtype=torch.float64)
A = torch.kron(torch.eye(3, dtype=torch.float64), torch.full((1, 2), 0.5, dtype=torch.float64))

PRIOR = sdediff.reference.Gaussian(MEAN, COV)
# In the network's place stands the exact denoiser; a trained model is used alike.
LAW = PRIOR.model(sdediff.RectifiedFlow()).distribution(rtol=1e-4, atol=1e-4)


def log_posterior(x: Tensor, y: Tensor) -> Tensor:
    """The log-posterior, log p(x) + log N(y | A x, NOISE^2 I), but for a constant, (n,)."""
    return LAW.log_prob(x) - 0.5 * (y - x @ A.T).square().sum(dim=-1) / NOISE**2


def value_and_slope(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The log-posterior of the rows of x, and its gradient."""
    x = x.detach().requires_grad_()
    value = log_posterior(x, y)
    (slope,) = torch.autograd.grad(value.sum(), x)
    return value.detach(), slope


def exact_posterior(y: Tensor) -> tuple[Tensor, Tensor]:
    """Its mean and covariance: Gaussian conditioning."""
    gain = torch.linalg.solve(A @ COV @ A.T + NOISE**2 * torch.eye(3, dtype=y.dtype), A @ COV).T
    return MEAN + gain @ (y - A @ MEAN), COV - gain @ A @ COV


def most_probable(y: Tensor) -> Tensor:
    """Maximum of the log-posterior by L-BFGS, (DIM,)."""
    x = torch.zeros(1, DIM, dtype=y.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([x], max_iter=30, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = -log_posterior(x, y).sum()
        value.backward()
        return value

    optimiser.step(loss)
    return x.detach()[0]


def mala(y: Tensor, start: Tensor, root: Tensor, chains: int = 256, steps: int = 8) -> tuple[Tensor, float]:
    """States of all chains at the last step, (chains, DIM), and the share of accepted proposals.

    Steps are preconditioned: x + tau C slope + sqrt(2 tau) R noise with C = R R^T.
    """
    tau, rows, accepted = 0.5, torch.arange(chains), 0.0
    x = start + 1.5 * normal(0, rows, Stream.PRIOR, 0, (DIM,), y.dtype) @ root.T  # too wide at first
    value, slope = value_and_slope(x, y)
    for k in range(steps):
        noise = normal(0, rows, Stream.STEP, k, (DIM,), y.dtype)
        there = x + tau * slope @ root @ root.T + (2 * tau) ** 0.5 * noise @ root.T
        new_value, new_slope = value_and_slope(there, y)
        back = torch.linalg.solve(root, (x - there - tau * new_slope @ root @ root.T).T).T / (2 * tau) ** 0.5
        log_ratio = new_value - value + 0.5 * (noise.square().sum(1) - back.square().sum(1))
        take = uniform(0, rows, Stream.SPLIT, k, (), y.dtype).log() < log_ratio
        x, slope = (torch.where(take[:, None], a, b) for a, b in ((there, x), (new_slope, slope)))
        value, accepted = torch.where(take, new_value, value), accepted + float(take.double().mean()) / steps
    return x, accepted


def main() -> None:
    """Solve the problem and compare."""
    truth = LAW.sample().double()
    y = A @ truth + NOISE * normal(1, torch.arange(1), Stream.DATA, 0, (3,), truth.dtype)[0]
    mean, cov = exact_posterior(y)
    found = most_probable(y)
    error = float((found - mean).abs().max())
    print(f"most probable x: {[round(v, 3) for v in found.tolist()]}, off by {error:.1e}")
    states, accepted = mala(y, found, torch.linalg.cholesky(cov))
    z = (states.mean(dim=0) - mean) / (cov.diagonal() / len(states)).sqrt()
    ratio = states.var(dim=0) / cov.diagonal()
    print(f"MALA: {accepted:.0%} accepted; means off by {float(z.abs().max()):.1f} standard errors at most,")
    print(f"      variances {float(ratio.min()):.2f} to {float(ratio.max()):.2f} of the exact ones")
    assert error < 1e-3 and float(z.abs().max()) < 4 and 0.6 < float(ratio.min()) <= float(ratio.max()) < 1.5


if __name__ == "__main__":
    main()
