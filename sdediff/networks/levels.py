"""A network that knows its data to be whole levels with uniform noise on top."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from .embeddings import whole

__all__ = ["Levels"]

#: How far outside the levels, in standard deviations of the noise, the denoiser is followed: further out it
#: has long come to the nearest end.
REACH = 8.0


class Levels(nn.Module):
    r"""Wrap a network so that it says how probable each level is; what the noise inside a cell does is known.

    Dequantised data are :math:`x_0 = low + width\,(k + u)` with a level k of a finite number and u uniform on
    (0, 1) (:func:`sdediff.dequantise`). At an entry of noised data y, in units of a cell and with noise s,
    the wrapped network's K outputs become weights w = softmax(...), and

    .. math:: D = y + s\,r, \qquad r = \frac{\sum_k w_k\,(\varphi(z_k) - \varphi(z_{k+1}))}
        {\sum_k w_k\,(\Phi(z_{k+1}) - \Phi(z_k))}, \qquad z_k = (k - y)/s

    is the mean of x_0 given y if the level has prior probabilities w. That is no restriction: the exact
    denoiser of dequantised data has this form, with w the probabilities of the levels given the noised data
    elsewhere. Edges of the cells, where densities of dequantised data jump, need not be learnt; at little
    noise D is right whatever the network says, and D never leaves the levels' range.

    The module returns what makes the model's own (``prediction="edm"``) give this D: with
    :math:`x = a z_0 + b\epsilon`, :math:`net(x, t) = (D - a x)/b = (b x + r)/a`.

    Args:
        network: A network with `values` = `levels`, numbers an entry, (B, \*E) -> (B, levels, \*E); or the
            name of one of :data:`sdediff.networks.REGISTRY` that takes `values`, built so.
        levels: Number of levels, at least 2.
        low: Lower end of the lowest level's cell, in data units.
        width: Width of a cell, in data units.
        **arguments: Arguments for the network that was named.

    Raises:
        TypeError: If ``network`` is neither a module nor a name, or arguments come with a module.
        ValueError: If there is no network of that name, or an argument is out of its range.

    References:
        The mean of a truncated normal distribution, weighted by level; a softmax over levels as in Austin et
        al. (2021), arXiv:2107.03006, section 3.3, for noise that is discrete there.

    Example:
        >>> import sdediff
        >>> net = Levels("MLP", levels=17, dim=64, hidden=16, blocks=1)
        >>> model = sdediff.DiffusionModel(net, process=sdediff.EDM(), data_shape=(1, 8, 8))
        >>> x = sdediff.dequantise(sdediff.data.digits().val)
        >>> model.set_units(x)
        >>> bool((model.denoise(100 * x, 1.0).sub(8.5).abs() <= 8.5).all())  # untrained, and far outside
        True
    """

    #: The prediction of a model that this network can serve.
    needs_prediction = "edm"

    shift: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        network: nn.Module | str,
        levels: int,
        low: float = 0.0,
        width: float = 1.0,
        **arguments: Any,
    ) -> None:
        super().__init__()
        from . import REGISTRY

        self.levels, self.low, self.width = whole("Levels", "levels", levels, 2), float(low), float(width)
        if not (math.isfinite(self.low) and math.isfinite(self.width) and self.width > 0):
            raise ValueError(
                f"Levels was given low={low} and width={width}: give finite numbers and width > 0."
            )
        if isinstance(network, str):
            able = [n for n, make in REGISTRY.items() if "values" in inspect.signature(make).parameters]
            if network not in able:
                raise ValueError(f"Levels was given network={network!r}: name one of {', '.join(able)}.")
            network = REGISTRY[network](values=levels, **arguments)
        elif not isinstance(network, nn.Module) or arguments:
            raise TypeError(
                f"Levels was given {type(network).__name__} and arguments {sorted(arguments)}: "
                "give a module alone, or the name of one and its arguments."
            )
        self.network = network
        name = type(network).__name__
        if REGISTRY.get(name) is type(network):  # another cannot be rebuilt from a file: no config
            own = {k: v for k, v in getattr(network, "config", {}).items() if k != "values"}
            self.config = {
                **own,
                "network": name,
                "levels": self.levels,
                "low": self.low,
                "width": self.width,
            }
        self.register_buffer("shift", None)  # 0, and a scale of 1, until the model's units are known
        self.register_buffer("scale", None)

    def set_units(self, shift: Tensor, scale: Tensor) -> None:
        """Take over the model's units, ``x = shift + scale z``, of shapes that broadcast to a datum's."""
        like = next(self.network.parameters(), torch.empty(0))
        for name, value in (("shift", shift), ("scale", scale)):
            setattr(self, name, value.detach().to(like.device, like.dtype, copy=True))

    def forward(
        self, x: Tensor, t: Tensor, cond: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        r"""Return the output for which the model's EDM preconditioning gives D, shaped like ``x``.

        Args:
            x: Unit-scale data, (B, \*E).
            t: Noise level ``log(sigma / alpha) / 4``, (B,).
            cond: As the network takes it.
            augment: As the network takes it.

        Returns:
            Output, (B, \*E).

        Raises:
            ValueError: If the network puts out another shape; all that the network raises.
        """
        optional = {} if augment is None else {"augment": augment}
        scores = self.network(x, t, *(() if cond is None else (cond,)), **optional)
        if scores.shape != (len(x), self.levels, *x.shape[1:]):
            raise ValueError(
                f"Levels(levels={self.levels}) got {tuple(scores.shape)} from its network for x of shape "
                f"{tuple(x.shape)}: the network must return {(len(x), self.levels, *x.shape[1:])}."
            )
        with torch.autocast(x.device.type, enabled=False):
            per_row = (len(x),) + (1,) * (x.ndim - 1)
            a, b = (torch.sigmoid(sign * 8 * t).sqrt().reshape(per_row) for sign in (-1, 1))
            return (b * x + self._pull(x / a, b / a, scores.to(x.dtype))) / a

    def cell_means(
        self,
        z: Tensor,
        eps: Tensor,
        lam: Tensor,
        cond: Tensor | None = None,
        augment: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mean data and noise given the noised data and the levels: targets without the noise in the cells.

        For ``DenoisingLoss(targets=net.cell_means)``: the gradient's mean is the same and its variance less,
        most of all where the noise is small and a level certain.

        Args:
            z: Dequantised data in model units, (B, *E).
            eps: Their noise, (B, *E).
            lam: log(alpha/sigma) of every row, (B,).
            cond: Not used.
            augment: Not used.

        Returns:
            Mean data and mean noise, each (B, *E).
        """
        noise = torch.exp(-lam).to(z).reshape(-1, *[1] * (z.ndim - 1))
        level, _ = self._cells(z, noise)
        level = level.floor().clamp(0, self.levels - 1)
        y, s = self._cells(z + noise * eps, noise)
        pull, mass = _truncated(_Edge((level - y) / s), _Edge((level + 1 - y) / s))
        # Where the mass underflows, the noised value is many standard deviations from the cell.
        r = torch.where(mass > torch.finfo(z.dtype).tiny, pull / mass, -eps)
        return z + noise * (eps + r), -r

    def _cells(self, z: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Data and noise of model units in widths of a cell, from the lowest cell's lower end."""
        shift = 0.0 if self.shift is None else self.shift
        scale = 1.0 if self.scale is None else self.scale
        return (shift + scale * z - self.low) / self.width, scale * noise / self.width

    def _pull(self, z: Tensor, noise: Tensor, scores: Tensor) -> Tensor:
        """Give r = (D - z)/noise at z in model units, like z."""
        y, s = self._cells(z, noise)
        inside = torch.minimum(torch.maximum(y, -REACH * s), self.levels + REACH * s)
        numbers = torch.arange(self.levels + 1, dtype=z.dtype, device=z.device)
        numbers = numbers.reshape(-1, *[1] * (z.ndim - 1))
        edges = _Edge((numbers - inside.unsqueeze(1)) / s.unsqueeze(1))
        pull, mass = _truncated(edges[:, :-1], edges[:, 1:])
        weight = scores.softmax(dim=1)
        total = (weight * mass).sum(dim=1).clamp_min(torch.finfo(z.dtype).tiny)
        return (weight * pull).sum(dim=1) / total + (inside - y) / s

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Take units of any shape: they are learnt, not built."""
        for name in ("shift", "scale"):
            if (value := state_dict.get(prefix + name)) is not None:
                setattr(self, name, torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *rest)


class _Edge:
    """The standard normal's density and smaller tail at edges u."""

    def __init__(self, u: Tensor, density: Tensor | None = None, tail: Tensor | None = None) -> None:
        self.u = u
        self.density = torch.exp(-0.5 * u.square()) / math.sqrt(2 * math.pi) if density is None else density
        self.tail = 0.5 * torch.special.erfc(u.abs() / math.sqrt(2)) if tail is None else tail

    def __getitem__(self, index: Any) -> _Edge:
        return _Edge(self.u[index], self.density[index], self.tail[index])


def _truncated(low: _Edge, high: _Edge) -> tuple[Tensor, Tensor]:
    """Integrals of u times the standard normal density, and of the density, between two edges."""
    # Differences of the smaller tails keep their digits where those of the distribution function do not.
    within = (low.u < 0) & (high.u > 0)
    mass = torch.where(within, 1 - low.tail - high.tail, (low.tail - high.tail).abs())
    return low.density - high.density, mass
