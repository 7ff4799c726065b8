r"""Log-likelihood with the trace in the solver's state: the usual practice, for comparison and for parity.

The state is :math:`(x, \ell)` with :math:`\ell(t) = \int_{t_{min}}^t \nabla\cdot u\,d\tau` along the
probability flow :math:`dx/dt = u(t, x)`, so that
:math:`\log p(x_{t_{min}}) = \log p_T(x_T) + \ell(t_{max})` (Song et al. 2021, arXiv 2011.13456, Eq. 39). Each
evaluation of the drift costs a trace, the solver's steps resolve what the trace needs too, and random probes
must stay fixed for the whole solve, without which its error estimate would see noise.
:func:`~sdediff.likelihood.engine.log_likelihood` needs none of this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from solvers import ODE, Solution, Solver, solve
from solvers.active import wide
from solvers.problems import combination

from ..model import Condition, DiffusionModel, solving
from ..prior import Prior
from ..run import Run, chunks, join, rows_of
from .divergence import Divergence
from .engine import choose_divergence, path_error
from .nodes import fixed_grid
from .result import Kind, LogLikelihood

_OUT_OF_NORM = 2.0**-60  # a scale at which the trace's part of the state is far below any tolerance


@solving
def coupled_log_likelihood(
    model: DiffusionModel,
    x: Tensor,
    solver: str | Solver = "dopri5",
    *,
    divergence: Divergence | None = None,
    trace_in_norm: bool = True,
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
    r"""Log-density of data with the trace carried in the state, (x, l) of d + 1 numbers a sample, in time t.

    ``solver="scipy/RK45", rtol=1e-5, atol=1e-5, prior="standard"`` on a VP, sub-VP or VE process is the
    recipe by which the numbers of Song et al. 2021 (arXiv 2011.13456, section 4.3) were made, up to their
    random probe and times.

    Args:
        model: The model.
        x: Data in data units, (n, *data_shape).
        solver: Any solver of ODEs or its name, native or foreign. The state is float64 whatever the network.
        divergence: :class:`Exact` or :class:`Hutchinson`, whose probes are those of one node throughout: each
            has a number of its own in the state, and two or more give a standard error.
        trace_in_norm: Whether an adaptive solver's error norm sees the trace's part, as it does in published
            practice; without it steps follow x alone.
        steps: Steps of a fixed-grid solver.
        grid: Its times, or the name of a grid.
        rtol: Relative tolerance of an adaptive solver.
        atol: Absolute tolerance, likewise.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of the probes.
        indices: Names of the samples, (n,) integers, for the probes; 0 .. n-1 by default.
        t_span: (t_min, t_max) in place of the process's; reported.
        prior: "matched", "standard" or an object with log_prob, in place of the model's; reported.
        batch_size: Rows solved at once.
        on_failure: "warn", "raise" or "ignore" where a sample's solve fails; its log_prob is nan.

    Returns:
        A :class:`LogLikelihood`; nfe counts evaluations of the network, each with its trace. The solver error
        is estimated for native adaptive solvers, to leading order: it bounds the true one at 95 % of points
        from tolerances of 1e-5 on, and at three quarters of them at 1e-3. For other solvers it is nan.

    Raises:
        TypeError: If the solver does not solve ODEs, or gets the options of another kind.
        ValueError: If x has another shape or NaN, or another argument does not fit.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.eight_gaussians(dtype=torch.float64)
        >>> model, x = data.model(sdediff.VP()), data.sample(3, seed=0)
        >>> r = model.log_likelihood(x, "scipy/RK45", coupled=True)
        >>> bool(((r.log_prob - model.log_prob(x)).abs() < 1e-3).all())
        True
    """
    z = model.as_state(x)
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
    flow = Flow(model, choose_divergence(model, divergence), seed, 1.0 if trace_in_norm else _OUT_OF_NORM)
    options = run.options if run.solver.adaptive else {"solver": run.solver, "grid": fixed_grid(model, run)}
    rows, cond = rows_of(len(z), indices).to(z.device), model.expand_condition(cond, len(z), z.device)
    start = z * float(model.process.alpha(run.span[0]))
    solutions = []
    for part in chunks(len(z), model.dim, batch_size):
        c = None if cond is None else cond[part]
        state = flow.state(run.span[0], start[part], rows[part], c)
        problem, dual = flow.problem(rows[part], c)
        solutions.append(solve(problem, state, run.span, dual=dual, **options))
    solution = join(solutions)
    run.report(solution)
    return _assemble(model, run, flow, solution)


@dataclass(frozen=True)
class Flow:
    """The probability flow of a state and of the traces beside it, one a probe, as a problem for solvers."""

    model: DiffusionModel
    divergence: Divergence
    seed: int
    scale: float  # of the traces in the state

    def state(self, t: float, z: Tensor, rows: Tensor, cond: Condition) -> Tensor:
        """The state (B, d + P) at the start, where the integrals are 0."""
        first = None if cond is None else cond[:1]
        probes = len(self._velocity(t, z[:1], rows[:1], first)[1])
        return torch.cat([z.flatten(1), z.new_zeros(len(z), probes)], dim=1).to(wide(z))

    def problem(self, rows: Tensor, cond: Condition) -> tuple[ODE, Callable[..., Tensor]]:
        """The augmented ODE of these samples, and the gradient of log p with respect to its state."""
        dim = self.model.dim
        dtype = self.model.state_type

        def split(y: Tensor) -> Tensor:
            z = y[:, :dim].reshape(-1, *self.model.data_shape)
            return z if dtype is None else z.to(dtype[0])

        def drift(t: Tensor, y: Tensor, rows: Tensor, *cond: Tensor) -> Tensor:
            velocity, traces = self._velocity(t, split(y), rows, cond[0] if cond else None)
            return torch.cat([velocity.flatten(1).to(y), self.scale * traces.T.to(y)], dim=1)

        def dual(t: Tensor, y: Tensor, slope: Tensor) -> Tensor:
            c = self.model.problem(0.0).at(t, y)
            denoised = (slope[:, :dim] - c.drift_x * y[:, :dim]) / c.drift_d
            score = (c.alpha * denoised - y[:, :dim]) / c.sigma**2
            probes = y.shape[1] - dim
            return torch.cat([score, torch.full_like(y[:, dim:], 1 / (self.scale * probes))], dim=1)

        return ODE(drift, (rows,) if cond is None else (rows, cond)), dual

    def traces(self, y: Tensor) -> Tensor:
        """The integrals of the divergence by each probe in a state, (P, B)."""
        return y[:, self.model.dim :].T / self.scale

    def log_prob(self, run: Run, y: Tensor) -> Tensor:
        """Log-densities from the state at the end, (B,)."""
        traces, dim = self.traces(y), self.model.dim
        units = dim * float(torch.log(self.model.process.alpha(run.span[0]))) - float(self.model.log_scale)
        return run.prior.log_prob(y[:, :dim]).to(traces) + traces.mean(dim=0) + units

    def _velocity(self, t: Any, z: Tensor, rows: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """The flow's velocity, like z, and its divergence by each probe, (P, B), from one evaluation."""
        problem = self.model.problem(0.0, cond)
        t = torch.as_tensor(t, dtype=wide(z), device=z.device).expand(len(z))
        node = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        denoised, traces = self.divergence.with_value(partial(problem.denoise, t), z, rows, node, self.seed)
        traces = traces.sum(dim=2) if traces.ndim == 3 else traces
        c = problem.coefficients(t)
        velocity = combination(c.drift_x, z.to(wide(z)), c.drift_d, denoised.to(wide(z)))
        return velocity, self.model.dim * c.drift_x + c.drift_d * traces


def _assemble(model: DiffusionModel, run: Run, flow: Flow, solution: Solution) -> LogLikelihood:
    """The log-densities from the end of the augmented solve."""
    latent, traces = solution.x[:, : model.dim], flow.traces(solution.x)
    probes = len(traces)
    value = torch.where(solution.ok, flow.log_prob(run, solution.x), float("nan"))
    unknown = torch.full_like(value, float("nan"))
    exact = flow.divergence.estimator == "exact"
    error, degrees = torch.zeros_like(value), torch.full_like(value, float("inf"))
    if not exact:
        error = traces.std(dim=0) / probes**0.5 if probes > 1 else unknown
        degrees = torch.full_like(value, probes - 1) if probes > 1 else unknown
    latent = latent.reshape(-1, *model.data_shape)
    return LogLikelihood(
        log_prob=value,
        std_error=error,
        solver_error=path_error(solution).to(value),
        latent=latent if model.state_type is None else latent.to(model.state_type[0]),
        nfe=solution.nfe,
        divergence_evaluations=solution.nfe * flow.divergence.evaluations(model.dim),
        degrees=degrees,
        status=solution.status,
        kind=Kind(f"density/{flow.divergence.estimator}"),
        prior=run.prior.name,
        t_span=run.span,
        dim=model.dim,
    )
