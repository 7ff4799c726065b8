"""How values are quantised: which levels there are, and which cell of the line belongs to each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_SLACK = (
    1e-3  # of a cell, beside what rounding in the data's dtype does: uniform noise stays within it 1 in 500
)


@dataclass(frozen=True)
class Quantisation:
    """Evenly spaced levels and their cells: level k is ``low + k width``, ``width = (high-low)/(levels-1)``.

    Args:
        levels: Number of levels, at least 2.
        low: Value of the lowest level.
        high: Value of the highest; ``low + levels - 1`` (integers) when left out.
        centred: Whether a level is the middle of its cell. By default it is the cell's lower end, as for
            :func:`sdediff.dequantise`, whose noise is added to the level; centred cells suit a model trained
            on the levels themselves.

    Raises:
        ValueError: If there are fewer than 2 levels, or high is not above low.

    Example:
        >>> Quantisation(levels=17).width, Quantisation(levels=256, low=-1, high=1, centred=True).width * 255
        (1.0, 2.0)
    """

    levels: int
    low: float = 0.0
    high: float | None = None
    centred: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or self.levels < 2:
            raise ValueError(f"levels={self.levels!r}: give a whole number of levels, at least 2")
        high = self.low + self.levels - 1 if self.high is None else self.high
        if not (math.isfinite(self.low) and math.isfinite(high) and high > self.low):
            raise ValueError(
                f"low={self.low}, high={high}: give the values of the lowest and of the highest level, "
                "finite and low < high"
            )
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(high))

    @property
    def width(self) -> float:
        """Width of a cell, in the data's units."""
        assert self.high is not None
        return (self.high - self.low) / (self.levels - 1)

    @property
    def values(self) -> Tensor:
        """The levels, (levels,) float64."""
        return self.low + self.width * torch.arange(self.levels, dtype=torch.float64)

    @property
    def edges(self) -> Tensor:
        """Where cells meet, and the two outer ends, (levels + 1,) float64, rising."""
        numbers = torch.arange(self.levels + 1, dtype=torch.float64)
        return self.low + self.width * (numbers - self._below)

    @property
    def _below(self) -> float:
        """Share of a cell that lies below its level."""
        return 0.5 if self.centred else 0.0

    def index(self, x: Tensor) -> Tensor:
        """Numbers of the levels that x holds, 0 .. levels - 1, like x.

        Raises:
            ValueError: If a value of x is none of the levels; the row is named.

        Example:
            >>> import torch
            >>> Quantisation(levels=3, low=-1, high=1).index(torch.tensor([[-1.0, 1.0]]))
            tensor([[0., 2.]])
        """
        raw = (x - self.low) / self.width
        number = raw.round()
        slack = _SLACK + torch.finfo(x.dtype).eps * self.levels
        wrong = ((raw - number).abs() > slack) | (number < 0) | (number > self.levels - 1)
        if bool(wrong.any()):
            row = int(wrong.flatten(1).any(dim=1).nonzero()[0])
            value = float(x[row][wrong[row]].flatten()[0])
            raise ValueError(
                f"row {row} of x holds {value:.6g}, which is none of the {self.levels} levels from "
                f"{self.low:g} to {self.high:g}: give data that are neither dequantised nor rescaled, or the "
                "Quantisation whose levels they are"
            )
        return number

    def cell_of(self, y: Tensor) -> Tensor:
        """Numbers of the cells that y lies in, like y; beyond the ends, of the outermost cells."""
        return ((y - self.low) / self.width + self._below).floor().clamp(0, self.levels - 1)

    def point(self, index: Tensor, u: Tensor) -> Tensor:
        """The points of the cells of levels number `index` at u, in [0, 1] from lower to upper end."""
        y = self.low + (index + u - self._below) * self.width
        end = self.low + (index + 1 - self._below) * self.width
        return torch.minimum(y, torch.nextafter(end, end - self.width))  # rounding stays inside the cell

    def unit(self, index: Tensor) -> Tensor:
        """Levels number `index` on the scale from -1 (lowest) to 1 (highest)."""
        return index * (2 / (self.levels - 1)) - 1
