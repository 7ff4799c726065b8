"""Geometric augmentation of images, with labels that tell the network what was done."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from solvers import noise

#: Data, or data and augmentation labels (B, dim).
Augmented = Tensor | tuple[Tensor, Tensor]

#: Counters of an augmentation's uniform numbers in the DATA stream; the first says which changes are made.
_WHICH, _AMOUNT = 0, 1
_CHANGES = 5  # flips along width and height, shift, rotation, scale


@dataclass(frozen=True)
class Augment:
    r"""Flips, shifts, rotations and zooms of images, each for some of the rows.

    Each change is made with probability `p`, independent of the others, so that some rows stay as they are.
    What is done to a row is a function of (seed, row). Flips and shifts move pixels and keep their values
    (pixels shifted in repeat the edge); rotations and zooms interpolate linearly, which smooths: use them
    with `labels`, or the model learns smoothed images too.

    With `labels`, a row also gets the numbers that say what was done to it, 0 for nothing. A network with
    ``augment_dim=augment.dim`` that is trained on them and then asked with none (or zeros) models the data
    as they are: augmentation does not leak into samples or densities.

    Args:
        flip: Mirror left and right.
        upside_down: Mirror top and bottom.
        shift: Largest shift along each axis, in pixels; shifts are whole numbers.
        rotate: Largest angle of rotation about the middle, in degrees, either way.
        scale: Largest zoom factor, at least 1; the zoom's logarithm is uniform.
        p: Probability of each change.
        labels: Whether to return (x, labels).
        levels: Round to whole numbers, for levels that are dequantised afterwards.

    Raises:
        ValueError: If an amount is out of range or nothing is changed.

    Source: Karras et al. 2022, arXiv 2206.00364, appendix F.1 (p = 0.12 there), after Karras et al. 2020,
        arXiv 2006.06676; here without anisotropic scaling, and the labels of amounts are divided by the
        largest ones.

    Example:
        >>> augment = Augment(flip=True, shift=1, labels=True)
        >>> x, labels = augment(torch.rand(4, 1, 8, 8), seed=0)
        >>> x.shape, labels.shape, augment.dim
        (torch.Size([4, 1, 8, 8]), torch.Size([4, 3]), 3)
    """

    flip: bool = False
    upside_down: bool = False
    shift: int = 0
    rotate: float = 0.0
    scale: float = 1.0
    p: float = 0.5
    labels: bool = False
    levels: bool = False

    #: What is done to validation data and to those that units are learnt from: nothing.
    clean = None

    def __post_init__(self) -> None:
        if self.shift < 0 or int(self.shift) != self.shift or not 0 <= self.rotate <= 180:
            raise ValueError(
                f"shift={self.shift}, rotate={self.rotate}: give whole pixels of at least 0, and from 0 to "
                "180 degrees"
            )
        if not self.scale >= 1 or not 0 < self.p <= 1:
            raise ValueError(f"scale={self.scale}, p={self.p}: give a zoom of at least 1, and 0 < p <= 1")
        if not self.dim:
            raise ValueError("nothing is to be changed: give flip=True, shift=1 or another change")

    @property
    def dim(self) -> int:
        """Numbers in a label: the network's ``augment_dim``."""
        return sum(self._used())

    def __call__(self, x: Tensor, seed: int = 0, *, indices: Tensor | None = None) -> Augmented:
        """Change images x (B, C, H, W); `indices` (B,) name the rows, 0 .. B-1 when left out."""
        if x.ndim != 4:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, but images (B, C, H, W) are needed: leave augment= out for "
                "other data"
            )
        rows = torch.arange(len(x)) if indices is None else indices
        which = self._uniform(seed, rows, _WHICH, _CHANGES, x.device) < self.p
        amount = 2 * self._uniform(seed, rows, _AMOUNT, 4, x.device) - 1  # two shifts, angle, zoom
        made = which & torch.tensor(self._enabled(), device=x.device)
        for change, axis in ((0, 3), (1, 2)):
            if self._enabled()[change]:
                x = torch.where(made[:, change, None, None, None], x.flip(axis), x)
        pixels = (amount[:, :2] * (self.shift + 0.5)).round().clamp(-self.shift, self.shift) * made[:, 2:3]
        angle = (amount[:, 2] * made[:, 3] * self.rotate).deg2rad()
        zoom = amount[:, 3] * made[:, 4]
        if self.rotate or self.scale > 1:
            x = _turned(x, angle, self.scale**zoom, made[:, 3] | made[:, 4])
        if self.shift:
            x = _shifted(x, pixels.long())
        x = x.round() if self.levels else x
        if not self.labels:
            return x
        told = [made[:, 0], made[:, 1], *(pixels / max(1, self.shift)).T, angle.cos() - 1, angle.sin(), zoom]
        chosen = [number for number, used in zip(told, self._used(), strict=True) if used]
        dtype = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        return x, torch.stack([number.to(dtype) for number in chosen], dim=1)

    def _enabled(self) -> list[bool]:
        return [self.flip, self.upside_down, self.shift > 0, self.rotate > 0, self.scale > 1]

    def _used(self) -> list[bool]:
        """Which of the seven numbers of a full label are told: shifts and angles have two."""
        enabled = self._enabled()
        return [*enabled[:2], enabled[2], enabled[2], enabled[3], enabled[3], enabled[4]]

    @staticmethod
    def _uniform(seed: int, rows: Tensor, counter: int, n: int, device: torch.device) -> Tensor:
        # Other numbers of columns would make counters overlap.
        u = noise.uniform(seed, rows.cpu(), noise.Stream.DATA, counter, (_CHANGES,), torch.float32)
        return u[:, :n].to(device)


def _turned(x: Tensor, angle: Tensor, zoom: Tensor, made: Tensor) -> Tensor:
    """Images rotated and zoomed about the middle; rows of which nothing is asked keep their very pixels."""
    height, width = x.shape[2:]
    cos, sin, zero = angle.cos() / zoom, angle.sin() / zoom, torch.zeros_like(angle)
    # Where each pixel comes from, in coordinates of -1 .. 1 along each axis.
    matrix = torch.stack([cos, sin * height / width, zero, -sin * width / height, cos, zero], dim=1)
    values = x if x.is_floating_point() else x.to(torch.get_default_dtype())
    grid = F.affine_grid(matrix.reshape(-1, 2, 3).to(values.dtype), list(x.shape), align_corners=False)
    turned = F.grid_sample(values, grid, padding_mode="border", align_corners=False)
    return torch.where(made[:, None, None, None], turned, values)


def _shifted(x: Tensor, pixels: Tensor) -> Tensor:
    """Images moved right and down by whole pixels (B, 2); the edge is repeated."""
    height, width = x.shape[2:]
    across = torch.arange(width, device=x.device) - pixels[:, :1]
    down = torch.arange(height, device=x.device) - pixels[:, 1:]
    across, down = across.clamp(0, width - 1), down.clamp(0, height - 1)
    rows = torch.arange(len(x), device=x.device)[:, None, None]
    return x.movedim(1, 3)[rows, down[:, :, None], across[:, None, :]].movedim(3, 1)


@dataclass(frozen=True)
class Compose:
    """Augmentations one after another, such as ``Compose(dequantise, Augment(flip=True))``.

    Labels of several are put side by side; each has a seed of its own.

    Args:
        steps: Functions ``f(x, seed, indices=None)`` that return x or (x, labels).

    Example:
        >>> from sdediff.data import dequantise
        >>> both = Compose(dequantise, Augment(flip=True))
        >>> both(torch.arange(4).reshape(1, 1, 2, 2), seed=0).shape, both.clean
        (torch.Size([1, 1, 2, 2]), Compose(steps=(<function dequantise at ...>,)))
    """

    steps: tuple[Callable[..., Any], ...]

    def __init__(self, *steps: Callable[..., Any]) -> None:
        object.__setattr__(self, "steps", steps)

    @property
    def dim(self) -> int:
        """Numbers in a label."""
        return sum(getattr(step, "dim", 0) for step in self.steps if getattr(step, "labels", True))

    @property
    def clean(self) -> Compose | None:
        """What of it is done to validation data too: dequantisation, but no flips."""
        kept = [clean for step in self.steps if (clean := getattr(step, "clean", step)) is not None]
        return Compose(*kept) if kept else None

    def __call__(self, x: Tensor, seed: int = 0, *, indices: Tensor | None = None) -> Augmented:
        """Apply all steps to x (B, *E)."""
        told = []
        for number, step in enumerate(self.steps):
            made = step(x, _seed(seed, number), indices=indices)
            x = made[0] if isinstance(made, tuple) else made
            told += [made[1]] if isinstance(made, tuple) else []
        return (x, torch.cat(told, dim=1)) if told else x


def _seed(seed: int, number: int) -> int:
    """Of one of several steps, so that two alike do different things; the first keeps the seed."""
    if number == 0:
        return seed
    digest = hashlib.blake2b(f"{seed}/augment/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
