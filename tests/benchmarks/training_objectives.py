"""Objectives of training compared: steps to a held-out likelihood, and variance of the gradient.

    python tests/benchmarks/training_objectives.py nll --data digits --seeds 0 1 2
    python tests/benchmarks/training_objectives.py variance

`nll` trains one small network by uniform-t denoising score matching (weight 1 on the noise estimate's error,
independent times uniform under VP, Ho et al. 2020) and by likelihood-oriented objectives, notes the held-out
negative log-likelihood (`model.log_prob` of the averaged weights) on the way, and prints at which step an
objective first is where uniform-t ends. `variance` takes networks at several points of a training and
measures the total variance of the minibatch gradient of the likelihood-weighted loss under several ways to
draw times; the mean of the gradient is the same for all. Results are written to a JSON file as they come.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sdediff
from sdediff.data import dequantise, digits, patches, toy
from sdediff.training import (
    Adaptive,
    DenoisingLoss,
    Draw,
    Eps,
    Likelihood,
    Sigmoid,
    StableTargets,
    UniformLogSNR,
    UniformTime,
)

BATCH = 128


@dataclass(frozen=True)
class Data:
    """Rows to train on and held-out ones, (n, d); quantised ones are dequantised afresh every step."""

    train: Tensor
    held_out: Tensor
    width: int
    augment: Callable[..., Tensor] | None = None

    @property
    def dim(self) -> int:
        return self.train.shape[1]

    def model(self, prediction: str, seed: int) -> sdediff.DiffusionModel:
        """An untrained network, the same for every objective."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = sdediff.networks.MLP(self.dim, hidden=self.width, blocks=2, time_dim=32)
        return sdediff.DiffusionModel(network, sdediff.VP(), prediction, (self.dim,))


def _levels(split: Any, rows: int) -> Data:
    train, held_out = (part.flatten(1).float() for part in (split.train, split.test))
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(0))[:rows]
    return Data(train, dequantise(held_out[order], seed=2), 128, dequantise)


DATA: dict[str, Callable[[], Data]] = {
    "digits": lambda: _levels(digits(), 297),
    "patches": lambda: _levels(patches(8), 297),
    "eight-gaussians": lambda: Data(
        *(sdediff.reference.eight_gaussians().sample(n, seed=seed) for seed, n in enumerate((20000, 500))),
        64,
    ),
    "moons": lambda: Data(toy("moons", 20000, seed=0), toy("moons", 500, seed=1), 64),
}

_LAM = UniformLogSNR()
_STABLE = DenoisingLoss(Sigmoid(), _LAM, Adaptive(), targets=StableTargets())
#: (prediction, loss); the first is what the others are measured by.
OBJECTIVES: dict[str, tuple[str, Any]] = {
    "uniform-t": ("eps", DenoisingLoss(Eps(), UniformTime(), low_discrepancy=False)),
    "stable": ("edm", _STABLE),
    "uniform-t, edm": ("edm", DenoisingLoss(Eps(), UniformTime(), low_discrepancy=False)),
    "stable, eps": ("eps", _STABLE),
    "sigmoid": ("edm", DenoisingLoss(Sigmoid(), _LAM, Adaptive())),
    "likelihood": ("edm", DenoisingLoss(Likelihood(), UniformTime(), _LAM)),
    "likelihood, stable": ("edm", DenoisingLoss(Eps(), _LAM, Adaptive(), targets=StableTargets())),
}
#: Ways to draw times, all for the likelihood's weight.
SAMPLERS: dict[str, DenoisingLoss] = {
    "uniform t, independent": DenoisingLoss(Likelihood(), UniformTime(), low_discrepancy=False),
    "uniform lam, independent": DenoisingLoss(Likelihood(), UniformTime(), _LAM, low_discrepancy=False),
    "uniform lam": DenoisingLoss(Likelihood(), UniformTime(), _LAM),
    "adaptive": DenoisingLoss(Likelihood(), UniformTime(), Adaptive()),
    "adaptive, stable targets": DenoisingLoss(
        Likelihood(), UniformTime(), Adaptive(), targets=StableTargets()
    ),
}


# -- steps to a likelihood -----------------------------------------------------------------------------------


@dataclass
class Curve:
    """Held-out nats a dimension (bits where `bits`) at intervals of a training."""

    held_out: Tensor
    every: int
    points: list[tuple[int, float]] = field(default_factory=list)

    def __call__(self, moment: Any) -> None:
        exact = self.held_out.shape[1] <= 2
        divergence = sdediff.Exact() if exact else sdediff.Hutchinson(probes=1)
        log_prob = moment.model.log_prob(self.held_out, rtol=1e-3, atol=1e-3, divergence=divergence)
        value = -float(log_prob.double().mean())
        if not exact:  # unit cells: bits a dimension
            value /= self.held_out.shape[1] * math.log(2)
        self.points.append((moment.step, value))

    def first(self, target: float) -> int | None:
        """The first step noted at which the value is no more than this."""
        return next((step for step, value in self.points if value <= target), None)


def train(data: Data, name: str, seed: int, steps: int, every: int) -> Curve:
    """Train a network and follow it."""
    prediction, loss = OBJECTIVES[name]
    curve = Curve(data.held_out, every)
    sdediff.fit(
        data.model(prediction, seed), data.train, loss=loss, steps=steps, batch_size=BATCH, seed=seed,
        augment=data.augment, ema_decay=0.99, callbacks=[curve], progress=False,
    )  # fmt: skip
    return curve


def nll(arguments: argparse.Namespace, write: Callable[[str, Any], None]) -> None:
    """Uniform-t to the end, and the others for half as many steps."""
    steps = arguments.steps
    for name in arguments.data:
        data = DATA[name]()
        for seed in arguments.seeds:
            base = train(data, "uniform-t", seed, steps, steps)
            target = base.points[-1][1]
            write(f"nll/{name}/{steps}/uniform-t/{seed}", base.points)
            print(f"{name:16} seed {seed} uniform-t: {target:.4f} after {steps} steps", flush=True)
            for objective in arguments.objectives:
                curve = train(data, objective, seed, steps // 2, arguments.every)
                first = curve.first(target)
                write(f"nll/{name}/{steps}/{objective}/{seed}", {"points": curve.points, "reaches": first})
                reached = "does not get there" if first is None else f"is there after {first}"
                print(
                    f"{name:16} seed {seed} {objective}: {reached}, "
                    f"{curve.points[-1][1]:.4f} after {steps // 2}",
                    flush=True,
                )


# -- variance of the gradient --------------------------------------------------------------------------------


def gradients(model: sdediff.DiffusionModel, loss: DenoisingLoss, z: Tensor, batches: int) -> Tensor:
    """Minibatch gradients at the model's weights, (batches, parameters); adaptive times have learnt first."""
    objective: Any = loss.objective(model)
    objective.scale = DenoisingLoss(Likelihood(), UniformTime(), _LAM).mean_weight(model)
    parameters, found = list(model.parameters()), []
    for step in range(-200 if objective.learns else 0, batches):
        rows = torch.randint(len(z), (BATCH,), generator=torch.Generator().manual_seed(step + 1000))
        draw = Draw(7, step + 1000, torch.arange(BATCH), BATCH)
        if step < 0:
            with torch.no_grad():
                seen = objective(model, z[rows], None, draw)
            objective.observe(seen.t, seen.statistic)
            continue
        value = objective(model, z[rows], None, draw).loss.mean()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    return torch.stack(found)


def variance(arguments: argparse.Namespace, write: Callable[[str, Any], None]) -> None:
    for name in arguments.data:
        data = DATA[name]()
        for steps in arguments.after:
            model = data.model("edm", 0)
            sdediff.fit(
                model, data.train, steps=steps, batch_size=BATCH, augment=data.augment, progress=False
            )
            x = data.train[:20000] if data.augment is None else data.augment(data.train[:20000], 5)
            z = model.to_model(x)
            total = {}
            for sampler, loss in SAMPLERS.items():
                total[sampler] = float(gradients(model, loss, z, arguments.batches).var(0).sum())
            write(f"variance/{name}/{steps}", total)
            base = total["adaptive"]
            shown = "; ".join(f"{sampler} {value / base:.2f}" for sampler, value in total.items())
            print(f"{name:16} after {steps:4} steps, variance over that of adaptive: {shown}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("nll", "variance"))
    parser.add_argument("--data", nargs="+", default=list(DATA), choices=list(DATA))
    parser.add_argument("--objectives", nargs="+", default=["stable"], choices=list(OBJECTIVES)[1:])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--every", type=int, default=100)
    parser.add_argument("--after", nargs="+", type=int, default=[100, 300, 1000])
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("training_objectives.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    def write(key: str, value: Any) -> None:
        known = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
        arguments.out.write_text(json.dumps(known | {key: value}, indent=1) + "\n")

    partial({"nll": nll, "variance": variance}[arguments.what], arguments)(write)


if __name__ == "__main__":
    main()
