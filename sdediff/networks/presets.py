"""The published families of U-Nets and sizes of transformers, as settings of this package's networks."""

from __future__ import annotations

from collections.abc import Sequence

from .dit import DiT
from .embeddings import fraction
from .unet import UNet

__all__ = ["ADM", "DDPMpp", "NCSNpp", "SizedDiT"]


def DDPMpp(
    channels: int = 3,
    dims: int = 2,
    base: int = 128,
    multipliers: Sequence[int] = (1, 2, 2, 2),
    blocks: int = 4,
    attention: Sequence[int] = (1,),
    dropout: float = 0.1,
    fir: bool = False,
    cond_dim: int = 0,
    num_classes: int = 0,
    optional_cond: bool = False,
    augment_dim: int = 0,
) -> UNet:
    """DDPM++ of Song et al. (2021), arXiv:2011.13456, appendix H.2; by default that for CIFAR-10.

    The noise level scales and shifts here, as in ADM, where DDPM++ only shifts.

    Args:
        channels: Channels of the data.
        dims: Number of spatial axes.
        base: Channels of the finest level; 128 in the paper.
        multipliers: Width of each level in units of ``base``.
        blocks: Residual blocks per level; 4, or 8 in the paper's "deep" models.
        attention: Levels with self-attention, here that of 16 x 16 pixels for images of 32 x 32.
        dropout: Probability in [0, 1) of dropping a hidden value.
        fir: Whether sizes change through the filter (1, 3, 3, 1).
        cond_dim: Length of the vector condition; 0 for none.
        num_classes: Number of class labels; 0 for none.
        optional_cond: Whether rows may have no condition.
        augment_dim: Length of the labels of an augmentation; 0 for none.

    Returns:
        A :class:`UNet` of these settings.

    Raises:
        ValueError: As :class:`UNet`.

    Example:
        >>> net = DDPMpp(channels=1, base=8, blocks=1)
        >>> net.config["resample"]
        'block'
    """
    conditions = (cond_dim, num_classes, optional_cond, augment_dim)
    levels = (channels, dims, base, multipliers, blocks, attention, 32, dropout)
    return UNet(*levels, *conditions, resample="block", fir=fir, head_channels=256)


def NCSNpp(
    channels: int = 3,
    dims: int = 2,
    base: int = 128,
    multipliers: Sequence[int] = (1, 2, 2, 2),
    blocks: int = 4,
    attention: Sequence[int] = (1,),
    dropout: float = 0.1,
    input_pyramid: str = "residual",
    output_pyramid: str = "none",
    cond_dim: int = 0,
    num_classes: int = 0,
    optional_cond: bool = False,
    augment_dim: int = 0,
) -> UNet:
    """NCSN++ of Song et al. (2021), arXiv:2011.13456, appendix H.1; by default that for CIFAR-10.

    Args:
        channels: Channels of the data.
        dims: Number of spatial axes.
        base: Channels of the finest level; 128 in the paper.
        multipliers: Width of each level in units of ``base``; (1, 1, 2, 2, 2, 2, 2) for 256 x 256 pixels.
        blocks: Residual blocks per level; 4, or 8 in the "deep" models, 2 for 256 x 256 pixels.
        attention: Levels with self-attention, that of 16 x 16 pixels in the paper.
        dropout: Probability in [0, 1) of dropping a hidden value.
        input_pyramid: "residual" for CIFAR-10, "skip" for large images, or "none".
        output_pyramid: "none" for CIFAR-10, "skip" for large images.
        cond_dim: Length of the vector condition; 0 for none.
        num_classes: Number of class labels; 0 for none.
        optional_cond: Whether rows may have no condition.
        augment_dim: Length of the labels of an augmentation; 0 for none.

    Returns:
        A :class:`UNet` of these settings.

    Raises:
        ValueError: As :class:`UNet`.

    Example:
        >>> net = NCSNpp(channels=1, base=8, blocks=1)
        >>> net.config["fir"], net.config["input_pyramid"]
        (True, 'residual')
    """
    conditions = (cond_dim, num_classes, optional_cond, augment_dim)
    levels = (channels, dims, base, multipliers, blocks, attention, 32, dropout)
    pyramids = (input_pyramid, output_pyramid)
    return UNet(*levels, *conditions, "block", True, *pyramids, head_channels=256)


#: Side of the images: base width, multipliers, blocks, levels of 32, 16 and 8 pixels, dropout.
ADM_SIZES: dict[int, tuple[int, tuple[int, ...], int, tuple[int, ...], float]] = {
    64: (192, (1, 2, 3, 4), 3, (1, 2, 3), 0.1),
    128: (256, (1, 1, 2, 3, 4), 2, (2, 3, 4), 0.0),
    256: (256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 0.0),
}


def ADM(
    channels: int = 3,
    size: int = 64,
    dropout: float | None = None,
    cond_dim: int = 0,
    num_classes: int = 0,
    optional_cond: bool = False,
    augment_dim: int = 0,
) -> UNet:
    """ADM of Dhariwal and Nichol (2021), arXiv:2105.05233, for images of 64, 128 or 256 pixels a side.

    Args:
        channels: Channels of the data.
        size: Which configuration of the paper's: 64, 128 or 256; the network takes images of any size.
        dropout: Probability in [0, 1) of dropping a hidden value; the paper's by default.
        cond_dim: Length of the vector condition; 0 for none.
        num_classes: Number of class labels; 0 for none.
        optional_cond: Whether rows may have no condition.
        augment_dim: Length of the labels of an augmentation; 0 for none.

    Returns:
        A :class:`UNet` of these settings.

    Raises:
        ValueError: If there is no such size; as :class:`UNet`.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     net = ADM(size=64, num_classes=1000)
        >>> round(sum(p.numel() for p in net.parameters()) / 1e6)
        296
    """
    if size not in ADM_SIZES:
        raise ValueError(f"ADM was given size={size!r}: take one of {', '.join(map(str, ADM_SIZES))}.")
    base, multipliers, blocks, attention, published = ADM_SIZES[size]
    dropout = published if dropout is None else fraction("ADM", "dropout", dropout)
    conditions = (cond_dim, num_classes, optional_cond, augment_dim)
    levels = (channels, 2, base, multipliers, blocks, attention, 32, dropout)
    return UNet(*levels, *conditions, resample="block", rescale=False, head_channels=64)


#: Name: width, blocks, heads (Peebles and Xie 2023, table 1).
DIT_SIZES = {"S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16), "XL": (1152, 28, 16)}


def SizedDiT(
    size: str = "S",
    channels: int = 3,
    dims: int = 2,
    patch: int = 2,
    dropout: float = 0.0,
    cond_dim: int = 0,
    num_classes: int = 0,
    optional_cond: bool = False,
    augment_dim: int = 0,
) -> DiT:
    """DiT-S, -B, -L and -XL of Peebles and Xie (2023), arXiv:2212.09748, table 1.

    Args:
        size: "S", "B", "L" or "XL".
        channels: Channels of the data.
        dims: Number of spatial axes.
        patch: Side of a patch in pixels; 2, 4 or 8 in the paper.
        dropout: Probability in [0, 1) of dropping an entry of a block's update.
        cond_dim: Length of the vector condition; 0 for none.
        num_classes: Number of class labels; 0 for none.
        optional_cond: Whether rows may have no condition.
        augment_dim: Length of the labels of an augmentation; 0 for none.

    Returns:
        A :class:`DiT` of this size.

    Raises:
        ValueError: If there is no such size; as :class:`DiT`.

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     net = SizedDiT("XL", channels=4, num_classes=1000, optional_cond=True)
        >>> round(sum(p.numel() for p in net.parameters()) / 1e6)
        675
    """
    if size not in DIT_SIZES:
        raise ValueError(f"SizedDiT was given size={size!r}: take one of {', '.join(DIT_SIZES)}.")
    width, depth, heads = DIT_SIZES[size]
    conditions = (cond_dim, num_classes, optional_cond, augment_dim)
    return DiT(channels, dims, patch, width, depth, heads, 4, dropout, *conditions)
