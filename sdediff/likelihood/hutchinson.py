"""Hutchinson's estimate of a trace from random probes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from solvers.noise import Stream, normal, uniform

from .divergence import Divergence, RowFunction, products, stacks


@dataclass(frozen=True)
class Hutchinson(Divergence):
    r"""Hutchinson's unbiased estimate :math:`\frac1P\sum_p v_p^T J v_p`, with fresh probes at every node.

    Args:
        probes: Probes at a node; two or more give a standard error.
        distribution: "rademacher" (never more variance than "gaussian" for one probe) or "gaussian".

    Raises:
        ValueError: If there is no probe, or the distribution is unknown.

    References:
        Hutchinson (1989), Commun. Stat. Simul. Comput. 18, 1059-1076; for diffusion models Song et al.
        (2021), arXiv 2011.13456, Eq. 40.
    """

    probes: int = 2
    distribution: Literal["rademacher", "gaussian"] = "rademacher"
    estimator = "unbiased"

    def __post_init__(self) -> None:
        if self.probes < 1 or int(self.probes) != self.probes:
            raise ValueError(
                f"probes={self.probes}: give a whole number of at least 1 (2 for a standard error)"
            )
        if self.distribution not in ("rademacher", "gaussian"):
            raise ValueError(
                f'distribution={self.distribution!r} is not known: take "rademacher" or "gaussian"'
            )

    def evaluations(self, dim: int) -> int:
        """One a probe."""
        return self.probes

    def traces(self, function: RowFunction, x: Tensor, rows: Tensor, node: Tensor, seed: int) -> Tensor:
        """``v_p^T J v_p`` of each probe, (P, R); arguments as in the base class."""
        product, estimates = products(function, x), []
        for stack in stacks(self.probes, x):
            v = torch.stack([self._probe(x, rows, node, p, seed) for p in stack])
            estimates.append((product(v) * v).flatten(2).sum(dim=2))
        return torch.cat(estimates)

    def _probe(self, x: Tensor, rows: Tensor, node: Tensor, probe: int, seed: int) -> Tensor:
        out = torch.empty_like(x)
        for number in node.unique().tolist():
            here = node == number
            counter = int(number) * self.probes + probe
            arguments = (seed, rows[here].cpu(), Stream.PROBE, counter, x.shape[1:], x.dtype, x.device)
            out[here] = (
                normal(*arguments)
                if self.distribution == "gaussian"
                else torch.where(uniform(*arguments) < 0.5, -1.0, 1.0).to(x.dtype)
            )
        return out
