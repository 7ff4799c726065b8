"""The trace of the denoiser's Jacobian: exact, or estimated from random probes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from solvers.noise import Stream, normal, uniform

_PROBE_NUMBERS = 1 << 22  # numbers in one batch of vector-Jacobian products


class Trace(NamedTuple):
    """Traces at some points.

    Attributes:
        value: The trace, or its estimate, (R,).
        variance: Estimated variance of the estimate, (R,); 0 when exact, nan for a single probe.
    """

    value: Tensor
    variance: Tensor


class Divergence(ABC):
    """How the trace of a Jacobian is found."""

    #: "exact" or "unbiased".
    estimator: str

    @abstractmethod
    def evaluations(self, dim: int) -> int:
        """Vector-Jacobian products a point."""

    @abstractmethod
    def trace(
        self, function: Callable[[Tensor], Tensor], x: Tensor, rows: Tensor, node: Tensor, seed: int
    ) -> Trace:
        """Trace of the Jacobian of `function` at each row of x.

        Args:
            function: Maps (R, *E) to (R, *E), row by row.
            x: Points, (R, *E).
            rows: Names of the samples the points belong to, (R,).
            node: Number of the quadrature node of each point, (R,).
            seed: Seed of the probes.
        """

    @property
    def degrees(self) -> int:
        """Degrees of freedom of `variance` at one point."""
        return 0


def _products(function: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[Tensor], Tensor]:
    """``v -> v^T J`` for a stack of v, (P, R, *E) -> (P, R, *E), from one evaluation of the function."""
    with torch.enable_grad():
        point = x.detach().requires_grad_()
        value = function(point)
    if not value.requires_grad:  # a constant function
        return torch.zeros_like

    def product(v: Tensor) -> Tensor:
        options = {"retain_graph": True, "allow_unused": True}
        try:
            (grad,) = torch.autograd.grad(value, point, v, is_grads_batched=True, **options)
        except RuntimeError:  # an operation without a rule for batches of gradients
            rows = [torch.autograd.grad(value, point, u, **options)[0] for u in v]
            grad = None if rows[0] is None else torch.stack(rows)
        return torch.zeros_like(v) if grad is None else grad

    return product


def _stacks(count: int, x: Tensor) -> list[range]:
    size = max(1, _PROBE_NUMBERS // max(1, x.numel()))
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


@dataclass(frozen=True)
class Exact(Divergence):
    """The exact trace: one vector-Jacobian product a dimension.

    Example:
        >>> import torch
        >>> x, row = torch.tensor([[1.0, 2.0]]), torch.arange(1)
        >>> Exact().trace(lambda x: x**2, x, row, torch.zeros(1), 0).value
        tensor([6.])
    """

    estimator = "exact"

    def evaluations(self, dim: int) -> int:
        """One a dimension."""
        return dim

    def trace(
        self, function: Callable[[Tensor], Tensor], x: Tensor, rows: Tensor, node: Tensor, seed: int
    ) -> Trace:
        """The sum over unit vectors e_i of e_i^T J e_i; arguments as in the base class."""
        product, dim = _products(function, x), x[0].numel()
        total = x.new_zeros(len(x))
        for stack in _stacks(dim, x):
            index = torch.arange(len(stack), device=x.device)
            unit = x.new_zeros(len(stack), 1, dim)
            unit[index, 0, index + stack.start] = 1
            rows_of_j = product(unit.expand(-1, len(x), -1).reshape(len(stack), *x.shape)).flatten(2)
            total = total + rows_of_j[index, :, index + stack.start].sum(dim=0)
        return Trace(total, torch.zeros_like(total))


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

    @property
    def degrees(self) -> int:
        """Probes less one."""
        return self.probes - 1

    def trace(
        self, function: Callable[[Tensor], Tensor], x: Tensor, rows: Tensor, node: Tensor, seed: int
    ) -> Trace:
        """Mean and variance over the probes; arguments as in the base class."""
        product, estimates = _products(function, x), []
        for stack in _stacks(self.probes, x):
            v = torch.stack([self._probe(x, rows, node, p, seed) for p in stack])
            estimates.append((product(v) * v).flatten(2).sum(dim=2))
        values = torch.cat(estimates)
        if self.probes == 1:
            return Trace(values[0], torch.full_like(values[0], float("nan")))
        return Trace(values.mean(dim=0), values.var(dim=0) / self.probes)

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
