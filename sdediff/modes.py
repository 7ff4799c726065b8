"""How a model is called: in evaluation mode, without a graph."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import nn

Solving = TypeVar("Solving", bound=Callable[..., Any])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; afterwards every part of the model has its own mode again."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


def solving(function: Solving) -> Solving:
    """Decorate what solves with a model (its first argument): no graph, and evaluation mode for its time.

    Fresh dropout at every evaluation is no function that a solver could follow. Inference mode is left, since
    traces need derivatives.
    """

    @functools.wraps(function)
    def wrapped(model: nn.Module, *arguments: Any, **options: Any) -> Any:
        with torch.inference_mode(False), torch.no_grad(), evaluating(model):
            return function(model, *arguments, **options)

    return cast(Solving, wrapped)
