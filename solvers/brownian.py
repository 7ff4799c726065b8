r"""A Brownian path that can be asked for any increment, in any order, always with the same answer."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .noise import Noise, Stream
from .problems import Time, expand

_DEPTH = 24  # halvings of a cell; between ticks of 2^-24 of it the path is smooth
_TICKS = 1 << _DEPTH
_SNAP = 1e-3  # of a tick: what rounding does to times that are meant to be ticks
_CHUNK_NUMBERS = 1 << 16  # drawn at once, for several levels


class _Point(NamedTuple):
    """A time on the path: its cell, ticks into the cell and part of a tick; numbers, or tensors (B,)."""

    cell: Any
    ticks: Any
    part: Any

    def same(self, other: _Point) -> Any:
        """Whether two points are one: a bool, or where they are, (B,)."""
        if isinstance(self.cell, Tensor) != isinstance(other.cell, Tensor):
            return False
        return (self.cell == other.cell) & (self.ticks == other.ticks) & (self.part == other.part)


class _Piece(NamedTuple):
    """Increment W and ``A = integral of (W_r - W_start) dr`` of a path over a stretch of length h."""

    h: Any  # a float, or float64 that broadcasts against W
    w: Tensor
    a: Tensor

    def then(self, other: _Piece) -> _Piece:
        return _Piece(self.h + other.h, self.w + other.w, self.a + other.a + _times(self.w, other.h))

    def after(self, first: _Piece) -> _Piece:
        """What is left of this piece once `first` is cut from its start."""
        h, w = self.h - first.h, self.w - first.w
        return _Piece(h, w, self.a - first.a - _times(first.w, h))

    def where(self, mask: Any, other: _Piece) -> _Piece:
        """This piece where the mask (a bool, or (B,)) holds, the other elsewhere."""
        if not isinstance(mask, Tensor):
            return self if mask else other
        wide = expand(mask, self.w)
        return _Piece(*(torch.where(wide, mine, its) for mine, its in zip(self, other, strict=True)))


def _times(x: Tensor, h: Any) -> Tensor:
    return x * (h.to(x.dtype) if isinstance(h, Tensor) else h)


class BrownianPath:
    r"""W and its time integral between any two times, per sample, from a seed.

    The path is built on cells, one a grid step: the increment of cell k is :math:`\sqrt{h_k}` times the STEP
    normal of counter k, the very number a native solver draws there, so solvers driven by the path and
    solvers that draw their own noise follow the same path. Inside a cell the pair (W, H), with H the
    space-time Lévy area, is refined by halving (Foster, Lyons & Oberhauser 2020, arXiv 1904.11871, have the
    law; it is written out in `_descend`) down to 2^-24 of the cell; between those times the path is its
    conditional mean. Only the last query's two ends are kept, so memory does not grow.

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
        >>> each = path(*torch.tensor([[0.0, 0.3], [0.3, 2.0]], dtype=torch.float64))
        >>> torch.equal(each[0], path(0.0, 0.3)[0]) and torch.allclose(each[1], path(0.3, 2.0)[1])
        True
    """

    def __init__(self, noise: Noise, times: tuple[float, ...]) -> None:
        self.direction = 1.0 if times[-1:] >= times[:1] else -1.0
        self.noise, self.times = noise, [self.direction * float(t) for t in times]
        if len(times) < 2 or not all(b > a for a, b in itertools.pairwise(self.times)):
            raise ValueError("a Brownian path needs at least two strictly rising (or falling) times")
        self._known: tuple[tuple[_Point, _Piece], ...] = ()
        self._last: tuple[int, tuple[Tensor, Tensor]] | None = None

    def __call__(self, t: Time, t_next: Time) -> Tensor:
        """The increment from t to t_next (in the path's direction), (B, *E).

        Args:
            t: Start: a float, or (B,) where each sample has its own.
            t_next: End, likewise.
        """
        return self._between(t, t_next).w

    def with_integral(self, t: Time, t_next: Time) -> tuple[Tensor, Tensor]:
        r"""The increment, and :math:`\int_0^h (W_{t \pm r} - W_t)\,dr`, h = abs(t_next - t), both (B, *E)."""
        piece = self._between(t, t_next)
        return piece.w, piece.a

    def take(self, rows: Tensor) -> BrownianPath:
        """The path of the samples at `rows`."""

        def pick(value: Any) -> Any:
            return value[rows] if isinstance(value, Tensor) else value

        path = object.__new__(type(self))
        path.__dict__.update(self.__dict__, noise=self.noise.take(rows))
        path._known = tuple(
            (_Point(*map(pick, point)), _Piece(*map(pick, piece))) for point, piece in self._known
        )
        path._last = self._last and (self._last[0], (self._last[1][0][rows], self._last[1][1][rows]))
        return path

    def _between(self, t: Time, t_next: Time) -> _Piece:
        if isinstance(t, Tensor) or isinstance(t_next, Tensor):
            t, t_next = self._each(t), self._each(t_next)
        a, b = self.direction * t, self.direction * t_next
        slack = 1e-9 * (self.times[-1] - self.times[0])
        self._check((self.times[0] - slack <= a) & (a <= b) & (b <= self.times[-1] + slack), a, b)
        start, end = self._locate(a), self._locate(b)
        known = (start, self._reach(start)), (end, self._reach(end))
        self._known = known
        piece = known[1][1]
        for cell, mask in self._cells(start.cell, end.cell):
            piece = self._whole(cell).then(piece).where(mask, piece)
        return piece.after(known[0][1])

    def _each(self, t: Time) -> Tensor:
        device = torch.device(self.noise.device)
        wide = torch.float32 if device.type == "mps" else torch.float64
        return torch.as_tensor(t, dtype=wide, device=device).expand(len(self.noise.indices))

    def _check(self, inside: Any, a: Any, b: Any) -> None:
        if isinstance(inside, Tensor) and not bool(inside.all()):
            row = int((~inside).nonzero()[0])
            inside, a, b = False, float(a[row]), float(b[row])
        if not isinstance(inside, Tensor) and not inside:
            first, last, a, b = (self.direction * t + 0.0 for t in (self.times[0], self.times[-1], a, b))
            raise ValueError(f"the path runs from {first:g} to {last:g}: [{a:g}, {b:g}] is not a part of it")

    def _locate(self, t: Any) -> _Point:
        """The point at a time; the end of a cell is the start of the next."""
        if isinstance(t, Tensor):
            return self._locate_each(t)
        last = len(self.times) - 2
        cell = min(max(bisect.bisect_right(self.times, t) - 1, 0), last)
        ticks = (t - self.times[cell]) / (self.times[cell + 1] - self.times[cell]) * _TICKS
        near = round(ticks)
        snapped = abs(ticks - near) < _SNAP or not 0 <= ticks < _TICKS
        whole = min(max(near, 0), _TICKS) if snapped else math.floor(ticks)
        return _Point(cell + whole // _TICKS, whole % _TICKS, 0.0 if snapped else ticks - whole)

    def _locate_each(self, t: Tensor) -> _Point:
        last = len(self.times) - 2
        ends = torch.tensor(self.times, dtype=t.dtype, device=t.device)
        cell = (torch.searchsorted(ends, t.contiguous(), right=True) - 1).clamp_(0, last)
        ticks = (t - ends[cell]) / (ends[cell + 1] - ends[cell]) * _TICKS
        near = ticks.round()
        snapped = ((ticks - near).abs() < _SNAP) | (ticks < 0) | (ticks >= _TICKS)
        whole = torch.where(snapped, near.clamp(0, _TICKS), ticks.floor())
        part = torch.where(snapped, 0.0, ticks - whole)
        return _Point(cell + (whole >= _TICKS), whole.long() % _TICKS, part)

    @staticmethod
    def _cells(first: Any, last: Any) -> list[tuple[int, Any]]:
        """Cells first .. last - 1 from the last on, each with the samples (a bool, or (B,)) that cross it."""
        if not isinstance(first, Tensor):
            return [(cell, True) for cell in reversed(range(first, last))]
        span = reversed(range(int(first.min()), int(last.max())))
        return [(cell, (first <= cell) & (cell < last)) for cell in span]

    def _whole(self, cell: int) -> _Piece:
        w, area = self._unit(cell)
        return self._scaled(cell, 1.0, w, 0.5 * w + area)

    def _unit(self, cell: Any) -> tuple[Tensor, Tensor]:
        """W and H of a cell stretched to unit length."""
        if len(self.times) == 2:
            cell = 0
        if self._last is not None and not isinstance(cell, Tensor) and self._last[0] == cell:
            return self._last[1]
        if isinstance(cell, Tensor) or len(self.times) == 2:  # not the ones after it, too
            counters = torch.as_tensor(cell, device=self.noise.device).reshape(1, -1)
            w, n = (self.noise.each(stream, counters)[0] for stream in (Stream.STEP, Stream.AREA))
        else:
            noise = self.noise.at(cell)
            w, n = noise.normal(Stream.STEP), noise.normal(Stream.AREA)
        unit = w, n * math.sqrt(1 / 12)
        if not isinstance(cell, Tensor):
            self._last = cell, unit
        return unit

    def _scaled(self, cell: Any, share: Any, w: Tensor, a: Tensor) -> _Piece:
        """A piece of a unit cell, `share` of it long, in the cell's own length."""
        if not isinstance(cell, Tensor):
            h = self.times[cell + 1] - self.times[cell]
            return _Piece(h * share, w * math.sqrt(h), a * (h * math.sqrt(h)))
        ends = torch.tensor(self.times, dtype=share.dtype, device=share.device)
        length = expand(ends[cell + 1] - ends[cell], w)
        root = length.sqrt()
        return _Piece(length * expand(share, w), _times(w, root), _times(a, length * root))

    def _reach(self, point: _Point) -> _Piece:
        """The path from the start of the point's cell to the point."""
        if self._known:
            (_, piece), (_, other) = self._known
            here, there = (point.same(known) for known, _ in self._known)
            if bool((here | there).all() if isinstance(here, Tensor) else here or there):
                return piece.where(here, other)
        inside = point.cell
        last = len(self.times) - 2  # the path's very end is in no cell: nothing of the last is asked there
        inside = inside.clamp(max=last) if isinstance(inside, Tensor) else min(inside, last)
        w, a = self._descend(inside, point.ticks, point.part)
        return self._scaled(inside, (point.ticks + point.part) * 2.0**-_DEPTH, w, a)

    def _descend(self, cell: Any, ticks: Any, part: Any) -> tuple[Tensor, Tensor]:
        r"""W and A at a point of a cell stretched to unit length.

        A stretch of length h with (W, H), H = A/h - W/2, has the halves

        .. math:: W_\pm = W/2 \pm (3H/2 + z), \qquad H_\pm = H/4 - z/2 \pm n/2

        (+ the first), z ~ N(0, h/16), n ~ N(0, h/12) independent, which gives independent W ~ N(0, h/2) and
        H ~ N(0, h/24), as they must be. Within the last stretch W is its mean given (W, H), at the part u
        :math:`u W + 6 u (1 - u) H`.
        """
        w, area = self._unit(cell)
        done_w, done_a = torch.zeros_like(w), torch.zeros_like(w)
        h, levels = 1.0, _levels(ticks, part)
        if not levels and not isinstance(part, Tensor):
            return done_w, done_a
        for z, n, right in self._bridges(cell, ticks, levels):
            odd, even = torch.add(z, area, alpha=1.5), torch.sub(0.25 * area, z, alpha=0.5)
            left, h = torch.add(odd, w, alpha=0.5), h / 2
            if isinstance(right, Tensor):
                done_a = torch.addcmul(done_a, torch.add(done_w + even + n, left, alpha=0.5), right, value=h)
                done_w = torch.addcmul(done_w, left, right)
                turn = 1 - 2 * right
                w, area = torch.addcmul(0.5 * w, odd, turn), torch.addcmul(even, n, turn)
            elif right:
                done_a = torch.add(done_a, torch.add(done_w + even + n, left, alpha=0.5), alpha=h)
                done_w, w, area = done_w + left, torch.sub(0.5 * w, odd), even - n
            else:
                w, area = left, even + n
        u = expand(part.to(w.dtype), w) if isinstance(part, Tensor) else part
        done_a = done_a + u * h * (done_w + 0.5 * u * w + u * (3 - 2 * u) * area)
        return done_w + u * w + 6 * u * (1 - u) * area, done_a

    def _bridges(self, cell: Any, ticks: Any, levels: int) -> Iterator[tuple[Tensor, Tensor, Any]]:
        """For each level on the way down z, n/2 and whether it goes right; drawn several levels at a time."""
        noise = self.noise
        chunk = max(1, _CHUNK_NUMBERS // max(1, 2 * len(noise.indices) * math.prod(noise.shape)))
        for first in range(0, levels, chunk):
            level = torch.arange(first, min(first + chunk, levels), device=noise.device)[:, None]
            node = (ticks >> (_DEPTH - level)) + (1 << level) + cell * (2 << _DEPTH)
            z, n = noise.each(Stream.BRIDGE, torch.cat([2 * node, 2 * node + 1])).chunk(2)
            size = expand((2.0 ** (-level[:, 0] / 2)).to(z.dtype), z)
            z, n = z * (size * math.sqrt(1 / 16)), n * (size * math.sqrt(1 / 48))
            right = [(ticks >> (_DEPTH - 1 - i)) & 1 for i in range(first, first + len(z))]
            if isinstance(ticks, Tensor):
                right = [expand(row, z[0]) for row in torch.stack(right).to(z.dtype)]
            yield from zip(z.unbind(), n.unbind(), right, strict=True)


def _levels(ticks: Any, part: Any) -> int:
    """Halvings that lead to a point, or to the deepest of several."""
    if isinstance(ticks, Tensor):
        if bool((part > 0).any()):
            return _DEPTH
        ticks = int(torch.where(ticks == 0, _TICKS, ticks & -ticks).min())
    elif part > 0:
        return _DEPTH
    lowest = (ticks & -ticks) or _TICKS
    return _DEPTH - lowest.bit_length() + 1


class Driven(Noise):
    r"""The noise of a solve that follows a given Brownian path.

    The STEP and AREA normals of step k, and the two of a split, are read off the path between times[k] and
    times[k+1]; all other streams are those of the ordinary noise.

    Args:
        noise: The ordinary noise.
        path: The path, of the same samples.
        times: The solve's grid (or its two ends), within the path's times and in their direction.

    Example:
        >>> import torch
        >>> own = Noise(0, torch.arange(2), (3,), torch.float64)
        >>> coarse = Driven(own, BrownianPath(own, (0.0, 1.0, 2.0)), (0.0, 2.0))
        >>> both = (own.at(0).normal() + own.at(1).normal()) / 2**0.5
        >>> torch.allclose(coarse.at(0).normal(), both)
        True
    """

    brownian: BrownianPath
    times: tuple[float, ...]

    def __init__(self, noise: Noise, path: BrownianPath, times: tuple[float, ...]) -> None:
        self.__dict__.update(noise.__dict__, brownian=path, times=tuple(times))

    def take(self, rows: Tensor) -> Driven:
        ordinary = Noise(self.seed, self.indices, self.shape, self.dtype, self.device, self.counter)
        return Driven(ordinary.take(rows), self.brownian.take(rows), self.times)

    def normal(self, stream: int = Stream.STEP, draw: int = 0, draws: int = 1) -> Tensor:
        if stream not in (Stream.STEP, Stream.AREA):
            return super().normal(stream, draw, draws)
        if draws != 1:
            raise TypeError(
                f"a Brownian path has one increment a step and {draws} were asked for: take the parts of a "
                "split, or another stream"
            )
        t, t_next = self._step()
        h = abs(t_next - t)
        w, a = self.brownian.with_integral(t, t_next)
        if stream == Stream.STEP:
            return w * (1 / math.sqrt(h))
        return torch.sub(a * (1 / h), w, alpha=0.5) * math.sqrt(12 / h)

    def split(self, *fractions: float) -> tuple[Tensor, ...]:
        self._check_fractions(fractions)
        t, t_next = self._step()
        cuts = (t, *(t + fraction * (t_next - t) for fraction in fractions), t_next)
        return tuple(self.brownian(a, b) * abs(b - a) ** -0.5 for a, b in itertools.pairwise(cuts))

    def _step(self) -> tuple[float, float]:
        if self.counter + 1 >= len(self.times):
            raise TypeError(
                f"step {self.counter} lies beyond a grid of {len(self.times) - 1} steps, so no path drives "
                "it: leave brownian= out for a solver that takes steps of its own"
            )
        return self.times[self.counter], self.times[self.counter + 1]


def path_of(noise: Noise, times: tuple[float, ...]) -> BrownianPath:
    """The path that drives this noise's solve, else one of its own on cells that end at `times`."""
    return noise.brownian if isinstance(noise, Driven) else BrownianPath(noise, times)
