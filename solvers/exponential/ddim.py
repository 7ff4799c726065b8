r"""The exponential Euler step, for the ODE and for every eta."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..noise import Noise
from ..problems import Problem, SemiLinear
from ..solver import Orders, Step, StepSolver


class DDIM(StepSolver):
    r"""The exponential Euler step, for any eta: DDIM at eta = 0, the DDPM posterior at eta = 1.

    With :math:`h = \lambda_s - \lambda_t > 0` from t to s and :math:`a = (\sigma_s/\sigma_t)\,e^{-\eta^2 h}`,

    .. math:: x_s = a\,x_t + (\alpha_s - \alpha_t a)\,D(t, x_t) + \sigma_s\sqrt{1 - e^{-2\eta^2 h}}\,z .

    Exact when the denoiser is constant along the step. ODE order 1 at eta = 0; strong and weak order 1
    otherwise. One evaluation a step. eta here is the SDE family's: at eta = 1 the step is the ancestral step
    whatever its size, and equals DDIM's own eta = 1; between 0 and 1 the two interpolate differently.

    References:
        Song, Meng & Ermon (2021), arXiv 2010.02502, Eq. 12 (their alpha is our alpha^2); Lu et al. (2022),
        arXiv 2211.01095, Eq. 9 at first order; Ho, Jain & Abbeel (2020), arXiv 2006.11239, Eq. 7.

    Raises:
        TypeError: On a problem that is not SemiLinear.
    """

    orders = Orders(ode=1, strong=1, weak=1)
    stochastic = True
    needs_linear_part = True
    default_steps = 100

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        assert isinstance(problem, SemiLinear)
        now, after = problem.at(t, x), problem.at(t_next, x)
        decay = now.eta**2 * (after.lam - now.lam) if now.eta else 0.0
        keep = after.sigma / now.sigma * math.exp(-decay)
        # alpha_s - alpha_t a, not alpha_s (1 - e^-h): finite where alpha_s = 0.
        x_next = problem.blend(t, x, keep, after.alpha - now.alpha * keep)
        if now.eta:
            x_next = torch.add(x_next, noise.normal(), alpha=after.sigma * math.sqrt(-math.expm1(-2 * decay)))
        return Step(x_next)


class Ancestral(DDIM):
    """The stochastic exponential step, the discrete chain's ancestral sampling: :class:`DDIM` with eta = 1.

    References:
        Ho, Jain & Abbeel (2020), arXiv 2006.11239, Eqs. 6-7 and algorithm 2, with the posterior variance.
    """

    default_steps = 500
    default_eta = 1.0
