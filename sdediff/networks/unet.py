"""One U-Net for signals, images and volumes of any size, of which the published families are settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import (
    CONVOLUTIONS,
    Block,
    Double,
    Halve,
    Inject,
    Resample,
    Style,
    convolution,
    group_norm,
    zeroed,
)
from .embeddings import NoiseEmbedding, fraction, whole

__all__ = ["UNet"]

AXES = {1: "L", 2: "H, W", 3: "D, H, W"}
CHOICES = {
    "resample": ("conv", "block"),
    "input_pyramid": ("none", "residual", "skip"),
    "output_pyramid": ("none", "skip"),
}
Modulations = Iterator[tuple[Tensor, Tensor]]


class UNet(nn.Module):
    r"""U-Net of residual blocks, scaled and shifted by the noise level, with self-attention at chosen levels.

    Level k works with ``base * multipliers[k]`` channels on ``ceil(size / 2^k)`` pixels per axis, and the way
    up returns to the exact sizes of the feature maps it joins, so data of any size fit without padding. The
    output convolution starts at zero, and hence so does the network.

    Args:
        channels: Channels of the data, at least 1.
        dims: Number of spatial axes: 1 for signals (B, C, L), 2 for images (B, C, H, W), 3 for volumes.
        base: Channels of the finest level, at least 4.
        multipliers: Width of each level in units of ``base``, finest first, one per level.
        blocks: Residual blocks per level on the way down; there is one more on the way up.
        attention: Levels with self-attention, negative ones counted from the coarsest; its memory grows with
            the square of the number of pixels there. Where there is any, the middle has it too.
        groups: Largest number of groups in a group norm; the number used divides the channels and leaves at
            least four of them in a group.
        dropout: Probability in [0, 1) of dropping a hidden value of a block while training.
        cond_dim: Length of the vector condition of each row; 0 for none.
        num_classes: Number of class labels; 0 for none.
        optional_cond: Whether rows may have no condition: ``cond=None`` for all, label -1 or NaN for one.
        augment_dim: Length of the labels of an augmentation; 0 for none.
        resample: Between levels, "conv" (a convolution) or "block" (a residual block that changes the size).
        fir: Whether sizes change through the filter (1, 3, 3, 1), which keeps aliases out, in place of
            strides, means of two and repetition.
        input_pyramid: How the data, halved again and again, join the way down: "none", "residual" (by
            convolutions that build on one another) or "skip" (as they are).
        output_pyramid: "none", or "skip": the output is a sum of one image per level, doubled as needed.
        rescale: Whether sums of a block and its input are divided by sqrt(2).
        head_channels: Channels of a head of attention.
        values: Numbers put out for every entry; with more than 1 they are the output's second axis.

    Raises:
        ValueError: If an argument is out of its range, or conditions do not go together.

    References:
        Ronneberger et al. (2015), arXiv:1505.04597; Ho et al. (2020), arXiv:2006.11239, appendix B; Song et
        al. (2021), arXiv:2011.13456, appendix H, for ``rescale``, ``fir`` and the
        pyramids; Zhang (2019), arXiv:1904.11486, for the filter.

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
        resample: str = "conv",
        fir: bool = False,
        input_pyramid: str = "none",
        output_pyramid: str = "none",
        rescale: bool = True,
        head_channels: int = 64,
        values: int = 1,
    ) -> None:
        super().__init__()
        self.config = check_levels(channels, dims, base, multipliers, blocks, attention, groups, dropout)
        self.config |= check_variant(resample, fir, input_pyramid, output_pyramid, rescale, head_channels)
        self.channels, self.dims, self.values = channels, dims, whole("UNet", "values", values, 1)
        self.style = Style(dims, groups, self.config["dropout"], bool(rescale), head_channels, bool(fir))
        widths = [base * multiplier for multiplier in self.config["multipliers"]]
        attended = {level % len(widths) for level in self.config["attention"]}
        self.stem = convolution(dims, channels, base)
        self.down, skips = self._way_down(widths, attended)
        width = widths[-1]
        self.middle = nn.ModuleList(Block(self.style, width, width, bool(attended) and not i) for i in (0, 1))
        self.up = self._way_up(widths, attended, skips)
        self.injections, self.heads = nn.ModuleList(), nn.ModuleList()
        if input_pyramid != "none":
            residual = input_pyramid == "residual"
            inner = [channels, *(widths if residual else [channels] * len(widths))]
            pairs = zip(inner, widths[:-1], strict=False)
            self.injections.extend(Inject(self.style, n, width, residual) for n, width in pairs)
        if output_pyramid != "none":
            self.heads.extend(head(self.style, width, values * channels) for width in widths[:0:-1])
            self.enlarge = Double(self.style)
        self.norm = group_norm(widths[0], groups)
        self.output = zeroed(convolution(dims, widths[0], values * channels))
        modulated = [part.width for part in (*self.down, *self.middle, *self.up) if isinstance(part, Block)]
        conditions = (cond_dim, num_classes, optional_cond, augment_dim)
        self.embedding = NoiseEmbedding(modulated, 2 * base, 4 * base, *conditions, owner="UNet")
        self.config |= self.embedding.config | {"values": self.values}

    def _way_down(self, widths: list[int], attended: set[int]) -> tuple[nn.ModuleList, list[int]]:
        """Blocks and, between levels, what halves; and the channels that each part leaves for the way up."""
        parts, skips = nn.ModuleList(), [self.config["base"]]
        for level, width in enumerate(widths):
            for _ in range(self.config["blocks"]):
                parts.append(Block(self.style, skips[-1], width, level in attended))
                skips.append(width)
            if level + 1 < len(widths):
                parts.append(self._resizing(width, Halve(self.style)))
                skips.append(width)
        return parts, skips

    def _way_up(self, widths: list[int], attended: set[int], skips: list[int]) -> nn.ModuleList:
        """Blocks that join what the way down left and, between levels, what doubles."""
        parts, inner = nn.ModuleList(), widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(self.config["blocks"] + 1):
                parts.append(Block(self.style, inner + skips.pop(), width, level in attended))
                inner = width
            if level:
                parts.append(self._resizing(width, Double(self.style)))
        return parts

    def _resizing(self, width: int, resize: Halve | Double) -> nn.Module:
        if self.config["resample"] == "block":
            return Block(self.style, width, width, resize=resize)
        return Resample(self.style, width, resize)

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
                f"UNet(channels={self.channels}, dims={self.dims}) was given x of shape {tuple(x.shape)}: "
                f"give (B, {self.channels}, {AXES[self.dims]}) with no empty axis."
            )
        self.embedding.check_inputs(x, t, cond, augment)
        modulations = iter(self.embedding(t, cond, augment))
        skips = self._descend(x, modulations)
        h = skips[-1]
        for part in self.middle:
            h = part(h, *next(modulations))
        heads, image = iter(self.heads), None
        for part in self.up:
            if not resizes(part):
                h = part(torch.cat([h, skips.pop()], dim=1), *next(modulations))
                continue
            if self.heads:
                image = self._add(next(heads)(h), image)
            h = run(part, h, modulations, skips[-1].shape[2:])
        out = self._add(self.output(F.silu(self.norm(h))), image)
        return out if self.values == 1 else out.unflatten(1, (self.values, self.channels))

    def _descend(self, x: Tensor, modulations: Modulations) -> list[Tensor]:
        """Return the features that each part on the way down leaves."""
        skips, pyramid, injections = [self.stem(x)], x, iter(self.injections)
        for part in self.down:
            h = run(part, skips[-1], modulations)
            if self.injections and resizes(part):
                h, pyramid = next(injections)(h, pyramid)
            skips.append(h)
        return skips

    def _add(self, image: Tensor, coarser: Tensor | None) -> Tensor:
        """Add the doubled image of the coarser levels to one level's image."""
        return image if coarser is None else image + self.enlarge(coarser, image.shape[2:])


def resizes(part: nn.Module) -> bool:
    """Return whether a part of a way changes the size."""
    return isinstance(part, Resample) or part.resize is not None


def run(part: nn.Module, h: Tensor, modulations: Modulations, size: torch.Size | None = None) -> Tensor:
    """Apply a part of a way; a block takes its scale and shift."""
    return part(h, *next(modulations), size) if isinstance(part, Block) else part(h, size)


def head(style: Style, width: int, channels: int) -> nn.Module:
    """Return the layers that make an image of a level's features, zero at first."""
    return nn.Sequential(
        group_norm(width, style.groups), nn.SiLU(), zeroed(convolution(style.dims, width, channels))
    )


def check_levels(
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


def check_variant(
    resample: str, fir: bool, input_pyramid: str, output_pyramid: str, rescale: bool, head_channels: int
) -> dict[str, Any]:
    """Return the checked settings of a family as a dict, or raise a one-sentence ``ValueError``."""
    chosen = {"resample": resample, "input_pyramid": input_pyramid, "output_pyramid": output_pyramid}
    for name, value in chosen.items():
        if value not in CHOICES[name]:
            raise ValueError(f"UNet was given {name}={value!r}: take one of {', '.join(CHOICES[name])}.")
    return {
        **chosen,
        "fir": bool(fir),
        "rescale": bool(rescale),
        "head_channels": whole("UNet", "head_channels", head_channels, 1),
    }
