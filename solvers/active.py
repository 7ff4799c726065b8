"""What loops share where each sample has its own steps: the samples, error norms, the end of a solve."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from .solution import Solution, Status

_Rows = TypeVar("_Rows", bound="Rows")


@dataclass
class Rows:
    """Tensors with a row a sample."""

    row: Tensor  # of the whole batch
    t: Tensor
    t_next: Tensor
    x: Tensor

    def select(self: _Rows, keep: Tensor) -> _Rows:
        """Some of the samples."""
        return type(self)(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})


class Gathered:
    """Where samples that leave the batch are put down."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.clone()
        self.values: dict[str, Tensor] = {}

    def finish(self, active: Rows, done: Tensor, **values: Tensor) -> None:
        """Put down the state, the time and the statistics `values` of the samples that are done."""
        rows = active.row[done]
        self.x = self.x.index_put((rows,), active.x[done])
        for name, value in {"t": active.t, **values}.items():
            whole = self.values.setdefault(name, value.new_zeros(len(self.x)))
            self.values[name] = whole.index_put((rows,), value[done])

    def solution(self, **more: Any) -> Solution:
        return Solution(self.x, **self.values, **more)


def wide(x: Tensor) -> torch.dtype:
    """float64 where the device has it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def tolerance(x: Tensor, x_new: Tensor, solver: Any) -> Tensor:
    """``atol + rtol max(|x|, |x_new|)``."""
    return torch.maximum(x.abs(), x_new.abs()).mul_(solver.rtol).add_(solver.atol)


def rms(value: Tensor) -> Tensor:
    """Root mean square over each sample's own components, (B,), in wide precision."""
    flat = value.reshape(len(value), -1)
    return torch.linalg.vector_norm(flat, dim=1).to(wide(value)).mul_(flat.shape[1] ** -0.5)


def propose(t: Tensor, step: Tensor, end: Any) -> Tensor:
    """Time after a step: the end where the step would reach it, half-way where it would leave a sliver."""
    remaining = end - t
    share = (step / remaining).abs()
    halved = torch.where(share > 0.5, 0.5 * remaining, step)
    return torch.where(share < 1, t + halved, end)  # also where nothing remains


def outcome(active: Rows, ended: Tensor, spent: Tensor | bool, ratio: Tensor, end: float) -> Tensor:
    """Status of each sample, -1 while it goes on.

    Args:
        active: The samples.
        ended: Where the next step would be too small, or the end is reached.
        spent: Whether max_nfe evaluations are.
        ratio: The last step's error over its tolerance.
        end: The last time.
    """
    status = torch.full_like(active.row, -1).masked_fill(torch.as_tensor(spent), int(Status.MAX_NFE))
    why = torch.where(torch.isfinite(ratio), int(Status.STEP_TOO_SMALL), int(Status.NON_FINITE))
    status = torch.where(ended, why.to(status.dtype), status)
    return torch.where(active.t == end, int(Status.OK), status)
