"""What every pass over samples shares: the solver and its options, the interval, chunks and rows."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from solvers import FittedGrid, Solution, Solver, SolverError, Stream, solve
from solvers.noise import normal
from solvers.registry import resolve

from .model import Condition, DiffusionModel
from .prior import Prior

_CHUNK_NUMBERS = 1 << 20


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
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed={seed!r}: give a whole number")
        if not callable(eta) and not isinstance(eta, Real | None):
            raise TypeError(f"eta={eta!r}: give a number, or a function of t")
        if isinstance(grid, FittedGrid):
            grid = grid.check(model.process, t_span).times
        if grid is not None and not isinstance(grid, str):
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
        tell_failures(solution, self.on_failure, stacklevel=5)


def tell_failures(solution: Solution, on_failure: str, stacklevel: int = 3) -> None:
    """Warn of failed samples, or raise a SolverError, or leave it."""
    if on_failure == "ignore" or bool(solution.ok.all()):
        return
    message = solution.describe_failure()
    if on_failure == "raise":
        raise SolverError(message, solution)
    warnings.warn(
        message + '; their rows hold the last state reached (on_failure="raise" makes this an error)',
        stacklevel=stacklevel,
    )


def check_span(model: DiffusionModel, span: tuple[float, float] | None) -> tuple[float, float]:
    """(t_min, t_max) as asked for, or the process's own."""
    process = model.process
    if span is None:
        return process.t_min, process.t_max
    if not isinstance(span, Sequence | Tensor) or len(span) != 2:
        raise ValueError(f"t_span={span} is no interval: give (t_min, t_max)")
    low, high = (float(t) for t in span)
    times = torch.linspace(low, high, 65, dtype=torch.float64)
    lam = process.lam(times)
    if not low < high or not bool(torch.isfinite(lam).all() and (lam.diff() < 0).all()):
        raise ValueError(
            f"t_span=({low:g}, {high:g}) is not usable with {process}: give (t_min, t_max) with t_min < "
            "t_max, where alpha and sigma are positive"
        )
    # A schedule may run on with other times' values, and a bisection ends where the process's interval does.
    if not bool(((process.time(lam) - times).abs() <= 1e-6 * (high - low)).all()):
        raise ValueError(
            f"t_span=({low:g}, {high:g}) leaves [{process.t_min:g}, {process.t_max:g}], where the inverse of "
            f"lam of {process} is known: give the process this interval, or pass it time="
        )
    return low, high


def chunks(n: int, dim: int, batch_size: int | None) -> Iterator[slice]:
    """Slices of n rows, of `batch_size` or of about a million numbers each."""
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
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


def draw_prior(model: DiffusionModel, run: Run, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Draws of the prior for the named samples, in model units, (B, *data_shape)."""
    own_dtype, device = model.state_type or (torch.get_default_dtype(), model.shift.device)
    z = normal(run.seed, rows, Stream.PRIOR, 0, (model.dim,), dtype or own_dtype, device)
    return run.prior.transform(z).reshape(-1, *model.data_shape)


def join(parts: list[Solution]) -> Solution:
    """Solutions of consecutive rows as one."""
    fields = ("x", "t", "nfe", "accepted", "rejected", "status", "error", "global_error", "error_size")
    joined = {
        f: None if getattr(parts[0], f) is None else torch.cat([getattr(p, f) for p in parts]) for f in fields
    }
    path = None if parts[0].path is None else torch.cat([p.path for p in parts if p.path is not None], dim=1)
    return Solution(path=path, **joined)  # type: ignore[arg-type]
