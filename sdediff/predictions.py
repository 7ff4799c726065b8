r"""What networks predict, and every conversion between predictions: once, here.

A prediction is a linear combination of data and noise, :math:`F = p\,x_0 + q\,\epsilon`, with p and q
functions of time. Together with :math:`x_t = \alpha x_0 + \sigma\epsilon` it determines both, so any other
combination :math:`P x_0 + Q \epsilon` (a view: the score, the denoiser, the velocity ...) is again linear in
what the network was given and what it returned:

.. math:: P x_0 + Q\epsilon = \frac{(Q p - P q)\,x_t + (P\sigma - Q\alpha)\,F}{p\,\sigma - q\,\alpha}
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .processes import GaussianProcess


class Marginal(NamedTuple):
    """The schedule at some times: float64 tensors of one shape."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor

    @classmethod
    def at(cls, process: GaussianProcess, t: Tensor) -> Marginal:
        """The process's schedule at times t."""
        return cls(process.alpha(t), process.sigma(t), process.d_alpha(t), process.d_sigma(t))

    @property
    def norm(self) -> Tensor:
        """``sqrt(alpha^2 + sigma^2)``: the standard deviation of x_t for data of unit variance."""
        return torch.hypot(self.alpha, self.sigma)


#: A combination (P, Q) of data and noise at given times.
Combination = Callable[[Marginal], tuple[Tensor, Tensor]]


def _ones(m: Marginal) -> Tensor:
    return torch.ones_like(m.alpha)


def _zeros(m: Marginal) -> Tensor:
    return torch.zeros_like(m.alpha)


#: name -> (p, q). v: Salimans & Ho (2022), arXiv 2202.00512, Eq. 12 (v = alpha eps - sigma x). velocity: d
#: x_t/dt along a path, Lipman et al. (2022), arXiv 2210.02747, Eq. 15, conditional on (x0, eps). edm: the
#: target of Karras et al. (2022), arXiv 2206.00364, Eq. 8 with sigma_data = 1, which in our symbols is (sigma
#: x0 - alpha eps)/sqrt(alpha^2 + sigma^2).
PREDICTIONS: dict[str, Combination] = {
    "eps": lambda m: (_zeros(m), _ones(m)),
    "x0": lambda m: (_ones(m), _zeros(m)),
    "score": lambda m: (_zeros(m), -1 / m.sigma),
    "v": lambda m: (-m.sigma, m.alpha),
    "velocity": lambda m: (m.d_alpha, m.d_sigma),
    "edm": lambda m: (m.sigma / m.norm, -m.alpha / m.norm),
}


def check_prediction(name: str, network: object) -> str:
    """Return a known prediction's name, raise ValueError for another or for one the network cannot serve."""
    if name not in PREDICTIONS:
        raise ValueError(f"prediction={name!r} is not known: take one of {', '.join(PREDICTIONS)}")
    needed = getattr(network, "needs_prediction", name)  # as networks.Whitened has it
    if name != needed:
        raise ValueError(
            f"a {type(network).__name__} network needs prediction={needed!r} and was given "
            f"prediction={name!r}: give the one it needs, or another network"
        )
    return name


def convert(m: Marginal, prediction: str, view: Combination) -> tuple[Tensor, Tensor]:
    """Coefficients (a, b) such that ``view = a x_t + b F``, float64, of the shape of the marginal's times."""
    p, q = PREDICTIONS[prediction](m)
    view_p, view_q = view(m)
    scale = p * m.sigma - q * m.alpha
    return (view_q * p - view_p * q) / scale, (view_p * m.sigma - view_q * m.alpha) / scale
