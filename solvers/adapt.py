r"""The adaptive loop. There is one; time, step, acceptance, status and cost are per sample.

A step is accepted where the root mean square over the sample's own components of
``error / (atol + rtol max(|x|, |x_new|))`` is at most 1. Steps follow the PI controller of Hairer & Wanner
(1996), Solving ODEs II, section IV.2, with exponents 0.7/p and 0.4/p; the first step is that of Hairer,
Norsett & Wanner (1993), Solving ODEs I, section II.4. Finished and failed samples leave the batch at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .problems import Problem, expand, take
from .runge_kutta import AdaptiveRungeKutta, combine, stages
from .solution import Solution, Status
from .solver import Request

_INSIDE = 0.5 + 0.5 / math.sqrt(3)  # a maximum of |u (1 - u) (1 - 2u)|
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0


@dataclass
class _Active:
    """The samples still under way: one row each."""

    row: Tensor
    t: Tensor
    t_next: Tensor
    x: Tensor
    slope: Tensor
    ratio: Tensor
    nfe: Tensor
    accepted: Tensor
    rejected: Tensor
    error: Tensor

    @property
    def h(self) -> Tensor:
        """The step now tried; t_next is what is stored, so that the end is hit exactly."""
        return self.t_next - self.t

    def select(self, keep: Tensor) -> _Active:
        return _Active(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})


def adapt(solver: AdaptiveRungeKutta, problem: Problem, x: Tensor, request: Request) -> Solution:
    """Solve each sample with steps of its own."""
    start, end = request.times
    active = _begin(solver, problem, x, start, end)
    result = _Result(x, start, request)
    min_step = solver.min_step * abs(end - start)
    while len(active.row):
        k = stages(solver.tableau, problem, active.t, active.t_next, active.x, first=active.slope)
        wide = expand(active.h, x)
        x_new = combine(active.x, wide, solver.tableau.b, k)
        local = combine(torch.zeros_like(x_new), wide, solver.tableau.b_error or (), k)
        ratio = _norm(local, active.x, x_new, solver)
        accept = ratio <= 1  # False for NaN
        last = k[-1] if solver.tableau.fsal else problem.velocity(active.t_next, x_new)
        k = k[:-1] if solver.tableau.fsal else k
        if request.dual is not None:
            error = _functional_error(solver, problem, request, active, [*k, last], local)
            active.error = active.error + torch.where(accept, error, 0.0)
        result.save(active, accept, [*k, last], solver.tableau.closed.dense or ())
        _advance(active, solver, accept, ratio, x_new, last, end)
        status = _status(active, ratio, min_step, solver.max_nfe, end)
        done = status >= 0
        if bool(done.any()):
            result.finish(active, status, done)
            keep = (~done).nonzero().flatten()
            active, problem = active.select(keep), take(problem, keep)
    return result.solution()


def _begin(solver: AdaptiveRungeKutta, problem: Problem, x: Tensor, start: float, end: float) -> _Active:
    wide = torch.float32 if x.device.type == "mps" else torch.float64
    t = torch.full((len(x),), start, dtype=wide, device=x.device)
    slope = problem.velocity(t, x)
    t_next = _propose(t, _first_step(solver, problem, t, x, slope, end), end)
    nfe, zero = (torch.full((len(x),), n, device=x.device) for n in (2, 0))
    row = torch.arange(len(x), device=x.device)
    return _Active(row, t, t_next, x, slope, torch.ones_like(t), nfe, zero, zero, x.new_zeros(len(x)))


def _first_step(
    solver: AdaptiveRungeKutta, problem: Problem, t: Tensor, x: Tensor, slope: Tensor, end: float
) -> Tensor:
    span = end - float(t[0])
    size, speed = _norm(x, x, x, solver), _norm(slope, x, x, solver)
    guess = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).clamp(max=abs(span))
    guess = torch.nan_to_num(guess, nan=1e-6 * abs(span))
    signed = math.copysign(1.0, span) * guess
    probe = (t + signed).clamp(min(float(t[0]), end), max(float(t[0]), end))
    ahead = problem.velocity(probe, combine(x, expand(signed, x), (1.0,), [slope]))
    bend = torch.nan_to_num(_norm(ahead - slope, x, x, solver) / guess, nan=math.inf)
    steep = torch.maximum(speed, bend)
    step = torch.where(steep <= 1e-15, (1e-3 * guess).clamp(min=1e-6), (0.01 / steep) ** (1 / solver.order))
    # NaN or an infinite slope: a small first step, whose rejection then says so.
    step = torch.nan_to_num(torch.minimum(100 * guess, step), nan=0.0).clamp(
        min=1e-6 * abs(span), max=abs(span)
    )
    return math.copysign(1.0, span) * step


def _functional_error(
    solver: AdaptiveRungeKutta,
    problem: Problem,
    request: Request,
    active: _Active,
    k: list[Tensor],
    local: Tensor,
) -> Tensor:
    r"""Error that a step adds to the functional whose gradient is `request.dual`, (B,).

    A path with the defect r = x' - f errs by the integral of dual . r. At the step's start the dual meets the
    integral of r, which is the local error. Where states within the step are used as well, the rest counts,
    (dual - dual at the start) . r: it is measured at one point, where the defect of an interpolant that fits
    both ends and slopes, u (1 - u) (1 - 2u) at first order, is largest. Its double stands for what the
    interpolation moves the drift by, which is of the same order. One more evaluation a step.
    """
    assert request.dual is not None
    dual = request.dual(active.t, active.x, k[0])
    error = (dual * local).flatten(1).sum(dim=1).abs()
    if request.save_at is None:
        return error
    rows = solver.tableau.closed.dense or ()
    weights = tuple(sum(c * _INSIDE**j for j, c in enumerate(row, 1)) for row in rows)
    rates = tuple(sum(j * c * _INSIDE ** (j - 1) for j, c in enumerate(row, 1)) for row in rows)
    t = active.t + _INSIDE * active.h
    x = combine(active.x, expand(active.h, active.x), weights, k)
    slope = problem.velocity(t, x)
    defect = combine(-slope, 1.0, rates, k)
    active.nfe = active.nfe + 1
    rest = ((request.dual(t, x, slope) - dual) * defect).flatten(1).sum(dim=1)
    return error + 2 * (active.h.to(rest) * rest).abs()


def _norm(value: Tensor, x: Tensor, x_new: Tensor, solver: AdaptiveRungeKutta) -> Tensor:
    """Root mean square of value / tolerance over each sample's own components, (B,)."""
    with torch.no_grad():
        scale = torch.maximum(x.abs(), x_new.abs()).mul_(solver.rtol).add_(solver.atol)
        rms = (value / scale).flatten(1).square().mean(dim=1).sqrt_()
        return rms if x.device.type == "mps" else rms.double()


def _advance(
    active: _Active,
    solver: AdaptiveRungeKutta,
    accept: Tensor,
    ratio: Tensor,
    x_new: Tensor,
    last: Tensor,
    end: float,
) -> None:
    """Take the accepted steps and propose the next ones."""
    order = solver.order
    # The PI memory is the last accepted error; after a rejection the step must not grow.
    growth = _SAFETY * ratio.clamp(min=1e-10) ** (-0.7 / order) * active.ratio ** (0.4 / order)
    growth = torch.nan_to_num(growth, nan=_SHRINK).clamp(_SHRINK, _GROW)
    growth = torch.where(accept, growth, growth.clamp(max=_SAFETY))
    active.x = torch.where(expand(accept, x_new), x_new, active.x)
    active.slope = torch.where(expand(accept, x_new), last, active.slope)
    active.ratio = torch.where(accept, ratio.clamp(min=1e-4), active.ratio)
    active.nfe = active.nfe + len(solver.tableau.b) - (1 if solver.tableau.fsal else 0)
    active.accepted, active.rejected = active.accepted + accept, active.rejected + ~accept
    step = active.h * growth
    active.t = torch.where(accept, active.t_next, active.t)
    active.t_next = _propose(active.t, step, end)


def _propose(t: Tensor, step: Tensor, end: float) -> Tensor:
    """Time after a step: the end where the step would reach it, half-way where it would leave a sliver."""
    remaining = end - t
    halved = torch.where(2 * step.abs() > remaining.abs(), remaining / 2, step)
    return torch.where(step.abs() >= remaining.abs(), end, t + halved)


def _status(active: _Active, ratio: Tensor, min_step: float, max_nfe: int, end: float) -> Tensor:
    """Status of each row, -1 while it goes on."""
    status = torch.full_like(active.row, -1)
    status = torch.where(active.nfe >= max_nfe, int(Status.MAX_NFE), status)
    small = active.h.abs() < min_step
    status = torch.where(small, int(Status.STEP_TOO_SMALL), status)
    status = torch.where(small & ~torch.isfinite(ratio), int(Status.NON_FINITE), status)
    return torch.where(active.t == end, int(Status.OK), status)


class _Result:
    """Where samples that leave the batch are put down."""

    def __init__(self, x: Tensor, start: float, request: Request) -> None:
        self.x, self.estimates = x.clone(), request.dual is not None
        self.values: dict[str, Tensor] = {}
        save_at = request.save_at
        self.save_at = (
            None if save_at is None else torch.tensor(save_at, dtype=torch.float64, device=x.device)
        )
        self.path = None
        if self.save_at is not None:
            self.path = x.new_full((len(self.save_at), *x.shape), math.nan)
            self.path[self.save_at == start] = x

    def save(self, active: _Active, accept: Tensor, k: list[Tensor], rows: tuple[Any, ...]) -> None:
        """Interpolate at the times asked for that the accepted steps have just covered."""
        if self.save_at is None or self.path is None:
            return
        theta = (self.save_at[:, None] - active.t) / active.h
        when, who = ((theta > 0) & (theta <= 1) & accept).nonzero(as_tuple=True)
        if not len(when):
            return
        at = theta[when, who].to(self.path.dtype)
        x, h = active.x[who], expand(active.h[who].to(self.path.dtype), active.x)
        powers = at[:, None] ** torch.arange(1, len(rows[0]) + 1, device=at.device)
        weights = powers @ torch.tensor(rows, dtype=at.dtype, device=at.device).T
        value = x + h * sum(expand(weights[:, i], x) * k[i][who] for i in range(len(k)) if any(rows[i]))
        if value.requires_grad:
            self.path = self.path.index_put((when, active.row[who]), value)
        else:
            self.path.index_put_((when, active.row[who]), value)

    def finish(self, active: _Active, status: Tensor, done: Tensor) -> None:
        rows = active.row[done]
        self.x = self.x.index_put((rows,), active.x[done])
        for name, value in {
            "status": status,
            **{n: getattr(active, n) for n in ("t", "nfe", "accepted", "rejected", "error")},
        }.items():
            whole = self.values.setdefault(name, value.new_zeros(len(self.x)))
            self.values[name] = whole.index_put((rows,), value[done])

    def solution(self) -> Solution:
        if not self.estimates:
            self.values.pop("error", None)
        return Solution(self.x, path=self.path, **self.values)
