r"""Weightings of the denoising loss over noise levels.

Whatever the network predicts, its error :math:`F - F^*`, the denoiser's and the noise estimate's are one
error in different units: with :math:`D = c_{skip} z_t + c_{out} F` and :math:`\hat\epsilon = (z_t - \alpha
D)/\sigma`,

.. math:: \epsilon - \hat\epsilon = \frac{\alpha}{\sigma}(D - z_0) = \frac{\alpha\,c_{out}}{\sigma}(F - F^*)

so a weighting states its weight on :math:`|\epsilon - \hat\epsilon|^2` as a function of process and time, and
the weight on the network's own error follows (:func:`network_weight`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sdediff.processes import GaussianProcess

if TYPE_CHECKING:
    from sdediff.model import DiffusionModel

#: A weighting: (process, t) -> weight on the squared error of the noise estimate, of t's shape.
Weighting = Callable[[GaussianProcess, Tensor], Tensor]


@dataclass(frozen=True)
class Native:
    """Weight 1 on the network's own squared error; on the noise error it depends on the prediction."""


@dataclass(frozen=True)
class Balanced:
    """An error of about unit size at every noise level: the default.

    The network's own error where its target has unit size throughout (eps, x0, v, edm); where it has not
    (score, velocity), the noise estimate's.
    """


@dataclass(frozen=True)
class Eps:
    r"""Weight 1 on :math:`|\epsilon-\hat\epsilon|^2`, that is :math:`\sigma^2` on the score error.

    Source: Ho et al. 2020, arXiv 2006.11239, Eq. 14.

    Example:
        >>> from sdediff.processes import VP
        >>> float(Eps()(VP(), torch.tensor(0.5)))
        1.0
    """

    def __call__(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Weight on the squared error of the noise estimate."""
        return torch.ones_like(t)


@dataclass(frozen=True)
class X0:
    r"""Weight 1 on :math:`|z_0-D|^2`, that is :math:`\sigma^2/\alpha^2` on the noise error.

    Example:
        >>> from sdediff.processes import EDM
        >>> float(X0()(EDM(), torch.tensor(3.0)))
        9.0
    """

    def __call__(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Weight on the squared error of the noise estimate."""
        return torch.exp(-2 * process.lam(t))


@dataclass(frozen=True)
class Likelihood:
    r"""Weight :math:`g^2` on the score error, :math:`g^2/\sigma^2 = -2\lambda'` on the noise error.

    Half its integral over time bounds the Kullback-Leibler divergence of the reverse SDE's samples (Song et
    al. 2021, arXiv 2101.09258, Eq. 7); in lam it is uniform, which is why
    :class:`~sdediff.training.times.UniformLogSNR` is its proposal.

    Example:
        >>> from sdediff.processes import EDM
        >>> float(Likelihood()(EDM(), torch.tensor(4.0)))
        0.5
    """

    def __call__(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Weight on the squared error of the noise estimate."""
        return -2 * process.d_lam(t)


@dataclass(frozen=True)
class Karras:
    r"""Weight :math:`1+\tilde\sigma^2`, or :math:`(\tilde\sigma^2+1)/\tilde\sigma^2` on the denoiser's error.

    Here :math:`\tilde\sigma = \sigma/\alpha` and sigma_data = 1 (model units). With the "edm" prediction it
    is :class:`Native` (Karras et al. 2022, arXiv 2206.00364, table 1 and Eq. 8).

    Example:
        >>> from sdediff.processes import EDM
        >>> float(Karras()(EDM(), torch.tensor(3.0)))
        10.0
    """

    def __call__(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Weight on the squared error of the noise estimate."""
        return 1 + torch.exp(-2 * process.lam(t))


def noise_error_weight(model: DiffusionModel, t: Tensor) -> Tensor:
    r""":math:`(\alpha c_{out}/\sigma)^2`, the noise estimate's squared error over the network's; like t."""
    c_out = model.coefficients(t)[1]
    return torch.exp(2 * model.process.lam(t)) * torch.as_tensor(c_out, dtype=t.dtype, device=t.device) ** 2


def network_weight(weighting: Weighting | Native | Balanced, model: DiffusionModel, t: Tensor) -> Tensor:
    """The weight on the network's own squared error, of t's shape and dtype."""
    if isinstance(weighting, Balanced):
        weighting = Eps() if model.prediction in ("score", "velocity") else Native()
    if isinstance(weighting, Native):
        return torch.ones_like(t)
    return weighting(model.process, t) * noise_error_weight(model, t)
