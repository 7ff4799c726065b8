"""The model: what predictions mean, units, priors, and what the network is shown."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import sdediff
from sdediff import DiffusionModel, from_callable
from sdediff.predictions import PREDICTIONS
from sdediff.prior import Moments
from sdediff.reference import GaussianMixture, random_mixture

F64 = torch.float64
PROCESSES = [
    sdediff.VP(),
    sdediff.SubVP(),
    sdediff.VE(),
    sdediff.Cosine(),
    sdediff.EDM(),
    sdediff.RectifiedFlow(),
    sdediff.GaussianProcess(lambda t: 1 - t**2, lambda t: t, t_min=1e-3, t_max=0.99),
]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
every_prediction = pytest.mark.parametrize("prediction", PREDICTIONS)

MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
COV = torch.tensor([[1.0, 0.6, 0.0], [0.6, 2.0, -0.3], [0.0, -0.3, 0.5]], dtype=F64)


def times(process: sdediff.GaussianProcess) -> list[float]:
    return [process.t_min + f * (process.t_max - process.t_min) for f in (0.0, 0.01, 0.3, 0.8, 1.0)]


def gaussian_denoiser(x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x_t = x] = m + alpha C (alpha^2 C + sigma^2 I)^-1 (x - alpha m), by a solve for each row."""
    a, s = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
    noised = a**2 * COV.to(x) + s**2 * torch.eye(3).to(x)
    residual = x - alpha.reshape(-1, 1) * MEAN.to(x)
    return MEAN.to(x) + a[..., 0] * torch.linalg.solve(noised, residual) @ COV.to(x)


def gaussian_score(x: Tensor, alpha: float, sigma: float) -> Tensor:
    return -torch.linalg.solve(alpha**2 * COV + sigma**2 * torch.eye(3, dtype=F64), (x - alpha * MEAN).T).T


def as_prediction(prediction: str, process, x: Tensor, t: Tensor, denoised: Tensor) -> Tensor:
    """What a network of this prediction returns, from the definitions (Karras et al. 2022, Eq. 8 for edm)."""
    alpha, sigma, d_alpha, d_sigma = (
        c(t).reshape(-1, 1) for c in (process.alpha, process.sigma, process.d_alpha, process.d_sigma)
    )
    eps = (x - alpha * denoised) / sigma
    return {
        "eps": lambda: eps,
        "x0": lambda: denoised,
        "score": lambda: -eps / sigma,
        "v": lambda: alpha * eps - sigma * denoised,
        "velocity": lambda: d_alpha * denoised + d_sigma * eps,
        # D = c_skip x~ + c_out F with sigma_data = 1 for x~ = x/alpha and noise sigma/alpha
        "edm": lambda: (
            (denoised - x / alpha / (1 + (sigma / alpha) ** 2))
            / ((sigma / alpha) / torch.sqrt(1 + (sigma / alpha) ** 2))
        ),
    }[prediction]()


def wrap(process, prediction: str, denoiser) -> DiffusionModel:
    def fn(x: Tensor, t: Tensor) -> Tensor:
        t = t.to(F64)
        return as_prediction(prediction, process, x, t, denoiser(x, process.alpha(t), process.sigma(t)))

    return from_callable(fn, process, prediction, data_shape=(3,))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


# -- predictions and views -----------------------------------------------------------------------------------


@every_process
@every_prediction
def test_every_prediction_of_a_gaussian_is_the_same_score(process, prediction):
    model = wrap(process, prediction, gaussian_denoiser)
    for t in times(process):
        x = process.perturb(
            MEAN + torch.randn(6, 3, dtype=F64, generator=torch.Generator().manual_seed(0)), t, 0
        )[0]
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        assert relative(model.score(x, t), gaussian_score(x, alpha, sigma)) < 1e-6


@every_process
@every_prediction
def test_every_prediction_of_a_mixture_is_the_same_score(process, prediction):
    data = random_mixture(3, 4, seed=0, dtype=F64)
    model = wrap(process, prediction, lambda x, a, s: data._posterior(x, a[:, None], s[:, None])[1])
    for t in times(process):
        x = process.perturb(data.sample(6, seed=1), t, 0)[0].requires_grad_()
        (score,) = torch.autograd.grad(data.log_prob(process, x, t).sum(), x)
        assert relative(model.score(x.detach(), t), score) < 1e-6


class UnitGaussian(nn.Module):
    """The network of Gaussian data of variance v (model units), from unit-scale input and c_noise alone."""

    def __init__(self, process, prediction: str, variance: float) -> None:
        super().__init__()
        self.process, self.prediction, self.variance = process, prediction, variance
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.seen.append((x, t))
        time = self.process.time(-4 * t.to(F64))
        alpha, sigma = (
            c(time).reshape(-1, *(1,) * (x.ndim - 1)) for c in (self.process.alpha, self.process.sigma)
        )
        z = x * torch.hypot(alpha, sigma)
        denoised = alpha * self.variance / (alpha**2 * self.variance + sigma**2) * z
        return as_prediction(self.prediction, self.process, z.flatten(1), time, denoised.flatten(1)).reshape(
            x.shape
        )


@every_process
@every_prediction
def test_views_are_in_data_units_and_agree(process, prediction):
    """x_t = m + S (alpha z + sigma eps) with a scale per column: every view against its closed form."""
    shift, scale = torch.tensor([5.0, -1.0, 0.0], dtype=F64), torch.tensor([10.0, 0.1, 1.0], dtype=F64)
    model = DiffusionModel(UnitGaussian(process, prediction, 0.8), process, prediction, (3,))
    model.shift, model.scale = shift, scale
    for t in times(process):
        alpha, sigma, d_alpha, d_sigma = (
            float(c(t)) for c in (process.alpha, process.sigma, process.d_alpha, process.d_sigma)
        )
        x = shift + scale * math.hypot(alpha, sigma) * torch.randn(
            5, 3, dtype=F64, generator=torch.Generator().manual_seed(1)
        )
        variance = alpha**2 * 0.8 + sigma**2
        score = -(x - shift) / (scale**2 * variance)
        denoised = shift + alpha * 0.8 / variance * (x - shift)
        eps = -sigma * scale * score
        assert relative(model.score(x, t), score) < 1e-7
        assert relative(model.denoise(x, t), denoised) < 1e-7
        assert relative(model.eps(x, t), eps) < 1e-7
        velocity = d_alpha * (denoised - shift) + d_sigma * scale * eps
        # For VP at unit variance the two terms cancel, so the error is measured against them.
        size = float((d_alpha * (denoised - shift)).abs().max() + (d_sigma * scale * eps).abs().max())
        assert float((model.velocity(x, t) - velocity).abs().max()) < 1e-7 * size


@every_process
@every_prediction
def test_target_and_coefficients_invert_each_other(process, prediction):
    """D = c_skip z_t + c_out F with F the target gives back z_0."""
    model = DiffusionModel(nn.Identity(), process, prediction, (3,))
    z, eps = (torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    t = torch.tensor(times(process), dtype=F64)
    c = model.coefficients(t)
    z_t = process.alpha(t)[:, None] * z + process.sigma(t)[:, None] * eps
    denoised = c.c_skip[:, None] * z_t + c.c_out[:, None] * model.target(z, eps, t)
    assert relative(denoised, z) < 1e-7
    for i, s in enumerate(t.tolist()):
        assert torch.allclose(model.target(z, eps, s)[i], model.target(z, eps, t)[i], rtol=1e-12)


def test_edm_is_the_preconditioning_of_karras():
    """Table 1 of Karras et al. 2022 with sigma_data = 1."""
    model = DiffusionModel(nn.Identity(), sdediff.EDM(), "edm", (3,))
    sigma = torch.tensor([0.002, 0.1, 1.0, 80.0], dtype=F64)
    c = model.coefficients(sigma)
    assert torch.allclose(c.c_skip, 1 / (1 + sigma**2), rtol=1e-12)
    assert torch.allclose(c.c_out, sigma / (1 + sigma**2).sqrt(), rtol=1e-12)
    assert torch.allclose(c.c_in, 1 / (1 + sigma**2).sqrt(), rtol=1e-12)
    assert torch.allclose(c.c_noise, sigma.log() / 4, rtol=1e-12, atol=1e-15)


@every_process
def test_the_network_sees_unit_scale_and_the_noise_level(process):
    net = UnitGaussian(process, "eps", 1.0)
    model = DiffusionModel(net, process, "eps", (3,))
    model.shift, model.scale = torch.tensor(2.0, dtype=F64), torch.tensor(3.0, dtype=F64)
    t = torch.tensor(times(process), dtype=F64)
    z0, eps = (torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    z_t = process.alpha(t)[:, None] * z0 + process.sigma(t)[:, None] * eps
    model.score(2 + 3 * z_t, t)
    model(z_t, t)
    model.problem().denoise(t, z_t)
    model.problem().denoise(float(t[2]), z_t)
    norm = torch.hypot(process.alpha(t), process.sigma(t))
    for x, noise in net.seen[:3]:
        assert torch.allclose(x, z_t / norm[:, None], rtol=1e-9, atol=1e-12)
        assert noise.shape == (5,) and torch.allclose(noise, -process.lam(t) / 4, rtol=1e-9, atol=1e-12)
    x, noise = net.seen[3]
    assert torch.allclose(x, z_t / norm[2], rtol=1e-9) and noise.shape == (5,)
    assert torch.allclose(noise, (-process.lam(t[2]) / 4).expand(5), rtol=1e-9, atol=1e-12)
    model.score((2 + 3 * z_t).float(), t.float().clamp(process.t_min, process.t_max))
    assert {v.dtype for v in net.seen[-1]} == {torch.float32}


def test_a_callable_sees_x_and_t_as_they_are():
    seen = []

    def fn(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return -x

    model = from_callable(fn, sdediff.VE(), data_shape=(3,))
    x, t = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.2, 0.3, 1.0])
    model.score(x, t)
    assert torch.equal(seen[0][0], x) and torch.equal(seen[0][1], t)
    model.score(x, 0.5)
    assert seen[1][1].shape == (4,) and seen[1][1].dtype == torch.float32


@every_process
def test_the_denoiser_of_solvers_is_the_view(process):
    """The table of floats on a fixed grid, per-row times, and the public view, at one point."""
    model = random_mixture(3, 4, seed=0, dtype=F64).model(process)
    for t in times(process):
        x = process.perturb(MEAN.expand(4, 3), t, 0)[0]
        view = model.denoise(x, t)
        problem = model.problem()
        assert torch.allclose(problem.denoise(t, x), view, rtol=1e-9, atol=1e-9)
        assert torch.allclose(problem.denoise(torch.full((4,), t, dtype=F64), x), view, rtol=1e-9, atol=1e-9)


def test_times_may_be_numbers_or_one_a_row():
    model = random_mixture(3, 4, seed=0, dtype=F64).model(sdediff.VP())
    x = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    rows = model.score(x, torch.tensor([0.1, 0.4, 0.4, 1.0], dtype=F64))
    assert torch.allclose(model.score(x, 0.4)[1:3], rows[1:3], rtol=1e-12)
    assert torch.allclose(model.score(x, torch.tensor(0.4, dtype=F64))[1:3], rows[1:3], rtol=1e-12)
    assert model.score(x[:0], 0.4).shape == (0, 3)
    model.score(x.float(), torch.tensor(1e-5))  # t_min rounded to float32 lies below it
    for bad in (0.0, 1.01, -0.5, math.nan, torch.tensor([0.1, 0.2, 0.3, 2.0])):
        with pytest.raises(ValueError, match=r"t lies outside \[1e-05, 1\].*give times inside"):
            model.score(x, bad)
    with pytest.raises(ValueError, match=r"t has shape \(3,\): give a number or a tensor of shape \(4,\)"):
        model.score(x, torch.full((3,), 0.5))


def test_gradients_flow_to_the_input_and_the_parameters():
    torch.manual_seed(0)
    net = sdediff.networks.MLP(dim=2, hidden=8).double()
    nn.init.normal_(net.output.weight)
    model = DiffusionModel(net, sdediff.VP(), "eps", (2,))
    x = torch.randn(3, 2, dtype=F64, requires_grad=True)
    model.score(x, 0.5).square().sum().backward()
    assert bool(x.grad.abs().min() > 0) and bool(net.output.weight.grad.abs().min() > 0)


@every_process
def test_float32_follows_float64(process):
    """At the process's own extremes, relative to the size of the view."""
    data = random_mixture(3, 4, seed=0, dtype=F64)
    model = data.model(process, "eps")
    for t in times(process):
        x = process.perturb(data.sample(8, seed=1), t, 0)[0].float()
        for view in (model.denoise, model.score, model.eps, model.velocity):
            wide = view(x.double(), t)
            # D = (x - sigma eps)/alpha loses digits as alpha -> 0, and alpha' D with it: four roundings.
            lost = {model.denoise: 1.0, model.velocity: abs(float(process.d_alpha(t)))}.get(view, 0.0)
            tolerance = max(1e-4, 4 * 1.2e-7 * lost / float(process.alpha(t)))
            assert relative(view(x, t).double(), wide) < tolerance, view


# -- units ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "data_shape", "over", "units_shape"),
    [
        ("column", (3,), (0,), (3,)),
        (None, (3,), (0,), (3,)),
        ("scalar", (3,), (0, 1), ()),
        (None, (2, 3, 4), (0, 1, 2, 3), ()),
        ("channel", (2, 3, 4), (0, 2, 3), (2, 1, 1)),
        ("column", (2, 3, 4), (0,), (2, 3, 4)),
        (None, (2, 5), (0, 1, 2), ()),
    ],
)
def test_units_are_mean_and_standard_deviation(mode, data_shape, over, units_shape):
    x = 5 + torch.arange(1, 1 + math.prod(data_shape)).reshape(data_shape) * torch.randn(
        40, *data_shape, generator=torch.Generator().manual_seed(0)
    )
    model = DiffusionModel(nn.Identity(), sdediff.VP(), "eps", data_shape, scale_mode=mode)
    model.set_units(x)
    assert model.shift.shape == model.scale.shape == units_shape and model.shift.dtype == F64
    want = x.double().std(over, correction=0, keepdim=True).squeeze(0).reshape(units_shape)
    assert torch.allclose(model.scale, want, rtol=1e-12)
    z = model.to_model(x.double())
    assert torch.allclose(z.mean(over), torch.zeros(()).to(F64), atol=1e-12)
    assert torch.allclose(model.to_data(z), x.double(), rtol=1e-12)
    assert float(model.log_scale) == pytest.approx(float(want.log().expand(data_shape).sum()), rel=1e-12)
    assert model.to_data(z.float()).dtype == torch.float32


def test_moments_are_in_model_units():
    x = torch.randn(50, 3, dtype=F64, generator=torch.Generator().manual_seed(0)) @ torch.diag(
        torch.tensor([1.0, 10.0, 0.1]).to(F64)
    )
    x[:, 1] += x[:, 0]
    model = DiffusionModel(nn.Identity(), sdediff.VP(), "eps", (3,))
    assert model.moments is None
    model.set_units(x)
    moments = model.moments
    cov = moments.basis @ torch.diag(moments.variances) @ moments.basis.T
    assert torch.allclose(moments.mean, torch.zeros(3, dtype=F64), atol=1e-12)
    assert torch.allclose(cov, torch.corrcoef(x.T), rtol=1e-9)
    assert moments.scale == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("column", [0, 2])
def test_a_constant_column_is_named(column):
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    x[:, column] = 0.1  # whose float64 mean differs from it by rounding
    model = DiffusionModel(nn.Identity(), sdediff.VP(), "eps", (3,))
    with pytest.raises(ValueError, match=rf"column {column} is constant and cannot be scaled"):
        model.set_units(x)
    with pytest.raises(ValueError, match="the data are constant"):
        DiffusionModel(nn.Identity(), sdediff.VP(), "eps", (3,), scale_mode="scalar").set_units(
            torch.ones(4, 3)
        )


def test_units_none_leaves_data_alone_and_learns_moments():
    model = DiffusionModel(nn.Identity(), sdediff.VP(), "eps", (2,), scale_mode="none")
    x = torch.randn(100, 2, dtype=F64, generator=torch.Generator().manual_seed(0)) * 3 + 1
    model.set_units(x)
    assert float(model.scale) == 1 and float(model.shift) == 0 and float(model.log_scale) == 0
    assert torch.allclose(model.moments.mean, x.mean(0), rtol=1e-12)


# -- conditions ----------------------------------------------------------------------------------------------


class Conditional(nn.Module):
    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        assert len(cond) == len(x)
        return x * 0 + cond.reshape(len(x), -1).sum(1, keepdim=True)


def test_a_condition_is_one_a_row_or_one_for_all():
    model = DiffusionModel(Conditional(), sdediff.VP(), "eps", (2,))
    x = torch.zeros(3, 2)
    rows = model.eps(x, 0.5, cond=torch.tensor([[1.0], [2.0], [3.0]]))
    assert rows.tolist() == [[1, 1], [2, 2], [3, 3]]
    assert model.eps(x, 0.5, cond=torch.tensor([[2.0]])).tolist() == [[2, 2]] * 3
    assert model.eps(x, 0.5, cond=2.0).tolist() == [[2, 2]] * 3
    assert model.eps(x, 0.5, cond=torch.tensor([1, 2, 3])).tolist() == [[1, 1], [2, 2], [3, 3]]
    with pytest.raises(ValueError, match="cond has 2 rows for 3 samples: give one a sample, or a single one"):
        model.eps(x, 0.5, cond=torch.zeros(2, 1))
    x1 = model.sample(3, solver="ddim", steps=3, cond=torch.tensor([[1.0], [2.0], [3.0]]))
    x2 = model.sample(3, solver="ddim", steps=3, cond=torch.tensor([[1.0], [2.0], [3.0]]), batch_size=1)
    assert torch.equal(x1, x2)


# -- priors --------------------------------------------------------------------------------------------------


@every_process
def test_the_matched_prior_is_the_gaussian_of_the_noised_moments(process):
    data = random_mixture(3, 4, seed=0, dtype=F64)
    model = data.model(process)
    t = process.t_max
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    want = torch.distributions.MultivariateNormal(
        alpha * data.mean, alpha**2 * data.cov + sigma**2 * torch.eye(3, dtype=F64)
    )
    prior = model.prior_at(t)
    z = want.sample((5,))
    assert prior.name == "matched"
    assert torch.allclose(prior.log_prob(z), want.log_prob(z), rtol=1e-10)
    centre = prior.transform(torch.zeros(1, 3, dtype=F64))
    factor = prior.transform(torch.eye(3, dtype=F64)) - centre
    assert torch.allclose(centre[0], want.mean, rtol=1e-12)
    assert torch.allclose(factor.T @ factor, want.covariance_matrix, rtol=1e-10, atol=1e-12)


def test_the_textbook_prior():
    for process, std in (
        (sdediff.VP(), 1.0),
        (sdediff.VE(), 50.0),
        (sdediff.EDM(), 80.0),
        (sdediff.Cosine(), 1.0),
    ):
        model = random_mixture(3, 4, seed=0, dtype=F64).model(process)
        prior = model.prior_at(process.t_max, "standard")
        z = torch.randn(4, 3, dtype=F64) * std
        assert prior.name == "standard"
        want = torch.distributions.Normal(torch.zeros((), dtype=F64), std).log_prob(z).sum(1)
        assert torch.allclose(prior.log_prob(z), want, rtol=1e-12)
        assert torch.allclose(prior.transform(z), z * std, rtol=1e-12)


def test_which_prior_is_taken():
    data = random_mixture(3, 4, seed=0, dtype=F64)
    unknown = from_callable(lambda x, t: -x, sdediff.VP(), data_shape=(3,))
    assert unknown.prior_at(1.0).name == "standard"  # no moments: the textbook one
    with pytest.raises(ValueError, match="moments of the data are unknown: fit the model, pass data_mean="):
        unknown.prior_at(1.0, "matched")
    with pytest.raises(ValueError, match="prior='normal' is not known"):
        unknown.prior_at(1.0, "normal")
    chosen = from_callable(
        lambda x, t: -x,
        sdediff.VP(),
        data_shape=(3,),
        data_mean=data.mean,
        data_cov=data.cov,
        prior="standard",
    )
    assert chosen.prior_at(1.0).name == "standard" and chosen.prior_at(1.0, "matched").name == "matched"
    assert data.model(sdediff.VP()).prior_at(1.0).name == "matched"


class Laplace:
    """A prior of one's own."""

    name = "laplace"

    def log_prob(self, z: Tensor) -> Tensor:
        return (-z.abs() - math.log(2)).sum(1)

    def transform(self, normal: Tensor) -> Tensor:
        return torch.distributions.Laplace(0.0, 1.0).icdf(torch.special.ndtr(normal))


def test_a_prior_of_ones_own_starts_samples_and_ends_likelihoods():
    """With score 0 the VE flow stands still: latents are data, and log p is the prior's."""
    model = from_callable(lambda x, t: 0 * x, sdediff.VE(sigma_max=2.0), data_shape=(2,))
    x, solution = model.sample(500, prior=Laplace(), seed=1, return_solution=True, dtype=F64)
    assert bool(solution.ok.all())
    r = model.log_likelihood(x[:5], prior=Laplace(), rtol=1e-9, atol=1e-9)
    assert torch.allclose(r.log_prob, Laplace().log_prob(x[:5]), atol=1e-6) and r.prior == "laplace"
    # E|x| = 1, sd 1: 5 standard errors over 1000 numbers, a false alarm in 1.7 million.
    assert abs(float(x.abs().mean()) - 1) < 5 / 1000**0.5


# -- moments beyond 1024 dimensions --------------------------------------------------------------------------


def test_few_rows_in_many_dimensions_keep_their_whole_covariance():
    z = torch.randn(60, 1100, dtype=F64, generator=torch.Generator().manual_seed(0)) * torch.linspace(
        0.1, 3, 1100, dtype=F64
    )
    moments = Moments.learn(z)
    assert moments.basis.shape == (1100, 59)
    cov = moments.basis @ torch.diag(moments.variances) @ moments.basis.T
    assert torch.allclose(cov, torch.cov(z.T, correction=0), atol=1e-10)
    assert float(moments.rest) < 1e-12


def test_the_low_rank_prior_is_the_dense_gaussian_and_keeps_the_total_variance():
    """Low rank plus isotropic: density and draws against the dense matrix it stands for."""
    generator = torch.Generator().manual_seed(0)
    factor = (
        torch.randn(300, 1100, dtype=F64, generator=generator)
        * torch.logspace(0, -2, 300, dtype=F64)[:, None]
    )
    z = torch.randn(500, 300, dtype=F64, generator=generator) @ factor + 0.5
    moments = Moments.learn(z)
    d, r = moments.basis.shape
    assert (d, r) == (1100, 256)
    total = float(moments.variances.sum() + (d - r) * moments.rest)
    assert total == pytest.approx(float(z.var(0, correction=0).sum()), rel=1e-10)
    assert moments.scale == pytest.approx((total / d) ** 0.5, rel=1e-12)
    prior = moments.noised(0.7, 0.4)
    outer = moments.basis @ moments.basis.T
    dense = 0.49 * (
        moments.basis @ torch.diag(moments.variances) @ moments.basis.T
        + moments.rest * (torch.eye(d, dtype=F64) - outer)
    ) + 0.16 * torch.eye(d, dtype=F64)
    want = torch.distributions.MultivariateNormal(0.7 * moments.mean, dense)
    points = 0.7 * z[:3] + 0.4
    assert torch.allclose(prior.log_prob(points), want.log_prob(points), rtol=1e-9)
    m = prior.transform(torch.eye(d, dtype=F64)) - prior.mean
    assert torch.allclose(m.T @ m, dense, atol=1e-9)


# -- files ---------------------------------------------------------------------------------------------------


def test_a_callable_model_is_saved_and_loaded_with_its_network(tmp_path):
    data = GaussianMixture(means=[[-2.0, 0.0], [2.0, 1.0]], covs=[0.1, 0.3])
    model = data.model(sdediff.VP())
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(
        ValueError, match=r"a network of your own .*pass the same one, load\(path, network=\.\.\.\)"
    ):
        sdediff.load(tmp_path / "m.safetensors")
    again = sdediff.load(tmp_path / "m.safetensors", network=lambda x, t: data.score(sdediff.VP(), x, t))
    x = data.sample(3, seed=0, dtype=F64)
    assert torch.equal(again.log_prob(x), model.log_prob(x))
    assert torch.equal(again.sample(3, seed=1), model.sample(3, seed=1))


def test_dropout_rests_while_solving() -> None:
    net = sdediff.networks.MLP(dim=2, hidden=16, blocks=1, dropout=0.5)
    torch.nn.init.normal_(net.output.weight)
    model = sdediff.DiffusionModel(net, process=sdediff.VP(), data_shape=(2,)).train()
    x = torch.zeros(3, 2)

    def results() -> list[torch.Tensor]:
        likelihood = model.log_prob(x, rtol=1e-3, atol=1e-3)
        sampled = model.sample(3, "ddim", steps=3, denoise=True)
        return [likelihood, sampled, *model.sample(2, rtol=1e-3, atol=1e-3, return_log_prob=True)]

    training = results()
    assert model.training and net.training
    assert all(torch.equal(a, b) for a, b in zip(training, (model.eval(), results())[1], strict=True))
    assert not model.training
