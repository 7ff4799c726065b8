r"""Gradients of log-densities by the continuous adjoint: again a path, then sums over nodes along it.

With the flow :math:`d\tilde x/ds = F = \tilde x - D` and :math:`J = \partial D/\partial\tilde x` the adjoint
:math:`a(s) = \nabla_{\tilde x(s)} \log p` obeys

.. math:: a(s_T) = \nabla \log p_T, \qquad \frac{da}{ds} = -(I - J)^T a + \nabla\,\mathrm{tr} J, \qquad
          \frac{\partial \log p}{\partial\theta}
          = -\int a\cdot\partial_\theta D + \partial_\theta \mathrm{tr} J\,ds

(Chen et al. 2018, arXiv 1806.07366, appendix B, for the flow with its instantaneous change of variables). a
is the score of the model's own density, the gradient with respect to the data at :math:`s_0`.

Second derivatives of the network are dear, and as in the likelihood the path does not need them: the gradient
of the trace is taken at the nodes of the likelihood's own quadrature, with its own probes, batched over nodes
and samples, and the cubic spline through them drives one adaptive solve of :math:`(\tilde x, a)`, which
costs a vector-Jacobian product an evaluation. The spline's integral against a smooth function is the
quadrature's sum, to fourth order in the nodes' distance whatever the values at the nodes: the gradient is
that of the value, of random probes too. (A quintic spline is smoother, but its weights near the ends are not
those of the quadrature: measured, the gradient then misses that of the value by 10 to 40 times as much.) In
:math:`y = (\tilde x - m)/\rho,\ b = \rho a` with :math:`\rho^2 = l + \tilde\sigma^2`, for data of mean m and
variance l, both are of the order of 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from solvers import ODE, Solution, Status, solve
from solvers.active import wide
from solvers.problems import expand

from ..model import Condition, DiffusionModel, solving
from ..run import Run, chunks
from .divergence import Divergence, RowFunction
from .nodes import Rule, data_scale
from .quadrature import spline_slopes
from .recording import Gradients, gradients

# Probes that change from node to node make a rough spline, on which the choice of steps amplifies rounding
# from step to step (measured: to 1e-12 over 4 intervals, 1e-8 over 64): the solve begins anew after so many.
_PIECE = 4


@dataclass(frozen=True)
class Task:
    """What the gradient is of.

    Attributes:
        run: Solver (adaptive), interval, prior and seed.
        rule: Nodes.
        divergence: How traces are found.
        z: States in model units, (n, *data_shape).
        cond: Conditions, (n, ...), or None.
        rows: Names of the samples, (n,).
        ok: Where the log-density has a value, (n,).
        leaves: What else wants gradients.
        batch_size: Rows solved at once.
    """

    run: Run
    rule: Rule
    divergence: Divergence
    z: Tensor
    cond: Condition
    rows: Tensor
    ok: Tensor
    leaves: list[Tensor]
    batch_size: int | None


class Adjoint:
    """Gradients of the log-densities of a task's samples."""

    def __init__(self, model: DiffusionModel, task: Task) -> None:
        self.model, self.task = model, task
        self._scores: Tensor | None = None

    def of_states(self, weights: Tensor, *_: Tensor) -> Gradients:
        """Gradient of ``sum weights log p`` with respect to z; nan where a sample's solve failed."""
        if self._scores is None:
            self._scores = sweep(self.model, self.task)[0]
        return [self._scores * expand(weights.to(self._scores), self._scores)]

    def of_rest(self, weights: Tensor, *_: Tensor) -> Gradients:
        """Gradients with respect to the conditions, where they want them, and the leaves."""
        self._scores, rest = sweep(self.model, self.task, weights)
        return rest


@solving
def sweep(model: DiffusionModel, task: Task, weights: Tensor | None = None) -> tuple[Tensor, Gradients]:
    """Scores of the model's density at z, like z; with weights (n,) what :meth:`Adjoint.of_rest` returns."""
    scores, of_cond = list[Tensor](), list[Tensor]()
    totals: Gradients = [None] * len(task.leaves)
    for part in chunks(len(task.z), model.dim * len(task.rule.times), task.batch_size):
        paths = _Paths.of(model, task, part)
        own = None if weights is None else weights[part]
        sums = _Sums([*paths.wanted, *task.leaves], None if own is None else own[paths.kept])
        scores.append(paths.scores(sums))
        new = sums.values
        if own is not None and bool((own[paths.failed] != 0).any()):
            new = [None if v is None else torch.full_like(v, torch.nan) for v in new]
        of_cond += [torch.zeros_like(c) if g is None else g for c, g in zip(paths.wanted, new, strict=False)]
        totals = [_add(a, b) for a, b in zip(totals, new[len(paths.wanted) :], strict=True)]
    return torch.cat(scores), [*([torch.cat(of_cond)] if of_cond else []), *totals]


def _add(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    return more if total is None else total if more is None else total + more


def _report(run: Run, solution: Solution, ok: Tensor) -> None:
    """Tell of samples that were well until this solve."""
    run.report(replace(solution, status=torch.where(ok, solution.status, Status.OK)))


class _Sums:
    """Gradients of weighted sums over samples, a term at a time."""

    def __init__(self, inputs: list[Tensor], weights: Tensor | None) -> None:
        self.inputs, self.weights = inputs, weights
        self.values: Gradients = [None] * len(inputs)

    def add(self, terms: Tensor, factors: Tensor, who: Tensor) -> None:
        """Add the sum over rows of ``weight of the sample * factor * term``."""
        if self.weights is None or not terms.requires_grad:
            return
        new = gradients(terms, self.inputs, (self.weights[who] * factors).to(terms))
        self.values = [_add(a, b) for a, b in zip(self.values, new, strict=True)]


@dataclass
class _Paths:
    """Paths of some samples: states x_t at the nodes, (nodes, K, *E), of those K whose solve succeeded.

    Attributes:
        kept: Which those are, (K,).
        failed: Which samples have no gradient, (B,).
        wanted: The conditions of all, where a gradient with respect to them is wanted.
        cond: Those of the kept ones, with a graph to them.
        rows: Names of the kept ones.
    """

    model: DiffusionModel
    task: Task
    path: Tensor
    kept: Tensor
    failed: Tensor
    wanted: list[Tensor]
    cond: Condition
    rows: Tensor

    @classmethod
    def of(cls, model: DiffusionModel, task: Task, part: slice) -> _Paths:
        """Solved from the data."""
        cond, wanted = None, list[Tensor]()
        if task.cond is not None:
            cond = task.cond[part].detach().requires_grad_(task.cond.requires_grad)
            wanted = [cond] if cond.requires_grad else []
        start, rows = task.z[part] * float(model.process.alpha(task.run.span[0])), task.rows[part]
        solution = task.run.carry(model, start, cond, rows, up=True, save_at=task.rule.times)
        assert solution.path is not None
        _report(task.run, solution, task.ok[part])
        ok = task.ok[part] & solution.ok
        kept = ok.nonzero().flatten()
        with torch.enable_grad():
            cond = None if cond is None else cond[kept]
        names = rows.to(kept.device)[kept]
        return cls(model, task, solution.path[:, kept], kept, ~ok, wanted, cond, names)

    def scores(self, sums: _Sums) -> Tensor:
        """The adjoint at the data, like z; nan where a sample failed. What else it passes is added up."""
        scores = self.path.new_full((len(self.failed), *self.path.shape[2:]), torch.nan)
        if len(self.kept):
            scores[self.kept] = self._carry_back(sums)
        return scores

    def _carry_back(self, sums: _Sums) -> Tensor:
        forcing = self._forcing(sums)
        adjoint = self._solve(self._end(sums), forcing, whole=sums.weights is not None)
        if sums.weights is not None:
            weights = -self.task.rule.weights.to(adjoint)
            flat = adjoint.flatten(0, 1).flatten(1)
            for here, denoise, x, node, who in self._points():
                with torch.enable_grad():
                    terms = (flat[here].to(x) * denoise(x).flatten(1)).sum(dim=1)
                sums.add(terms, weights[node], who)
        return adjoint[0].to(self.path)

    def _points(self) -> Iterator[tuple[slice, RowFunction, Tensor, Tensor, Tensor]]:
        """Points of the paths some at a time: where, the denoiser, states, nodes and samples."""
        nodes, batch = self.path.shape[:2]
        device, points = self.path.device, self.path.flatten(0, 1)
        nodes_of = torch.arange(nodes, device=device).repeat_interleave(batch)
        samples = torch.arange(batch, device=device).repeat(nodes)
        times = torch.tensor(self.task.rule.times, dtype=wide(points), device=device)
        size = self.task.divergence.points(self.model.dim)
        for here in (slice(first, first + size) for first in range(0, len(points), size)):
            node, who = nodes_of[here], samples[here]
            with torch.enable_grad():
                cond = None if self.cond is None else self.cond[who]
            denoise = partial(self.model.problem(0.0, cond).denoise, times[node])
            yield here, denoise, points[here].detach().requires_grad_(), node, who

    def _forcing(self, sums: _Sums) -> Tensor:
        """Gradient of ``tr dD/dx~`` with respect to x~ at the nodes, like the path."""
        task = self.task
        alpha = self.model.process.alpha(torch.tensor(task.rule.times, dtype=wide(self.path)))
        alpha, forcing = alpha.to(self.path.device), torch.zeros_like(self.path.flatten(0, 1))
        weights = -task.rule.weights.to(alpha) * alpha  # tr dD/dx~ = alpha tr dD/dx
        for here, denoise, x, node, who in self._points():
            with torch.enable_grad():
                parts = task.divergence.traces(denoise, x, self.rows[who], node, task.run.seed)
                traces = (parts.sum(dim=2) if parts.ndim == 3 else parts).mean(dim=0)
            (slope,) = gradients(traces, [x], torch.ones_like(traces))
            if slope is not None:
                forcing[here] = slope * expand(alpha[node].square().to(slope), slope)
            sums.add(traces, weights[node], who)
        return forcing.view_as(self.path)

    def _end(self, sums: _Sums) -> Tensor:
        """Gradient of the prior's log-density with respect to x~, like z."""
        with torch.enable_grad():
            latent = self.path[-1].detach().requires_grad_()
            value = self.task.run.prior.log_prob(latent.flatten(1))
        (score,) = gradients(value, [latent], torch.ones_like(value))
        if score is None:
            raise ValueError(
                f"the log_prob of prior {self.task.run.prior.name!r} cuts the graph of the latents, so the "
                "gradient at the data is unknown: let autograd through"
            )
        sums.add(value, torch.ones_like(value), torch.arange(len(value), device=value.device))
        return score * float(self.model.process.alpha(self.task.run.span[1]))

    def _solve(self, end: Tensor, forcing: Tensor, whole: bool) -> Tensor:
        """The adjoint at all nodes, or at the first one alone, (nodes or 1, *z.shape)."""
        flow = _BackwardFlow.of(self.model, self.task.rule, end)
        state = flow.state(self.path[-1] / float(self.model.process.alpha(self.task.run.span[1])), end)
        spline = flow.spline(forcing.flatten(2))
        problem = ODE(flow.drift, (spline,) if self.cond is None else (spline, self.cond.detach()))
        clock = flow.clock.flip(0)
        piece = len(clock) if self.task.divergence.smooth else _PIECE
        marks = [clock[i : i + piece + 1] for i in range(0, len(clock) - 1, piece)]
        states, ok = [state[None]], torch.ones_like(self.kept, dtype=torch.bool)
        for times in marks:
            ends, save_at = (float(times[0]), float(times[-1])), times if whole else times[-1:]
            solution = solve(problem, states[-1][-1], ends, self.task.run.solver, save_at=save_at)
            assert solution.path is not None
            _report(self.task.run, solution, ok)
            ok = ok & solution.ok
            path = torch.where(ok[:, None], solution.path, states[-1][-1])
            states = [*states, path[1:]] if whole else [path]
        self.failed[self.kept] = ~ok
        adjoint = torch.where(ok[:, None], flow.adjoint(torch.cat(states).flip(0)), torch.nan)
        return adjoint.view(-1, *end.shape)


@dataclass(frozen=True)
class _BackwardFlow:
    """The flow of ``(y, b)``, states (B, 2 d), in the clock s.

    Attributes:
        clock: The clock at the nodes.
        mean: Mean of the data, (d,).
        variance: Their variance.
    """

    model: DiffusionModel
    clock: Tensor
    mean: Tensor
    variance: float

    @classmethod
    def of(cls, model: DiffusionModel, rule: Rule, like: Tensor) -> _BackwardFlow:
        """On the device of `like`, in wide precision."""
        mean = torch.zeros(model.dim) if model.moments is None else model.moments.mean
        clock, mean = (v.to(device=like.device, dtype=wide(like)) for v in (rule.clock, mean))
        return cls(model, clock, mean, data_scale(model) ** 2)

    def _rho(self, s: Tensor) -> Tensor:
        return torch.sqrt(self.variance + torch.exp(2 * s))

    def state(self, x: Tensor, a: Tensor) -> Tensor:
        """The state of x~ and its adjoint, each (B, *E), at the last node."""
        x, a, rho = x.flatten(1).to(self.clock), a.flatten(1).to(self.clock), self._rho(self.clock[-1])
        return torch.cat([(x - self.mean) / rho, rho * a], dim=1)

    def adjoint(self, states: Tensor) -> Tensor:
        """The adjoint in states (N, B, 2 d) at the first N nodes."""
        return states[..., self.model.dim :] / self._rho(self.clock[: len(states)])[:, None, None]

    def spline(self, values: Tensor) -> Tensor:
        """Values and slopes of the spline through values at the nodes, (nodes, B, d): (B, nodes, 2, d)."""
        values, slope_of = values.to(self.clock), torch.from_numpy(spline_slopes(self.clock.cpu().numpy()))
        slopes = torch.einsum("mn,nbd->mbd", slope_of.to(values), values)
        return torch.stack([values, slopes], dim=2).transpose(0, 1)

    def _between(self, s: Tensor, spline: Tensor) -> Tensor:
        """The spline at s (B,), (B, d)."""
        left = (torch.searchsorted(self.clock, s, right=True) - 1).clamp(0, len(self.clock) - 2)
        step = self.clock[left + 1] - self.clock[left]
        row, u, step = (
            torch.arange(len(s), device=s.device),
            ((s - self.clock[left]) / step)[:, None],
            step[:, None],
        )
        (p, m), (q, n) = (spline[row, k].unbind(dim=1) for k in (left, left + 1))
        rest = 1 - u
        value = rest**2 * (1 + 2 * u) * p + u**2 * (1 + 2 * rest) * q
        return value + step * u * rest * (rest * m - u * n)

    def drift(self, s: Tensor, state: Tensor, spline: Tensor, cond: Condition = None) -> Tensor:
        """``d(y, b)/ds``, like the state."""
        y, b = state.split(self.model.dim, dim=1)
        rho = self._rho(s)[:, None]
        rate = torch.exp(2 * s)[:, None] / rho**2  # d ln rho/ds
        x = self.mean + rho * y
        denoised, pulled = self._pull(self.model.process.time(-s), x, b, cond)
        dy = (x - denoised) / rho - rate * y
        db = (rate - 1) * b + pulled + rho * self._between(s, spline)
        return torch.cat([dy, db], dim=1)

    def _pull(self, t: Tensor, x: Tensor, b: Tensor, cond: Condition) -> tuple[Tensor, Tensor]:
        """D and ``(dD/dx~)^T b`` at x~, (B, d)."""
        alpha = self.model.process.alpha(t)[:, None]
        z = (alpha * x).view(-1, *self.model.data_shape)
        z = z if self.model.state_type is None else z.to(self.model.state_type[0])
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            denoised = self.model.problem(0.0, cond).denoise(t, z)
        (pulled,) = gradients(denoised, [z], b.reshape(z.shape).to(z))
        if pulled is None:
            pulled = torch.zeros_like(z)
        return denoised.detach().flatten(1).to(x), alpha * pulled.flatten(1)
