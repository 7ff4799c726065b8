"""Distributions in the plane without closed-form scores, for pictures and quick comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from solvers import noise

#: Uniform and normal numbers of a point: (n, 3) and (n, 2), float64.
_Draws = tuple[Tensor, Tensor]


def toy(name: str, n: int, seed: int = 0, *, dtype: torch.dtype | None = None) -> Tensor:
    """Points in the plane.

    - "checkerboard": uniform on the eight dark squares of a 4 x 4 board on [-4, 4]^2; log-density -log 32.
    - "moons": two half circles of radius 1 that interlock, with normal noise of 0.1.
    - "spirals": two spirals of one and a half turns and radius 3, with normal noise of 0.1.
    - "pinwheel": five bent arms.

    Mixtures with closed-form scores are in :mod:`sdediff.reference`: ``eight_gaussians``, ``rings``.

    Args:
        name: One of the names above.
        n: Number of points.
        seed: Seed; point i is a function of (seed, i).
        dtype: Of the points; torch's default when left out.

    Returns:
        (n, 2).

    Raises:
        ValueError: If there is no such name.

    Source: as used by Grathwohl et al. 2019, arXiv 1810.01367, section 4.1; other scales.

    Example:
        >>> x = toy("checkerboard", 1000)
        >>> bool(((x / 2).floor().sum(dim=1) % 2 == 0).all())
        True
    """
    if name not in _TOYS:
        raise ValueError(f"there is no toy {name!r}: choose one of {', '.join(_TOYS)}")
    rows = torch.arange(n)
    u = noise.uniform(seed, rows, noise.Stream.DATA, 0, (3,), torch.float64)
    z = noise.normal(seed, rows, noise.Stream.PERTURB, 0, (2,), torch.float64)
    return _TOYS[name]((u, z)).to(dtype or torch.get_default_dtype())


def _checkerboard(draws: _Draws) -> Tensor:
    u, _ = draws
    x, square = 8 * u[:, 0] - 4, (2 * u[:, 1]).floor()  # each column of the board has two dark squares
    y = 4 * square - 4 + 2 * ((x / 2).floor() % 2) + 2 * u[:, 2]
    return torch.stack([x, y], dim=1)


def _moons(draws: _Draws) -> Tensor:
    u, z = draws
    upper, angle = u[:, 0] < 0.5, math.pi * u[:, 1]
    x = torch.where(upper, angle.cos(), 1 - angle.cos())
    y = torch.where(upper, angle.sin(), 0.5 - angle.sin())
    return torch.stack([x, y], dim=1) + 0.1 * z


def _spirals(draws: _Draws) -> Tensor:
    u, z = draws
    turn = 3 * math.pi * u[:, 1].sqrt()  # even along the arm
    sign = torch.where(u[:, 0] < 0.5, 1.0, -1.0).to(u.dtype)
    radius = sign * turn / math.pi
    return torch.stack([radius * turn.cos(), radius * turn.sin()], dim=1) + 0.1 * z


def _pinwheel(draws: _Draws) -> Tensor:
    u, z = draws
    along, across = 1 + 0.3 * z[:, 0], 0.1 * z[:, 1]
    angle = 2 * math.pi / 5 * (5 * u[:, 0]).floor() + 0.25 * along.exp()
    x, y = along * angle.cos() - across * angle.sin(), along * angle.sin() + across * angle.cos()
    return 2 * torch.stack([x, y], dim=1)


_TOYS: dict[str, Callable[[_Draws], Tensor]] = {
    "checkerboard": _checkerboard,
    "moons": _moons,
    "spirals": _spirals,
    "pinwheel": _pinwheel,
}
