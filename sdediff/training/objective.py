"""What a loss is while a run lasts: its draws of times and noise, its own parameters and statistics.

A loss that a user writes down (:class:`~sdediff.training.DenoisingLoss`) is a frozen description; its
``objective(model)`` is the module that a run carries along, so that what a loss learns on the way is trained,
checkpointed and moved with everything else.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from sdediff.training.adaptive import Adaptive, AdaptiveTimes
from sdediff.training.sources import NOISE, TIMES
from sdediff.training.times import Times, UniformLogSNR, stratified
from sdediff.training.weightings import network_weight
from solvers import noise
from solvers.problems import expand

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel
    from sdediff.training.denoising import DenoisingLoss

#: Stream of solvers.noise of times drawn independently.
INDEPENDENT = 111

#: ``(z, eps, lam, cond, augment) -> (z, eps)``: data and noise of whose targets the network learns; with
#: ``batch=``, :class:`Rows`, where it looks at the other rows of the step too.
Targets = Callable[..., tuple[Tensor, Tensor]]


class Rows(NamedTuple):
    """Data in model units (N, *data_shape), their conditions (N, ...) and augmentation labels (N, ...)."""

    z: Tensor
    cond: Tensor | None = None
    augment: Tensor | None = None


@dataclass(frozen=True)
class Draw:
    """Which rows of a step's batch are at hand: times and noise are functions of (seed, step, row) alone.

    Args:
        seed: Seed of the run.
        step: Number of the step.
        rows: Places of these rows in the whole batch of the step, (B,).
        total: Rows of the whole batch, over all processes and accumulated parts.
        batch: The rows of the whole batch, where the objective gathers them.

    Example:
        >>> Draw(0, 3, torch.arange(2, 4), 4).uniform().shape
        torch.Size([2])
    """

    seed: int
    step: int
    rows: Tensor
    total: int
    batch: Rows | None = None

    def uniform(self, low_discrepancy: bool = True) -> Tensor:
        """Numbers in [0, 1), float64, (B,): one in every interval of length 1/total over the whole batch.

        Without low discrepancy they are independent.
        """
        if not low_discrepancy:
            return noise.uniform(self.seed, self.rows, INDEPENDENT, self.step, (), torch.float64)
        block, place = divmod(self.step, _BLOCK)
        return stratified(_offsets(self.seed, block)[place], self.total)[self.rows]


#: Steps whose offsets are drawn at once.
_BLOCK = 256


@lru_cache(maxsize=8)
def _offsets(seed: int, block: int) -> Tensor:
    """A number in [0, 1) for each step of a block."""
    return noise.uniform(seed, torch.arange(_BLOCK), TIMES, block, (), torch.float64)


class StepLoss(NamedTuple):
    """A batch's losses, whose mean is minimised, and what an objective learns from: each (B,)."""

    loss: Tensor
    t: Tensor
    statistic: Tensor


class Objective(nn.Module, ABC):
    """A loss during a run: parameters are trained with the model's, buffers are checkpointed."""

    #: Whether `observe` does anything: the whole batch's values are gathered for it after every step.
    learns: bool = False
    #: Whether a row's loss depends on the other rows of the step, which are then in the draw.
    gathers: bool = False

    @abstractmethod
    def forward(
        self,
        model: DiffusionModel,
        z: Tensor,
        cond: Tensor | None,
        draw: Draw,
        augment: Tensor | None = None,
    ) -> StepLoss:
        """Losses of data z in model units, (B, *data_shape), at this draw's times and noise."""

    @abstractmethod
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

    @abstractmethod
    def validation_times(self, u: Tensor, model: DiffusionModel) -> tuple[Tensor, Tensor]:
        """Times for uniform numbers u in [0, 1) that cover every noise level, and importance weights."""

    def observe(self, t: Tensor, statistic: Tensor) -> None:
        """Learn from the whole batch's `t` and `statistic` after a step; alike on every process."""


class DenoisingObjective(Objective):
    """The run-time half of :class:`~sdediff.training.DenoisingLoss`.

    Subclasses change what is made of the weighted errors (:meth:`combine`).

    Args:
        loss: The loss.
        model: The model it is for; losses are divided by the mean of the weight on its network's error.
    """

    def __init__(self, loss: DenoisingLoss, model: DiffusionModel) -> None:
        super().__init__()
        self.description = loss
        self.scale = loss.mean_weight(model)
        proposal = loss.proposal or loss.times
        self.learns = isinstance(proposal, Adaptive)
        self.gathers = loss.targets is not None and "batch" in inspect.signature(loss.targets).parameters
        self.proposal: Times = (
            AdaptiveTimes(proposal, model.process) if isinstance(proposal, Adaptive) else proposal
        )
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
        loss, process = self.description, model.process
        t = self.proposal.sample(draw.uniform(loss.low_discrepancy), process)
        t = t.to(z.device, wide(z.device))
        importance, eps = loss.importance(process, t, self.proposal), self.noise(draw, z)
        others = {} if draw.batch is None else {"batch": draw.batch}
        target = loss.targets(z, eps, process.lam(t), cond, augment, **others) if loss.targets else None
        error = squared_error(model, z, eps, t, cond, augment, target)
        weight = self.weight(model, t)
        value = self.combine(model, weight * error, importance, z, eps, t)
        return StepLoss(value, t, self.statistic(model, weight, error, t))

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
        error = squared_error(model, z, eps, t, cond, augment)
        return self.combine(model, self.weight(model, t) * error, torch.ones_like(t), z, eps, t)

    def weight(self, model: DiffusionModel, t: Tensor) -> Tensor:
        """Weight on the network's squared error, of mean 1."""
        return network_weight(self.description.weighting, model, t) / self.scale

    def combine(
        self, model: DiffusionModel, errors: Tensor, importance: Tensor, z: Tensor, eps: Tensor, t: Tensor
    ) -> Tensor:
        """Losses from weighted errors, all (B,)."""
        return importance * errors

    def statistic(self, model: DiffusionModel, weight: Tensor, error: Tensor, t: Tensor) -> Tensor:
        """What adaptive times learn from: the gradient's norm at the network's output, per unit of lam."""
        if not self.learns:
            return error.detach()
        process = model.process
        return weight * error.detach().sqrt() * self.description.times.density(t, process) / -process.d_lam(t)

    def validation_times(self, u: Tensor, model: DiffusionModel) -> tuple[Tensor, Tensor]:
        """Times uniform in lam."""
        t = UniformLogSNR().sample(u, model.process)
        return t, self.description.importance(model.process, t, UniformLogSNR())

    def observe(self, t: Tensor, statistic: Tensor) -> None:
        """Adaptive times learn from a step; others do not."""
        if isinstance(self.proposal, AdaptiveTimes):
            self.proposal.observe(t, statistic)

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
    target: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The network's squared error, averaged over the elements of a sample.

    Args:
        model: The model; its raw output is compared with its target, in model units.
        z_0: Data in model units, (B, *E).
        eps: Standard normal noise, (B, *E).
        t: Times, (B,), float64 (schedules in float32 lose digits near their ends).
        cond: Condition, (B, ...).
        augment: Augmentation labels, (B, augment_dim).
        target: Data and noise of whose target the network should return, both (B, *E), where they are not
            those that were mixed.

    Returns:
        (B,), of z_0's dtype; differentiable in the network's parameters.
    """
    alpha, sigma = (expand(c.to(z_0.dtype), z_0) for c in (model.process.alpha(t), model.process.sigma(t)))
    output = model(alpha * z_0 + sigma * eps, t, cond, augment)
    return (output - model.target(*(target or (z_0, eps)), t)).square().flatten(1).mean(1)


def wide(device: torch.device) -> torch.dtype:
    """The dtype of times on a device: float64 where it exists."""
    return torch.float32 if device.type == "mps" else torch.float64
