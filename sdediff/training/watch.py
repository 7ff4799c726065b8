"""A look at every step's loss and gradient, so that a run that goes wrong stops and says where."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor


class Watch:
    """Stops a run whose loss is not finite, or has grown beyond a hundred times where it began."""

    SPAN, FACTOR = 20, 100.0

    def __init__(self) -> None:
        self._seen, self._mean, self._start = 0, 0.0, 0.0

    @property
    def state(self) -> list[float]:
        """What it has seen, for a checkpoint."""
        return [self._seen, self._mean, self._start]

    @state.setter
    def state(self, value: list[float]) -> None:
        self._seen, self._mean, self._start = int(value[0]), value[1], value[2]

    def __call__(
        self, step: int, loss: float, size: float, bad: Callable[[], Tensor], advice: Callable[[], str]
    ) -> None:
        """Look at step `step`'s loss and gradient norm, before the weights are changed by it.

        Args:
            step: Number of the step.
            loss: Its loss.
            size: Its gradient's norm.
            bad: Tells which rows of its batch are not finite.
            advice: Tells what is intact, for the message.

        Raises:
            ValueError: If the batch is not finite.
            RuntimeError: If loss or gradient is not finite, or the loss diverges.
        """
        if not math.isfinite(loss + size):
            rows = bad().nonzero().flatten().tolist()
            if rows:
                raise ValueError(
                    f"step {step}: row {rows[0]} of the batch has NaN or infinite values: remove or fill them"
                )
            what = "loss" if not math.isfinite(loss) else "gradient"
            raise RuntimeError(
                f"training stopped at step {step}: the {what} is {loss if what == 'loss' else size}; "
                f"lower lr=, or look for huge values in the data{advice()}"
            )
        self._seen += 1
        weight = max(1 / self._seen, 1 / self.SPAN)
        self._mean += weight * (loss - self._mean)
        if self._seen == self.SPAN:
            self._start = max(1.0, self._mean)
        if self._seen > self.SPAN and self._mean > self.FACTOR * self._start:
            raise RuntimeError(
                f"training stopped at step {step}: the loss has grown from {self._start:.3g} "
                f"to {self._mean:.3g} and diverges; lower lr={advice()}"
            )
