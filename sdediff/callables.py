"""Models from functions: an analytic score, or a network trained elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .model import Condition, DiffusionModel
from .predictions import Marginal
from .prior import Moments
from .processes import GaussianProcess


class CallableNetwork(nn.Module):
    """A function of the raw ``(x_t, t)`` in a network's place."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, t: Tensor, cond: Condition = None) -> Tensor:
        """Call the function."""
        return self.function(x, t) if cond is None else self.function(x, t, cond)


class RawModel(DiffusionModel):
    """A model whose network sees x_t and t as they are."""

    def conditioning(self, m: Marginal, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t


def from_callable(
    fn: Callable[..., Tensor],
    process: GaussianProcess,
    prediction: str = "score",
    data_shape: tuple[int, ...] = (),
    data_mean: Tensor | None = None,
    data_cov: Tensor | None = None,
    prior: str = "matched",
) -> DiffusionModel:
    """A model from any function, such as an analytic score or a network trained elsewhere.

    Args:
        fn: ``fn(x, t)`` (or ``fn(x, t, cond)``) with x = x_t (B, *data_shape), unscaled, and t (B,) in the
            process's time, of x's dtype; returns what `prediction` says, like x. A module's parameters become
            the model's.
        process: The Gaussian process.
        prediction: "score", "eps", "x0", "v", "velocity" or "edm".
        data_shape: Shape of one datum.
        data_mean: Mean of the data, data_shape or (d,); with `data_cov` it makes the matched prior.
        data_cov: Covariance of the data, (d, d), its diagonal (d,), or a scalar.
        prior: "matched" (where the moments are given, else the textbook prior) or "standard".

    Returns:
        A :class:`DiffusionModel` whose units are the data's.

    Raises:
        ValueError: If only one moment is given, or a shape is wrong.

    Example:
        >>> import torch, sdediff
        >>> model = from_callable(lambda x, t: -x, process=sdediff.VP(), prediction="score", data_shape=(2,))
        >>> model.log_prob(torch.zeros(1, 2, dtype=torch.float64)).round(decimals=4)
        tensor([-1.8379], dtype=torch.float64)
    """
    model = RawModel(
        fn if isinstance(fn, nn.Module) else CallableNetwork(fn),
        process,
        prediction,
        data_shape,
        prior=prior,
        scale_mode="none",
    )
    if (data_mean is None) != (data_cov is None):
        raise ValueError("only one of data_mean and data_cov was given: give both, or neither")
    if data_mean is not None and data_cov is not None:
        mean, cov = torch.as_tensor(data_mean), torch.as_tensor(data_cov)
        if mean.numel() != model.dim or cov.shape not in ((), (model.dim,), (model.dim, model.dim)):
            raise ValueError(
                f"data_mean {tuple(mean.shape)} and data_cov {tuple(cov.shape)} do not fit "
                f"data_shape={model.data_shape}"
            )
        model.moments = Moments.of(mean.detach().cpu(), cov.detach().cpu())
    return model
