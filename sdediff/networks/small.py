"""A network for small images and few data: one look at the whole picture, then convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import CONVOLUTIONS, convolution, divisor, zeroed
from .embeddings import NoiseEmbedding, fraction, whole
from .mlp import MLP

__all__ = ["SmallImageNet"]

#: Learned numbers that tell a pixel where it is.
PLACES = 8


class SmallImageNet(nn.Module):
    r"""An MLP that sees all pixels hands features to each, and residual convolutions do the rest.

    A U-Net goes down and up to see the whole of an image. Where an image has few pixels, one narrow MLP does
    that at a small part of the cost; its features tell each pixel what the picture shows. Convolutions then
    settle the details, with weights that all pixels share, which is what keeps a network from overfitting a
    few hundred images. Each pixel also has learned numbers that say where it is, and a bias of its own.

    Args:
        shape: Shape of an image, (channels, \*size), of one to three axes.
        features: Numbers that the MLP hands to every entry, at least 2.
        hidden: Width of the MLP.
        whole_blocks: Residual blocks of the MLP.
        channels: Channels of the convolutions, at least 4.
        blocks: Residual blocks of two convolutions.
        dropout: Probability in [0, 1) of dropping a hidden value of the convolutions while training.
        whole_dropout: The same for the MLP, which has most of the parameters.
        cond_dim: Length of the vector condition of each row; 0 for none.
        num_classes: Number of class labels; 0 for none.
        optional_cond: Whether rows may have no condition: ``cond=None`` for all, label -1 or NaN for one.
        augment_dim: Length of the labels of an augmentation; 0 for none.
        values: Numbers put out for every entry; with more than 1 they are the output's second axis.

    Raises:
        ValueError: If an argument is out of its range, or conditions do not go together.

    Example:
        >>> net = SmallImageNet((1, 8, 8), hidden=32, channels=8, values=17)
        >>> net(torch.randn(5, 1, 8, 8), torch.zeros(5)).shape
        torch.Size([5, 17, 1, 8, 8])
    """

    def __init__(
        self,
        shape: Sequence[int],
        features: int = 8,
        hidden: int = 192,
        whole_blocks: int = 2,
        channels: int = 32,
        blocks: int = 2,
        dropout: float = 0.0,
        whole_dropout: float = 0.0,
        cond_dim: int = 0,
        num_classes: int = 0,
        optional_cond: bool = False,
        augment_dim: int = 0,
        values: int = 1,
    ) -> None:
        super().__init__()
        name = "SmallImageNet"
        if len(shape) - 1 not in CONVOLUTIONS:
            raise ValueError(f"{name} was given shape={shape!r}: give (channels, *size), of 1 to 3 axes.")
        self.shape = tuple(whole(name, "size", size, 1) for size in shape)
        self.values = whole(name, "values", values, 1)
        self.config = {
            "shape": list(self.shape),
            "features": whole(name, "features", features, 2),
            "hidden": whole(name, "hidden", hidden, 1),
            "whole_blocks": whole(name, "whole_blocks", whole_blocks, 1),
            "channels": whole(name, "channels", channels, 4),
            "blocks": whole(name, "blocks", blocks, 1),
            "dropout": (dropout := fraction(name, "dropout", dropout)),
            "whole_dropout": fraction(name, "whole_dropout", whole_dropout),
            "values": self.values,
        }
        conditions = (cond_dim, num_classes, optional_cond, augment_dim)
        self.embedding = NoiseEmbedding([channels] * blocks, 64, 64, *conditions, owner=name)
        self.config |= self.embedding.config
        size = math.prod(self.shape)
        self.whole = MLP(
            size, hidden, whole_blocks, *conditions[:2], whole_dropout, 64, *conditions[2:], features
        )
        dims, colours = len(self.shape) - 1, self.shape[0]
        self.place = nn.Parameter(torch.randn(PLACES, *self.shape[1:]))
        self.stem = convolution(dims, colours * (1 + features) + PLACES, channels)
        self.blocks = nn.ModuleList(_Block(dims, channels, dropout) for _ in range(blocks))
        self.output = zeroed(convolution(dims, channels, colours * self.values, kernel=1))
        self.bias = nn.Parameter(torch.zeros(colours * self.values, *self.shape[1:]))

    def forward(
        self, x: Tensor, t: Tensor, cond: Tensor | None = None, augment: Tensor | None = None
    ) -> Tensor:
        r"""Return the network's output.

        Args:
            x: Unit-scale data, (B, \*shape).
            t: Noise level ``log(sigma / alpha) / 4``, (B,).
            cond: None, (B, cond_dim) floating point, or (B,) integer labels, as built.
            augment: None, or labels of an augmentation, (B, augment_dim).

        Returns:
            Output, (B, \*shape), or (B, values, \*shape).

        Raises:
            ValueError: If a shape or dtype does not fit.
        """
        if x.shape[1:] != self.shape:
            raise ValueError(
                f"SmallImageNet(shape={self.shape}) was given x of shape {tuple(x.shape)}: "
                f"give (B, {', '.join(map(str, self.shape))})."
            )
        seen = self.whole(x, t, cond, augment).flatten(1, 2)  # (B, features * channels, *size)
        place = self.place.expand(len(x), *self.place.shape)
        h = self.stem(torch.cat([x, seen, place], dim=1))
        for block, modulation in zip(self.blocks, self.embedding(t, cond, augment), strict=True):
            h = block(h, *modulation)
        out = self.output(F.silu(h)) + self.bias
        return out if self.values == 1 else out.reshape(len(x), self.values, *self.shape)


class _Block(nn.Module):
    """Two convolutions and a norm between them, scaled and shifted by the noise level."""

    def __init__(self, dims: int, channels: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.first, self.second = (convolution(dims, channels, channels) for _ in range(2))
        self.norm = nn.GroupNorm(divisor(channels, channels // 8), channels)

    def forward(self, h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Map ``h``, (B, channels, *size), to its like; ``scale`` and ``shift`` are (B or 1, channels)."""
        per_channel = scale.shape + (1,) * (h.ndim - 2)
        update = self.norm(self.first(F.silu(h)))
        update = F.silu(torch.addcmul(shift.reshape(per_channel), scale.reshape(per_channel), update))
        if self.dropout and self.training:
            update = F.dropout(update, self.dropout)
        return h + self.second(update)
