"""A U-Net of the DDPM++ family for signals, images and volumes of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import NoiseEmbedding, fraction, whole

__all__ = ["UNet"]

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
AXES = {1: "L", 2: "H, W", 3: "D, H, W"}


class UNet(nn.Module):
    r"""U-Net of residual blocks, scaled and shifted by the noise level, with self-attention at chosen levels.

    Level k works with ``base * multipliers[k]`` channels on ``ceil(size / 2^k)`` pixels per axis. The way
    down halves by strided convolutions; the way up repeats pixels to the exact size of the feature map they
    join, so data of any size fits without padding. Sums of a block and its input are divided by sqrt(2). The
    output convolution starts at zero, and hence so does the network.

    Args:
        channels: Channels of the data, at least 1.
        dims: Number of spatial axes: 1 for signals (B, C, L), 2 for images (B, C, H, W), 3 for volumes.
        base: Channels of the finest level, at least 4.
        multipliers: Width of each level in units of ``base``, finest first, one per level.
        blocks: Residual blocks per level on the way down; there is one more on the way up.
        attention: Levels with self-attention, negative ones counted from the coarsest; its memory grows with
            the square of the number of pixels there.
        groups: Largest number of groups in a group norm; the number used divides the channels and leaves at
            least four of them in a group.
        dropout: Probability in [0, 1) of dropping a hidden value of a block while training.
        cond_dim: Length of the vector condition of each row; 0 for none.
        num_classes: Number of class labels; 0 for none.
        optional_cond: Whether rows may have no condition: ``cond=None`` for all, label -1 or NaN for one.
        augment_dim: Length of the labels of an augmentation; 0 for none.

    Raises:
        ValueError: If an argument is out of its range, or conditions do not go together.

    References:
        Ronneberger et al. (2015), arXiv:1505.04597; Ho et al. (2020), arXiv:2006.11239, appendix B; Song et
        al. (2021), arXiv:2011.13456, appendix H, for DDPM++ and the division by sqrt(2).

    Example:
        >>> net = UNet(channels=3, base=8)
        >>> net(torch.randn(2, 3, 7, 5), torch.zeros(2)).shape
        torch.Size([2, 3, 7, 5])
    """

    def __init__(
        self,
        channels: int = 1,
        dims: int = 2,
        base: int = 32,
        multipliers: Sequence[int] = (1, 2),
        blocks: int = 1,
        attention: Sequence[int] = (-1,),
        groups: int = 8,
        dropout: float = 0.0,
        cond_dim: int = 0,
        num_classes: int = 0,
        optional_cond: bool = False,
        augment_dim: int = 0,
    ) -> None:
        super().__init__()
        self.config = check_arguments(channels, dims, base, multipliers, blocks, attention, groups, dropout)
        self.channels, self.dims = self.config["channels"], self.config["dims"]
        widths = [base * multiplier for multiplier in self.config["multipliers"]]
        last = len(widths) - 1
        attended = {level % len(widths) for level in self.config["attention"]}

        def block(width: int, level: int, attend: bool) -> Block:
            return Block(dims, width, widths[level], groups, self.config["dropout"], attend)

        self.stem = convolution(dims, channels, base)
        self.down = nn.ModuleList()  # blocks and, between levels, convolutions that halve
        skips = [base]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(skips[-1], level, level in attended))
                skips.append(width)
            if level < last:
                self.down.append(convolution(dims, width, width, stride=2))
                skips.append(width)
        self.middle = nn.ModuleList([block(width, last, last in attended), block(width, last, False)])
        self.up = nn.ModuleList()  # blocks that join a skip and, between levels, convolutions after doubling
        for level in range(last, -1, -1):
            for _ in range(blocks + 1):
                self.up.append(block(width + skips.pop(), level, level in attended))
                width = widths[level]
            if level:
                self.up.append(convolution(dims, width, width))
        self.norm = group_norm(base * multipliers[0], groups)
        self.output = zeroed(convolution(dims, base * multipliers[0], channels))
        modulated = [part.width for part in (*self.down, *self.middle, *self.up) if isinstance(part, Block)]
        conditions = (cond_dim, num_classes, optional_cond, augment_dim)
        self.embedding = NoiseEmbedding(modulated, 2 * base, 4 * base, *conditions, owner="UNet")
        self.config |= self.embedding.config

    def forward(
        self, x: Tensor, t: Tensor, cond: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        r"""Return the network's output, shaped like ``x``.

        Args:
            x: Unit-scale data, (B, channels, \*size) with ``dims`` axes of any size.
            t: Noise level ``log(sigma / alpha) / 4``, (B,).
            cond: None, (B, cond_dim) floating point, or (B,) integer labels, as built.
            augment: None, or labels of an augmentation, (B, augment_dim).

        Returns:
            Output, (B, channels, \*size).

        Raises:
            ValueError: If a shape or dtype does not fit.
        """
        if x.ndim != self.dims + 2 or x.shape[1] != self.channels or 0 in x.shape[2:]:
            raise ValueError(
                f"UNet(channels={self.channels}, dims={self.dims}) was given x of shape {tuple(x.shape)}: "
                f"give (B, {self.channels}, {AXES[self.dims]}) with no empty axis."
            )
        self.embedding.check_inputs(x, t, cond, augment)
        modulations = iter(self.embedding(t, cond, augment))
        h = self.stem(x)
        skips = [h]
        for part in self.down:
            h = part(h, *next(modulations)) if isinstance(part, Block) else part(h)
            skips.append(h)
        for part in self.middle:
            h = part(h, *next(modulations))
        for part in self.up:
            if isinstance(part, Block):
                h = part(torch.cat([h, skips.pop()], dim=1), *next(modulations))
            else:
                # n pixels came from 2n or 2n - 1; either way pixel i there repeats pixel i // 2 here.
                h = part(F.interpolate(h, size=skips[-1].shape[2:], mode="nearest"))
        return self.output(F.silu(self.norm(h)))


class Block(nn.Module):
    """Residual block, scaled and shifted by the noise level after its second norm; attention is optional."""

    def __init__(self, dims: int, inner: int, width: int, groups: int, dropout: float, attend: bool) -> None:
        super().__init__()
        self.width, self.dropout = width, dropout
        self.norm1 = group_norm(inner, groups)
        self.conv1 = convolution(dims, inner, width)
        self.norm2 = group_norm(width, groups, affine=False)
        self.conv2 = zeroed(convolution(dims, width, width))
        self.skip = convolution(dims, inner, width, kernel=1) if inner != width else nn.Identity()
        self.attention = Attention(width, groups) if attend else nn.Identity()

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Map ``x``, (B, inner, *size), to (B, width, *size); ``scale`` and ``shift`` are (B or 1, width)."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        per_channel = scale.shape + (1,) * (x.ndim - 2)
        h = F.silu(torch.addcmul(shift.reshape(per_channel), scale.reshape(per_channel), h))
        if self.dropout and self.training:
            h = F.dropout(h, self.dropout)
        return self.attention((self.skip(x) + self.conv2(h)) * math.sqrt(0.5))


class Attention(nn.Module):
    """Self-attention over all pixels, with heads of about 64 channels, added to its input."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.heads = divisor(width, width // 64)
        self.norm = group_norm(width, groups)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.output = zeroed(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x``, (B, width, *size), to the same shape."""
        flat = x.flatten(2)
        heads = (x.shape[0], 3 * self.heads, x.shape[1] // self.heads, flat.shape[2])
        q, k, v = self.qkv(self.norm(flat)).reshape(heads).chunk(3, dim=1)  # (B, heads, channels, pixels)
        # Written out, because torch's fused attention has no forward-mode derivative on CPUs.
        weights = (q.transpose(-1, -2) @ k / math.sqrt(heads[2])).softmax(dim=-1)
        h = (v @ weights.transpose(-1, -2)).reshape(flat.shape)
        return ((flat + self.output(h)) * math.sqrt(0.5)).reshape(x.shape)


def convolution(dims: int, width: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """Return a convolution over ``dims`` axes that gives ``ceil(size / stride)`` pixels per axis."""
    return CONVOLUTIONS[dims](width, out, kernel, stride=stride, padding=kernel // 2)


def group_norm(width: int, groups: int, affine: bool = True) -> nn.GroupNorm:
    """Return a group norm over ``width`` channels of at most ``groups`` groups."""
    # At a single pixel a group of one channel is normalised to zero, and the network would not see its input.
    return nn.GroupNorm(divisor(width, min(groups, width // 4)), width, affine=affine)


def divisor(number: int, most: int) -> int:
    """Return the largest divisor of ``number`` that is at most ``most``, or 1."""
    return next(n for n in range(max(1, most), 0, -1) if number % n == 0)


def zeroed(layer: nn.Module) -> nn.Module:
    """Return ``layer`` with its parameters set to zero."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def check_arguments(
    channels: int,
    dims: int,
    base: int,
    multipliers: Sequence[int],
    blocks: int,
    attention: Sequence[int],
    groups: int,
    dropout: float,
) -> dict[str, Any]:
    """Return the checked arguments as a dict that JSON can hold, or raise a one-sentence ``ValueError``."""
    if whole("UNet", "dims", dims, 1) not in CONVOLUTIONS:
        raise ValueError(f"UNet was given dims={dims}: give 1 for signals, 2 for images or 3 for volumes.")
    for name, values in (("multipliers", multipliers), ("attention", attention)):
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise ValueError(
                f"UNet was given {name}={values!r}: give a sequence of whole numbers, as in (1, 2)."
            )
    if not multipliers:
        raise ValueError("UNet was given no multipliers: give one whole number per level, such as (1, 2).")
    levels = len(multipliers)
    if any(whole("UNet", "attention level", level, -levels) >= levels for level in attention):
        raise ValueError(
            f"UNet was given attention={attention!r} but has only levels 0 to {levels - 1}: name those."
        )
    return {
        "channels": whole("UNet", "channels", channels, 1),
        "dims": int(dims),
        "base": whole("UNet", "base", base, 4),
        "multipliers": [whole("UNet", "multiplier", multiplier, 1) for multiplier in multipliers],
        "blocks": whole("UNet", "blocks", blocks, 1),
        "attention": [int(level) for level in attention],
        "groups": whole("UNet", "groups", groups, 1),
        "dropout": fraction("UNet", "dropout", dropout),
    }
