r"""Times drawn where the gradient is noisy, as learnt during the run.

An average over times by draws from q, with p/q divided out, has the least variance where q goes with the root
mean square of what is averaged, :math:`q \propto p\,\sqrt{E[h^2\mid t]}`; here that is a gradient. (Kingma &
Gao 2023, arXiv 2303.00848, adapt to the mean loss, for the same purpose.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sdediff.processes import GaussianProcess
from sdediff.training.times import Cells, UniformLogSNR


@dataclass(frozen=True)
class Adaptive(UniformLogSNR):
    r"""A proposal that starts uniform in :math:`\lambda` and adapts to a running average of squared losses.

    .. math:: q(\lambda) = \frac{floor}{\lambda_{max}-\lambda_{min}} + (1 - floor)\,
        \frac{\sqrt{E[h^2 \mid cell]}}{\sum\ldots}

    in cells of equal width, with h the norm of the gradient that a row's loss sends into the network's
    output, per unit of :math:`\lambda`. It is no less than `floor` of the uniform one anywhere, so no
    importance weight exceeds 1/floor times what it would be for uniform draws. As the proposal of a
    :class:`~sdediff.training.DenoisingLoss` it never changes what is minimised.

    Args:
        cells: Number of cells.
        floor: Share of the uniform distribution.
        memory: Steps over which the average forgets.

    Raises:
        ValueError: If there are no cells, the floor is not in (0, 1] or the memory is below 1.

    Example:
        >>> from sdediff.processes import VP
        >>> times = AdaptiveTimes(Adaptive(cells=2, floor=0.2), VP())
        >>> t = UniformLogSNR().sample(torch.tensor([0.2, 0.8]), VP())
        >>> for _ in range(1000):
        ...     times.observe(t, torch.tensor([3.0, 1.0]))
        >>> times.mass.round(decimals=1)
        tensor([0.7000, 0.3000], dtype=torch.float64)
    """

    cells: int = 64
    floor: float = 0.1
    memory: float = 200.0

    def __post_init__(self) -> None:
        if self.cells < 1 or not 0 < self.floor <= 1 or not self.memory >= 1:
            raise ValueError(
                f"cells={self.cells}, floor={self.floor}, memory={self.memory}: give at least one cell, a "
                "floor above 0 and at most 1, and a memory of at least one step"
            )


class AdaptiveTimes(nn.Module):
    """What :class:`Adaptive` is during a run: sums of squares by cell, in buffers.

    Args:
        settings: Its settings.
        process: The process.
    """

    #: Rows of the overall mean that every cell has besides its own.
    PRIOR = 1.0
    squares: Tensor
    counts: Tensor

    def __init__(self, settings: Adaptive, process: GaussianProcess) -> None:
        super().__init__()
        self.settings, self.cells = settings, Cells(process, settings.cells)
        self.register_buffer("squares", torch.zeros(settings.cells))
        self.register_buffer("counts", torch.zeros(settings.cells))

    @property
    def mass(self) -> Tensor:
        """The probability of every cell, (cells,) on the host."""
        squares, counts = self.squares.cpu().double(), self.counts.cpu().double()
        total = squares.sum() / counts.sum().clamp(min=1)
        if not float(total) > 0:
            return torch.full_like(squares, 1 / len(squares))
        size = ((squares + self.PRIOR * total) / (counts + self.PRIOR)).sqrt()
        floor = self.settings.floor
        return floor / len(size) + (1 - floor) * size / size.sum()

    def sample(self, u: Tensor, process: GaussianProcess) -> Tensor:
        """Times for uniform numbers."""
        return self.cells.sample(u.cpu(), self.mass)

    def density(self, t: Tensor, process: GaussianProcess) -> Tensor:
        """Density per unit time."""
        return self.cells.density(t, self.mass)

    def observe(self, t: Tensor, statistic: Tensor) -> None:
        """Take in a step's times and gradient norms (B,); on the host, where sums do not depend on luck."""
        keep, index = 1 - 1 / self.settings.memory, self.cells.index(t.detach().cpu().double())
        squares = statistic.detach().cpu().double().square()
        count = self.settings.cells
        news = (torch.bincount(index, squares, count), torch.bincount(index, minlength=count).double())
        for old, new in zip((self.squares, self.counts), news, strict=True):
            old.mul_(keep).add_(new.to(old))
