"""Handwritten digits, 8 x 8: train, sample with three solvers, bits per dimension with an error bar.

The grey levels are the integers 0..16, spread by uniform noise (dequantised) anew in every batch, so that a
density makes sense. Training lasts some seconds, which is enough to see digits; the demo of the command line
(`sdediff demo`) trains for longer. Writes digits.png.
"""

from __future__ import annotations

import math
import time

import torch

import sdediff
from sdediff import viz

SOLVERS = {  # name: options
    "ddim": {"steps": 50},
    "euler-maruyama": {"steps": 250},
    "dopri5": {"rtol": 1e-3, "atol": 1e-3},
}


def train(images: torch.Tensor) -> sdediff.DiffusionModel:
    """A residual perceptron on flattened images; `sdediff.networks.UNet` is better and slower."""
    torch.manual_seed(0)  # the network's initial weights
    net = sdediff.networks.MLP(dim=64, hidden=192, blocks=3, dropout=0.1)
    model = sdediff.DiffusionModel(net, sdediff.VP(), prediction="edm", data_shape=(1, 8, 8))
    start = time.perf_counter()
    sdediff.fit(model, images, steps=700, batch_size=128, augment=sdediff.dequantise, progress=False)
    print(f"trained 700 steps in {time.perf_counter() - start:.0f} s")
    return model.eval()


def main() -> None:
    """Train, sample, measure."""
    digits = sdediff.data.digits()
    model = train(digits.train)

    rows = {"data": digits.train[:12]}
    for name, options in SOLVERS.items():
        start = time.perf_counter()
        x, solution = model.sample(12, solver=name, seed=1, return_solution=True, **options)
        seconds = time.perf_counter() - start
        print(f"{name:15s} {solution.nfe.float().mean():4.0f} evaluations a sample, {seconds:.1f} s for 12")
        rows[name] = x
    viz.save(viz.image_grid(rows, columns=12, limits=(0.0, 17.0)), "digits.png")

    test = sdediff.dequantise(digits.test[:64], seed=0)
    r = model.log_likelihood(test, rtol=1e-4, atol=1e-4, divergence=sdediff.Hutchinson(probes=2))
    bits = r.bits_per_dim(bin_width=1.0)
    to_bits = 1 / (64 * math.log(2))
    # Errors of the mean: the probes of different images are independent, the solver's errors may not be.
    probes = to_bits * float(r.std_error.square().sum().sqrt()) / len(test)
    solver = to_bits * float(r.solver_error.mean())
    images = float(bits.std()) / math.sqrt(len(test))
    print(f"held-out: {bits.mean():.3f} bits/dim over {len(test)} images, uniformly dequantised, 17 levels;")
    print(f"  standard error {probes:.4f} from probes, {images:.3f} from the choice of images;")
    print(f"  solver error at most {solver:.4f}; prior {r.prior!r}, {r.kind}")


if __name__ == "__main__":
    main()
