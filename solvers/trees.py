r"""Order conditions of Runge-Kutta methods, from rooted trees.

A method has order p where :math:`\sum_i b_i \Phi_i(\tau) = 1/\gamma(\tau)` for every rooted tree of at most p
vertices, with :math:`\Phi_i(\tau) = \prod_k \sum_j a_{ij} \Phi_j(\tau_k)` over the subtrees at the root and
:math:`\gamma(\tau) = |\tau| \prod_k \gamma(\tau_k)` (Hairer, Norsett & Wanner 1993, Solving ODEs I, theorem
II.2.13, where the product starts from the root's a_{ij} too).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache

Row = tuple[float, ...]
#: A rooted tree: the trees that hang from its root.
Tree = tuple["Tree", ...]

TOLERANCE = 1e-12


@cache
def trees(vertices: int) -> tuple[Tree, ...]:
    """All rooted trees of a number of vertices.

    Example:
        >>> [len(trees(n)) for n in range(1, 9)]
        [1, 1, 2, 4, 9, 20, 48, 115]
    """
    return tuple(_forests(vertices - 1, vertices - 1))


def _forests(vertices: int, largest: int, before: Tree | None = None) -> Iterator[Tree]:
    """Multisets of trees with so many vertices in all, in falling order of size, then of place in `trees`."""
    if vertices == 0:
        yield ()
    for size in range(min(vertices, largest), 0, -1):
        whole = trees(size)
        start = whole.index(before) if before in whole else 0
        for tree in whole[start:]:
            for rest in _forests(vertices - size, size, tree):
                yield (tree, *rest)


@cache
def size(tree: Tree) -> int:
    """Number of vertices."""
    return 1 + sum(map(size, tree))


@cache
def density(tree: Tree) -> int:
    """The product gamma of the sizes of all subtrees."""
    return size(tree) * math.prod(map(density, tree))


class Weights:
    """The elementary weights Phi of a method's stages.

    Args:
        a: Rows of the tableau, row i of i entries.
    """

    def __init__(self, a: Sequence[Row]) -> None:
        self.a = a
        self.known: dict[Tree, Row] = {}

    def stages(self, tree: Tree) -> Row:
        """``Phi_i`` of every stage."""
        if tree not in self.known:
            inner = [[_dot(row, self.stages(child)) for row in self.a] for child in tree]
            self.known[tree] = tuple(math.prod(factors) for factors in zip(*inner, strict=True)) or (
                (1.0,) * len(self.a)
            )
        return self.known[tree]

    def order(self, b: Sequence[float], limit: int = 5, *, error: bool = False) -> int:
        """Largest order up to `limit` whose conditions the weights b meet; those of an error are zero."""
        for vertices in range(1, limit + 1):
            for tree in trees(vertices):
                aim = 0.0 if error else 1 / density(tree)
                if not _close(_dot(b, self.stages(tree)), aim):
                    return vertices - 1
        return limit

    def dense_order(self, rows: Sequence[Row], limit: int) -> int:
        r"""The order of a dense output: the polynomial in theta must be :math:`\theta^{|\tau|}/\gamma`."""
        powers = list(zip(*rows, strict=True))
        for vertices in range(1, limit + 1):
            for tree in trees(vertices):
                for power, b in enumerate(powers, 1):
                    aim = 1 / density(tree) if power == vertices else 0.0
                    if not _close(_dot(b, self.stages(tree)), aim):
                        return vertices - 1
        return limit


def _dot(p: Sequence[float], q: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(p, q, strict=False) if x)


def _close(p: float, q: float) -> bool:
    return math.isclose(p, q, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
