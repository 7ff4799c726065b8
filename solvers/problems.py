r"""What a solver sees: an ODE, an SDE, or a semi-linear diffusion whose linear part is known."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

#: ``(t, x, *per_sample) -> like x`` with t of shape () or (B,) in x's dtype.
Field = Callable[..., Tensor]
#: A time inside a solver: a Python float on a fixed grid, a float64 (B,) tensor where each sample has its
#: own.
Time = float | Tensor


class Schedule(Protocol):
    """What a solver needs of a process ``x_t = alpha x_0 + sigma eps``; `sdediff` processes satisfy it."""

    t_min: float
    t_max: float

    def alpha(self, t: Tensor) -> Tensor: ...
    def sigma(self, t: Tensor) -> Tensor: ...
    def lam(self, t: Tensor) -> Tensor: ...
    def d_alpha(self, t: Tensor) -> Tensor: ...
    def d_sigma(self, t: Tensor) -> Tensor: ...
    def d_lam(self, t: Tensor) -> Tensor: ...
    def time(self, lam: Tensor) -> Tensor: ...


def expand(value: Any, x: Tensor) -> Any:
    """Reshape a per-sample value (B,) to broadcast against x (B, *E); a float or a () tensor passes through.

    Example:
        >>> import torch
        >>> expand(torch.ones(3), torch.zeros(3, 4, 5)).shape
        torch.Size([3, 1, 1])
    """
    if isinstance(value, Tensor) and value.ndim == 1:
        return value.reshape(-1, *(1,) * (x.ndim - 1))
    return value


def as_time(t: Time, x: Tensor) -> Tensor:
    """A time as the tensor a user's function receives: x's dtype and device, shape () or (B,)."""
    if isinstance(t, Tensor):
        return t.to(device=x.device, dtype=x.dtype)
    return torch.full((), t, dtype=x.dtype, device=x.device)


def like_state(slope: Tensor, x: Tensor) -> Tensor:
    """A slope of the state's shape, as one that broadcasts against it becomes.

    Raises:
        ValueError: If it does not.
    """
    if slope.shape == x.shape:
        return slope
    try:
        return slope.expand_as(x)
    except RuntimeError:
        raise ValueError(
            f"the drift returned shape {tuple(slope.shape)} for a state of shape {tuple(x.shape)}: return "
            "the shape it is given"
        ) from None


@dataclass(frozen=True)
class ODE:
    """The initial value problem ``dx/dt = drift(t, x)``.

    Args:
        drift: ``drift(t, x, *per_sample)`` -> like x; x (B, *E), t () on a fixed grid or (B,) under an
            adaptive solver.
        per_sample: Tensors with a row a sample, such as conditions; adaptive solvers drop finished samples
            from the batch, and the rows of these with them.

    Example:
        >>> import torch, solvers
        >>> problem = ODE(lambda t, x: -x)
        >>> sol = solvers.solve(problem, torch.ones(1, 1), t=(0.0, 1.0), solver="rk4", steps=20)
        >>> round(float(sol.x), 5)
        0.36788
    """

    drift: Field
    per_sample: tuple[Tensor, ...] = ()

    def velocity(self, t: Time, x: Tensor) -> Tensor:
        """The drift at time t."""
        return like_state(self.drift(as_time(t, x), x, *self.per_sample), x)

    def advance(self, t: Time, x: Tensor, h: float) -> Tensor:
        """``x + h drift(t, x)``."""
        return torch.add(x, self.velocity(t, x), alpha=h)

    def noise_scale(self, t: Time, x: Tensor) -> float:
        """No noise."""
        return 0.0


@dataclass(frozen=True)
class SDE:
    """The Itô SDE ``dx = drift(t, x) dt + diffusion(t, x) dW``, solved in either direction of time.

    Args:
        drift: ``drift(t, x, *per_sample)`` -> like x.
        diffusion: ``diffusion(t, x, *per_sample)`` -> broadcastable against x: the diagonal of the noise
            matrix.
        noise: "additive" (diffusion does not depend on x) or "diagonal" (it may).
        per_sample: Tensors with a row a sample.

    Raises:
        ValueError: For another kind of noise.

    Example:
        >>> import torch, solvers
        >>> problem = SDE(lambda t, x: -x, lambda t, x: torch.ones_like(x))
        >>> solvers.solve(problem, torch.zeros(4, 2), t=(0.0, 1.0), solver="euler-maruyama", steps=10).x.shape
        torch.Size([4, 2])
    """

    drift: Field
    diffusion: Field
    noise: Literal["additive", "diagonal"] = "additive"
    per_sample: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if self.noise not in ("additive", "diagonal"):
            raise ValueError(f'noise={self.noise!r} is not a kind of noise: give "additive" or "diagonal"')

    def velocity(self, t: Time, x: Tensor) -> Tensor:
        return like_state(self.drift(as_time(t, x), x, *self.per_sample), x)

    def advance(self, t: Time, x: Tensor, h: float) -> Tensor:
        return torch.add(x, self.velocity(t, x), alpha=h)

    def noise_scale(self, t: Time, x: Tensor) -> Tensor:
        return self.diffusion(as_time(t, x), x, *self.per_sample)


class Coefficients(NamedTuple):
    """The schedule at one time: Python floats on a fixed grid, broadcastable tensors otherwise."""

    alpha: Any
    sigma: Any
    lam: Any
    #: drift = drift_x * x + drift_d * D(t, x)
    drift_x: Any
    drift_d: Any
    #: eta * g
    noise: Any
    eta: Any


@dataclass(frozen=True)
class SemiLinear:
    r"""The reverse diffusion of ``x_t = alpha x_0 + sigma eps``, given D(t, x) = E[x_0 | x_t = x].

    One family, marginals shared by all members (Song et al. 2021, arXiv 2011.13456, Eq. 13 for eta = 0 and
    Eq. 6 for eta = 1; the general eta is Zhang & Chen 2022, arXiv 2204.13902, Eq. 6 with their lambda = eta):

    .. math:: dx = [f x - \tfrac12(1+\eta^2) g^2 s]\,dt + \eta\,g\,d\bar W
              = [\alpha' D + \sigma' \epsilon - \eta^2\lambda'(x - \alpha D)]\,dt + \eta\,g\,d\bar W

    with score :math:`s = (\alpha D - x)/\sigma^2` and :math:`\epsilon = (x-\alpha D)/\sigma`. The second form
    is the one evaluated: f and g^2 diverge where alpha -> 0, the velocity :math:`\alpha' D + \sigma'\epsilon`
    does not.

    Args:
        process: The schedule (alpha, sigma, lam, their derivatives and the inverse time(lam)).
        denoiser: ``denoiser(t, x, *per_sample)`` -> E[x_0 | x_t = x], like x; t a Python float on a fixed
            grid, else float64 (B,). Where it has a method ``blend(t, x, a, b, *per_sample)`` -> ``a x + b
            D(t, x)``, that is called for combinations: a network's own scaling then costs no kernel.
        eta: Noise level of the family: 0 the probability-flow ODE, 1 the reverse SDE, or a function of t (()
            float64 tensor or (B,)). k-diffusion's eta is this one squared in its 2M-SDE; DDIM's differs too.
        scale: Standard deviation of the data, about; with `centre`, their mean, it sets the coordinates of
            adaptive solves, nothing else.
        centre: Mean of the data, about, of shape (*E).
        per_sample: Tensors with a row a sample.

    Raises:
        ValueError: If eta is negative.
    """

    process: Schedule
    denoiser: Field
    eta: float | Callable[[Tensor], Tensor] = 0.0
    scale: float = 1.0
    centre: Tensor | float = 0.0
    per_sample: tuple[Tensor, ...] = ()
    _table: dict[float, Coefficients] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not callable(self.eta) and not self.eta >= 0:
            raise ValueError(
                f"eta={self.eta} is negative: give 0 (the ODE), 1 (the reverse SDE) or a value between or "
                "beyond"
            )

    @property
    def deterministic(self) -> bool:
        return not callable(self.eta) and self.eta == 0

    #: The diffusion depends on t alone.
    noise: Literal["additive"] = field(default="additive", init=False)

    def tabulate(self, times: Iterable[float]) -> SemiLinear:
        """This problem with its coefficients at `times` computed at once, in float64, as Python floats.

        A denoiser with a method `tabulate` of its own is told the times too.
        """
        keys = list(dict.fromkeys(times))
        rows = zip(*(c.tolist() for c in self._compute(torch.tensor(keys, dtype=torch.float64))), strict=True)
        getattr(self.denoiser, "tabulate", lambda _: None)(keys)
        problem = replace(self)  # with a table of its own: another eta or process has other coefficients
        problem._table.update(zip(keys, (Coefficients(*row) for row in rows), strict=True))
        return problem

    def at(self, t: Time, x: Tensor) -> Coefficients:
        """The coefficients at time t, ready to multiply x."""
        c = self.coefficients(t)
        return Coefficients(*(expand(v.to(x.dtype), x) for v in c)) if isinstance(t, Tensor) else c

    def coefficients(self, t: Time) -> Coefficients:
        """The coefficients at time t, floats, or float64 tensors of t's shape."""
        if isinstance(t, Tensor):
            return Coefficients(*self._compute(t.double()))
        if t not in self._table:
            self._table[t] = Coefficients(
                *(float(c) for c in self._compute(torch.tensor(t, dtype=torch.float64)))
            )
        return self._table[t]

    def _compute(self, t: Tensor) -> tuple[Tensor, ...]:
        alpha, sigma = self.process.alpha(t), self.process.sigma(t)
        drift, noise = self._drift(t, alpha, sigma), self._noise(t, sigma)
        return alpha, sigma, self.process.lam(t), *drift, noise, self._eta(t)

    def _eta(self, t: Tensor) -> Tensor:
        eta = self.eta(t) if callable(self.eta) else self.eta
        return torch.as_tensor(eta, dtype=t.dtype, device=t.device).expand_as(t)

    def _drift(self, t: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """The drift's factors of x and D: with ``eps = (x - alpha D)/sigma`` it is linear in both."""
        drift_x = self.process.d_sigma(t) / sigma
        if not self.deterministic:
            eta = self._eta(t)
            drift_x = drift_x - torch.where(eta == 0, 0.0, eta**2 * self.process.d_lam(t))
        return drift_x, self.process.d_alpha(t) - alpha * drift_x

    def _noise(self, t: Tensor, sigma: Tensor) -> Tensor:
        """The diffusion ``eta g``."""
        if self.deterministic:
            return torch.zeros_like(t)
        eta = self._eta(t)
        return torch.where(eta == 0, 0.0, eta * sigma * torch.sqrt(-2 * self.process.d_lam(t)))

    def denoise(self, t: Time, x: Tensor) -> Tensor:
        """D(t, x) for these samples."""
        return self.denoiser(t, x, *self.per_sample)

    def blend(self, t: Time, x: Tensor, a: Any, b: Any) -> Tensor:
        """``a x + b D(t, x)``, one evaluation; a and b floats, or float64 tensors of t's shape."""
        fused = getattr(self.denoiser, "blend", None)
        if fused is not None:
            return fused(t, x, a, b, *self.per_sample)
        return combination(a, x, b, self.denoise(t, x))

    def velocity(self, t: Time, x: Tensor) -> Tensor:
        if isinstance(t, Tensor):  # of a sample's own times only what is needed is computed
            s = t.double()
            return self.blend(t, x, *self._drift(s, self.process.alpha(s), self.process.sigma(s)))
        c = self.coefficients(t)
        return self.blend(t, x, c.drift_x, c.drift_d)

    def advance(self, t: Time, x: Tensor, h: float) -> Tensor:
        c = self.coefficients(t)
        return self.blend(t, x, 1 + h * c.drift_x, h * c.drift_d)

    def noise_scale(self, t: Time, x: Tensor) -> Any:
        if isinstance(t, Tensor):
            s = t.double()
            return expand(self._noise(s, self.process.sigma(s)).to(x.dtype), x)
        return self.coefficients(t).noise

    def score(self, t: Time, x: Tensor) -> Tensor:
        """``(alpha D - x)/sigma^2``, the score of the noised data."""
        c = self.coefficients(t)
        return self.blend(t, x, -1 / c.sigma**2, c.alpha / c.sigma**2)

    def drift(self, t: Time, x: Tensor) -> Tensor:
        """The drift as a plain field, for solvers that know nothing of the linear part."""
        return self.velocity(t, x)

    def diffusion(self, t: Time, x: Tensor) -> Tensor:
        """The diffusion as a plain field, like x."""
        return torch.as_tensor(self.noise_scale(t, x), dtype=x.dtype, device=x.device).expand_as(x)


Problem = ODE | SDE | SemiLinear


def combination(a: Any, x: Tensor, b: Any, y: Tensor) -> Tensor:
    """``a x + b y`` in two kernels; a and b both floats, or both tensors () or (B,) of any dtype."""
    if isinstance(b, Tensor):
        a, b = expand(a.to(x.dtype), x), expand(b.to(x.dtype), x)
        return torch.addcmul(a * x, b, y)
    return torch.mul(x, a).add_(y, alpha=b)


def is_deterministic(problem: Problem) -> bool:
    """True for an ODE and for a semi-linear problem at eta = 0."""
    return isinstance(problem, ODE) or (isinstance(problem, SemiLinear) and problem.deterministic)


def take(problem: Problem, rows: Tensor) -> Problem:
    """The problem of the samples at `rows`."""
    if not problem.per_sample:
        return problem
    return replace(problem, per_sample=tuple(p[rows] for p in problem.per_sample))


@dataclass
class Counted:
    """A field that counts its calls."""

    function: Field
    calls: int = 0

    def __call__(self, *arguments: Tensor) -> Tensor:
        self.calls += 1
        return self.function(*arguments)

    def blend(self, t: Time, x: Tensor, a: Any, b: Any, *per_sample: Tensor) -> Tensor:
        """``a x + b function(t, x)``."""
        self.calls += 1
        fused = getattr(self.function, "blend", None)
        if fused is not None:
            return fused(t, x, a, b, *per_sample)
        return combination(a, x, b, self.function(t, x, *per_sample))

    def tabulate(self, times: list[float]) -> None:
        """Pass the times on to a function that tabulates."""
        getattr(self.function, "tabulate", lambda _: None)(times)


def counted(problem: Problem) -> tuple[Problem, Counted]:
    """The problem with its drift or denoiser counting calls, and the counter."""
    if isinstance(problem, SemiLinear):
        counter = Counted(problem.denoiser)
        return replace(problem, denoiser=counter), counter
    counter = Counted(problem.drift)
    return replace(problem, drift=counter), counter
