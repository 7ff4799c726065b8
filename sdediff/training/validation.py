"""Validation loss at fixed times and noise, and the error by noise level."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdediff.training.augment import Augmentation, cleaned
from sdediff.training.objective import Objective, squared_error, wide
from sdediff.training.sources import (
    VALIDATION,
    VALIDATION_NOISE,
    as_tensor,
    check_cond,
    check_rows,
    convert,
    isolated_rng,
    split_item,
    step_seed,
)
from sdediff.training.times import UniformLogSNR, stratified
from sdediff.training.weightings import noise_error_weight
from solvers import noise

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel

#: A small set is repeated with other noise up to this many evaluations; of a large one a fixed choice of this
#: many rows is taken.
FEWEST, MOST = 1024, 8192
_CHUNK = 1024


@dataclass(frozen=True)
class NoiseLevels:
    r"""Squared error of the noise estimate, per element, by noise level.

    Attributes:
        edges: Noise-to-signal ratios sigma/alpha between the bins, (bins + 1,), rising.
        eps_error: Mean of :math:`|\epsilon-\hat\epsilon|^2/d` in every bin, (bins,). 1 is what the guess 0
            earns; the smallest possible value is not 0: it is near 1 where the noise is much smaller than the
            data's structure and cannot be seen.
    """

    edges: Tensor
    eps_error: Tensor


class Validation:
    """A held-out set with times and noise fixed by the seed: its loss falls only when the model gets better.

    Times are uniform in lam, one stratum an evaluation, so that every noise level has its share; the loss's
    own distribution of times enters as importance weights.
    """

    def __init__(
        self,
        model: DiffusionModel,
        x: Any,
        cond: Any,
        objective: Objective,
        seed: int,
        augment: Augmentation | None = None,
    ) -> None:
        with isolated_rng(step_seed(seed, "validation", 1)):
            x, cond = _collect(x, cond)
        check_rows(x, model.data_shape, "val")
        if cond is not None:
            check_cond(cond, len(x), "val_cond")
        self.model, self.objective = model, objective
        first = next(model.parameters())
        choice = _draw(seed, len(x), 0).argsort(stable=True)[:MOST]
        choice = choice.repeat(-(-FEWEST // len(choice)))
        x = convert(x[choice], first)
        self.x = cleaned(augment, x, step_seed(seed, "validation", 0))
        self.cond = None if cond is None else cond[choice].to(first.device)
        n = len(choice)
        self.u = stratified(0.5 / n, n)[_draw(seed, n, 1).argsort(stable=True)]
        self.eps = noise.normal(
            seed, torch.arange(n), VALIDATION_NOISE, 0, self.x.shape[1:], first.dtype, first.device
        )

    def loss(self) -> float:
        """The loss."""
        t, importance = self.objective.validation_times(self.u, self.model)
        return float((importance.cpu() * self._each(self.objective.at, t)).mean())

    def noise_levels(self, bins: int = 8) -> NoiseLevels:
        """Errors of the noise estimate in bins of equal width in log sigma/alpha."""
        process = self.model.process
        t = UniformLogSNR().sample(self.u, process)
        high, low = float(process.lam(process.t_min)), float(process.lam(process.t_max))
        position = (high - process.lam(t)) / (high - low) * bins
        index = position.long().clamp(0, bins - 1)
        error = noise_error_weight(self.model, t) * self._each(squared_error, t)
        count = torch.bincount(index, minlength=bins)
        edges = torch.exp(torch.linspace(-high, -low, bins + 1, dtype=torch.float64))
        return NoiseLevels(edges, torch.bincount(index, weights=error, minlength=bins) / count)

    @torch.no_grad()
    def _each(self, function: Callable[..., Tensor], t: Tensor) -> Tensor:
        """``function(model, z, eps, t, cond)`` of every row, (n,) float64 on the CPU, in evaluation mode."""
        training, device = self.model.training, self.x.device
        t = t.to(device, wide(device))
        self.model.eval()
        try:
            parts = [
                function(
                    self.model,
                    self.model.to_model(self.x[i : i + _CHUNK]).to(self.eps.dtype),
                    self.eps[i : i + _CHUNK],
                    t[i : i + _CHUNK],
                    None if self.cond is None else self.cond[i : i + _CHUNK],
                )
                for i in range(0, len(self.x), _CHUNK)
            ]
        finally:
            self.model.train(training)
        return torch.cat(parts).cpu().double()


def _draw(seed: int, n: int, counter: int) -> Tensor:
    return noise.uniform(seed, torch.arange(n), VALIDATION, counter, (), torch.float64)


def _collect(x: Any, cond: Any) -> tuple[Tensor, Tensor | None]:
    """Validation data in memory; of a Dataset or DataLoader the first MOST rows."""
    if isinstance(x, torch.utils.data.Dataset):
        x = torch.utils.data.DataLoader(x, batch_size=_CHUNK)
    if isinstance(x, torch.utils.data.DataLoader):
        if cond is not None:
            raise TypeError("val_cond= goes with a tensor: a Dataset or DataLoader gives items (x, cond)")
        parts, count = [], 0
        for item in x:
            parts.append(split_item(item))
            count += len(parts[-1][0])
            if count >= MOST:
                break
        if not parts:
            raise ValueError("val is empty: give at least one row")
        conds = [c for _, c in parts if c is not None]
        return torch.cat([rows for rows, _ in parts]), torch.cat(conds) if conds else None
    return as_tensor(x, "val"), None if cond is None else as_tensor(cond, "val_cond")
