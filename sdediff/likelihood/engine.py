r"""Log-likelihood by the probability-flow ODE: a path, then an integral along it.

In canonical coordinates :math:`\tilde x = x/\alpha` with clock :math:`s = \ln(\sigma/\alpha)` the flow is
:math:`d\tilde x/ds = \tilde x - D`, so (the instantaneous change of variables, Chen et al. 2018, arXiv
1806.07366, Eq. 8; for diffusions Song et al. 2021, arXiv 2011.13456, Eq. 39)

.. math:: \log p(\tilde x_0) = \log p_T(\tilde x_T)
          + \int_{s_0}^{s_T} \big(d - \mathrm{tr}\,\partial D/\partial\tilde x\big)\,ds .

The state's path does not depend on the trace: it is solved first, with forward evaluations only, and the
trace is integrated at nodes along it. The trace of a Gaussian of the data's variance l is integrated in
closed form, so only the difference from it is left to quadrature:

.. math:: \int d - \mathrm{tr}\,J\,ds = \tfrac d2\ln\frac{l+\tilde\sigma_T^2}{l+\tilde\sigma_0^2}
          + \int \Big(\frac{d\,l}{l+\tilde\sigma^2} - \mathrm{tr}\,J\Big)ds .

The error of the path enters by the identity
:math:`\delta\log p = \int \mathrm{score}\cdot\mathrm{defect}\,ds`: along the flow the score is the adjoint
state of log p, so each step's local error counts with the score there, and so does the defect of the
interpolated path at one point of each step, the one evaluation that the estimate costs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from solvers import Solution, Solver, StepDoubling, StepSolver
from solvers.problems import SemiLinear
from solvers.solve import time_grid

from ..model import Condition, DiffusionModel, solving
from ..prior import Prior
from ..run import Run, chunks, join, rows_of
from .divergence import Divergence
from .exact import Exact
from .hutchinson import Hutchinson
from .quadrature import clustered_rule, spline_weights
from .result import Kind, LogLikelihood

EXACT_UP_TO = 64  # dimensions up to which the exact trace is the default
# A trace keeps the network's activations at so many (sample, node) pairs, or so many numbers in all of them.
_ROWS, _NUMBERS = 4096, 1 << 17
DEFAULT_NODES = 65
_CENTRE = 0.4  # noise level around which nodes cluster, in standard deviations of the data


@solving
def log_likelihood(
    model: DiffusionModel,
    x: Tensor,
    solver: str | Solver = "dopri5",
    *,
    divergence: Divergence | None = None,
    nodes: int | None = None,
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
) -> LogLikelihood:
    r"""Log-density of data under the model's probability-flow ODE, with its errors.

    It is the density at x of :math:`\tilde x = x_0 + (\sigma/\alpha)(t_{min})\,\epsilon`, the law that
    :func:`~sdediff.sampling.sample` draws from with an ODE solver: no limit of t_min is taken and nothing is
    corrected.

    Args:
        model: The model.
        x: Data in data units, (n, *data_shape).
        solver: A solver of ODEs or its name. Along the path of an adaptive one the trace is integrated at
            `nodes` points of log-SNR; for fixed-grid ones the grid's points are the nodes, and each step is
            doubled to estimate its error.
        divergence: :class:`Exact` or :class:`Hutchinson`; by default exact up to 64 dimensions, else two
            Rademacher probes a node.
        nodes: Quadrature points of adaptive solvers, a multiple of 4 plus 1; 65 by default.
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

    Returns:
        A :class:`LogLikelihood`.

    Raises:
        TypeError: If the solver does not solve ODEs, or gets the options of another kind.
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
    if nodes is not None and not run.solver.adaptive:
        raise TypeError(
            f"nodes={nodes} belongs to adaptive solvers: those of {run.solver.name} are its grid's points, "
            "so give steps= or grid="
        )
    trace = _divergence(model, divergence)
    rule = _Rule.of(model, run, nodes)
    rows, cond = rows_of(len(z), indices), model.expand_condition(cond, len(z), z.device)
    start = z * float(model.process.alpha(run.span[0]))
    solutions, integrals = [], []
    for part in chunks(len(z), model.dim * len(rule.times), batch_size):
        c = None if cond is None else cond[part]
        save_at, dual = rule.times, _score_weight(model.problem(0.0, c))
        solution = run.carry(model, start[part], c, rows[part], up=True, save_at=save_at, dual=dual)
        integrals.append(_integrate(model, rule, trace, solution, c, rows[part], seed))
        solutions.append(replace(solution, path=None))
    solution = join(solutions)
    run.report(solution)
    return _assemble(model, run, trace, rule, solution, _Integral.join(integrals))


def sample_with_log_prob(
    model: DiffusionModel,
    run: Run,
    z: Tensor,
    cond: Condition,
    rows: Tensor,
    divergence: Divergence | None = None,
) -> tuple[Tensor, LogLikelihood]:
    """Samples from latents z in data units, and their log-density from the same path."""
    trace = _divergence(model, divergence)
    rule = _Rule.of(model, run, None)
    solution = run.carry(
        model, z, cond, rows, save_at=rule.times[::-1], dual=_score_weight(model.problem(0.0))
    )
    assert solution.path is not None
    solution = replace(solution, path=solution.path.flip(0))
    integral = _integrate(model, rule, trace, solution, cond, rows, run.seed)
    x = model.to_data(solution.x / float(model.process.alpha(run.span[0])))
    return x, _assemble(model, run, trace, rule, replace(solution, x=z), integral)


def _divergence(model: DiffusionModel, divergence: Divergence | None) -> Divergence:
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


def _score_weight(problem: SemiLinear) -> Any:
    def dual(t: Any, z: Tensor, denoised: Tensor) -> Tensor:
        c = problem.at(t, z)
        return (c.alpha * denoised - z) / c.sigma**2

    return dual


@dataclass(frozen=True)
class _Rule:
    """Quadrature in the clock s: rising times, weights, and a coarser rule's weights for the error."""

    times: tuple[float, ...]
    clock: Tensor
    weights: Tensor
    coarse: Tensor

    @classmethod
    def of(cls, model: DiffusionModel, run: Run, nodes: int | None) -> _Rule:
        process = model.process
        if not run.solver.adaptive:
            grid = _grid(model, run)
            clock = -process.lam(torch.tensor(grid, dtype=torch.float64))
            keep = sorted({*range(0, len(grid), 2), len(grid) - 1})
            coarse = torch.zeros_like(clock)
            coarse[keep] = torch.from_numpy(spline_weights(clock[keep].numpy()))
            return cls(grid, clock, torch.from_numpy(spline_weights(clock.numpy())), coarse)
        low, high = (-float(process.lam(t)) for t in run.span)
        moments = model.moments
        centre = math.log((1.0 if moments is None else moments.scale or 1.0) * _CENTRE)
        rule = clustered_rule(low, high, centre, DEFAULT_NODES if nodes is None else nodes)
        clock, weights, coarse = (torch.from_numpy(v) for v in rule)
        times = process.time(-clock).tolist()
        times[0], times[-1] = run.span
        return cls(tuple(times), clock, weights, coarse)


def _grid(model: DiffusionModel, run: Run) -> tuple[float, ...]:
    """The rising times of a fixed-grid solve."""
    options = {k: run.options[k] for k in ("steps", "grid")}
    if isinstance(options["grid"], Tensor):
        return tuple(sorted(options["grid"].tolist()))
    return time_grid(model.problem(0.0), run.solver, run.span, **options)


@dataclass(frozen=True)
class _Integral:
    value: Tensor
    variance: Tensor
    #: Degrees of freedom of the variance, by Satterthwaite's formula.
    degrees: Tensor
    quadrature_error: Tensor

    @classmethod
    def join(cls, parts: list[_Integral]) -> _Integral:
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in cls.__dataclass_fields__))


def _integrate(
    model: DiffusionModel,
    rule: _Rule,
    divergence: Divergence,
    solution: Solution,
    cond: Condition,
    rows: Tensor,
    seed: int,
) -> _Integral:
    """The integral of ``d - tr dD/dx~`` over the clock; traces are batched over samples and times."""
    assert solution.path is not None
    nodes, batch = solution.path.shape[:2]
    device = solution.path.device
    points = solution.path.flatten(0, 1)
    node = torch.arange(nodes, device=device).repeat_interleave(batch)
    who = torch.arange(batch, device=device).repeat(nodes)
    times = torch.tensor(rule.times, dtype=torch.float64, device=device)
    alpha = model.process.alpha(times)
    parts = []
    size = min(_ROWS, max(1, _NUMBERS // model.dim))
    for start in range(0, len(points), size):
        here = slice(start, start + size)
        c = None if cond is None else cond[who[here]]
        denoise, names = partial(model.problem(0.0, c).denoise, times[node[here]]), rows.to(device)[who[here]]
        parts.append(divergence.traces(denoise, points[here], names, node[here], seed).detach())
    traces = torch.cat(parts, dim=1).to(alpha.dtype).reshape(-1, nodes, batch)
    traces = traces * alpha[:, None]  # tr dD/dx~ = alpha tr dD/dx
    return _combine(model, rule, divergence, traces)


def _combine(model: DiffusionModel, rule: _Rule, divergence: Divergence, traces: Tensor) -> _Integral:
    """The integral from the traces (P, nodes, B) of each probe."""
    moments = model.moments
    level = 1.0 if moments is None else (moments.scale or 1.0) ** 2
    weights, coarse, clock = (v.to(traces) for v in (rule.weights, rule.coarse, rule.clock))
    noise = torch.exp(2 * clock)
    rest = (model.dim * level / (level + noise))[:, None] - traces.mean(dim=0)
    closed = 0.5 * model.dim * torch.log((level + noise[-1]) / (level + noise[0]))
    blocks = divergence.blocks(len(clock)).to(traces.device)
    variance, degrees = _scatter(traces, weights, blocks, divergence)
    gap = ((weights - coarse) @ rest).abs()
    # What the probes' own noise puts into the gap says nothing of the quadrature.
    noise_of_gap = _scatter(traces, weights - coarse, blocks, divergence)[0].sqrt()
    gap = torch.where(noise_of_gap == 0, gap, (gap - 2 * noise_of_gap).clamp(min=0))
    return _Integral(closed + weights @ rest, variance, degrees, gap)


def _scatter(
    traces: Tensor, weights: Tensor, blocks: Tensor, divergence: Divergence
) -> tuple[Tensor, Tensor]:
    """Variance of the weighted sum of the traces' means, and its degrees of freedom, each (B,).

    Each block's sum is known once a probe, which gives its variance; blocks are independent.
    """
    probes, _, batch = traces.shape
    if divergence.estimator == "exact":
        zero = traces.new_zeros(batch)
        return zero, zero + torch.inf
    if probes == 1:
        unknown = traces.new_full((batch,), math.nan)
        return unknown, unknown
    sums = traces.new_zeros(probes, int(blocks.max()) + 1, batch)
    sums.index_add_(1, blocks, weights[:, None] * traces)
    of_blocks = sums.var(dim=0) / probes
    variance = of_blocks.sum(dim=0)
    squares = of_blocks.square().sum(dim=0) / (probes - 1)
    return variance, torch.where(squares > 0, variance**2 / squares, torch.inf)


def _assemble(
    model: DiffusionModel,
    run: Run,
    divergence: Divergence,
    rule: _Rule,
    solution: Solution,
    integral: _Integral,
) -> LogLikelihood:
    t_max = run.span[1]
    latent = solution.x
    end = run.prior.log_prob(latent.flatten(1)).to(integral.value) + model.dim * torch.log(
        model.process.alpha(t_max)
    ).to(integral.value)
    value = end + integral.value - model.log_scale.to(integral.value)
    value = torch.where(solution.ok, value, float("nan"))
    path_error = torch.full_like(value, float("nan")) if solution.error is None else solution.error.to(value)
    if isinstance(run.solver, StepDoubling):  # sharp to leading order: doubled, it bounds
        path_error = 2 * path_error
    products = torch.full_like(solution.nfe, len(rule.times) * divergence.evaluations(model.dim))
    return LogLikelihood(
        log_prob=value,
        std_error=integral.variance.sqrt(),
        solver_error=path_error + integral.quadrature_error,
        latent=latent,
        nfe=solution.nfe,
        divergence_evaluations=products,
        degrees=integral.degrees,
        status=solution.status,
        kind=Kind(f"density/{divergence.estimator}"),
        prior=run.prior.name,
        t_span=run.span,
        dim=model.dim,
    )
