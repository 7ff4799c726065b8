"""A diffusion transformer for signals, images and volumes of any size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import CONVOLUTIONS, attend, crop, zeroed
from .embeddings import NoiseEmbedding, fraction, whole
from .unet import AXES

__all__ = ["DiT"]


class DiT(nn.Module):
    r"""Transformer on patches, whose blocks are scaled, shifted and gated by the noise level (adaLN-Zero).

    .. math::
        h \leftarrow h + g_1 \odot \mathrm{attention}(a_1 \odot \mathrm{norm}(h) + b_1), \qquad
        h \leftarrow h + g_2 \odot \mathrm{mlp}(a_2 \odot \mathrm{norm}(h) + b_2)

    Positions are sines and cosines of the patch's place, so data of any size fit; sides that the patch does
    not divide are filled up by zeros, and the output is cut to size. The gates and the output layer start at
    zero, and hence so does the network.

    Args:
        channels: Channels of the data.
        dims: Number of spatial axes: 1 for signals, 2 for images, 3 for volumes.
        patch: Side of a patch in pixels.
        width: Width of a token, a multiple of ``heads`` and of ``2 * dims``.
        depth: Number of blocks.
        heads: Heads of attention.
        ratio: Width of a block's hidden layer in units of ``width``.
        dropout: Probability in [0, 1) of dropping an entry of a block's update while training.
        cond_dim: Length of the vector condition of each row; 0 for none.
        num_classes: Number of class labels; 0 for none.
        optional_cond: Whether rows may have no condition: ``cond=None`` for all, label -1 or NaN for one.
        augment_dim: Length of the labels of an augmentation; 0 for none.
        values: Numbers put out for every entry; with more than 1 they are the output's second axis.

    Raises:
        ValueError: If an argument is out of its range, or conditions do not go together.

    References:
        Peebles and Xie (2023), arXiv:2212.09748, sections 3.2 and 4; the sizes of table 1 are those
        of :func:`SizedDiT`.

    Example:
        >>> net = DiT(channels=3, width=32, depth=1, heads=2)
        >>> net(torch.randn(2, 3, 7, 5), torch.zeros(2)).shape
        torch.Size([2, 3, 7, 5])
    """

    def __init__(
        self,
        channels: int = 1,
        dims: int = 2,
        patch: int = 2,
        width: int = 128,
        depth: int = 4,
        heads: int = 4,
        ratio: int = 4,
        dropout: float = 0.0,
        cond_dim: int = 0,
        num_classes: int = 0,
        optional_cond: bool = False,
        augment_dim: int = 0,
        values: int = 1,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "dims": dims, "patch": patch, "width": width, "depth": depth}
        sizes |= {"heads": heads, "ratio": ratio, "values": values}
        self.config: dict[str, Any] = {name: whole("DiT", name, n, 1) for name, n in sizes.items()}
        self.config["dropout"] = fraction("DiT", "dropout", dropout)
        if dims not in CONVOLUTIONS:
            raise ValueError(f"DiT was given dims={dims}: give 1 for signals, 2 for images or 3 for volumes.")
        if width % heads or width % (2 * dims):
            raise ValueError(
                f"DiT was given width={width}, which {heads} heads and {2 * dims} parts of positions do not "
                "divide: give a multiple of both."
            )
        self.channels, self.dims, self.values, self.patch, self.width = channels, dims, values, patch, width
        self.input = CONVOLUTIONS[dims](channels, width, patch, stride=patch)
        self.blocks = nn.ModuleList(Transformer(width, heads, ratio, dropout) for _ in range(depth))
        self.output = zeroed(nn.Linear(width, values * channels * patch**dims))
        conditions = (cond_dim, num_classes, optional_cond, augment_dim)
        # Per block two pairs of scale and shift and one of gates, and a last pair for the output.
        self.embedding = NoiseEmbedding([width] * (3 * depth + 1), 256, width, *conditions, owner="DiT")
        self.config |= self.embedding.config
        nn.init.zeros_(self.embedding.modulation.weight)
        with torch.no_grad():
            gates = self.embedding.modulation.bias[: 6 * width * depth].view(depth, 6, width)[:, 4:]
            gates.zero_()

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
            Output, (B, channels, \*size), or (B, values, channels, \*size).

        Raises:
            ValueError: If a shape or dtype does not fit.
        """
        if x.ndim != self.dims + 2 or x.shape[1] != self.channels or 0 in x.shape[2:]:
            raise ValueError(
                f"DiT(channels={self.channels}, dims={self.dims}) was given x of shape {tuple(x.shape)}: "
                f"give (B, {self.channels}, {AXES[self.dims]}) with no empty axis."
            )
        self.embedding.check_inputs(x, t, cond, augment)
        modulations = [(a[:, None], b[:, None]) for a, b in self.embedding(t, cond, augment)]
        margins = [m for n in reversed(x.shape[2:]) for m in (0, -n % self.patch)]
        h = self.input(F.pad(x, margins))
        grid = h.shape[2:]
        h = h.flatten(2).transpose(1, 2) + positions(grid, self.width, h)
        for i, block in enumerate(self.blocks):
            h = block(h, *modulations[3 * i : 3 * i + 3])
        scale, shift = modulations[-1]
        h = self.output(torch.addcmul(shift, scale, norm(h)))
        out = crop(self._join(h, grid), x.shape[2:])
        return out if self.values == 1 else out.unflatten(1, (self.values, self.channels))

    def _join(self, h: Tensor, grid: torch.Size) -> Tensor:
        """Lay patches (B, tokens, channels * pixels) side by side."""
        channels = self.values * self.channels
        h = h.reshape(len(h), *grid, channels, *[self.patch] * self.dims)
        # (B, grid 1, grid 2, C, patch 1, patch 2) to (B, C, grid 1, patch 1, grid 2, patch 2)
        pairs = [axis for i in range(self.dims) for axis in (1 + i, 2 + self.dims + i)]
        sides = [n * self.patch for n in grid]
        return h.permute(0, 1 + self.dims, *pairs).reshape(len(h), channels, *sides)


class Transformer(nn.Module):
    """Attention and a hidden layer, each scaled and shifted before and gated after."""

    def __init__(self, width: int, heads: int, ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.Linear(width, ratio * width), nn.Linear(ratio * width, width)
        for layer in (self.qkv, self.mix, self.first, self.second):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, h: Tensor, *modulations: tuple[Tensor, Tensor]) -> Tensor:
        """Map tokens, (B, tokens, width), to the same shape; modulations are (B or 1, 1, width)."""
        (scale1, shift1), (scale2, shift2), (gate1, gate2) = modulations
        h = h + gate1 * self._drop(self.attention(torch.addcmul(shift1, scale1, norm(h))))
        hidden = F.gelu(self.first(torch.addcmul(shift2, scale2, norm(h))), approximate="tanh")
        return h + gate2 * self._drop(self.second(hidden))

    def attention(self, h: Tensor) -> Tensor:
        """Return what each token takes from all tokens."""
        rows, tokens, width = h.shape
        qkv = self.qkv(h).reshape(rows, tokens, 3 * self.heads, width // self.heads)
        q, k, v = qkv.transpose(1, 2).chunk(3, dim=1)
        return self.mix(attend(q, k, v).transpose(1, 2).reshape(rows, tokens, width))

    def _drop(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout) if self.dropout and self.training else h


def norm(h: Tensor) -> Tensor:
    """Return tokens of mean 0 and variance 1."""
    return F.layer_norm(h, h.shape[-1:], eps=1e-6)


def positions(grid: torch.Size, width: int, like: Tensor) -> Tensor:
    """Return sines and cosines of each patch's place, axis after axis, (tokens, width).

    Vaswani et al. (2017), arXiv:1706.03762, section 3.5, for each axis by itself.
    """
    count = width // (2 * len(grid))
    omega = 10000 ** -(torch.arange(count, dtype=torch.float64) / count)
    axes = []
    for axis, n in enumerate(grid):
        angle = torch.arange(n, dtype=torch.float64)[:, None] * omega
        waves = torch.cat([angle.sin(), angle.cos()], dim=1)
        shape = [n if i == axis else 1 for i in range(len(grid))]
        axes.append(waves.reshape(*shape, 2 * count).expand(*grid, -1))
    return torch.cat(axes, dim=-1).reshape(-1, width).to(like)
