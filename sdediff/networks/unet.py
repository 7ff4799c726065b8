"""A U-Net of the DDPM++ family for signals, images and volumes of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .embeddings import NoiseEmbedding, fraction, whole

__all__ = ["UNet"]

CONVOLUTIONS: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class UNet(nn.Module):
    r"""U-Net of residual blocks, scaled and shifted by the noise level, with self-attention at chosen levels.

    Level k works with ``base * multipliers[k]`` channels at ``ceil(size / 2^k)`` pixels per axis. The way down halves by strided
    convolutions; the way up repeats pixels to the exact size of the feature map it joins, so any size is met without padding.
    Sums of a block and its input are divided by sqrt(2). The output convolution starts at zero, hence so does the network.

    Args:
        channels: Channels of the data, at least 1.
        dims: Number of spatial axes: 1 for signals (B, C, L), 2 for images (B, C, H, W), 3 for volumes (B, C, D, H, W).
        base: Channels of the finest level, at least 4.
        multipliers: Width of each level in units of ``base``, finest first; their number is the number of levels.
        blocks: Residual blocks per level on the way down (one more on the way up).
        attention: Levels with self-attention; negative ones count from the coarsest. Its memory grows with the square of the
            number of pixels at that level.
        groups: Largest number of groups of the group norms; the number used divides the channels and leaves at least four
            channels in a group.
        dropout: Probability in [0, 1) of dropping a hidden unit of a block while training.
        cond_dim: Length of the vector condition of each row; 0 for none.
        num_classes: Number of class labels; 0 for none.

    Raises:
        ValueError: If an argument is out of its range, or ``cond_dim`` and ``num_classes`` are both given.

    References:
        Ronneberger et al. (2015), arXiv:1505.04597; Ho et al. (2020), arXiv:2006.11239, appendix B; Song et al. (2021),
        arXiv:2011.13456, appendix H, for DDPM++ and the division by sqrt(2), without its FIR filters and progressive branches.

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
    ) -> None:
        super().__init__()
        self.config = check_arguments(channels, dims, base, multipliers, blocks, attention, groups, dropout)
        self.channels, self.dims = self.config["channels"], self.config["dims"]
        widths = [base * multiplier for multiplier in self.config["multipliers"]]
        last = len(widths) - 1
        attended = {level % len(widths) for level in self.config["attention"]}

        def block(width: int, out: int, level: int) -> Block:
            return Block(dims, width, out, groups, self.config["dropout"], attend=level in attended)

        self.stem = convolution(dims, channels, base)
        self.down = nn.ModuleList()  # blocks and, between levels, strided convolutions
        width, skips = base, [base]
        for level, out in enumerate(widths):
            for _ in range(blocks):
                self.down.append(block(width, out, level))
                skips.append(width := out)
            if level < last:
                self.down.append(convolution(dims, out, out, stride=2))
                skips.append(out)
        self.middle = nn.ModuleList([block(width, width, last), block(width, width, -1)])
        self.up = nn.ModuleList()  # blocks that read a skip and, between levels, convolutions after repeating pixels
        for level in reversed(range(len(widths))):
            for _ in range(blocks + 1):
                self.up.append(block(width + skips.pop(), widths[level], level))
                width = widths[level]
            if level:
                self.up.append(convolution(dims, width, width))
        self.norm = group_norm(width, groups)
        self.output = zeroed(convolution(dims, width, channels))
        modulated = [part.out for part in (*self.down, *self.middle, *self.up) if isinstance(part, Block)]
        self.embedding = NoiseEmbedding(modulated, 2 * base, 4 * base, cond_dim, num_classes, owner="UNet")
        self.config |= {"cond_dim": self.embedding.cond_dim, "num_classes": self.embedding.num_classes}

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        r"""Return the network's output, shaped like ``x``.

        Args:
            x: Unit-scale data, (B, channels, \*size) with ``dims`` axes of any size.
            t: Noise level ``log(sigma / alpha) / 4``, (B,).
            cond: None, (B, cond_dim) floating point, or (B,) integer labels, as built.

        Returns:
            Output, (B, channels, \*size).

        Raises:
            ValueError: If a shape or dtype does not fit.
        """
        if x.ndim != self.dims + 2 or x.shape[1] != self.channels or 0 in x.shape[2:]:
            size = ", ".join("LHWD"[: 0] or ["L"] if self.dims == 1 else ["D", "H", "W"][3 - self.dims :])
            raise ValueError(
                f"UNet(channels={self.channels}, dims={self.dims}) was given x of shape {tuple(x.shape)}: "
                f"give (B, {self.channels}, {size})."
            )
        self.embedding.check_inputs(x, t, cond)
        modulations = iter(self.embedding(t, cond))
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
                h = part(enlarge(h, skips[-1].shape[2:]))
        return self.output(F.silu(self.norm(h)))


class Block(nn.Module):
    """Residual block, optionally followed by self-attention; the second norm is scaled and shifted by the noise level."""

    def __init__(self, dims: int, width: int, out: int, groups: int, dropout: float, attend: bool) -> None:
        super().__init__()
        self.out, self.dropout = out, dropout
        self.norm1 = group_norm(width, groups)
        self.conv1 = convolution(dims, width, out)
        self.norm2 = group_norm(out, groups, affine=False)
        self.conv2 = zeroed(convolution(dims, out, out))
        self.skip = convolution(dims, width, out, kernel=1) if width != out else nn.Identity()
        self.attention = Attention(out, groups) if attend else nn.Identity()

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return features (B, out, *size) of ``x`` (B, width, *size); ``scale`` and ``shift`` are (B, out) or (1, out)."""
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        per_channel = scale.shape + (1,) * (x.ndim - 2)
        h = F.silu(torch.addcmul(shift.reshape(per_channel), scale.reshape(per_channel), h))
        if self.dropout and self.training:
            h = F.dropout(h, self.dropout)
        return self.attention((self.skip(x) + self.conv2(h)) * math.sqrt(0.5))


class Attention(nn.Module):
    """Self-attention over all pixels with heads of about 64 channels, as a residual with division by sqrt(2)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.heads = next(n for n in range(max(1, width // 64), 0, -1) if width % n == 0)
        self.norm = group_norm(width, groups)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.out = zeroed(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return features of the shape of ``x``, (B, width, *size)."""
        heads = (x.shape[0], 3 * self.heads, x.shape[1] // self.heads, -1)
        flat = x.flatten(2)
        # Written out: the fused attention kernel of torch has no forward-mode derivative on CPUs.
        q, k, v = self.qkv(self.norm(flat)).reshape(heads).chunk(3, dim=1)
        weights = (q.transpose(-1, -2) @ (k / math.sqrt(k.shape[2]))).softmax(dim=-1)
        h = (v @ weights.transpose(-1, -2)).reshape(flat.shape)
        return ((flat + self.out(h)) * math.sqrt(0.5)).reshape(x.shape)


def enlarge(x: Tensor, size: Sequence[int]) -> Tensor:
    """Repeat each pixel of ``x`` twice along every axis and keep the first ``size``, the inverse of halving rounded up."""
    return F.interpolate(x, size=tuple(size), mode="nearest")


def convolution(dims: int, width: int, out: int, kernel: int = 3, stride: int = 1) -> nn.Module:
    """Return a convolution over ``dims`` axes whose output has ``ceil(size / stride)`` pixels per axis."""
    return CONVOLUTIONS[dims](width, out, kernel, stride=stride, padding=kernel // 2)


def group_norm(width: int, groups: int, affine: bool = True) -> nn.GroupNorm:
    """Return a group norm with the largest number of groups that divides ``width`` and leaves four channels in each."""
    # A group of one channel at one pixel would be normalised to zero, and the network would not see its input.
    count = next(n for n in range(max(1, min(groups, width // 4)), 0, -1) if width % n == 0)
    return nn.GroupNorm(count, width, affine=affine)


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
) -> dict[str, object]:
    """Return the checked arguments as a dict that JSON can hold, or raise a one-sentence ``ValueError``."""
