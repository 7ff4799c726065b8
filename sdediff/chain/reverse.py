r"""The chain that runs backwards: Gaussian steps with a model's denoised mean and a variance of choice.

.. math:: p(x_{k-1} \mid x_k) = N\big(c_t x_k + c_0 D(x_k),\ \Sigma_k\big)

The mean is that of :math:`q(x_{k-1} | x_k, x_0)` with the denoiser's output in the place of the data (Ho,
Jain & Abbeel 2020, arXiv 2006.11239, Eqs. 7 and 11); at k = 1 it is the denoiser's output itself.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from solvers import Noise
from solvers.problems import Problem, SemiLinear, expand
from solvers.solver import Orders, Step, StepSolver

if TYPE_CHECKING:
    from ..model import Condition, DiffusionModel
    from .bound import ChainBound
    from .discrete import Chain

_log = logging.getLogger("sdediff")


class ReverseChain:
    """p(x_{k-1} | x_k) for k = T .. 1 of a chain and a model; :meth:`Chain.reverse` makes it.

    States are in the model's units and the chain's process. A model of another process is called at its own
    times of the same log-SNR.

    Attributes:
        chain: The chain.
        model: The model.
        kind: "posterior", "forward", "learned" or "given".
        times: Times of the model's process, (T,) float64.
        table: Variances, (T,) or (T, *data_shape) float64; of learned ones the geometric mean of their
            extremes.
    """

    def __init__(self, chain: Chain, model: DiffusionModel, variance: str | Tensor) -> None:
        self.chain, self.model = chain, model
        self.times = _matched(chain, model)
        #: Units of the model's process over the chain's, at k = 1 .. T.
        self.ratio = model.process.alpha(self.times) / chain.alpha[1:]
        self.kind = variance if isinstance(variance, str) else "given"
        self.lower, self.upper = (chain.variances(kind) for kind in ("posterior", "forward"))
        if not isinstance(variance, str):
            self.table = _given(chain, model, variance)
        elif variance == "learned":
            _check_network(model)
            self.table = (self.lower * self.upper).sqrt()
        elif variance in ("posterior", "forward"):
            self.table = chain.variances(variance)
        else:
            raise ValueError(
                f'there is no variance {variance!r}: give "posterior", "forward", "learned", or a tensor of '
                f"{chain.steps} variances"
            )

    def denoise(self, x: Tensor, k: Tensor, cond: Condition = None) -> Tensor:
        """E[x_0 | x_k = x] by the model, like x; k (B,), 1 .. T."""
        return (
            self.model.problem(0.0, cond)
            .denoise(self.times[k.cpu() - 1].to(x.device), self._state(x, k))
            .to(x)
        )

    def variance(self, x: Tensor, k: Tensor, cond: Condition = None) -> Tensor:
        """Variances of x_{k-1} given x_k = x, (B, 1, ...) or like x; of x's dtype."""
        if self.kind != "learned":
            return _at(self.table, k, x)
        c = self.model.coefficients(self.times[k.cpu() - 1].to(x.device))
        z = self._state(x, k)
        v = self.model.network.variance(z * expand(c.c_in.to(z), z), c.c_noise.to(z), cond)  # type: ignore[operator]
        if v.shape != x.shape:
            raise ValueError(
                f"the network's variance has shape {tuple(v.shape)} for a state of shape {tuple(x.shape)}: "
                "return one number an entry"
            )
        low, high = (_at(table.log(), k, x) for table in (self.lower, self.upper))
        return torch.exp(low + 0.5 * (1 + v.to(x)) * (high - low))

    def step(self, x: Tensor, k: Tensor, cond: Condition = None) -> tuple[Tensor, Tensor]:
        """Mean and variance of x_{k-1} given x_k = x (B, *data_shape), for k (B,), 1 .. T.

        Example:
            >>> import sdediff
            >>> from sdediff.chain import Chain
            >>> model = sdediff.reference.eight_gaussians().model(sdediff.VP())
            >>> reverse = Chain.of(model.process, 10).reverse(model)
            >>> mean, variance = reverse.step(torch.zeros(3, 2), torch.tensor([1, 5, 10]))
            >>> mean.shape, variance.shape
            (torch.Size([3, 2]), torch.Size([3, 1]))
        """
        posterior = self.chain.posterior(k.cpu())
        c_t, c_0 = (expand(c.to(x), x) for c in (posterior.c_t, posterior.c_0))
        return c_t * x + c_0 * self.denoise(x, k, cond), self.variance(x, k, cond)

    def sample(self, n: int, *, seed: int = 0, **options: Any) -> Tensor:
        r"""Ancestral sampling (Ho et al. 2020, arXiv 2006.11239, algorithm 2).

        Starts from the model's prior; each step draws from p(x_{k-1} | x_k), the last one returns its mean.
        With the posterior's variance it is the stochastic exponential step (:class:`solvers.Ancestral`) on
        the chain's times.

        Args:
            n: Number of samples.
            seed: Sample i's noise is a function of (seed, i).
            **options: cond, indices, prior, batch_size, dtype ... of :func:`sdediff.sampling.sample`.

        Returns:
            Samples in data units, (n, \*data_shape).

        Example:
            >>> import sdediff
            >>> from sdediff.chain import Chain
            >>> model = sdediff.reference.eight_gaussians().model(sdediff.VP())
            >>> Chain.of(model.process, 20).reverse(model, "forward").sample(4).shape
            torch.Size([4, 2])
        """
        from ..sampling import sample

        grid = self.times.flip(0)
        return sample(
            self.model, n, AncestralStep(self), grid=grid, seed=seed, **({"denoise": True} | options)
        )

    def bound(self, x: Tensor, **options: Any) -> ChainBound:
        """Lower bound of the log-density of data, or of the log-probability of levels.

        See :func:`sdediff.chain.bound.bound`.

        Args:
            x: Data in data units, (n, *data_shape).
            **options: quantisation, terms, draws, cond, seed, indices, prior, batch_size.
        """
        from .bound import bound

        return bound(self.model, self, x, **options)

    def fit_variances(self, x: Tensor, **options: Any) -> Tensor:
        """The variances that make the bound of data largest; see :func:`sdediff.chain.bound.fit_variances`.

        Args:
            x: Data in data units, (n, *data_shape).
            **options: per_entry, draws, cond, seed, batch_size.

        Returns:
            Variances for :meth:`Chain.reverse`, (T,) or (T, *data_shape), float64.
        """
        from .bound import fit_variances

        return fit_variances(self.model, self, x, **options)

    def __repr__(self) -> str:
        return f"ReverseChain({self.chain}, variance={self.kind!r})"

    def _state(self, x: Tensor, k: Tensor) -> Tensor:
        """A state of the chain as one of the model's process, of the network's dtype."""
        z = x * _at(self.ratio, k, x)
        return z if self.model.state_type is None else z.to(self.model.state_type[0])


class AncestralStep(StepSolver):
    """One step of a reverse chain, as a solver on the chain's times.

    Args:
        reverse: The reverse chain.
    """

    orders = Orders(strong=1, weak=1)
    stochastic = True
    needs_linear_part = True
    default_eta = 1.0

    def __init__(self, reverse: ReverseChain) -> None:
        self.reverse = reverse
        chain, ratio = reverse.chain, reverse.ratio
        posterior = chain.posterior(torch.arange(2, chain.steps + 1))
        columns = (posterior.c_t * ratio[:-1] / ratio[1:], posterior.c_0 * ratio[:-1])
        times = reverse.times.tolist()
        self._rows = dict(zip(times[1:], zip(*(c.tolist() for c in columns), strict=True), strict=True))
        self._index = {t: k for k, t in enumerate(times, start=1)}

    def step(self, problem: Problem, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        assert isinstance(problem, SemiLinear)
        (c_t, c_0), reverse = self._rows[t], self.reverse
        k = torch.full((len(x),), self._index[t], device=x.device)
        before, now = (reverse.ratio[i - 1].item() for i in (self._index[t_next], self._index[t]))
        cond = problem.per_sample[0] if problem.per_sample else None
        std = before * reverse.variance(x / now, k, cond).sqrt()
        return Step(torch.addcmul(problem.blend(t, x, c_t, c_0), std, noise.normal()))


def _at(table: Tensor, k: Tensor, x: Tensor) -> Tensor:
    """Entries k, 1 .. T, of a table (T, ...), to multiply x (B, *E)."""
    return expand(table[k.cpu() - 1].to(x), x)


#: How far in log(alpha/sigma) a chain may leave its process's interval without a word.
_SLACK = 1.0


def _matched(chain: Chain, model: DiffusionModel) -> Tensor:
    """Times of the model's process with the chain's log-SNR."""
    lam = chain.lam[1:]
    times = model.process.time(lam)
    if not torch.allclose(model.process.lam(times), lam, rtol=1e-6, atol=1e-6):
        raise ValueError(
            f"{model.process} does not reach the chain's noise levels, log(alpha/sigma) from "
            f"{float(lam[0]):g} to {float(lam[-1]):g}: widen its interval, or take fewer betas"
        )
    high, low = model.process.lam(torch.tensor([model.process.t_min, model.process.t_max]).double())
    if lam[0] > high + _SLACK or lam[-1] < low - _SLACK:
        _log.warning(
            "the chain's log(alpha/sigma) runs from %.3g to %.3g and the process's from %.3g to %.3g: "
            "a network that was not trained on the chain itself is asked for noise levels it has not seen",
            *(lam[0], lam[-1], high, low),
        )
    return times


def _given(chain: Chain, model: DiffusionModel, variance: Tensor) -> Tensor:
    """A table of variances of the caller's."""
    table = torch.as_tensor(variance).detach().double().cpu()
    fits = table.shape in ((chain.steps,), (chain.steps, *model.data_shape))
    if not fits or not bool((torch.isfinite(table) & (table > 0)).all()):
        entries = ", ".join(map(str, model.data_shape))
        raise ValueError(
            f"variance has shape {tuple(table.shape)} or is not positive throughout: give positive numbers "
            f"for k = 1 .. {chain.steps}, ({chain.steps},) or ({chain.steps}, {entries})"
        )
    return table


def _check_network(model: DiffusionModel) -> None:
    if not callable(getattr(model.network, "variance", None)):
        raise TypeError(
            f"a {type(model.network).__name__} network says no variances: wrap it, "
            "sdediff.networks.WithVariance(network, head), and train it with sdediff.chain.hybrid_loss(chain)"
        )
