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
    r"""Weight 1 on :math:`|\epsilon-\hat\epsilon|^2`.

    On the score's error it is :math:`\sigma^2`, on the denoiser's the signal-to-noise ratio. Source: Ho et
    al. 2020, arXiv 2006.11239, Eq. 14.

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


@dataclass(frozen=True)
class Score:
    r"""Weight 1 on the score's error, :math:`1/\sigma^2` on the noise error: large where sigma is small.

    :class:`Eps` is Song & Ermon's cure for that, the weight :math:`\sigma^2` on the score's error (2019,
    arXiv 1907.05600, Eq. 6).

    Example:
        >>> from sdediff.processes import EDM
        >>> round(float(Score()(EDM(), torch.tensor(0.1))), 3)
        100.0
    """

    def __call__(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Weight on the squared error of the noise estimate."""
        return process.sigma(t) ** -2


@dataclass(frozen=True)
class TruncatedSNR:
    r"""Weight :math:`\max(SNR, 1)` on :math:`|z_0-D|^2`, with :math:`SNR = \alpha^2/\sigma^2`.

    On the noise error it is :math:`\max(1, 1/SNR)`: the larger of the two errors (Salimans & Ho 2022, arXiv
    2202.00512, section 4).

    Example:
        >>> from sdediff.processes import EDM
        >>> TruncatedSNR()(EDM(), torch.tensor([0.5, 3.0]))
        tensor([1., 9.])
    """

    def __call__(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Weight on the squared error of the noise estimate."""
        return torch.exp(-2 * process.lam(t)).clamp(min=1)


@dataclass(frozen=True)
class MinSNR:
    r"""Weight :math:`\min(SNR, \gamma)` on :math:`|z_0-D|^2`.

    On the noise error :math:`\min(1, \gamma/SNR)`; on that of v, :math:`\min(SNR, \gamma)/(SNR+1)` under
    variance-preserving processes (Hang et al. 2023, arXiv 2303.09556).

    Args:
        gamma: Signal-to-noise ratio from which on the weight on the denoiser's error is constant.

    Example:
        >>> from sdediff.processes import EDM
        >>> MinSNR()(EDM(), torch.tensor([0.1, 3.0])).round(decimals=3)
        tensor([0.0500, 1.0000])
    """

    gamma: float = 5.0

    def __call__(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Weight on the squared error of the noise estimate."""
        return (self.gamma * torch.exp(-2 * process.lam(t))).clamp(max=1)


@dataclass(frozen=True)
class P2:
    r"""Weight :math:`(k + SNR)^{-\gamma}` on the noise error ("perception prioritised").

    With both 1 it is ``Sigmoid(bias=0)``. Source: Choi et al. 2022, arXiv 2204.00227, Eq. 8, divided there by
    the weight that makes 1 of gamma = 0.

    Args:
        k: Signal-to-noise ratio below which the weight levels off.
        gamma: How strongly low noise is discounted.

    Example:
        >>> from sdediff.processes import EDM
        >>> float(P2()(EDM(), torch.tensor(1.0)))
        0.5
    """

    k: float = 1.0
    gamma: float = 1.0

    def __call__(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Weight on the squared error of the noise estimate."""
        return (self.k + torch.exp(2 * process.lam(t))) ** -self.gamma


@dataclass(frozen=True)
class Sigmoid:
    r"""Weight :math:`\mathrm{sigmoid}(b - 2\lambda)` on the noise error; :math:`2\lambda` is the log-SNR.

    It is half its largest value at :math:`SNR = e^b` and falls with the signal, so that with times uniform in
    lam (the weight is one per unit of log-SNR) the loss is a bound for data with noise added (Kingma & Gao
    2023, arXiv 2303.00848, theorem 1). Hoogeboom et al. 2024, arXiv 2410.19324, write
    :math:`e^b\,\mathrm{sigmoid}(2\lambda - b)` on the denoiser's error, which is the same.

    Args:
        bias: b, in units of the log-SNR.

    Example:
        >>> from sdediff.processes import EDM
        >>> float(Sigmoid(bias=0.0)(EDM(), torch.tensor(1.0)))
        0.5
    """

    bias: float = 2.0

    def __call__(self, process: GaussianProcess, t: Tensor) -> Tensor:
        """Weight on the squared error of the noise estimate."""
        return torch.sigmoid(self.bias - 2 * process.lam(t))


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
