r"""Multistep methods in log-SNR: exponential Adams-Bashforth, DPM-Solver++ multistep, UniPC."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from ..noise import Noise
from ..problems import Coefficients, Problem, SemiLinear
from ..solver import Orders, Step, StepSolver
from .integrals import moments
from .multistep import Corrected, Multistep, Prediction, Rule


class LogSNR(Multistep):
    """A multistep method whose polynomials are in lam; a subclass may approximate their moments."""

    def rule(self, problem: SemiLinear, times: tuple[float, ...], grid: list[Coefficients]) -> Rule:
        return Rule([c.lam for c in grid], lambda k, z, count: self.moments(z, count))

    def moments(self, z: float, count: int) -> list[float]:
        """Moments of a step over ``z = rate * h``; exact here."""
        return moments(z, count)


class ExponentialAdamsBashforth(LogSNR):
    r"""Exponential Adams-Bashforth of any order in log-SNR, with exact coefficients on any grid.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t}x_t + \alpha_s\int_{\lambda_t}^{\lambda_s}
              e^{\lambda-\lambda_s} P(\lambda)\,d\lambda

    with P the polynomial of degree order - 1 through the last values of D ("data"); for eps ("noise")
    likewise, from the noise form of `integrals`. Exact where D (or eps) is such a polynomial. One evaluation
    a step.

    Begun with steps of order 1, 2, ..., any multistep method is of order 2 in all: the first step errs by
    O(h^2). Here those steps are corrected, free of evaluations, which gives order 3 from `order` 3 on. For
    more, let a one-step method begin: with a `starter` of order q the order is min(order, q + 1). It takes
    the first order - 1 steps, at its own evaluations and one more.

    Args:
        order: Values that the polynomial goes through, 1 to 8.
        prediction: "data" or "noise".
        starter: A one-step ODE solver of the first steps, such as ``RungeKutta4()``.
        corrected: "start" or, for published multistep methods as they are, "none"; "all" adds UniPC's
            corrector.
        caution: See :class:`Multistep`; inf keeps the full order on every grid.
        lower_final: Fall to order 1 at the end.

    Raises:
        ValueError: If an argument is not one of these.
        TypeError: If the starter is itself a multistep method or adaptive.

    References:
        Hochbruck & Ostermann (2010), Acta Numerica 19, 209-286, exponential multistep methods, here in lam;
        Zhang & Chen (2022), arXiv 2204.13902, log-rho AB; Zhao et al. (2023), arXiv 2302.04867 (their
        UniP-p for p = 3 and more).

    Example:
        >>> import solvers
        >>> solvers.get("exponential-ab", order=4, prediction="noise")
        ExponentialAdamsBashforth(order=4)
    """

    def __init__(
        self,
        order: int = 3,
        prediction: Prediction = "data",
        starter: StepSolver | None = None,
        corrected: Corrected = "start",
        caution: float = 1.25,
        lower_final: bool = False,
    ) -> None:
        super().__init__(order, prediction, corrected, caution, lower_final)
        if starter is not None and (
            not isinstance(starter, StepSolver) or starter.multistep or not starter.orders.ode
        ):
            raise TypeError(f"starter={starter!r} is no one-step ODE solver: give one, such as RungeKutta4()")
        self.starter = starter
        begun = 2.0 if corrected == "none" else 3.0
        if starter is not None and starter.orders.ode:
            begun = starter.orders.ode + 1
        self.orders = Orders(ode=min(order + (corrected == "all"), begun))

    def stage_times(self, t: float, t_next: float) -> tuple[float, ...]:
        return (t, t_next) if self.starter is None else (t, *self.starter.stage_times(t, t_next), t_next)

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        state = self.begin(problem, (t, t_next)) if state is None else state
        done = super().step(problem, t, t_next, x, state, noise)
        if self.starter is None or not state.plan[state.k].starting:
            return done
        begun = self.starter.step(problem, t, t_next, x, None, noise)
        return Step(begun.x, None, self.moved(done.state))


class DPMSolverPP2M(LogSNR):
    r"""DPM-Solver++(2M): second-order multistep data prediction, one evaluation a step, ODE order 2.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t}x_t + \alpha_s(1-e^{-h})
              \left[\left(1+\tfrac1{2r}\right)D_t - \tfrac1{2r}D_{t'}\right], \qquad r = h'/h

    with h' the step of lam from t' to t. It is exponential Adams-Bashforth of order 2 with the first moment
    of the exponential, :math:`1-(1-e^{-h})/h`, taken as :math:`\tfrac12(1-e^{-h})`. At a noise level eta > 0
    it is the multistep method of the SDE (:class:`DPMSolverPP2MSDE` has the formula), of strong order 1 and
    weak order 2.

    Args:
        caution: See :class:`Multistep`; inf keeps the full order on every grid.
        lower_final: Take the last step at order 1, as published below 15 steps.

    References:
        Lu et al. (2022), arXiv 2211.01095, algorithm 2.
    """

    orders = Orders(ode=2, strong=1, weak=2)
    stochastic = True
    count = 2

    def __init__(
        self, caution: float = 1.25, lower_final: bool = False, *, corrected: Corrected = "none"
    ) -> None:
        super().__init__(self.count, "data", corrected, caution, lower_final)

    def moments(self, z: float, count: int) -> list[float]:
        exact = moments(z, count)
        return [exact[0], 0.5 * exact[0]] if count == 2 else exact

    def __repr__(self) -> str:
        return f"{self.name}()"


class DPMSolverPP3M(DPMSolverPP2M):
    r"""DPM-Solver++(3M): third-order multistep data prediction, one evaluation a step, ODE order 3.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t}x_t + \alpha_s[M_0 D_t + M_1 D^{(1)} + M_2 D^{(2)}]

    with the Newton form :math:`D_t + D^{(1)}u + D^{(2)}u^2` of the parabola through the last three values,
    :math:`u = (\lambda-\lambda_t)/h`, and M the exact moments of `integrals`.

    The published code has half of M_2 (its :math:`\varphi_3` multiplies a second *divided difference*, where
    the Taylor series has half of the second derivative) and begins uncorrected; either makes it order 2.
    ``published=True`` is that method.

    Args:
        caution: See :class:`Multistep`; inf keeps the full order on every grid.
        lower_final: Take the last steps at orders 2 and 1, as published below 15 steps.
        published: The coefficients of the authors' code, of diffusers and of k-diffusion.

    References:
        Lu et al. (2022), arXiv 2211.01095, proposition 4.1; the multistep formula is in the authors' code
        only (github.com/LuChengTHU/dpm-solver, `multistep_dpm_solver_third_update`).
    """

    count = 3

    def __init__(self, caution: float = 1.25, lower_final: bool = False, published: bool = False) -> None:
        super().__init__(caution, lower_final, corrected="none" if published else "start")
        self.published = published
        self.orders = Orders(ode=2 if published else 3, strong=1, weak=2)

    def moments(self, z: float, count: int) -> list[float]:
        m = super().moments(z, count)
        return [m[0], m[1], 0.5 * m[2]] if count == 3 and self.published else m

    def __repr__(self) -> str:
        return f"{self.name}(published=True)" if self.published else f"{self.name}()"


class UniPC(LogSNR):
    r"""UniPC: multistep prediction, corrected by the evaluation that the next step makes anyway.

    The predictor UniP-p is exponential Adams-Bashforth of order p, the corrector UniC-p the same with
    :math:`x_s` as one more node. Where two nodes meet, their equation for one weight is replaced by
    :math:`M_1 = B(h)/2`, with :math:`B = h` ("bh1") or :math:`B = 1-e^{-h}` ("bh2"): in the predictor of
    order 2 and the corrector of order 1; elsewhere the exact system is solved, from which B drops out.

    One evaluation a step; the last step is not corrected, since nothing is evaluated at its end. ODE order p
    + 1 for p = 1, 2. From p = 3 on it would be p + 1 too, were it not for the first step: begun at order 1
    and corrected, that errs by O(h^3), so the order of a whole solve is 3.

    Args:
        order: p of UniPC-p, 1 to 8.
        variant: "bh2" or "bh1"; the first is the authors' choice but for few unconditional steps.
        prediction: "data" or "noise".
        caution: See :class:`Multistep`; inf keeps the full order on every grid.
        lower_final: Take the last steps at falling orders, as the published samplers do at any length.

    Raises:
        ValueError: If an argument is not one of these.

    References:
        Zhao et al. (2023), arXiv 2302.04867, algorithms 1 (UniC) and 2 (UniP), theorem 3.1.

    Example:
        >>> UniPC(order=2, variant="bh1")
        UniPC(order=2, variant='bh1')
    """

    def __init__(
        self,
        order: int = 3,
        variant: Literal["bh1", "bh2"] = "bh2",
        prediction: Prediction = "data",
        caution: float = 1.25,
        lower_final: bool = False,
    ) -> None:
        super().__init__(order, prediction, "all", caution, lower_final)
        if variant not in ("bh1", "bh2"):
            raise ValueError(f'variant={variant!r} is not known: give "bh1" or "bh2"')
        self.variant = variant
        self.orders = Orders(ode=min(order + 1, 3))

    def moments(self, z: float, count: int) -> list[float]:
        exact = moments(z, count)
        if count != 2:
            return exact
        return [exact[0], 0.5 * (exact[0] if self.variant == "bh2" else z)]

    def __repr__(self) -> str:
        return f"{self.name}(order={self.terms}, variant={self.variant!r})"
