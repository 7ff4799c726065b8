r"""Explicit Runge-Kutta methods: a method is a validated tableau; an embedded error makes it adaptive."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .noise import Noise
from .problems import Problem, Time, expand
from .solution import Solution
from .solver import Orders, Request, Solver, Step, StepSolver, check_tolerances

Row = tuple[float, ...]


@dataclass(frozen=True)
class Tableau:
    r"""Coefficients of an explicit Runge-Kutta method.

    .. math:: k_i = f(t + c_i h,\ x + h\sum_{j<i} a_{ij} k_j), \qquad x_{next} = x + h \sum_i b_i k_i

    Args:
        order: Order of the solution.
        c: Nodes, one a stage, the first 0.
        a: Strictly lower triangular rows; row i has i entries.
        b: Weights.
        b_error: ``b - b_embedded``, for the error estimate, or None.
        dense: Row i holds the coefficients of theta, theta^2, ... in the weight of stage i of the dense
            output, or None.

    Raises:
        ValueError: If the shapes, the row sums or the quadrature conditions up to the order do not hold.
    """

    order: int
    c: Row
    a: tuple[Row, ...]
    b: Row
    b_error: Row | None = None
    dense: tuple[Row, ...] | None = None

    def __post_init__(self) -> None:
        stages = len(self.b)
        if len(self.c) != stages or [len(row) for row in self.a] != list(range(stages)):
            raise ValueError(
                f"a tableau of {stages} stages needs {stages} nodes and rows of 0, 1, ..., {stages - 1} "
                "entries"
            )

        def close(p: float, q: float) -> bool:
            return math.isclose(p, q, rel_tol=1e-12, abs_tol=1e-12)

        if not all(close(sum(row), node) for row, node in zip(self.a, self.c, strict=True)):
            raise ValueError("each row of a tableau must sum to its node c_i")
        powers = range(1, self.order + 1)
        if not all(
            close(sum(b * c ** (q - 1) for b, c in zip(self.b, self.c, strict=True)), 1 / q) for q in powers
        ):
            raise ValueError(f"the weights do not meet the quadrature conditions of order {self.order}")
        for weights in (self.b_error, self.dense):
            if weights is not None and len(weights) != stages:
                raise ValueError(f"a tableau of {stages} stages needs {stages} error weights and dense rows")
        if self.b_error is not None and not close(sum(self.b_error), 0.0):
            raise ValueError("the error weights must sum to 0")
        if self.dense is not None and not all(
            close(sum(row), b) for row, b in zip(self.dense, self.b, strict=True)
        ):
            raise ValueError("the dense output must end in the solution")

    @property
    def interpolant(self) -> tuple[Row, ...]:
        """Rows as in `dense`, for the stages and for the slope at the step's end.

        Without a dense output they are those of the cubic Hermite polynomial.
        """
        if self.dense is not None:
            return (*self.dense, (0.0,) * len(self.dense[0]))
        rows = [(0.0, 3 * b, -2 * b) for b in self.b]
        rows[0] = (1.0, rows[0][1] - 2, rows[0][2] + 1)
        return (*rows, (0.0, -1.0, 1.0))

    @property
    def fsal(self) -> bool:
        """The last stage is the first of the next step."""
        return self.c[-1] == 1.0 and self.b[-1] == 0.0 and self.a[-1] == self.b[:-1]


EULER = Tableau(1, (0.0,), ((),), (1.0,))
HEUN = Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5), b_error=(-0.5, 0.5))
RK4 = Tableau(
    4, (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
)
# Dormand & Prince (1980), J. Comput. Appl. Math. 6, table 2; dense output of Shampine (1986), Math. Comp. 46,
# with theta's powers collected.
DOPRI5 = Tableau(
    order=5,
    c=(0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0),
    a=(
        (),
        (1 / 5,),
        (3 / 40, 9 / 40),
        (44 / 45, -56 / 15, 32 / 9),
        (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
        (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
    ),
    b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
    b_error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    dense=(
        (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
        (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
        (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
        (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
        (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
    ),
)


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
        k = stages(self.tableau, problem, t, t_next, x, first=state)
        error = combine(torch.zeros_like(x), h, self.tableau.b_error, k) if self.tableau.b_error else None
        return Step(combine(x, h, self.tableau.b, k), error, k[-1] if self.tableau.fsal else None)


class Euler(RungeKutta):
    r"""Euler's method, order 1, one evaluation a step.

    .. math:: x_{next} = x + h\,f(t, x)

    References:
        Hairer, Norsett & Wanner (1993), Solving ODEs I, section I.7.
    """

    orders = Orders(ode=1)

    def __init__(self) -> None:
        super().__init__(EULER)


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
        ValueError: If a tolerance is not positive, or the tableau has no error weights.
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
        if not (max_nfe >= 1 and 0 <= min_step < 1):
            raise ValueError(
                f"max_nfe={max_nfe}, min_step={min_step}: give max_nfe >= 1 and 0 <= min_step < 1"
            )
        self.rtol, self.atol = check_tolerances(rtol, atol)
        self.tableau, self.max_nfe, self.min_step = tableau, max_nfe, min_step
        self.orders = Orders(ode=tableau.order)

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        from .adapt import adapt
        from .coordinates import in_gaussian_coordinates

        return in_gaussian_coordinates(problem, x, request, lambda p, y, r: adapt(self, p, y, r))

    def __repr__(self) -> str:
        return f"{self.name}(rtol={self.rtol:g}, atol={self.atol:g})"


class Dopri5(AdaptiveRungeKutta):
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
        >>> sol = solvers.solve(problem, torch.ones(1, 1), t=(0.0, 1.0), solver=Dopri5(rtol=1e-8, atol=1e-8))
        >>> round(float(sol.x), 7)
        0.3678795
    """

    orders = Orders(ode=5)

    def __init__(
        self, rtol: float = 1e-5, atol: float = 1e-5, max_nfe: int = 20_000, min_step: float = 1e-9
    ) -> None:
        super().__init__(DOPRI5, rtol, atol, max_nfe, min_step)
