r"""Singlestep exponential methods for the reverse SDE: SEEDS, and DPM-Solver++ SDE."""

from __future__ import annotations

import math
from itertools import pairwise

from ..problems import Coefficients
from ..solver import Orders
from .integrals import Linear, data_form, interpolation_weights, moments
from .singlestep import DPMSolverPP2S, DPMSolverPP3S


class SEEDS2(DPMSolverPP2S):
    r"""SEEDS-2: :class:`DPMSolverPP2S` with eta = 1 where none is asked for.

    With r halfway from t to s in lam, :math:`h = \lambda_s-\lambda_t`, :math:`\rho = 1+\eta^2` and
    :math:`q = e^{-\eta^2h/2}`,

    .. math::
        u &= \frac{\sigma_r}{\sigma_t}q\,x_t + \alpha_r(1-e^{-\rho h/2})\,D(t, x_t) + \sigma_r\nu_1,
        \qquad \nu_1 = \sqrt{1-q^2}\,z_1 \\
        x_s &= \frac{\sigma_s}{\sigma_t}q^2\,x_t + \alpha_s(1-e^{-\rho h})\,D(r, u) + \sigma_s\nu_2,
        \qquad \nu_2 = q\,\nu_1 + \sqrt{1-q^2}\,z_2

    Both noises have the exact law of the SDE's own, jointly: z_1 and z_2 are the normals of the Brownian
    increments before r and after. Two evaluations and two normals a step; ODE order 2, strong order 1, weak
    order 2. eta(t) is taken at the start of a step.

    References:
        Gonzalez et al. (2023), arXiv 2305.14267, SEEDS-2 with c_2 = 1/2 in the data form, at eta = 1. Their
        published code weighs :math:`\nu_1` by :math:`\sqrt{1-e^{-2(1-c_2)h}}\,e^{-c_2h}`, which is right for
        c_2 = 1/2 only.

    Example:
        >>> import solvers
        >>> solvers.get("seeds-2").default_eta
        1.0
    """

    default_eta = 1.0


class SEEDS3(DPMSolverPP3S):
    r"""SEEDS-3: three stages, with eta = 1 where none is asked for.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t}e^{-\eta^2h}x_t
              + \alpha_s\int_{\lambda_t}^{\lambda_s}\rho\,e^{-\rho(\lambda_s-\lambda)}P(\lambda)\,d\lambda
              + \sigma_s\nu_3, \qquad \rho = 1+\eta^2

    with P the parabola through the values D_0, D_1, D_2 at fractions 0, 1/3, 2/3 of the step of lam, each
    taken where the polynomial through those before it leads, and noise passed on from stage to stage,
    :math:`\nu_{i+1} = q\nu_i + \sqrt{1-q^2}\,z_{i+1}`, :math:`q = e^{-\eta^2h/3}`: the exact joint law. (It
    is :class:`DPMSolverPP3S` with the parabola in place of the line through D_0 and D_2, which is as good to
    third order; exact where D is a parabola in lam.) Three evaluations and three normals a step; ODE order 3,
    strong order 1, weak order 2. eta(t) is taken at the start of a step.

    References:
        Gonzalez et al. (2023), arXiv 2305.14267, SEEDS-3 with c_2 = 1/3, c_3 = 2/3 in the data form, at eta =
        1 (of the two sets of weights of their published code, "3b"). There the third stage's
        :math:`\varphi_2` has 2 c_2 h divided by c_2 h and so tends to -1 where it must vanish, which leaves
        order 1.
    """

    orders = Orders(ode=3, strong=1, weak=2)
    stochastic = True
    default_eta = 1.0

    def _line(
        self, i: int, now: Coefficients, here: Coefficients, after: Coefficients, line: Linear, halved: bool
    ) -> list[tuple[int, float]]:
        end = (*self.fractions, 1.0)[i + 1]
        m = moments(line.rate * (after.lam - now.lam), i + 1)
        weights = interpolation_weights([node / end for node in self.fractions[: i + 1]], m)
        return [(j, line.scale * weight) for j, weight in enumerate(weights)]


class DPMSolverPPSDE(SEEDS2):
    r"""DPM-Solver++ SDE, singlestep: :class:`SEEDS2` but for the noise at the end of a step.

    .. math:: x_s = \frac{\sigma_s}{\sigma_t}e^{-\eta^2h}x_t + \alpha_s(1-e^{-\rho h})\,D(r, u)
              + \sigma_s\sqrt{1-e^{-2\eta^2h}}\,z

    z being the normal of the whole step's Brownian increment, that of its first part among it. The variance
    is exact, the covariance with the noise inside the step is so to leading order. Two evaluations a step;
    ODE order 2, strong order 1, weak order 2.

    References:
        k-diffusion, `sample_dpmpp_sde` with r = 1/2, and diffusers' DPMSolverSDEScheduler; the same at eta =
        0 and 1, while in between their eta is DDIM's and not this family's.
    """

    def stage_noise(self, i: int, times: tuple[float, ...], points: list[Coefficients]) -> tuple[float, ...]:
        if i + 2 < len(points):
            return super().stage_noise(i, times, points)
        scale = data_form(points[0], points[-1], points[0].eta).noise
        return tuple(scale * math.sqrt((b - a) / (times[-1] - times[0])) for a, b in pairwise(times))
