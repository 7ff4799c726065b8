r"""Counter-based noise: a normal is a pure function of (seed, sample index, stream, counter).

Sample i therefore gets the same noise bit for bit whatever the batch size, the chunking, the number of
processes or the order of calls, and nothing touches torch's global generator. The words are splitmix64
(Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", fig. 17), one sequence per (seed,
index, stream); normals are Box & Muller's (1958).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor

_BLOCK_BYTES = 1 << 20  # words of a block stay in the cache
_BLOCK_STEPS = 20


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


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)).mul_(_MIX[0])
    x = (x ^ _shift(x, 27)).mul_(_MIX[1])
    return x ^ _shift(x, 31)


def _keys(seed: int, indices: Tensor, stream: int) -> Tensor:
    """The 64-bit start of each sample's sequence, (B,)."""
    start = _mix(torch.tensor([_signed(seed)], device=indices.device))
    return _mix(_mix(start + (indices.long() + 1) * _GOLDEN) + _signed((int(stream) + 1) * _GOLDEN))


def _uniforms(keys: Tensor, first: int, count: int, dtype: torch.dtype) -> Tensor:
    """Numbers first .. first + count - 1 of each sequence, strictly inside (0, 1), (B, count)."""
    steps = torch.arange(first, first + count, device=keys.device).mul_(_GOLDEN)
    bits = 52 if dtype == torch.float64 else 31  # with a half added, 52 bits are exact in float64
    words = _shift(_mix(keys[:, None] + steps), 64 - bits)
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
    return _normals(keys, counter, 1, shape, dtype)[0]


def _normals(keys: Tensor, counter: int, blocks: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Draws counter .. counter + blocks - 1, (blocks, B, *shape), contiguous."""
    size = math.prod(shape)
    pairs = (size + 1) // 2
    u = (
        _uniforms(keys, 2 * pairs * counter, 2 * pairs * blocks, _working(dtype))
        .reshape(-1, blocks, 2, pairs)
        .transpose(0, 1)
    )
    radius = u[:, :, 0].log().mul_(-2).sqrt_()
    angle = u[:, :, 1].mul(2 * math.pi)
    z = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=-1)
    return z[..., :size].to(dtype).reshape(blocks, -1, *shape)


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
    _blocks: dict[int, tuple[int, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def like(cls, x: Tensor, seed: int, indices: Tensor | None = None) -> Noise:
        """Noise for a state x (B, *E); rows are named 0 .. B-1 unless `indices` names them."""
        indices = torch.arange(len(x)) if indices is None else indices
        return cls(seed, indices, tuple(x.shape[1:]), x.dtype, x.device)

    def at(self, counter: int) -> Noise:
        """The same noise for another step; drawn blocks are shared."""
        return replace(self, counter=counter)

    def normal(self, stream: int = Stream.STEP, draw: int = 0, draws: int = 1) -> Tensor:
        """Standard normals (B, *shape) for this step: number `draw` of the `draws` it takes here."""
        counter = self.counter * draws + draw
        row_bytes = 8 * len(self.indices) * math.prod(self.shape)
        steps = max(1, min(_BLOCK_STEPS, _BLOCK_BYTES // max(1, row_bytes)))
        number, offset = divmod(counter, steps)
        held = self._blocks.get(stream)
        if held is None or held[0] != number:
            keys = _keys(self.seed, self.indices.to(self.device), stream)
            held = (number, _normals(keys, number * steps, steps, self.shape, self.dtype))
            self._blocks[stream] = held
        return held[1][offset]

    def split(self, fraction: float) -> tuple[Tensor, Tensor]:
        r"""Normals (z1, z2) of the increments over the first `fraction` of this step, and over the rest.

        .. math:: z_1 = \sqrt{\theta}\,z + \sqrt{1-\theta}\,n, \qquad z_2 = \sqrt{1-\theta}\,z - \sqrt{\theta}\,n

        with z this step's normal, n one of the SPLIT stream: independent standard normals whose increments
        :math:`\sqrt{\theta h}\,z_1 + \sqrt{(1-\theta) h}\,z_2 = \sqrt h\,z` add up to the step's. At most one
        split a step, and not beside the AREA stream's normal, which is drawn apart.

        Args:
            fraction: theta, strictly between 0 and 1.

        Raises:
            ValueError: If the fraction is not inside (0, 1).
        """
        if not 0 < fraction < 1:
            raise ValueError(f"fraction={fraction} splits no step: give a number strictly between 0 and 1")
        z, n = self.normal(), self.normal(Stream.SPLIT)
        a, b = math.sqrt(fraction), math.sqrt(1 - fraction)
        return torch.add(z * a, n, alpha=b), torch.add(z * b, n, alpha=-a)

    def path(self, dt: float) -> Tensor:
        """Brownian increment of this step, over abs(dt): ``sqrt(abs(dt))`` times the STEP stream's normal."""
        return self.normal() * math.sqrt(abs(dt))
