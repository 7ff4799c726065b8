r"""Solvers made of solvers: correctors, predictor-corrector, step doubling."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from .noise import Noise, Stream
from .problems import Problem, SemiLinear
from .solver import Orders, Step, StepSolver


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


class PredictorCorrector(StepSolver):
    r"""A solver followed, at each arrival time, by a corrector (Song et al. 2021, algorithm 1).

    Source: arXiv 2011.13456. The corrector sees the time just reached. Its own bias (of the order of its
    step) stays when the grid is refined.

    Args:
        predictor: A fixed-grid solver.
        corrector: A :class:`Corrector`.

    Raises:
        TypeError: If the predictor chooses its own steps or corrects already, or the problem has no score.

    Example:
        >>> import solvers
        >>> PredictorCorrector(solvers.EulerMaruyama(), Langevin(snr=0.16))
        PredictorCorrector(EulerMaruyama(), Langevin(snr=0.16, iterations=1))
    """

    needs_linear_part = True
    stochastic = True
    noisy = True
    default_eta = 1.0

    def __init__(self, predictor: StepSolver, corrector: Corrector) -> None:
        if not isinstance(predictor, StepSolver):
            raise TypeError(
                f"{predictor!r} does not step on a fixed grid: take a predictor that does, such as "
                '"euler-maruyama"'
            )
        if predictor.noisy:
            raise TypeError(
                f"{predictor!r} corrects already, and a second corrector would draw the same noise: "
                "give Langevin(iterations=2) for two corrections a step"
            )
        self.predictor, self.corrector = predictor, corrector
        self.batch_coupled = predictor.batch_coupled or corrector.batch_coupled
        self.default_steps, self.default_eta = predictor.default_steps, predictor.default_eta

    def check(self, problem: Problem) -> None:
        super().check(problem)
        self.predictor.check(problem)

    def begin(self, problem: Problem, times: tuple[float, ...]) -> Any:
        return self.predictor.begin(problem, times)

    def stage_times(self, t: float, t_next: float) -> tuple[float, ...]:
        return (*self.predictor.stage_times(t, t_next), t_next)

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        assert isinstance(problem, SemiLinear)
        predicted = self.predictor.step(problem, t, t_next, x, state, noise)
        x_next = self.corrector.correct(problem, t_next, predicted.x, noise)
        return Step(x_next, None, self.predictor.moved(predicted.state))

    def __repr__(self) -> str:
        return f"PredictorCorrector({self.predictor!r}, {self.corrector!r})"


class StepDoubling(StepSolver):
    r"""A deterministic solver with an estimate of each step's error, from two steps of half its length.

    .. math:: e = (x_{two} - x_{one})\,/\,(2^p - 1)

    The finer result is kept. Three times the evaluations of the solver alone; history is not carried between
    steps.

    Args:
        solver: A fixed-grid solver of ODEs of order p.

    Raises:
        TypeError: If the solver chooses its own steps, adds noise of its own, or is a multistep method.

    References:
        Hairer, Norsett & Wanner (1993), Solving ODEs I, section II.4, Eq. 4.4.
    """

    def __init__(self, solver: StepSolver) -> None:
        if not isinstance(solver, StepSolver) or solver.noisy or solver.multistep:
            raise TypeError(
                f"the error of {solver!r} is not seen by halving its steps: take a one-step ODE solver such "
                'as "heun"'
            )
        self.solver = solver
        self.orders = Orders(ode=solver.order)
        self.needs_linear_part, self.default_steps = solver.needs_linear_part, solver.default_steps
        self.batch_coupled = solver.batch_coupled

    def check(self, problem: Problem) -> None:
        super().check(problem)
        self.solver.check(problem)

    def stage_times(self, t: float, t_next: float) -> tuple[float, ...]:
        middle, inner = 0.5 * (t + t_next), self.solver.stage_times
        return inner(t, t_next) + inner(t, middle) + inner(middle, t_next)

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        middle = 0.5 * (t + t_next)
        whole = self.solver.step(problem, t, t_next, x, None, noise).x
        half = self.solver.step(problem, t, middle, x, None, noise).x
        fine = self.solver.step(problem, middle, t_next, half, None, noise).x
        return Step(fine, (fine - whole) / (2.0**self.order - 1))

    def __repr__(self) -> str:
        return f"StepDoubling({self.solver!r})"
