r"""The sampler of Karras et al.: Heun's method in the clock sigma/alpha, with churn."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..noise import Noise, Stream
from ..problems import Coefficients, Problem, SemiLinear
from ..solver import Orders, Step, StepSolver
from .integrals import data_form, first_weight, schedule


class Churned(NamedTuple):
    """One step: noise up to t_hat, then Heun from there to the end."""

    #: Factors of x and of the normal; None where nothing is added.
    up: tuple[float, float] | None
    t_hat: float
    #: eps at t_hat and at the end, as ``a x + b D``; None in a step of infinite length.
    view: tuple[float, float] | None
    view_end: tuple[float, float] | None
    #: ``keep x + gain eps``; with view None ``keep x + gain D``.
    keep: float
    gain: float


class EDMHeun(StepSolver):
    r"""Heun's method in the clock of Karras et al., sigma/alpha, with their churn; ODE order 2 without churn.

    With :math:`\tilde x = x/\alpha` and :math:`\tilde\sigma = \sigma/\alpha` a step first adds noise, up to
    :math:`\hat\sigma = (1+\gamma)\tilde\sigma`, and then goes down from there:

    .. math:: \hat x = \tilde x + \sqrt{\hat\sigma^2-\tilde\sigma^2}\,S_{noise}\,z, \qquad
              \tilde x_s = \hat x + (\tilde\sigma_s-\hat\sigma)\,\tfrac12[\epsilon(\hat\sigma, \hat x)
              + \epsilon(\tilde\sigma_s, \tilde x')],

    with Euler's :math:`\tilde x' = \hat x + (\tilde\sigma_s-\hat\sigma)\,\epsilon(\hat\sigma, \hat x)` and
    :math:`\gamma = \min(churn/n, \sqrt2-1)` in a solve of n steps where :math:`s_{min} \le \tilde\sigma
    \le s_{max}`, else 0. :math:`\hat\sigma` does not pass that of the solve's start. Two evaluations a step,
    the last included, where t_min > 0: the published algorithm leaves its second out because it ends at
    sigma = 0, where eps cannot be asked. A step to sigma = 0 is Euler's, as there; one from or to alpha = 0,
    where the clock is infinite, is DDIM's.

    Args:
        churn: The paper's S_churn; 0 for the ODE.
        s_min: Least sigma/alpha at which noise is added (S_tmin).
        s_max: Largest (S_tmax).
        s_noise: Standard deviation of the noise added, relative (S_noise).

    Raises:
        ValueError: If an argument is negative or the range empty; on times that rise, with churn.

    References:
        Karras et al. (2022), arXiv 2206.00364, algorithm 2 (churn = 0: algorithm 1 with sigma(t) = t, s(t) =
        1).

    Example:
        >>> EDMHeun(churn=40, s_min=0.05, s_max=50, s_noise=1.003)
        EDMHeun(churn=40, s_min=0.05, s_max=50, s_noise=1.003)
    """

    needs_linear_part = True
    default_steps = 32
    orders = Orders(ode=2)

    def __init__(
        self, churn: float = 0.0, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0
    ) -> None:
        if not (churn >= 0 and s_noise >= 0 and 0 <= s_min <= s_max):
            raise ValueError(
                f"churn={churn}, s_min={s_min}, s_max={s_max}, s_noise={s_noise}: give numbers of at least "
                "0, s_min not above s_max"
            )
        self.churn, self.s_min, self.s_max, self.s_noise = churn, s_min, s_max, s_noise
        self.noisy = churn > 0
        if self.noisy:
            self.orders = Orders()

    def begin(self, problem: Problem, times: tuple[float, ...]) -> dict[tuple[float, float], Churned]:
        """Every step of the grid; the times that churn goes up to are tabulated at once."""
        assert isinstance(problem, SemiLinear)
        if self.noisy and times[-1] > times[0]:
            raise ValueError(
                f"churn={self.churn:g} adds noise on the way to data, and times rise, from {times[0]:g} "
                f"to {times[-1]:g}: let t fall, or take churn=0"
            )
        grid = schedule(problem, times)
        hats = list(times[:-1])
        if self.noisy:
            hats = [self._hat(problem, times, grid, k) for k in range(len(hats))]
        table = problem.tabulate([*times, *hats])
        high = schedule(table, hats)
        return {
            (times[k], times[k + 1]): self._churned(hats[k], grid[k], high[k], grid[k + 1])
            for k in range(len(hats))
        }

    def _hat(self, problem: SemiLinear, times: tuple[float, ...], grid: list[Coefficients], k: int) -> float:
        """The time up to which step k adds noise."""
        gamma = min(self.churn / (len(times) - 1), math.sqrt(2) - 1)
        lam = grid[k].lam
        if not (math.isfinite(lam) and self.s_min <= math.exp(-lam) <= self.s_max) or k == 0:
            return times[k]
        time = problem.process.time(torch.tensor(lam - math.log1p(gamma), dtype=torch.float64))
        return min(max(float(time), times[k]), times[0])

    def _churned(self, t_hat: float, now: Coefficients, hat: Coefficients, after: Coefficients) -> Churned:
        up = None
        if hat.lam < now.lam:
            added = math.sqrt(-math.expm1(2 * (hat.lam - now.lam))) * hat.sigma
            up = (hat.alpha / now.alpha, self.s_noise * added)
        if not (math.isfinite(hat.lam) and math.isfinite(after.lam)):
            line = data_form(hat, after)
            return Churned(up, t_hat, None, None, line.keep, first_weight(line, hat, after))
        keep = after.alpha / hat.alpha
        view, end = ((1 / c.sigma, -c.alpha / c.sigma) for c in (hat, after))
        return Churned(up, t_hat, view, end, keep, after.sigma - hat.sigma * keep)

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        assert isinstance(problem, SemiLinear)
        if state is None or (t, t_next) not in state:
            state = {**(state or {}), **self.begin(problem, (t, t_next))}
        up, t_hat, view, view_end, keep, gain = state[t, t_next]
        if up is not None:
            x = torch.add(x * up[0], noise.normal(Stream.CHURN), alpha=up[1])
        if view is None or view_end is None:
            return Step(problem.blend(t_hat, x, keep, gain), None, state)
        first = problem.blend(t_hat, x, *view)
        euler = torch.add(x * keep, first, alpha=gain)
        change = problem.blend(t_next, euler, *view_end) - first
        return Step(torch.add(euler, change, alpha=0.5 * gain), None, state)

    def __repr__(self) -> str:
        options = (
            f"churn={self.churn:g}, s_min={self.s_min:g}, s_max={self.s_max:g}, s_noise={self.s_noise:g}"
        )
        return f"{self.name}({options if self.noisy else ''})"
