r"""`DiffusionModel`: a network, a process, what the network predicts, the data's units and the prior."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from solvers import SemiLinear
from solvers.problems import expand

from . import units
from .denoiser import Denoiser
from .modes import evaluating as evaluating
from .modes import solving as solving
from .predictions import PREDICTIONS, Combination, Marginal, check_prediction, convert
from .prior import Moments, Prior, StandardPrior
from .processes import GaussianProcess, Time

if TYPE_CHECKING:
    from .anomaly import AnomalyScores
    from .classification import Classification
    from .distribution import ModelDistribution
    from .likelihood import LikelihoodReport, LogLikelihood, Quantisation
    from .sampling import SampleResult

Condition = Tensor | None


class Preconditioning(NamedTuple):
    """``D(z_t) = c_skip z_t + c_out F(c_in z_t, c_noise)``; each of the shape of the times."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor
    c_noise: Tensor


class DiffusionModel(nn.Module):
    r"""A diffusion model: everything that sampling and likelihood need, and nothing of how they are done.

    The network is called as ``network(x, t, cond)`` (``network(x, t)`` without a condition) with input of
    unit scale, :math:`x = z_t/\sqrt{\alpha^2+\sigma^2}`, and the noise level
    :math:`t = \tfrac14\ln(\sigma/\alpha)` (the c_noise of Karras et al. 2022, arXiv 2206.00364, table 1), of
    shape (B,), for every process alike. :func:`sdediff.from_callable` wraps functions of raw ``(x_t, t)``.

    Public x, scores, velocities and densities are in data units,
    ``x_t = shift + scale (alpha z + sigma eps)``; latents are in the model's own.

    Args:
        network: A module ``(x, t[, cond]) -> like x``.
        process: The Gaussian process.
        prediction: What the network returns: "eps", "x0", "score", "v", "velocity" or "edm" (EDM
            preconditioning).
        data_shape: Shape of one datum, without the batch.
        prior: "matched" (moments of the noised data; where they are unknown, as before `fit`, the textbook
            prior) or "standard".
        scale_mode: What :meth:`set_units` learns: "column" (a shift and scale an entry), "channel" (along the
            first axis), "scalar", or "none". Default: "column" for vectors, "scalar" for images and signals.

    Raises:
        ValueError: For an unknown prediction, prior, scale_mode, or an empty data_shape.

    Example:
        >>> import torch, sdediff
        >>> net = sdediff.networks.MLP(dim=2)
        >>> model = sdediff.DiffusionModel(net, process=sdediff.VP(), prediction="eps", data_shape=(2,))
        >>> model.score(torch.zeros(5, 2), 0.5).shape
        torch.Size([5, 2])
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self,
        network: nn.Module,
        process: GaussianProcess,
        prediction: str = "edm",
        data_shape: tuple[int, ...] = (),
        *,
        prior: str = "matched",
        scale_mode: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(network, nn.Module):
            raise TypeError(
                f"network is a {type(network).__name__}, no torch.nn.Module: give one, or wrap a function "
                "of the raw (x_t, t) by sdediff.from_callable"
            )
        if not isinstance(process, GaussianProcess):
            raise TypeError(f"process={process!r} is no process: give an object, such as sdediff.VP()")
        if (
            not isinstance(data_shape, tuple | list)
            or not data_shape
            or any(int(n) != n or n < 1 for n in data_shape)
        ):
            raise ValueError(
                f"data_shape={data_shape} is not the shape of a datum: give positive sizes, such as (2,) or "
                "(1, 8, 8)"
            )
        if prior not in ("matched", "standard"):
            raise ValueError(f'prior={prior!r} is not known: take "matched" or "standard"')
        self.network, self.process = network, process
        self.prediction = check_prediction(prediction, network)
        self.data_shape = tuple(int(n) for n in data_shape)
        self.prior, self.scale_mode = prior, units.check_mode(scale_mode, self.data_shape)
        self.register_buffer("shift", torch.zeros((), dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        for name in Moments.__dataclass_fields__:
            self.register_buffer(f"moment_{name}", None)

    # -- units -----------------------------------------------------------------------------------------------

    @property
    def dim(self) -> int:
        """Number of entries of a datum."""
        return int(torch.Size(self.data_shape).numel())

    def to_model(self, x: Tensor) -> Tensor:
        """Data units to model units, ``(x - shift)/scale``, like x; subtracted before anything is rounded."""
        wide = x if x.device.type == "mps" else x.double()
        return ((wide - self.shift.to(wide)) / self.scale.to(wide)).to(x.dtype)

    def to_data(self, z: Tensor) -> Tensor:
        """Model units to data units, ``shift + scale z``."""
        return self.shift.to(z) + self.scale.to(z) * z

    def set_units(self, x: Tensor) -> None:
        """Learn shift, scale and moments from data.

        Args:
            x: Data, (N, *data_shape), N >= 2.

        Raises:
            ValueError: If the data are constant in a column (named), not finite, or of another shape.
        """
        units.check_batch(x, self.data_shape, "x")
        self.shift, self.scale = (v.to(self.shift.device) for v in units.learn(x, self.scale_mode))
        take = getattr(self.network, "set_units", None)  # as networks.Levels has it
        if callable(take):
            take(self.shift, self.scale)
        self.moments = Moments.learn(self.to_model(x.double()).flatten(1))

    @property
    def state_type(self) -> tuple[torch.dtype, torch.device] | None:
        """Dtype and device of the network's parameters, or None where it has none."""
        for parameter in self.parameters():
            if parameter.is_floating_point():
                return parameter.dtype, parameter.device
        return None

    def check_batch(self, x: Tensor | np.ndarray, what: str = "x", *, empty: bool = False) -> Tensor:
        """A batch (B, *data_shape), tensor or array, on the network's device.

        Raises:
            ValueError: If it is empty (unless `empty`), of another shape, not floating point, or has NaN.
        """
        x = torch.from_numpy(x) if isinstance(x, np.ndarray) else x
        units.check_batch(x, self.data_shape, what, empty=empty)
        return x if self.state_type is None else x.to(self.state_type[1])

    def as_state(self, x: Tensor | np.ndarray, *, empty: bool = False) -> Tensor:
        """Data in data units as a state in model units, of the network's dtype; checks as `check_batch`."""
        z = self.to_model(self.check_batch(x, empty=empty))
        return z if self.state_type is None else z.to(self.state_type[0])

    def expand_condition(self, cond: Any, rows: int, device: torch.device) -> Any:
        """A condition with a row a sample, on a device; a single one serves all samples."""
        config = getattr(self.network, "config", {})
        width, optional = config.get("cond_dim", 0), config.get("optional_cond", False)
        return units.expand_condition(cond, rows, device, width, optional)

    def perturb(self, x: Tensor, t: Time, seed: int) -> tuple[Tensor, Tensor]:
        """Noise data in data units: ``(x_t, eps)`` with ``x_t = shift + scale (alpha z + sigma eps)``.

        Args:
            x: Data in data units, (B, *data_shape).
            t: Time, () or (B,).
            seed: The noise of row i is a function of (seed, i).
        """
        z_t, eps = self.process.perturb(self.as_state(x), t, seed)
        return self.to_data(z_t), eps

    @property
    def moments(self) -> Moments | None:
        """Mean and covariance of the data in model units, or None while unknown."""
        parts = {name: getattr(self, f"moment_{name}") for name in Moments.__dataclass_fields__}
        return None if parts["mean"] is None else Moments(**parts)

    @moments.setter
    def moments(self, value: Moments) -> None:
        for name in Moments.__dataclass_fields__:
            setattr(self, f"moment_{name}", getattr(value, name).to(self.shift.device))
        take = getattr(self.network, "set_moments", None)  # as networks.Whitened has it
        if callable(take):
            take(value.mean, value.basis, value.variances, value.rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> DiffusionModel:
        """Move or cast the network; units and moments stay float64 (on the host where a device has none)."""
        own, self._buffers = self._buffers, {}
        super()._apply(fn, recurse)
        device = fn(torch.empty(0, device=own["shift"].device)).device  # type: ignore[union-attr]
        if device.type == "mps":
            device = torch.device("cpu")
        self._buffers = {name: None if value is None else value.to(device) for name, value in own.items()}
        return self

    @property
    def log_scale(self) -> Tensor:
        """Sum of log scale over a datum's entries: the Jacobian of the units, () float64."""
        return self.scale.double().log().expand(self.data_shape).sum()

    def prior_at(self, t: float, prior: str | Prior | None = None) -> Prior:
        """The prior at time t, in model units.

        Args:
            t: Time.
            prior: "matched", "standard" or an object of your own; the model's by default.

        Raises:
            ValueError: If "matched" is asked for and the data's moments are unknown.
        """
        if prior is not None and not isinstance(prior, str):
            if not (hasattr(prior, "log_prob") and hasattr(prior, "transform") and hasattr(prior, "name")):
                raise TypeError(
                    f"prior={prior!r} is no prior: give an object with log_prob, transform and name, or "
                    '"matched" or "standard"'
                )
            return prior
        moments = self.moments
        if (
            prior == "standard"
            or (self.prior == "standard" and prior is None)
            or (moments is None and prior is None)
        ):
            return StandardPrior(self.process.prior_std_at(t))
        if prior not in (None, "matched"):
            raise ValueError(
                f'prior={prior!r} is not known: take "matched", "standard" or an object with log_prob and '
                "transform"
            )
        if moments is None:
            raise ValueError(
                "the moments of the data are unknown: fit the model, pass data_mean= and data_cov=, "
                'or take prior="standard"'
            )
        return moments.noised(float(self.process.alpha(t)), float(self.process.sigma(t)))

    # -- the network and its views ---------------------------------------------------------------------------

    def conditioning(self, m: Marginal, t: Tensor) -> tuple[Tensor, Tensor]:
        """``(c_in, c_noise)`` at times t: the factor of the network's input, and its time argument."""
        return 1 / m.norm, 0.25 * (torch.log(m.sigma) - torch.log(m.alpha))

    def coefficients(self, t: Time) -> Preconditioning:
        """Preconditioning at times t: ``D(z_t) = c_skip z_t + c_out F(c_in z_t, c_noise)``, float64."""
        t = torch.as_tensor(t, dtype=torch.float64)
        m = Marginal.at(self.process, t)
        return Preconditioning(*convert(m, self.prediction, PREDICTIONS["x0"]), *self.conditioning(m, t))

    def forward(self, z_t: Tensor, t: Time, cond: Condition = None, augment: Condition = None) -> Tensor:
        """The raw network output F for z_t in model units, (B, *data_shape); t () or (B,).

        `augment` are augmentation labels for a network built for them, (B, augment_dim).
        """
        t = torch.as_tensor(t, dtype=torch.float64, device=z_t.device)
        extra = {} if augment is None else {"augment": augment}
        return self._call(z_t, *self.conditioning(Marginal.at(self.process, t), t), cond, **extra)

    def _call(self, z_t: Tensor, c_in: Any, c_noise: Any, cond: Condition, **extra: Tensor) -> Tensor:
        if isinstance(c_in, Tensor):
            c_in, c_noise = expand(c_in.to(z_t.dtype), z_t), c_noise.to(z_t.dtype).expand(len(z_t))
        x = z_t if isinstance(c_in, float) and abs(c_in - 1) < 1e-12 else z_t * c_in
        arguments = (c_noise,) if cond is None else (c_noise, cond)
        out = self.network(x, *arguments, **extra)
        if not isinstance(out, Tensor):
            raise TypeError(
                f"the network returned a {type(out).__name__}: it must return a tensor like its input"
            )
        if out.dtype != z_t.dtype:  # a formula with float64 constants, say
            out = out.to(z_t.dtype)
        if z_t.requires_grad and torch.is_grad_enabled() and not out.requires_grad:
            self._check_constant(out, self.network(x + 1, *arguments))
        if out.shape != z_t.shape:  # would broadcast without a word
            raise ValueError(
                f"the network returned shape {tuple(out.shape)} for input of shape {tuple(z_t.shape)}: "
                "it must return the shape it is given"
            )
        return out

    @staticmethod
    def _check_constant(out: Tensor, elsewhere: Tensor) -> None:
        """A network without a graph must be a constant, or its derivatives would be taken for zero."""
        if not torch.equal(out, elsewhere):
            raise ValueError(
                "the network cuts the graph of its input (torch.no_grad, detach or numpy inside it?), so its "
                "trace cannot be computed: let autograd through"
            )

    def target(self, z_0: Tensor, eps: Tensor, t: Time) -> Tensor:
        """What the network should return for data z_0 (model units) and noise eps, both (B, *data_shape)."""
        t = torch.as_tensor(t, dtype=torch.float64, device=z_0.device)
        p, q = (
            expand(c.to(z_0.dtype), z_0) for c in PREDICTIONS[self.prediction](Marginal.at(self.process, t))
        )
        return p * z_0 + q * eps

    def _view(self, x: Tensor, t: Time, cond: Condition, view: Combination) -> Tensor:
        """A combination of data and noise at x in data units, in model units."""
        z_t = self.as_state(x, empty=True)
        t = self._check_time(torch.as_tensor(t, dtype=torch.float64, device=z_t.device), len(z_t))
        m = Marginal.at(self.process, t)
        a, b = (expand(c.to(z_t.dtype), z_t) for c in convert(m, self.prediction, view))
        cond = self.expand_condition(cond, len(z_t), z_t.device)
        with evaluating(self):
            return a * z_t + b * self._call(z_t, *self.conditioning(m, t), cond)

    def _check_time(self, t: Tensor, rows: int) -> Tensor:
        low, high = self.process.t_min, self.process.t_max
        if t.shape not in ((), (rows,)):
            raise ValueError(f"t has shape {tuple(t.shape)}: give a number or a tensor of shape ({rows},)")
        slack = 1e-6 * (high - low)  # float32 times at the ends
        if not bool(((t >= low - slack) & (t <= high + slack)).all()):
            raise ValueError(
                f"t lies outside [{low:g}, {high:g}], the interval of {self.process}: give times inside, or "
                "another t_min, t_max"
            )
        return t.clamp(low, high)

    def denoise(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """E[x_0 | x_t = x] in data units.

        Args:
            x: Noised data in data units, (B, *data_shape).
            t: Time, () or (B,), inside the process's interval.
            cond: Condition, (B, ...), or one for all.

        Returns:
            Like x.

        Raises:
            ValueError: For a wrong shape or a time outside the interval.
        """
        return self.to_data(self._view(x, t, cond, PREDICTIONS["x0"]))

    def eps(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """E[eps | x_t = x], like x; arguments as :meth:`denoise`."""
        return self._view(x, t, cond, PREDICTIONS["eps"])

    def score(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """Score of the noised data, per data unit, like x; arguments as :meth:`denoise`."""
        s = self._view(x, t, cond, PREDICTIONS["score"])
        return s / self.scale.to(s)

    def velocity(self, x: Tensor, t: Time, cond: Condition = None) -> Tensor:
        """Velocity dx/dt of the probability flow in data units, like x; arguments as :meth:`denoise`."""
        u = self._view(x, t, cond, PREDICTIONS["velocity"])
        return u * self.scale.to(u)

    def problem(self, eta: float | Callable[[Tensor], Tensor] = 0.0, cond: Condition = None) -> SemiLinear:
        """The reverse diffusion in model units, for any solver.

        Args:
            eta: 0 the probability-flow ODE, 1 the reverse SDE, any other value, or a function of t.
            cond: Conditions of the samples, (B, ...).
        """
        moments = self.moments
        per_sample = () if cond is None else (cond,)
        if moments is None:
            return SemiLinear(self.process, Denoiser(self), eta, per_sample=per_sample)
        centre = moments.mean.reshape(self.data_shape)
        return SemiLinear(self.process, Denoiser(self), eta, moments.scale or 1.0, centre, per_sample)

    # -- uses ------------------------------------------------------------------------------------------------

    def sample(self, n: int, solver: Any = "dopri5", **options: Any) -> Any:
        """Draw samples; see :func:`sdediff.sampling.sample` for all options.

        Args:
            n: Number of samples.
            solver: A solver or its name.
            **options: steps, grid, rtol, atol, eta, cond, seed, indices, t_span, prior, batch_size, denoise,
                return_log_prob, return_solution, on_failure.

        Returns:
            (n, *data_shape) in data units; with return_log_prob or return_solution a tuple.
        """
        from .sampling import sample

        return sample(self, n, solver, **options)

    def log_prob(self, x: Tensor, *, gradient: str | None = None, **options: Any) -> Tensor:
        """Log-density in nats, (n,).

        Args:
            x: Data in data units, (n, *data_shape).
            gradient: None for a value without a graph; "adjoint" or "checkpoint" for one that autograd
                differentiates with respect to x, to the parameters and to `cond`
                (:func:`sdediff.likelihood.differentiable_log_prob`).
            **options: As for :meth:`log_likelihood`.
        """
        if gradient is None:
            return self.log_likelihood(x, **options).log_prob
        from .likelihood import differentiable_log_prob

        return differentiable_log_prob(self, x, gradient, **options)

    def distribution(self, cond: Condition = None, **options: Any) -> ModelDistribution:
        """This model as a ``torch.distributions.Distribution`` (:class:`sdediff.ModelDistribution`).

        Args:
            cond: One condition for all.
            **options: seed, gradient, parameters, and those of :meth:`log_likelihood`.
        """
        from .distribution import ModelDistribution

        return ModelDistribution(self, cond, **options)

    def log_likelihood(
        self, x: Tensor, solver: Any = "dopri5", *, coupled: bool = False, **options: Any
    ) -> LogLikelihood:
        """Log-density with its errors; see :func:`sdediff.likelihood.log_likelihood` for all options.

        Args:
            x: Data in data units, (n, *data_shape).
            solver: A solver of ODEs or its name.
            coupled: Carry the trace in the solver's state, as is usual elsewhere: for comparison; options are
                those of :func:`sdediff.likelihood.coupled_log_likelihood`.
            **options: steps, grid, rtol, atol, divergence, cond, seed, indices, t_span, prior, batch_size,
                nodes, on_failure.
        """
        from .likelihood import coupled_log_likelihood, log_likelihood

        return (coupled_log_likelihood if coupled else log_likelihood)(self, x, solver, **options)

    def discrete_log_likelihood(
        self, x: Tensor, quantisation: Quantisation, solver: Any = "dopri5", **options: Any
    ) -> LogLikelihood:
        """Lower bound of the log-probability of discrete data, with its errors.

        See :func:`sdediff.likelihood.discrete_log_likelihood` for all options.

        Args:
            x: Data on the levels, (n, *data_shape), in data units.
            quantisation: Which levels there are.
            solver: A solver of ODEs or its name.
            **options: dequantisation, draws, importance_weighted, and those of :meth:`log_likelihood`.
        """
        from .likelihood import discrete_log_likelihood

        return discrete_log_likelihood(self, x, quantisation, solver, **options)

    def elbo(self, x: Tensor, **options: Any) -> LogLikelihood:
        """Lower bound of the reverse SDE's log-density; see :func:`sdediff.likelihood.elbo` for all options.

        Args:
            x: Data in data units, (n, *data_shape).
            **options: draws, cond, seed, indices, t_span, prior, batch_size.
        """
        from .likelihood import elbo

        return elbo(self, x, **options)

    def i_mmse(self, x: Tensor, **options: Any) -> LogLikelihood:
        """Log-density of clean data from the denoiser's errors; see :func:`sdediff.likelihood.i_mmse`.

        Args:
            x: Data in data units, (n, *data_shape).
            **options: As for :meth:`elbo`.
        """
        from .likelihood import i_mmse

        return i_mmse(self, x, **options)

    def sample_with_ito_density(self, n: int, solver: Any = "euler-maruyama", **options: Any) -> SampleResult:
        """Samples of the reverse SDE with a log-density along each.

        See :func:`sdediff.likelihood.sample_with_ito_density` for all options.

        Args:
            n: Number of samples.
            solver: A stochastic solver on a fixed grid, or its name.
            **options: steps, grid, cond, seed, indices, t_span, prior, batch_size, on_failure, dtype.
        """
        from .likelihood import sample_with_ito_density

        return sample_with_ito_density(self, n, solver, **options)

    def likelihood_report(self, x: Tensor, solver: Any = "dopri5", **options: Any) -> LikelihoodReport:
        """ODE value, ELBO and I-MMSE side by side, and their gaps explained.

        See :func:`sdediff.likelihood.likelihood_report` for all options.

        Args:
            x: Data in data units, (n, *data_shape).
            solver: A solver of ODEs or its name.
            **options: draws, and those of :meth:`log_likelihood`.
        """
        from .likelihood import likelihood_report

        return likelihood_report(self, x, solver, **options)

    def encode(self, x: Tensor, solver: Any = "dopri5", **options: Any) -> Tensor:
        """Data to latents at t_max along the probability flow; see :func:`sdediff.sampling.encode`."""
        from .sampling import encode

        return encode(self, x, solver, **options)

    def decode(self, z: Tensor, solver: Any = "dopri5", **options: Any) -> Tensor:
        """Latents at t_max to data, the inverse of :meth:`encode`; see :func:`sdediff.sampling.decode`."""
        from .sampling import decode

        return decode(self, z, solver, **options)

    def interpolate(self, x_a: Tensor, x_b: Tensor, n: int = 9, **options: Any) -> Tensor:
        """Data between two data through their latents; see :func:`sdediff.interpolate`."""
        from .interpolation import interpolate

        return interpolate(self, x_a, x_b, n, **options)

    def classify(self, x: Tensor, conds: Any = None, **options: Any) -> Classification:
        """Classify by log p(x | c), with posterior and log-odds; see :func:`sdediff.classify`."""
        from .classification import classify

        return classify(self, x, conds, **options)

    def anomaly_score(self, x: Tensor, reference: Any = None, **options: Any) -> AnomalyScores:
        """How anomalous data are under this model; see :func:`sdediff.anomaly_score`."""
        from .anomaly import anomaly_score

        return anomaly_score(self, x, reference, **options)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model to one safetensors file, whole or not at all; read it with :func:`sdediff.load`."""
        from .serialization import save

        save(self, path)

    @property
    def config(self) -> dict[str, Any]:
        """A JSON description from which :func:`sdediff.load` rebuilds the model."""
        return {
            "network": {"name": type(self.network).__name__, "args": getattr(self.network, "config", None)},
            "process": {"name": type(self.process).__name__, "args": self.process.config},
            "prediction": self.prediction,
            "data_shape": list(self.data_shape),
            "prior": self.prior,
            "scale_mode": self.scale_mode,
        }

    def __repr__(self) -> str:
        count = sum(p.numel() for p in self.network.parameters())
        return (
            f"DiffusionModel({type(self.network).__name__} with {count:,} parameters, "
            f"process={self.process}, prediction={self.prediction!r}, data_shape={self.data_shape}, "
            f"prior={self.prior_at(self.process.t_max).name!r})"
        )
