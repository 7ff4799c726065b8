"""What a likelihood evaluation returns: values, how wrong they may be, and what kind of values they are."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

ESTIMANDS = ("density", "extrapolated density", "probability", "ratio")
ESTIMATORS = ("exact", "unbiased", "lower bound", "biased")


class Kind(str):
    """What a value estimates, and how: a string "estimand/estimator".

    The estimand is "density" (of the data noised to t_min), "extrapolated density" (corrected to no noise: no
    normalised density), "probability" (of a discrete datum) or "ratio" (a difference of two logarithms). The
    estimator is "exact" (but for the solver's error), "unbiased" (random, right on average), "lower bound"
    (at most the value, on average) or "biased" (right only where the score is exact).

    Example:
        >>> kind = Kind("probability/lower bound")
        >>> kind.estimand, kind.estimator
        ('probability', 'lower bound')
    """

    def __new__(cls, kind: str) -> Kind:
        estimand, _, estimator = kind.partition("/")
        if estimand not in ESTIMANDS or estimator not in ESTIMATORS:
            raise ValueError(
                f"kind={kind!r} is not known: give one of {', '.join(ESTIMANDS)}, a slash, and one of "
                f"{', '.join(ESTIMATORS)}"
            )
        return super().__new__(cls, kind)

    @property
    def estimand(self) -> str:
        """What is estimated."""
        return self.partition("/")[0]

    @property
    def estimator(self) -> str:
        """How it is estimated."""
        return self.partition("/")[2]


class Mean(NamedTuple):
    """A mean over rows.

    Attributes:
        value: The mean.
        std_error: Its standard error, from the scatter of the rows: nan for a single one.
        solver_error: Mean of the rows' solver errors: they need not cancel.
        rows: Rows it is taken over.
    """

    value: float
    std_error: float
    solver_error: float
    rows: int


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
    """Log-densities or log-probabilities, and how wrong they may be; every tensor has a row a sample.

    Attributes:
        log_prob: Log-density in nats per data unit, or log-probability in nats, (n,), float64 where the
            device has it.
        std_error: Standard error from whatever is random (probes, dequantisation, noise), (n,); 0 where
            nothing is, nan where it is unknown (one probe).
        solver_error: Estimated error of path and quadrature, (n,), nats; nan where the solver gives no
            estimate of its own.
        degrees: Degrees of freedom of std_error, (n,); infinite where it is known as well as can be.
        nfe: Forward evaluations of the network, (n,): along the path where there is one (a trace takes one
            more at each of its nodes, and the estimates at the path's ends up to four).
        divergence_evaluations: Vector-Jacobian products, (n,).
        status: :class:`solvers.Status` values, (n,).
        kind: :class:`Kind`: what is estimated, and how.
        prior: Name of the prior at t_max.
        t_span: (t_min, t_max).
        dim: Dimensions of a datum.
        latent: State at t_max in the model's units, (n, *data_shape), or None where there is no path.
        prior_mismatch: Estimated log-density of the noised data at t_max less the prior's, at the latent,
            (n,), nats: what the value would change by if the prior were the law of the noised data. Not an
            error of the model's own density, so no part of the interval; None where it was not estimated.
        truncation: Estimated change of the value if the noise left at t_min were none, (n,), nats; None where
            it was not estimated. No part of the interval either.
    """

    log_prob: Tensor
    std_error: Tensor
    solver_error: Tensor
    degrees: Tensor
    nfe: Tensor
    divergence_evaluations: Tensor
    status: Tensor
    kind: Kind
    prior: str
    t_span: tuple[float, float]
    dim: int
    latent: Tensor | None = None
    prior_mismatch: Tensor | None = None
    truncation: Tensor | None = None

    @classmethod
    def join(cls, parts: list[LogLikelihood]) -> LogLikelihood:
        """Likelihoods of consecutive rows as one.

        Raises:
            ValueError: If they are of different kinds, priors or intervals.
        """
        for part in parts[1:]:
            parts[0].check_same(part)
        columns: dict[str, Any] = {
            name: torch.cat([getattr(p, name) for p in parts]) for name in parts[0]._columns()
        }
        return replace(parts[0], **columns)

    def take(self, rows: slice | Tensor) -> LogLikelihood:
        """The likelihoods of some rows: a slice, a mask (n,), or integers.

        Example:
            >>> import sdediff
            >>> data = sdediff.reference.eight_gaussians()
            >>> r = data.model(sdediff.VP()).log_likelihood(data.sample(5, seed=0))
            >>> torch.equal(r.take(slice(2)).log_prob, r.log_prob[:2])
            True
        """
        columns: dict[str, Any] = {name: getattr(self, name)[rows] for name in self._columns()}
        return replace(self, **columns)

    def _columns(self) -> list[str]:
        """Names of what has a row a sample."""
        return [f.name for f in fields(self) if isinstance(getattr(self, f.name), Tensor)]

    def cpu(self) -> LogLikelihood:
        """The same with every tensor on the host."""
        columns: dict[str, Any] = {n: v.cpu() for n, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **columns)

    def check_same(self, other: LogLikelihood) -> None:
        """Raise a ValueError unless the other's values may be compared with these."""
        for name in ("kind", "dim", "prior", "t_span"):
            ours, theirs = getattr(self, name), getattr(other, name)
            if ours != theirs:
                raise ValueError(
                    f"values of {name} {ours!r} and of {name} {theirs!r} cannot be compared or averaged as "
                    "they are: evaluate both alike, or take their log_prob and say what you do"
                )

    def __sub__(self, other: LogLikelihood) -> LogLikelihood:
        """Differences row by row, with the errors of both; of equal kind, prior and interval only."""
        self.check_same(other)
        if len(self.log_prob) != len(other.log_prob):
            raise ValueError(
                f"{len(self.log_prob)} values and {len(other.log_prob)} have no differences row by row: "
                "take the same rows of both"
            )
        a, b = self.std_error.square(), other.std_error.square()
        spread = a.square() / self.degrees + b.square() / other.degrees
        zero = torch.zeros((), dtype=a.dtype, device=a.device)
        return replace(
            self,
            log_prob=self.log_prob - other.log_prob,
            std_error=(a + b).sqrt(),
            solver_error=self.solver_error + other.solver_error,
            degrees=torch.where(spread > 0, (a + b).square() / spread, zero + torch.inf),
            nfe=self.nfe + other.nfe,
            divergence_evaluations=self.divergence_evaluations + other.divergence_evaluations,
            status=torch.maximum(self.status, other.status),
            kind=Kind(f"ratio/{self.kind.estimator}"),
            latent=None,
            prior_mismatch=None,
            truncation=None,
        )

    def __repr__(self) -> str:
        value, error = self.log_prob, self.std_error.nan_to_num() + self.solver_error.nan_to_num()
        return (
            f"LogLikelihood({len(value)} rows, mean log_prob {float(value.mean()):.6g} nats, "
            f"largest estimated error {float(error.max()):.2g}, kind={str(self.kind)!r}, "
            f"prior={self.prior!r}, t_span={self.t_span})"
        )

    def mean(self) -> Mean:
        """Mean over the rows that have a value, with its standard error."""
        ok = torch.isfinite(self.log_prob)
        values, rows = self.log_prob[ok].detach().cpu().double(), int(ok.sum())
        error = float(values.std()) / math.sqrt(rows) if rows > 1 else math.nan
        return Mean(float(values.mean()), error, float(self.solver_error[ok].mean()), rows)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Interval for the value: Student's t quantile times the standard error, plus the solver error.

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

    def bits_per_dim(self, bin_width: float | None = None) -> Tensor:
        """Bits per dimension, (n,).

        Args:
            bin_width: Width of a bin, for densities of dequantised data (:func:`sdediff.bits_per_dim`);
                probabilities take none.

        Raises:
            ValueError: If a density comes without a width, or a probability with one.
        """
        if self.kind.estimand == "ratio":
            raise ValueError("these are differences of logarithms, which have no bits: take those of each")
        discrete = self.kind.estimand == "probability"
        if discrete and bin_width is not None:
            raise ValueError("these are log-probabilities of discrete data: leave bin_width out")
        if not discrete and bin_width is None:
            raise ValueError(
                "these are densities: give bin_width=, the width of a bin in the data's units, such as 1/256 "
                "for 8-bit images scaled to [0, 1]"
            )
        return bits_per_dim(self.log_prob, self.dim, 1.0 if bin_width is None else bin_width)
