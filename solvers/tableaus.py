"""Explicit Runge-Kutta methods as data: tableaus, checked against the order conditions when they are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

from .trees import Row, Weights

#: Order up to which a tableau's conditions are checked: 17 trees up to 5, 200 up to 8.
CHECKED = 5


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
            output, or None; the rows of `extra` stages come last.
        b_error_low: A second difference of weights, of lower order. With both the estimate is
            ``e^2/sqrt(e^2 + e_low^2/100)``, as in DOP853.
        extra: Rows of further stages that only the dense output needs, the first after all stages.

    Raises:
        ValueError: If the shapes, the row sums or the order conditions (all rooted trees up to the order,
            at most 5) do not hold.
    """

    order: int
    c: Row
    a: tuple[Row, ...]
    b: Row
    b_error: Row | None = None
    dense: tuple[Row, ...] | None = None
    b_error_low: Row | None = None
    extra: tuple[Row, ...] = field(default=())

    def __post_init__(self) -> None:
        stages, more = len(self.b), len(self.extra)
        if len(self.c) != stages or [len(row) for row in self.a] != list(range(stages)):
            raise ValueError(
                f"a tableau of {stages} stages needs {stages} nodes and rows of 0, 1, ..., {stages - 1} "
                "entries"
            )
        if [len(row) for row in self.extra] != list(range(stages, stages + more)):
            raise ValueError(
                f"extra stages come after the {stages} others: give rows of {stages}, {stages + 1}, ... "
                "entries"
            )
        if not all(_close(sum(row), node) for row, node in zip(self.a, self.c, strict=True)):
            raise ValueError("each row of a tableau must sum to its node c_i")
        weights = Weights((*self.a, *self.extra))
        checked = min(self.order, CHECKED)
        if weights.order(self.b, checked) < checked:
            raise ValueError(f"the weights do not meet the order conditions of order {self.order}")
        self._check_error(weights)
        if self.dense is None:
            return
        if len(self.dense) != stages + more:
            raise ValueError(f"a tableau of {stages + more} stages needs as many dense rows")
        ends = (*self.b, *(0.0,) * more)
        if not all(_close(sum(row), b) for row, b in zip(self.dense, ends, strict=True)):
            raise ValueError("the dense output must end in the solution")

    def _check_error(self, weights: Weights) -> None:
        for error in (self.b_error, self.b_error_low):
            if error is None:
                continue
            if len(error) != len(self.b):
                raise ValueError(f"a tableau of {len(self.b)} stages needs {len(self.b)} error weights")
            if weights.order(error, 1, error=True) < 1:
                raise ValueError("the error weights must sum to 0")

    @property
    def nodes(self) -> Row:
        """Nodes of all stages, the extra ones last."""
        return (*self.c, *(math.fsum(row) for row in self.extra))

    @property
    def fsal(self) -> bool:
        """The last stage is the first of the next step."""
        return self.c[-1] == 1.0 and self.b[-1] == 0.0 and self.a[-1] == self.b[:-1]

    @property
    def dense_order(self) -> int:
        """Order of the dense output, or of the cubic Hermite polynomial that stands in for it."""
        closed = self.closed
        assert closed.dense is not None
        return Weights((*closed.a, *closed.extra)).dense_order(closed.dense, self.order)

    @cached_property
    def closed(self) -> Tableau:
        """The same method with the slope at the step's end as its last stage, and with a dense output.

        Without one of its own that is the cubic Hermite polynomial.
        """
        whole = self
        if not self.fsal:
            dense = None if self.dense is None else (*self.dense, (0.0,) * len(self.dense[0]))
            error, low = (None if e is None else (*e, 0.0) for e in (self.b_error, self.b_error_low))
            c, a, b = (*self.c, 1.0), (*self.a, self.b), (*self.b, 0.0)
            whole = Tableau(self.order, c, a, b, b_error=error, dense=dense, b_error_low=low)
        if whole.dense is not None:
            return whole
        rows = [(0.0, 3 * b, -2 * b) for b in whole.b]
        rows[0] = (1.0, rows[0][1] - 2, rows[0][2] + 1)
        rows[-1] = (0.0, -1.0, 1.0)
        return replace(whole, dense=tuple(rows))


def _close(p: float, q: float) -> bool:
    return math.isclose(p, q, rel_tol=1e-12, abs_tol=1e-12)


EULER = Tableau(1, (0.0,), ((),), (1.0,))
MIDPOINT = Tableau(2, (0.0, 0.5), ((), (0.5,)), (0.0, 1.0), b_error=(-1.0, 1.0))
HEUN = Tableau(2, (0.0, 1.0), ((), (1.0,)), (0.5, 0.5), b_error=(-0.5, 0.5))
# Ralston (1962), Math. Comp. 16, 431-437: the second-order method of the least error bound.
RALSTON = Tableau(2, (0.0, 2 / 3), ((), (2 / 3,)), (1 / 4, 3 / 4), b_error=(-3 / 4, 3 / 4))
RK4 = Tableau(
    4, (0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)
)
# Bogacki & Shampine (1989), Appl. Math. Lett. 2, 321-325.
BOSH3 = Tableau(
    3,
    (0.0, 0.5, 0.75, 1.0),
    ((), (0.5,), (0.0, 0.75), (2 / 9, 1 / 3, 4 / 9)),
    (2 / 9, 1 / 3, 4 / 9, 0.0),
    b_error=(-5 / 72, 1 / 12, 1 / 9, -1 / 8),
)
# Tsitouras (2011), Comput. Math. Appl. 62, 770-775, table 1 and, theta's powers collected, the interpolant of
# section 4. The paper's seventh error weight has the wrong sign: with -1/66 the weights sum to 0.
TSIT5 = Tableau(
    order=5,
    c=(0.0, 0.161, 0.327, 0.9, 0.9800255409045097, 1.0, 1.0),
    a=(
        (),
        (0.161,),
        (-0.008480655492356989, 0.335480655492357),
        (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
        (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
        (5.86145544294642, -12.92096931784711, 8.159367898576159, -0.071584973281401, -0.02826905039406838),
        (
            0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
            2.324710524099774,
        ),
    ),
    b=(
        0.09646076681806523, 0.01, 0.4798896504144996, 1.379008574103742, -3.290069515436081,
        2.324710524099774, 0.0,
    ),
    b_error=(
        0.00178001105222577714, 0.0008164344596567469, -0.007880878010261995, 0.1447110071732629,
        -0.5823571654525552, 0.45808210592918697, -1 / 66,
    ),
    dense=(
        (1.0, -2.763706197274826, 2.9132554618219126, -1.0530884977290216),
        (0.0, 0.1317, -0.2234, 0.1017),
        (0.0, 3.9302962368947516, -5.941033872131505, 2.490627285651253),
        (0.0, -12.411077166933676, 30.33818863028232, -16.548102889244902),
        (0.0, 37.50931341651104, -88.1789048947664, 47.37952196281928),
        (0.0, -27.896526289197286, 65.09189467479366, -34.87065786149661),
        (0.0, 1.5, -4.0, 2.5),
    ),
)  # fmt: skip
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
