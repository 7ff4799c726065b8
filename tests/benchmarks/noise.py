"""Print what a step's noise costs beside one torch.randn: `python tests/benchmarks/noise.py`.

Microseconds a step of a solve of 200 steps (20 for the wide rows), noise drawn in blocks as a solve draws it,
interleaved with `torch.randn` of the same shape; medians and quartiles of the repeats. Two threads, float32.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

import torch

from solvers import Noise

REPEATS = 41


def microseconds(run: Callable[[], None], steps: int) -> float:
    """Time of one run, a step."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / steps * 1e6


def measure(batch: int, dim: int, steps: int) -> dict[str, torch.Tensor]:
    """Times of the repeats, interleaved."""

    def randn() -> None:
        for _ in range(steps):
            torch.randn(batch, dim)

    def ours() -> None:
        noise = Noise(0, torch.arange(batch), (dim,))
        for k in range(steps):
            noise.at(k).normal()

    times = [[microseconds(run, steps) for run in (randn, ours)] for _ in range(REPEATS + 2)][2:]
    ahead, behind = torch.tensor(times).T
    return {"randn": ahead, "ours": behind, "difference": behind - ahead}


def main() -> None:
    """Print one row a shape."""
    torch.set_num_threads(2)
    print(f"two threads, Python {platform.python_version()}, torch {torch.__version__}, {REPEATS} repeats")
    print(
        f"{'batch':>6} {'dim':>5} {'steps':>5}   "
        + "".join(f"{c:>26}" for c in ("randn", "ours", "difference"))
    )
    for batch, dim, steps in ((512, 2, 200), (512, 2, 1000), (512, 2, 20), (64, 3072, 20)):
        cells = []
        for values in measure(batch, dim, steps).values():
            low, median, high = values.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
            cells.append(f"{median:>10.1f} [{low:.1f}, {high:.1f}]".rjust(26))
        print(f"{batch:>6} {dim:>5} {steps:>5}   " + "".join(cells))


if __name__ == "__main__":
    main()
