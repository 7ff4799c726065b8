"""The trace of the denoiser's Jacobian: what every way of finding it shares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

#: A function of rows, (R, *E) -> (R, *E).
RowFunction = Callable[[Tensor], Tensor]
#: ``here -> (function, x)``: points, (R, *E), and the function of them.
Places = Callable[[slice], tuple[RowFunction, Tensor]]

# A trace keeps the network's activations at so many points, or so many numbers in all of them.
_ROWS, _NUMBERS = 4096, 1 << 17
_PROBE_NUMBERS = 1 << 22  # numbers in one batch of vector-Jacobian products


class Divergence(ABC):
    """How the trace of a Jacobian is found."""

    #: "exact" or "unbiased".
    estimator: str

    @property
    def shared(self) -> bool:
        """Whether all nodes of a sample's path share their draws; else every node's are independent."""
        return False

    @property
    def smooth(self) -> bool:
        """Whether estimates are smooth along a path, as with the same probes at all nodes."""
        return self.estimator == "exact"

    @abstractmethod
    def evaluations(self, dim: int) -> int:
        """Vector-Jacobian products a point."""

    @abstractmethod
    def traces(self, function: RowFunction, x: Tensor, rows: Tensor, node: Tensor, seed: int) -> Tensor:
        """Estimates of the Jacobian's trace at each row of x.

        They carry a graph of their own where autograd records x (:func:`recorded`).

        Args:
            function: Maps (R, *E) to (R, *E), row by row.
            x: Points, (R, *E).
            rows: Names of the samples the points belong to, (R,).
            node: Number of the quadrature node of each point, (R,).
            seed: Seed of the probes.

        Returns:
            (P, R): P independent estimates, whose mean is the value; (1, R) where it is exact. Or (P, R, d),
            parts whose sum over d is the estimate, of probes with independent signs: the scatter of the parts
            then tells more of the value's error than that of the sums.
        """

    def with_value(
        self, function: RowFunction, x: Tensor, rows: Tensor, node: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Value of the function, like x, and traces, from one evaluation; arguments as in :meth:`traces`."""
        values = []

        def kept(x: Tensor) -> Tensor:
            values.append(function(x))
            return values[-1]

        traces = self.traces(kept, x, rows, node, seed)
        return (values[0], traces) if recorded(x) else (values[0].detach(), traces.detach())

    def suited(self, network: nn.Module, at: Places, points: int) -> Divergence:
        """This divergence as it is quickest for a network.

        Args:
            network: The network; what is remembered of it lasts as long as it does.
            at: Some of the points, and a function that calls the network there, to try it.
            points: How many points there are.
        """
        return self

    def points(self, dim: int) -> int:
        """How many points of d entries to take at once, for a good use of memory."""
        return min(_ROWS, max(1, _NUMBERS // dim))


def recorded(x: Tensor) -> bool:
    """Whether autograd records what becomes of x: its traces are then to be differentiated in their turn."""
    return torch.is_grad_enabled() and x.requires_grad


def stacks(count: int, x: Tensor, numbers: int = _PROBE_NUMBERS) -> list[range]:
    """The numbers below `count` in batches that, with a row of x each, stay of bounded size."""
    size = max(1, numbers // max(1, x.numel()))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def products(function: RowFunction, x: Tensor) -> Callable[[Tensor], Tensor]:
    """``v -> v^T J`` for a stack of v, (P, R, *E) -> (P, R, *E), from one evaluation of the function."""
    further = recorded(x)
    with torch.enable_grad():
        point = x if further else x.detach().requires_grad_()
        value = function(point)
    if not value.requires_grad:  # a constant function
        return torch.zeros_like

    def product(v: Tensor) -> Tensor:
        options = {"retain_graph": True, "allow_unused": True, "create_graph": further}
        if len(v) == 1:  # without a batch of gradients: no fallback needed, and quicker
            (grad,) = torch.autograd.grad(value, point, v[0], **options)
            return torch.zeros_like(v) if grad is None else grad[None]
        try:
            (grad,) = torch.autograd.grad(value, point, v, is_grads_batched=True, **options)
        except RuntimeError:  # an operation without a rule for batches of gradients
            rows = [torch.autograd.grad(value, point, u, **options)[0] for u in v]
            grad = None if rows[0] is None else torch.stack(rows)
        return torch.zeros_like(v) if grad is None else grad

    return product
