"""The demonstration: train on real digits, sample with every kind of solver, evaluate likelihoods.

It takes minutes. The data ship with scikit-learn, nothing is downloaded. :func:`run` prints one table and
writes a folder.
"""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from sdediff import data
from sdediff.data.digits import Split
from sdediff.demo import density, pictures, report, table
from sdediff.model import DiffusionModel
from sdediff.networks import MLP
from sdediff.processes import VP
from sdediff.text import machine
from sdediff.training import Cosine, fit

__all__ = ["Settings", "run"]


@dataclass(frozen=True)
class Settings:
    """Sizes of the demonstration; the defaults fill two minutes of two CPU cores.

    Attributes:
        hidden: Width of the network.
        blocks: Its residual blocks.
        dropout: Its dropout.
        steps: Training steps.
        batch_size: Images a step.
        lr: Peak learning rate.
        loss: Loss of training.
        rows: The solvers compared.
        samples: Samples of each, and held-out images they are compared with.
        likelihoods: Held-out images whose likelihood is evaluated, as many training images, and a third as
            many of shuffled pixels and of noise.
        nodes: Quadrature nodes of the likelihood.
    """

    hidden: int = 256
    blocks: int = 6
    dropout: float = 0.05
    steps: int = 5000
    batch_size: int = 128
    lr: float = 2e-3
    loss: str = "edm"
    rows: tuple[table.Row, ...] = table.ROWS
    samples: int = 297
    likelihoods: int = 297
    nodes: int = 33


def run(
    out: str | os.PathLike[str] = "sdediff-demo",
    seed: int = 0,
    *,
    settings: Settings = Settings(),
    progress: bool = True,
) -> dict[str, Any]:
    """Train on the 8x8 digits, compare solvers, evaluate likelihoods; print a table and write a folder.

    The folder holds model.safetensors, samples.png, trajectories.png, likelihood.png, table.md and
    table.json; files of an earlier run are replaced.

    Args:
        out: The folder; made if need be.
        seed: Seed of everything random.
        settings: Sizes.
        progress: Show progress bars on stderr.

    Returns:
        What table.json holds.
    """
    began, folder = time.perf_counter(), Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    split = data.digits()
    print(report.describe_split(split), flush=True)
    model, training = train(split, seed, settings, progress)
    model.save(folder / "model.safetensors")
    rows, samples = table.compare(model, split, settings.rows, settings.samples, seed, progress)
    densities, values = density.evaluate(model, split, settings.likelihoods, settings.nodes, seed, progress)
    pictures.write(folder, model, split, samples, values, seed)
    result = {
        "data": report.split_sizes(split),
        "seed": seed,
        "settings": {k: v for k, v in asdict(settings).items() if k != "rows"},
        "model": model.config,
        "training": training,
        "samples": rows,
        "likelihood": densities,
        "ran_on": machine(),
        "seconds": round(time.perf_counter() - began, 1),
    }
    print("\n" + report.text(result), flush=True)
    report.write(folder, result)
    print(f"\nWrote {folder}/: {', '.join(sorted(p.name for p in folder.iterdir()))}")
    return result


def train(
    split: Split, seed: int, settings: Settings, progress: bool
) -> tuple[DiffusionModel, dict[str, Any]]:
    """A model of the digits, in evaluation mode, and what its training came to."""
    with torch.random.fork_rng(devices=[]):  # the initial weights; the caller's generator stays as it was
        torch.manual_seed(seed)
        network = MLP(dim=64, hidden=settings.hidden, blocks=settings.blocks, dropout=settings.dropout)
    model = DiffusionModel(network, process=VP(), prediction="edm", data_shape=(1, 8, 8))
    fitted = fit(
        model,
        split.train,
        steps=settings.steps,
        batch_size=settings.batch_size,
        val=split.val,
        lr=Cosine(settings.lr, total=settings.steps),
        loss=settings.loss,
        seed=seed,
        augment=data.dequantise,
        log_every=max(1, settings.steps // 10),
        progress=progress,
    )
    last = fitted.history[-1]
    model.eval()
    parameters = sum(p.numel() for p in model.parameters())
    return model, {
        "steps": fitted.steps,
        "seconds": round(fitted.seconds, 1),
        "parameters": parameters,
        "train_loss": last["loss"],
        "validation_loss": last["val_loss"],
    }
