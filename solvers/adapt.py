r"""The adaptive loop. There is one; time, step, acceptance, status and cost are per sample.

A step is accepted where the root mean square over the sample's own components of
``error / (atol + rtol max(|x|, |x_new|))`` is at most 1. Steps follow the PI controller of Hairer & Wanner
(1996), Solving ODEs II, section IV.2, with exponents 0.7/p and 0.4/p; the first step is that of Hairer,
Norsett & Wanner (1993), Solving ODEs I, section II.4. Finished samples leave the batch once they are an
eighth of it, failed ones at once.

A step's slopes are kept as increments h k_i, the rows of one buffer, so that a stage is one matrix-vector
product; where autograd records the solve they are separate tensors, since a graph may not be written over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .active import Gathered, Rows, outcome, propose, rms, tolerance, wide
from .problems import ODE, Problem, expand, like_state, take
from .runge_kutta import AdaptiveRungeKutta
from .solution import Solution
from .solver import Request
from .tableaus import Tableau

_LOBATTO = (0.5 - 0.5 / math.sqrt(5), 0.5 + 0.5 / math.sqrt(5))  # inner points; weights 5/12, ends 1/12
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 10.0
_IDLE = 8  # finished samples stay until they are one in so many
#: ``(i, y, out) -> h k`` of the step's stage i at y, written to `out` where that is a tensor.
Slopes = Callable[[int, Tensor, "Tensor | None"], Tensor]


@dataclass
class _Active(Rows):
    """The samples still in the batch; t_next is what decides, so that the end is hit exactly."""

    h: Tensor  # t_next - t
    first: Tensor  # increment h k_1 of the step now tried
    memory: Tensor  # log of the last accepted error ratio
    accepted: Tensor
    tried: Tensor
    status: Tensor  # -1 while the sample goes on
    error: Tensor  # of the functional, and the sum of its parts' absolute values
    size: Tensor


class _Increments:
    """The increments h k_i of a step, and sums of them."""

    def __init__(self, tableau: Tableau, x: Tensor, extra: bool, recorded: bool) -> None:
        self.stages = len(tableau.b) + (len(tableau.extra) if extra else 0)
        self.recorded, self.rows = recorded, [x]
        if not recorded:
            self._fit(x.new_empty((self.stages, *x.shape)))

    def _fit(self, buffer: Tensor) -> None:
        self.buffer, self.rows = buffer, [buffer[i] for i in range(self.stages)]
        flat = buffer.view(self.stages, -1)
        self.matrices = [flat[:count].T for count in range(self.stages + 1)]

    def shrink(self, keep: Tensor) -> None:
        """Serve fewer samples."""
        if not self.recorded:
            shape = (self.stages, keep.shape[0], *self.buffer.shape[2:])
            self._fit(self.buffer.flatten()[: math.prod(shape)].view(shape))

    def start(self, first: Tensor) -> None:
        if self.recorded:
            self.rows = [first]
        else:
            self.rows[0].copy_(first)

    def add(self, slopes: Slopes, stage: int, y: Tensor) -> None:
        """Evaluate a stage (1, 2, ...) at y."""
        if self.recorded:
            self.rows.append(slopes(stage - 1, y, None))
        else:
            slopes(stage - 1, y, self.rows[stage])

    def __getitem__(self, stage: int) -> Tensor:
        return self.rows[stage]

    def all(self) -> Tensor:
        """All increments, (S, B, *E)."""
        return torch.stack(self.rows) if self.recorded else self.buffer

    def sum(self, weights: Tensor, x: Tensor | None = None) -> Tensor:
        """Add to x (or to 0) the weighted sum of the first increments, one a weight."""
        count, shape = weights.shape[0], self.rows[0].shape
        if self.recorded:
            matrix = torch.stack(self.rows[:count]).view(count, -1).T
        else:
            matrix = self.matrices[count]
        total = torch.mv(matrix, weights) if x is None else torch.addmv(x.reshape(-1), matrix, weights)
        return total.view(shape)


class _Method:
    """A tableau's coefficients as tensors like the state."""

    def __init__(self, solver: AdaptiveRungeKutta, x: Tensor, request: Request) -> None:
        self.solver, self.saving = solver, request.save_at is not None
        tableau = self.tableau = solver.tableau.closed
        assert tableau.dense is not None
        stages = len(tableau.b)
        extra = tableau.extra if self.saving else ()
        self.rows = [x.new_tensor(row) for row in (*tableau.a, *extra)]
        nodes = (*tableau.c, *tableau.nodes[stages:]) if self.saving else tableau.c
        self.before = torch.tensor(nodes[1:], dtype=wide(x), device=x.device)[:, None] - 1
        # error / (atol + rtol |x|) = (error / rtol) / (atol / rtol + |x|), and the mean's factor beside.
        self.floor, unit = solver.atol / solver.rtol, solver.rtol * math.sqrt(x[0].numel())
        self.local = x.new_tensor(tableau.b_error)
        self.error = self.local / unit
        self.error_low = None if tableau.b_error_low is None else x.new_tensor(tableau.b_error_low) / unit
        self.per_step = len(nodes) - 1 + (len(_LOBATTO) if self.saving and request.dual is not None else 0)

    def times(self, active: _Active) -> Tensor:
        """Times of the stages after the first, (S, B); exactly t_next where the node is 1."""
        return torch.addcmul(active.t_next, self.before, active.h)

    def ratio(self, k: _Increments, x: Tensor, x_new: Tensor) -> Tensor:
        """The step's error over its tolerance, (B,), in wide precision."""
        x, x_new = x.detach(), x_new.detach()
        size = torch.maximum(x.abs(), x_new.abs()).add_(self.floor)
        ratio = self._norm(k.sum(self.error).detach(), size)
        if self.error_low is not None:
            low = self._norm(k.sum(self.error_low).detach(), size)
            ratio = ratio / torch.sqrt(1 + 0.01 * (low / ratio.clamp(min=1e-30)).square())
        return ratio

    def _norm(self, error: Tensor, size: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(error.div_(size).view(size.shape[0], -1), dim=1)
        return norm.to(self.before.dtype)


def adapt(solver: AdaptiveRungeKutta, problem: Problem, x: Tensor, request: Request) -> Solution:
    """Solve each sample with steps of its own."""
    start, end = request.times
    method = _Method(solver, x, request)
    active = _begin(method, problem, x, start, end)
    recorded = torch.is_grad_enabled() and (x.requires_grad or active.first.requires_grad)
    k = _Increments(method.tableau, x, method.saving, recorded)
    result = _Result(x, start, request, method.tableau)
    min_step, tries, gone = solver.min_step * abs(end - start), 0, 0
    last = len(method.tableau.b) - 1
    while active.row.shape[0]:
        slopes = _slopes(problem, method.times(active), active.h, active.x)
        k.start(active.first)
        y = active.x
        for stage in range(1, last + 1):  # the last stage is at the end of the step
            y = k.sum(method.rows[stage], active.x)
            k.add(slopes, stage, y)
        ratio = method.ratio(k, active.x, y)
        accept = ratio <= 1  # False for NaN
        if gone:
            accept = accept & (active.status < 0)
        if method.saving:
            for stage in range(last + 1, k.stages):
                k.add(slopes, stage, k.sum(method.rows[stage], active.x))
        if request.dual is not None:
            error, size = _functional_error(method, problem, request, active, k)
            active.error = active.error + torch.where(accept, error, 0.0)
            active.size = active.size + torch.where(accept, size, 0.0)
        result.save(active, accept, k, y)
        _advance(active, method, accept, ratio, y, k, end, gone > 0)
        tries += 1
        ended = active.h.abs() <= min_step
        spent = 2 + tries * method.per_step >= solver.max_nfe
        count = int(torch.count_nonzero(ended))
        if count == gone and not spent:
            continue
        _settle(active, ended, spent, ratio, tries, end)
        done = active.status >= 0
        gone = int(torch.count_nonzero(done))
        if spent or gone * _IDLE >= done.shape[0] or bool((active.status > 0).any()):
            result.leave(active, done, method.per_step)
            keep = (~done).nonzero().flatten()
            active, problem, gone = active.select(keep), take(problem, keep), 0
            k.shrink(keep)
    return result.solution(path=result.path)


def _slopes(problem: Any, times: Tensor, h: Tensor, x: Tensor) -> Slopes:
    """Slopes at the times of a step's stages (S, B), times h (B,)."""
    prepared = getattr(problem, "slopes", None)
    if prepared is not None:
        return prepared(times, h, x)
    step = expand(h.to(x.dtype), x)
    if isinstance(problem, ODE):
        rounded, drift, more = times.to(x.dtype).unbind(), problem.drift, problem.per_sample
        return lambda stage, y, out: torch.mul(like_state(drift(rounded[stage], y, *more), y), step, out=out)
    return lambda stage, y, out: torch.mul(problem.velocity(times[stage], y), step, out=out)


def _begin(method: _Method, problem: Problem, x: Tensor, start: float, end: float) -> _Active:
    t = torch.full((len(x),), start, dtype=wide(x), device=x.device)
    slope = problem.velocity(t, x)
    t_next = propose(t, _first_step(method, problem, t, x, slope, end), end)
    h = t_next - t
    row, zero = torch.arange(len(x), device=x.device), torch.zeros(len(x), dtype=torch.int64, device=x.device)
    first = slope * expand(h.to(x.dtype), x)
    memory, error = torch.zeros_like(t), x.new_zeros(len(x))
    return _Active(row, t, t_next, x, h, first, memory, zero, zero, zero - 1, error, error)


def _first_step(method: _Method, problem: Problem, t: Tensor, x: Tensor, slope: Tensor, end: float) -> Tensor:
    span = end - float(t[0])
    scale = tolerance(x.detach(), x.detach(), method.solver)
    size, speed = (rms(v.detach() / scale) for v in (x, slope))
    guess = torch.where((size < 1e-5) | (speed < 1e-5), 1e-6, 0.01 * size / speed).clamp(max=abs(span))
    guess = torch.nan_to_num(guess, nan=1e-6 * abs(span))
    signed = math.copysign(1.0, span) * guess
    probe = (t + signed).clamp(min(float(t[0]), end), max(float(t[0]), end))
    with torch.no_grad():
        ahead = problem.velocity(probe, torch.addcmul(x, expand(signed.to(x.dtype), x), slope))
    bend = torch.nan_to_num(rms((ahead - slope.detach()) / scale) / guess, nan=math.inf)
    steep = torch.maximum(speed, bend)
    order = method.solver.order
    step = torch.where(steep <= 1e-15, (1e-3 * guess).clamp(min=1e-6), (0.01 / steep) ** (1 / order))
    # NaN or an infinite slope: a small first step, whose rejection then says so.
    step = torch.nan_to_num(torch.minimum(100 * guess, step), nan=0.0).clamp(
        min=1e-6 * abs(span), max=abs(span)
    )
    return math.copysign(1.0, span) * step


def _functional_error(
    method: _Method, problem: Problem, request: Request, active: _Active, k: _Increments
) -> tuple[Tensor, Tensor]:
    r"""Error that a step adds to the functional whose gradient is `request.dual`, and its parts' size, (B,).

    A path with the defect r = x' - f errs by the integral of dual . r. Where states within the step are used,
    the defect is that of the interpolant, which fits both ends and slopes: it vanishes at the ends, and
    Lobatto's rule with two points inside, one evaluation each, integrates the rest to two orders more than
    the defect has. Otherwise only the end counts, by the step's local error.
    """
    assert request.dual is not None
    step = expand(active.h.to(active.x.dtype), active.x)
    if not method.saving:
        dual = request.dual(active.t, active.x, k[0] / step)
        error = (dual * k.sum(method.local)).flatten(1).sum(dim=1)
        return error, error.abs()
    rows, total = method.tableau.dense or (), torch.zeros_like(active.error)
    size = torch.zeros_like(total)
    for u in _LOBATTO:
        weights = [sum(c * u**j for j, c in enumerate(row, 1)) for row in rows]
        rates = [sum(j * c * u ** (j - 1) for j, c in enumerate(row, 1)) for row in rows]
        t = torch.addcmul(active.t, active.h, torch.full_like(active.h, u))
        inside = k.sum(active.x.new_tensor(weights), active.x)
        slope = problem.velocity(t, inside)
        defect = k.sum(active.x.new_tensor(rates)) - slope * step
        part = (request.dual(t, inside, slope) * defect).flatten(1).sum(dim=1) * (5 / 12)
        total, size = total + part, size + part.abs()
    return total, size


def _advance(
    active: _Active,
    method: _Method,
    accept: Tensor,
    ratio: Tensor,
    x_new: Tensor,
    k: _Increments,
    end: float,
    idle: bool,
) -> None:
    """Take the accepted steps and propose the next ones; `idle` where finished samples are still there."""
    order = method.solver.order
    # The PI memory is the last accepted error, at most 1, so a rejected step does not grow.
    log = torch.nan_to_num(ratio, nan=1e30, posinf=1e30).clamp_(min=1e-10).log_()
    growth = torch.mul(active.memory, 0.4 / order).add_(log, alpha=-0.7 / order).exp_().mul_(_SAFETY)
    step = growth.clamp_(_SHRINK, _GROW).mul_(active.h)
    active.memory = torch.where(accept, log.clamp_(min=math.log(1e-4)), active.memory)
    active.accepted = active.accepted + accept
    active.t = torch.where(accept, active.t_next, active.t)
    active.t_next = propose(active.t, step, end)
    h = active.t_next - active.t
    scale = h / active.h
    if idle:  # 0/0
        scale = torch.nan_to_num(scale, nan=0.0)
    active.h, taken = h, expand(accept, x_new)
    active.x = torch.where(taken, x_new, active.x)
    last = len(method.tableau.b) - 1
    active.first = torch.where(taken, k[last], k[0]) * expand(scale.to(x_new.dtype), x_new)


def _settle(active: _Active, ended: Tensor, spent: bool, ratio: Tensor, tries: int, end: float) -> None:
    """Note the status of the samples that have come to an end."""
    status = outcome(active, ended, spent, ratio, end)
    new = (active.status < 0) & (status >= 0)
    active.status = torch.where(new, status, active.status)
    active.tried = torch.where(new, tries, active.tried)


class _Result(Gathered):
    """Final states, and those at the times asked for."""

    def __init__(self, x: Tensor, start: float, request: Request, tableau: Tableau) -> None:
        super().__init__(x)
        self.estimates = request.dual is not None
        save_at, kind = request.save_at, wide(x)
        self.save_at = None if save_at is None else torch.tensor(save_at, dtype=kind, device=x.device)
        self.path = None
        if self.save_at is not None:
            self.path = x.new_full((len(self.save_at), *x.shape), math.nan)
            self.path[self.save_at == start] = x
            self.dense = torch.tensor(tableau.dense, dtype=kind, device=x.device).T
            self.powers = torch.arange(1, len(self.dense) + 1, device=x.device)

    def save(self, active: _Active, accept: Tensor, k: _Increments, x_new: Tensor) -> None:
        """Interpolate at the times asked for that the accepted steps have just covered."""
        if self.save_at is None or self.path is None:
            return
        theta = (self.save_at[:, None] - active.t) / active.h
        when, who = ((theta > 0) & (theta <= 1) & accept).nonzero(as_tuple=True)
        if not len(when):
            return
        at = theta[when, who][:, None]
        weights = (at**self.powers @ self.dense).to(x_new.dtype).T
        rows = k.all()[:, who].flatten(2)
        value = active.x[who] + (weights[..., None] * rows).sum(dim=0).view_as(active.x[who])
        value = torch.where(expand(at[:, 0] == 1, value), x_new[who], value)
        if value.requires_grad:
            self.path = self.path.index_put((when, active.row[who]), value)
        else:
            self.path.index_put_((when, active.row[who]), value)

    def leave(self, active: _Active, done: Tensor, per_step: int) -> None:
        """Put down the samples that are done."""
        error = {"error": active.error, "error_size": active.size} if self.estimates else {}
        self.finish(
            active,
            done,
            status=active.status,
            nfe=2 + per_step * active.tried,
            accepted=active.accepted,
            rejected=active.tried - active.accepted,
            **error,
        )
