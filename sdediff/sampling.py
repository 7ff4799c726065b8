"""From the prior to data, and back and forth along the probability flow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from solvers import BrownianPath, Solution, Solver

from .likelihood.divergence import Divergence
from .likelihood.engine import sample_with_log_prob
from .likelihood.nodes import DEFAULT_NODES
from .likelihood.result import LogLikelihood
from .model import Condition, DiffusionModel, solving
from .prior import Prior
from .run import Run, chunks, draw_prior, join, rows_of


@dataclass(frozen=True)
class SampleResult:
    """Samples with their log-density; unpacks as ``x, log_prob``.

    Attributes:
        x: Samples, (n, *data_shape).
        likelihood: Their :class:`~sdediff.LogLikelihood`, with its errors.
    """

    x: Tensor
    likelihood: LogLikelihood

    @property
    def log_prob(self) -> Tensor:
        """Log-density in nats, (n,)."""
        return self.likelihood.log_prob

    def __iter__(self) -> Iterator[Tensor]:
        return iter((self.x, self.log_prob))


@solving
def sample(
    model: DiffusionModel,
    n: int,
    solver: str | Solver = "dopri5",
    *,
    steps: int | None = None,
    grid: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    eta: float | Callable[[Tensor], Tensor] | None = None,
    cond: Any = None,
    seed: int = 0,
    indices: Any = None,
    t_span: tuple[float, float] | None = None,
    prior: str | Prior | None = None,
    batch_size: int | None = None,
    denoise: bool = False,
    return_log_prob: bool = False,
    divergence: Divergence | None = None,
    return_solution: bool = False,
    on_failure: str = "warn",
    dtype: torch.dtype | None = None,
    brownian: BrownianPath | None = None,
    progress: Callable[[int], None] | None = None,
) -> Any:
    r"""Draw samples of a model.

    The solver carries the prior at t_max to t_min; the result is :math:`x_{t_{min}}/\alpha(t_{min})` in data
    units, whose law is exactly the one whose density :func:`~sdediff.likelihood.log_likelihood` reports (for
    an ODE solver).

    Args:
        model: The model.
        n: Number of samples.
        solver: A solver or its name (:func:`solvers.available`).
        steps: Steps of a fixed-grid solver.
        grid: Its times, the name of a grid (:data:`solvers.GRIDS`), or one of :func:`sdediff.fit_grid`.
        rtol: Relative tolerance of an adaptive solver (in coordinates of unit variance, for the native ones).
        atol: Absolute tolerance.
        eta: 0 the probability-flow ODE, 1 the reverse SDE; the solver's own default when left out. May be a
            function of t.
        cond: Conditions, (n, ...), or one for all.
        seed: Sample i's noise is a function of (seed, indices[i]): bit for bit, whatever batch_size is.
        indices: Names of the samples, (n,) integers; 0 .. n-1 by default.
        t_span: (t_min, t_max) in place of the process's.
        prior: "matched", "standard" or an object with log_prob and transform, in place of the model's.
        batch_size: Rows solved at once; about a million numbers by default.
        denoise: Return E[x_0 | x_{t_min}] instead: without the last bit of noise, but of no known density.
        return_log_prob: Also return the log-density (ODE solvers): ``x, log_prob``, a
            :class:`SampleResult` whose `likelihood` holds the errors.
        divergence: For the log-density, as in :func:`~sdediff.likelihood.log_likelihood`: by default exact up
            to 64 dimensions, else two random probes a node.
        return_solution: Also return a :class:`solvers.Solution`, its states in data units: ``x, solution``.
        on_failure: "warn", "raise" (:class:`solvers.SolverError`) or "ignore" where a sample's solve fails;
            the others are not touched by it.
        dtype: Of the samples; the parameters' by default.
        brownian: The Brownian path of these samples that drives a stochastic solver, as in
            :func:`solvers.solve`: one path for two solvers or two grids.
        progress: Called with the number of finished samples after each batch.

    Returns:
        x, (n, *data_shape), in data units; or the tuple asked for.

    Raises:
        TypeError: If the solver cannot do it, or gets the options of another kind of solver.
        ValueError: If an argument does not fit.

    Example:
        >>> import sdediff
        >>> model = sdediff.reference.eight_gaussians().model(sdediff.VP())
        >>> sample(model, 5, solver="ddim", steps=10).shape
        torch.Size([5, 2])
    """
    n = check_request(n, return_log_prob, denoise or return_solution)
    run = Run.of(
        model,
        solver,
        t_span=t_span,
        steps=steps,
        grid=grid,
        rtol=rtol,
        atol=atol,
        eta=eta,
        seed=seed,
        prior=prior,
        on_failure=on_failure,
    )
    if return_log_prob:
        run.check_flow("return_log_prob")
    rows, all_rows, parts = rows_of(n, indices), _check_path(brownian, n, indices), list[Any]()
    cond = model.expand_condition(cond, n, model.shift.device)
    for part in chunks(n, model.dim * (DEFAULT_NODES if return_log_prob else 1), batch_size):
        z = draw_prior(model, run, rows[part], dtype)
        c = None if cond is None else cond[part]
        if return_log_prob:
            parts.append(sample_with_log_prob(model, run, z, c, rows[part], divergence))
        else:
            path = brownian and brownian.take(all_rows[part])
            solution = run.carry(model, z, c, rows[part], brownian=path)
            parts.append(_finish(model, run, solution, c, denoise))
        if progress is not None:
            progress(part.stop)
    if return_log_prob:
        x, likelihoods = zip(*parts, strict=True)
        return SampleResult(torch.cat(x), LogLikelihood.join(list(likelihoods)))
    solution = join(parts)
    run.report(solution)
    return (solution.x, solution) if return_solution else solution.x


def _check_path(path: BrownianPath | None, n: int, indices: Any) -> Tensor:
    """Rows of the path, one a sample."""
    if path is not None:
        names = path.noise.indices
        if len(names) != n or (indices is not None and not torch.equal(names, torch.as_tensor(indices))):
            raise ValueError(
                f"the Brownian path is one of {len(names)} samples with names of its own, and n={n} or "
                "indices= ask for others: make it for these, with Noise(seed, indices, model.data_shape)"
            )
    return torch.arange(n)


def check_request(n: Any, return_log_prob: bool, also: bool) -> int:
    """The number of samples, if it is one and what is asked for beside them goes together."""
    number = isinstance(n, Real | Tensor) and not isinstance(n, bool)
    if not number or not n >= 1 or int(n) != n:
        raise ValueError(f"n={n} is not a number of samples: give a whole number of at least 1")
    if return_log_prob and also:
        raise TypeError(
            "return_log_prob goes with neither denoise (no known density) nor return_solution: ask for one "
            "at a time"
        )
    return int(n)


def _finish(model: DiffusionModel, run: Run, solution: Solution, cond: Condition, denoise: bool) -> Solution:
    """The solution's state in data units."""
    t = run.span[0]
    if denoise:
        x = model.to_data(model.problem(0.0, cond).denoise(t, solution.x))
        return replace(solution, x=x, nfe=solution.nfe + 1, global_error=None)
    alpha, error = float(model.process.alpha(t)), solution.global_error
    if error is not None:
        error = model.scale.to(error) * error / alpha
    return replace(solution, x=model.to_data(solution.x / alpha), global_error=error)


@solving
def encode(
    model: DiffusionModel,
    x: Tensor,
    solver: str | Solver = "dopri5",
    *,
    cond: Any = None,
    batch_size: int | None = None,
    **options: Any,
) -> Tensor:
    """Carry data to latents along the probability flow.

    Args:
        model: The model.
        x: Data in data units, (n, *data_shape).
        solver: A solver of ODEs or its name.
        cond: Conditions, (n, ...), or one for all.
        batch_size: Rows solved at once.
        **options: steps, grid, rtol, atol, t_span, on_failure as for :func:`sample`.

    Returns:
        Latents at t_max in the model's units, (n, *data_shape).

    Raises:
        TypeError: If the solver is not one for ODEs.
        ValueError: If x has another shape, or NaN.

    Example:
        >>> import torch, sdediff
        >>> model = sdediff.reference.eight_gaussians().model(sdediff.VP())
        >>> x = model.sample(4, seed=1)
        >>> bool(torch.allclose(decode(model, encode(model, x)), x, atol=1e-2))
        True
    """
    return _transport(model, model.as_state(x), solver, cond, batch_size, options, up=True)


@solving
def decode(
    model: DiffusionModel,
    z: Tensor,
    solver: str | Solver = "dopri5",
    *,
    cond: Any = None,
    batch_size: int | None = None,
    **options: Any,
) -> Tensor:
    """Carry latents at t_max to data along the probability flow: the inverse of :func:`encode`.

    Args:
        model: The model.
        z: Latents in the model's units, (n, *data_shape).
        solver: A solver of ODEs or its name.
        cond: Conditions, (n, ...), or one for all.
        batch_size: Rows solved at once.
        **options: steps, grid, rtol, atol, t_span, on_failure as for :func:`sample`.

    Returns:
        Data in data units, (n, *data_shape).
    """
    return _transport(model, model.check_batch(z, "z"), solver, cond, batch_size, options, up=False)


def _transport(
    model: DiffusionModel,
    z: Tensor,
    solver: str | Solver,
    cond: Any,
    batch_size: int | None,
    options: dict[str, Any],
    *,
    up: bool,
) -> Tensor:
    run = Run.of(model, solver, eta=0.0, **options)
    run.check_flow("encode" if up else "decode")
    rows, cond = torch.arange(len(z)), model.expand_condition(cond, len(z), z.device)
    alpha = float(model.process.alpha(run.span[0]))
    z = z * alpha if up else z if model.state_type is None else z.to(model.state_type[0])
    parts = [
        run.carry(model, z[part], None if cond is None else cond[part], rows[part], up=up)
        for part in chunks(len(z), model.dim, batch_size)
    ]
    solution = join(parts)
    run.report(solution)
    return solution.x if up else model.to_data(solution.x / alpha)
