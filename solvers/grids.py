"""Time grids: n + 1 times as a float64 tensor, strictly monotone, from the first to the last exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .problems import Schedule

Span = tuple[float, float]
Map = Callable[[Tensor], Tensor]


def check_steps(n: int) -> int:
    """Return n when it is a step count, raise ValueError otherwise."""
    if isinstance(n, bool | str) or not 1 <= n < math.inf or int(n) != n:
        raise ValueError(f"steps={n!r} is not a number of steps: give a whole number of at least 1")
    return int(n)


def _spaced(process: Schedule, n: int, span: Span | None, clock: Map, inverse: Map) -> Tensor:
    """Equal steps of ``clock(t)``."""
    start, end = (process.t_max, process.t_min) if span is None else span
    u = torch.linspace(0, 1, check_steps(n) + 1, dtype=torch.float64)
    first, last = (clock(torch.tensor(s, dtype=torch.float64)) for s in (start, end))
    grid = inverse(first + u * (last - first))
    grid[0], grid[-1] = start, end  # exactly, whatever the round trip through the clock did
    return grid


def _spaced_in_lam(process: Schedule, n: int, span: Span | None, clock: Map, inverse: Map) -> Tensor:
    """Equal steps of ``clock(lam)``."""
    return _spaced(
        process, n, span, lambda t: clock(process.lam(t)), lambda value: process.time(inverse(value))
    )


def uniform_grid(process: Schedule, n: int, span: Span | None = None) -> Tensor:
    """Equal steps of t.

    Args:
        process: Gives t_max and t_min when `span` is left out.
        n: Number of steps.
        span: (start, end) instead, in either order.

    Returns:
        (n + 1,) float64.
    """
    return _spaced(process, n, span, lambda t: t, lambda value: value)


def quadratic_grid(process: Schedule, n: int, span: Span | None = None) -> Tensor:
    """Equal steps of the root of t (Song, Meng & Ermon 2021, arXiv 2010.02502, appendix D.2).

    Arguments as :func:`uniform_grid`; times must not be negative.
    """
    return _spaced(process, n, span, torch.sqrt, torch.square)


def log_snr_grid(process: Schedule, n: int, span: Span | None = None) -> Tensor:
    """Equal steps of lam = log(alpha/sigma) (Lu et al. 2022, arXiv 2206.00927, section 3.2).

    Arguments as :func:`uniform_grid`; lam must be finite at both ends.
    """
    return _spaced_in_lam(process, n, span, lambda lam: lam, lambda value: value)


def rho_grid(process: Schedule, n: int, span: Span | None = None, rho: float = 7.0) -> Tensor:
    """Equal steps of ``(sigma/alpha)^(1/rho)`` (Karras et al. 2022, arXiv 2206.00364, Eq. 5).

    In sigma/alpha, so that it serves every process. Arguments as :func:`uniform_grid`; lam must be finite at
    both ends.
    """
    return _spaced_in_lam(
        process, n, span, lambda lam: torch.exp(-lam / rho), lambda value: -rho * torch.log(value)
    )


def logistic_grid(process: Schedule, n: int, span: Span | None = None, scale: float = 1.25) -> Tensor:
    r"""Equal steps of :math:`1/(1 + e^{-\lambda/s})`: log-SNRs spread as a logistic law of scale s.

    Steps are densest where signal and noise of unit-variance data are alike, lam = 0, and long where the
    denoiser hardly changes; lam may be infinite at an end. At s = 1 these are equal steps of t under
    rectified flow, whatever the process; s = 1.25 serves data with finer structure too. Over solvers, data
    and 6 to 40 evaluations it errs least of the grids here, or as little as any to a few per cent, for every
    process but VE (`tests/test_grids.py`).

    Args:
        process: Gives lam and its inverse, and t_max and t_min when `span` is left out.
        n: Number of steps.
        span: (start, end) instead, in either order.
        scale: s, of lam = log(alpha/sigma), which is half the log-SNR: Kingma & Gao's law has 2 s = 2.

    Returns:
        (n + 1,) float64.

    References:
        Kingma & Gao (2023), arXiv 2303.00848: a noise schedule is a law of the log-SNR, and that of rectified
        flow is logistic.

    Example:
        >>> import sdediff
        >>> torch.allclose(logistic_grid(sdediff.RectifiedFlow(), 8, scale=1.0),
        ...                uniform_grid(sdediff.RectifiedFlow(), 8))
        True
    """
    return _spaced_in_lam(
        process, n, span, lambda lam: torch.sigmoid(lam / scale), lambda value: scale * torch.logit(value)
    )


def cosine_grid(process: Schedule, n: int, span: Span | None = None) -> Tensor:
    r"""Equal steps of the angle :math:`\arctan(\sigma/\alpha)`; lam may be infinite at an end.

    Under the cosine process these are equal steps of t. For Gaussian data of unit variance and one-evaluation
    steps it is the schedule of least divergence; finer structure it steps over.

    Arguments as :func:`uniform_grid`.

    References:
        Nichol & Dhariwal (2021), arXiv 2102.09672, Eq. 17, with s = 0; Sabour, Fidler & Kreis (2024), arXiv
        2404.14507, for the optimality (with alpha = 1 and unit-variance data).
    """
    return _spaced_in_lam(
        process,
        n,
        span,
        lambda lam: torch.atan(torch.exp(-lam)),
        lambda value: -torch.log(torch.tan(value)),
    )


#: Grids by name, for `grid="rho"` and the command line.
GRIDS: dict[str, Callable[..., Tensor]] = {
    "uniform": uniform_grid,
    "quadratic": quadratic_grid,
    "log-snr": log_snr_grid,
    "rho": rho_grid,
    "logistic": logistic_grid,
    "cosine": cosine_grid,
}


@dataclass(frozen=True)
class FittedGrid(Sequence[float]):
    """A grid fitted to one model and solver (:func:`solvers.fit_grid`): a sequence of times, noise first.

    It goes wherever `grid=` stands, for the process and the interval it was fitted to; others it refuses.

    Attributes:
        times: Falling times, n + 1 of them.
        alpha: The process's alpha at these times, by which it is known again.
        sigma: Its sigma there.
        process: The process in words.
        solver: The solver it was fitted for, in words.
        error: Root mean square error of the solver on this grid at the end, over the fit's samples.
        default_error: The same on the process's default grid.

    Raises:
        ValueError: If the times do not fall, or alpha and sigma are not of their number.

    Example:
        >>> import sdediff
        >>> model = sdediff.reference.eight_gaussians().model(sdediff.VP())
        >>> grid = sdediff.fit_grid(model, steps=5, solver="ddim", samples=64)
        >>> model.sample(3, solver="ddim", grid=grid).shape
        torch.Size([3, 2])
    """

    times: tuple[float, ...]
    alpha: tuple[float, ...]
    sigma: tuple[float, ...]
    process: str
    solver: str
    error: float
    default_error: float

    def __post_init__(self) -> None:
        falls = all(a > b for a, b in zip(self.times, self.times[1:], strict=False))
        if len(self.times) < 2 or not falls or not len(self.alpha) == len(self.sigma) == len(self.times):
            raise ValueError(
                "a fitted grid needs two or more falling times, with alpha and sigma at each: fit it anew"
            )

    @property
    def span(self) -> Span:
        """The interval it covers, (t_min, t_max)."""
        return self.times[-1], self.times[0]

    def __str__(self) -> str:
        return f"{len(self) - 1} steps fitted for {self.solver}"

    def __len__(self) -> int:
        return len(self.times)

    def __getitem__(self, index: Any) -> Any:
        return self.times[index]

    def __iter__(self) -> Iterator[float]:
        return iter(self.times)

    def check(self, process: Schedule, span: Sequence[float] | None = None) -> FittedGrid:
        """This grid, where it was fitted to such a process and interval.

        Args:
            process: The process it is to be used with.
            span: The interval it is to cover, in either order; by default anything within the process's own.

        Raises:
            ValueError: If it was fitted to another process or interval.
        """
        t = torch.tensor(self.times, dtype=torch.float64)
        low, high = self.span
        for ours, theirs in ((self.alpha, process.alpha(t)), (self.sigma, process.sigma(t))):
            mine = torch.tensor(ours, dtype=torch.float64)
            # With an interval of one's own, only that it is the fitted one counts (below).
            inside = span is not None or (process.t_min <= low and high <= process.t_max)
            if not inside or not torch.allclose(theirs, mine, rtol=1e-6, atol=1e-12):
                raise ValueError(
                    f"this grid was fitted to {self.process} on [{low:g}, {high:g}] and the process here is "
                    f"{process}: fit one for it"
                )
        if span is not None and (min(span), max(span)) != self.span:
            raise ValueError(
                f"this grid was fitted to times from {low:g} to {high:g}, not from {min(span):g} to "
                f"{max(span):g}: fit one with that t_span, or leave t_span out"
            )
        return self
