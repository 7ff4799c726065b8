r"""Multistep integration of what a Gaussian does not explain: the solver for few steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..noise import Noise
from ..problems import Coefficients, Problem, SemiLinear
from ..solver import Orders, Step
from .deis import gauss_legendre
from .integrals import Linear, schedule
from .multistep import Memory, Multistep, Rule

_NODES = 24
_FINEST = 0.35  # of the data's standard deviation
_FLOOR = 1e-4  # of omega, lest rounding in D be multiplied by 1/sigma~^2 where there is hardly any noise


class GaussianMultistep(Multistep):
    r"""Adams-Bashforth-Moulton on the score that a Gaussian of the data's mean and variance leaves over.

    With :math:`\tilde x = x/\alpha`, :math:`\tilde\sigma = \sigma/\alpha`, mean m, variance l and :math:`q =
    \sqrt{l + \tilde\sigma^2}`, the flow is (`solvers.coordinates`)

    .. math:: d\,\frac{\tilde x - m}{q} = g\,\omega\,\frac{d\lambda}{q}, \qquad
              g = \frac{\tilde\sigma^2}{\omega}\,(s - s_G), \qquad
              \omega = \frac{\tilde\sigma^2}{a^2 + \tilde\sigma^2},

    where s is the score of the noised data and s_G that of the noised Gaussian. g vanishes for Gaussian data,
    which one step carries exactly, and changes slowly elsewhere: it is bounded at small noise, and at large
    noise falls off. It is replaced by the polynomial through its last values in the coordinate :math:`c =
    -\tfrac12\log(1 + \tilde\sigma^2/a^2)`, linear in the noise's variance where that is small and in log-SNR
    where it is large; each step is corrected by the next one's evaluation, as in :class:`UniPC`. One
    evaluation a step; the same for every process. A model's own mean and standard deviation are used
    (`SemiLinear.centre`, `SemiLinear.scale`); wrong ones cost accuracy, never consistency.

    ODE order min(order + 1, 3): the first step, begun at order 1 and corrected, errs by O(h^3).

    Args:
        order: Values of g that a step extrapolates from, 1 to 8.
        finest: a, as a fraction of the data's standard deviation: noise below it is small.
        caution: See :class:`Multistep`; inf keeps the full order on every grid.

    Raises:
        ValueError: If an argument is not one of these.

    References:
        This package's; of its parts, Zheng et al. (2023), arXiv 2310.13268, for a linear part fitted to
        the model (there by statistics of the network, here by the data's mean and variance); Zhao et al.
        (2023), arXiv 2302.04867, for the corrector; Wang & Vastola (2024), arXiv 2412.09726, for how nearly
        Gaussian scores are at large noise.

    Example:
        >>> import torch, sdediff, solvers
        >>> data = sdediff.reference.random_product(dim=4, dtype=torch.float64)
        >>> process = sdediff.VP()
        >>> x = process.perturb(data.sample(50, seed=0), 1.0, seed=0)[0]
        >>> exact = data.flow(process, x, 1.0, process.t_min)
        >>> problem = data.model(process).problem()
        >>> solve = lambda name: solvers.solve(problem, x, solver=name, steps=10).x
        >>> error = lambda name: float((solve(name) - exact).square().mean().sqrt())
        >>> error("dpm++2m") > 3 * error("gaussian-multistep")
        True
    """

    default_steps = 20

    def __init__(self, order: int = 4, finest: float = _FINEST, caution: float = math.inf) -> None:
        super().__init__(order, "data", "all", caution)
        if not 0 < finest < 1:
            raise ValueError(f"finest={finest}: give a fraction between 0 and 1 of the data's deviation")
        self.finest = finest
        self.orders = Orders(ode=min(order + 1, 3))

    def rule(self, problem: SemiLinear, times: tuple[float, ...], grid: list[Coefficients]) -> Rule:
        u, weights = gauss_legendre(_NODES)
        variance, finest = problem.scale**2, (self.finest * problem.scale) ** 2
        lam = torch.tensor([c.lam for c in grid], dtype=torch.float64)
        coordinate = -0.5 * torch.log1p(torch.exp(-2 * lam) / finest)
        lam = lam.nan_to_num(posinf=0.0, neginf=0.0)  # a step from or to infinity is of first order
        c, h = -0.5 * torch.log1p(torch.exp(-2 * lam) / finest), lam.diff()[:, None]
        inside = torch.exp(-2 * (lam[:-1, None] + u * h))
        v = (-0.5 * torch.log1p(inside / finest) - c[:-1, None]) / c.diff()[:, None]
        omega = _FLOOR + (1 - _FLOOR) * inside / (finest + inside)
        mass = h * weights * omega / torch.sqrt(variance + inside)
        powers = v[..., None] ** torch.arange(self.terms + 1, dtype=torch.float64)
        table = torch.einsum("kq,kqj->kj", mass, powers).tolist()
        return Rule(coordinate.tolist(), lambda k, z, count: table[k][:count])

    def linear(self, problem: SemiLinear, now: Coefficients, after: Coefficients) -> Linear:
        if after.sigma == 0:  # DDIM's step, to alpha D
            gain = problem.scale**2 * now.alpha / _spread(problem, now) ** 2
            return Linear(after.alpha * gain, after.alpha, 1.0)
        spread = _spread(problem, after)
        return Linear(spread / _spread(problem, now), spread, 1.0)

    def first_weight(
        self, problem: SemiLinear, line: Linear, now: Coefficients, after: Coefficients
    ) -> float:
        if after.sigma == 0:
            return line.scale * self._omega(problem, now)
        return line.scale * (self._tau(problem, after) - self._tau(problem, now))

    def view(self, problem: SemiLinear, now: Coefficients) -> tuple[float, float]:
        # g = (D - m - gain (x/alpha - m)) / omega with gain = l/q^2; the terms in m are left to `step`.
        omega = self._omega(problem, now)
        return -(problem.scale**2) * now.alpha / _spread(problem, now) ** 2 / omega, 1 / omega

    def _omega(self, problem: SemiLinear, c: Coefficients) -> float:
        finest = (self.finest * problem.scale * c.alpha) ** 2
        return _FLOOR + (1 - _FLOOR) * c.sigma**2 / (finest + c.sigma**2)

    def _tau(self, problem: SemiLinear, c: Coefficients) -> float:
        """The integral of omega dlam/q from infinite noise on, in closed form."""
        root = problem.scale * math.sqrt(1 - self.finest**2)
        whole = math.atanh(root * c.alpha / _spread(problem, c)) / root
        return (1 - _FLOOR) * whole + _FLOOR * math.asinh(problem.scale * c.alpha / c.sigma) / problem.scale

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        assert isinstance(problem, SemiLinear)
        state = self.begin(problem, (t, t_next)) if state is None else state
        step = super().step(problem, t, t_next, x, state, noise)
        if not isinstance(problem.centre, Tensor) and problem.centre == 0:
            return step
        centre = torch.as_tensor(problem.centre, dtype=x.dtype, device=x.device)
        return step._replace(x=torch.add(step.x, centre, alpha=self._shift(problem, state)))

    def _shift(self, problem: SemiLinear, state: Memory) -> float:
        """How often a step adds the mean: it carries x - alpha m, and the values lack theirs."""
        now = state.plan[state.k]
        weights = now.predict if state.moved else now.correct
        before, after = schedule(problem, (now.t, now.t_next))
        total = after.alpha - now.keep * before.alpha
        for planned, weight in zip(reversed(state.plan[: state.k + 1]), weights, strict=False):
            (c,) = schedule(problem, (planned.t,))
            left = (c.sigma / _spread(problem, c)) ** 2  # 1 - gain
            total -= weight * left / self._omega(problem, c)
        return total


def _spread(problem: SemiLinear, c: Coefficients) -> float:
    """Standard deviation of noised data."""
    return math.hypot(problem.scale * c.alpha, c.sigma)
