r"""Dequantisation: a density q(u | x) over the cell of a discrete datum, and how to draw from it.

With u in the unit cube that the cell of x is scaled from, and w the cell's width,

.. math:: \log P(x) = \log \int_{cell} p \;\ge\; E_{u \sim q}[\log p(y(x, u)) + d \log w - \log q(u \mid x)] ,

with equality where q is the model's own density over the cell (Ho et al. 2019, arXiv 1902.00275, Eq. 12).
Each dequantisation states q as a map of uniform noise v over the cube, so the noise of a draw is
counter-based and shared by all of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..model import DiffusionModel
from .quantisation import Quantisation


class Dequantisation(ABC):
    """A density over the cell, as a map of uniform noise."""

    @abstractmethod
    def warp(self, v: Tensor, level: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """Where in its cell each entry goes.

        Args:
            v: Uniform noise, (B, *E), inside (0, 1).
            level: Levels of the data, (B, *E), scaled so that the lowest is -1 and the highest 1.
            tau: Half a cell in standard deviations of the noise at t_min, broadcastable against (*E).

        Returns:
            ``(u, log_q)``: positions in [0, 1], (B, *E), and the log-density of u over the unit cube, (B,).
        """

    def start(self, model: DiffusionModel, quantisation: Quantisation) -> float:
        """The t_min at which the model's density is taken where the caller states no t_span."""
        return model.process.t_min


@dataclass(frozen=True)
class Uniform(Dequantisation):
    """u uniform over the cell: draw 0 is :func:`sdediff.dequantise` (Theis et al. 2016, arXiv 1511.01844).

    Example:
        >>> import torch
        >>> Uniform().warp(torch.tensor([[0.25, 0.5]]), torch.zeros(1, 2), torch.ones(()))
        (tensor([[0.2500, 0.5000]]), tensor([0.]))
    """

    def warp(self, v: Tensor, level: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """``u = v``."""
        return v, v.new_zeros(len(v))


@dataclass(frozen=True)
class TruncatedNormal(Dequantisation):
    r"""The noise of t_min itself, cut off at the cell's ends: no training, no gap for data on the levels.

    .. math:: y = c + \tilde\sigma_0\,\epsilon, \qquad \epsilon \sim N(0, 1) \;\text{given}\;
              |\epsilon| \le \tau, \qquad \tau = \frac{w/2}{\tilde\sigma_0}, \qquad
              \tilde\sigma_0 = (\sigma/\alpha)(t_{min})\,scale

    with c the cell's middle, w its width. A model trained on the levels (``centred=True``) is, at t_min,
    nearly normal about each level with just this variance, so its likelihood loses only the mass beyond the
    ends, :math:`-\log\mathrm{erf}(\tau/\sqrt2)` an entry (0.0039 bits at tau = 3, 9e-5 at 4). For a model of
    a density that is smooth across cells it is a poor bound: take :class:`Uniform` or fit a
    :class:`Variational`.

    The model's density is taken at the t_min where :math:`\tau` is `tau` for the entry of the largest scale:
    noise of ``width/(2 tau)``, or the process's own t_min where that has more noise already. With `t_span`
    its t_min counts, and `tau` follows from it. The result's `t_span` says which it was.

    Args:
        tau: Half a cell in standard deviations of the noise at t_min.

    Raises:
        ValueError: If tau is not positive.

    References:
        Zheng et al. (2023), arXiv 2305.03935, section 4, "truncated-normal dequantization"; theirs is 256
        levels over [-1, 1] and tau about 3.

    Example:
        >>> import torch
        >>> u, log_q = TruncatedNormal().warp(torch.tensor([[0.5]]), torch.zeros(1, 1), torch.tensor(3.0))
        >>> round(float(u), 6), round(float(log_q.exp()), 4)  # 6 / sqrt(2 pi) / erf(3 / sqrt(2))
        (0.5, 2.4001)
    """

    tau: float = 3.0

    def __post_init__(self) -> None:
        if not 0 < self.tau < math.inf:
            raise ValueError(f"tau={self.tau}: give half a cell in standard deviations of noise, such as 3")

    def start(self, model: DiffusionModel, quantisation: Quantisation) -> float:
        """Where half a cell is `tau` standard deviations of noise, or the process's t_min if later."""
        process, noise = model.process, quantisation.width / (2 * self.tau * float(model.scale.max()))
        lam = -math.log(noise)
        return process.t_min if lam >= float(process.lam(process.t_min)) else float(process.time(lam))

    def warp(self, v: Tensor, level: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """By the inverse of the truncated normal's distribution function."""
        v, tau = _wide(v), _wide(tau)
        outside = torch.special.ndtr(-tau)
        eps = torch.special.ndtri(outside + v * (1 - 2 * outside)).clamp(-tau, tau)
        constant = torch.log(2 * tau / math.sqrt(2 * math.pi)) - torch.erf(tau / math.sqrt(2)).log()
        return 0.5 + eps / (2 * tau), (constant - 0.5 * eps.square()).flatten(1).sum(dim=1)


@dataclass(frozen=True)
class Variational(Dequantisation):
    r"""A learnt density over the cell: a logistic distribution of logit u about a network's prediction.

    .. math:: u = \mathrm{sigmoid}(m(x) + e^{r(x)}\,\mathrm{logit}\,v)

    With :math:`m = r = 0` it is :class:`Uniform`, where :func:`sdediff.likelihood.fit_dequantiser` starts, so
    that it improves on it; a logit-normal does not contain the uniform density.

    Args:
        network: Maps levels scaled to [-1, 1], (B, *E), to (m, r), (B, 2, *E).
        t_min: The time whose density it was fitted to; the process's own when left out.

    References:
        Ho et al. (2019), arXiv 1902.00275, section 3.1; there q is a flow.
    """

    network: nn.Module
    t_min: float | None = None

    def start(self, model: DiffusionModel, quantisation: Quantisation) -> float:
        """The time it was fitted for."""
        return model.process.t_min if self.t_min is None else self.t_min

    def warp(self, v: Tensor, level: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        """A logit-logistic draw of each entry."""
        own = next(iter(self.network.parameters()), level)
        out = self.network(level.to(own))
        if out.shape != (len(v), 2, *v.shape[1:]):
            raise ValueError(
                f"the dequantiser's network returned shape {tuple(out.shape)} for levels of shape "
                f"{tuple(v.shape)}: it must return a shift and a log-scale an entry, "
                f"{(len(v), 2, *v.shape[1:])}"
            )
        v = _wide(v)
        shift, log_scale = out.to(v).unbind(dim=1)
        logit = shift + log_scale.exp() * torch.logit(v)
        log_slope = F.logsigmoid(logit) + F.logsigmoid(-logit)  # of the sigmoid
        log_q = torch.log(v) + torch.log1p(-v) - log_slope - log_scale
        return torch.sigmoid(logit), log_q.flatten(1).sum(dim=1)


DEQUANTISATIONS: dict[str, Dequantisation] = {
    "uniform": Uniform(),
    "truncated-normal": TruncatedNormal(),
}


def resolve_dequantisation(dequantisation: str | Dequantisation) -> Dequantisation:
    """An object from its name, or as it is.

    Raises:
        ValueError: For an unknown name.
        TypeError: If it is neither.
    """
    if isinstance(dequantisation, Dequantisation):
        return dequantisation
    if not isinstance(dequantisation, str):
        raise TypeError(
            f"dequantisation={dequantisation!r} is none: give a name, an object such as TruncatedNormal(), "
            "or what fit_dequantiser returns"
        )
    if dequantisation not in DEQUANTISATIONS:
        names = '" or "'.join(DEQUANTISATIONS)
        raise ValueError(
            f'dequantisation={dequantisation!r} is not known: take "{names}", or what fit_dequantiser returns'
        )
    return DEQUANTISATIONS[dequantisation]


def half_cell(model: DiffusionModel, quantisation: Quantisation, t_min: float) -> Tensor:
    """tau: half a cell in standard deviations of the noise at t_min, () or of a datum's axes, float64."""
    noise = model.process.sigma(t_min) / model.process.alpha(t_min)
    return 0.5 * quantisation.width / (model.scale * noise.to(model.scale))


def _wide(x: Tensor) -> Tensor:
    return x if x.device.type == "mps" else x.double()
