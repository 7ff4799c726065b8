"""A model as a `torch.distributions.Distribution`."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from .likelihood import differentiable_log_prob
from .model import DiffusionModel

_OF_LOG_PROB = ("divergence", "nodes")  # what a sampler has no use for


class ModelDistribution(Distribution):
    """The law of a model's samples, for code that takes a ``torch.distributions.Distribution``.

    ``event_shape`` is the model's ``data_shape``, ``batch_shape`` is () unless :meth:`expand` gives one.

    Samples are numbered: number i is a function of (seed, i), and a counter says which come next, so that
    successive calls differ, ``sample((2,))`` and then ``sample((3,))`` give what ``sample((5,))`` does, and
    torch's global generator has no part in it. Expanded distributions share the counter.

    Args:
        model: The model.
        cond: One condition for all samples.
        seed: Seed of the samples, and of random probes.
        gradient: "adjoint" or "checkpoint" (:func:`sdediff.likelihood.differentiable_log_prob`), or None for
            log-densities without a graph.
        parameters: Whether log-densities have gradients with respect to the model's parameters. Without,
            there is a graph where the value or the condition requires a gradient, and to these alone.
        validate_args: As in torch: check what is given to `log_prob`.
        **options: solver, steps, grid, rtol, atol, t_span, prior, batch_size, on_failure, for samples and
            log-densities alike, divergence and nodes for log-densities.

    Raises:
        ValueError: If `cond` is a batch of conditions.

    Example:
        >>> import torch, sdediff
        >>> p = sdediff.reference.eight_gaussians(dtype=torch.float64).model(sdediff.VP()).distribution()
        >>> p.sample((3, 4)).shape, p.event_shape
        (torch.Size([3, 4, 2]), torch.Size([2]))
        >>> x = torch.zeros(2, dtype=torch.float64, requires_grad=True)
        >>> p.log_prob(x).backward()
        >>> x.grad.shape
        torch.Size([2])
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 -- torch's own declaration

    def __init__(
        self,
        model: DiffusionModel,
        cond: Any = None,
        *,
        seed: int = 0,
        gradient: str | None = "adjoint",
        parameters: bool = False,
        validate_args: bool | None = None,
        **options: Any,
    ) -> None:
        self.model, self.seed = model, seed
        self.cond: Tensor | None = model.expand_condition(cond, 1, model.shift.device)
        self.gradient, self.parameters, self.options = gradient, parameters, options
        self._numbers = itertools.count()
        super().__init__(Size(), Size(model.data_shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """All real tensors of the event's shape."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """The next samples, (*sample_shape, *batch_shape, *event_shape), in data units, without a graph."""
        shape = self._extended_shape(Size(sample_shape))
        count = shape.numel() // self.event_shape.numel()
        indices = torch.tensor(list(itertools.islice(self._numbers, count)), dtype=torch.int64)
        if count == 0:
            dtype, device = self.model.state_type or (torch.get_default_dtype(), self.model.shift.device)
            return torch.empty(shape, dtype=dtype, device=device)
        options = {name: v for name, v in self.options.items() if name not in _OF_LOG_PROB}
        x = self.model.sample(count, cond=self._conditions(count), seed=self.seed, indices=indices, **options)
        return x.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-densities in nats per data unit, (*S, *batch_shape), of values (*S, *batch_shape, *E).

        Row i of a call draws the probes number i, where they are random: the same call gives the same values.

        Raises:
            ValueError: If the values have another shape, or NaN.
        """
        events = len(self.event_shape)
        if value.shape[max(0, value.ndim - events) :] != self.event_shape:
            raise ValueError(
                f"value has shape {tuple(value.shape)}: give (*S, {', '.join(map(str, self.event_shape))}), "
                "any shape S of samples with the model's data_shape behind"
            )
        if self._validate_args and value.numel():
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[: value.ndim - events], self.batch_shape)
        if not shape.numel():
            return value.new_zeros(shape)
        x = value.expand(*shape, *self.event_shape).reshape(-1, *self.event_shape)
        cond = self._conditions(len(x))
        options = {"cond": cond, "seed": self.seed, **self.options}
        if self.gradient is None:
            return self.model.log_prob(x, **options).reshape(shape)
        wanted = self.parameters or x.requires_grad or (cond is not None and cond.requires_grad)
        with torch.set_grad_enabled(torch.is_grad_enabled() and wanted):
            options["parameters"] = self.parameters
            return differentiable_log_prob(self.model, x, self.gradient, **options).reshape(shape)

    def _conditions(self, rows: int) -> Tensor | None:
        return None if self.cond is None else self.cond.expand(rows, *self.cond.shape[1:])

    def expand(self, batch_shape: Any, _instance: Any = None) -> ModelDistribution:
        """Independent copies, of this batch shape."""
        new = self._get_checked_instance(ModelDistribution, _instance)
        for name in ("model", "cond", "seed", "gradient", "parameters", "options", "_numbers"):
            setattr(new, name, getattr(self, name))
        Distribution.__init__(new, Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def __repr__(self) -> str:
        shape = "" if not self.batch_shape else f", batch_shape={tuple(self.batch_shape)}"
        return f"ModelDistribution({self.model!r}, seed={self.seed}, gradient={self.gradient!r}{shape})"
