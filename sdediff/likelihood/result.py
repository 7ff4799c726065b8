"""What a likelihood evaluation returns."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


def bits_per_dim(log_prob: Tensor, dim: int, bin_width: float) -> Tensor:
    r"""Bits per dimension of data quantised to bins, from the log-density of the dequantised data.

    .. math:: \mathrm{bpd} = -\frac{\log p + d\,\log w}{d\,\log 2}

    Args:
        log_prob: Log-densities in nats, (n,), of x + u with u uniform over a bin.
        dim: Dimensions d of a datum.
        bin_width: Width w of a bin in the units of the density: 1/256 for 8-bit images scaled to [0, 1],
            2/256 for [-1, 1].

    Returns:
        (n,); the mean over u is an upper bound of the discrete model's own bits per dimension (Theis et al.
        2016, arXiv 1511.01844, Eq. 9).

    Raises:
        ValueError: If the width or dim is not positive.

    Example:
        >>> import torch
        >>> bits_per_dim(torch.zeros(1), dim=12, bin_width=1 / 256)
        tensor([8.])
    """
    if not bin_width > 0 or dim < 1:
        raise ValueError(
            f"bin_width={bin_width}, dim={dim}: give the positive width of a bin in the data's units, and a "
            "positive dim"
        )
    return -(log_prob / dim + math.log(bin_width)) / math.log(2)


@dataclass(frozen=True, repr=False)
class LogLikelihood:
    """Log-densities, and how wrong they may be; every tensor has a row a sample.

    Attributes:
        log_prob: Log-density in nats per data unit, (n,), float64 where the device has it.
        std_error: Standard error from random probes, (n,); 0 with the exact trace, nan with one probe.
        solver_error: Estimated error of path and quadrature, (n,), nats; nan where the solver gives no
            estimate of its own.
        latent: State at t_max in the model's units, (n, *data_shape).
        nfe: Forward evaluations of the network along the path, (n,).
        divergence_evaluations: Vector-Jacobian products, (n,).
        degrees: Degrees of freedom of std_error, (n,).
        status: :class:`solvers.Status` values, (n,).
        kind: "density/exact" or "density/unbiased": what is estimated, and how.
        prior: Name of the prior at t_max.
        t_span: (t_min, t_max).
    """

    log_prob: Tensor
    std_error: Tensor
    solver_error: Tensor
    latent: Tensor
    nfe: Tensor
    divergence_evaluations: Tensor
    degrees: Tensor
    status: Tensor
    kind: str
    prior: str
    t_span: tuple[float, float]

    @classmethod
    def join(cls, parts: list[LogLikelihood]) -> LogLikelihood:
        """Likelihoods of consecutive rows as one."""
        columns: dict[str, Any] = {
            f.name: torch.cat([getattr(p, f.name) for p in parts])
            for f in fields(cls)
            if isinstance(getattr(parts[0], f.name), Tensor)
        }
        return replace(parts[0], **columns)

    def __repr__(self) -> str:
        value, error = self.log_prob, self.std_error.nan_to_num() + self.solver_error.nan_to_num()
        return (
            f"LogLikelihood({len(value)} rows, mean log_prob {float(value.mean()):.6g} nats, "
            f"largest estimated error {float(error.max()):.2g}, kind={self.kind!r}, prior={self.prior!r}, "
            f"t_span={self.t_span})"
        )

    @property
    def dim(self) -> int:
        """Dimensions of a datum."""
        return self.latent[0].numel()

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Interval for the log-density: Student's t quantile times the standard error, plus the solver error.

        Args:
            level: Coverage, in (0, 1).

        Returns:
            ``(low, high)``, each (n,); nan where an error is unknown (one probe, a foreign solver).

        Raises:
            ValueError: If the level is not in (0, 1).
        """
        from scipy.stats import t as student

        if not 0 < level < 1:
            raise ValueError(f"level={level}: give a coverage between 0 and 1, such as 0.95")
        degrees = self.degrees.detach().cpu().clamp(min=1e-9).numpy()
        quantile = torch.as_tensor(student.ppf(0.5 + level / 2, degrees)).to(self.std_error)
        random = torch.where(self.std_error == 0, 0.0, quantile * self.std_error)
        return self.log_prob - random - self.solver_error, self.log_prob + random + self.solver_error

    def bits_per_dim(self, bin_width: float) -> Tensor:
        """Bits per dimension, (n,); see :func:`sdediff.bits_per_dim`."""
        return bits_per_dim(self.log_prob, self.dim, bin_width)
