"""The discrete chain against DDPM's formulas, its posterior against Bayes, its sampler against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sdediff
from sdediff.chain import Chain, cosine_betas, linear_betas, sigmoid_betas
from sdediff.reference import random_mixture
from solvers.noise import Stream, normal

F64 = torch.float64
PROCESSES = [
    sdediff.VP(),
    sdediff.SubVP(),
    sdediff.VE(),
    sdediff.Cosine(),
    sdediff.EDM(),
    sdediff.RectifiedFlow(),
]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def ddpm(steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """beta, alpha-bar and alpha-bar one step earlier, as Ho et al. write them; index 0 is their t = 1."""
    betas = linear_betas(steps)
    bar = torch.cumprod(1 - betas, 0)
    return betas, bar, torch.cat([torch.ones(1, dtype=F64), bar[:-1]])


def chain_of(process: sdediff.GaussianProcess, steps: int = 12) -> Chain:
    return Chain(process, process.default_grid(steps - 1).flip(0))


# -- laws ----------------------------------------------------------------------------------------------------


def test_linear_betas_are_those_of_ddpm():
    betas = linear_betas(1000)
    assert torch.allclose(betas, torch.linspace(1e-4, 0.02, 1000, dtype=F64), rtol=1e-14, atol=0)


@pytest.mark.parametrize("steps", [30, 1000])
def test_betas_give_the_laws_of_ddpm(steps):
    betas, bar, before = ddpm(steps)
    chain, k = Chain.from_betas(betas), torch.arange(1, steps + 1)
    assert chain.steps == steps
    assert torch.allclose(chain.betas, betas, rtol=1e-9, atol=0)
    scale, std = chain.transition(k)  # Ho et al., Eq. 2
    assert torch.allclose(scale, (1 - betas).sqrt(), rtol=1e-12, atol=0)
    assert torch.allclose(std, betas.sqrt(), rtol=1e-9, atol=0)
    x0 = torch.ones(steps, 1, dtype=F64)
    mean, std = chain.marginal(x0, k)  # Eq. 4
    assert torch.allclose(mean[:, 0], bar.sqrt(), rtol=1e-12, atol=0)
    assert torch.allclose(std[:, 0], (1 - bar).sqrt(), rtol=1e-12, atol=0)
    posterior = chain.posterior(k)  # Eqs. 6-7
    assert torch.allclose(posterior.c_0, before.sqrt() * betas / (1 - bar), rtol=1e-9, atol=0)
    assert torch.allclose(posterior.c_t, (1 - betas).sqrt() * (1 - before) / (1 - bar), rtol=1e-9, atol=0)
    assert torch.allclose(posterior.std, ((1 - before) / (1 - bar) * betas).sqrt(), rtol=1e-9, atol=0)


def test_betas_meet_the_continuous_time_of_vp():
    betas = linear_betas(1000)
    chain = Chain.from_betas(betas)
    bar = torch.cumprod(1 - betas, 0)
    assert torch.allclose(sdediff.VP().alpha(chain.times) ** 2, bar, rtol=1e-11, atol=0)
    # Song et al. 2021, appendix B: beta(k/T)/T -> beta_k, so k/T is the time up to O(1/T).
    assert float((chain.times - torch.arange(1, 1001, dtype=F64) / 1000).abs().max()) < 5e-3


@every_process
def test_marginal_is_the_composition_of_steps(process):
    chain = chain_of(process)
    scale, variance = torch.ones((), dtype=F64), torch.zeros((), dtype=F64)
    for k in range(1, chain.steps + 1):
        a, b = chain.transition(k)
        scale, variance = a * scale, a**2 * variance + b**2
        mean, std = chain.marginal(torch.ones(1, 1, dtype=F64), k)
        assert float(scale) == pytest.approx(float(mean), rel=1e-12)
        assert float(variance.sqrt()) == pytest.approx(float(std), rel=1e-12)


@every_process
def test_steps_are_the_transitions_of_the_process(process):
    chain = chain_of(process)
    for ours, theirs in zip(
        chain.transition(torch.arange(2, chain.steps + 1)),
        process.transition(chain.times[:-1], chain.times[1:]),
        strict=True,
    ):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=0)


@every_process
def test_posterior_is_bayes_rule(process):
    """q(x_{k-1}|x_k, x_0) from the joint Gaussian of (x_{k-1}, x_k) given x_0, in plain arithmetic."""
    chain = chain_of(process)
    for k in range(2, chain.steps + 1):
        a, b = (float(c) for c in chain.transition(k))
        alpha, s2 = float(chain.alpha[k - 1]), float(chain.sigma[k - 1]) ** 2
        precision = 1 / s2 + a**2 / b**2
        posterior = chain.posterior(k)
        assert float(posterior.std) == pytest.approx(precision**-0.5, rel=1e-9)
        assert float(posterior.c_t) == pytest.approx(a / b**2 / precision, rel=1e-9)
        assert float(posterior.c_0) == pytest.approx(alpha / s2 / precision, rel=1e-9)
    assert [float(c) for c in chain.posterior(1)] == [0, 1, 0]  # the data themselves


def test_draws_have_the_marginal_and_depend_on_seed_and_row_alone():
    chain = Chain.from_betas(linear_betas(100))
    x0 = torch.full((5, 3), 2.0, dtype=F64)
    x_t, eps = chain.perturb(x0, 40, seed=3)
    assert torch.allclose(x_t, chain.alpha[40] * x0 + chain.sigma[40] * eps, rtol=1e-14)
    assert torch.equal(chain.perturb(x0[:2], 40, seed=3)[0], x_t[:2])
    mixed = chain.perturb(x0, torch.tensor([0, 1, 40, 99, 100]), seed=3)[0]
    assert torch.equal(mixed[2], x_t[2]) and torch.equal(mixed[0], x0[0])
    assert chain.perturb(x0.float(), 40, seed=3)[0].dtype == torch.float32


# -- ancestral sampling --------------------------------------------------------------------------------------


def ancestral_by_hand(model, steps: int, n: int, seed: int) -> Tensor:
    """Ho et al. 2020, algorithm 2, with sigma_t^2 = beta-tilde_t and the noise prediction of Eq. 11."""
    betas, bar, before = (c.tolist() for c in ddpm(steps))
    times = Chain.from_betas(linear_betas(steps)).times.tolist()
    rows, dim = torch.arange(n), model.dim
    x = model.prior_at(times[-1]).transform(normal(seed, rows, Stream.PRIOR, 0, (dim,), F64))
    for i in range(steps - 1, -1, -1):
        eps = model.eps(x, times[i]) if times[i] <= model.process.t_max else _beyond(model, x, times[i])
        mean = (x - betas[i] / math.sqrt(1 - bar[i]) * eps) / math.sqrt(1 - betas[i])
        if i > 0:
            std = math.sqrt((1 - before[i]) / (1 - bar[i]) * betas[i])
            mean = mean + std * normal(seed, rows, Stream.STEP, steps - 1 - i, (dim,), F64)
        x = mean
    return x


def _beyond(model, x: Tensor, t: float) -> Tensor:
    problem = model.problem()
    alpha, sigma = (float(f(t)) for f in (model.process.alpha, model.process.sigma))
    return (x - alpha * problem.denoise(t, x)) / sigma


@pytest.mark.parametrize("steps", [25, 1000])
def test_sampling_is_algorithm_2_of_ddpm(steps):
    model = random_mixture(3, 4, seed=0, dtype=F64).model(sdediff.VP())
    chain = Chain.from_betas(linear_betas(steps))
    x = chain.sample(model, 6, seed=2, dtype=F64)
    by_hand = ancestral_by_hand(model, steps, 6, seed=2)
    assert float((x - by_hand).abs().max()) < 1e-10 * float(by_hand.abs().max())


@every_process
def test_sampling_is_the_exponential_step_at_eta_1(process):
    """The posterior's three numbers, stepped by hand, against DDIM with eta = 1 and against the chain."""
    data = random_mixture(2, 3, seed=1, dtype=F64)
    model, chain = data.model(process), chain_of(process, 30)
    rows = torch.arange(5)
    x = model.prior_at(process.t_max).transform(normal(7, rows, Stream.PRIOR, 0, (2,), F64))
    for step, k in enumerate(range(chain.steps, 0, -1)):
        c_t, c_0, std = (float(c) for c in chain.posterior(k))
        x = c_t * x + c_0 * data.denoise(process, x, float(chain.times[k - 1]))
        if std > 0:
            x = x + std * normal(7, rows, Stream.STEP, step, (2,), F64)
    grid = chain.times.flip(0)
    ddim = model.sample(5, solver="ddim", eta=1.0, grid=grid, denoise=True, seed=7, dtype=F64)
    scale = float(x.abs().max())
    assert float((ddim - x).abs().max()) < 1e-10 * scale
    assert float((chain.sample(model, 5, seed=7, dtype=F64) - x).abs().max()) < 1e-10 * scale


def test_a_model_of_another_process_gives_the_same_samples():
    """In x/alpha and log-SNR all processes are one, so a chain of betas can drive a model of any of them."""
    data = random_mixture(2, 3, seed=1, dtype=F64)
    chain = Chain.from_betas(linear_betas(40))
    vp = chain.sample(data.model(sdediff.VP()), 4, seed=5, dtype=F64)
    for process in (
        sdediff.VE(sigma_max=300.0),
        sdediff.EDM(t_max=300.0),
        sdediff.RectifiedFlow(),
        sdediff.Cosine(),
    ):
        x = chain.sample(data.model(process), 4, seed=5, dtype=F64)
        assert float((x - vp).abs().max()) < 1e-8 * float(vp.abs().max())


def test_samples_have_the_moments_of_the_data():
    """DDPM at T = 1000: mean and variance of 4000 samples; |z| < 5 for 4 numbers, a false alarm in 4e5."""
    data = random_mixture(2, 3, seed=1, dtype=F64)
    x = Chain.from_betas(linear_betas(1000)).sample(data.model(sdediff.VP()), 4000, seed=0, dtype=F64)
    z = (x.mean(0) - data.mean) / (data.cov.diagonal() / 4000).sqrt()
    squares = (x - data.mean) ** 2
    z2 = (squares.mean(0) - data.cov.diagonal()) / (squares.std(0) / 4000**0.5)
    assert float(torch.cat([z, z2]).abs().max()) < 5


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [0, 11, -1, 1.0, True, torch.tensor([1, 11])])
def test_indices_run_from_1_to_T(k):
    chain = Chain.from_betas(linear_betas(100)[:10])
    with pytest.raises(ValueError, match=r"no index of the chain: give whole numbers from 1 to 10"):
        chain.posterior(k)
    with pytest.raises(ValueError, match=r"from 1 to 10"):
        chain.transition(k)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Chain(sdediff.VP(), torch.tensor([0.5])), "at least two, strictly rising"),
        (lambda: Chain(sdediff.VP(), torch.tensor([0.5, 0.4])), "strictly rising"),
        (lambda: Chain(sdediff.VP(), torch.tensor([0.5, math.nan])), "strictly rising"),
        (lambda: Chain(sdediff.VP(), torch.tensor([0.5, 1.5])), r"inside \[1e-05, 1\]"),
        (lambda: Chain.from_betas(torch.tensor([0.5, 1.5])), "each between 0 and 1"),
        (lambda: Chain.from_betas(torch.tensor([0.5, 1.0])), r"a beta is 1.*zero terminal SNR.*leave that"),
        (lambda: Chain.from_alpha_bars(torch.tensor([0.5, 0.0])), "an alpha-bar is 0.*leave that step out"),
        (lambda: Chain.from_alpha_bars(torch.tensor([0.5, 0.6])), "falling strictly, each between 0 and 1"),
        (lambda: Chain.of(sdediff.VP(), 1), "whole number of at least 2"),
        (lambda: Chain.of(sdediff.VP(), 9, "cubic"), "grid='cubic' is not known: give one of"),
        (lambda: cosine_betas(10, offset=0.0), "offset=0.0: give a positive number"),
        (lambda: cosine_betas(10, max_beta=1.0), "largest beta between 0 and 1"),
        (lambda: sigmoid_betas(1), "whole number of steps of at least 2"),
        (lambda: sigmoid_betas(10, 1.0, -1.0), "start < end"),
        (lambda: Chain.from_betas(torch.tensor([0.5, math.nan])), "each between 0 and 1"),
        (lambda: Chain.from_betas(torch.tensor([0.5])), "at least two"),
        (lambda: linear_betas(10), "0 < beta_min <= beta_max < steps"),
        (lambda: linear_betas(1), "at least two steps"),
    ],
)
def test_what_is_no_chain_is_refused_in_one_sentence(make, said):
    with pytest.raises(ValueError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_process_that_does_not_reach_the_noise_is_named():
    process = sdediff.GaussianProcess(lambda t: 1 - t, lambda t: t, t_min=1e-3, t_max=0.9)
    model = random_mixture(2, 3, seed=1).model(process)
    with pytest.raises(ValueError, match="does not reach the chain's noise levels"):
        Chain.from_betas(linear_betas(1000)).sample(model, 2)
