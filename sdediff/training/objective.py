"""What a loss is while a run lasts: its draws of times and noise, its own parameters and statistics.

A loss that a user writes down (:class:`~sdediff.training.DenoisingLoss`) is a frozen description; its
``objective(model)`` is the module that a run carries along, so that what a loss learns on the way is trained,
checkpointed and moved with everything else.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sdediff.training.sources import NOISE, TIMES
from sdediff.training.times import UniformLogSNR, stratified
from sdediff.training.weightings import network_weight
from solvers import noise
from solvers.problems import expand

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel
    from sdediff.training.losses import DenoisingLoss


@dataclass(frozen=True)
class Draw:
    """Which rows of a step's batch are at hand: times and noise are functions of (seed, step, row) alone.

    Args:
        seed: Seed of the run.
        step: Number of the step.
        rows: Places of these rows in the whole batch of the step, (B,).
        total: Rows of the whole batch, over all processes and accumulated parts.

    Example:
        >>> Draw(0, 3, torch.arange(2, 4), 4).uniform().shape
        torch.Size([2])
    """

    seed: int
    step: int
    rows: Tensor
    total: int

    def uniform(self) -> Tensor:
        """Numbers in [0, 1), float64, (B,): one in every interval of length 1/total over the whole batch."""
        u = noise.uniform(self.seed, torch.zeros(1, dtype=torch.long), TIMES, self.step, (), torch.float64)
        return stratified(u, self.total)[self.rows]


class StepLoss(NamedTuple):
    """A batch's losses, whose mean is minimised, and what an objective learns from: each (B,)."""

    loss: Tensor
    t: Tensor
    statistic: Tensor


class Objective(Protocol):
    """A loss during a run; an ``nn.Module``, so parameters are trained and buffers checkpointed."""

    def __call__(
        self,
        model: DiffusionModel,
        z: Tensor,
        cond: Tensor | None,
        draw: Draw,
        augment: Tensor | None = None,
    ) -> StepLoss:
        """Losses of data z in model units, (B, *data_shape), at this draw's times and noise."""

    def at(
        self,
        model: DiffusionModel,
        z: Tensor,
        eps: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Losses (B,) at given times (B,) and noise, without importance weights."""

    def validation_times(self, u: Tensor, model: DiffusionModel) -> tuple[Tensor, Tensor]:
        """Times for uniform numbers u in [0, 1) that cover every noise level, and importance weights."""

    def observe(self, t: Tensor, statistic: Tensor) -> None:
        """Learn from the whole batch's `t` and `statistic` after a step; alike on every process."""


class DenoisingObjective(nn.Module):
    """The run-time half of :class:`~sdediff.training.DenoisingLoss`.

    Args:
        loss: The loss.
        model: The model it is for; losses are divided by the mean of the weight on its network's error.
    """

    def __init__(self, loss: DenoisingLoss, model: DiffusionModel) -> None:
        super().__init__()
        self.description = loss
        self.scale = loss.mean_weight(model)
        self._noise: noise.Noise | None = None

    def forward(
        self,
        model: DiffusionModel,
        z: Tensor,
        cond: Tensor | None,
        draw: Draw,
        augment: Tensor | None = None,
    ) -> StepLoss:
        """Losses of a batch at this draw's times and noise."""
        t, importance = self.description.draw(model.process, draw.uniform())
        t = t.to(z.device, wide(z.device))
        loss = self.at(model, z, self.noise(draw, z), t, cond, augment)
        return StepLoss(importance.to(z.device, wide(z.device)) * loss, t, loss.detach())

    def at(
        self,
        model: DiffusionModel,
        z: Tensor,
        eps: Tensor,
        t: Tensor,
        cond: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Losses (B,) at given times and noise."""
        weight = network_weight(self.description.weighting, model, t) / self.scale
        return weight * squared_error(model, z, eps, t, cond, augment)

    def validation_times(self, u: Tensor, model: DiffusionModel) -> tuple[Tensor, Tensor]:
        """Times uniform in lam."""
        t = UniformLogSNR().sample(u, model.process)
        return t, self.description.importance(model.process, t, UniformLogSNR())

    def observe(self, t: Tensor, statistic: Tensor) -> None:
        """A plain loss learns nothing."""

    def noise(self, draw: Draw, z: Tensor) -> Tensor:
        """The standard normal noise of a draw, like z."""
        held = self._noise
        if held is None or held.seed != draw.seed or not torch.equal(held.indices, draw.rows):
            held = noise.Noise(draw.seed, draw.rows, tuple(z.shape[1:]), z.dtype, z.device)
            self._noise = held
        return held.at(draw.step).normal(NOISE)


def squared_error(
    model: DiffusionModel,
    z_0: Tensor,
    eps: Tensor,
    t: Tensor,
    cond: Tensor | None = None,
    augment: Tensor | None = None,
) -> Tensor:
    """The network's squared error, averaged over the elements of a sample.

    Args:
        model: The model; its raw output is compared with its target, in model units.
        z_0: Data in model units, (B, *E).
        eps: Standard normal noise, (B, *E).
        t: Times, (B,), float64 (schedules in float32 lose digits near their ends).
        cond: Condition, (B, ...).
        augment: Augmentation labels, (B, augment_dim).

    Returns:
        (B,), of z_0's dtype; differentiable in the network's parameters.
    """
    alpha, sigma = (expand(c.to(z_0.dtype), z_0) for c in (model.process.alpha(t), model.process.sigma(t)))
    output = model(alpha * z_0 + sigma * eps, t, cond, augment)
    return (output - model.target(z_0, eps, t)).square().flatten(1).mean(1)


def wide(device: torch.device) -> torch.dtype:
    """The dtype of times on a device: float64 where it exists."""
    return torch.float32 if device.type == "mps" else torch.float64
