r"""Correctors: Markov kernels at one fixed time that keep (nearly) the law of the noised data."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..noise import Noise, Stream
from ..problems import SemiLinear


class Corrector(ABC):
    """A Markov kernel at one fixed time, whose stationary law is (nearly) that of the noised data there."""

    #: A sample's result depends on its batch-mates.
    batch_coupled: bool = False
    #: Iterations each time it is called.
    iterations: int = 1

    @abstractmethod
    def correct(self, problem: SemiLinear, t: float, x: Tensor, noise: Noise) -> Tensor:
        """Move x (B, *E) towards the law of the noised data at time t, drawing from the CORRECTOR stream."""


class Langevin(Corrector):
    r"""Unadjusted Langevin steps sized by the noise's own variance.

    .. math:: x \leftarrow x + \tau\,s(t, x) + \sqrt{2\tau}\,z, \qquad \tau = 2\,\mathrm{snr}^2\,\sigma(t)^2

    The step depends on neither batch nor shape. At snr = 0.16 the kernel alone holds a unit Gaussian's
    variance within 3 %.

    Args:
        snr: Signal-to-noise ratio of a step.
        iterations: Steps each time.

    References:
        Song et al. (2021), arXiv 2011.13456, algorithm 5, with E|z|^2/E|s|^2 = sigma^2 in place of the norms
        drawn.

    Raises:
        ValueError: If snr or iterations is not positive.
    """

    def __init__(self, snr: float = 0.16, iterations: int = 1) -> None:
        if not (snr > 0 and iterations >= 1):
            raise ValueError(
                f"snr={snr}, iterations={iterations}: give a positive snr and at least one iteration"
            )
        self.snr, self.iterations = snr, iterations

    def correct(self, problem: SemiLinear, t: float, x: Tensor, noise: Noise) -> Tensor:
        tau = 2 * self.snr**2 * problem.at(t, x).sigma ** 2
        for i in range(self.iterations):
            z = noise.normal(Stream.CORRECTOR, i, self.iterations)
            x = torch.add(torch.add(x, problem.score(t, x), alpha=tau), z, alpha=math.sqrt(2 * tau))
        return x

    def __repr__(self) -> str:
        return f"{type(self).__name__}(snr={self.snr:g}, iterations={self.iterations})"


class SongLangevin(Langevin):
    r"""Langevin steps by Song's rule, from norms averaged over the batch: for parity with published samplers.

    .. math:: \tau = 2\,(\mathrm{snr}\,\overline{\|z\|}/\overline{\|s\|})^2

    A sample therefore depends on its batch-mates, and a small or single-row batch on luck: prefer
    :class:`Langevin`. The factor 1 - beta_i that the published code puts before it for VP is left at its
    limit, 1.

    References:
        Song et al. (2021), arXiv 2011.13456, algorithms 4 and 5.
    """

    batch_coupled = True

    def correct(self, problem: SemiLinear, t: float, x: Tensor, noise: Noise) -> Tensor:
        for i in range(self.iterations):
            z, score = noise.normal(Stream.CORRECTOR, i, self.iterations), problem.score(t, x)
            norms = [v.flatten(1).norm(dim=1).mean() for v in (z, score)]
            tau = 2 * (self.snr * norms[0] / norms[1]) ** 2
            x = x + tau * score + torch.sqrt(2 * tau) * z
        return x
