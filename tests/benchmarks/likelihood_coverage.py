"""Whether stated errors hold: `python tests/benchmarks/likelihood_coverage.py [problem ...]`.

1000 pairs of a point and a seed on every problem, 100 points and 10 seeds (for the exact trace, where nothing
is random, 1000 points; 200 where d is 64, 100 of networks and of data mixtures). Truth is the model's own
log-density at 1e-8 with 129 nodes and the exact trace. Where probes dominate, 95 % intervals should cover 93
to 97 %; where the solver does, at least 95 %, and the stated bound should be at most ten times the true error
at the median. Under a true coverage of 95 %
a count of 1000 independent pairs lies in 93.2 to 96.6 % in 98 runs of 100.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import trained
from torch import Tensor

import sdediff
from sdediff import Exact, Hutchinson
from sdediff.reference import eight_gaussians, random_mixture, random_product
from sdediff.text import aligned, machine

F64 = torch.float64
POINTS, SEEDS = 100, 10
TIGHT = {"rtol": 1e-8, "atol": 1e-8, "nodes": 129, "divergence": Exact()}
Problem = tuple[sdediff.DiffusionModel, Tensor]


def closed_form(data: sdediff.reference.GaussianMixture, process: sdediff.GaussianProcess) -> Problem:
    """A model of exact score, and points of its data."""
    return data.model(process), data.sample(1000 if data.dim < 64 else 200, seed=3, dtype=F64)


def of_network(make: Callable[[], trained.Trained]) -> Problem:
    """A trained network in double precision, and held-out points."""
    problem = make()
    return problem.model.double(), problem.held_out[:100].double()


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "eight Gaussians, VP": lambda: closed_form(eight_gaussians(dtype=F64), sdediff.VP()),
    "mixture d=2, SubVP": lambda: closed_form(random_mixture(2, 3, seed=0, dtype=F64), sdediff.SubVP()),
    "mixture d=8, Cosine": lambda: closed_form(random_mixture(8, 4, seed=1, dtype=F64), sdediff.Cosine()),
    "mixture d=16, VP": lambda: closed_form(random_mixture(16, 4, seed=0, dtype=F64), sdediff.VP()),
    "mixture d=16, VE": lambda: closed_form(random_mixture(16, 4, seed=0, dtype=F64), sdediff.VE()),
    "product d=16, EDM": lambda: closed_form(random_product(16, seed=0, dtype=F64), sdediff.EDM()),
    "mixture d=64, flow": lambda: closed_form(
        random_mixture(64, 4, seed=0, dtype=F64), sdediff.RectifiedFlow()
    ),
    "digits mixture, VP": lambda: of_network(trained.digits_mixture),
    "patches mixture, VP": lambda: of_network(trained.patches_mixture),
    "digits MLP": lambda: of_network(trained.digits_mlp),
    "table MLP": lambda: of_network(trained.table_mlp),
}


def covered(r: sdediff.LogLikelihood, truth: Tensor) -> float:
    """Share of 95 % intervals that hold the truth."""
    low, high = r.interval(0.95)
    return float(((low <= truth) & (truth <= high)).double().mean())


def measure(name: str) -> list[tuple[str, ...]]:
    """Rows of the table for one problem."""
    model, x = PROBLEMS[name]()
    truth = model.log_prob(x, **TIGHT)
    rows = []
    many, known = x[:POINTS].repeat(SEEDS, *(1,) * (x.ndim - 1)), truth[:POINTS].repeat(SEEDS)
    for divergence in (Hutchinson(2), Hutchinson(4), Hutchinson(2, pattern="fresh")):
        r = model.log_likelihood(many, divergence=divergence, seed=5)
        z = ((r.log_prob - known) / r.std_error).square().mean().sqrt()
        what = f"{divergence.probes} {divergence.pattern}"
        error = (r.log_prob - known).square().mean().sqrt()
        stated = r.std_error.square().mean().sqrt()
        median = f"{float(r.degrees.median()):.0f}"
        rows.append(
            (name, what, f"{error:.3f}", f"{stated:.3f}", f"{covered(r, known):.1%}", f"{z:.2f}", median)
        )
    for tolerance in (1e-4, 1e-6):
        r = model.log_likelihood(x, divergence=Exact(), rtol=tolerance, atol=tolerance)
        error = (r.log_prob - truth).abs()
        ratio = (r.solver_error / error).median()
        held = float((error <= r.solver_error).double().mean())
        what = f"exact, {tolerance:.0e}"
        rows.append(
            (
                name,
                what,
                f"{error.median():.1e}",
                f"{r.solver_error.median():.1e}",
                f"{held:.1%}",
                f"{ratio:.1f}",
                "",
            )
        )
    return rows


def main() -> None:
    """All problems, or those named."""
    print(machine())
    print("probes: error and stated are root mean squares, z the spread of error over standard error;")
    print("exact: medians, and the median ratio of stated to true error")
    rows = [("problem", "trace", "error", "stated", "covers", "z, ratio", "degrees")]
    for name in sys.argv[1:] or PROBLEMS:
        new = measure(name)
        print(aligned([rows[0], *new], left=2), flush=True)
        rows += new


if __name__ == "__main__":
    main()
