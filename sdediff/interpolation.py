r"""Interpolation between data along the great circle between their latents."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from solvers import Solver

from .model import DiffusionModel
from .run import Run
from .sampling import decode, encode


def interpolate(
    model: DiffusionModel,
    x_a: Tensor,
    x_b: Tensor,
    n: int = 9,
    solver: str | Solver = "dopri5",
    *,
    cond: Any = None,
    batch_size: int | None = None,
    **options: Any,
) -> Tensor:
    r"""Data between two data: their latents are whitened, joined by spherical interpolation, and decoded.

    With the latents as standard normals w (the prior's own whitening) and the angle :math:`\theta` between
    them,

    .. math:: w(f) = \frac{\sin((1-f)\theta)}{\sin\theta}\,w_a + \frac{\sin(f\theta)}{\sin\theta}\,w_b,
              \qquad f = 0, \tfrac1{n-1}, \dots, 1 .

    A straight line would leave the shell on which almost all draws of the prior lie. The two ends come back
    to the solver's accuracy, and exchanging the ends reverses the result. Where the two are parallel or
    opposite no great circle is singled out, and the line is straight: always so in one dimension.

    Args:
        model: The model.
        x_a: Data at one end, in data units, (B, *data_shape).
        x_b: Data at the other end, likewise.
        n: Number of points, both ends included.
        solver: A solver of ODEs or its name.
        cond: Conditions, (B, ...), or one for all: the same at both ends and between.
        batch_size: Rows solved at once.
        **options: steps, grid, rtol, atol, t_span, prior, on_failure as for
            :func:`~sdediff.sampling.sample`.

    Returns:
        A row for each pair, (B, n, *data_shape), in data units.

    Raises:
        TypeError: If the solver is not one for ODEs, or a prior of your own has no `whiten`.
        ValueError: If n is below 2, or x_a and x_b are not of the model's shape and equally many.

    Source: Shoemake 1985, Animating rotation with quaternion curves, section 3.3; for latents White 2016,
        arXiv 1609.04468; for the probability flow Song et al. 2021, arXiv 2011.13456, appendix D.3.

    Example:
        >>> import sdediff
        >>> data = sdediff.reference.eight_gaussians()
        >>> x = data.sample(6, seed=0)
        >>> between = interpolate(data.model(sdediff.VP()), x[:3], x[3:], n=5)
        >>> between.shape, bool(torch.allclose(between[:, 0], x[:3], atol=1e-2))
        (torch.Size([3, 5, 2]), True)
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 2:
        raise ValueError(f"n={n}: give a whole number of points of at least 2, both ends included")
    x_a, x_b = model.check_batch(x_a, "x_a"), model.check_batch(x_b, "x_b")
    if len(x_a) != len(x_b):
        raise ValueError(f"x_a has {len(x_a)} rows and x_b {len(x_b)}: give pairs")
    prior, pairs = Run.of(model, solver, eta=0.0, **options).prior, len(x_a)
    if not hasattr(prior, "whiten"):
        raise TypeError(
            f"the prior {prior.name!r} cannot whiten: give it a method whiten(z), the inverse of transform, "
            'or take "matched" or "standard"'
        )
    options |= {"solver": solver, "batch_size": batch_size}
    cond = model.expand_condition(cond, pairs, x_a.device)
    latents = encode(model, torch.cat([x_a, x_b]), cond=_repeat(cond, 2), **options)
    w_a, w_b = prior.whiten(latents.flatten(1)).split(pairs)
    points = prior.transform(slerp(w_a, w_b, torch.linspace(0, 1, n).to(w_a)).flatten(0, 1))
    x = decode(model, points.reshape(-1, *model.data_shape), cond=_repeat(cond, n), **options)
    return x.reshape(n, pairs, *model.data_shape).transpose(0, 1)


def slerp(a: Tensor, b: Tensor, fractions: Tensor) -> Tensor:
    """Spherical interpolation between rows of a and b, (B, d), at fractions (n,): (n, B, d).

    Example:
        >>> east, north = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> slerp(east, north, torch.tensor([0.5]))
        tensor([[[0.7071, 0.7071]]])
    """
    unit_a, unit_b = (v / v.norm(dim=1, keepdim=True).clamp(min=1e-30) for v in (a, b))
    # Half the angle by its tangent: exact where the cosine is flat.
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=1), (unit_a + unit_b).norm(dim=1))[:, None]
    f = fractions[:, None, None]
    straight = angle.sin() < 1e-4
    sine = torch.where(straight, 1.0, angle.sin())
    weight_a = torch.where(straight, 1 - f, ((1 - f) * angle).sin() / sine)
    weight_b = torch.where(straight, f, (f * angle).sin() / sine)
    return weight_a * a + weight_b * b


def _repeat(cond: Any, times: int) -> Any:
    return None if cond is None else torch.cat([cond] * times)
