r"""Singlestep exponential methods: DPM-Solver-2 and -3, DPM-Solver++ 2S and 3S."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..noise import Noise
from ..problems import Coefficients, Problem, SemiLinear
from ..solver import Orders, Step, StepSolver
from .integrals import Linear, data_form, first_weight, interpolation_weights, moments, noise_form, schedule
from .multistep import Prediction


class Stage(NamedTuple):
    """Evaluate at (t, x_i); then ``keep x + sum(weights * values) + noise`` is the next stage's state."""

    t: float
    #: a and b of the value ``a x_i + b D(t, x_i)``; None where it is D itself.
    view: tuple[float, float] | None
    keep: float
    #: Numbers and weights of the values that count.
    weights: tuple[tuple[int, float], ...]
    #: Of a first stage whose value is not used again: the next state is ``a x + b D(t, x)``.
    fused: tuple[float, float] | None = None
    #: Weights of the normals of the step's parts, as far as this stage goes; none without noise.
    noise: tuple[float, ...] = ()


Plan = dict[tuple[float, float], tuple[Stage, ...]]


class Singlestep(StepSolver):
    """A one-step exponential method, whose stages lie at fractions of the step of lam.

    A subclass states `fractions`, where values are taken (the first at 0), and `prediction`. A stage goes all
    the way from the start of the step, along the line through the first value and the one just taken; with
    `halved` the first moment of the last is half of the zeroth. A step from or to an infinite lam is DDIM's.
    """

    needs_linear_part = True
    default_steps = 25
    prediction: Prediction = "data"
    fractions: tuple[float, ...] = (0.0,)
    halved: bool = False

    def begin(self, problem: Problem, times: tuple[float, ...]) -> Plan:
        """The stages of every step; the times between are tabulated at once."""
        assert isinstance(problem, SemiLinear)
        grid = schedule(problem, times)
        inner = self._inner(problem, times, grid)
        table = problem.tabulate([*times, *(t for row in inner for t in row)])
        plan: Plan = {}
        for k, row in enumerate(inner):
            points = [grid[k], *schedule(table, row), grid[k + 1]]
            plan[times[k], times[k + 1]] = self._stages((times[k], *row, times[k + 1]), points)
        return plan

    def _inner(
        self, problem: SemiLinear, times: tuple[float, ...], grid: list[Coefficients]
    ) -> list[tuple[float, ...]]:
        """Times of the stages inside each step; none in a step of infinite length."""
        lam, t = (torch.tensor(v, dtype=torch.float64) for v in ([c.lam for c in grid], times))
        finite = torch.isfinite(lam.diff()).tolist()
        lam = lam.nan_to_num(posinf=0.0, neginf=0.0)[:, None]
        fractions = torch.tensor(self.fractions[1:], dtype=torch.float64)
        inner = problem.process.time(lam[:-1] + fractions * lam.diff(dim=0))
        ends = torch.stack([t[:-1], t[1:]]).sort(dim=0).values[..., None]
        rows = inner.clamp(ends[0], ends[1]).tolist()  # whatever rounding the way through lam did
        return [tuple(row) if ok else () for row, ok in zip(rows, finite, strict=True)]

    def _stages(self, times: tuple[float, ...], points: list[Coefficients]) -> tuple[Stage, ...]:
        now, stages = points[0], []
        for i, t in enumerate(times[:-1]):
            here, after = points[i], points[i + 1]
            data = self.prediction == "data" or now.alpha == 0.0  # where eps says nothing of D
            line = data_form(now, after, now.eta) if data else noise_form(now, after)
            view = None if data else (1 / here.sigma, -here.alpha / here.sigma)
            weights = [(0, first_weight(line, now, after))]
            if i:
                halved = self.halved and i + 2 == len(times)
                weights = [(j, w) for j, w in self._line(i, now, here, after, line, halved) if w != 0.0]
            noise = self.stage_noise(i, times, points) if now.eta else ()
            stages.append(Stage(t, view, line.keep, tuple(weights), noise=noise))
        if not any(j == 0 for stage in stages[1:] for j, _ in stage.weights):
            first = stages[0]
            weight, (a, b) = first.weights[0][1], first.view or (0.0, 1.0)
            stages[0] = first._replace(fused=(first.keep + weight * a, weight * b))
        return tuple(stages)

    def _line(
        self, i: int, now: Coefficients, here: Coefficients, after: Coefficients, line: Linear, halved: bool
    ) -> list[tuple[int, float]]:
        """Weights of values 0 and i, of the line through them."""
        h = after.lam - now.lam
        m = moments(line.rate * h, 2)
        if halved:
            m[1] = 0.5 * m[0]
        w = interpolation_weights([0.0, (here.lam - now.lam) / h], m)
        return [(0, line.scale * w[0]), (i, line.scale * w[1])]

    def stage_noise(self, i: int, times: tuple[float, ...], points: list[Coefficients]) -> tuple[float, ...]:
        """What the noise of stage i weighs the normals of the parts of the step up to its end with.

        Each part adds the noise of its own exact law, which the later ones damp.
        """
        eta, end = points[0].eta, points[i + 1]
        *earlier, last = (data_form(a, b, eta).noise for a, b in pairwise(points[: i + 2]))
        # Where sigma = 0 at the end there is the last part only.
        damped = (data_form(b, end, eta).keep * part for b, part in zip(points[1:], earlier, strict=False))
        return (*damped, last)

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        assert isinstance(problem, SemiLinear)
        if state is None or (t, t_next) not in state:
            state = {**(state or {}), **self.begin(problem, (t, t_next))}
        stages = state[t, t_next]
        normals = self._normals(stages, t, t_next, noise)
        values: list[Tensor] = []
        at = x
        for s, view, keep, weights, fused, scales in stages:
            if fused:
                at = problem.blend(s, x, *fused)
                values.append(at)  # only to be counted
            else:
                values.append(problem.denoise(s, at) if view is None else problem.blend(s, at, *view))
                at = x * keep
                for j, weight in weights:
                    at = torch.add(at, values[j], alpha=weight)
            for scale, z in zip(scales, normals, strict=False):
                at = torch.add(at, z, alpha=scale)
        return Step(at, None, state)

    @staticmethod
    def _normals(stages: tuple[Stage, ...], t: float, t_next: float, noise: Noise) -> tuple[Tensor, ...]:
        """Normals of the parts of a step between its stages."""
        if not stages[0].noise:
            return ()
        return noise.split(*((stage.t - t) / (t_next - t) for stage in stages[1:]))


class DPMSolverPP2S(Singlestep):
    r"""DPM-Solver++(2S): second-order singlestep data prediction, two evaluations a step, ODE order 2.

    .. math:: u = \frac{\sigma_r}{\sigma_t}x_t + \alpha_r(1-e^{-h/2})\,D(t, x_t), \qquad
              x_s = \frac{\sigma_s}{\sigma_t}x_t + \alpha_s(1-e^{-h})\,D(r, u)

    with r halfway from t to s in lam, h the step of lam: the exponential midpoint rule. At a noise level eta
    > 0 it is the method of the SDE (:class:`SEEDS2` has the formula), of strong order 1 and weak order 2.

    References:
        Lu et al. (2022), arXiv 2211.01095, algorithm 1 with r_i = 1/2.
    """

    orders = Orders(ode=2, strong=1, weak=2)
    stochastic = True
    fractions = (0.0, 0.5)
    halved = True


class DPMSolverPP3S(Singlestep):
    r"""DPM-Solver++(3S): third-order singlestep data prediction, three evaluations a step, ODE order 3.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t}x_t + \alpha_s\left[M_0 D_0 + \tfrac32 M_1(D_2-D_0)\right]

    with D_0, D_1, D_2 the values at fractions 0, 1/3, 2/3 of the step of lam; the third is taken where the
    line through the first two leads. M are the moments of `integrals`; the node 2/3 makes the line serve
    order 3.

    References:
        Lu et al. (2022), arXiv 2206.00927, algorithm 2 with r_1 = 1/3, r_2 = 2/3, for D in place of eps, as
        in the authors' code (arXiv 2211.01095 prints 2S and 2M only).
    """

    orders = Orders(ode=3)
    fractions = (0.0, 1 / 3, 2 / 3)


class DPMSolver2(DPMSolverPP2S):
    r"""DPM-Solver-2: second-order singlestep noise prediction, two evaluations a step, ODE order 2.

    .. math:: u = \frac{\alpha_r}{\alpha_t}x_t - \sigma_r(e^{h/2}-1)\,\epsilon(t, x_t), \qquad
              x_s = \frac{\alpha_s}{\alpha_t}x_t - \sigma_s(e^{h}-1)\,\epsilon(r, u)

    with r halfway from t to s in lam, h the step of lam.

    References:
        Lu et al. (2022), arXiv 2206.00927, algorithm 1.
    """

    orders = Orders(ode=2)
    stochastic = False
    prediction = "noise"


class DPMSolver3(DPMSolverPP3S):
    r"""DPM-Solver-3: third-order singlestep noise prediction, three evaluations a step, ODE order 3.

    .. math:: x_s = \frac{\alpha_s}{\alpha_t}x_t - \sigma_s(e^h-1)\,\epsilon_0
              - \tfrac32\sigma_s\left(\frac{e^h-1}{h}-1\right)(\epsilon_2-\epsilon_0)

    with the values of eps at fractions 0, 1/3, 2/3 of the step of lam.

    References:
        Lu et al. (2022), arXiv 2206.00927, algorithm 2 with r_1 = 1/3, r_2 = 2/3.
    """

    prediction = "noise"
