"""One row a solver: what it costs, how far its samples are from held-out images, whether they are copies."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sdediff.data.digits import Split
from sdediff.metrics import energy_distance, nearest_neighbour_distance
from sdediff.model import DiffusionModel
from solvers.noise import Stream, normal

#: Random subsets of the training images over which the floor is averaged.
SUBSETS = 20


@dataclass(frozen=True)
class Row:
    """A solver of the table: its title, SDE or ODE, its name and options of `model.sample`."""

    title: str
    kind: str
    solver: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def setting(self) -> str:
        """The options in words."""
        if "steps" in self.options:
            return f"{self.options['steps']} steps"
        return f"tolerance {self.options['rtol']:g}"


_LOOSE = {"rtol": 1e-3, "atol": 1e-3}
ROWS = (
    Row("Euler-Maruyama", "SDE", "euler-maruyama", {"steps": 400}),
    Row("predictor-corrector", "SDE", "pc", {"steps": 100}),
    Row("ancestral (DDPM) step", "SDE", "ancestral", {"steps": 100}),
    Row("torchsde srk", "SDE", "torchsde/srk", {"steps": 35}),
    Row("DDIM", "ODE", "ddim", {"steps": 50}),
    Row("adaptive Dormand-Prince", "ODE", "dopri5", _LOOSE),
    Row("torchdiffeq dopri5", "ODE", "torchdiffeq/dopri5", _LOOSE),
    Row("SciPy RK45", "ODE", "scipy/RK45", _LOOSE),
)


def levels(x: Tensor) -> Tensor:
    """Samples as images: cut down to the 17 grey levels, which undoes dequantisation, and put on [0, 1]."""
    return x.floor().clamp(0, 16) / 16


def compare(
    model: DiffusionModel, split: Split, rows: tuple[Row, ...], count: int, seed: int, progress: bool
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sample with every solver, from the same draws of the prior, and measure the samples.

    Returns:
        The table, and the samples by title, in data units.
    """
    train, held_out = split.train / 16, split.test[:count] / 16
    lines, samples = [], {}
    bar = tqdm(rows, desc="sampling", unit="solver", disable=not progress, dynamic_ncols=True)
    for row in bar:
        bar.set_postfix_str(row.title)
        began = time.perf_counter()
        x, solution = model.sample(count, row.solver, seed=seed, return_solution=True, **row.options)
        seconds = time.perf_counter() - began
        nfe = solution.nfe.double()
        samples[row.title] = x = x[solution.ok]  # some methods lose a sample now and then in few steps
        lines.append(
            {
                "solver": row.title,
                "name": row.solver,
                "kind": row.kind,
                "setting": row.setting,
                "nfe": float(nfe.mean()),
                "nfe_max": int(nfe.max()),
                "seconds": round(seconds, 2),
                "failed": int((~solution.ok).sum()),
            }
            | measure(x, held_out, train)
        )
    floors = floor(train, held_out, seed)
    mean = float(floors.mean())
    for line in lines:
        line["times_floor"] = line["energy_distance"] / mean
    return {
        "rows": lines,
        "count": len(held_out),
        "floor": {"mean": mean, "std": float(floors.std()), "subsets": len(floors)},
        "held_out_nearest": float(nearest_neighbour_distance(held_out, train).mean()),
        "gaussian": measure(gaussian(model, count, seed), held_out, train),
    }, samples


def measure(x: Tensor, held_out: Tensor, train: Tensor) -> dict[str, float]:
    """Energy distance to held-out images and mean distance to the nearest training image."""
    image = levels(x)
    return {
        "energy_distance": float(energy_distance(image, held_out)),
        "nearest_train": float(nearest_neighbour_distance(image, train).mean()),
    }


def floor(train: Tensor, held_out: Tensor, seed: int) -> Tensor:
    """Energy distance of held-out images to as many training images, for random subsets of these."""
    generator = torch.Generator().manual_seed(seed)
    count = min(len(held_out), len(train))
    chosen = (torch.randperm(len(train), generator=generator)[:count] for _ in range(SUBSETS))
    return torch.stack([energy_distance(train[rows], held_out) for rows in chosen])


def gaussian(model: DiffusionModel, count: int, seed: int) -> Tensor:
    """Draws of the Gaussian with the training data's mean and covariance, in data units."""
    moments = model.moments
    assert moments is not None  # fit learns them
    z = normal(seed, torch.arange(count), Stream.PRIOR, 0, (model.dim,), torch.float64, torch.device("cpu"))
    return model.to_data(moments.noised(1.0, 0.0).transform(z).reshape(-1, *model.data_shape))
