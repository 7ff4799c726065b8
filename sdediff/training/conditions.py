"""Leaving out conditions at random, so that one network learns with and without (classifier-free guidance).

No condition is label -1, or a row of NaN: what networks built with ``optional_cond=True`` take for none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from solvers import noise

if TYPE_CHECKING:
    from sdediff.training.objective import Draw

#: Stream of solvers.noise of the rows left out.
DROPOUT = 110


def drop(cond: Tensor, p: float, draw: Draw) -> Tensor:
    """Conditions of which each row is left out with probability p.

    Which rows is a function of (seed, step, row), whatever the number of processes.

    Args:
        cond: Labels (B,) of an integer dtype, or vectors (B, cond_dim).
        p: Probability, 0 to 1.
        draw: The step and its rows, (B,).

    Returns:
        Like cond, labels as int64, with -1 or NaN in rows left out.

    Raises:
        ValueError: If p is no probability.

    Source: Ho & Salimans 2022, arXiv 2207.12598, algorithm 1.

    Example:
        >>> from sdediff.training import Draw
        >>> drop(torch.arange(6), 0.5, Draw(0, 0, torch.arange(6), 6))
        tensor([-1, -1,  2, -1, -1, -1])
    """
    if not 0 <= p <= 1:
        raise ValueError(f"cond_dropout={p}: give a probability, from 0 to 1")
    u = noise.uniform(draw.seed, draw.rows, DROPOUT, draw.step, (), torch.float64)
    out = (u < p).to(cond.device).view(-1, *(1,) * (cond.ndim - 1))
    if cond.is_floating_point():
        return cond.masked_fill(out, math.nan)
    return cond.long().masked_fill(out, -1)  # there is no -1 in uint8
