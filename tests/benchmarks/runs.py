"""Runs of `sdediff train`, for benchmarks of what configurations train."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor

import sdediff

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def train(data: str | Path, config: Path, out: Path, *words: object) -> tuple[sdediff.DiffusionModel, float]:
    """The model of `sdediff train` in a process of its own, and the processor's seconds that took."""
    before = os.times()
    command = [sys.executable, "-m", "sdediff", "train", data, "--config", config, "--out", out, *words]
    subprocess.run([str(word) for word in command], check=True)
    after = os.times()
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    return sdediff.load(out / "model.safetensors").eval(), spent


def train_on(rows: Tensor, config: Path, *words: object) -> tuple[sdediff.DiffusionModel, float]:
    """The same on rows in memory, all of which are trained on."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.npy"
        np.save(file, rows.numpy())
        return train(file, config, Path(folder) / "run", "--val_fraction", 0, *words)
