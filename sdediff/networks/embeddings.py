"""What every network here shares: features of the noise level, conditioning, and checks of inputs.

A network is called as ``net(x, t, cond=None)`` with unit-scale data ``x`` of shape (B, \\*E), the noise level
``t = log(sigma / alpha) / 4`` of shape (B,), and, if it was built for it, a condition per row.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["FourierFeatures", "NoiseEmbedding"]


class FourierFeatures(nn.Module):
    r"""Encode a noise level by sines and cosines of log-spaced frequencies.

    .. math:: \phi(t) = (\cos(\omega_k t), \sin(\omega_k t))_{k=1..dim/2}

    The frequencies are fixed and low: a network's output is then smooth in the noise level, which is what solvers of high
    order and quadratures of the divergence live on. Random features of scale 16, as used for images, are not.

    Args:
        dim: Number of features, even and positive.
        lowest: Smallest angular frequency, radians per unit of ``t``.
        highest: Largest angular frequency, radians per unit of ``t``.

    Raises:
        ValueError: If ``dim`` is odd or not positive, or the frequencies are not ordered and positive.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.5, with frequencies suited to ``t`` in about [-4, 2] in place of
        token positions.

    Example:
        >>> FourierFeatures(4)(torch.zeros(2)).tolist()
        [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    """

    frequencies: Tensor

    def __init__(self, dim: int, lowest: float = 0.25, highest: float = 8.0) -> None:
        super().__init__()
        dim = whole("FourierFeatures", "dim", dim, 2)
        if dim % 2:
            raise ValueError(f"FourierFeatures was given dim={dim}, but sines and cosines come in pairs: use an even dim.")
        if not 0 < lowest <= highest < math.inf:
            raise ValueError(
                f"FourierFeatures was given frequencies from {lowest} to {highest}: give 0 < lowest <= highest, finite."
            )
        # Rounded to float32 first, so that a float64 network is the same function whether it was built or cast so.
        omega = torch.logspace(math.log10(lowest), math.log10(highest), dim // 2, dtype=torch.float32)
        self.register_buffer("frequencies", omega.to(torch.get_default_dtype()), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Return the features of ``t``: (B,) to (B, dim)."""
        # A product, not a linear layer, which autocast would round to bfloat16.
        angle = t.to(self.frequencies.dtype).unsqueeze(-1) * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


class NoiseEmbedding(nn.Module):
    r"""Turn the noise level and the condition of each row into the scales and shifts of a network's blocks.

    .. math:: e = \mathrm{silu}(W_2\, \mathrm{silu}(W_1 \phi(t) + C(cond))), \qquad (1 + scale_k, shift_k) = W_3 e + b

    with :math:`\phi` the Fourier features of ``t`` and :math:`C` a linear layer for vectors, a table for class labels. One matrix
    product serves all blocks.

    Args:
        widths: Width of each block to be modulated.
        features: Number of Fourier features, even.
        dim: Width of the embedding ``e``.
        cond_dim: Length of a vector condition; 0 for none.
        num_classes: Number of class labels; 0 for none.
        owner: Name used in error messages.

    Raises:
        ValueError: If a size is not a whole number in its range, or both ``cond_dim`` and ``num_classes`` are given.

    References:
        Perez et al. (2018), arXiv:1709.07871, for scale and shift; Nichol and Dhariwal (2021), arXiv:2102.09672, section 3.1.

    Example:
        >>> embed = NoiseEmbedding([8, 16], features=4, dim=32)
        >>> [tuple(part.shape) for pair in embed(torch.zeros(5)) for part in pair]
        [(5, 8), (5, 8), (5, 16), (5, 16)]
    """

    def __init__(
        self,
        widths: list[int],
        features: int,
        dim: int,
        cond_dim: int = 0,
        num_classes: int = 0,
        owner: str = "NoiseEmbedding",
    ) -> None:
        super().__init__()
        self.owner = owner
        self.cond_dim = whole(owner, "cond_dim", cond_dim, 0)
        self.num_classes = whole(owner, "num_classes", num_classes, 0)
        if cond_dim and num_classes:
            raise ValueError(
                f"{owner} was given cond_dim={cond_dim} and num_classes={num_classes}, but takes one kind of condition: "
                "set one of them to 0."
            )
        self.sizes = [size for width in widths for size in (width, width)]
        self.features = FourierFeatures(features)
        self.time = nn.Linear(features, dim)
        self.cond: nn.Module | None = None
        if cond_dim:
            self.cond = nn.Linear(cond_dim, dim, bias=False)
        elif num_classes:
            self.cond = nn.Embedding(num_classes, dim)
        self.hidden = nn.Linear(dim, dim)
        self.modulation = nn.Linear(dim, sum(self.sizes))
        with torch.no_grad():  # blocks start near scale 1 and shift 0
            bias = torch.cat([torch.full((size,), 1.0 - i % 2) for i, size in enumerate(self.sizes)])
            self.modulation.bias.copy_(bias)

    def forward(self, t: Tensor, cond: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
        """Return a pair (1 + scale, shift) per block: tensors (B, width), or (1, width) where all rows share one ``t``."""
        if self.cond is None and t.shape[0] > 1 and t.stride(0) == 0:
            t = t[:1]  # an expanded t, as in sampling: embed it once
        h = self.time(self.features(t))
        if self.cond is not None:
            h = h + self.embed_condition(cond, h)
        h = F.silu(self.hidden(F.silu(h)))
        parts = self.modulation(h).split(self.sizes, dim=-1)
        return list(zip(parts[::2], parts[1::2], strict=True))

    def embed_condition(self, cond: Tensor | None, like: Tensor) -> Tensor:
        """Return the condition's part of the embedding, (B, dim); ``check_inputs`` has seen to its shape and type."""
        assert cond is not None and self.cond is not None
        if self.cond_dim:
            return self.cond(cond.to(like.dtype))
        try:
            return self.cond(cond.long())
        except IndexError:  # raised by the look-up itself, so a valid label costs no reading back of values
            raise ValueError(
                f"{self.owner} was given a class label outside 0..{self.num_classes - 1}: renumber the labels or raise num_classes."
            ) from None

    def check_inputs(self, x: Tensor, t: Tensor, cond: Tensor | None) -> None:
        """Raise a one-sentence ``ValueError`` where ``x``, ``t`` and ``cond`` do not fit together or this network.

        Args:
            x: Data, (B, \\*E), the network's own dtype.
            t: Noise level, (B,), floating point.
            cond: None, or (B, cond_dim) floating point, or (B,) integer labels, as the network was built.

        Raises:
            ValueError: On the first mismatch.
        """
        name, dtype = self.owner, self.time.weight.dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(f"{name} has {dtype} weights but was given {x.dtype} data: cast one, such as x.to({dtype}).")
        if t.shape != x.shape[:1] or not t.is_floating_point():
            raise ValueError(
                f"{name} was given t of shape {tuple(t.shape)} and {t.dtype} for {x.shape[0]} rows: "
                f"give floating-point noise levels of shape ({x.shape[0]},)."
            )
        if cond is None and self.cond is None:
            return
        if cond is None:
            raise ValueError(f"{name} was built for a condition but got none: pass cond as {self.wanted(x.shape[0])}.")
        if self.cond is None:
            raise ValueError(
                f"{name} was built without a condition but got cond of shape {tuple(cond.shape)}: "
                "drop it, or build the network with cond_dim or num_classes."
            )
        whole_numbers = not (cond.is_floating_point() or cond.is_complex() or cond.dtype == torch.bool)
        kind = cond.is_floating_point() if self.cond_dim else whole_numbers
        if cond.shape != x.shape[:1] + ((self.cond_dim,) if self.cond_dim else ()) or not kind:
            raise ValueError(
                f"{name} was given cond of shape {tuple(cond.shape)} and {cond.dtype}: pass {self.wanted(x.shape[0])}."
            )

    def wanted(self, rows: int) -> str:
        """Say in words which condition fits ``rows`` rows."""
        if self.cond_dim:
            return f"a floating-point tensor of shape ({rows}, {self.cond_dim})"
        return f"integer labels of shape ({rows},)"


def whole(owner: str, name: str, value: object, least: int) -> int:
    """Return ``value`` as an int of at least ``least``, or raise a ``ValueError`` that names the argument."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise ValueError(f"{owner} was given {name}={value!r}: give a whole number of at least {least}.")
    return int(value)


def fraction(owner: str, name: str, value: object) -> float:
    """Return ``value`` as a float in [0, 1), or raise a ``ValueError`` that names the argument."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < 1:
        raise ValueError(f"{owner} was given {name}={value!r}: give a number from 0 up to but not including 1.")
    return float(value)
