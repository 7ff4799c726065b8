"""MNIST at 28 x 28: train, draw, and measure held-out bits per dimension by kind of dequantisation.

`python tests/benchmarks/mnist.py mnist10k.npz:images` trains as configs/mnist.yaml says (through `sdediff
train`, into `--run`; a model that is there already is taken, a run that was cut is resumed), writes a picture
of samples to `--picture` and prints bits/dim of the first held-out images: of a single uniform draw (an upper
bound of the probability's bits, in expectation over the draw), of the noise of t_min cut to the cell, and of
a dequantiser fitted to the model on training images. The trace of 784 dimensions is Hutchinson's, so there is
no importance weighting. Errors are standard errors of the mean over images, the scatter of draws and probes
included; beside them stands the mean of the stated bound on each value's solver error.
Results are written to `--out` as they come.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from runs import CONFIGS, train
from torch import Tensor

import sdediff
from sdediff import viz
from sdediff.data import open_dataset, split

SOLVE = {"rtol": 1e-4, "atol": 1e-4, "divergence": sdediff.Hutchinson(probes=2), "batch_size": 64}


def trained(path: str, config: Path, run: Path) -> sdediff.DiffusionModel:
    """The model of a run's folder, trained or trained further if need be."""
    if (run / "model.safetensors").exists():
        return sdediff.load(run / "model.safetensors").eval()
    began = time.perf_counter()
    model, spent = train(path, config, run, *(["--resume", "true"] if (run / "checkpoints").exists() else []))
    wall, threads = time.perf_counter() - began, torch.get_num_threads()
    print(f"trained in {wall:.0f} s, {spent:.0f} s of the processor, {threads} threads")
    return model


def draw(model: sdediff.DiffusionModel, images: Tensor, picture: Path) -> None:
    """A picture of samples under a row of data; the sampler's own first ones, not chosen."""
    began = time.perf_counter()
    x = model.sample(80, solver="dpm++2m", steps=40, seed=0)
    print(f"80 samples, 40 evaluations each, in {time.perf_counter() - began:.0f} s")
    rows = {"data": images[:16].float()} | {f"samples {k + 1}": part for k, part in enumerate(x.split(16))}
    viz.save(viz.image_grid(rows, columns=16, limits=(0.0, 256.0)), picture)


def report(name: str, result: sdediff.LogLikelihood, seconds: float, dim: int) -> dict[str, Any]:
    """What is printed and kept of one kind."""
    n, bits = len(result.log_prob), dim * math.log(2)
    value = -result.log_prob / bits
    line = {"kind": name, "images": n, "bits_per_dim": float(value.mean())}
    line |= {"error": float(value.std()) / math.sqrt(n), "solver": float(result.solver_error.mean()) / bits}
    line |= {"t_min": result.t_span[0], "seconds": seconds}
    print(
        "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()), flush=True
    )
    return line


def measure(model: sdediff.DiffusionModel, seen: Tensor, held: Tensor, steps: int, out: Path | None) -> None:
    """Print bits/dim by kind."""
    cells, lines = sdediff.Quantisation(levels=256), []
    for name in ("uniform", "truncated-normal", "variational"):
        began = time.perf_counter()
        kind: Any = name
        if name == "variational":
            kind = sdediff.fit_dequantiser(model, seen.float(), cells, steps=steps)
        result = model.discrete_log_likelihood(held.float(), cells, dequantisation=kind, draws=1, **SOLVE)
        lines.append(report(name, result, time.perf_counter() - began, model.dim))
        if out is not None:
            out.write_text(json.dumps(lines, indent=1) + "\n")


def main() -> None:
    """Train, draw and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--config", type=Path, default=CONFIGS / "mnist.yaml")
    parser.add_argument("--run", type=Path, default=Path("runs/mnist"))
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--dequantiser_steps", type=int, default=150)
    parser.add_argument("--picture", type=Path, default=Path("mnist_samples.png"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    seen, held = (part.take(range(len(part)))[0] for part in split(open_dataset(given.path), 0.1, 0))
    model = trained(given.path, given.config, given.run)
    draw(model, held, given.picture)
    measure(model, seen, held[: given.images], given.dequantiser_steps, given.out)


if __name__ == "__main__":
    main()
