"""Held-out log-density of small bundled data, trained as a configuration says.

`python tests/benchmarks/configured.py toy` (configs/toy.yaml: eight Gaussians in the plane, beside their own
log-density) and `... patches` (configs/patches.yaml: 8 x 8 patches of two photographs, bits/dim of uniformly
dequantised ones beside those of a Gaussian with their mean and covariance). Training is `sdediff train`;
training and held-out rows are different draws, or lie in different places of the photographs. Errors are
standard errors of the mean over held-out rows.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from runs import CONFIGS, train_on
from torch import Tensor

import sdediff
from sdediff.data import dequantise, patches


def trained(rows: Tensor, config: Path) -> sdediff.DiffusionModel:
    """The model of `sdediff train` on these rows."""
    model, spent = train_on(rows, config)
    print(f"{spent:.0f} s of the processor, {torch.get_num_threads()} threads")
    return model


def mean(values: Tensor) -> str:
    """Mean and its standard error."""
    return f"{float(values.mean()):.4f} +- {float(values.std()) / math.sqrt(len(values)):.4f}"


def toy(config: Path) -> None:
    """Eight Gaussians."""
    data = sdediff.reference.eight_gaussians()
    model, x = trained(data.sample(20000, seed=0).float(), config), data.sample(2000, seed=1)
    ours = model.log_likelihood(x.float(), rtol=1e-4, atol=1e-4).log_prob
    truth = data.log_prob(None, x, None)
    print(f"held-out NLL  {mean(-ours)} nats; of the data's own density {mean(-truth)}")
    print(f"Kullback-Leibler divergence {mean(truth - ours)} nats")


def photographs(config: Path, count: int = 832) -> None:
    """Patches of photographs."""
    train, _, held = patches(8)
    held, model = held[:count].float(), trained(train, config)
    cells = sdediff.Quantisation(levels=256)
    began = time.process_time()
    result = model.discrete_log_likelihood(held, cells, rtol=1e-4, atol=1e-4)
    bits = result.bits_per_dim()
    print(f"held-out bits/dim {mean(bits)}, {result.kind}, {len(held)} patches, uniform dequantisation")
    error = float(result.solver_error.mean()) / model.dim / math.log(2)
    print(f"solver error {error:.4f}; {time.process_time() - began:.0f} s of the processor")
    some = dequantise(train[:: max(1, len(train) // 50000)].float(), seed=2).double().flatten(1)
    gaussian = torch.distributions.MultivariateNormal(some.mean(0), some.T.cov())
    normal = -gaussian.log_prob(dequantise(held.double(), seed=0).flatten(1)) / model.dim / math.log(2)
    print(f"of one Gaussian   {mean(normal)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=("toy", "patches"))
    parser.add_argument("--config", type=Path)
    given = parser.parse_args()
    config = given.config or CONFIGS / f"{given.data}.yaml"
    toy(config) if given.data == "toy" else photographs(config)
