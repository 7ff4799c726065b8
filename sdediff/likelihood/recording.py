"""What a log-density depends on, and functions whose backward pass is another computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..model import DiffusionModel, evaluating
from ..run import Run

#: Gradients of what was asked for, in its order; None where nothing depends on it.
Gradients = list[Tensor | None]


def dependencies(model: DiffusionModel, run: Run, z: Tensor, cond: Any) -> list[Tensor]:
    """Tensors that want a gradient of the model's log-density: parameters, and what functions closed over.

    A custom function's backward pass serves the tensors it is told of and no others, so the graphs of one
    evaluation of the network and one of the prior are searched for their leaves.
    """
    first = None if cond is None else cond[:1].detach()
    with torch.enable_grad(), evaluating(model):
        lam = model.process.lam(torch.tensor(run.span, dtype=torch.float64))
        denoised = model.problem(0.0, first).denoise(float(model.process.time(lam.mean())), z[:1].detach())
        outputs = denoised, run.prior.log_prob(denoised.detach().flatten(1))
    found = {id(p): p for p in model.parameters() if p.requires_grad}
    nodes, seen = [o.grad_fn for o in outputs], set[Any]()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf.requires_grad:
            found[id(leaf)] = leaf
        nodes += [parent for parent, _ in node.next_functions]
    return list(found.values())


def gradients(output: Tensor, inputs: Sequence[Tensor], weights: Tensor | None = None) -> Gradients:
    """Gradients of an output; None where it does not depend on an input, or none is wanted.

    The graph is kept, since what functions closed over may have one of their own that serves again.
    """
    wanted = [v for v in inputs if v.requires_grad]
    if not output.requires_grad or not wanted:
        return [None] * len(inputs)
    found = iter(torch.autograd.grad(output, wanted, weights, retain_graph=True, allow_unused=True))
    return [next(found) if v.requires_grad else None for v in inputs]


class _Given(torch.autograd.Function):
    """A value that is known, with a backward pass that is given."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, pull: Callable[..., Gradients], *inputs: Tensor) -> Tensor:
        ctx.pull = pull
        ctx.save_for_backward(*inputs)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, weights: Tensor) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "log_prob has first derivatives only and create_graph=True asks for more: leave it out, or "
                "differentiate the gradient by finite differences"
            )
        return None, None, *ctx.pull(weights, *ctx.saved_tensors)  # which sees that none was changed since


def with_gradient(value: Tensor, pull: Callable[..., Gradients], *inputs: Tensor) -> Tensor:
    """The value, whose backward pass is ``pull(weights, *inputs)``: a gradient for each of the inputs."""
    return _Given.apply(value, pull, *inputs)


def recomputed(function: Callable[..., Tensor], states: Sequence[Tensor], leaves: Sequence[Tensor]) -> Tensor:
    """``function(*states)``, which is computed again in the backward pass in place of keeping its graph.

    Args:
        function: What to compute; it may differentiate within itself, where torch's own checkpoint would run
            it again each time.
        states: Its arguments.
        leaves: What else it depends on.
    """
    with torch.no_grad():
        value = function(*states)

    def pull(weights: Tensor, *inputs: Tensor) -> Gradients:
        # All that can be recorded is: a trace carries a graph where its point does, whatever else it needs.
        fresh = [v.detach().requires_grad_(v.is_floating_point()) for v in inputs[: len(states)]]
        with torch.enable_grad():
            return gradients(function(*fresh), [*fresh, *leaves], weights)

    return with_gradient(value, pull, *states, *leaves)
