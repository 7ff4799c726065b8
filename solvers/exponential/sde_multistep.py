r"""Multistep exponential methods for the reverse SDE: DPM-Solver++ SDE and SA-Solver."""

from __future__ import annotations

from typing import Literal

from ..solver import Orders
from .adams import DPMSolverPP2M, DPMSolverPP3M, LogSNR
from .integrals import moments


class DPMSolverPP2MSDE(DPMSolverPP2M):
    r"""DPM-Solver++(2M) SDE: :class:`DPMSolverPP2M` with eta = 1 where none is asked for.

    With :math:`h = \lambda_s - \lambda_t`, :math:`\rho = 1 + \eta^2` and h' the step before, from t',

    .. math:: x_s = \frac{\sigma_s}{\sigma_t}e^{-\eta^2h}x_t + \alpha_s(1-e^{-\rho h})
              \left[D_t + \frac{h}{2h'}(D_t - D_{t'})\right] + \sigma_s\sqrt{1-e^{-2\eta^2h}}\,z .

    The noise has the exact variance of the SDE's own integral over the step, so with an exact denoiser of
    point data every step has the exact law. eta(t) is taken at the start of a step: since every eta has the
    same marginals, that costs nothing in law. ODE order 2, strong order 1, weak order 2; one evaluation a
    step.

    k-diffusion's eta is our eta^2, and diffusers' "sde-dpmsolver++" is eta = 1; their "heun" variant, with
    the exact first moment in place of half of the zeroth, is ``SASolver(2, 0)``.

    Args:
        caution: See :class:`Multistep`; inf keeps the full order on every grid.
        lower_final: Take the last step at order 1, as published below 15 steps.

    References:
        Lu et al. (2022), arXiv 2211.01095, the section on diffusion SDEs (SDE-DPM-Solver++(2M), at eta = 1);
        any eta in k-diffusion's `sample_dpmpp_2m_sde`.

    Example:
        >>> import solvers
        >>> solvers.get("dpm++2m-sde").default_eta
        1.0
    """

    default_eta = 1.0


class DPMSolverPP3MSDE(DPMSolverPP3M):
    r"""DPM-Solver++(3M) SDE: :class:`DPMSolverPP3M` with eta = 1 where none is asked for.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t}e^{-\eta^2h}x_t + \alpha_s[M_0 D_t + M_1 D^{(1)} + M_2 D^{(2)}]
              + \sigma_s\sqrt{1-e^{-2\eta^2h}}\,z

    with the Newton form :math:`D_t + D^{(1)}u + D^{(2)}u^2` of the parabola through the last three values and
    the exact moments :math:`M_j = \int_0^1 \rho h\,e^{-\rho h(1-u)}u^j\,du`, :math:`\rho = 1+\eta^2`.

    k-diffusion's code has half of M_2, which makes it order 2 at eta = 0 (``published=True`` is that method
    but for the second step, which it takes with the exact M_1 and this class as DPM-Solver++(2M)); diffusers'
    third-order "sde-dpmsolver++" has the wrong sign in it besides, :math:`M_2/2 - 1` in place of :math:`M_2`,
    which leaves order 1 only. ODE order 3, strong order 1, weak order 2: of noise, the values at past steps
    tell nothing of a third order. One evaluation a step.

    Args:
        caution: See :class:`Multistep`; inf keeps the full order on every grid.
        lower_final: Take the last steps at orders 2 and 1, as published below 15 steps.
        published: k-diffusion's coefficients.

    References:
        Lu et al. (2022), arXiv 2211.01095, at eta = 0; eta > 0 is in k-diffusion only (`sample_dpmpp_3m_sde`,
        whose eta is our eta^2).
    """

    default_eta = 1.0


class SASolver(LogSNR):
    r"""SA-Solver: stochastic Adams, a predictor of order p and a corrector of q nodes, for any eta(t).

    .. math:: x_s = \frac{\sigma_s}{\sigma_t}e^{-\eta^2h}x_t
              + \alpha_s\int_{\lambda_t}^{\lambda_s}\rho\,e^{-\rho(\lambda_s-\lambda)}P(\lambda)\,d\lambda
              + \sigma_s\sqrt{1-e^{-2\eta^2h}}\,z, \qquad \rho = 1 + \eta^2

    The predictor's P goes through the last p values of D, the corrector's through the q newest with the one
    at the predicted :math:`x_s`; both have the same z. The corrector costs no evaluation: it uses the next
    step's, so the end of a solve is not corrected. Weights are exact on any grid. The paper's tau is our eta,
    taken at the start of a step; that of the authors' code, 1 in the middle of the interval and 0 outside, is
    an eta(t) to give to the problem. At eta = 0 it is exponential Adams-Bashforth-Moulton, UniPC of order p
    where q = p + 1.

    ODE order min(q, p + 1, 3), without a corrector min(p, 2): the first step, begun at order 1, allows no
    more. Strong order 1; weak order that of the ODE, at most 2.

    Args:
        predictor_order: p, 1 to 4 (diffusers has 2 and 2 where none are given).
        corrector_order: q, 0 (no corrector) to 4.
        variant: "exact"; or "flat", as the authors' code has it where two values are combined: the slope
            of P is weighted by 1 in place of the exponential (in moments, :math:`M_1 = \rho h/2`, UniPC's
            bh1), O(h^3) away and of the same order.
        caution: See :class:`Multistep`; inf keeps the full order on every grid.
        lower_final: Take the last steps at falling orders, as the authors' code.

    Raises:
        ValueError: If an argument is not one of these.

    References:
        Xue et al. (2023), arXiv 2309.05019, section 5 (predictor and corrector), algorithm 1.

    Example:
        >>> SASolver(predictor_order=3, corrector_order=4)
        SASolver(predictor_order=3, corrector_order=4)
    """

    stochastic = True
    default_eta = 1.0

    def __init__(
        self,
        predictor_order: int = 3,
        corrector_order: int = 3,
        variant: Literal["exact", "flat"] = "exact",
        caution: float = 1.25,
        lower_final: bool = False,
    ) -> None:
        if corrector_order not in (0, 1, 2, 3, 4) or predictor_order not in (1, 2, 3, 4):
            raise ValueError(
                f"predictor_order={predictor_order!r}, corrector_order={corrector_order!r}: give a whole "
                "number from 1 to 4, and one from 0 (no corrector) to 4"
            )
        if variant not in ("exact", "flat"):
            raise ValueError(f'variant={variant!r} is not known: give "exact" or "flat"')
        super().__init__(predictor_order, "data", "all" if corrector_order else "none", caution, lower_final)
        self.nodes, self.variant = corrector_order, variant
        order = min(corrector_order, predictor_order + 1, 3) if corrector_order else min(predictor_order, 2)
        self.orders = Orders(ode=order, strong=1, weak=min(order, 2))

    def corrector_nodes(self, used: int, known: int, left: int) -> int:
        if used < min(self.terms, known, left if self.lower_final else known):  # lowered by caution
            return min(self.nodes, used + 1)
        return min(self.nodes, known + 1, left + 1 if self.lower_final else self.nodes)

    def moments(self, z: float, count: int) -> list[float]:
        exact = moments(z, count)
        return [exact[0], 0.5 * z] if count == 2 and self.variant == "flat" else exact

    def __repr__(self) -> str:
        return f"{self.name}(predictor_order={self.terms}, corrector_order={self.nodes})"
