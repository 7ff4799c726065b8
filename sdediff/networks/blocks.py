"""Parts of convolutional networks and transformers: residual blocks, attention, changes of resolution."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
#: Depthwise convolution, its transpose, and average pooling, by number of axes.
FUNCTIONS: dict[int, Any] = {
    1: (F.conv1d, F.conv_transpose1d, F.avg_pool1d),
    2: (F.conv2d, F.conv_transpose2d, F.avg_pool2d),
    3: (F.conv3d, F.conv_transpose3d, F.avg_pool3d),
}
TAPS = (1.0, 3.0, 3.0, 1.0)


@dataclass(frozen=True)
class Style:
    """What all blocks of a network share.

    Attributes:
        dims: Number of spatial axes.
        groups: Largest number of groups of a group norm.
        dropout: Probability of dropping a hidden value of a block while training.
        rescale: Whether sums of a block and its input are divided by sqrt(2).
        head_channels: Channels of a head of attention.
        fir: Whether resolutions change through the filter (1, 3, 3, 1) in place of (1, 1).
    """

    dims: int
    groups: int
    dropout: float
    rescale: bool
    head_channels: int
    fir: bool

    def sum(self, x: Tensor, h: Tensor) -> Tensor:
        """Return the sum of a block's input and update."""
        return (x + h) * math.sqrt(0.5) if self.rescale else x + h


class Block(nn.Module):
    """Residual block, scaled and shifted by the noise level after its second norm.

    Attention after it and a change of resolution within it (Brock et al. 2019, arXiv:1809.11096, figure 15)
    are optional.
    """

    def __init__(
        self, style: Style, inner: int, width: int, attend: bool = False, resize: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.style, self.width, self.resize = style, width, resize
        self.norm1 = group_norm(inner, style.groups)
        self.conv1 = convolution(style.dims, inner, width)
        self.norm2 = group_norm(width, style.groups, affine=False)
        self.conv2 = zeroed(convolution(style.dims, width, width))
        self.skip = convolution(style.dims, inner, width, kernel=1) if inner != width else nn.Identity()
        self.attention = Attention(style, width) if attend else nn.Identity()

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor, size: torch.Size | None = None) -> Tensor:
        """Map ``x``, (B, inner, *old), to (B, width, *size); ``scale`` and ``shift`` are (B or 1, width)."""
        h = F.silu(self.norm1(x))
        if self.resize is not None:
            h, x = self.resize(h, size), self.resize(x, size)
        h = self.norm2(self.conv1(h))
        per_channel = scale.shape + (1,) * (x.ndim - 2)
        h = F.silu(torch.addcmul(shift.reshape(per_channel), scale.reshape(per_channel), h))
        if self.style.dropout and self.training:
            h = F.dropout(h, self.style.dropout)
        return self.attention(self.style.sum(self.skip(x), self.conv2(h)))


class Attention(nn.Module):
    """Self-attention over all pixels, added to its input."""

    def __init__(self, style: Style, width: int) -> None:
        super().__init__()
        self.style, self.heads = style, divisor(width, width // style.head_channels)
        self.norm = group_norm(width, style.groups)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.output = zeroed(nn.Conv1d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``x``, (B, width, *size), to the same shape."""
        flat = x.flatten(2)
        heads = (x.shape[0], 3 * self.heads, x.shape[1] // self.heads, flat.shape[2])
        q, k, v = self.qkv(self.norm(flat)).reshape(heads).transpose(2, 3).chunk(3, dim=1)
        h = attend(q, k, v).transpose(2, 3).reshape(flat.shape)
        return self.style.sum(flat, self.output(h)).reshape(x.shape)


class Resample(nn.Module):
    """A convolution to half, or after a doubling, of the pixels."""

    def __init__(self, style: Style, width: int, resize: Halve | Double) -> None:
        super().__init__()
        strided = isinstance(resize, Halve) and not style.fir
        self.resize = None if strided else resize
        self.conv = convolution(style.dims, width, width, stride=2 if strided else 1)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        """Map ``x``, (B, width, *old), to (B, width, *size)."""
        return self.conv(x if self.resize is None else self.resize(x, size))


class Inject(nn.Module):
    """Progressive input: the data, halved again and again, join the way down."""

    def __init__(self, style: Style, inner: int, width: int, residual: bool) -> None:
        super().__init__()
        self.style, self.residual, self.halve = style, residual, Halve(style)
        self.conv = convolution(style.dims, inner, width, kernel=3 if residual else 1)

    def forward(self, h: Tensor, pyramid: Tensor) -> tuple[Tensor, Tensor]:
        """Return features joined by the pyramid's next level, and that level."""
        pyramid = self.halve(pyramid)
        if not self.residual:
            return h + self.conv(pyramid), pyramid
        h = self.style.sum(h, self.conv(pyramid))
        return h, h


class Halve(nn.Module):
    """Half the pixels per axis, rounded up: weighted means over pixels that exist, so constants stay."""

    kernel: Tensor

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.dims, self.fir = style.dims, style.fir
        self.register_buffer("kernel", outer(style.dims), persistent=False)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        """Map (B, C, *size) to (B, C, *ceil(size / 2))."""
        convolve, _, pool = FUNCTIONS[self.dims]
        if not self.fir:
            sides = [min(2, n) for n in x.shape[2:]]
            return pool(x, sides, 2, ceil_mode=True, count_include_pad=False)
        # Pixel i of the result lies between 2i and 2i + 1 and weighs 2i - 1 to 2i + 2.
        margins = [margin for n in reversed(x.shape[2:]) for margin in (1, 1 + n % 2)]
        kernel = self.kernel.to(x.dtype)
        weight = convolve(F.pad(torch.ones_like(x[:1, :1]), margins), kernel, stride=2)
        depthwise = kernel.expand(x.shape[1], *kernel.shape[1:])
        return convolve(F.pad(x, margins), depthwise, stride=2, groups=x.shape[1]) / weight


class Double(nn.Module):
    """Twice the pixels per axis, or one less: pixels repeated, or weighted means of their neighbours."""

    kernel: Tensor

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.dims, self.fir = style.dims, style.fir
        self.register_buffer("kernel", outer(style.dims), persistent=False)

    def forward(self, x: Tensor, size: torch.Size | None = None) -> Tensor:
        """Map (B, C, *n) to (B, C, *size), each of size 2n or 2n - 1."""
        size = torch.Size(2 * n for n in x.shape[2:]) if size is None else size
        if not self.fir:
            return F.interpolate(x, size=size, mode="nearest")  # pixel i there repeats pixel i // 2 here
        spread, kernel = FUNCTIONS[self.dims][1], self.kernel.to(x.dtype)
        weight = spread(torch.ones_like(x[:1, :1]), kernel, stride=2, padding=1)
        depthwise = kernel.expand(x.shape[1], *kernel.shape[1:])
        y = spread(x, depthwise, stride=2, padding=1, groups=x.shape[1]) / weight
        return crop(y, size)


def crop(x: Tensor, size: torch.Size) -> Tensor:
    """Return the first pixels of (B, C, *larger), (B, C, *size)."""
    for axis, n in enumerate(size):
        x = x.narrow(2 + axis, 0, n)
    return x


def outer(dims: int) -> Tensor:
    """Return the filter's taps as a kernel over ``dims`` axes, (1, 1, 4, ...), that sums to one."""
    taps = torch.tensor(TAPS) / sum(TAPS)
    kernel = taps
    for _ in range(dims - 1):
        kernel = kernel.unsqueeze(-1) * taps
    return kernel[None, None]


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention's mean of values: q, k and v are (B, heads, tokens, channels)."""
    # Written out, because torch's fused attention has no forward-mode derivative on CPUs.
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1) @ v


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
