"""A solver in a package of its own: once installed, its name works wherever a solver's does.

    python examples/05_solver_package.py

The package is one module and three lines of its pyproject.toml:

    [project.entry-points."solvers.methods"]
    ssprk3 = "fastsolvers:SSPRK3"

`pip install fastsolvers` would put the files below into site-packages; here a temporary folder stands in for
it, so that the example installs nothing.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

import torch

import sdediff
import solvers

MODULE = '''
"""Fast solvers."""

import solvers

SSP = solvers.Tableau(3, c=(0.0, 1.0, 0.5), a=((), (1.0,), (0.25, 0.25)), b=(1 / 6, 1 / 6, 2 / 3))


class SSPRK3(solvers.RungeKutta):
    """The third-order method of Shu & Osher (1988), J. Comput. Phys. 77, 439-471, Eq. 2.18."""

    default_steps = 40

    def __init__(self):
        super().__init__(SSP)
'''

FILES = {
    "fastsolvers.py": MODULE,
    "fastsolvers-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: fastsolvers\nVersion: 1.0\n",
    "fastsolvers-1.0.dist-info/entry_points.txt": "[solvers.methods]\nssprk3 = fastsolvers:SSPRK3\n",
}


def main() -> None:
    """Find the solver by its name, sample with it, and measure its order."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in FILES.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        sys.path.insert(0, folder)
        print("ssprk3 is available:", "ssprk3" in solvers.available())

        process, data = sdediff.VP(), sdediff.reference.random_product(dim=4, dtype=torch.float64)
        model = data.model(process)
        x, solution = model.sample(200, solver="ssprk3", return_solution=True)
        print(f"{len(x)} samples of {int(solution.nfe[0])} evaluations each")

        z = process.perturb(data.sample(200, seed=0), process.t_max, seed=0)[0]
        exact = data.flow(process, z, process.t_max, process.t_min) / process.alpha(process.t_min)
        before = None
        for steps in (50, 100, 200, 400):
            error = float((model.decode(z, solver="ssprk3", steps=steps) - exact).square().mean().sqrt())
            order = "" if before is None else f"   observed order {math.log2(before / error):.2f}"
            print(f"{steps:4} steps: error {error:.1e}{order}")
            before = error
        sys.path.remove(folder)


if __name__ == "__main__":
    main()
