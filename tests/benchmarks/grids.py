"""Grids of few steps fitted to a model, against the default and the named ones.

`python tests/benchmarks/grids.py` prints the root mean square error at the end of the probability flow over
1000 samples that the fit has not seen: a rotated product of three-mode mixtures in 16 dimensions (exact flow
map) and a mixture in 16 dimensions (a tight solve), VP, float64.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

import sdediff
import solvers
from sdediff import reference
from sdediff.text import machine

F64 = torch.float64
PROBLEMS: dict[str, reference.ClosedForm] = {
    "product-16": reference.random_product(16, dtype=F64),
    "mixture-16": reference.random_mixture(16, dtype=F64),
}
SOLVERS = ("ddim", "dpm++2m", "dpm++3m", "unipc-3", "gaussian-multistep", "heun")


def truth(data: reference.ClosedForm, model: sdediff.DiffusionModel, z: Tensor) -> Tensor:
    """Where the exact flow takes z."""
    process = model.process
    if isinstance(data, reference.RotatedProduct):
        return data.flow(process, z, process.t_max, process.t_min)
    return solvers.solve(model.problem(), z, solver=solvers.Dopri5(rtol=1e-8, atol=1e-8)).x


def main() -> None:
    """Print the table."""
    print(f"{'problem':11s} {'solver':19s} steps  default  best named  fitted  default/fitted  s to fit")
    for name, data in PROBLEMS.items():
        model = data.model(sdediff.VP())
        noise = torch.randn(1000, data.dim, generator=torch.Generator().manual_seed(1), dtype=F64)
        z = model.prior_at(1.0).transform(noise)
        exact = truth(data, model, z)

        def error(solver: str, grid: object) -> float:
            x = solvers.solve(model.problem(), z, solver=solver, grid=grid).x  # noqa: B023
            return float((x - exact).square().mean().sqrt())  # noqa: B023

        for solver in SOLVERS:
            for steps in (5, 8, 10):
                began = time.perf_counter()
                fitted = sdediff.fit_grid(model, steps, solver, seed=0)
                seconds = time.perf_counter() - began
                named = min(error(solver, grid(model.process, steps)) for grid in solvers.GRIDS.values())
                default, ours = error(solver, model.process.default_grid(steps)), error(solver, fitted)
                print(
                    f"{name:11s} {solver:19s} {steps:5d} {default:8.4f} {named:11.4f} {ours:7.4f} "
                    f"{default / ours:15.2f} {seconds:9.1f}",
                    flush=True,
                )
    m = machine()
    print(f"{m['cpus']} CPUs, {m['threads']} threads, torch {m['torch']}")


if __name__ == "__main__":
    main()
