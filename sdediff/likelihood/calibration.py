"""Whether stated errors hold: values against an independent evaluation of the same rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .result import LogLikelihood

#: Nominal levels at which coverage is observed.
LEVELS = (*(round(0.05 * i, 2) for i in range(1, 20)), 0.98, 0.99)


@dataclass(frozen=True)
class Calibration:
    """Coverage of stated intervals, and the differences they are to hold.

    Attributes:
        levels: Nominal levels, (L,).
        observed: Share of the rows whose interval holds the difference, (L,).
        low: Lower end of the band that holds that share with probability 0.95 where levels are right, (L,).
        high: Its upper end, (L,).
        difference: Values less those of the other evaluation, (n,), nats.
        half_width: Half widths of their 95 % intervals, (n,), nats.
        random: Whether something random is in a row's error, (n,): without it the interval is a bound, the
            same at every level.
        unknown: Rows left out, because a value or an error is unknown.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.eight_gaussians(dtype=torch.float64)
        >>> x, model = data.sample(8, seed=0), data.model(sdediff.VP())
        >>> values = model.log_likelihood(x, rtol=1e-3, atol=1e-3)
        >>> Calibration.of(values, model.log_likelihood(x, rtol=1e-7, atol=1e-7)).inside
        8
    """

    levels: Tensor
    observed: Tensor
    low: Tensor
    high: Tensor
    difference: Tensor
    half_width: Tensor
    random: Tensor
    unknown: int

    @classmethod
    def of(cls, values: LogLikelihood, other: LogLikelihood) -> Calibration:
        """Compare values with an independent evaluation of the same quantity, which has errors of its own.

        The intervals are those of the differences. The two may be of other estimators, such as random probes
        and the exact trace, but not of other estimands.

        Raises:
            ValueError: If they are of other estimands, priors or intervals of time.
        """
        from scipy.stats import binom

        if values.kind.estimand == other.kind.estimand:  # how it is estimated may differ here
            other = replace(other, kind=values.kind)
        difference = values - other
        known = torch.isfinite(difference.log_prob + difference.std_error + difference.solver_error)
        difference = difference.take(known)
        n, levels = int(known.sum()), torch.tensor(LEVELS, dtype=torch.float64)
        bounds = [difference.interval(level) for level in LEVELS]
        held = torch.stack([(low <= 0) & (high >= 0) for low, high in bounds])
        low, high = (torch.from_numpy(binom.ppf(q, n, levels.numpy()) / max(n, 1)) for q in (0.025, 0.975))
        return cls(
            levels,
            held.double().mean(dim=1),
            low,
            high,
            difference.log_prob,
            difference.interval(0.95)[1] - difference.log_prob,
            difference.std_error > 0,
            len(known) - n,
        )

    @property
    def inside(self) -> int:
        """Rows whose difference lies in its 95 % interval."""
        return int((self.difference.abs() <= self.half_width).sum())

    @property
    def expected(self) -> tuple[int, int]:
        """Between which numbers `inside` lies with probability 0.95 if errors are as stated."""
        at, n = LEVELS.index(0.95), len(self.difference)
        return round(float(self.low[at]) * n), round(float(self.high[at]) * n)

    @property
    def too_small(self) -> bool:
        """Whether fewer rows lie inside their 95 % interval than chance explains."""
        return self.inside < self.expected[0]

    @property
    def too_large(self) -> bool:
        """Whether so many rows lie inside their 50 % interval as chance explains once in a thousand times."""
        from scipy.stats import binom

        return self._central > binom.ppf(0.999, len(self.difference), 0.5)

    @property
    def _central(self) -> int:
        """Rows whose difference lies in its 50 % interval."""
        return round(float(self.observed[LEVELS.index(0.5)]) * len(self.difference))

    @property
    def verdict(self) -> str:
        """What is observed, in words."""
        n, (least, most) = len(self.difference), self.expected
        size = "too small" if self.too_small else "right"
        if self.too_large:
            size = f"larger than need be ({self._central} of {n} are inside their 50 % interval)"
        return (
            f"{self.inside} of {n} inside their 95 % interval, {least} to {most} expected: stated errors are "
            f"{size}; largest difference {float(self.difference.abs().max()):.2g} nats"
        )
