"""The solver protocol: capabilities as plain attributes, one pure step or a whole integration."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from .noise import Noise
from .problems import SDE, Problem, SemiLinear, is_deterministic
from .solution import Solution

#: ``dual(t, x, value) -> like x``: gradient, with respect to the state, of a functional whose error is to be
#: estimated; `value` is what the problem's own function (its denoiser, or its drift) returns at (t, x). The
#: solver sums |dual . local error| over its steps.
Dual = Callable[[Tensor, Tensor, Tensor], Tensor]


class Step(NamedTuple):
    """What one step returns: the new state, its estimated local error or None, and the solver's memory."""

    x: Tensor
    error: Tensor | None = None
    state: Any = None


class Orders(NamedTuple):
    """Orders of convergence as documented and measured; None where the solver takes no such problem.

    `ode` is that of an ODE, `strong` and `weak` those where the noise is additive, as in every diffusion of
    `sdediff`, `strong_diagonal` and `weak_diagonal` those where it is diagonal and depends on the state.
    `ode_linear`, `strong_linear` and `weak_linear` are those of linear problems with additive noise, where
    they are other ones.

    Example:
        >>> Orders(ode=2).headline
        2
    """

    ode: float | None = None
    strong: float | None = None
    weak: float | None = None
    strong_diagonal: float | None = None
    weak_diagonal: float | None = None
    ode_linear: float | None = None
    strong_linear: float | None = None
    weak_linear: float | None = None

    @property
    def headline(self) -> float:
        """The order of the ODE, else the strong order, else 0 (none)."""
        return self.ode or self.strong or 0.0


@dataclass(frozen=True)
class Request:
    """What a solve is asked for besides the problem and the initial state.

    Attributes:
        times: The grid of a fixed-grid solver, or the two ends of the interval; floats.
        noise: Noise of the samples.
        save_at: Times at which to keep the state, in the order of the solve, or None.
        dual: See :data:`Dual`; None when no functional's error is wanted.
    """

    times: tuple[float, ...]
    noise: Noise
    save_at: tuple[float, ...] | None = None
    dual: Dual | None = None


def check_tolerances(rtol: float, atol: float) -> tuple[float, float]:
    """Return tolerances that are usable, raise ValueError for others."""
    try:
        usable = 0 < rtol < math.inf and 0 < atol < math.inf
    except TypeError:
        usable = False
    if not usable:
        raise ValueError(f"rtol={rtol!r}, atol={atol!r}: give positive tolerances that are finite")
    return rtol, atol


def check_limits(max_nfe: int, min_step: float) -> tuple[int, float]:
    """Return the limits of an adaptive solve when they are usable, raise ValueError for others."""
    try:
        usable = not isinstance(max_nfe, bool) and 1 <= max_nfe < math.inf and int(max_nfe) == max_nfe
        usable = usable and 0 <= min_step < 1
    except TypeError:
        usable = False
    if not usable:
        raise ValueError(
            f"max_nfe={max_nfe!r}, min_step={min_step!r}: give max_nfe >= 1 and 0 <= min_step < 1, max_nfe a "
            "whole number"
        )
    return int(max_nfe), min_step


class Solver(ABC):
    """A numerical method for ODEs or SDEs on batches.

    Class attributes state what it can do; asking for more is a TypeError that names a solver that can.
    """

    #: Orders of convergence by class of problem.
    orders: Orders = Orders()
    #: Chooses its own steps from rtol and atol.
    adaptive: bool = False
    #: Solves problems with noise.
    stochastic: bool = False
    #: Adds noise of its own even to an ODE, as correctors do.
    noisy: bool = False
    #: Needs a SemiLinear problem.
    needs_linear_part: bool = False
    #: A sample's result depends on its batch-mates.
    batch_coupled: bool = False
    #: Takes grids of equal steps only.
    equal_steps: bool = False
    #: Kinds of noise a stochastic solver takes.
    noises: tuple[str, ...] = ("additive", "diagonal")
    #: Steps when none are asked for (fixed-grid solvers).
    default_steps: int = 100
    #: eta of a diffusion problem when none is asked for.
    default_eta: float = 0.0

    @abstractmethod
    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        """Carry x along `request.times`; `problem` has passed :meth:`check`."""

    @property
    def order(self) -> float:
        """Order of convergence: that of an ODE, else the strong order, else 0."""
        return self.orders.headline

    @property
    def name(self) -> str:
        """How messages call it."""
        return type(self).__name__

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def check(self, problem: Problem) -> None:
        """Raise a TypeError if this solver cannot solve the problem."""
        if self.needs_linear_part and not isinstance(problem, SemiLinear):
            raise TypeError(
                f"{self.name} integrates the linear part of a diffusion exactly and a "
                f"{type(problem).__name__} has none known: "
                'give a SemiLinear problem, or take "heun" or "euler-maruyama"'
            )
        if not self.stochastic and not is_deterministic(problem):
            what = (
                "an SDE"
                if isinstance(problem, SDE)
                else f"a diffusion problem with eta={getattr(problem, 'eta', None)}"
            )
            raise TypeError(
                f'{self.name} solves ODEs only and was given {what}: take "euler-maruyama", or eta=0'
            )
        if isinstance(problem, SDE) and problem.noise not in self.noises:
            raise TypeError(
                f"{self.name} needs {' or '.join(self.noises)} noise, not {problem.noise}: take "
                '"euler-maruyama"'
            )


class StepSolver(Solver):
    """A solver on a fixed grid, given by one pure step.

    Subclasses implement :meth:`step`; history lives in its `state`, never in attributes.
    """

    @abstractmethod
    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        """One step from t to t_next.

        Args:
            problem: The problem; a SemiLinear one has its coefficients tabulated at `stage_times`.
            t: Time at the start, a Python float.
            t_next: Time at the end.
            x: State at t, (B, *E); not to be changed.
            state: What the last step returned as its state; at the first, what :meth:`begin` did.
            noise: The noise of this step.
        """

    #: History spans steps: a step without it is of lower order, so it cannot be doubled.
    multistep: bool = False

    def begin(self, problem: Problem, times: tuple[float, ...]) -> Any:
        """The state that the first step of a solve over this grid is given; None unless a subclass plans."""
        return None

    def moved(self, state: Any) -> Any:
        """What is left of the state once something else has moved x; a slope at the old x, say, is not."""
        return state

    def stage_times(self, t: float, t_next: float) -> tuple[float, ...]:
        """Times at which a step looks at the schedule, so that they can be tabulated beforehand."""
        return (t, t_next)

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        from .march import march

        return march(self, problem, x, request)
