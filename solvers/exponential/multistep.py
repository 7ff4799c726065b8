r"""Multistep exponential methods: one family, of which a method is a coordinate, moments and corrections.

Each of them replaces what the network predicts (D or eps) by a polynomial through its values at the last
steps and integrates that exactly against the exponential (`integrals`), so that a step is a weighted sum,

.. math:: x_{k+1} = a_k x_k + b_k \sum_i w_{k,i}\,m_{k-i}, \qquad \sum_i w_{k,i}\,u_{k,i}^j = M_{k,j},

with nodes :math:`u_{k,i} = (c_{k-i} - c_k)/(c_{k+1} - c_k)` in a coordinate c of time. Methods differ in c
and in the moments M (:class:`Rule`). A corrector takes the value at :math:`x_{k+1}` as one more node of the
step that led there; what it adds to x is a sum of the same values, so it is merged into the weights of the
next step and costs one term there.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from ..noise import Noise
from ..problems import Coefficients, Problem, SemiLinear
from ..solver import Step, StepSolver
from .integrals import Linear, data_form, first_weight, interpolation_weights, noise_form, schedule

#: What is interpolated: D, or eps.
Prediction = Literal["data", "noise"]
#: Which steps are corrected: none, those taken before the method has its full order, all.
Corrected = Literal["none", "start", "all"]


class Rule(NamedTuple):
    """What makes a multistep method on one grid: the coordinate of time, and the moments in it."""

    #: Coordinate of every time of the grid.
    coordinate: Sequence[float]
    #: ``moments(k, z, count)`` of step k, z being its rate times its step of lam: of 1, u, u^2, ...
    moments: Callable[[int, float, int], list[float]]


class Planned(NamedTuple):
    """One step of a grid: ``x_next = keep x + sum(weights * values) + noise z``, the newest value first."""

    t: float
    t_next: float
    keep: float
    #: a and b of a value ``a x + b D(t, x)``; None where it is D itself.
    view: tuple[float, float] | None
    predict: tuple[float, ...]
    #: `predict` with the correction of the last step merged in.
    correct: tuple[float, ...]
    #: Too few values are known yet for the full order.
    starting: bool
    #: Standard deviation of the noise.
    noise: float
    #: How many values later steps use.
    depth: int = 0


class Memory(NamedTuple):
    """State between steps: the grid's plan, the next step's number, the last values, newest first."""

    plan: tuple[Planned, ...]
    k: int = 0
    values: tuple[Tensor, ...] = ()
    #: Something else moved x: the correction that was due no longer fits it.
    moved: bool = False


class Multistep(StepSolver):
    """A multistep exponential method; a subclass gives its :meth:`rule`.

    The order rises by one a step from the start. Where the weights of an order amplify more than `caution`
    times as much as on small equal steps (sum of their sizes over size of their sum), the next lower order is
    taken: where steps grow, as on every short grid that ends near the data, that is more accurate than the
    full order. On a fine smooth grid it never happens. Nor, with a finite `caution`, is a step corrected that
    is so long that the correction by eps would enlarge an error of the state rather than shrink it.

    Args:
        order: Values that the polynomial goes through.
        prediction: What is interpolated, "data" (D) or "noise" (eps).
        corrected: Steps corrected once the value at their end is known; no evaluation more.
        caution: Largest amplification, relative to that of Adams and Bashforth's method; inf for no limit.
        lower_final: Fall to order 1 by one a step at the end, as published samplers do below 15 steps.

    Raises:
        ValueError: If an argument is not one of these.
    """

    needs_linear_part = True
    multistep = True
    default_steps = 50

    def __init__(
        self,
        order: int,
        prediction: Prediction,
        corrected: Corrected = "none",
        caution: float = 1.25,
        lower_final: bool = False,
    ) -> None:
        if isinstance(order, bool | str) or not 1 <= order <= 8 or int(order) != order:
            raise ValueError(f"order={order!r} is none of {self.name}: give a whole number from 1 to 8")
        if prediction not in ("data", "noise"):
            raise ValueError(f'prediction={prediction!r} is not known: give "data" or "noise"')
        if corrected not in ("none", "start", "all"):
            raise ValueError(f'corrected={corrected!r} is not known: give "none", "start" or "all"')
        if not caution >= 1:
            raise ValueError(f"caution={caution} refuses equal steps: give at least 1, or inf for no limit")
        self.terms, self.prediction, self.corrected = int(order), prediction, corrected
        self.caution, self.lower_final = caution, lower_final

    @abstractmethod
    def rule(self, problem: SemiLinear, times: tuple[float, ...], grid: list[Coefficients]) -> Rule:
        """The method on this grid."""

    def corrector_nodes(self, used: int, known: int, left: int) -> int:
        """How many nodes a step's corrector goes through, the one at its end included.

        Its predictor used `used` of the `known` ones up to its start; with this step, `left` are left.
        """
        return used + 1

    def linear(self, problem: SemiLinear, now: Coefficients, after: Coefficients) -> Linear:
        """The exact part of a step."""
        return data_form(now, after, now.eta) if self._takes_data(now) else noise_form(now, after)

    def first_weight(
        self, problem: SemiLinear, line: Linear, now: Coefficients, after: Coefficients
    ) -> float:
        """The weight of one value that serves the whole step; finite where lam is not."""
        return first_weight(line, now, after)

    def view(self, problem: SemiLinear, now: Coefficients) -> tuple[float, float] | None:
        """``(a, b)`` of the value ``a x + b D(t, x)`` that is interpolated; None for D itself."""
        return None if self._takes_data(now) else (1 / now.sigma, -now.alpha / now.sigma)

    def _takes_data(self, now: Coefficients) -> bool:
        return self.prediction == "data" or now.alpha == 0.0  # where eps says nothing of D

    # -- the plan of a grid ------------------------------------------------------------------------------

    def begin(self, problem: Problem, times: tuple[float, ...]) -> Memory:
        assert isinstance(problem, SemiLinear)
        grid = schedule(problem, times)
        rule = self.rule(problem, times, grid)
        plan: list[Planned] = []
        pending: list[float] = []  # weights of what the last step's correction adds to x
        for k in range(len(times) - 1):
            planned, pending = self._planned(problem, k, times, grid, rule, pending)
            plan.append(planned)
        depth = 0
        for k in reversed(range(len(plan))):
            plan[k] = plan[k]._replace(depth=depth)
            depth = max(len(plan[k].predict), len(plan[k].correct)) - 1
        return Memory(tuple(plan))

    def _planned(
        self,
        problem: SemiLinear,
        k: int,
        times: tuple[float, ...],
        grid: list[Coefficients],
        rule: Rule,
        pending: list[float],
    ) -> tuple[Planned, list[float]]:
        """Step k, and the weights of its correction."""
        now, after, last = grid[k], grid[k + 1], k + 2 == len(times)
        line = self.linear(problem, now, after)
        past = k + math.isfinite(grid[0].lam)  # lam is infinite at an end of the grid, if anywhere
        finite = past > 0 and math.isfinite(after.lam)
        predict = [self.first_weight(problem, line, now, after)]
        if finite:
            most = min(self.terms, past, len(times) - 1 - k if self.lower_final else self.terms)
            choices = (self._weights(k, line, grid, rule, 0, count) for count in range(most, 0, -1))
            predict = next(weights for weights in choices if self._calm(weights))
        merged = [line.keep * w for w in pending] + [0.0] * max(0, len(predict) - len(pending))
        for i, w in enumerate(predict):
            merged[i] += w
        starting = past < self.terms
        planned = Planned(
            times[k],
            times[k + 1],
            line.keep,
            self.view(problem, now),
            tuple(predict),
            tuple(merged),
            starting,
            line.noise,
        )
        if last or not finite or self.corrected == "none" or (self.corrected == "start" and not starting):
            return planned, []
        count = self.corrector_nodes(len(predict), past, len(times) - 1 - k)
        full = self._weights(k, line, grid, rule, 1, count)
        if self.prediction == "noise" and abs(full[0]) > after.sigma and self.caution < math.inf:
            return planned, []  # eps has slope 1/sigma in x at large noise: an error would feed on itself
        return planned, [a - b for a, b in zip_longest(full, [0.0, *predict], fillvalue=0.0)]

    def _weights(
        self, k: int, line: Linear, grid: list[Coefficients], rule: Rule, ahead: int, count: int
    ) -> list[float]:
        """Weights of step k from `count` nodes, the newest `ahead` times after its start."""
        c = rule.coordinate
        nodes = [(c[k + ahead - i] - c[k]) / (c[k + 1] - c[k]) for i in range(count)]
        moments = rule.moments(k, line.rate * (grid[k + 1].lam - grid[k].lam), count)
        return [line.scale * w for w in interpolation_weights(nodes, moments)]

    def _calm(self, weights: list[float]) -> bool:
        limit = self.caution * _EQUAL_STEPS[len(weights)]
        return len(weights) == 1 or sum(map(abs, weights)) <= limit * abs(sum(weights))

    # -- a step ------------------------------------------------------------------------------------------

    def moved(self, state: Any) -> Any:
        return state._replace(moved=True)

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        assert isinstance(problem, SemiLinear)
        plan, k, values, moved = self.begin(problem, (t, t_next)) if state is None else state
        now: Planned = plan[k]
        if now.t != t or now.t_next != t_next:
            raise ValueError(
                f"the state is that of a step from {now.t:g} to {now.t_next:g}, not {t:g} to {t_next:g}: "
                "give the state that begin(problem, times) returns for this grid"
            )
        newest = problem.denoise(t, x) if now.view is None else problem.blend(t, x, *now.view)
        values = (newest, *values)
        x_next = x * now.keep
        for weight, value in zip(now.predict if moved else now.correct, values, strict=False):
            x_next = torch.add(x_next, value, alpha=weight)
        if now.noise:
            x_next = torch.add(x_next, noise.normal(), alpha=now.noise)
        return Step(x_next, None, Memory(plan, k + 1, values[: now.depth]))

    def __repr__(self) -> str:
        return f"{self.name}(order={self.terms})"


def _equal_steps(count: int) -> float:
    weights = interpolation_weights([-float(i) for i in range(count)], [1 / (j + 1) for j in range(count)])
    return sum(map(abs, weights))


#: Sum of the sizes of Adams and Bashforth's weights (whose sum is 1), by order.
_EQUAL_STEPS = [math.inf, *(_equal_steps(count) for count in range(1, 10))]
