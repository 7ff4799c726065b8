r"""Gaussian processes that carry data to noise.

Every process of the family is fixed by two functions of time,
:math:`x_t = \alpha(t)\,x_0 + \sigma(t)\,\epsilon`. With :math:`\lambda = \log(\alpha/\sigma)` (half the log
signal-to-noise ratio) the SDE :math:`dx = f x\,dt + g\,dW` that has these marginals is

.. math:: f = \alpha'/\alpha, \qquad g^2 = -2\,\sigma^2\,\lambda'

(Kingma et al. 2021, arXiv 2107.00630, Eqs. 9-10 of appendix K in other symbols), so a process states alpha,
sigma and the inverse of lam; drift, diffusion, marginals, transition kernels and the prior follow here, once.

Arithmetic is float64 whatever comes in, and the result has the dtype of the time it was given: a schedule
evaluated in float32 near its ends is already wrong in the third digit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from solvers import noise
from solvers.grids import GRIDS
from solvers.problems import SDE, expand

Time = float | Tensor
Schedule = Callable[[Tensor], Tensor]


class GaussianProcess:
    r"""The process :math:`x_t = \alpha(t) x_0 + \sigma(t) \epsilon` of a user's own alpha and sigma.

    Args:
        alpha: Signal scale; maps a float64 tensor of times to a tensor of the same shape. Positive and
            differentiable by autograd.
        sigma: Noise scale, likewise; ``alpha/sigma`` must fall strictly with time.
        t_min: Time of the data, where sigma is small.
        t_max: Time of the prior, where ``alpha/sigma`` is small.
        time: Inverse of ``lam = log(alpha/sigma)``; found by bisection when left out.

    Raises:
        ValueError: If the interval is empty, a schedule is not positive and finite on it, or lam does not
            fall.

    Example:
        >>> import torch
        >>> process = GaussianProcess(alpha=lambda t: 1 - t**2, sigma=lambda t: t, t_min=1e-3, t_max=0.99)
        >>> round(float(process.time(process.lam(0.3))), 9)
        0.3
    """

    #: Standard deviation of the textbook prior; None means sigma(t_max).
    prior_scale: float | None = None
    #: Name of the default grid: the one that errs least over solvers and data (`tests/test_grids.py`).
    grid = "logistic"

    def __init__(
        self,
        alpha: Schedule,
        sigma: Schedule,
        t_min: float = 1e-3,
        t_max: float = 1.0,
        *,
        time: Schedule | None = None,
    ) -> None:
        # A user's functions take the place of the methods that a subclass would define.
        vars(self).update(_alpha=alpha, _sigma=sigma)
        if time is not None:
            vars(self).update(_time=time)
        self._setup(t_min, t_max)

    def _setup(self, t_min: float, t_max: float) -> None:
        self.t_min, self.t_max = float(t_min), float(t_max)
        if not self.t_min < self.t_max:
            raise ValueError(f"the interval of times [{t_min}, {t_max}] is empty: give t_min < t_max")
        probe = torch.linspace(self.t_min, self.t_max, 65, dtype=torch.float64)
        alpha, sigma, lam = self.alpha(probe), self.sigma(probe), self.lam(probe)
        if not bool((torch.isfinite(lam) & (alpha > 0) & (sigma > 0)).all()):
            raise ValueError(
                f"alpha and sigma must be positive and finite on [{t_min}, {t_max}]: move t_min or t_max "
                "away from the singular end"
            )
        if not bool((lam.diff() < 0).all()):
            raise ValueError("alpha/sigma must fall strictly with time: data lie at t_min, noise at t_max")

    # -- what a subclass states, on float64 tensors ----------------------------------------------------------

    def _alpha(self, t: Tensor) -> Tensor:
        raise TypeError("a process needs alpha: pass alpha= or define _alpha")

    def _sigma(self, t: Tensor) -> Tensor:
        raise TypeError("a process needs sigma: pass sigma= or define _sigma")

    def _lam(self, t: Tensor) -> Tensor:
        return torch.log(self._alpha(t) / self._sigma(t))

    def _d_alpha(self, t: Tensor) -> Tensor:
        return _derivative(self._alpha, t)

    def _d_sigma(self, t: Tensor) -> Tensor:
        return _derivative(self._sigma, t)

    def _d_lam(self, t: Tensor) -> Tensor:
        return self._d_alpha(t) / self._alpha(t) - self._d_sigma(t) / self._sigma(t)

    def _time(self, lam: Tensor) -> Tensor:
        """Bisection on [t_min, t_max]: lam falls with time."""
        low = torch.full_like(lam, self.t_min)
        high = torch.full_like(lam, self.t_max)
        for _ in range(80):
            middle = 0.5 * (low + high)
            earlier = self._lam(middle) > lam
            low, high = torch.where(earlier, middle, low), torch.where(earlier, high, middle)
        return 0.5 * (low + high)

    # -- the public schedule ---------------------------------------------------------------------------------

    def alpha(self, t: Time) -> Tensor:
        """Signal scale at a time, a float or a tensor of any shape; the result has its shape and dtype."""
        return _in_double(self._alpha, t)

    def sigma(self, t: Time) -> Tensor:
        """Noise scale at a time."""
        return _in_double(self._sigma, t)

    def lam(self, t: Time) -> Tensor:
        """Half the log signal-to-noise ratio, ``log(alpha/sigma)``."""
        return _in_double(self._lam, t)

    def d_alpha(self, t: Time) -> Tensor:
        """Time derivative of alpha."""
        return _in_double(self._d_alpha, t)

    def d_sigma(self, t: Time) -> Tensor:
        """Time derivative of sigma."""
        return _in_double(self._d_sigma, t)

    def d_lam(self, t: Time) -> Tensor:
        """Time derivative of lam (negative)."""
        return _in_double(self._d_lam, t)

    def time(self, lam: Time) -> Tensor:
        """Inverse of :meth:`lam`."""
        return _in_double(self._time, lam)

    def drift_coefficient(self, t: Time) -> Tensor:
        """Coefficient ``f = alpha'/alpha`` of the forward SDE ``dx = f x dt + g dW``."""
        return _in_double(lambda s: self._d_alpha(s) / self._alpha(s), t)

    def diffusion(self, t: Time) -> Tensor:
        """Coefficient ``g = sqrt(-2 sigma^2 lam')`` of the forward SDE."""
        return _in_double(lambda s: self._sigma(s) * torch.sqrt(-2 * self._d_lam(s)), t)

    # -- what follows ----------------------------------------------------------------------------------------

    @property
    def prior_std(self) -> float:
        """Standard deviation of the textbook prior N(0, prior_std^2 I) at t_max."""
        return self.prior_std_at(self.t_max)

    def prior_std_at(self, t: float) -> float:
        """Standard deviation of the textbook prior where the noise ends at t."""
        return float(self.sigma(t)) if self.prior_scale is None else self.prior_scale

    def marginal(self, x0: Tensor, t: Time) -> tuple[Tensor, Tensor]:
        """Mean (B, *E) and standard deviation (broadcastable against it) of x_t given x_0; t () or (B,)."""
        t = torch.as_tensor(t, dtype=torch.float64, device=x0.device)
        alpha, sigma = (expand(self._cast(c, x0), x0) for c in (self._alpha(t), self._sigma(t)))
        return alpha * x0, sigma

    def transition(self, s: Time, t: Time) -> tuple[Tensor, Tensor]:
        r"""Kernel between two times, s <= t: :math:`x_t \mid x_s \sim N(a\,x_s, b^2 I)`.

        .. math:: a = \alpha_t/\alpha_s, \qquad b^2 = \sigma_t^2\,(1 - e^{2(\lambda_t-\lambda_s)})

        Returns:
            ``(a, b)``, float64, of the broadcast shape of s and t.

        Raises:
            ValueError: If s > t anywhere.
        """
        s, t = (torch.as_tensor(u, dtype=torch.float64) for u in (s, t))
        if bool((s > t).any()):
            raise ValueError("a transition runs forward in time: give s <= t")
        scale = self._alpha(t) / self._alpha(s)
        return scale, self._sigma(t) * torch.sqrt(-torch.expm1(2 * (self._lam(t) - self._lam(s))))

    def perturb(self, x0: Tensor, t: Time, seed: int) -> tuple[Tensor, Tensor]:
        """Draw x_t given x_0.

        Args:
            x0: Data, (B, *E).
            t: Time, () or (B,).
            seed: The noise of row i is a function of (seed, i).

        Returns:
            ``(x_t, eps)``, both (B, *E), with ``x_t = alpha x0 + sigma eps``.

        Example:
            >>> import torch
            >>> x_t, eps = VP().perturb(torch.ones(3, 2), 0.5, seed=0)
            >>> x_t.shape
            torch.Size([3, 2])
        """
        mean, std = self.marginal(x0, t)
        rows = torch.arange(len(x0), device=x0.device)
        eps = noise.normal(seed, rows, noise.Stream.PERTURB, 0, x0.shape[1:], x0.dtype, x0.device)
        return mean + std * eps, eps

    def simulate(self, x0: Tensor, grid: Tensor, seed: int) -> Tensor:
        """Forward paths by exact transition kernels.

        Args:
            x0: State at ``grid[0]`` (data when that is t_min), (B, *E).
            grid: Rising times, (n+1,).
            seed: Seed of the paths' noise.

        Returns:
            States at every time of the grid, (n+1, B, *E).
        """
        path, rows = [x0], torch.arange(len(x0), device=x0.device)
        scale, std = (c.tolist() for c in self.transition(grid[:-1].double(), grid[1:].double()))
        for k, (a, b) in enumerate(zip(scale, std, strict=True)):
            z = noise.normal(seed, rows, noise.Stream.PERTURB, k + 1, x0.shape[1:], x0.dtype, x0.device)
            path.append(a * path[-1] + b * z)
        return torch.stack(path)

    def sde(self) -> SDE:
        """The forward SDE ``dx = f x dt + g dW``, for any solver, with rising times."""
        return SDE(
            drift=lambda t, x: expand(self.drift_coefficient(t), x) * x,
            diffusion=lambda t, x: expand(self.diffusion(t), x).expand_as(x),
            noise="additive",
        )

    def default_grid(self, n: int, span: tuple[float, float] | None = None) -> Tensor:
        """The default grid: n + 1 falling times, float64, exactly from t_max to t_min (or over `span`)."""
        return GRIDS[self.grid](self, n, span)

    @property
    def config(self) -> dict[str, Any] | None:
        """Constructor arguments as JSON, to rebuild the process from a file; None where they are functions.

        A model saved with such a process is loaded with ``process=``. A subclass that sets `_arguments` and
        is added to `REGISTRY` is rebuilt like those here.
        """
        return None if self._arguments is None else dict(self._arguments)

    _arguments: dict[str, float] | None = None

    @staticmethod
    def _cast(value: Tensor, like: Tensor) -> Tensor:
        return value.to(like.dtype)

    def __repr__(self) -> str:
        ends = {"t_min": self.t_min, "t_max": self.t_max}
        inside = ", ".join(f"{k}={v:g}" for k, v in (self._arguments or ends).items())
        return f"{type(self).__name__}({inside})"


class _LinearBeta(GaussianProcess):
    """VP and sub-VP share ``beta(t) = beta_min + t (beta_max - beta_min)`` and ``B(t)``, its integral."""

    prior_scale = 1.0

    def __init__(self, beta_min: float, beta_max: float, t_min: float, t_max: float) -> None:
        if not 0 < beta_min < beta_max:
            raise ValueError(f"beta_min={beta_min}, beta_max={beta_max}: give 0 < beta_min < beta_max")
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)
        self._arguments = {"beta_min": beta_min, "beta_max": beta_max, "t_min": t_min, "t_max": t_max}
        self._setup(t_min, t_max)

    def _beta(self, t: Tensor) -> Tensor:
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * t * (self.beta_max - self.beta_min))

    def _inverse_integral(self, integral: Tensor) -> Tensor:
        # The root of slope t^2/2 + beta_min t = B, in the form that does not cancel for small B.
        slope = self.beta_max - self.beta_min
        return 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-0.5 * self._integral(t))

    def _d_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t) * self._alpha(t)


class VP(_LinearBeta):
    r"""Variance-preserving process, the limit of the DDPM chain (Song et al. 2021, Eqs. 11, 29, 32-33).

    .. math:: \alpha = e^{-B/2}, \quad \sigma^2 = 1 - e^{-B}, \quad
              B(t) = \beta_{min}t + \tfrac12 t^2(\beta_{max}-\beta_{min})

    Source: arXiv 2011.13456.

    Time has no unit; t_max = 1 as in the paper. Raises ValueError unless 0 < beta_min < beta_max.

    Example:
        >>> process = VP()
        >>> round(float(process.alpha(1.0)), 6)
        0.006572
    """

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-5, t_max: float = 1.0
    ) -> None:
        super().__init__(beta_min, beta_max, t_min, t_max)

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def _lam(self, t: Tensor) -> Tensor:
        return -0.5 * torch.log(torch.expm1(self._integral(t)))

    def _time(self, lam: Tensor) -> Tensor:
        return self._inverse_integral(torch.nn.functional.softplus(-2 * lam, threshold=60))

    def _d_sigma(self, t: Tensor) -> Tensor:
        integral = self._integral(t)
        return 0.5 * self._beta(t) * torch.exp(-integral) / torch.sqrt(-torch.expm1(-integral))

    def _d_lam(self, t: Tensor) -> Tensor:
        return 0.5 * self._beta(t) / torch.expm1(-self._integral(t))


class SubVP(_LinearBeta):
    r"""Sub-variance-preserving process (Song et al. 2021, arXiv 2011.13456, Eqs. 13, 29).

    The alpha of :class:`VP`, and :math:`\sigma = 1 - e^{-B}`.

    Raises ValueError unless 0 < beta_min < beta_max.

    Example:
        >>> process = SubVP()
        >>> bool(process.sigma(0.5) < VP().sigma(0.5))
        True
    """

    def __init__(
        self, beta_min: float = 0.1, beta_max: float = 20.0, t_min: float = 1e-3, t_max: float = 1.0
    ) -> None:
        super().__init__(beta_min, beta_max, t_min, t_max)

    def _sigma(self, t: Tensor) -> Tensor:
        return -torch.expm1(-self._integral(t))

    def _lam(self, t: Tensor) -> Tensor:
        return -torch.log(2 * torch.sinh(0.5 * self._integral(t)))

    def _time(self, lam: Tensor) -> Tensor:
        return self._inverse_integral(2 * torch.asinh(0.5 * torch.exp(-lam)))

    def _d_sigma(self, t: Tensor) -> Tensor:
        return self._beta(t) * torch.exp(-self._integral(t))

    def _d_lam(self, t: Tensor) -> Tensor:
        return -0.5 * self._beta(t) / torch.tanh(0.5 * self._integral(t))


class VE(GaussianProcess):
    r"""Variance-exploding process (Song et al. 2021, arXiv 2011.13456, Eqs. 9, 30-31), the limit of SMLD.

    .. math:: \alpha = 1, \qquad \sigma = \sigma_{min}(\sigma_{max}/\sigma_{min})^t

    The standard deviation is sigma(t) itself (the paper's code), not :math:`\sqrt{\sigma(t)^2-\sigma(0)^2}`.
    Sigmas are in the model's units. Raises ValueError unless 0 < sigma_min < sigma_max.

    Example:
        >>> round(float(VE().sigma(0.5)), 6)
        0.707107
    """

    grid = "log-snr"  # Runge-Kutta methods in t diverge on longer first steps

    def __init__(
        self, sigma_min: float = 0.01, sigma_max: float = 50.0, t_min: float = 0.0, t_max: float = 1.0
    ) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: give 0 < sigma_min < sigma_max")
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self._rate = math.log(sigma_max / sigma_min)
        self._arguments = {"sigma_min": sigma_min, "sigma_max": sigma_max, "t_min": t_min, "t_max": t_max}
        self._setup(t_min, t_max)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * self._rate)

    def _lam(self, t: Tensor) -> Tensor:
        return -math.log(self.sigma_min) - t * self._rate

    def _time(self, lam: Tensor) -> Tensor:
        return (-lam - math.log(self.sigma_min)) / self._rate

    def _d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _d_sigma(self, t: Tensor) -> Tensor:
        return self._rate * self._sigma(t)

    def _d_lam(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -self._rate)


class _Ends(GaussianProcess):
    """A process with no parameter but its interval."""

    def __init__(self, t_min: float, t_max: float) -> None:
        self._arguments = {"t_min": t_min, "t_max": t_max}
        self._setup(t_min, t_max)


class EDM(_Ends):
    r"""The process of Karras et al. (2022), arXiv 2206.00364: time is the noise level.

    .. math:: \alpha = 1, \qquad \sigma = t


    Sigmas are in the model's units (data of standard deviation 1 there, where the paper has sigma_data =
    0.5).

    Example:
        >>> float(EDM().diffusion(2.0))
        2.0
    """

    def __init__(self, t_min: float = 0.002, t_max: float = 80.0) -> None:
        super().__init__(t_min, t_max)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _sigma(self, t: Tensor) -> Tensor:
        return t

    def _lam(self, t: Tensor) -> Tensor:
        return -torch.log(t)

    def _time(self, lam: Tensor) -> Tensor:
        return torch.exp(-lam)

    def _d_alpha(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t)

    def _d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _d_lam(self, t: Tensor) -> Tensor:
        return -1 / t


class RectifiedFlow(_Ends):
    r"""Straight paths between data and noise (Liu et al. 2022; Lipman et al. 2022, Eq. 22).

    .. math:: \alpha = 1 - t, \qquad \sigma = t

    Sources: arXiv 2209.03003 and arXiv 2210.02747, whose time runs the other way. The SDE's coefficients
    diverge at t = 1 (g^2 = 2t/(1-t)), hence t_max < 1.

    Example:
        >>> round(float(RectifiedFlow().diffusion(0.5)) ** 2, 9)
        2.0
    """

    prior_scale = 1.0

    def __init__(self, t_min: float = 1e-3, t_max: float = 1 - 1e-3) -> None:
        super().__init__(t_min, t_max)

    def _alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def _sigma(self, t: Tensor) -> Tensor:
        return t

    def _lam(self, t: Tensor) -> Tensor:
        return torch.log1p(-t) - torch.log(t)

    def _time(self, lam: Tensor) -> Tensor:
        return torch.sigmoid(-lam)

    def _d_alpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1.0)

    def _d_sigma(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def _d_lam(self, t: Tensor) -> Tensor:
        return -1 / (t * (1 - t))


class Cosine(_Ends):
    r"""Variance-preserving cosine process (Nichol & Dhariwal 2021, Eq. 17 with s = 0).

    In continuous time; arXiv 2102.09672.

    .. math:: \alpha = \cos(\pi t/2), \qquad \sigma = \sin(\pi t/2)

    The SDE is singular at t = 1, hence t_max < 1.

    Example:
        >>> round(float(Cosine().lam(0.5)), 9)
        0.0
    """

    prior_scale = 1.0

    def __init__(self, t_min: float = 1e-3, t_max: float = 1 - 1e-3) -> None:
        super().__init__(t_min, t_max)

    def _alpha(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * (1 - t))  # cos(pi t/2) without cancellation near t = 1

    def _sigma(self, t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)

    def _time(self, lam: Tensor) -> Tensor:
        return torch.atan(torch.exp(-lam)) * (2 / math.pi)

    def _d_alpha(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi * self._sigma(t)

    def _d_sigma(self, t: Tensor) -> Tensor:
        return 0.5 * math.pi * self._alpha(t)

    def _d_lam(self, t: Tensor) -> Tensor:
        return -0.5 * math.pi / (self._alpha(t) * self._sigma(t))


#: Processes by class name: what a saved model's configuration refers to.
REGISTRY: dict[str, type[GaussianProcess]] = {
    cls.__name__: cls for cls in (VP, SubVP, VE, Cosine, EDM, RectifiedFlow)
}


def _in_double(function: Schedule, t: Time) -> Tensor:
    if isinstance(t, Tensor) and t.dtype == torch.float64:
        value = function(t)
        if isinstance(value, Tensor) and value.dtype == t.dtype and value.shape == t.shape:
            return value
    given = isinstance(t, Tensor) and t.is_floating_point()
    t = torch.as_tensor(t, dtype=None if given else torch.float64)
    wide = t.double() if t.device.type != "mps" else t  # MPS has no float64
    return (
        torch.as_tensor(function(wide), dtype=wide.dtype, device=wide.device).expand(wide.shape).to(t.dtype)
    )


def _derivative(function: Schedule, t: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        t = t.detach().clone().requires_grad_()
        value = torch.as_tensor(function(t))
        if not value.requires_grad:  # a schedule that is constant in t
            return torch.zeros_like(t)
        (slope,) = torch.autograd.grad(value.sum(), t)
    return slope
