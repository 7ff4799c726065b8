"""Patches of the two photographs that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .digits import Split

#: Side of a tile in patches, and parts of ten that train, validate and are held out.
_TILE, _TENTHS = 4, (8, 1, 1)


def patches(size: int = 8, *, colour: bool = False, stride: int = 1) -> Split:
    """Natural-image patches: squares of the two photographs of scikit-learn, a temple and a flower.

    The photographs are cut into tiles of four patches' width. Of the tiles, in the order of
    ``numpy.random.default_rng(0).permutation``, eight tenths train, one validates and one is held out; a
    patch lies inside one tile, so no pixel is in two parts. (Tiles of different parts do touch: the parts are
    of one distribution, and no less alike than places of one picture are.) Validation and held-out patches
    do not overlap each other either.

    Args:
        size: Side of a patch in pixels, at most 64.
        colour: Three channels instead of grey (ITU-R 601 luma).
        stride: Pixels between training patches; `size` for patches that do not overlap.

    Returns:
        ``(train, val, test)``, uint8 tensors (N, 1 or 3, size, size) of levels 0..255.

    Raises:
        ImportError: If scikit-learn is not installed.
        ValueError: If size or stride is out of range.

    Example:
        >>> train, val, test = patches(8)
        >>> train.shape, len(val), len(test)
        (torch.Size([260000, 1, 8, 8]), 832, 832)
    """
    if not 1 <= size <= 64 or stride < 1:
        raise ValueError(
            f"size={size}, stride={stride}: give a size from 1 to 64 pixels and a stride of at least 1"
        )
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as error:
        raise ImportError(
            "the photographs come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    tiles = torch.cat([_tiles(image, _TILE * size, colour) for image in load_sample_images().images])
    order = np.random.default_rng(0).permutation(len(tiles))
    ends = np.cumsum(_TENTHS) * len(tiles) // sum(_TENTHS)
    train, val, test = (tiles[part] for part in np.split(order, ends[:-1]))
    return Split(_windows(train, size, stride), *(_windows(part, size, size) for part in (val, test)))


def _tiles(image: np.ndarray, side: int, colour: bool) -> Tensor:
    """Tiles (n, C, side, side) of a photograph (H, W, 3)."""
    from PIL import Image

    pixels = np.asarray(Image.fromarray(image).convert("RGB" if colour else "L"))
    x = torch.from_numpy(np.atleast_3d(pixels).copy()).permute(2, 0, 1)
    return _windows(x[None], side, side)


def _windows(x: Tensor, size: int, stride: int) -> Tensor:
    """All squares of images (N, C, H, W), (n, C, size, size)."""
    squares = x.unfold(2, size, stride).unfold(3, size, stride)  # (N, C, rows, columns, size, size)
    return squares.permute(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1], size, size)
