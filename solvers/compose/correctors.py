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

    The step depends on neither batch nor shape. Its bias: where the noised data are Gaussian with variance v,
    the kernel's own stationary law is that Gaussian with its variance divided by
    :math:`1 - \mathrm{snr}^2\sigma^2/v`; since v is at least :math:`\sigma^2`, a relative excess of at most
    :math:`\mathrm{snr}^2/(1-\mathrm{snr}^2)`, 2.6 % at 0.16.

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


class Underdamped(Corrector):
    r"""Underdamped Langevin dynamics at one fixed time: momentum carries x across, noise renews the momentum.

    In units of the noise, :math:`q = x/\sigma` with momenta of unit variance, an iteration is the palindrome
    OBABO: half of the friction (O), a leapfrog step (B, A, B) of size h, half of the friction,

    .. math:: p \leftarrow c\,p + \sqrt{1-c^2}\,z,\quad
              p \leftarrow p + \tfrac h2\sigma s(t, x),\quad x \leftarrow x + h\sigma p,\quad
              p \leftarrow p + \tfrac h2\sigma s(t, x), \qquad c = e^{-\gamma h}

    with :math:`\sigma s = -\epsilon`, two neighbouring halves of friction being one whole of factor c.
    Momenta begin each call afresh, as N(0, I), their stationary law, and end with it, so the last half kick
    is not taken: one evaluation an iteration. The step is sized by the noise alone, so it depends on neither
    batch nor shape.

    Its bias: where the noised data are Gaussian with variance v, leapfrog keeps the energy :math:`p^2 + (1 -
    h^2\sigma^2/4v)\,x^2/v` and friction the law of p, so the stationary law is exactly that Gaussian with its
    variance divided by :math:`1 - h^2\sigma^2/4v`, for every friction and any number of iterations; v is at
    least :math:`\sigma^2`. That is the bias of :class:`Langevin` with snr = h/2, at the same cost an
    iteration, but n iterations go n h far, and Langevin's :math:`\sqrt n h`. With friction = inf momenta are
    renewed at every iteration and the kernel *is* Langevin's; with 0 it is Hamiltonian Monte Carlo without
    its accept test. Momenta turn around after :math:`\pi/h` iterations: take about half as many, or some
    friction.

    Args:
        step: h, below 2; about twice an `snr`.
        iterations: Leapfrog steps a call.
        friction: gamma, in units of 1/(time of h); 0 for none, inf for momenta renewed each iteration.

    Raises:
        ValueError: If an argument is out of its range.

    References:
        Bussi & Parrinello (2007), Phys. Rev. E 75, 056707 (the splitting); Monmarche (2021), arXiv
        2007.05455 (OBABO without an accept test, Hamiltonian Monte Carlo as its limit); Neal (2011), arXiv
        1206.1901, section 2.3 (leapfrog, masses).

    Example:
        >>> import solvers
        >>> solvers.PredictorCorrector(solvers.DDIM(), Underdamped(step=0.32, iterations=2))
        PredictorCorrector(DDIM(), Underdamped(step=0.32, iterations=2, friction=1))
    """

    def __init__(self, step: float = 0.32, iterations: int = 3, friction: float = 1.0) -> None:
        if not (0 < step < 2 and iterations >= 1 and friction >= 0):
            raise ValueError(
                f"step={step}, iterations={iterations}, friction={friction}: give a step between 0 and 2, "
                "beyond which leapfrog is unstable, at least one iteration and a friction of at least 0"
            )
        self.step, self.iterations, self.friction = step, iterations, friction

    def correct(self, problem: SemiLinear, t: float, x: Tensor, noise: Noise) -> Tensor:
        c, h, keep = problem.at(t, x), self.step, math.exp(-self.friction * self.step)
        p = noise.normal(Stream.CORRECTOR, 0, self.iterations)
        for i in range(self.iterations):
            force = problem.blend(t, x, -1 / c.sigma, c.alpha / c.sigma)
            if i:
                p = torch.add(p, force, alpha=h / 2) * keep
                if keep < 1:
                    z = noise.normal(Stream.CORRECTOR, i, self.iterations)
                    p = torch.add(p, z, alpha=math.sqrt(1 - keep**2))
            p = torch.add(p, force, alpha=h / 2)
            x = torch.add(x, p, alpha=h * c.sigma)
        return x

    def __repr__(self) -> str:
        options = f"step={self.step:g}, iterations={self.iterations}, friction={self.friction:g}"
        return f"{type(self).__name__}({options})"
