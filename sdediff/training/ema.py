"""Running averages of a module's weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sdediff.training.engine import like_parameter


class Profile(Protocol):
    """How an average weighs the past, by the decays of its updates k = 1, 2, ..."""

    def decay_at(self, update: int) -> float:
        r"""Decay :math:`d_k` of update k: :math:`\bar\theta_k = d_k\bar\theta_{k-1} + (1-d_k)\theta_k`."""

    def remainder(self, start: np.ndarray, end: int) -> np.ndarray:
        """Product of the decays of updates start, ..., end (start <= end + 1), like start, float64."""


@dataclass(frozen=True)
class Exponential:
    r"""Exponential average over about 1/(1 - decay) updates, :math:`d_k = \min(decay, (1+k)/(10+k))`.

    During the warm-up the average spans the last ninth of the training so far, so it never lags behind by
    the initial weights (which is what makes the first samples of a short training noise); that is close to
    ``Power(0.09)``.

    Args:
        decay: Largest decay, in [0, 1).
        warmup: Without it every decay is the largest one.

    Raises:
        ValueError: If decay is outside [0, 1).

    Example:
        >>> [round(Exponential(0.999).decay_at(k), 3) for k in (1, 100, 10000)]
        [0.182, 0.918, 0.999]
    """

    decay: float
    warmup: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay={self.decay}: give a decay of the average in [0, 1), such as 0.999")

    def decay_at(self, update: int) -> float:
        """Decay of an update."""
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay

    def remainder(self, start: np.ndarray, end: int) -> np.ndarray:
        """Product of the decays of updates start, ..., end."""
        last = 0  # update of the warm-up: (1 + k)/(10 + k) <= decay
        if self.warmup:
            last = max(0, math.floor((10 * self.decay - 1) / (1 - self.decay)))
        warm = min(end, last)
        first = np.minimum(start, warm + 1).astype(float)
        i = np.arange(1, 10)  # (1 + k)/(10 + k) multiplied over k telescopes to nine factors
        product = ((first[..., None] + i) / (warm + 1 + i)).prod(-1)
        return product * self.decay ** (end - np.maximum(start - 1, warm)).astype(float)


@dataclass(frozen=True)
class Power:
    r"""Average whose length is a fixed share of the training so far, and none of the initial weights.

    .. math:: \bar\theta(t) = \frac{\gamma+1}{t^{\gamma+1}} \int_0^t \tau^\gamma\,\theta(\tau)\,d\tau,
        \qquad d_k = (1-1/k)^{\gamma+1}

    Weights of past steps are a power of their time, so averages kept at a few times determine any other
    (:func:`~sdediff.training.reconstruct`).

    Args:
        sigma_rel: Standard deviation of the profile in units of the training time, in (0, 0.288];
            0.05 and 0.10 are a pair good for reconstruction.

    Raises:
        ValueError: If sigma_rel is outside that range (12^-1/2 = 0.2887 is the plain mean of all steps).

    Source: Karras et al. 2024, arXiv 2312.02696, section 3.1, Eqs. 2 to 4 and appendix C.

    Example:
        >>> round(Power(0.1).gamma, 4)
        6.9372
    """

    sigma_rel: float

    def __post_init__(self) -> None:
        if not 0 < self.sigma_rel <= 12**-0.5:
            raise ValueError(
                f"sigma_rel={self.sigma_rel}: give the length of the average as a share of the training, "
                "in (0, 0.288], such as 0.1"
            )

    @cached_property
    def gamma(self) -> float:
        r"""Exponent: :math:`\sigma_{rel}^2 = (\gamma+1)(\gamma+2)^{-2}(\gamma+3)^{-1}`, its largest root."""
        square = self.sigma_rel**-2
        return max(0.0, float(np.roots([1, 7, 16 - square, 12 - square]).real.max()))

    def decay_at(self, update: int) -> float:
        """Decay of an update."""
        return float((1 - 1 / update) ** (self.gamma + 1))

    def remainder(self, start: np.ndarray, end: int) -> np.ndarray:
        """Product of the decays of updates start, ..., end: it telescopes."""
        return ((start - 1) / end) ** (self.gamma + 1) if end else np.ones_like(start, dtype=float)


class Averages:
    r"""Several running averages of a module's trainable parameters.

    .. math:: \bar\theta_k = d_k \bar\theta_{k-1} + (1-d_k)\,\theta_k

    Averages are kept in float32 at least (in bfloat16 small updates would be rounded away), on the device and
    in the shards of the parameters. Buffers are not averaged: those of this package's networks are constants,
    and running statistics, as of batch normalisation, are averages already.

    Args:
        module: The module to follow.
        profiles: How each average weighs the past.

    Example:
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> averages = Averages(layer, (Exponential(0.9, warmup=False), Power(0.1)))
        >>> for value in (1.0, 2.0):
        ...     _ = nn.init.constant_(layer.weight, value)
        ...     averages.update()
        >>> with averages.averaged(1):
        ...     print(f"{layer.weight.item():.4f}")  # 2 - (1/2)^(gamma + 1)
        1.9959
        >>> layer.weight.item()
        2.0
    """

    def __init__(self, module: nn.Module, profiles: Sequence[Profile] = (Exponential(0.999),)) -> None:
        self.profiles, self.updates = tuple(profiles), 0
        self._live = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.shadows = tuple({n: _wide(p).clone() for n, p in self._live.items()} for _ in self.profiles)

    @torch.no_grad()
    def update(self) -> None:
        """Take the module's present weights into the averages."""
        self.updates += 1
        present = [_shard(_wide(p)) for p in self._live.values()]
        for profile, shadow in zip(self.profiles, self.shadows, strict=True):
            held = [_shard(value) for value in shadow.values()]
            torch._foreach_lerp_(held, present, 1 - profile.decay_at(self.updates))

    def state(self) -> dict[str, Tensor]:
        """The averages themselves, not copies, by ``"index.name"``."""
        return {
            f"{i}.{name}": value for i, shadow in enumerate(self.shadows) for name, value in shadow.items()
        }

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor], updates: int) -> None:
        """Continue from a stored :meth:`state` after so many updates; whole tensors are sharded as needed.

        Raises:
            ValueError: If the state is of other profiles or another module.
        """
        own = self.state()
        wrong = [n for n, v in own.items() if n not in state or state[n].shape != v.shape]
        wrong += [n for n in state if n not in own]
        if wrong:
            raise ValueError(
                f"the stored averages do not fit, first in {wrong[0]!r}: they are of another module or other "
                "profiles, give those they were made with"
            )
        for name, value in own.items():
            value.copy_(like_parameter(state[name], value))
        self.updates = updates

    @torch.no_grad()
    def copy_to_module(self, index: int = 0) -> None:
        """Overwrite the module's weights by an average."""
        for name, p in self._live.items():
            p.copy_(self.shadows[index][name])

    @contextmanager
    def averaged(self, index: int = 0) -> Iterator[None]:
        """Within this context the module holds an average; afterwards its own weights again, bit for bit."""
        raw = {name: p.detach().clone() for name, p in self._live.items()}
        self.copy_to_module(index)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self._live.items():
                    p.copy_(raw[name])


class EMA(Averages):
    r"""One exponential average with warm-up: the plainest :class:`Averages`.

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
        super().__init__(module, (Exponential(decay),))

    @property
    def shadow(self) -> dict[str, Tensor]:
        """The average itself, by name."""
        return self.shadows[0]


def _wide(parameter: Tensor) -> Tensor:
    """A parameter's values in float32 at least; no copy where they are."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32))


def _shard(value: Tensor) -> Tensor:
    """What this process holds of a tensor: the same memory."""
    return value.to_local() if hasattr(value, "to_local") else value
