r"""What every network here shares: features of the noise level, conditioning, and checks of inputs.

A network is called as ``net(x, t, cond=None, augment=None)`` with unit-scale data ``x`` of shape (B, \*E),
the noise level ``t = log(sigma / alpha) / 4`` of shape (B,), and, if it was built for them, a condition and
labels of an augmentation per row.
"""

from __future__ import annotations

import math
from numbers import Integral, Real

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BlurredWaves", "FourierFeatures", "NoiseEmbedding"]


class FourierFeatures(nn.Module):
    r"""Encode a noise level by cosines and sines of log-spaced frequencies.

    .. math:: \phi(t) = (\cos \omega_1 t, \dots, \cos \omega_n t, \sin \omega_1 t, \dots, \sin \omega_n t),
        \qquad n = dim / 2

    The frequencies are fixed and low, so that a network is smooth in the noise level, on which solvers of
    high order and quadratures of the divergence depend. Random ones of scale 16, as used for images, are not.

    Args:
        dim: Number of features, even and positive.
        lowest: Smallest angular frequency, radians per unit of ``t``.
        highest: Largest angular frequency, radians per unit of ``t``.

    Raises:
        ValueError: If ``dim`` is odd or not positive, or the frequencies are not positive and in order.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.5, with frequencies suited to ``t`` in about
        [-4, 2] in place of token positions.

    Example:
        >>> FourierFeatures(4)(torch.zeros(2)).tolist()
        [[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    """

    frequencies: Tensor

    def __init__(self, dim: int, lowest: float = 0.25, highest: float = 8.0) -> None:
        super().__init__()
        if whole("FourierFeatures", "dim", dim, 2) % 2:
            raise ValueError(
                f"FourierFeatures was given dim={dim}, but its features come in pairs: give an even dim."
            )
        omega = log_spaced("FourierFeatures", dim // 2, lowest, highest)
        self.register_buffer("frequencies", omega, persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """Return the features of ``t``: (B,) to (B, dim)."""
        # A product, not a linear layer, which autocast would round to bfloat16.
        angle = t.to(self.frequencies.dtype).unsqueeze(-1) * self.frequencies
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


class BlurredWaves(nn.Module):
    r"""Encode every entry of noised data by waves of log-spaced frequencies, as far as the noise leaves them.

    With :math:`x = (\alpha z_0 + \sigma\epsilon)/\sqrt{\alpha^2+\sigma^2}`, noise :math:`s = \sigma/\alpha`
    and :math:`y = \sqrt{1+s^2}\,x = z_0 + s\epsilon`,

    .. math:: \phi(y) = e^{-\omega^2 s^2/2}\,(\cos\omega y, \sin\omega y), \qquad
        \omega = \omega_1, \dots, \omega_n

    which is a wave averaged over Gaussians of width s, as noise does to the waves that make up a density. A
    network so sees details of size :math:`1/\omega` where there are some, and nothing of them, rather than
    their noise, where there are none left.

    Args:
        count: Number n of frequencies, positive.
        lowest: Smallest angular frequency, radians per unit of ``y``.
        highest: Largest angular frequency, radians per unit of ``y``.

    Raises:
        ValueError: If ``count`` is not positive, or the frequencies are not positive and in order.

    References:
        Tancik et al. (2020), arXiv:2006.10739, for waves that let a perceptron learn details; Barron et al.
        (2021), arXiv:2103.13415, section 3.1, for averages of waves over a Gaussian.

    Example:
        >>> waves = BlurredWaves(3)
        >>> waves(torch.zeros(2, 5), torch.tensor([-9.0, 9.0])).sum(dim=1)  # hardly any noise, and very much
        tensor([15.,  0.])
    """

    frequencies: Tensor

    def __init__(self, count: int, lowest: float = 1.0, highest: float = 300.0) -> None:
        super().__init__()
        omega = log_spaced("BlurredWaves", whole("BlurredWaves", "count", count, 1), lowest, highest)
        self.register_buffer("frequencies", omega, persistent=False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the waves of ``x``, (B, d), at noise levels ``log(sigma / alpha) / 4``, (B,): (B, 2nd)."""
        omega = self.frequencies
        variance = torch.exp(8 * t.to(omega.dtype)).unsqueeze(-1)
        angle = ((x.to(omega.dtype) * (1 + variance).sqrt()).unsqueeze(-1) * omega).flatten(1)
        left = torch.exp(-0.5 * variance * omega.square()).repeat(1, x.shape[1])
        return torch.cat([angle.cos() * left, angle.sin() * left], dim=1)


class NoiseEmbedding(nn.Module):
    r"""Turn the noise level and the condition of each row into scales and shifts of a network's blocks.

    .. math:: e = \mathrm{silu}(W_2\, \mathrm{silu}(W_1 \phi(t) + b_1 + C(cond) + L\, augment) + b_2), \qquad
        (scale_k, shift_k) = (1, 0) + A_k e

    with :math:`\phi` the Fourier features of ``t``, :math:`C` a matrix for vectors or a table for class
    labels, and :math:`L` a matrix. One matrix product serves all blocks. Where the condition is optional, a
    learned vector takes the place of C(cond) in rows that have none.

    Args:
        widths: Width of each block to be modulated.
        features: Number of Fourier features, even.
        dim: Width of the embedding ``e``.
        cond_dim: Length of a vector condition; 0 for none.
        num_classes: Number of class labels; 0 for none.
        optional_cond: Whether rows may have no condition: ``cond=None`` for all of them, or the label -1 or a
            vector of NaN for one.
        augment_dim: Length of the augmentation labels, zeros for data as they are; 0 for none.
        owner: Name of the network, for error messages.

    Raises:
        ValueError: If a size is out of its range, ``cond_dim`` and ``num_classes`` are both given, or there
            is no condition that could be optional.

    References:
        Perez et al. (2018), arXiv:1709.07871, for scale and shift, whose gamma and beta they are; Nichol and
        Dhariwal (2021), arXiv:2102.09672, for their use with noise levels; Ho and Salimans (2022),
        arXiv:2207.12598, for the learned absence of a condition; Karras et al. (2022), arXiv:2206.00364,
        appendix F.2, for labels of augmentations.

    Example:
        >>> embed = NoiseEmbedding([8, 16], features=4, dim=32)
        >>> [tuple(part.shape) for pair in embed(torch.randn(5)) for part in pair]
        [(5, 8), (5, 8), (5, 16), (5, 16)]
    """

    def __init__(
        self,
        widths: list[int],
        features: int,
        dim: int,
        cond_dim: int = 0,
        num_classes: int = 0,
        optional_cond: bool = False,
        augment_dim: int = 0,
        owner: str = "NoiseEmbedding",
    ) -> None:
        super().__init__()
        self.owner = owner
        self.cond_dim = whole(owner, "cond_dim", cond_dim, 0)
        self.num_classes = whole(owner, "num_classes", num_classes, 0)
        self.augment_dim = whole(owner, "augment_dim", augment_dim, 0)
        self.config = {
            "cond_dim": self.cond_dim,
            "num_classes": self.num_classes,
            "optional_cond": bool(optional_cond),
            "augment_dim": self.augment_dim,
        }
        if cond_dim and num_classes:
            raise ValueError(
                f"{owner} was given cond_dim={cond_dim} and num_classes={num_classes} but takes one kind of "
                "condition: set one of them to 0."
            )
        if optional_cond and not (cond_dim or num_classes):
            raise ValueError(
                f"{owner} was given optional_cond=True but no condition: give cond_dim or num_classes too."
            )
        self.features = FourierFeatures(features)
        self.time = nn.Linear(features, dim)
        self.cond: nn.Module | None = None
        if cond_dim:
            self.cond = nn.Linear(self.cond_dim, dim, bias=False)
        elif num_classes:
            self.cond = nn.Embedding(self.num_classes, dim)
        self.null = nn.Parameter(torch.zeros(dim)) if optional_cond else None
        self.augment = nn.Linear(self.augment_dim, dim, bias=False) if augment_dim else None
        if self.augment is not None:
            nn.init.xavier_uniform_(self.augment.weight)  # as Karras et al. do for DDPM++
        self.hidden = nn.Linear(dim, dim)
        self.sizes = [size for width in widths for size in (width, width)]
        self.modulation = nn.Linear(dim, sum(self.sizes))
        with torch.no_grad():
            parts = [torch.full((size,), 1.0 - i % 2) for i, size in enumerate(self.sizes)]
            self.modulation.bias.copy_(torch.cat(parts))

    def forward(
        self, t: Tensor, cond: Tensor | None = None, augment: Tensor | None = None
    ) -> list[tuple[Tensor, Tensor]]:
        """Return (scale, shift) per block, each (B, width), or (1, width) where ``t`` is expanded."""
        if cond is None and augment is None and t.shape[0] > 1 and t.stride(0) == 0:
            t = t[:1]  # as in sampling on a grid, where it saves an MLP a fifth of its time
        h = self.time(self.features(t))
        if cond is not None:
            h = h + self.embed_condition(cond, h.dtype)
        elif self.null is not None:
            h = h + self.null
        if augment is not None:
            assert self.augment is not None, "check_inputs comes first"
            h = h + self.augment(augment.to(h.dtype))
        h = F.silu(self.hidden(F.silu(h)))
        parts = self.modulation(h).split(self.sizes, dim=-1)
        return list(zip(parts[::2], parts[1::2], strict=True))

    def embed_condition(self, cond: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the condition's part of the embedding, (B, dim)."""
        if self.null is None:
            return self.look_up(cond, dtype)
        cond = cond if self.cond_dim else cond.long().unsqueeze(-1)
        absent = (cond.isnan() if self.cond_dim else cond == -1).all(dim=-1, keepdim=True)
        present = cond.masked_fill(absent, 0)  # zeros are not used, but keep derivatives finite
        known = self.look_up(present if self.cond_dim else present.squeeze(-1), dtype)
        return torch.where(absent, self.null.to(dtype), known)

    def look_up(self, cond: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``C(cond)``, (B, dim)."""
        assert self.cond is not None, "check_inputs comes first"
        if self.cond_dim:
            return self.cond(cond.to(dtype))
        try:
            return self.cond(cond.long())
        except IndexError:  # from the look-up itself: valid labels are never read back to be compared
            none = ", or -1 for none" if self.null is not None else ""
            raise ValueError(
                f"{self.owner} was given a class label outside 0..{self.num_classes - 1}{none}: "
                "renumber the labels or build the network with more num_classes."
            ) from None

    def check_inputs(self, x: Tensor, t: Tensor, cond: Tensor | None, augment: Tensor | None = None) -> None:
        r"""Raise a one-sentence error where inputs do not fit together or this network.

        Args:
            x: Data, (B, \*E), of the dtype of the weights.
            t: Noise level, (B,), floating point.
            cond: None, or (B, cond_dim) floating point, or (B,) integer labels, as the network was built.
            augment: None, or (B, augment_dim) floating point, if the network was built for it.

        Raises:
            ValueError: On the first mismatch.
        """
        name, rows, dtype = self.owner, x.shape[0], self.time.weight.dtype
        if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
            raise ValueError(
                f"{name} has {dtype} weights but was given {x.dtype} x: cast one, as by x.to({dtype})."
            )
        if t.shape != (rows,) or not t.is_floating_point():
            raise ValueError(
                f"{name} was given t of shape {tuple(t.shape)} and {t.dtype} with {rows} rows of x: "
                f"give floating-point noise levels of shape ({rows},)."
            )
        if augment is not None:
            self.check_augment(augment, rows)
        if cond is None:
            if self.cond is not None and self.null is None:
                raise ValueError(
                    f"{name} was built for a condition but given none: pass {self.wanted(rows)}."
                )
            return
        if self.cond is None:
            raise ValueError(
                f"{name} was built without a condition but given cond of shape {tuple(cond.shape)}: "
                "drop it, or build the network with cond_dim or num_classes."
            )
        integer = not (cond.is_floating_point() or cond.is_complex() or cond.dtype == torch.bool)
        fits = cond.is_floating_point() if self.cond_dim else integer
        if not fits or cond.shape != ((rows, self.cond_dim) if self.cond_dim else (rows,)):
            raise ValueError(
                f"{name} was given cond of shape {tuple(cond.shape)} and {cond.dtype}: "
                f"pass {self.wanted(rows)}."
            )

    def check_augment(self, augment: Tensor, rows: int) -> None:
        """Raise a one-sentence error where labels of an augmentation do not fit."""
        if self.augment is None:
            raise ValueError(
                f"{self.owner} was built without augment_dim but given augment of shape "
                f"{tuple(augment.shape)}: drop it, or build the network with augment_dim={augment.shape[-1]}."
            )
        if augment.shape != (rows, self.augment_dim) or not augment.is_floating_point():
            raise ValueError(
                f"{self.owner} was given augment of shape {tuple(augment.shape)} and {augment.dtype}: "
                f"give floating-point labels of shape ({rows}, {self.augment_dim})."
            )

    def wanted(self, rows: int) -> str:
        """Say in words which condition fits ``rows`` rows."""
        if self.cond_dim:
            return f"cond as a floating-point tensor of shape ({rows}, {self.cond_dim})"
        return f"cond as integer labels of shape ({rows},)"


def log_spaced(owner: str, count: int, lowest: float, highest: float) -> Tensor:
    """Return angular frequencies from ``lowest`` to ``highest``, (count,), or raise a ``ValueError``."""
    if not 0 < lowest <= highest < math.inf:
        raise ValueError(
            f"{owner} was given frequencies from {lowest} to {highest}: "
            "give finite ones with 0 < lowest <= highest."
        )
    # Rounded to float32 first, so that a float64 network is the same function whether built or cast so.
    omega = torch.logspace(math.log10(lowest), math.log10(highest), count, dtype=torch.float32)
    return omega.to(torch.get_default_dtype())


def whole(owner: str, name: str, value: object, least: int) -> int:
    """Return ``value`` as an int of at least ``least``, or raise a ``ValueError`` that names the argument."""
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < least:
        raise ValueError(f"{owner} was given {name}={value!r}: give a whole number of at least {least}.")
    return int(value)


def fraction(owner: str, name: str, value: object) -> float:
    """Return ``value`` as a float in [0, 1), or raise a ``ValueError`` that names the argument."""
    if not isinstance(value, Real) or isinstance(value, bool) or not 0 <= float(value) < 1:
        raise ValueError(f"{owner} was given {name}={value!r}: give a number of at least 0 and below 1.")
    return float(value)
