"""Held-out log-density of a table, beside zuko's neural spline flow.

`python tests/benchmarks/table_density.py power_plant.csv` trains, for every seed, a diffusion model as
configs/power_plant.yaml says (through `sdediff train`) and a neural spline flow for `--seconds`, each on one
thread and one after the other; the clock is the processor's time, so that other work on the machine takes
nothing from either. Rows are shuffled by numpy's default_rng(0).permutation; the last tenth is held out, and
of the rest another tenth is for choices (of the flow: which weights to keep). Printed are nats a row, of
columns standardised by the training rows, with the paired standard error over held-out rows, and the same for
rows moved by uniform noise within the columns' grain, which a density of spikes on it would not survive.
First comes a kernel density estimate, which says how much of the density is in values that recur.
Results are written to `--out` as they come.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from baselines import NSFOptions, NSFTraining
from runs import CONFIGS, train_on
from torch import Tensor

from sdediff.data import read, split

#: The flow's settings: chosen on the validation rows of the power-plant table at 60 s.
FLOW = NSFOptions(transforms=3, hidden=(128, 128), bins=16, dropout=0.0, batch_size=512, lr=4e-3)


def grain(x: Tensor) -> Tensor:
    """The smallest distance between different values of each column, (d,)."""
    return torch.stack([c.unique().diff().min() for c in x.T])


#: Bandwidths to choose from, in standard deviations: the smallest is several times every column's grain.
BANDWIDTHS = (0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5)


def kernels(train: Tensor, x: Tensor, widths: Tensor) -> Tensor:
    """Log-density of rows x, (B,), by Gaussian kernels of these widths, (d,), on the rows to train on."""
    apart = torch.cat([torch.cdist(part / widths, train / widths).square() for part in x.split(256)])
    constant = widths.log().sum() + 0.5 * len(widths) * math.log(2 * math.pi) + math.log(len(train))
    return torch.logsumexp(-0.5 * apart, dim=1) - constant


def best_widths(train: Tensor, val: Tensor) -> Tensor:
    """Widths chosen on validation rows, column by column, three times over."""
    widths = torch.full_like(train[0], 0.2)
    for column in list(range(len(widths))) * 3:
        tried = widths.repeat(len(BANDWIDTHS), 1)
        tried[:, column] = torch.tensor(BANDWIDTHS)
        widths = max(tried, key=lambda each: float(kernels(train, val, each).mean()))
    return widths


def flow(train: Tensor, val: Tensor, seconds: float, seed: int) -> tuple[torch.nn.Module, float]:
    """The flow of the best validation, and the processor's seconds it took."""
    training = NSFTraining(train, val, seconds, seed, FLOW, clock=time.process_time)
    training.run(seconds)
    return training.best, training.spent


def measure(path: str, config: Path, seconds: float, seeds: int, out: Path | None) -> None:
    """Train, print and write."""
    rows = read(path, dtype=torch.float64)
    train, held = split(rows, 0.1, 0)
    train, val = train[: -len(held)], train[-len(held) :]
    mean, std = train.mean(0), train.std(0)
    # The processes' units are each model's own business; those of the printed numbers are these.
    train, val, held = (((x - mean) / std).float() for x in (train, val, held))
    noise = torch.rand(held.shape, generator=torch.Generator().manual_seed(0), dtype=held.dtype) - 0.5
    moved = held + noise * (grain(rows) / std).float()
    counts = f"{len(train)} rows to train on, {len(val)} for choices, {len(held)} held out"
    print(f"{counts}, {rows.shape[1]} columns", flush=True)
    values: dict[str, list[Tensor]] = {"kernels": [], "diffusion": [], "flow": []}
    lines: list[dict[str, Any]] = []
    widths, both = best_widths(train, val), torch.cat([held, moved])
    print(f"kernels of widths {', '.join(f'{w:g}' for w in widths.tolist())}")
    note(lines, out, values, "kernels", 0, 0.0, kernels(train, both, widths))
    for seed in range(seeds):
        model, spent = train_on(train, config, "--seed", seed)
        with torch.no_grad():
            result = model.log_likelihood(both, rtol=1e-4, atol=1e-4)
        solver = float(result.solver_error.mean())
        note(lines, out, values, "diffusion", seed, spent, result.log_prob, solver=solver)
        best, spent = flow(train, val, seconds, seed)
        with torch.no_grad():
            note(lines, out, values, "flow", seed, spent, best(both).double())
    if not seeds:
        return
    pairs = zip(values["diffusion"], values["flow"], strict=True)
    ahead = torch.stack([ours - theirs for ours, theirs in pairs]).mean(0)  # of each row, over seeds
    gain, error = float(ahead.mean()), float(ahead.std()) / math.sqrt(len(ahead))
    low, high = gain - 1.96 * error, gain + 1.96 * error
    print(f"the diffusion model is ahead by {gain:.4f} nats a row, 95 % from {low:.4f} to {high:.4f}")


def note(
    lines: list[dict[str, Any]],
    out: Path | None,
    values: dict[str, list[Tensor]],
    name: str,
    seed: int,
    spent: float,
    log_prob: Tensor,
    **more: float,
) -> None:
    """Print and write what a training gave; the second half of `log_prob` is of moved rows."""
    own, moved = log_prob.double().cpu().chunk(2)
    values[name].append(own)
    line = {"method": name, "seed": seed, "seconds": spent, "nll": float(-own.mean())}
    line |= {"moved": float(-moved.mean()), "error": float(own.std()) / math.sqrt(len(own))} | more
    lines.append(line)
    print(
        "  ".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items()), flush=True
    )
    if out is not None:
        out.write_text(json.dumps(lines, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--config", type=Path, default=CONFIGS / "power_plant.yaml")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    measure(given.path, given.config, given.seconds, given.seeds, given.out)
