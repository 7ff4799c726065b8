"""Make the diagrams of docs/choosing_a_solver.md and print their tables: `python docs/make_diagrams.py`.

Names of pictures after it make these alone.

Exact scores, so that what is seen is the solvers' doing alone. A few minutes on one CPU core.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import sdediff
from sdediff import bench, viz

FOLDER = Path(__file__).resolve().parent / "images"

#: By the picture's name: the problem, the solvers, and the other arguments of `bench.compare`.
DIAGRAMS: dict[str, tuple[Any, list[str], dict[str, Any]]] = {
    "solvers_flow": (
        "product-16",
        [
            "ddim",
            "heun",
            "edm-heun",
            "dpm++2m",
            "deis-tab3",
            "unipc-3",
            "gaussian-multistep",
            "gaussian-multistep:grid=fitted",
            "dopri5",
            "torchdiffeq/dopri5",
        ],
        {"nfe": (5, 8, 10, 15, 20, 30), "samples": 500, "tolerances": (1e-1, 1e-2, 1e-3, 1e-4)},
    ),
    "solvers_process": (
        "eight-gaussians",
        ["ddim", "heun", "dpm++2m", "unipc-3", "gaussian-multistep", "dopri5"],
        {
            "nfe": (5, 10, 20, 50, 100),
            "tolerances": (1e-1, 1e-2, 1e-3, 1e-4),
            "process": sdediff.RectifiedFlow(),
        },
    ),
    "solvers_law": (
        "mixture-4",
        [
            "euler-maruyama",
            "ancestral",
            "stochastic-heun",
            "dpm++2m-sde",
            "seeds-2",
            "sa-solver",
            "er-sde",
            "pc",
        ],
        {"nfe": (5, 8, 10, 15, 20, 50, 100), "samples": 2000},
    ),
    "solvers_strong": (
        sdediff.reference.GaussianMixture([[-0.7, 0.0], [0.7, 0.3]], 0.3),
        ["euler-maruyama", "ancestral", "stochastic-heun", "sra1", "dpm++2m-sde", "er-sde"],
        {
            "nfe": (10, 20, 50, 100, 200),
            "samples": 300,
            "measure": "strong",
            "title": "two overlapping Gaussians",
        },
    ),
}


def main() -> None:
    """Draw the pictures."""
    FOLDER.mkdir(exist_ok=True)
    for name in sys.argv[1:] or DIAGRAMS:
        problem, names, options = DIAGRAMS[name]
        report = bench.compare(problem, names, repeats=5, seconds=40.0, **options)
        viz.save(report.figure(), FOLDER / f"{name}.png", dpi=110)
        print(f"{name}\n\n{report.table()}\n", flush=True)


if __name__ == "__main__":
    main()
