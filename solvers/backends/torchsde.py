"""torchsde's SDE solvers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..brownian import BrownianPath
from ..problems import Problem, counted
from ..solution import Solution, uniform_solution
from ..solver import Orders, Request, Solver

METHODS = {"euler": 1.0, "milstein": 1.0, "srk": 1.5}


class TorchSDE(Solver):
    """A solver of torchsde (Li et al. 2020), Itô with diagonal noise, in either direction of time.

    torchsde takes flat states, rising times and one step size. It is given the flattened state and a clock
    u = 0, 1, ... on which the grid is uniform: the grid's points are joined by a monotone C1 curve t(u), and
    drift and diffusion pick up dt/du and its root. The Brownian path is ours, so the noise of sample i is
    that of a native solver on the same grid. Milstein's method is the derivative-free one.

    Args:
        method: "euler", "milstein" or "srk" (strong order 1.5).

    Raises:
        ValueError: For an unknown method.
    """

    stochastic = True
    default_steps = 250
    default_eta = 1.0

    def __init__(self, method: str = "srk") -> None:
        if method not in METHODS:
            raise ValueError(f"torchsde has no Itô method {method!r}: take one of {', '.join(METHODS)}")
        self.method = method
        self.orders = Orders(strong=METHODS[method])

    @property
    def name(self) -> str:
        return f"torchsde/{self.method}"

    def integrate(self, problem: Problem, x: Tensor, request: Request) -> Solution:
        from torchsde import sdeint

        problem, calls = counted(problem)
        steps = len(request.times) - 1
        clock = _Clock(request.times)
        saved = [i for i, t in enumerate(request.times) if t in set(request.save_at or ())]
        points = sorted({0, *saved, steps})
        u = torch.tensor([float(i) for i in points], dtype=torch.float64, device=x.device)
        system = _System(problem, clock, x.shape)
        brownian = _Brownian(
            BrownianPath(request.noise, tuple(float(i) for i in range(steps + 1))), x.flatten(1)
        )
        # Differentiating g would make states require gradients that nobody asked for.
        options = {"grad_free": True} if self.method == "milstein" else {}
        states = sdeint(system, x.flatten(1), u, bm=brownian, method=self.method, dt=1.0, options=options)
        states = states.reshape(-1, *x.shape).to(x.dtype)
        path = torch.stack([states[points.index(i)] for i in saved]) if request.save_at else None
        return uniform_solution(states[-1], request.times[-1], calls.calls, steps, path)

    def __repr__(self) -> str:
        return f"TorchSDE({self.method!r})"


class _Clock:
    """A monotone C1 curve t(u) through the grid, u = 0, 1, ..., n."""

    def __init__(self, times: tuple[float, ...]) -> None:
        from scipy.interpolate import PchipInterpolator

        self.times = PchipInterpolator(range(len(times)), times)
        self.rate = self.times.derivative()
        self.low, self.high = sorted((times[0], times[-1]))

    def __call__(self, u: Tensor) -> tuple[float, float]:
        """``(t, dt/du)``."""
        t = min(max(float(self.times(float(u))), self.low), self.high)
        return t, float(self.rate(float(u)))


class _System(nn.Module):
    """The problem as torchsde wants it."""

    sde_type = "ito"
    noise_type = "diagonal"

    def __init__(self, problem: Any, clock: _Clock, shape: torch.Size) -> None:
        super().__init__()
        self.problem, self.clock, self.shape = problem, clock, shape

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        t, rate = self.clock(u)
        return (self.problem.velocity(t, y.reshape(self.shape)) * rate).flatten(1)

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        t, rate = self.clock(u)
        x = y.reshape(self.shape)
        scale = torch.as_tensor(self.problem.noise_scale(t, x), dtype=x.dtype, device=x.device)
        return (scale * abs(rate) ** 0.5).expand_as(x).flatten(1)


class _Brownian:
    """A :class:`BrownianPath` as torchsde's `bm`: flat increments, and U, the integral of W, on demand."""

    levy_area_approximation = "space-time"

    def __init__(self, path: BrownianPath, like: Tensor) -> None:
        self.path = path
        self.shape, self.dtype, self.device = like.shape, like.dtype, like.device

    def __call__(self, start: Any, end: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        w, area = self.path.with_integral(float(start), float(end))
        return (w.flatten(1), area.flatten(1)) if return_U else w.flatten(1)
