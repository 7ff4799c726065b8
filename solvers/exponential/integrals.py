r"""Integrals of an exponential times a polynomial: the coefficients of every exponential method.

With :math:`\lambda = \log(\alpha/\sigma)` the flow from t to s has two exact forms, of one pattern,

.. math:: x_s = \frac{\sigma_s}{\sigma_t} x_t + \alpha_s \int k e^{-k(\lambda_s-\lambda)} D\,d\lambda
          \quad (k = 1), \qquad
          x_s = \frac{\alpha_s}{\alpha_t} x_t + \sigma_s \int k e^{-k(\lambda_s-\lambda)} \epsilon\,d\lambda
          \quad (k = -1),

over :math:`\lambda_t \ldots \lambda_s` (Lu et al. 2022, arXiv 2211.01095, Eq. 8, and arXiv 2206.00927,
Eq. 3.4). The SDE of noise level eta has the first one with rate k = 1 + eta^2, x_t damped by
:math:`e^{-\eta^2 h}` more, and noise. What is approximated, D or eps, becomes a polynomial through its
values at some nodes, and the integral a sum of those values with weights. All is Python floats: a step's
weights cost a few microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from ..problems import Coefficients, SemiLinear


class Linear(NamedTuple):
    """The exact part of a step: ``x_s = keep x_t + scale * sum(w * values)``, w the weights of its rate."""

    keep: float
    scale: float
    rate: float
    #: Standard deviation of the noise that the step adds.
    noise: float = 0.0


def data_form(now: Coefficients, after: Coefficients, eta: float = 0.0) -> Linear:
    """The step whose values are D, at any noise level."""
    if not eta:
        return Linear(after.sigma / now.sigma, after.alpha, 1.0)
    return damped(now, after, eta**2 * (after.lam - now.lam), 1 + eta**2)


def damped(now: Coefficients, after: Coefficients, decay: float, rate: float) -> Linear:
    r"""The step whose values are D and in which :math:`e^{-decay}` of the old noise survives."""
    keep = after.sigma / now.sigma * math.exp(-decay)
    return Linear(keep, after.alpha, rate, after.sigma * math.sqrt(-math.expm1(-2 * decay)))


def noise_form(now: Coefficients, after: Coefficients) -> Linear:
    """The step whose values are eps, at eta = 0; alpha at its start must not vanish."""
    return Linear(after.alpha / now.alpha, after.sigma, -1.0)


def first_weight(line: Linear, now: Coefficients, after: Coefficients) -> float:
    """The weight of the one value of a first-order step, scale included; finite where lam is not."""
    if line.rate > 0:
        return after.alpha - now.alpha * line.keep
    return after.sigma - now.sigma * line.keep


def moments(z: float, count: int) -> list[float]:
    r"""``M_j = z * integral over (0, 1) of e^{-z (1 - u)} u^j du`` for j < count.

    They are :math:`j!\,z\,\varphi_{j+1}(-z)` and obey :math:`M_j = 1 - (j/z) M_{j-1}`, with
    :math:`M_0 = 1 - e^{-z}`: used upwards where z is large; where it is small, downwards from a series whose
    terms are of one sign, so that nothing cancels.

    Args:
        z: Rate times step of lam; either sign, infinity included.
        count: How many.

    Example:
        >>> [round(m, 6) for m in moments(1.0, 3)]
        [0.632121, 0.367879, 0.264241]
    """
    if abs(z) > count:
        out = [-math.expm1(-z)]
        for j in range(1, count):
            out.append(1.0 - j / z * out[-1])
        return out
    top = count - 1
    term = total = 1.0 / (top + 1)
    # e^{-z} sum z^m / (m! (m+j+1)) for z > 0; sum (-z)^m j!/(j+m+1)! for z < 0.
    m = 0
    while abs(term) > 1e-17 * total:
        m += 1
        term *= z / m * (top + m) / (top + m + 1) if z > 0 else -z / (top + m + 1)
        total += term
    value = z * total * (math.exp(-z) if z > 0 else 1.0)
    out = [value]
    for j in range(top, 0, -1):
        value = z / j * (1.0 - value)
        out.append(value)
    return out[::-1]


def interpolation_weights(nodes: Sequence[float], moments: Sequence[float]) -> list[float]:
    """The weights w with ``sum(w_i nodes_i^j) = moments_j``: a functional, known on monomials, as a sum.

    Björck & Pereyra (1970), Math. Comp. 24, 893-903; Golub & Van Loan, Matrix Computations, algorithm 4.6.2.

    Args:
        nodes: Different numbers.
        moments: As many.

    Example:
        >>> interpolation_weights([0.0, -1.0], [1.0, 0.5])  # Adams and Bashforth's
        [1.5, -0.5]
    """
    w, n = list(moments), len(nodes)
    for k in range(n - 1):
        for i in range(n - 1, k, -1):
            w[i] -= nodes[k] * w[i - 1]
    for k in range(n - 2, -1, -1):
        for i in range(k + 1, n):
            w[i] /= nodes[i] - nodes[i - k - 1]
        for i in range(k, n - 1):
            w[i] -= w[i + 1]
    return w


def polynomial_weights(rate: float, start: float, end: float, nodes: Sequence[float]) -> list[float]:
    r"""The weights w of ``integral from start to end of rate e^{-rate (end - lam)} p(lam) dlam``.

    Exact, as ``sum(w_i p(nodes_i))``, for every polynomial p of degree < len(nodes).

    Args:
        rate: The k of this module's formulas.
        start: lam at the start of the step.
        end: lam at its end.
        nodes: lam where p is known, all different; often `start` and earlier ones.

    Example:
        >>> weights = polynomial_weights(1.0, 0.0, 0.5, [0.0, -0.5])
        >>> round(sum(weights), 6)  # of the constant 1
        0.393469
    """
    h = end - start
    return interpolation_weights([(lam - start) / h for lam in nodes], moments(rate * h, len(nodes)))


_NO_STATE = torch.empty(0)  # coefficients at a float do not look at the state


def schedule(problem: SemiLinear, times: Sequence[float]) -> list[Coefficients]:
    """The coefficients at these times, as Python floats."""
    return [problem.at(t, _NO_STATE) for t in times]
