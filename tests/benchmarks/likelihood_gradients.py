"""Cost of a gradient of log_prob, in units of a plain log_prob of the same settings.

Networks with random weights in float64, one thread; medians of three runs after one that is not counted.

    python tests/benchmarks/likelihood_gradients.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import sdediff

REPEATS = 3
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("adjoint, exact trace", {}, "adjoint"),
    ("adjoint, Hutchinson(2)", {"divergence": sdediff.Hutchinson(2)}, "adjoint"),
    (
        "adjoint, Hutchinson(2), fixed",
        {"divergence": sdediff.Hutchinson(2, pattern="fixed")},
        "adjoint",
    ),
    ("checkpoint rk4 50, exact trace", {"solver": "rk4", "steps": 50}, "checkpoint"),
    (
        "checkpoint rk4 50, Hutchinson(2)",
        {"solver": "rk4", "steps": 50, "divergence": sdediff.Hutchinson(2)},
        "checkpoint",
    ),
]


def network(dim: int) -> sdediff.DiffusionModel:
    torch.manual_seed(0)
    net = sdediff.networks.MLP(dim=dim, hidden=128, blocks=3).double()
    nn.init.normal_(net.output.weight, std=0.1)
    return sdediff.DiffusionModel(net, sdediff.VP(), "edm", (dim,))


def seconds(run: Callable[[], object]) -> float:
    """Processor time, which other programs touch least."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def measure(model: sdediff.DiffusionModel, x: Tensor, options: dict[str, Any], gradient: str) -> list[float]:
    """Seconds of a plain value, of a gradient by x, and of one by x and all parameters."""

    def value(parameters: bool) -> Tensor:
        return model.log_prob(x, gradient=gradient, parameters=parameters, **options).sum()

    return [
        seconds(lambda: model.log_prob(x.detach(), coupled=gradient == "checkpoint", **options)),
        seconds(lambda: torch.autograd.grad(value(False), x)),
        seconds(lambda: value(True).backward()),
    ]


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'d':>3} {'rows':>4}  {'way':34} {'log_prob':>9} {'by x':>7} {'by all':>7}  (times a log_prob)")
    for dim, rows in ((2, 64), (16, 32), (64, 8)):
        model = network(dim)
        x = torch.randn(rows, dim, dtype=torch.float64).requires_grad_()
        for name, options, gradient in CASES:
            plain, by_x, by_all = measure(model, x, options, gradient)
            ratios = f"{by_x / plain:6.1f}x {by_all / plain:6.1f}x"
            print(f"{dim:3} {rows:4}  {name:34} {plain:8.2f}s {ratios}", flush=True)


if __name__ == "__main__":
    main()
