r"""A Brownian path that can be asked for any increment, in any order, always with the same answer."""

from __future__ import annotations

import bisect
import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .noise import Noise, Stream

_DEPTH = 20  # halvings of a cell: the path is resolved to 2^-20 of it


@dataclass(frozen=True)
class _Piece:
    """Increment W and ``A = integral of (W_r - W_start) dr`` of a path over a stretch of length h."""

    h: float
    w: Tensor
    a: Tensor

    def then(self, other: _Piece) -> _Piece:
        return _Piece(self.h + other.h, self.w + other.w, self.a + other.a + self.w * other.h)

    def after(self, first: _Piece) -> _Piece:
        """What is left of this piece once `first` is cut from its start."""
        h, w = self.h - first.h, self.w - first.w
        return _Piece(h, w, self.a - first.a - first.w * h)


class BrownianPath:
    r"""W and its time integral between any two times, per sample, from a seed.

    The path is built on cells, one a grid step: the increment of cell k is :math:`\sqrt{h_k}` times the STEP
    normal of counter k, the very number a native solver draws there, so solvers driven by the path and
    solvers that draw their own noise follow the same path. Inside a cell the pair (W, H), with H the
    space-time Lévy area, is refined by halving (Foster, Lyons & Oberhauser 2020, arXiv 1904.11871, have the
    law; it is written out in `_halve`). Memory does not grow.

    Args:
        noise: Where the normals come from.
        times: Ends of the cells, rising or falling; the path runs from times[0] on.

    Raises:
        ValueError: If the times are not strictly monotone, or a query leaves them.

    Example:
        >>> import torch
        >>> path = BrownianPath(Noise(0, torch.arange(2), (3,), torch.float64), (0.0, 1.0, 2.0))
        >>> torch.allclose(path(0.0, 0.3) + path(0.3, 2.0), path(0.0, 2.0))
        True
    """

    def __init__(self, noise: Noise, times: tuple[float, ...]) -> None:
        direction = 1.0 if times[-1:] >= times[:1] else -1.0
        self.noise, self.direction, self.times = noise, direction, [direction * t for t in times]
        if len(times) < 2 or not all(b > a for a, b in itertools.pairwise(self.times)):
            raise ValueError("a Brownian path needs at least two strictly rising (or falling) times")

    def __call__(self, t: float, t_next: float) -> Tensor:
        """The increment from t to t_next (in the path's direction), (B, *E)."""
        return self._between(t, t_next).w

    def with_integral(self, t: float, t_next: float) -> tuple[Tensor, Tensor]:
        r"""The increment, and :math:`\int_t^{t_{next}} (W_r - W_t)\,dr`, both (B, *E)."""
        piece = self._between(t, t_next)
        return piece.w, piece.a

    def _between(self, t: float, t_next: float) -> _Piece:
        a, b = self.direction * t, self.direction * t_next
        slack = 1e-9 * (self.times[-1] - self.times[0])
        if not (self.times[0] - slack <= a <= b <= self.times[-1] + slack):
            raise ValueError(
                f"the path runs from {self.times[0]:g} to {self.times[-1]:g}: [{a:g}, {b:g}] is not a part "
                "of it"
            )
        first, last = self._cell(a), self._cell(b)
        if first == last:
            return self._until(first, b).after(self._until(first, a))
        piece = self._whole(first).after(self._until(first, a))
        for cell in range(first + 1, last):
            piece = piece.then(self._whole(cell))
        return piece.then(self._until(last, b))

    def _cell(self, t: float) -> int:
        return min(max(bisect.bisect_right(self.times, t) - 1, 0), len(self.times) - 2)

    def _whole(self, cell: int) -> _Piece:
        h, noise = self.times[cell + 1] - self.times[cell], self.noise.at(cell)
        w = noise.normal(Stream.STEP) * math.sqrt(h)
        area = noise.normal(Stream.AREA) * math.sqrt(h / 12)
        return _Piece(h, w, h * (0.5 * w + area))

    def _until(self, cell: int, t: float) -> _Piece:
        """The path from the cell's start to t."""
        rest = self._whole(cell)
        fraction = (t - self.times[cell]) / rest.h
        ticks = min(max(round(fraction * 2**_DEPTH), 0), 2**_DEPTH)
        zero = torch.zeros_like(rest.w)
        done, node = _Piece(0.0, zero, zero), 1
        for level in range(_DEPTH - 1, -1, -1):
            if ticks == 0:
                return done
            if ticks >= 2 << level:
                break
            left, right = self._halve(rest, cell, node)
            goes_right = ticks >= 1 << level
            done, rest = (done.then(left), right) if goes_right else (done, left)
            ticks, node = ticks - ((1 << level) if goes_right else 0), 2 * node + goes_right
        return done.then(rest) if ticks else done

    def _halve(self, piece: _Piece, cell: int, node: int) -> tuple[_Piece, _Piece]:
        r"""The two halves, given the whole.

        With H = A/h - W/2: W_left = W/2 + 3H/2 + z and H_left = H/4 - z/2 + n/2, z ~ N(0, h/16), n ~ N(0,
        h/12) independent, which gives W_left ~ N(0, h/2) and H_left ~ N(0, h/24) independent, as they must
        be.
        """
        h, noise = piece.h, self.noise.at(cell * (2 << _DEPTH) + node)
        z = noise.normal(Stream.BRIDGE, 0, 2) * math.sqrt(h / 16)
        n = noise.normal(Stream.BRIDGE, 1, 2) * math.sqrt(h / 12)
        area = piece.a / h - 0.5 * piece.w
        w = 0.5 * piece.w + 1.5 * area + z
        left = _Piece(h / 2, w, h / 2 * (0.5 * w + 0.25 * area - 0.5 * z + 0.5 * n))
        return left, piece.after(left)
