"""Nodes placed where random probes scatter, found by a pilot on some data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..model import DiffusionModel, solving
from ..run import Run
from .hutchinson import Hutchinson
from .integral import traces_along
from .nodes import DEFAULT_NODES, Nodes, Rule

_PROBES, _CLUSTERED, _WIDTH = 4, 0.6, 0.5  # share of nodes placed by the pilot; smoothing, in ln sigma


@solving
def fit_nodes(
    model: DiffusionModel,
    x: Tensor,
    count: int = DEFAULT_NODES,
    *,
    pilot: int = 33,
    cond: Any = None,
    seed: int = 0,
    t_span: tuple[float, float] | None = None,
) -> Nodes:
    r"""Place nodes where a trace's random probes scatter most.

    For independent probes the best density of nodes is proportional to the probes' standard deviation at each
    noise level. It is measured at `pilot` levels along the paths of x, smoothed by normals of standard
    deviation 0.5 in :math:`\ln\tilde\sigma`, since a density with kinks would spoil the quadrature, and mixed
    with the uniform one, 60 to 40. The result depends on x alone, so fit once, on training data, and pass it
    as `nodes=`: a row's likelihood then does not depend on its batch-mates.

    Args:
        model: The model.
        x: Some data in data units, (n, *data_shape); 16 to 64 rows serve.
        count: Number of nodes to place, a multiple of 4 plus 1.
        pilot: Number of levels to measure at, likewise.
        cond: Conditions, (n, ...), or one for all.
        seed: Seed of the pilot's probes.
        t_span: (t_min, t_max) in place of the process's.

    Returns:
        The nodes, for the `nodes=` of :func:`log_likelihood`.

    Raises:
        ValueError: If a number is no multiple of 4 plus 1, or x does not fit.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.random_mixture(dim=16)
        >>> model = data.model(sdediff.VP())
        >>> nodes = fit_nodes(model, data.sample(16, seed=1))
        >>> r = model.log_likelihood(data.sample(4), nodes=nodes, divergence=sdediff.Hutchinson())
    """
    Nodes(count)  # says what is wrong with it
    z = model.as_state(x)
    run = Run.of(model, "dopri5", rtol=1e-4, atol=1e-4, eta=0.0, t_span=t_span)
    rule = Rule.of(model, run, pilot)
    cond, rows = model.expand_condition(cond, len(z), z.device), torch.arange(len(z))
    start = z * float(model.process.alpha(run.span[0]))
    solution = run.carry(model, start, cond, rows, up=True, save_at=rule.times)
    run.report(solution)
    assert solution.path is not None
    variance = torch.zeros(pilot, dtype=torch.float64)
    probes = Hutchinson(_PROBES, pattern="fresh")
    for parts, node, _ in traces_along(model, rule, probes, solution.path, cond, rows, seed):
        variance.index_add_(0, node.cpu(), parts.var(dim=0).sum(dim=1).double().cpu().nan_to_num())
    mass = variance.sqrt() * torch.gradient(rule.clock)[0]
    if not float(mass.sum()) > 0:  # probes without scatter, as on data of independent columns
        return Nodes(count)
    shares = mass / mass.sum() * _CLUSTERED / (1 - _CLUSTERED)
    return Nodes(count, tuple(rule.clock.tolist()), tuple(shares.tolist()), _WIDTH)
