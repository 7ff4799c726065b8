"""Variance times cost of stochastic log-likelihoods: `likelihood_stochastic.py [problem ...]`.

The baseline is common practice (score_sde, flow_matching, k-diffusion): one fixed Rademacher probe carried
through one adaptive solve of path and trace together, SciPy's RK45 at 1e-5, here with the network evaluated
once a step and the matched prior. Every estimate is made 200 times at each of some held-out points; `std` is
the root mean variance over the points, `stated` the root mean square of the standard errors, `bias` the mean
error with the exact trace in the place of the probes, so of path and quadrature alone, against an exact trace
at tight tolerances. Time is the median of repeated calls on 32 points, taken in turn; `gain` is the ratio of
variance times time to the baseline's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trained
from torch import Tensor

import sdediff
from sdediff import Exact, Hutchinson
from sdediff.text import aligned, machine

REPEATS, TIMED, ROUNDS = 200, 32, 3
PROBLEMS: dict[str, tuple[Callable[[], trained.Trained], int]] = {  # and how many points
    "digits mixture": (trained.digits_mixture, 8),
    "patches mixture": (trained.patches_mixture, 8),
    "digits MLP": (trained.digits_mlp, 4),
    "digits U-Net": (trained.digits_unet, 1),
    "patches MLP": (trained.patches_mlp, 4),
    "table MLP": (trained.table_mlp, 8),
}
BASELINE = {"solver": "scipy/RK45", "rtol": 1e-5, "atol": 1e-5, "coupled": True}


@dataclass
class Method:
    """Options of a log-likelihood, and what was measured of them."""

    name: str
    options: dict[str, Any]
    divergence: Hutchinson
    seconds: list[float]
    scatter: tuple[float, float, float] = (0.0, 0.0, 0.0)


def methods(model: sdediff.DiffusionModel, tuning: Tensor, layout: tuple[int, ...] | None) -> list[Method]:
    """The baseline first."""
    ours: dict[str, Any] = {}  # defaults
    fitted = sdediff.likelihood.fit_nodes(model, tuning[:32], 65)
    more = sdediff.likelihood.fit_nodes(model, tuning[:32], 129)
    rows = [
        ("one fixed probe, coupled", BASELINE, Hutchinson(1, pattern="fixed")),
        ("fresh, 2 x 65 nodes", ours, Hutchinson(2, pattern="fresh")),
        ("default, 2 x 65 nodes", ours, Hutchinson(2, layout=layout)),
        ("default, 4 x 65 nodes", ours, Hutchinson(4, layout=layout)),
        ("fitted nodes, 2 x 65", ours | {"nodes": fitted}, Hutchinson(2, layout=layout)),
        ("fitted nodes, 4 x 65", ours | {"nodes": fitted}, Hutchinson(4, layout=layout)),
        ("fitted nodes, 4 x 129", ours | {"nodes": more}, Hutchinson(4, layout=layout)),
    ]
    return [Method(name, options, divergence, []) for name, options, divergence in rows]


def scatter(method: Method, model: sdediff.DiffusionModel, x: Tensor, truth: Tensor) -> None:
    """Variance over repeats, stated variance, and bias with the exact trace."""
    many = x.repeat_interleave(REPEATS, dim=0)
    r = model.log_likelihood(many, divergence=method.divergence, seed=11, **method.options)
    values = r.log_prob.view(len(x), REPEATS)
    exact = model.log_likelihood(x, divergence=Exact(), **method.options).log_prob
    stated = r.std_error.square().mean().sqrt()
    bias = (exact - truth).abs().mean()
    method.scatter = (float(values.var(dim=1).mean().sqrt()), float(stated), float(bias))


def measure(name: str) -> None:
    """Print one problem's table."""
    make, count = PROBLEMS[name]
    problem = make()
    model, held_out = problem.model, problem.held_out
    # Flattened images are told to be images; the table's columns have no order.
    layout = (8, 8) if model.data_shape == (64,) else None
    every = methods(model, problem.tuning, layout)
    x = held_out[:count]
    truth = model.log_prob(x, divergence=Exact(), rtol=1e-7, atol=1e-7, nodes=257)
    for method in every:
        scatter(method, model, x, truth)
    batch = held_out[-TIMED:]
    for _ in range(ROUNDS):
        for method in every:
            start = time.perf_counter()
            model.log_likelihood(batch, divergence=method.divergence, **method.options)
            method.seconds.append(time.perf_counter() - start)
    head = ("method", "std", "stated", "bias", "s", "gain")
    cost = [sorted(m.seconds)[ROUNDS // 2] for m in every]
    first = every[0].scatter[0] ** 2 * cost[0]
    rows = [
        (
            m.name,
            f"{m.scatter[0]:.3f}",
            f"{m.scatter[1]:.3f}",
            f"{m.scatter[2]:.4f}",
            f"{seconds:.2f}",
            f"{first / (m.scatter[0] ** 2 * seconds):.0f}",
        )
        for m, seconds in zip(every, cost, strict=True)
    ]
    print(f"\n{name}, d = {model.dim}, {count} points x {REPEATS} repeats, nats")
    print(aligned([head, *rows], left=1), flush=True)


def main() -> None:
    """All problems, or those named."""
    print(machine())
    for name in sys.argv[1:] or PROBLEMS:
        measure(name)


if __name__ == "__main__":
    main()
