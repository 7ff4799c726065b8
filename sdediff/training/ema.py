"""Exponential moving average of a module's weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    r"""Running average of trainable parameters, with a warm-up of the decay.

    .. math:: \bar\theta_k = d_k \bar\theta_{k-1} + (1-d_k)\,\theta_k, \qquad d_k = \min(decay, (1+k)/(10+k))

    Early on the average spans the last ninth of the training so far, so it never lags behind by the initial
    weights (which is what makes the first samples of a short training noise).

    Args:
        module: The module to follow.
        decay: Largest decay, in [0, 1).

    Raises:
        ValueError: If decay is outside [0, 1).

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> ema = EMA(layer)
        >>> _ = nn.init.ones_(layer.weight)
        >>> ema.update()
        >>> round(float(ema.shadow["weight"]), 6)  # 1 - d_1 = 1 - 2/11
        0.818182
    """

    def __init__(self, module: nn.Module, decay: float = 0.999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay}: give a decay of the average in [0, 1), such as 0.999")
        self.decay, self.updates = float(decay), 0
        self._live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shadow = {name: p.detach().clone() for name, p in self._live.items()}

    def decay_at(self, update: int) -> float:
        """Decay d_k of update k = 1, 2, ..."""
        return min(self.decay, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present weights into the average."""
        self.updates += 1
        weight = 1 - self.decay_at(self.updates)
        torch._foreach_lerp_(list(self.shadow.values()), [p.detach() for p in self._live.values()], weight)

    @torch.no_grad()
    def load(self, shadow: Mapping[str, Tensor], updates: int) -> None:
        """Continue from a stored average."""
        for name, value in self.shadow.items():
            value.copy_(shadow[name])
        self.updates = updates

    @torch.no_grad()
    def copy_to_module(self) -> None:
        """Overwrite the module's weights by the average."""
        for name, p in self._live.items():
            p.copy_(self.shadow[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the module holds the average; afterwards its own weights again, bit for bit."""
        raw = {name: p.detach().clone() for name, p in self._live.items()}
        self.copy_to_module()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self._live.items():
                    p.copy_(raw[name])
