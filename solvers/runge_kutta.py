r"""Explicit Runge-Kutta methods: a method is a validated tableau; an embedded error makes it adaptive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .dop853 import DOPRI8
from .noise import Noise
from .problems import Problem, Time, expand
from .solution import Solution
from .solver import Orders, Request, Solver, Step, StepSolver, check_limits, check_tolerances
from .tableaus import BOSH3, DOPRI5, EULER, HEUN, MIDPOINT, RALSTON, RK4, TSIT5, Tableau
from .trees import Row


def combine(x: Tensor, h: Any, weights: Row, k: list[Tensor]) -> Tensor:
    """``x + h * sum(weights * k)``; h a float, or a tensor that broadcasts against x."""
    used = [(w, slope) for w, slope in zip(weights, k, strict=False) if w != 0.0]
    if isinstance(h, Tensor):
        total = used[0][1] * used[0][0]
        for w, slope in used[1:]:
            total = torch.add(total, slope, alpha=w)
        return torch.addcmul(x, h.to(x.dtype), total)
    for w, slope in used:
        x = torch.add(x, slope, alpha=h * w)
    return x


def stages(
    tableau: Tableau, problem: Problem, t: Time, t_next: Time, x: Tensor, first: Tensor | None = None
) -> list[Tensor]:
    """The slopes k_i of one step; `first` when k_1 is known already."""
    h = t_next - t
    wide = expand(h, x)
    k = [problem.velocity(t, x) if first is None else first]
    for node, row in zip(tableau.c[1:], tableau.a[1:], strict=True):
        k.append(problem.velocity(stage_time(t, t_next, node), combine(x, wide, row, k)))
    return k


def stage_time(t: Any, t_next: Any, node: float) -> Any:
    """Time of a stage; exactly t_next where the node is 1, lest rounding leave the interval."""
    return t_next if node == 1.0 else t + node * (t_next - t)


class RungeKutta(StepSolver):
    """An explicit Runge-Kutta method on a fixed grid.

    Args:
        tableau: The method.

    Example:
        >>> import torch, solvers
        >>> ralston = solvers.Tableau(2, (0.0, 2 / 3), ((), (2 / 3,)), (1 / 4, 3 / 4))
        >>> problem = solvers.ODE(lambda t, x: -x)
        >>> x = torch.ones(1, 1)
        >>> sol = solvers.solve(problem, x, t=(0.0, 1.0), solver=RungeKutta(ralston), steps=100)
        >>> round(float(sol.x), 4)
        0.3679
    """

    def __init__(self, tableau: Tableau) -> None:
        self.tableau = tableau
        self.orders = Orders(ode=tableau.order)

    def moved(self, state: Any) -> Any:
        return None

    def stage_times(self, t: float, t_next: float) -> tuple[float, ...]:
        return tuple(stage_time(t, t_next, node) for node in self.tableau.c)

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        h = t_next - t
        if len(self.tableau.b) == 1:
            return Step(problem.advance(t, x, h))
        k = stages(self.tableau, problem, t, t_next, x, first=state)
        return Step(combine(x, h, self.tableau.b, k), None, k[-1] if self.tableau.fsal else None)


class Euler(RungeKutta):
    r"""Euler's method, order 1, one evaluation a step.

    .. math:: x_{next} = x + h\,f(t, x)

    References:
        Hairer, Norsett & Wanner (1993), Solving ODEs I, section I.7.
    """

    orders = Orders(ode=1)

    def __init__(self) -> None:
        super().__init__(EULER)


class Midpoint(RungeKutta):
    r"""The explicit midpoint method, order 2, two evaluations a step.

    .. math:: x_{next} = x + h\,f(t + \tfrac h2,\ x + \tfrac h2 k_1), \qquad k_1 = f(t, x)

    References:
        Runge (1895), Math. Ann. 46, 167-178; Hairer, Norsett & Wanner (1993), Solving ODEs I, section II.1.
    """

    orders = Orders(ode=2)
    default_steps = 64

    def __init__(self) -> None:
        super().__init__(MIDPOINT)


class Ralston(RungeKutta):
    r"""Ralston's method, order 2, two evaluations a step: the one with the least bound on its local error.

    .. math:: x_{next} = x + \tfrac h4\,[k_1 + 3 f(t + \tfrac23 h,\ x + \tfrac23 h k_1)], \qquad k_1 = f(t, x)

    References:
        Ralston (1962), Math. Comp. 16, 431-437.
    """

    orders = Orders(ode=2)
    default_steps = 64

    def __init__(self) -> None:
        super().__init__(RALSTON)


class Heun(RungeKutta):
    r"""Heun's trapezoidal method, order 2, two evaluations a step.

    .. math:: x_{next} = x + \tfrac h2\,[k_1 + f(t + h,\ x + h k_1)], \qquad k_1 = f(t, x)

    References:
        Hairer, Norsett & Wanner (1993), Solving ODEs I, section II.1.
    """

    orders = Orders(ode=2)
    default_steps = 64

    def __init__(self) -> None:
        super().__init__(HEUN)


class RungeKutta4(RungeKutta):
    r"""The classical Runge-Kutta method, order 4, four evaluations a step.

    .. math:: x_{next} = x + \tfrac h6\,(k_1 + 2 k_2 + 2 k_3 + k_4)

    References:
        Hairer, Norsett & Wanner (1993), Solving ODEs I, section II.1.
    """

    orders = Orders(ode=4)
    default_steps = 40

    def __init__(self) -> None:
        super().__init__(RK4)


class AdaptiveRungeKutta(Solver):
    """An embedded Runge-Kutta pair that chooses each sample's steps from its own error.

    A sample's steps, and to rounding its result, do not depend on its batch-mates. On a SemiLinear problem
    the solve runs in Gaussian coordinates (`solvers.coordinates`), where states have unit variance:
    tolerances then mean the same for every process.

    Args:
        tableau: A method with error weights.
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_nfe: Evaluations a sample may take.
        min_step: Smallest step, as a fraction of the interval.

    Raises:
        ValueError: If a tolerance is not positive and finite, `max_nfe` no whole number of at least 1,
            `min_step` not in [0, 1), or the tableau has no error weights.
    """

    adaptive = True

    def __init__(
        self,
        tableau: Tableau,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        max_nfe: int = 20_000,
        min_step: float = 1e-9,
    ) -> None:
        if tableau.b_error is None:
            raise ValueError(
                "an adaptive method needs a tableau with error weights: give b_error, or use RungeKutta"
            )
        self.rtol, self.atol = check_tolerances(rtol, atol)
        self.max_nfe, self.min_step = check_limits(max_nfe, min_step)
        self.tableau = tableau
        self.orders = Orders(ode=tableau.order)

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        from .adapt import adapt
        from .coordinates import in_gaussian_coordinates

        return in_gaussian_coordinates(problem, x, request, lambda p, y, r: adapt(self, p, y, r))

    def __repr__(self) -> str:
        return f"{self.name}(rtol={self.rtol:g}, atol={self.atol:g})"


class _Pair(AdaptiveRungeKutta):
    """A named pair."""

    _tableau: Tableau

    def __init__(
        self, rtol: float = 1e-5, atol: float = 1e-5, max_nfe: int = 20_000, min_step: float = 1e-9
    ) -> None:
        super().__init__(self._tableau, rtol, atol, max_nfe, min_step)


class Bosh3(_Pair):
    """Bogacki and Shampine's 3(2) pair with cubic Hermite output, adaptive per sample; for loose tolerances.

    Args:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_nfe: Evaluations a sample may take.
        min_step: Smallest step, as a fraction of the interval.

    References:
        Bogacki & Shampine (1989), Appl. Math. Lett. 2, 321-325.
    """

    orders = Orders(ode=3)
    _tableau = BOSH3


class Tsit5(_Pair):
    """Tsitouras' 5(4) pair with 4th-order dense output, adaptive per sample.

    Args:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_nfe: Evaluations a sample may take.
        min_step: Smallest step, as a fraction of the interval.

    References:
        Tsitouras (2011), Comput. Math. Appl. 62, 770-775, table 1.
    """

    orders = Orders(ode=5)
    _tableau = TSIT5


class Dopri5(_Pair):
    """Dormand and Prince's 5(4) pair with 4th-order dense output, adaptive per sample.

    Args:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_nfe: Evaluations a sample may take.
        min_step: Smallest step, as a fraction of the interval.

    References:
        Dormand & Prince (1980), J. Comput. Appl. Math. 6, 19-26, table 2.

    Example:
        >>> import torch, solvers
        >>> problem = solvers.ODE(lambda t, x: -x)
        >>> x = torch.ones(1, 1, dtype=torch.float64)
        >>> sol = solvers.solve(problem, x, t=(0.0, 1.0), solver=Dopri5(rtol=1e-8, atol=1e-8))
        >>> round(float(sol.x), 7)
        0.3678794
    """

    orders = Orders(ode=5)
    _tableau = DOPRI5


class Dopri8(_Pair):
    """Dormand and Prince's method of order 8 (DOP853), adaptive per sample; for tight tolerances.

    Twelve evaluations a step, three more where states inside the step are kept (dense output of order 7).

    Args:
        rtol: Relative tolerance.
        atol: Absolute tolerance.
        max_nfe: Evaluations a sample may take.
        min_step: Smallest step, as a fraction of the interval.

    References:
        Prince & Dormand (1981), J. Comput. Appl. Math. 7, 67-75; Hairer, Norsett & Wanner (1993), Solving
        ODEs I, sections II.5 and II.6.
    """

    orders = Orders(ode=8)
    _tableau = DOPRI8
