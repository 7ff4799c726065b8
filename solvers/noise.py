r"""Counter-based noise: a normal is a pure function of (seed, sample index, stream, counter).

Sample i therefore gets the same noise bit for bit whatever the batch size, the chunking, the number of
processes or the order of calls, and nothing touches torch's global generator. The words are splitmix64
(Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", fig. 17), one sequence per (seed,
index, stream); normals are Box & Muller's (1958), a pair from one word: its leading bits are the radius, its
low half the angle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

# A solve draws so many steps ahead, as long as their words stay in the cache and a kernel in one thread.
_BLOCK_STEPS, _BLOCK_WORDS = 25, 1 << 15


def _signed(word: int) -> int:
    """The 64 low bits as the Python int that int64 arithmetic wants."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >= 1 << 63 else word


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


class Stream(IntEnum):
    """What a draw is for: draws of different streams are independent."""

    PRIOR = 0
    STEP = 1
    AREA = 2
    CORRECTOR = 3
    PROBE = 4
    DEQUANTISE = 5
    PERTURB = 6
    DATA = 7
    BRIDGE = 8
    RESTART = 9
    CHURN = 10
    SPLIT = 11
    CLOCK = 12


def _mix(x: Tensor, fold: bool = False) -> Tensor:
    """A word from each state; x is overwritten.

    Folded, the word w < 0 becomes one with its leading 31 bits flipped: 63 uniform bits, none of them a sign.
    """
    shifted = torch.empty_like(x)
    for bits, factor in zip((30, 27, 31), (*_MIX, 1), strict=True):
        torch.bitwise_right_shift(x, bits, out=shifted)
        if factor != 1 or not fold:
            shifted.bitwise_and_((1 << (64 - bits)) - 1)  # torch's shift is arithmetic
        x.bitwise_xor_(shifted)
        if factor != 1:
            x.mul_(factor)
    return x


def _mix_seed(seed: int) -> int:
    """:func:`_mix` of one Python int."""
    mask = (1 << 64) - 1
    x = seed & mask
    for bits, factor in zip((30, 27, 31), (*_MIX, 1), strict=True):
        x = (x ^ x >> bits) * factor & mask
    return x


def _keys(seed: int, indices: Tensor, stream: int) -> Tensor:
    """The 64-bit start of each sample's sequence, (B,)."""
    names = (indices.long() * _GOLDEN).add_(_signed(_mix_seed(seed) + _GOLDEN))
    return _mix(_mix(names).add_(_signed((int(stream) + 1) * _GOLDEN)))


def _uniforms(keys: Tensor, first: int, count: int, dtype: torch.dtype) -> Tensor:
    """Numbers first .. first + count - 1 of each sequence, strictly inside (0, 1), (B, count)."""
    steps = torch.arange(first, first + count, device=keys.device).mul_(_GOLDEN)
    bits = 52 if dtype == torch.float64 else 31  # with a half added, 52 bits are exact in float64
    words = (_mix(keys[:, None] + steps) >> (64 - bits)).bitwise_and_((1 << bits) - 1)
    u = words.to(dtype).add_(0.5).mul_(2.0**-bits)
    return u if bits == 52 else u.clamp_(max=1 - 2.0**-24)  # 31 bits may round up to 1 in float32


def _working(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def uniform(
    seed: int,
    indices: Tensor,
    stream: int,
    counter: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Uniform numbers in (0, 1), (len(indices), *shape); arguments as for :func:`normal`.

    Example:
        >>> import torch
        >>> float(uniform(0, torch.arange(10000), Stream.DATA, 0, ()).mean().round(decimals=1))
        0.5
    """
    count = math.prod(shape)
    keys = _keys(seed, torch.as_tensor(indices, device=device), stream)
    return _uniforms(keys, counter * count, count, _working(dtype)).to(dtype).reshape(-1, *shape)


def normal(
    seed: int,
    indices: Tensor,
    stream: int,
    counter: int,
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Standard normal numbers.

    Args:
        seed: Any int; its 64 low bits count.
        indices: Names of the samples, (B,) integers.
        stream: What the draw is for (:class:`Stream`); other streams are independent.
        counter: Number of the draw within the stream, from 0.
        shape: Shape of one sample.
        dtype: float32 and float64 agree to float32 rounding.
        device: Where to compute.

    Returns:
        (B, *shape).

    Example:
        >>> import torch
        >>> both = normal(0, torch.tensor([3, 7]), Stream.STEP, 0, (4,))
        >>> torch.equal(both[1:], normal(0, torch.tensor([7]), Stream.STEP, 0, (4,)))
        True
    """
    keys = _keys(seed, torch.as_tensor(indices, device=device), stream)
    return _normals(_jump(keys, counter, shape), shape, dtype)


def _pairs(shape: Sequence[int]) -> int:
    return (math.prod(shape) + 1) // 2


def _jump(keys: Tensor, counter: int | Tensor, shape: Sequence[int]) -> Tensor:
    """Where the words of a draw of this shape begin, like counter + keys: two words for a pair of normals."""
    stride = _signed(2 * _pairs(shape) * _GOLDEN)
    return keys + (counter * stride if isinstance(counter, Tensor) else _signed(counter * stride))


def _normals(starts: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    r"""Normals from the words that follow `starts`, (*starts.shape, *shape), contiguous.

    A pair's first word w gives :math:`u = w 2^{-63}` and, by its low half, the leading 32 bits of the
    angle; the second gives float64 the rest of the angle, and float32 does not compute it. Where u's own low
    bits are the angle's, the joint law is off by no more than 2^-31 in any rectangle.
    """
    size, pairs, working = math.prod(shape), _pairs(shape), _working(dtype)
    steps = torch.arange(0, 2 * pairs, 2, device=starts.device).mul_(_GOLDEN)
    states = starts[..., None] + steps
    words = _mix(states if working != torch.float64 else states.clone(), fold=True)
    radius = words.to(working).clamp_(min=1.0).mul_(2.0**-63).log_().mul_(-2).sqrt_()
    words.bitwise_left_shift_(32)
    if working == torch.float64:
        words.bitwise_or_(_mix(states.add_(_GOLDEN)).bitwise_and_(0xFFFFFFFF))
    angle = words.to(working).mul_(math.pi * 2.0**-63)
    z = torch.empty((*starts.shape, size), dtype=working, device=starts.device)
    torch.mul(radius, torch.cos(angle), out=z[..., :pairs])
    rest = size - pairs  # one fewer where the size is odd
    torch.mul(radius[..., :rest], angle.sin_()[..., :rest], out=z[..., pairs:])
    return z.to(dtype).reshape(*starts.shape, *shape)


class _Block(NamedTuple):
    """Draws first .. first + len(values) - 1 of a stream, and the stream's keys."""

    keys: Tensor
    first: int
    values: tuple[Tensor, ...]


N = TypeVar("N", bound="Noise")


@dataclass(frozen=True)
class Noise:
    """The noise of a solve: standard normals for fixed rows, drawn a block of counters at a time.

    Args:
        seed: Seed of the solve.
        indices: Names of the samples, (B,).
        shape: Shape of one sample.
        dtype: Of the state.
        device: Of the state.
        counter: Number of the step this object serves.

    Example:
        >>> import torch
        >>> noise = Noise(0, torch.arange(3), (2,))
        >>> torch.equal(noise.at(5).normal(), normal(0, torch.arange(3), Stream.STEP, 5, (2,)))
        True
    """

    seed: int
    indices: Tensor
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    counter: int = 0
    _blocks: dict[int, _Block] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def like(cls, x: Tensor, seed: int, indices: Tensor | None = None) -> Noise:
        """Noise for a state x (B, *E); rows are named 0 .. B-1 unless `indices` names them."""
        indices = torch.arange(len(x)) if indices is None else indices
        return cls(seed, indices, tuple(x.shape[1:]), x.dtype, x.device)

    def at(self: N, counter: int) -> N:
        """The same noise for another step; drawn blocks are shared."""
        other = object.__new__(type(self))  # dataclasses.replace costs microseconds, each step of each solve
        other.__dict__.update(self.__dict__, counter=counter)
        return other

    def take(self: N, rows: Tensor) -> N:
        """The noise of the samples at `rows`."""
        return replace(self, indices=self.indices[rows.to(self.indices.device)], _blocks={})

    def normal(self, stream: int = Stream.STEP, draw: int = 0, draws: int = 1) -> Tensor:
        """Standard normals (B, *shape) for this step: number `draw` of the `draws` it takes here."""
        counter = self.counter * draws + draw
        block = self._blocks.get(stream)
        if block is None or not 0 <= counter - block.first < len(block.values):
            block = self._blocks[stream] = self._block(self._keys(stream), counter)
        return block.values[counter - block.first]

    def each(self, stream: int, counters: Tensor) -> Tensor:
        """Standard normals (K, B, *shape) of counters (K, B) or (K, 1): a sample's own, or the same for all.

        Example:
            >>> import torch
            >>> noise = Noise(0, torch.arange(2), (3,))
            >>> torch.equal(noise.each(Stream.STEP, torch.tensor([[4], [9]]))[1], noise.at(9).normal())
            True
        """
        return _normals(_jump(self._keys(stream), counters, self.shape), self.shape, self.dtype)

    def _keys(self, stream: int) -> Tensor:
        if stream not in self._blocks:
            self._blocks[stream] = _Block(_keys(self.seed, self.indices.to(self.device), stream), 0, ())
        return self._blocks[stream].keys

    def _block(self, keys: Tensor, counter: int) -> _Block:
        """The block that holds a draw; where blocks begin and end does not change what is drawn."""
        words = max(1, len(keys) * _pairs(self.shape))
        steps = max(1, min(_BLOCK_STEPS, _BLOCK_WORDS // words))
        first = counter - counter % steps
        counters = torch.arange(first, first + steps, device=keys.device)[:, None]
        z = _normals(_jump(keys, counters, self.shape), self.shape, self.dtype)
        return _Block(keys, first, z.unbind())

    def split(self, *fractions: float) -> tuple[Tensor, ...]:
        r"""Normals of the increments over the parts into which `fractions` cut this step, one more than they.

        .. math:: z_1 = \sqrt{\theta}\,z + \sqrt{1-\theta}\,n, \qquad
                  z_2 = \sqrt{1-\theta}\,z - \sqrt{\theta}\,n

        with z this step's normal, n one of the SPLIT stream: independent standard normals whose increments
        :math:`\sqrt{\theta h}\,z_1 + \sqrt{(1-\theta) h}\,z_2 = \sqrt h\,z` add up to the step's; with more
        fractions the second part is cut likewise. At most one split a step, all of a solve into as many
        parts, and not beside the AREA stream's normal, which is drawn apart.

        Args:
            fractions: Where the step is cut, rising, strictly between 0 and 1.

        Raises:
            ValueError: If a fraction is not inside (0, 1), or they do not rise.
        """
        self._check_fractions(fractions)
        z, done = self.normal(), 0.0
        parts: list[Tensor] = []
        for i, fraction in enumerate(fractions):
            n, share = self.normal(Stream.SPLIT, i, len(fractions)), (fraction - done) / (1 - done)
            a, b = math.sqrt(share), math.sqrt(1 - share)
            parts.append(torch.add(z * a, n, alpha=b))
            z, done = torch.add(z * b, n, alpha=-a), fraction
        return (*parts, z)

    @staticmethod
    def _check_fractions(fractions: tuple[float, ...]) -> None:
        if not all(a < b for a, b in pairwise((0.0, *fractions, 1.0))):
            raise ValueError(
                f"fractions {', '.join(map(str, fractions))} split no step: give rising numbers strictly "
                "between 0 and 1"
            )

    def path(self, dt: float) -> Tensor:
        """Brownian increment of this step, over abs(dt): ``sqrt(abs(dt))`` times the STEP stream's normal."""
        return self.normal() * math.sqrt(abs(dt))
