"""From the prior to data, and back and forth along the probability flow."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers import Solution, Solver, SolverError, Stream, solve
from solvers.noise import normal
from solvers.registry import resolve

from . import units
from .model import Condition, DiffusionModel
from .prior import Prior

_CHUNK_NUMBERS = 1 << 20


class SampleResult(NamedTuple):
    """Samples with their log-density: unpacks as ``x, log_prob``."""

    x: Tensor
    log_prob: Tensor


@dataclass(frozen=True)
class Run:
    """What a pass over samples shares: the solver, its options, the interval.

    Attributes:
        solver: The solver.
        span: (t_min, t_max).
        options: Keyword arguments of :func:`solvers.solve`.
        eta: Noise level of the diffusion.
        seed: Seed of the noise.
        prior: The prior at t_max.
        on_failure: "warn", "raise" or "ignore".
    """

    solver: Solver
    span: tuple[float, float]
    options: dict[str, Any]
    eta: float | Callable[[Tensor], Tensor]
    seed: int
    prior: Prior
    on_failure: str

    @classmethod
    def of(
        cls,
        model: DiffusionModel,
        solver: str | Solver,
        *,
        t_span: tuple[float, float] | None = None,
        steps: int | None = None,
        grid: Any = None,
        rtol: float | None = None,
        atol: float | None = None,
        eta: float | Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
        prior: str | Prior | None = None,
        on_failure: str = "warn",
    ) -> Run:
        """Check and fill in what a caller asked for."""
        solver = resolve(solver, rtol, atol)
        span = check_span(model, t_span)
        if on_failure not in ("warn", "raise", "ignore"):
            raise ValueError(f'on_failure={on_failure!r} is not known: take "warn", "raise" or "ignore"')
        if isinstance(grid, Sequence | Tensor) and not isinstance(grid, str):
            grid = torch.as_tensor(grid, dtype=torch.float64)
            if t_span is None and len(grid) > 1:
                span = check_span(model, (float(grid.min()), float(grid.max())))
        eta = solver.default_eta if eta is None else eta
        options = {"solver": solver, "steps": steps, "grid": grid}
        return cls(solver, span, options, eta, seed, model.prior_at(span[1], prior), on_failure)

    def check_flow(self, what: str) -> None:
        """Raise a TypeError unless the solver follows the probability flow, which `what` needs."""
        if self.solver.noisy or callable(self.eta) or self.eta != 0:
            how = "with noise of its own" if self.solver.noisy else f"with eta={self.eta}"
            raise TypeError(
                f"{what} follows the probability-flow ODE and {self.solver.name} runs {how}: "
                'take an ODE solver such as "dopri5", or eta=0 where that is enough'
            )

    def carry(
        self,
        model: DiffusionModel,
        z: Tensor,
        cond: Condition,
        indices: Tensor,
        *,
        up: bool = False,
        **extra: Any,
    ) -> Solution:
        """Solve for states z (B, *E) from t_max to t_min, or up from t_min to t_max."""
        options = dict(self.options)
        if isinstance(options["grid"], Tensor):
            rising = bool(options["grid"][-1] > options["grid"][0])
            options["grid"] = options["grid"].flip(0) if rising != up else options["grid"]
        t = self.span if up else self.span[::-1]
        problem = model.problem(self.eta, cond)
        return solve(problem, z, t, seed=self.seed, indices=indices, **options, **extra)

    def report(self, solution: Solution) -> None:
        """Tell of failed samples as the caller asked."""
        if self.on_failure == "ignore" or bool(solution.ok.all()):
            return
        message = solution.describe_failure()
        if self.on_failure == "raise":
            raise SolverError(message, solution)
        warnings.warn(
            message + '; their rows hold the last state reached (on_failure="raise" makes this an error)',
            stacklevel=4,
        )


def check_span(model: DiffusionModel, span: tuple[float, float] | None) -> tuple[float, float]:
    """(t_min, t_max) as asked for, or the process's own."""
    process = model.process
    if span is None:
        return process.t_min, process.t_max
    low, high = (float(t) for t in span)
    lam = process.lam(torch.tensor([low, high], dtype=torch.float64))
    if not low < high or not bool(torch.isfinite(lam).all()) or not bool(lam[0] > lam[1]):
        raise ValueError(
            f"t_span=({low:g}, {high:g}) is not usable with {process}: give (t_min, t_max) with t_min < "
            "t_max, where alpha and sigma are positive"
        )
    return low, high


def chunks(n: int, dim: int, batch_size: int | None) -> Iterator[slice]:
    """Slices of n rows, of `batch_size` or of about a million numbers each."""
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: give a positive number of rows")
    size = batch_size or max(1, _CHUNK_NUMBERS // dim)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def rows_of(n: int, indices: Any) -> Tensor:
    """Names of n samples: 0 .. n-1, or the caller's."""
    if indices is None:
        return torch.arange(n)
    indices = torch.as_tensor(indices)
    if indices.shape != (n,) or indices.is_floating_point():
        raise ValueError(
            f"indices has shape {tuple(indices.shape)} and dtype {indices.dtype}: give {n} integers, one a "
            "sample"
        )
    return indices


def state_dtype(model: DiffusionModel) -> tuple[torch.dtype, torch.device]:
    """Dtype and device of the model's states: its parameters', else torch's default and the units' device."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return parameter.dtype, parameter.device
    return torch.get_default_dtype(), model.shift.device


@torch.no_grad()
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
    return_solution: bool = False,
    on_failure: str = "warn",
    dtype: torch.dtype | None = None,
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
        grid: Its times, or the name of a grid ("rho", "uniform", "log-snr").
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
        return_log_prob: Also return the log-density (ODE solvers): ``x, log_prob``.
        return_solution: Also return a :class:`solvers.Solution`, its states in data units: ``x, solution``.
        on_failure: "warn", "raise" (:class:`solvers.SolverError`) or "ignore" where a sample's solve fails;
            the others are not touched by it.
        dtype: Of the samples; the parameters' by default.
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
    if isinstance(n, bool) or int(n) != n or n < 1:
        raise ValueError(f"n={n} is not a number of samples: give a whole number of at least 1")
    if return_log_prob and (denoise or return_solution):
        raise TypeError(
            "return_log_prob goes with neither denoise (no known density) nor return_solution: ask for one "
            "at a time"
        )
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
    own_dtype, device = state_dtype(model)
    rows, cond = rows_of(n, indices), units.expand_condition(cond, n)
    parts: list[Any] = []
    for part in chunks(n, model.dim, batch_size):
        z = draw_prior(model, run, rows[part], dtype or own_dtype, device)
        c = None if cond is None else cond[part].to(device)
        if return_log_prob:
            from .likelihood.engine import sample_with_log_prob

            parts.append(sample_with_log_prob(model, run, z, c, rows[part]))
        else:
            parts.append(_finish(model, run, run.carry(model, z, c, rows[part]), c, denoise))
        if progress is not None:
            progress(part.stop)
    if return_log_prob:
        return SampleResult(*(torch.cat(column) for column in zip(*parts, strict=True)))
    solution = join(parts)
    run.report(solution)
    return (solution.x, solution) if return_solution else solution.x


def draw_prior(
    model: DiffusionModel, run: Run, rows: Tensor, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Draws of the prior for the named samples, in model units, (B, *data_shape)."""
    z = normal(run.seed, rows, Stream.PRIOR, 0, (model.dim,), dtype, device)
    return run.prior.transform(z).reshape(-1, *model.data_shape)


def _finish(model: DiffusionModel, run: Run, solution: Solution, cond: Condition, denoise: bool) -> Solution:
    """The solution's state in data units."""
    t = run.span[0]
    if denoise:
        x = model.to_data(model.problem(0.0, cond).denoise(t, solution.x))
        return replace(solution, x=x, nfe=solution.nfe + 1)
    return replace(solution, x=model.to_data(solution.x / float(model.process.alpha(t))))


def join(parts: list[Solution]) -> Solution:
    """Solutions of consecutive rows as one."""
    fields = ("x", "t", "nfe", "accepted", "rejected", "status", "error")
    joined = {
        f: None if getattr(parts[0], f) is None else torch.cat([getattr(p, f) for p in parts]) for f in fields
    }
    path = None if parts[0].path is None else torch.cat([p.path for p in parts if p.path is not None], dim=1)
    return Solution(path=path, **joined)  # type: ignore[arg-type]


@torch.no_grad()
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
    units.check_batch(x, model.data_shape, "x")
    return _transport(model, model.to_model(x), solver, cond, batch_size, options, up=True)


@torch.no_grad()
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
    units.check_batch(z, model.data_shape, "z")
    return _transport(model, z, solver, cond, batch_size, options, up=False)


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
    rows, cond = torch.arange(len(z)), units.expand_condition(cond, len(z))
    alpha = float(model.process.alpha(run.span[0]))
    z = z * alpha if up else z
    parts = [
        run.carry(model, z[part], None if cond is None else cond[part], rows[part], up=up)
        for part in chunks(len(z), model.dim, batch_size)
    ]
    solution = join(parts)
    run.report(solution)
    return solution.x if up else model.to_data(solution.x / alpha)
