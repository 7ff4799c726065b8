r"""What the two ends of the path leave out: the prior's mismatch at t_max, the noise left at t_min."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from solvers.active import wide
from solvers.noise import Stream, normal

from ..model import Condition, DiffusionModel
from ..prior import Prior
from ..run import Run

_POINTS, _REFERENCES = 3, 32  # of the line integral; draws that fix its constant


def prior_mismatch(model: DiffusionModel, run: Run, z: Tensor, cond: Condition) -> Tensor | None:
    r"""Estimate of ``log p_T(z) - log prior(z)`` at latents z, (B,), in nats.

    The model's score at t_max is integrated along the line from the data's mean, by Gauss-Legendre points:
    :math:`\log p_T(z) - \log p_T(c) = \int_0^1 (z - c)\cdot s(c + u(z-c))\,du`, and compared with the same of
    the Gaussian q with the noised data's moments (of the prior itself where they are unknown). What is left,
    a constant, is fixed by :math:`E_q[p_T/q] = 1` over draws of q. With conditions the constant would be
    another for each, so it is not estimated then.

    Args:
        model: The model.
        run: The run whose prior and t_max are meant.
        z: Latents, (B, *data_shape), model units.
        cond: Conditions, or None.
    """
    if cond is not None or not z.is_floating_point():
        return None
    known = run.prior if model.moments is None else model.prior_at(run.span[1], "matched")
    half = normal(0, torch.arange(_REFERENCES // 2), Stream.PRIOR, 1, (model.dim,), z.dtype, z.device)
    references = known.transform(torch.cat([half, -half]))
    flat = z.flatten(1)
    gap = _gap(model, run, known, torch.cat([flat, references]))
    own, of_draws = gap[: len(z)], gap[len(z) :]
    constant = torch.logsumexp(of_draws, dim=0) - np.log(len(references))
    return own - constant + known.log_prob(flat) - run.prior.log_prob(flat)


def _gap(model: DiffusionModel, run: Run, known: Prior, z: Tensor) -> Tensor:
    """``log p_T - log known`` at z (B, d), less the same at the data's mean, (B,)."""
    t, problem = run.span[1], model.problem(0.0)
    centre = z.new_zeros(model.dim)
    if model.moments is not None:
        centre = (model.moments.mean * float(model.process.alpha(t))).to(z)
    line = z - centre
    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
    total = torch.zeros(len(z), dtype=wide(z), device=z.device)
    for node, weight in zip(0.5 * (nodes + 1), 0.5 * weights, strict=True):
        point = (centre + float(node) * line).view(-1, *model.data_shape)
        slope = (problem.score(t, point).flatten(1) * line).to(total).sum(dim=1)
        total = total + float(weight) * slope
    return total - (known.log_prob(z) - known.log_prob(centre[None]))


def truncation(model: DiffusionModel, run: Run, x: Tensor, cond: Condition, trace: Tensor) -> Tensor:
    r"""First-order change of log p if the noise left at t_min were none, (B,), in nats.

    In canonical coordinates
    :math:`\partial\log p/\partial\tilde\sigma^2 = \tfrac12(\nabla\cdot s + |s|^2)` (the
    Fokker-Planck equation of Brownian motion), so
    :math:`\log p_0 \approx \log p_{\tilde\sigma} - \tfrac12\tilde\sigma^2(\nabla\cdot s + |s|^2)` with
    :math:`s = (D - \tilde x)/\tilde\sigma^2`. It holds for densities smooth at that scale.

    Args:
        model: The model.
        run: The run whose t_min is meant.
        x: States at t_min, (B, *data_shape), model units.
        cond: Conditions, or None.
        trace: ``tr dD/dx~`` there, (B,).
    """
    t = run.span[0]
    alpha, sigma = (float(v) for v in (model.process.alpha(t), model.process.sigma(t)))
    residual = model.problem(0.0, cond).denoise(t, x) - x / alpha
    squares = residual.to(wide(x)).flatten(1).square().sum(dim=1) * (alpha / sigma) ** 2
    return -0.5 * (trace - model.dim + squares)
