"""Log-densities with a graph to data, conditions and parameters."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from solvers import Dopri5
from solvers.runge_kutta import AdaptiveRungeKutta

from ..model import DiffusionModel
from ..run import Run, rows_of
from .adjoint import Adjoint, Task
from .checkpointed import checkpointed_log_prob
from .coupled import coupled_log_likelihood
from .engine import choose_divergence, log_likelihood
from .hutchinson import Hutchinson
from .nodes import Rule
from .recording import dependencies, with_gradient

_OF_RUN = ("t_span", "steps", "grid", "rtol", "atol", "seed", "prior", "on_failure")


def differentiable_log_prob(
    model: DiffusionModel, x: Tensor, gradient: str = "adjoint", *, parameters: bool = True, **options: Any
) -> Tensor:
    r"""Log-densities in nats, (n,), to be differentiated by autograd.

    Memory does not grow with the number of steps in either way, and samples do not depend on their
    batch-mates. Random probes are a function of the seed, so that the value is a function of x and of the
    parameters, and its gradient is an unbiased estimate of the exact one. Second derivatives are an error.

    Args:
        model: The model; it is taken in evaluation mode, whatever mode it is in.
        x: Data in data units, (n, *data_shape).
        gradient: "adjoint": values as without a gradient, and the gradient of the continuous problem, to the
            tolerance of an adaptive solver (the one given, or "dopri5" with rtol = atol = 1e-6 after another)
            and of the quadrature. "checkpoint": values of the coupled form on a fixed grid ("rk4" and its
            default steps unless `solver` and `steps` or `grid` say otherwise), whose gradient is exact but
            for rounding.
        parameters: Whether the model's parameters are to have gradients; without them "checkpoint" is
            cheaper. "adjoint" computes what a backward pass asks for, and no more.
        **options: For "adjoint" those of :func:`log_likelihood`, for "checkpoint" solver, divergence, steps,
            grid, cond, seed, indices, t_span, prior, batch_size and on_failure.

    Returns:
        (n,); nan where a sample's solve fails, and so is then its gradient with respect to x, and that of a
        sum in which it counts with respect to parameters.

    Raises:
        TypeError: If an option has no gradient.
        ValueError: If x, the kind of gradient or an option does not fit.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.eight_gaussians(dtype=torch.float64)
        >>> model, x = data.model(sdediff.VP()), data.sample(3, seed=0).requires_grad_()
        >>> (score,) = torch.autograd.grad(differentiable_log_prob(model, x).sum(), x)
        >>> exact = data.score(sdediff.VP(), x.detach(), sdediff.VP().t_min)
        >>> bool(((score - exact).abs() < 1e-2).all())
        True
    """
    if gradient not in ("adjoint", "checkpoint"):
        raise ValueError(f'gradient={gradient!r} is not known: take "adjoint", "checkpoint" or None')
    for name in ("coupled", "extrapolate"):
        if options.pop(name, False):
            raise TypeError(f"{name}=True has no gradient: leave it out, or take gradient=None")
    divergence = options.get("divergence")
    if isinstance(divergence, Hutchinson) and divergence.std_error is not None:
        raise TypeError(
            f"std_error={divergence.std_error} lets the value choose the number of probes, so that it jumps: "
            "for a gradient give the number, as in divergence=sdediff.Hutchinson(probes=8)"
        )
    if gradient == "checkpoint":
        if not torch.is_grad_enabled():
            options = {"solver": "rk4", **options}
            return coupled_log_likelihood(model, x, **options).log_prob
        return checkpointed_log_prob(model, x, parameters=parameters, **options)
    return _adjoint_log_prob(model, x, parameters, options)


def _adjoint_log_prob(model: DiffusionModel, x: Tensor, parameters: bool, options: dict[str, Any]) -> Tensor:
    value = log_likelihood(model, x, **options).log_prob
    if not torch.is_grad_enabled():
        return value
    run = Run.of(
        model,
        options.get("solver", "dopri5"),
        eta=0.0,
        **{name: options[name] for name in _OF_RUN if name in options},
    )
    z = model.as_state(x)
    cond = model.expand_condition(options.get("cond"), len(z), z.device)
    leaves = dependencies(model, run, z, cond) if parameters else []
    task = Task(
        _adaptive(run, options),
        Rule.of(model, run, options.get("nodes")),
        choose_divergence(model, options.get("divergence")),
        z.detach(),
        cond,
        rows_of(len(z), options.get("indices")),
        torch.isfinite(value),
        leaves,
        options.get("batch_size"),
    )
    adjoint = Adjoint(model, task)
    rest = [*([] if cond is None or not cond.requires_grad else [cond]), *leaves]
    value = with_gradient(value, adjoint.of_states, z)
    if not rest:
        return value
    # A node of its own, so that a gradient with respect to x alone costs no more. Being the younger it comes
    # first in a backward pass, and leaves the adjoint at the data to the other.
    return value + with_gradient(torch.zeros_like(value.detach()), adjoint.of_rest, *rest)


def _adaptive(run: Run, options: dict[str, Any]) -> Run:
    """The run of the adjoint: a native adaptive solver without a grid."""
    named = options.get("solver", "dopri5") == "dopri5"
    if isinstance(run.solver, AdaptiveRungeKutta) and not named:
        return run
    given = options if run.solver.adaptive else {}
    rtol, atol = (1e-6 if given.get(name) is None else float(given[name]) for name in ("rtol", "atol"))
    solver = Dopri5(rtol, atol)
    return replace(run, solver=solver, options={"solver": solver, "steps": None, "grid": None})
