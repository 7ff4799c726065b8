"""The 8x8 handwritten digits that come with scikit-learn, and dequantisation."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from solvers import noise


class Split(NamedTuple):
    """Training, validation and test part; each a tensor, or a pair (x, labels)."""

    train: Any
    val: Any
    test: Any


def digits(*, labels: bool = False) -> Split:
    """The 1797 handwritten 8x8 digits of scikit-learn, split 1350 / 150 / 297.

    The rows are shuffled by ``numpy.random.default_rng(0).permutation(1797)`` and cut in that order, so that
    everybody who says "the digits" holds out the same images. Grey levels are the integers 0..16 (17 levels)
    as floats: :func:`dequantise` them before you speak of densities or bits per dimension.

    Args:
        labels: Also return which digit each image shows.

    Returns:
        ``(train, val, test)``, float32 tensors (N, 1, 8, 8); with `labels`, pairs ``(x, y)`` with y int64
        (N,).

    Raises:
        ImportError: If scikit-learn is not installed.

    Source: E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI, the test part.

    Example:
        >>> train, val, test = digits()
        >>> train.shape, len(val), len(test), float(train.max())
        (torch.Size([1350, 1, 8, 8]), 150, 297, 16.0)
    """
    import numpy as np

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is not installed: pip install scikit-learn"
        ) from error
    images, target = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    x = torch.from_numpy(images[order]).float().reshape(-1, 1, 8, 8)
    y = torch.from_numpy(target[order]).long()
    parts = [slice(0, 1350), slice(1350, 1500), slice(1500, None)]
    return Split(*((x[part], y[part]) if labels else x[part] for part in parts))


def dequantise(x: Tensor, seed: int = 0, *, indices: Tensor | None = None) -> Tensor:
    """Uniform dequantisation: ``x + u`` with u uniform on (0, 1), independent for every element.

    The density of the result, integrated over a level's unit cell, is a probability of the level, so its
    log-density bounds the discrete log-probability from below on average (Theis et al. 2016, arXiv
    1511.01844, section 3.1).

    Args:
        x: Integer levels, (B, *E), of any dtype.
        seed: Seed of u; u of row i is a function of (seed, i).
        indices: Names of the rows, (B,) integers; 0 .. B-1 when left out.

    Returns:
        (B, *E), floating: the dtype of x, or torch's default for integer x.

    Raises:
        ValueError: If x holds values that are no integers: it was dequantised already, or rescaled.

    Example:
        >>> x = torch.tensor([[0.0, 16.0]])
        >>> bool((dequantise(x, seed=1).floor() == x).all())
        True
    """
    x = torch.as_tensor(x)
    if x.is_floating_point() and not bool((x == x.round()).all()):
        raise ValueError(
            "dequantise needs integer levels but was given fractions: pass the data before rescaling or "
            "dequantising"
        )
    dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
    rows = torch.arange(len(x), device=x.device) if indices is None else indices
    u = noise.uniform(seed, rows, noise.Stream.DEQUANTISE, 0, x.shape[1:], dtype, x.device)
    # A level plus u may round up to the next level; stay inside the cell.
    top = torch.nextafter(x.to(dtype) + 1, x.to(dtype))
    return torch.minimum(x.to(dtype) + u, top)
