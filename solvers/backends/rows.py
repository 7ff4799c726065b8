"""A solver whose samples share their steps, run on one sample at a time."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from ..problems import Problem, take
from ..solution import Solution
from ..solver import Request, Solver


def one_by_one(solver: Solver, problem: Problem, x: Tensor, request: Request) -> Solution:
    """Integrate each row by itself, so that its result does not depend on its batch-mates.

    Args:
        solver: A solver; its `integrate` is given batches of one.
        problem: The problem of the whole batch.
        x: States, (B, *E).
        request: What is asked for.
    """
    parts = []
    for row in range(len(x)):
        keep = torch.tensor([row], device=x.device)
        own = Request(request.times, request.noise.take(keep), request.save_at, request.dual)
        parts.append(solver.integrate(take(problem, keep), x[row : row + 1], own))

    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values, dim=1 if name == "path" else 0)

    return Solution(**{f.name: joined(f.name) for f in fields(Solution)})
