"""Print bounds of log-probabilities against the truth: `python tests/benchmarks/discrete.py`.

A Gaussian mixture of diagonal covariances, 17 levels, d = 64, analytic scores, float64, the exact trace. The
model of the mixture before rounding, whose density over the cell of x integrates to a known number, at some
standard deviations of its components, in cells; then the model of the levels themselves, against P(x) and
against what its density integrates to. Columns: gap to the truth in bits/dim, a mean over points, of the
importance-weighted bound by number of draws K, each K from all 20 draws by groups; the standard error at K =
20; what the gap would be without -log K; the largest excess of a point's bound over its truth in its own
standard errors; the stated solver error; seconds of the 20 draws (of the fit in brackets).
"""

from __future__ import annotations

import math
import platform
import time

import torch
from torch import Tensor

import sdediff
from sdediff.likelihood import Dequantisation, TruncatedNormal, Uniform
from sdediff.likelihood.discrete import combine, draw
from sdediff.reference import DiscretisedMixture, GaussianMixture

DIM, LEVELS, POINTS, DRAWS = 64, 17, 8, (1, 2, 5, 10, 20)
OPTIONS = {"rtol": 1e-5, "atol": 1e-5, "cond": None, "seed": 0, "indices": None, "t_span": None}


def problem(std: float, centred: bool) -> DiscretisedMixture:
    """Four components, means in the middle of the range, standard deviations within 30 % of `std` cells."""
    generator = torch.Generator().manual_seed(0)
    means = 3 + 11 * torch.rand(4, DIM, generator=generator, dtype=torch.float64)
    stds = std * (0.7 + 0.6 * torch.rand(4, DIM, generator=generator, dtype=torch.float64))
    cells = sdediff.Quantisation(LEVELS, centred=centred)
    return DiscretisedMixture(GaussianMixture(means, stds.square(), [1, 2, 3, 4]), cells)


def measure(model, x: Tensor, data: DiscretisedMixture, dequantisation: Dequantisation, truths, name) -> None:
    """A line for each truth, {suffix: function of t_min}, from one set of draws."""
    start = time.perf_counter()
    points, weights = draw(model, x, data.quantisation, "dopri5", dequantisation, DRAWS[-1], **OPTIONS)
    seconds, bits = time.perf_counter() - start, DIM * math.log(2)
    means = {k: (weights.unflatten(0, (-1, k)).logsumexp(1) - math.log(k)).mean(0) for k in DRAWS}
    last = combine(points, weights, importance_weighted=True)
    error = float(last.std_error.square().sum().sqrt()) / len(x) / bits
    for suffix, truth_at in truths.items():
        truth = truth_at(points.t_span[0])
        gaps = [float((truth - mean).mean()) / bits for mean in means.values()]
        excess = float(((last.log_prob - truth) / last.std_error).max())
        print(
            f"{name + suffix:30} "
            + " ".join(f"{gap:7.4f}" for gap in gaps)
            + f" +-{error:6.4f} {gaps[-1] - math.log(DRAWS[-1]) / bits:8.4f} {excess:6.1f}"
            + f" {float(last.solver_error.mean()) / bits:7.4f} {seconds:5.0f}",
            flush=True,
        )


def main() -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    process = sdediff.VP()
    print(f"one thread, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"{'':30} " + " ".join(f"{f'K={k}':>7}" for k in DRAWS), end="")
    print(f" {'+-':>8} {'no -logK':>8} {'excess':>6} {'solver':>7} {'s':>5}")
    for std in (1.0, 1.5, 2.0, 3.0):
        data = problem(std, centred=False)
        model, x = data.continuous.model(process), data.sample(POINTS, seed=1)
        truths = {"": lambda t, data=data, x=x: data.log_continuous_cell_mass(process, x, t)}
        measure(model, x, data, Uniform(), truths, f"std {std} uniform")
        start = time.perf_counter()
        fitted = sdediff.fit_dequantiser(model, data.sample(4000, seed=2), data.quantisation)
        seconds = time.perf_counter() - start
        measure(model, x, data, fitted, truths, f"std {std} variational ({seconds:.0f} s)")
    wide = TruncatedNormal(tau=0.5)
    measure(model, x, data, wide, truths, f"std {std} trunc. normal, tau 0.5")
    data = problem(1.0, centred=True)
    x = data.sample(POINTS // 4, seed=1)
    truths = {
        ", P(x)": lambda t: data.log_probability(x),
        ", mass": lambda t: data.log_cell_mass(process, x, t),
    }
    measure(data.model(process), x, data, TruncatedNormal(), truths, "levels, trunc. normal")


if __name__ == "__main__":
    main()
