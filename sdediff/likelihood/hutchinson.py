r"""Hutchinson's estimate of a trace from random probes, and how probes of a path work together.

With signs s and a pattern h of a Hadamard matrix the probe v = s h errs by
:math:`\sum_{i\ne j} s_i s_j h_i h_j J_{ij}`. Where every node of a path takes the next pattern and all share
the signs, the integral errs by :math:`\sum_{i\ne j} s_i s_j A_{ij}` with
:math:`A_{ij} = \sum_n w_n h_{ni} h_{nj} J_{ij}(n)`: what J has in common at the nodes of a cycle cancels,
exactly so after a full cycle. Patterns come in an order in which short cycles cancel what is strongest in
images and signals, neighbours first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from solvers.noise import Stream, normal, uniform

from .divergence import Divergence, RowFunction, products, stacks

_MANY = 1 << 20  # more probes than a node ever has


@dataclass(frozen=True)
class Hutchinson(Divergence):
    r"""Hutchinson's unbiased estimate :math:`\frac1P\sum_p v_p^T J v_p` of a trace.

    Args:
        probes: Probes at a node; two or more give a standard error. With the pattern "hadamard" an even
            number is two independent halves, and an odd one as many sets of their own.
        distribution: "rademacher" (never more variance than "gaussian" for one probe) or "gaussian".
        pattern: "hadamard": signs are drawn once for each sample and half, and each node takes the next
            patterns of a Hadamard matrix: much less variance of the integral than "fresh" probes at every
            node have. "fixed": the same probes at all nodes, the usual practice, with the most variance.
        std_error: Standard error to reach, in nats: from the scatter of `probes`, at the upper end of its
            confidence interval, follows how many a row needs (times a power of two), and new draws make its
            value, so that no row stops by luck. None takes `probes`.
        max_probes: The most a row takes; its own `std_error` says what was reached.
        layout: How the entries of a datum lie in space, such as (8, 8) for flattened images; by default as
            the datum's shape says. For the order of patterns only.

    Raises:
        ValueError: If there is no probe, an option is unknown, or options do not fit each other.

    References:
        Hutchinson (1989), Commun. Stat. Simul. Comput. 18, 1059-1076; for diffusion models Song et al.
        (2021), arXiv 2011.13456, Eq. 40. Probes from Hadamard matrices: Bekas, Kokiopoulou & Saad (2007),
        Appl. Numer. Math. 57, 1214-1229, who estimate the diagonal, as is done here for the standard error.
        Cycling them along a path with signs in common is this package's own.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.random_mixture(dim=16)
        >>> r = data.model(sdediff.VP()).log_likelihood(data.sample(2), divergence=Hutchinson(probes=4))
        >>> r.divergence_evaluations.tolist()
        [260, 260]
    """

    probes: int = 2
    distribution: Literal["rademacher", "gaussian"] = "rademacher"
    pattern: Literal["hadamard", "fresh", "fixed"] | None = None
    std_error: float | None = None
    max_probes: int = 256
    layout: tuple[int, ...] | None = None
    estimator = "unbiased"

    def __post_init__(self) -> None:
        gaussian = self.distribution == "gaussian"
        if self.pattern is None:  # patterns of signs are for signs
            object.__setattr__(self, "pattern", "fresh" if gaussian else "hadamard")
        if self.probes < 1 or int(self.probes) != self.probes:
            raise ValueError(
                f"probes={self.probes}: give a whole number of at least 1 (2 for a standard error)"
            )
        if self.distribution not in ("rademacher", "gaussian"):
            raise ValueError(
                f'distribution={self.distribution!r} is not known: take "rademacher" or "gaussian"'
            )
        if self.pattern not in ("hadamard", "fresh", "fixed"):
            raise ValueError(f'pattern={self.pattern!r} is not known: take "hadamard", "fresh" or "fixed"')
        if self.pattern == "hadamard" and gaussian:
            raise ValueError(
                'pattern="hadamard" is made of signs and was given with Gaussian probes: take '
                'distribution="rademacher", or pattern="fresh"'
            )
        if self.std_error is not None and not (self.std_error > 0 and 2 <= self.probes <= self.max_probes):
            raise ValueError(
                f"std_error={self.std_error} with {self.probes} probes and max_probes={self.max_probes}: "
                "give a positive standard error, and between 2 and max_probes probes to begin with"
            )

    def evaluations(self, dim: int) -> int:
        """One a probe."""
        return self.probes

    @property
    def shared(self) -> bool:
        """True unless each node draws afresh."""
        return self.pattern != "fresh"

    @property
    def smooth(self) -> bool:
        """True where the probes are fixed."""
        return self.pattern == "fixed"

    @property
    def groups(self) -> int:
        """Independent estimates at a node: the halves of Hadamard probes, or the probes."""
        return 2 if self.pattern == "hadamard" and self.probes % 2 == 0 else self.probes

    def traces(self, function: RowFunction, x: Tensor, rows: Tensor, node: Tensor, seed: int) -> Tensor:
        r"""Parts of :math:`v^T J v`: (G, R, d) of Rademacher probes, (P, R) of Gaussian ones.

        Part j is v_j (J^T v)_j, an estimate of the diagonal's entry j. Arguments as in the base class.
        """
        product, estimates = products(function, x), []
        for stack in stacks(self.probes, x):
            v = torch.stack([self._probe(x, rows, node, p, seed) for p in stack])
            estimates.append((product(v) * v).flatten(2))
        parts = torch.cat(estimates)
        if self.distribution == "gaussian":
            return parts.sum(dim=2)
        return parts.unflatten(0, (self.groups, -1)).mean(dim=1)

    def _probe(self, x: Tensor, rows: Tensor, node: Tensor, probe: int, seed: int) -> Tensor:
        """Probe number `probe` at each point."""
        if self.pattern == "fresh":
            return self._by_node(x, rows, node, probe, seed)
        names, where = rows.unique(return_inverse=True)
        each = self.probes // self.groups  # probes of a group
        group, pattern = divmod(probe, each)
        signs = self._draw(x, names, group, seed)[where]
        if self.pattern == "fixed":
            return signs
        nodes, who = node.unique(return_inverse=True)
        table = hadamard(nodes * each + pattern, self.layout or x.shape[1:], x)
        if table.shape[1] != x[0].numel():
            raise ValueError(
                f"layout={self.layout} has {table.shape[1]} entries and a datum {x[0].numel()}: give the "
                "shape in which a datum's entries lie"
            )
        return signs * table[who].view_as(x)

    def _by_node(self, x: Tensor, rows: Tensor, node: Tensor, probe: int, seed: int) -> Tensor:
        out = torch.empty_like(x)
        for number in node.unique().tolist():
            here = node == number
            out[here] = self._draw(x, rows[here], int(number) * _MANY + probe, seed)
        return out

    def _draw(self, x: Tensor, rows: Tensor, counter: int, seed: int) -> Tensor:
        arguments = (seed, rows.cpu(), Stream.PROBE, counter, x.shape[1:], x.dtype, x.device)
        if self.distribution == "gaussian":
            return normal(*arguments)
        return torch.where(uniform(*arguments) < 0.5, -1.0, 1.0).to(x.dtype)


def hadamard(count: Tensor, layout: Sequence[int], like: Tensor) -> Tensor:
    """Patterns of +-1 over the entries of a datum, (len(count), d), of the dtype and device of `like`.

    Pattern c is a product of generators, one a bit of c, and a generator is the parity of some bits of an
    entry's position: first the lowest bits of all axes together (a checkerboard), then those of single axes,
    then the next bits. Every aligned run of 2^b counts holds each product of the first b generators once, so
    its mean over the run is the projection on entries that agree in those parities.

    Example:
        >>> hadamard(torch.arange(4), (2, 2), torch.zeros(1)).int().tolist()
        [[1, 1, 1, 1], [1, -1, -1, 1], [1, 1, -1, -1], [1, -1, 1, -1]]
    """
    axes = [n for n in layout if n > 1]
    position = torch.cartesian_prod(*(torch.arange(n) for n in axes)).view(-1, len(axes)) if axes else None
    if position is None:
        return torch.ones(len(count), 1, dtype=like.dtype, device=like.device)
    bits = [max(1, math.ceil(math.log2(n))) for n in axes]
    generators = []
    for level in range(max(bits)):
        here = [position[:, a] >> level & 1 for a in range(len(axes)) if level < bits[a]]
        together = torch.stack(here).sum(dim=0) & 1
        generators += [together, *here[:-1]]
    table = torch.stack(generators)  # (G, d)
    chosen = count.cpu()[:, None] >> torch.arange(len(generators)) & 1
    parity = (chosen @ table) & 1
    return (1 - 2 * parity).to(dtype=like.dtype, device=like.device)
