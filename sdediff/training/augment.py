"""What is done to a batch before it is noised, and to held-out data."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdediff.training.sources import step_seed

#: A function (x, seed) of a batch in data units, or (x, seed, *, indices), that returns x or (x, labels).
Augmentation = Callable[..., Any]


def augmented(
    augment: Augmentation | None, x: Tensor, seed: int, indices: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Augmented data and augmentation labels, None without; rows are named where the function takes names."""
    if augment is None:
        return x, None
    indices = torch.arange(len(x)) if indices is None else indices
    if "indices" in inspect.signature(augment).parameters:
        result = augment(x, seed, indices=indices.to(x.device))
    else:  # another process's rows are not to be changed alike
        result = augment(x, step_seed(seed, "rows", int(indices[0])) if indices[0] else seed)
    return result if isinstance(result, tuple) else (result, None)


def cleaned(augment: Augmentation | None, x: Tensor, seed: int) -> Tensor:
    """What of an augmentation is done to held-out data too: its `clean`, else all of it; without labels.

    Example:
        >>> from sdediff.data import Augment, Compose, dequantise
        >>> x = torch.arange(4.0).reshape(1, 1, 2, 2)
        >>> torch.equal(cleaned(Augment(flip=True, p=1.0), x, 0), x)
        True
        >>> torch.equal(cleaned(Compose(dequantise, Augment(flip=True, p=1.0)), x, 0), dequantise(x, 0))
        True
    """
    return augmented(getattr(augment, "clean", augment), x, seed)[0]
