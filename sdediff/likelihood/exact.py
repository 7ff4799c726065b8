"""The exact trace of a Jacobian, by whichever way of differentiating is quickest for a network."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .divergence import Divergence, Places, RowFunction, recorded, stacks

Method = Literal["auto", "vjp", "vmap", "loop", "jvp"]
#: ``(function, x) -> (function(x), trace (R,))``.
Way = Callable[[RowFunction, Tensor], tuple[Tensor, Tensor]]

_TRIAL, _WORTH_A_TRIAL = 32, 32  # points of a trial, and how many times as many make it worth while
_AGREEMENT = 1e4  # in units of rounding, of the root mean square of the traces plus 1
_TOGETHER = 1 << 15  # numbers in a batch of unit vectors with their points: more make nothing quicker


@dataclass(frozen=True)
class Exact(Divergence):
    """The exact trace: one Jacobian product a dimension.

    Args:
        method: "vjp" (autograd with a batch of unit vectors), "vmap" (torch.func's vjp, likewise), "loop" (a
            vector-Jacobian product at a time, for networks with operations that do not batch), "jvp" (forward
            mode; no graph is kept, so it needs the least memory), or "auto": the quickest of them for this
            network, shape and dtype, found once by trying them on a few rows where there are many, and
            checked against each other. They differ by rounding only.

    Raises:
        ValueError: If the method is unknown.

    Example:
        >>> import torch
        >>> x, row = torch.tensor([[1.0, 2.0]]), torch.arange(1)
        >>> Exact().traces(lambda x: x**2, x, row, torch.zeros(1), 0)
        tensor([[6.]])
    """

    method: Method = "auto"
    estimator = "exact"

    def __post_init__(self) -> None:
        if self.method != "auto" and self.method not in WAYS:
            raise ValueError(f'method={self.method!r} is not known: take "auto", {_quoted(list(WAYS))}')

    def evaluations(self, dim: int) -> int:
        """One a dimension."""
        return dim

    def traces(self, function: RowFunction, x: Tensor, rows: Tensor, node: Tensor, seed: int) -> Tensor:
        """The sum over unit vectors e_i of e_i^T J e_i, (1, R); arguments as in the base class."""
        return self.with_value(function, x, rows, node, seed)[1]

    def with_value(
        self, function: RowFunction, x: Tensor, rows: Tensor, node: Tensor, seed: int
    ) -> tuple[Tensor, Tensor]:
        """The function's values and the traces (1, R), from one evaluation."""
        way = WAYS[self.method if self.method != "auto" else "vjp"]
        if recorded(x):
            value, trace = way(function, x)
            return value, trace[None]
        value, trace = way(function, x.detach())
        return value.detach(), trace.detach()[None]

    def points(self, dim: int) -> int:
        """Enough for a loop over unit vectors to be worth its while; graphs stay small."""
        return min(4096, max(16, (1 << 12) // dim))

    def suited(self, network: nn.Module, at: Places, points: int) -> Exact:
        """With a method in place of "auto", the quickest, where there are points enough to pay for a trial.

        Raises:
            RuntimeError: If two methods disagree by more than rounding.
        """
        if self.method != "auto" or points < _WORTH_A_TRIAL * _TRIAL:
            return self
        known = _KNOWN.setdefault(network, {})
        x = at(slice(0, 1))[1]
        key = (x.shape, x.dtype, x.device, torch.get_num_threads())
        if key not in known:
            known[key] = quickest(at)
        return Exact(known[key])


#: The method found for each network, by shape and kind of the points and number of threads.
_KNOWN: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Method]] = WeakKeyDictionary()


def _diagonal(product: Callable[[Tensor], Tensor | None], x: Tensor, numbers: int = _TOGETHER) -> Tensor:
    """The sum of ``(e_i J)_i`` over unit vectors, (R,); the product takes a stack of them, (P, R, *E)."""
    dim, total = x[0].numel(), x.new_zeros(len(x))
    for stack in stacks(dim, x, numbers):
        index = torch.arange(len(stack), device=x.device)
        unit = x.new_zeros(len(stack), 1, dim)
        unit[index, 0, index + stack.start] = 1
        rows = product(unit.expand(-1, len(x), -1).reshape(len(stack), *x.shape))
        if rows is None:  # a constant function
            return total
        total = total + rows.flatten(2)[index, :, index + stack.start].sum(dim=0)
    return total


def _graph(function: RowFunction, x: Tensor) -> tuple[Tensor, Callable[..., Tensor | None]]:
    """The value, and ``v, **options -> v^T J`` from its graph."""
    further = recorded(x)
    with torch.enable_grad():
        point = x if further else x.detach().requires_grad_()
        value = function(point)

    def product(v: Tensor, **options: Any) -> Tensor | None:
        if not value.requires_grad:
            return None
        options |= {"retain_graph": True, "allow_unused": True, "create_graph": further}
        return torch.autograd.grad(value, point, v, **options)[0]

    return value, product


def _by_loop(function: RowFunction, x: Tensor) -> tuple[Tensor, Tensor]:
    value, product = _graph(function, x)

    def one(v: Tensor) -> Tensor | None:
        row = product(v[0])
        return None if row is None else row[None]

    return value, _diagonal(one, x, 0)


def _by_vjp(function: RowFunction, x: Tensor) -> tuple[Tensor, Tensor]:
    value, product = _graph(function, x)
    try:
        return value, _diagonal(lambda v: product(v, is_grads_batched=True), x)
    except RuntimeError:  # an operation without a rule for batches of gradients
        return _by_loop(function, x)


def _by_vmap(function: RowFunction, x: Tensor) -> tuple[Tensor, Tensor]:
    value, pull = torch.func.vjp(function, x)[:2]
    return value, _diagonal(lambda v: torch.func.vmap(pull)(v)[0], x)


def _by_jvp(function: RowFunction, x: Tensor) -> tuple[Tensor, Tensor]:
    def push(v: Tensor) -> Tensor:
        return torch.func.jvp(function, (x,), (v,))[1]

    return function(x), _diagonal(torch.func.vmap(push), x)


WAYS: dict[Method, Way] = {"vjp": _by_vjp, "vmap": _by_vmap, "loop": _by_loop, "jvp": _by_jvp}


def quickest(at: Places) -> Method:
    """The quickest way among those that can do it, all of which must agree.

    A way is left out where it cannot differentiate an operation of the network.

    Raises:
        RuntimeError: If two ways disagree by more than rounding.
    """
    times, traces = dict[Method, float](), dict[Method, Tensor]()
    for method, way in WAYS.items():
        try:
            way(*at(slice(0, 1)))  # the first call of a kind is slow
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            begin = time.perf_counter()
            traces[method] = way(*at(slice(0, _TRIAL)))[1].detach()
            if traces[method].is_cuda:
                torch.cuda.synchronize(traces[method].device)
        except (RuntimeError, NotImplementedError):
            if method == "vjp":  # the network itself fails
                raise
            continue
        times[method] = time.perf_counter() - begin
    first = traces["vjp"]
    limit = _AGREEMENT * torch.finfo(first.dtype).eps * (1 + float(first.square().mean().sqrt()))
    for method, trace in traces.items():
        gap = float((trace - first).abs().max())
        if not gap <= limit and bool(torch.isfinite(first).all()):
            raise RuntimeError(
                f'traces of a Jacobian by "vjp" and "{method}" differ by {gap:.2g}: the network is random '
                "or has an operation with a wrong derivative; mend it, or say which is right, as in "
                'divergence=sdediff.Exact(method="vjp")'
            )
    return min(times, key=lambda method: times[method])


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names[:-1]) + f' or "{names[-1]}"'
