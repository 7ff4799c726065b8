r"""Log-likelihood by the probability-flow ODE: a path, then an integral along it.

In canonical coordinates :math:`\tilde x = x/\alpha` with clock :math:`s = \ln(\sigma/\alpha)` the flow is
:math:`d\tilde x/ds = \tilde x - D`, so (the instantaneous change of variables, Chen et al. 2018, arXiv
1806.07366, Eq. 8; for diffusions Song et al. 2021, arXiv 2011.13456, Eq. 39)

.. math:: \log p(\tilde x_0) = \log p_T(\tilde x_T)
          + \int_{s_0}^{s_T} \big(d - \mathrm{tr}\,\partial D/\partial\tilde x\big)\,ds .

The state's path does not depend on the trace: it is solved first, with forward evaluations only, and the
trace is integrated at nodes along it (`integral.py`).

The error of the path enters by the identity
:math:`\delta\log p = \int \mathrm{score}\cdot\mathrm{defect}\,ds`: along the flow the score is the adjoint
state of log p, so each step's local error counts with the score there, and so does the defect of the
interpolated path at one point of each step, the one evaluation that the estimate costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from solvers import Solution, Solver, StepDoubling, StepSolver
from solvers.problems import SemiLinear

from ..model import Condition, DiffusionModel, solving
from ..prior import Prior
from ..run import Run, chunks, join, rows_of
from .divergence import Divergence
from .ends import prior_mismatch, truncation
from .exact import Exact
from .hutchinson import Hutchinson
from .integral import Integral, integrate
from .nodes import Nodes, Rule
from .result import Kind, LogLikelihood

EXACT_UP_TO = 64  # dimensions up to which the exact trace is the default


@solving
def log_likelihood(
    model: DiffusionModel,
    x: Tensor,
    solver: str | Solver = "dopri5",
    *,
    divergence: Divergence | None = None,
    nodes: int | Nodes | None = None,
    steps: int | None = None,
    grid: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    cond: Any = None,
    seed: int = 0,
    indices: Any = None,
    t_span: tuple[float, float] | None = None,
    prior: str | Prior | None = None,
    batch_size: int | None = None,
    on_failure: str = "warn",
    extrapolate: bool = False,
) -> LogLikelihood:
    r"""Log-density of data under the model's probability-flow ODE, with its errors.

    It is the density at x of :math:`\tilde x = x_0 + (\sigma/\alpha)(t_{min})\,\epsilon`, the law that
    :func:`~sdediff.sampling.sample` draws from with an ODE solver: no limit of t_min is taken and nothing is
    corrected, unless `extrapolate` asks for it.

    Args:
        model: The model.
        x: Data in data units, (n, *data_shape).
        solver: A solver of ODEs or its name. Along the path of an adaptive one the trace is integrated at
            `nodes` points of log-SNR; for fixed-grid ones the grid's points are the nodes, and each step is
            doubled to estimate its error.
        divergence: :class:`Exact` or :class:`Hutchinson`; by default exact up to 64 dimensions, else two
            Rademacher probes a node.
        nodes: Quadrature points of adaptive solvers, a multiple of 4 plus 1, or how they are spread, such as
            :func:`fit_nodes` finds; 65 by default.
        steps: Steps of a fixed-grid solver.
        grid: Its times, or the name of a grid.
        rtol: Relative tolerance of an adaptive solver; "dopri5" by name takes 1e-6 here.
        atol: Absolute tolerance, likewise.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of the probes.
        indices: Names of the samples, (n,) integers, for the probes; 0 .. n-1 by default.
        t_span: (t_min, t_max) in place of the process's; reported.
        prior: "matched", "standard" or an object with log_prob, in place of the model's; reported.
        batch_size: Rows solved at once.
        on_failure: "warn", "raise" or "ignore" where a sample's solve fails; its log_prob is nan.
        extrapolate: Add the first-order correction to no noise at t_min, the result's `truncation`. It needs
            the exact trace and data whose density is smooth at that scale, and is no normalised density: the
            kind says so.

    Returns:
        A :class:`LogLikelihood`.

    Raises:
        TypeError: If the solver does not solve ODEs, or gets the options of another kind; if `extrapolate`
            comes with random probes.
        ValueError: If x has another shape or NaN, or another argument does not fit.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.eight_gaussians(dtype=torch.float64)
        >>> x = data.sample(3, seed=0)
        >>> r = log_likelihood(data.model(sdediff.VP()), x)
        >>> bool(((r.log_prob - data.log_prob(None, x, None)).abs() < 1e-3).all())
        True
    """
    z = model.as_state(x)
    if solver == "dopri5":
        rtol, atol = (1e-6 if tolerance is None else tolerance for tolerance in (rtol, atol))
    run = Run.of(
        model,
        solver,
        t_span=t_span,
        steps=steps,
        grid=grid,
        rtol=rtol,
        atol=atol,
        eta=0.0,
        seed=seed,
        prior=prior,
        on_failure=on_failure,
    )
    run.check_flow("a log-likelihood")
    run = _with_error_estimate(run)
    trace = choose_divergence(model, divergence)
    if extrapolate and trace.estimator != "exact":
        raise TypeError(
            f"extrapolate=True needs the trace at t_min itself and {trace} draws it at random: give "
            "divergence=sdediff.Exact()"
        )
    rule = Rule.of(model, run, nodes)
    rows, cond = rows_of(len(z), indices), model.expand_condition(cond, len(z), z.device)
    start = z * float(model.process.alpha(run.span[0]))
    parts = []
    # A path that is kept is held twice for a moment; it should not outweigh a trace's activations.
    for part in chunks(len(z), 2 * model.dim * len(rule.times), batch_size):
        c = None if cond is None else cond[part]
        dual = _score_weight(model.problem(0.0, c))
        solution = run.carry(model, start[part], c, rows[part], up=True, save_at=rule.times, dual=dual)
        parts.append(_Part.of(model, run, rule, trace, solution, c, rows[part]))
    whole = _Part.join(parts)
    run.report(whole.solution)
    result = whole.likelihood(model, run, trace)
    return _extrapolated(result) if extrapolate else result


def sample_with_log_prob(
    model: DiffusionModel,
    run: Run,
    z: Tensor,
    cond: Condition,
    rows: Tensor,
    divergence: Divergence | None = None,
) -> tuple[Tensor, LogLikelihood]:
    """Samples from latents z in data units, and their log-density from the same path."""
    trace = choose_divergence(model, divergence)
    rule = Rule.of(model, run, None)
    dual = _score_weight(model.problem(0.0, cond))
    solution = run.carry(model, z, cond, rows, save_at=rule.times[::-1], dual=dual)
    assert solution.path is not None
    x = model.to_data(solution.x / float(model.process.alpha(run.span[0])))
    # As if it had been solved upwards: from the data to the latent.
    solution = replace(solution, x=z, path=solution.path.flip(0))
    part = _Part.of(model, run, rule, trace, solution, cond, rows)
    return x, part.likelihood(model, run, trace)


def choose_divergence(model: DiffusionModel, divergence: Divergence | None) -> Divergence:
    """The divergence asked for, or the default."""
    if divergence is None:
        return Exact() if model.dim <= EXACT_UP_TO else Hutchinson()
    if not isinstance(divergence, Divergence):
        raise TypeError(
            f"divergence={divergence!r} is no divergence: give an object, such as sdediff.Exact() or "
            "sdediff.Hutchinson(probes=2)"
        )
    return divergence


def _with_error_estimate(run: Run) -> Run:
    """Double the steps of a one-step fixed-grid solver; others estimate errors themselves, or not."""
    solver = run.solver
    if not isinstance(solver, StepSolver) or isinstance(solver, StepDoubling) or solver.multistep:
        return run
    doubled = StepDoubling(solver)
    return replace(run, solver=doubled, options={**run.options, "solver": doubled})


def path_error(solution: Solution) -> Tensor:
    """Bound of the path's error in log p, (B,), nats; nan where the solver estimates none.

    Estimates of doubled steps are sharp to leading order: doubled, they bound. The signed sum of defects is
    sharp too, but for what the score misses as the flow's adjoint, and for its own rule where steps are long.
    Five times it, and a term of higher order in the defects' size (their sum over d dimensions, hence the
    root), were chosen on closed-form mixtures at tolerances from 1e-3 to 1e-8 to hold for 95 % of points or
    more; `tests/benchmarks/likelihood_coverage.py` measures what they do.
    """
    if solution.error is None:
        return torch.full_like(solution.t, float("nan"))
    error = solution.error.abs()
    return (
        2 * error
        if solution.error_size is None
        else 5 * error + 24 * solution.error_size**1.5 / math.sqrt(solution.x[0].numel())
    )


def _score_weight(problem: SemiLinear) -> Any:
    def dual(t: Any, z: Tensor, denoised: Tensor) -> Tensor:
        c = problem.at(t, z)
        return (c.alpha * denoised - z) / c.sigma**2

    return dual


@dataclass(frozen=True)
class _Part:
    """Of some samples: the end of their path, the integral along it, what its ends leave out."""

    solution: Solution
    integral: Integral
    mismatch: Tensor | None
    truncation: Tensor | None

    @classmethod
    def of(
        cls,
        model: DiffusionModel,
        run: Run,
        rule: Rule,
        divergence: Divergence,
        solution: Solution,
        cond: Condition,
        rows: Tensor,
    ) -> _Part:
        """From a path that rises from the data to the latents."""
        path = solution.path
        assert path is not None
        integral = integrate(model, rule, divergence, path, cond, rows, run.seed)
        short = None
        if divergence.estimator == "exact":
            short = truncation(model, run, path[0], cond, integral.first)
        mismatch = prior_mismatch(model, run, solution.x, cond)
        return cls(replace(solution, path=None), integral, mismatch, short)

    @classmethod
    def join(cls, parts: list[_Part]) -> _Part:
        def joined(name: str) -> Tensor | None:
            values = [getattr(p, name) for p in parts]
            return None if values[0] is None else torch.cat(values)

        solution = join([p.solution for p in parts])
        integral = Integral.join([p.integral for p in parts])
        return cls(solution, integral, joined("mismatch"), joined("truncation"))

    def likelihood(self, model: DiffusionModel, run: Run, divergence: Divergence) -> LogLikelihood:
        """The log-densities and their errors."""
        solution, integral = self.solution, self.integral
        value, latent = integral.value, solution.x
        end = run.prior.log_prob(latent.flatten(1)).to(value)
        scales = model.dim * torch.log(model.process.alpha(run.span[1])) - model.log_scale
        value = torch.where(solution.ok, end + value + scales.to(value), float("nan"))
        return LogLikelihood(
            log_prob=value,
            std_error=integral.variance.sqrt(),
            solver_error=path_error(solution).to(value) + integral.quadrature_error,
            degrees=integral.degrees,
            nfe=solution.nfe,
            divergence_evaluations=integral.products,
            status=solution.status,
            kind=Kind(f"density/{divergence.estimator}"),
            prior=run.prior.name,
            t_span=run.span,
            dim=model.dim,
            latent=latent,
            prior_mismatch=self.mismatch,
            truncation=self.truncation,
        )


def _extrapolated(result: LogLikelihood) -> LogLikelihood:
    """With the truncation taken off, and of another kind."""
    assert result.truncation is not None
    kind = Kind(f"extrapolated density/{result.kind.estimator}")
    return replace(
        result,
        log_prob=result.log_prob + result.truncation,
        truncation=torch.zeros_like(result.truncation),
        kind=kind,
    )
