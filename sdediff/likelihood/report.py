r"""Three values of one model's log-likelihood side by side, and what their differences consist of.

For the score of a diffusion the probability flow, the reverse SDE and the denoiser's errors give one density.
A learned score is the score of none, so its flow and its SDE have densities of their own, and the values
differ by right: they are compared row by row here, and never averaged.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from solvers import Solver
from solvers.noise import Stream, normal

from ..model import Condition, DiffusionModel, solving
from ..prior import Prior
from ..run import check_span, chunks, rows_of
from ..text import aligned
from .bounds import elbo, i_mmse
from .divergence import products
from .engine import log_likelihood
from .nodes import data_scale
from .result import LogLikelihood

_LEVELS = (0.03, 0.1, 0.3, 1.0, 3.0)  # noise in standard deviations of the data
_ROWS = 256  # rows the asymmetry is measured at


@dataclass(frozen=True)
class Gap:
    """Mean of one estimator less another's, over the same rows.

    Attributes:
        names: The two estimators.
        value: Mean difference, nats.
        std_error: What the estimators' own noise leaves of it.
        degrees: Degrees of freedom of that.
        solver_error: Mean of the solver errors of both.
        scatter: Standard error from the scatter of the differences over rows: what other rows of the same
            kind would give.
        parts: What the gap consists of, in a sentence.
    """

    names: tuple[str, str]
    value: float
    std_error: float
    degrees: float
    solver_error: float
    scatter: float
    parts: str

    @property
    def margin(self) -> float:
        """Half width of the 95 % interval: Student's quantile times the standard error, and the solvers'."""
        from scipy.stats import t as student

        quantile = float(student.ppf(0.975, self.degrees)) if self.std_error > 0 else 0.0
        return (quantile * self.std_error if quantile else self.std_error) + self.solver_error

    @property
    def significant(self) -> bool | None:
        """Whether zero lies outside the 95 % interval; None where the interval is unknown."""
        return None if math.isnan(self.margin) else abs(self.value) > self.margin

    def __str__(self) -> str:
        verdict = {
            None: "of unknown significance, since one of the two states no error",
            True: "significant",
            False: "not significant, since both agree within their errors",
        }[self.significant]
        return (
            f"{self.names[0]} less {self.names[1]}: {self.value:+.4g} nats, within {self.margin:.2g} (95 %): "
            f"{verdict}. {self.parts}"
        )


@dataclass(frozen=True)
class LikelihoodReport:
    """What :func:`likelihood_report` found; `str` makes a readable page of it.

    Attributes:
        ode: By the probability flow.
        elbo: Lower bound for the reverse SDE, at t_min.
        i_mmse: By the denoiser's errors, for clean data.
        asymmetry: Relative antisymmetric part of the score's Jacobian by noise level, in standard deviations
            of the data: 0 for a gradient.
    """

    ode: LogLikelihood
    elbo: LogLikelihood
    i_mmse: LogLikelihood
    asymmetry: dict[float, float]

    @property
    def estimators(self) -> dict[str, LogLikelihood]:
        """The results by name."""
        return {"ODE": self.ode, "ELBO": self.elbo, "I-MMSE": self.i_mmse}

    @property
    def rows(self) -> Tensor:
        """Mask of the rows for which every estimator has a value, (n,)."""
        return torch.stack([r.log_prob.isfinite() for r in self.estimators.values()]).all(dim=0)

    @property
    def gaps(self) -> tuple[Gap, ...]:
        """ODE less ELBO, ODE less I-MMSE, ELBO less I-MMSE."""
        return tuple(self._gap(a, b) for a, b in combinations(self.estimators, 2))

    def _gap(self, first: str, second: str) -> Gap:
        a, b = (self.estimators[name].take(self.rows) for name in (first, second))
        n, difference = len(a.log_prob), a.log_prob - b.log_prob
        variances = torch.stack([a.std_error, b.std_error]).square()
        total = float(variances.sum())
        spread = float((variances.square() / torch.stack([a.degrees, b.degrees])).sum())
        return Gap(
            (first, second),
            float(difference.mean()),
            math.sqrt(total) / n if n else math.nan,
            total**2 / spread if spread else math.inf,
            float((a.solver_error + b.solver_error).mean()),
            float(difference.std()) / math.sqrt(n) if n > 1 else math.nan,
            self._parts(first, second),
        )

    def _parts(self, first: str, second: str) -> str:
        """What a gap consists of."""
        parts = []
        if first == "ODE":
            parts.append(
                "the bound's slack, which is the divergence of noising from the reverse SDE's own paths, and "
                "the difference of that SDE's density from the flow's (both are 0 for an exact score)"
            )
            if self.ode.prior_mismatch is not None:
                mismatch = float(self.ode.prior_mismatch.nanmean())
                parts.append(
                    f"a prior that the noised data exceed by {mismatch:+.2g} nats at the flow's latents, "
                    "where the bound averages over noise"
                )
            if bool((self.ode.std_error != 0).any()):
                parts.append("the noise of the flow's probes")
        if second == "I-MMSE":
            noise = "the noise left at t_min, which I-MMSE extrapolates to none"
            if self.ode.truncation is not None:
                noise += f" (the flow puts its part at {-float(self.ode.truncation.nanmean()):+.2g} nats)"
            parts.append(noise)
        return f"It consists of {'; and '.join(parts)}."

    def __str__(self) -> str:
        kept = int(self.rows.sum())
        lines = [
            f"Log-likelihood of {kept} rows, nats; prior {self.ode.prior!r}, t_span {self.ode.t_span}",
            "",
            self._table(),
            "",
        ]
        if kept < len(self.rows):
            lines[0] += f" (left out without a value: {len(self.rows) - kept})"
        lines += [str(gap) for gap in self.gaps]
        levels = ", ".join(f"{share:.2g} at {level:g}" for level, share in self.asymmetry.items())
        lines += [
            "",
            "Antisymmetric part of the score's Jacobian, by noise in standard deviations of the data (a "
            "gradient field has 0; a field that is none has no one density for the values to agree on): "
            f"{levels}.",
        ]
        return "\n".join(lines)

    def _table(self) -> str:
        """The estimators side by side: means, and root mean squares of a row's errors."""
        head = [
            "",
            "mean",
            "std error",
            "noise a row",
            "solver error",
            "kind",
            "evaluations",
            "products",
        ]
        body = []
        for name, result in self.estimators.items():
            kept = result.take(self.rows)
            mean, noise = kept.mean(), kept.std_error.square().mean().sqrt()
            numbers = (mean.value, mean.std_error, float(noise), mean.solver_error)
            costs = (kept.nfe, kept.divergence_evaluations)
            body.append(
                [
                    name,
                    f"{numbers[0]:.5g}",
                    *(f"{v:.2g}" for v in numbers[1:]),
                    str(result.kind),
                    *(f"{float(c.double().mean()):.0f}" for c in costs),
                ]
            )
        return aligned([head, *body], left=1)


@solving
def likelihood_report(
    model: DiffusionModel,
    x: Tensor,
    solver: str | Solver = "dopri5",
    *,
    draws: int = 256,
    cond: Any = None,
    seed: int = 0,
    indices: Any = None,
    t_span: tuple[float, float] | None = None,
    prior: str | Prior | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> LikelihoodReport:
    """The log-likelihood of data by the probability flow, by the ELBO and by I-MMSE, and their gaps.

    Args:
        model: The model.
        x: Data in data units, (n, *data_shape).
        solver: A solver of ODEs or its name.
        draws: As for :func:`elbo` and :func:`i_mmse`.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of probes and noise.
        indices: Names of the samples, (n,) integers; 0 .. n-1 by default.
        t_span: (t_min, t_max) in place of the process's.
        prior: "matched", "standard" or an object with log_prob, in place of the model's.
        batch_size: Rows, or estimates, evaluated at once.
        **options: rtol, atol, steps, grid, nodes, divergence and on_failure of :func:`log_likelihood`.

    Returns:
        A :class:`LikelihoodReport`: its `str` is a table, a sentence a gap, and how far the score is from a
        gradient.

    Raises:
        TypeError: If `extrapolate` is asked for, which would make two estimands one.
        ValueError: If an argument does not fit.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.eight_gaussians(dtype=torch.float64)
        >>> report = likelihood_report(data.model(sdediff.VP()), data.sample(50, seed=1), seed=1)
        >>> [gap.significant for gap in report.gaps]
        [False, False, False]
        >>> max(report.asymmetry.values()) < 1e-10
        True
    """
    if options.get("extrapolate"):
        raise TypeError(
            "a report compares the density at t_min with the one extrapolated to no noise: leave extrapolate "
            "out"
        )
    shared = {
        "cond": cond,
        "seed": seed,
        "indices": indices,
        "t_span": t_span,
        "prior": prior,
        "batch_size": batch_size,
    }
    bounds = {"draws": draws, **shared}
    few = slice(_ROWS)
    return LikelihoodReport(
        log_likelihood(model, x, solver, **shared, **options),
        elbo(model, x, **bounds),
        i_mmse(model, x, **bounds),
        score_asymmetry(
            model,
            x[few],
            cond=cond[few] if isinstance(cond, Tensor) and len(cond) == len(x) else cond,
            seed=seed,
            indices=rows_of(len(x), indices)[few],
            t_span=t_span,
        ),
    )


@solving
def score_asymmetry(
    model: DiffusionModel,
    x: Tensor,
    *,
    probes: int = 4,
    cond: Any = None,
    seed: int = 0,
    indices: Any = None,
    t_span: tuple[float, float] | None = None,
) -> dict[float, float]:
    r"""How far the score is from a gradient: :math:`|J-J^T|/(2|J|)` of its Jacobian J, in Frobenius norms.

    Both norms are estimated by pairs of normal probes, :math:`E(u^TJv-v^TJu)^2 = |J-J^T|^2` and
    :math:`E|J^Tu|^2 = |J|^2`, from vector-Jacobian products alone, at the data noised to several levels.

    Args:
        model: The model.
        x: Data in data units, (n, *data_shape).
        probes: Pairs of probes a row.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of noise and probes.
        indices: Names of the samples, (n,) integers.
        t_span: (t_min, t_max) in place of the process's; levels outside it are left out.

    Returns:
        By noise level, in standard deviations of the data: 0 for a gradient field, 1 for a rotation.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.eight_gaussians(dtype=torch.float64)
        >>> found = score_asymmetry(data.model(sdediff.VP()), data.sample(8, seed=0))
        >>> max(found.values()) < 1e-10
        True
    """
    z, span = model.as_state(x), check_span(model, t_span)
    rows, cond = rows_of(len(z), indices), model.expand_condition(cond, len(z), z.device)
    low, high = (-float(model.process.lam(torch.tensor(t, dtype=torch.float64))) for t in span)
    clocks = {level: math.log(level * data_scale(model)) for level in _LEVELS}
    found = {}
    for number, (level, s) in enumerate(clocks.items()):
        if not low <= s <= high:
            continue
        norms = torch.zeros(2, dtype=torch.float64)
        for part in chunks(len(z), 2 * probes * model.dim, None):
            c = None if cond is None else cond[part]
            draws = [
                normal(seed, rows[part], stream, number, (k, *model.data_shape), z.dtype, z.device).unbind(1)
                for stream, k in ((Stream.PERTURB, 1), (Stream.PROBE, 2 * probes))
            ]
            norms += _norms(model, z[part] + math.exp(s) * draws[0][0], s, torch.stack(draws[1]), c)
        found[level] = float((norms[0] / norms[1]).sqrt()) if float(norms[1]) > 0 else math.nan
    return found


def _norms(model: DiffusionModel, x: Tensor, s: float, probes: Tensor, cond: Condition) -> Tensor:
    """Sums of ``(u J v - v J u)^2 / 4`` and of ``|J^T u|^2``, (2,), at x (R, *E), for probes (2 P, R, *E)."""
    t = float(model.process.time(torch.tensor(-s, dtype=torch.float64)))
    problem = model.problem(0.0, cond)
    alpha = problem.coefficients(t).alpha
    pulled = products(lambda y: (problem.denoise(t, alpha * y) - y) * math.exp(-2 * s), x)(probes)
    u, v = probes.double().flatten(2).chunk(2)
    a, b = pulled.double().flatten(2).chunk(2)
    antisymmetric = 0.25 * ((a * v).sum(2) - (b * u).sum(2)).square().sum()
    return torch.stack([antisymmetric, 0.5 * (a.square().sum() + b.square().sum())]).cpu()
