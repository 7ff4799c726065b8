"""Where along the path the trace is evaluated: nodes in the clock s = ln(sigma/alpha), and their weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from solvers.solve import time_grid

from ..model import DiffusionModel
from ..run import Run
from .quadrature import check_count, clustered_rule, coarse_weights, spline_weights

DEFAULT_NODES = 65
CENTRE = 0.4  # noise level around which nodes cluster, in standard deviations of the data


@dataclass(frozen=True)
class Nodes:
    """How nodes are spread over the path of an adaptive solver.

    Args:
        count: Number of nodes, a multiple of 4 plus 1.
        centres: Clocks ln(sigma/alpha), in the model's units, around which they cluster; by default one, at
            0.4 standard deviations of the data.
        shares: Nodes at each centre, as multiples of those spread uniformly.
        width: Spread of a cluster.

    Raises:
        ValueError: If the count does not fit, or centres and shares differ in number.
    """

    count: int = DEFAULT_NODES
    centres: tuple[float, ...] | None = None
    shares: tuple[float, ...] = (1.0,)
    width: float = 1.0

    def __post_init__(self) -> None:
        check_count(self.count)
        if self.centres is not None and len(self.centres) != len(self.shares):
            raise ValueError(
                f"{len(self.centres)} centres and {len(self.shares)} shares: give one share a centre"
            )

    @classmethod
    def of(cls, nodes: int | Nodes | None) -> Nodes:
        """Nodes from what a caller gives."""
        if nodes is None or isinstance(nodes, Nodes):
            return nodes or cls()
        return cls(nodes)


@dataclass(frozen=True)
class Rule:
    """Quadrature in the clock s: rising times, weights, and those of two coarser rules, for the error."""

    times: tuple[float, ...]
    clock: Tensor
    weights: Tensor
    coarse: Tensor
    #: The least that the error may be said to be of the change from half the nodes; 1 on a solver's own grid.
    fastest: float = 1 / 32

    @classmethod
    def of(cls, model: DiffusionModel, run: Run, nodes: int | Nodes | None) -> Rule:
        """The rule of a run: the grid of a fixed-grid solver, else `nodes`."""
        process = model.process
        if not run.solver.adaptive:
            if nodes is not None:
                raise TypeError(
                    f"nodes={nodes} belongs to adaptive solvers: those of {run.solver.name} are its grid's "
                    "points, so give steps= or grid="
                )
            grid = fixed_grid(model, run)
            clock = -process.lam(torch.tensor(grid, dtype=torch.float64))
            weights = torch.from_numpy(spline_weights(clock.numpy()))
            return cls(grid, clock, weights, torch.from_numpy(coarse_weights(clock.numpy())), fastest=1.0)
        spread = Nodes.of(nodes)
        low, high = (-float(process.lam(t)) for t in run.span)
        centres = spread.centres or (math.log(data_scale(model) * CENTRE),)
        rule = clustered_rule(low, high, centres, spread.count, spread.shares, spread.width)
        clock, weights, coarse = map(torch.from_numpy, rule)
        times = process.time(-clock).tolist()
        times[0], times[-1] = run.span
        return cls(tuple(times), clock, weights, coarse)


def data_scale(model: DiffusionModel) -> float:
    """Standard deviation of the data in the model's units, 1 where it is unknown."""
    return 1.0 if model.moments is None else model.moments.scale or 1.0


def fixed_grid(model: DiffusionModel, run: Run) -> tuple[float, ...]:
    """The rising times of a fixed-grid solve."""
    options = {k: run.options[k] for k in ("steps", "grid")}
    if isinstance(options["grid"], Tensor):
        return tuple(sorted(options["grid"].tolist()))
    return time_grid(model.problem(0.0), run.solver, run.span, **options)
