"""What a training step costs beside a bare forward, backward and AdamW loop on the same network.

    python tests/benchmarks/training_step.py

The bare loop draws a batch, times and noise with torch's generator, computes the EDM loss, and steps fused
AdamW: no average, no clipping, no log. Ours is `fit` with all its defaults: low-discrepancy times, noise that
depends on the row alone, clipping, weight average, a log line every 100 steps. Blocks of steps alternate;
printed are medians over blocks and their ratio.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

import sdediff

BLOCKS, STEPS = 7, 100

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP 2-D, 256x4, batch 256": (lambda: sdediff.networks.MLP(dim=2, hidden=256, blocks=4), (2,), 256),
    "MLP 64-D, 512x4, batch 256": (lambda: sdediff.networks.MLP(dim=64, hidden=512), (64,), 256),
    "UNet 8x8, base 32, batch 128": (lambda: sdediff.networks.UNet(channels=1, base=32), (1, 8, 8), 128),
}


def bare(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, batch: int, steps: int) -> float:
    """Seconds a step of the loop anyone would write."""
    began = time.perf_counter()
    for _ in range(steps):
        z = x[torch.randint(len(x), (batch,))]
        sigma = (torch.randn(batch) * 1.2 - 0.5).exp()
        s = sigma.view(-1, *(1,) * (z.ndim - 1))
        eps = torch.randn_like(z)
        norm = (1 + s**2).sqrt()
        output = net((z + s * eps) / norm, sigma.log() / 4)
        loss = (output - (s * z - eps) / norm).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return (time.perf_counter() - began) / steps


def ours(model: sdediff.DiffusionModel, x: Tensor, batch: int, steps: int) -> float:
    """Seconds a step of `fit`, its set-up left out: the difference of a long and a short run."""
    spans = []
    for n in (steps // 5, steps + steps // 5):
        began = time.perf_counter()
        sdediff.fit(model, x, steps=n, batch_size=batch, units="keep", progress=False)
        spans.append(time.perf_counter() - began)
    return (spans[1] - spans[0]) / steps


def main() -> None:
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads; ms a step, median of {BLOCKS} blocks"
    )
    for name, (make, shape, batch) in NETWORKS.items():
        torch.manual_seed(0)
        net, x = make(), torch.randn(4096, *shape)
        model = sdediff.DiffusionModel(make(), sdediff.EDM(), "edm", shape)
        model.set_units(x)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
        steps = STEPS if len(sys.argv) < 2 else int(sys.argv[1])
        rows = [(bare(net, optimizer, x, batch, steps), ours(model, x, batch, steps)) for _ in range(BLOCKS)]
        first, second = (statistics.median(column) * 1e3 for column in zip(*rows, strict=True))
        ratio = statistics.median(b / a for a, b in rows)
        print(f"{name:32s} bare {first:8.3f}  fit {second:8.3f}  ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
