"""The exact trace of a Jacobian."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .divergence import Divergence, RowFunction, products, stacks


@dataclass(frozen=True)
class Exact(Divergence):
    """The exact trace: one vector-Jacobian product a dimension.

    Example:
        >>> import torch
        >>> x, row = torch.tensor([[1.0, 2.0]]), torch.arange(1)
        >>> Exact().traces(lambda x: x**2, x, row, torch.zeros(1), 0)
        tensor([[6.]])
    """

    estimator = "exact"

    def evaluations(self, dim: int) -> int:
        """One a dimension."""
        return dim

    def traces(self, function: RowFunction, x: Tensor, rows: Tensor, node: Tensor, seed: int) -> Tensor:
        """The sum over unit vectors e_i of e_i^T J e_i, (1, R); arguments as in the base class."""
        product, dim = products(function, x), x[0].numel()
        total = x.new_zeros(len(x))
        for stack in stacks(dim, x):
            index = torch.arange(len(stack), device=x.device)
            unit = x.new_zeros(len(stack), 1, dim)
            unit[index, 0, index + stack.start] = 1
            rows_of_j = product(unit.expand(-1, len(x), -1).reshape(len(stack), *x.shape)).flatten(2)
            total = total + rows_of_j[index, :, index + stack.start].sum(dim=0)
        return total[None]
