r"""Log-density along samples of the reverse SDE, by Itô's formula: no trace, no second solve.

In canonical coordinates, with :math:`d\tau = -dv` and unit diffusion, the Fokker-Planck equation cancels the
divergence in :math:`d\log p(X)` (Skreta et al. 2024, arXiv 2412.17762; Karczewski et al. 2024,
arXiv 2411.01293):

.. math:: d\log p(X) = s\cdot dX - \tfrac12 |s|^2\,d\tau ,

whatever the drift of X. The same holds of a Gaussian N, whose density is known at both ends, so only what the
score adds, :math:`\delta = s - s_N`, is summed over the grid:

.. math:: \log p(X_u) = \log N_u(X_u) + \log\frac{\pi}{N_V}(X_V)
          + \sum_k \delta_k\cdot\big(\Delta X_k - (s_{N,k} + \tfrac12\delta_k)\,\Delta\tau_k\big).

For Gaussian data the sum is empty.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from solvers import Solution, Solver, Status
from solvers.active import wide

from ..model import Condition, DiffusionModel, solving
from ..prior import Prior
from ..run import Run, chunks, draw_prior, join, rows_of
from .bounds import GaussianReference, excess, prior_excess
from .nodes import fixed_grid
from .result import Kind, LogLikelihood

if TYPE_CHECKING:
    from ..sampling import SampleResult


@solving
def sample_with_ito_density(
    model: DiffusionModel,
    n: int,
    solver: str | Solver = "euler-maruyama",
    *,
    steps: int | None = None,
    grid: Any = None,
    cond: Any = None,
    seed: int = 0,
    indices: Any = None,
    t_span: tuple[float, float] | None = None,
    prior: str | Prior | None = None,
    batch_size: int | None = None,
    on_failure: str = "warn",
    dtype: torch.dtype | None = None,
) -> SampleResult:
    r"""Draw samples of the reverse SDE (eta = 1), with the log-density that Itô's formula gives along each.

    It is right only where the score is the gradient of a diffusion's log-density, hence "density/biased": a
    learned score's value is neither the density of the SDE nor that of the probability flow. What a step of
    the sum leaves out, :math:`\int(\delta - \delta_k)\cdot dX`, is random with mean zero, of order 1/2 in
    the step: its variance, from the change of delta over neighbouring steps, makes `std_error`. The solver's
    own path adds a bias of order 1; `solver_error` is the difference of the sum over every other point.
    Intervals hold from a few hundred steps on; at 50 they are too short.

    Args:
        model: The model.
        n: Number of samples.
        solver: A stochastic solver on a fixed grid, or its name.
        steps: Its steps.
        grid: Its times, or the name of a grid.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of the noise.
        indices: Names of the samples, (n,) integers; 0 .. n-1 by default.
        t_span: (t_min, t_max) in place of the process's; reported.
        prior: "matched", "standard" or an object, in place of the model's; reported.
        batch_size: Rows solved at once.
        on_failure: "warn", "raise" or "ignore" where a sample's solve fails.
        dtype: Of the samples; the parameters' by default.

    Returns:
        A :class:`~sdediff.sampling.SampleResult` of kind "density/biased": the samples that
        :func:`~sdediff.sampling.sample` draws with the same solver and seed.

    Raises:
        TypeError: If the solver is adaptive, adds noise of its own, or solves no SDEs.
        ValueError: If another argument does not fit.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.Gaussian([1.0, -1.0], [[2.0, 0.5], [0.5, 1.0]])
        >>> process = sdediff.VP()
        >>> x, logp = sample_with_ito_density(data.model(process), 4, steps=20, dtype=torch.float64)
        >>> bool(((logp - data.log_prob(None, x, None)).abs() < 1e-4).all())
        True
    """
    from ..sampling import SampleResult

    options = {"t_span": t_span, "steps": steps, "grid": grid, "seed": seed, "prior": prior}
    run = Run.of(model, solver, eta=1.0, on_failure=on_failure, **options)
    _check(run)
    times = fixed_grid(model, run)[::-1]
    rows, cond = rows_of(n, indices), model.expand_condition(cond, n, model.shift.device)
    sums, solutions = [], []
    for part in chunks(n, model.dim * len(times), batch_size):
        z, c = draw_prior(model, run, rows[part], dtype), None if cond is None else cond[part]
        solution = run.carry(model, z, c, rows[part], save_at=times)
        sums.append(_along(model, run, times, solution, c))
        solutions.append(solution)
    solution = join([_without_path(s) for s in solutions])
    run.report(solution)
    x = model.to_data(solution.x / float(model.process.alpha(run.span[0])))
    value, error, gap, degrees = (torch.cat(column) for column in zip(*sums, strict=True))
    likelihood = LogLikelihood(
        log_prob=torch.where(solution.ok, value, float("nan")),
        std_error=error,
        solver_error=gap,
        degrees=degrees,
        nfe=solution.nfe + len(times) - 1,
        divergence_evaluations=torch.zeros_like(solution.nfe),
        status=solution.status,
        kind=Kind("density/biased"),
        prior=run.prior.name,
        t_span=run.span,
        dim=model.dim,
    )
    return SampleResult(x, likelihood)


def _check(run: Run) -> None:
    """Raise a TypeError unless the path is that of an SDE with unit diffusion, on a grid known beforehand."""
    solver = run.solver
    if solver.adaptive or solver.noisy or not solver.stochastic:
        how = (
            "chooses its own steps" if solver.adaptive else "adds noise of its own" if solver.noisy else None
        )
        raise TypeError(
            f"Itô's formula is summed along a path of the reverse SDE on a fixed grid, and {solver.name} "
            f"{how or 'solves no SDEs'}: take a stochastic solver with a fixed grid, such as "
            '"euler-maruyama" or "ancestral"'
        )


def _without_path(solution: Solution) -> Solution:
    failed = ~torch.isfinite(solution.x).flatten(1).all(dim=1)
    status = torch.where(failed, int(Status.NON_FINITE), solution.status)
    return replace(solution, path=None, status=status)


def _along(
    model: DiffusionModel, run: Run, times: tuple[float, ...], solution: Solution, cond: Condition
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-density, standard error, difference from the coarse sum, degrees of freedom, each (B,)."""
    assert solution.path is not None
    batch, precision = solution.path.shape[1], wide(solution.path)
    t = torch.tensor(times, dtype=torch.float64, device=solution.path.device)
    s, reference = -model.process.lam(t), GaussianReference.of(model)
    path = solution.path.flatten(2).to(precision)
    path = path / model.process.alpha(t)[:, None, None].to(path)
    v = torch.exp(2 * s)[:, None, None].to(path)
    names = torch.arange(batch, device=t.device).repeat(len(t) - 1)
    c = None if cond is None else cond[names]
    delta = excess(model, reference, path[:-1].flatten(0, 1), s[:-1].repeat_interleave(batch), c)
    delta = delta.view_as(path[:-1])
    slope = reference.score(path[:-1], v[:-1]) + 0.5 * delta
    steps = path.diff(dim=0) + slope * v.diff(dim=0)  # v falls
    gains = (delta * steps).sum(dim=2)
    # A step leaves out |grad delta|^2 dtau^2 / 2 in the mean square; the last step's change of delta tells.
    changes = (delta.diff(dim=0) * steps[1:]).sum(dim=2).square()
    ratio = (v.diff(dim=0)[1:] / v.diff(dim=0)[:-1]).squeeze(2)
    variances = 0.5 * ratio * changes
    error = variances.sum(dim=0).sqrt()
    degrees = variances.sum(dim=0).square() / variances.square().sum(dim=0)
    # Every other step taken from the point before: the coarse sum less the fine one.
    coarse = (delta.diff(dim=0) * steps[1:]).sum(dim=2)[::2].sum(dim=0)
    far = prior_excess(model, reference, run.prior, run.span[1], path[0])
    value = reference.log_prob(path[-1], float(v[-1])).to(path) + far + gains.sum(dim=0)
    degrees = torch.where(torch.isfinite(degrees), degrees, torch.inf)
    return value - model.log_scale.to(value), error, coarse.abs(), degrees
