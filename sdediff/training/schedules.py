"""Learning rates as functions of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class InverseSqrt:
    r"""Linear warm-up, flat, then decay with the inverse square root of the step.

    .. math:: lr_k = peak \cdot \min(1, (k+1)/warmup) / \sqrt{\max(1, (k+1)/flat)}

    It does not know where training ends, so 100 steps and 100 more are 200 (Karras et al. 2024, arXiv
    2312.02696, section 3.1). Raises ValueError unless peak and flat are positive.

    Example:
        >>> rate = InverseSqrt(1e-3, warmup=10, flat=100)
        >>> rate(0), rate(50), rate(399)
        (0.0001, 0.001, 0.0005)
    """

    peak: float
    warmup: int = 100
    flat: int = 200

    def __post_init__(self) -> None:
        if not (self.peak > 0 and self.flat > 0):
            raise ValueError(
                f"peak={self.peak}, flat={self.flat}: give a positive learning rate and a positive number of "
                "steps"
            )

    def __call__(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        return (
            self.peak
            * min(1.0, (step + 1) / max(1, self.warmup))
            / math.sqrt(max(1.0, (step + 1) / self.flat))
        )


@dataclass(frozen=True)
class Cosine:
    r"""Linear warm-up, then half a cosine down to 0 at step `total`.

    .. math:: lr_k = peak \cdot \min(1, (k+1)/warmup) \cdot \tfrac12 (1 + \cos(\pi k/total))

    Raises ValueError unless peak and total are positive.

    Example:
        >>> rate = Cosine(1e-3, total=200, warmup=10)
        >>> rate(0), round(rate(100), 9), rate(200)
        (0.0001, 0.0005, 0.0)
    """

    peak: float
    total: int
    warmup: int = 100

    def __post_init__(self) -> None:
        if not (self.peak > 0 and self.total > 0):
            raise ValueError(
                f"peak={self.peak}, total={self.total}: give a positive learning rate and the number of "
                "steps of the run"
            )

    def __call__(self, step: int) -> float:
        """Learning rate of step 0, 1, ..."""
        progress = min(1.0, step / self.total)
        return (
            self.peak * min(1.0, (step + 1) / max(1, self.warmup)) * 0.5 * (1 + math.cos(math.pi * progress))
        )
