"""The chain's variational bound against joint Gaussians in full, its limit, its decoders and errors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sdediff
from sdediff.chain import Chain, cosine_betas, linear_betas
from sdediff.chain.bound import Errors, _mass
from sdediff.likelihood.bounds import GaussianReference
from sdediff.prior import Moments
from sdediff.reference import DiscretisedMixture, Gaussian, GaussianMixture, random_mixture

F64 = torch.float64


def gaussian(dim: int = 3, seed: int = 0) -> Gaussian:
    source = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=source, dtype=F64)
    return Gaussian(torch.randn(dim, generator=source, dtype=F64), root @ root.T + 0.1 * torch.eye(dim))


def joint_bound(chain: Chain, data: Gaussian, prior, variances: Tensor, x0: Tensor) -> Tensor:
    """E_q log p(x_0 .. x_T) - E_q log q(x_1 .. x_T | x_0), both as one Gaussian over all steps.

    Nothing of it is taken step by step: p is x = M eps + m with a matrix over all states, and so is q.
    """
    d, steps = data.dim, chain.steps
    eye = torch.eye(d, dtype=F64)

    # q: x_k = scale x_{k-1} + std eps_k from x_0, as mean and root over (x_1 .. x_T)
    rows, mean = torch.zeros(steps * d, steps * d, dtype=F64), []
    for k in range(1, steps + 1):
        scale, std = (float(c) for c in chain.transition(k))
        here, before = slice((k - 1) * d, k * d), slice((k - 2) * d, (k - 1) * d)
        if k > 1:
            rows[here] = scale * rows[before]
        rows[here, here] = std * eye
        mean.append(scale * (mean[-1] if mean else x0))
    q_mean, q_cov = torch.cat(mean, dim=1), rows @ rows.T

    # p: x_T from the prior, x_{k-1} = c_t x_k + c_0 D(x_k) + sqrt(variance) eps with the affine optimal D
    root = torch.zeros((steps + 1) * d, (steps + 1) * d, dtype=F64)
    p_mean = [torch.zeros(d, dtype=F64)] * (steps + 1)
    last = slice(steps * d, (steps + 1) * d)
    root[last, last] = torch.linalg.cholesky(prior.covariance_matrix)
    p_mean[steps] = prior.mean
    for k in range(steps, 0, -1):
        a, s = float(chain.alpha[k]), float(chain.sigma[k])
        gain = a * data.cov @ torch.linalg.inv(a**2 * data.cov + s**2 * eye)
        c_t, c_0, _ = (float(c) for c in chain.posterior(k))
        matrix, offset = c_t * eye + c_0 * gain, c_0 * (data.mean - a * gain @ data.mean)
        here, before = slice(k * d, (k + 1) * d), slice((k - 1) * d, k * d)
        root[before] = matrix @ root[here]
        root[before, before] = torch.diag(variances[k - 1].expand(d).sqrt())
        p_mean[k - 1] = matrix @ p_mean[k] + offset
    p = torch.distributions.MultivariateNormal(torch.cat(p_mean), root @ root.T)

    everything = torch.cat([x0, q_mean], dim=1)
    trace = (torch.linalg.inv(p.covariance_matrix)[d:, d:] * q_cov).sum()
    entropy = 0.5 * (steps * d * math.log(2 * math.pi * math.e) + torch.linalg.slogdet(q_cov)[1])
    return p.log_prob(everything) - 0.5 * trace + entropy


@pytest.mark.parametrize("process", [sdediff.VP(), sdediff.VE(), sdediff.RectifiedFlow()], ids=repr)
@pytest.mark.parametrize("variance", ["posterior", "forward", "per step", "per entry"])
def test_the_bound_is_that_of_the_joint_gaussians(process, variance):
    data = gaussian()
    chain = Chain(process, process.default_grid(12).flip(0)[3:])
    steps = chain.steps
    table = {
        "per step": chain.variances("forward") * torch.linspace(0.5, 2.0, steps, dtype=F64),
        "per entry": chain.variances("posterior")[:, None] * torch.tensor([0.5, 1.0, 3.0], dtype=F64),
    }.get(variance)
    variances = chain.variances(variance) if table is None else table
    model, x = data.model(process), data.sample(4, seed=1).double()
    for name in ("matched", "standard"):
        t = float(chain.times[-1])
        a, s = float(process.alpha(t)), float(process.sigma(t))
        if name == "matched":
            moments = (a * data.mean, a**2 * data.cov + s**2 * torch.eye(3, dtype=F64))
        else:
            moments = (torch.zeros(3, dtype=F64), process.prior_std_at(t) ** 2 * torch.eye(3, dtype=F64))
        prior = torch.distributions.MultivariateNormal(*moments)
        r = chain.bound(model, x, variance=variance if table is None else table, prior=name)
        exact = joint_bound(chain, data, prior, variances, x)
        assert float((r.total - exact).abs().max()) < 1e-6 * max(1.0, float(exact.abs().max()))
        q = torch.distributions.MultivariateNormal(a * x, s**2 * torch.eye(3, dtype=F64))
        assert torch.allclose(r.prior, torch.distributions.kl_divergence(q, prior), rtol=1e-9, atol=1e-9)
        assert float(r.std_error.max()) < 1e-6 * max(1.0, float(exact.abs().max()))
        assert r.transitions.shape == (4, steps - 1) and bool((r.transitions > -1e-9).all())
        assert r.kind == "density/lower bound" and r.likelihood.prior == name
        assert bool((exact <= data.log_prob(None, x, None) + 1e-9).all())
    assert torch.allclose(
        chain.bound(model, x, terms=2, seed=5).total, chain.bound(model, x).total, rtol=1e-9
    )


def test_units_of_the_data_enter_once():
    """The same model in other units: the log of the Jacobian, and nothing else."""
    data, process = gaussian(), sdediff.VP()
    x, model = data.sample(3, seed=1).double(), data.model(process)
    scaled = data.model(process)
    scaled.shift = torch.full((3,), 0.7, dtype=F64)
    scaled.scale = torch.tensor([2.0, 3.0, 0.1], dtype=F64)
    chain = Chain.of(process, 10)
    difference = chain.bound(model, x).total - chain.bound(scaled, scaled.to_data(x)).total
    assert torch.allclose(difference, torch.full_like(difference, math.log(0.6)), atol=1e-9)


def continuous_limit(chain: Chain, model, x: Tensor, r) -> Tensor:
    """What the bound tends to: decoder, entropy of q(y | x) at t_min, mean over y of ``model.elbo(y)``.

    y = x_1/alpha_1 is the datum noised to t_min. The elbo of Gaussian data is quadratic in y, so the mean
    over its 2 d sigma points is exact.
    """
    d, std = model.dim, float(chain.sigma[1] / chain.alpha[1])
    shifts = std * math.sqrt(d) * torch.cat([torch.eye(d), -torch.eye(d)]).to(x)
    points = (x[:, None] + shifts).flatten(0, 1)
    elbo = model.elbo(points, draws=16, t_span=(float(chain.times[0]), float(chain.times[-1]))).log_prob
    return r.decoder + 0.5 * d * math.log(2 * math.pi * math.e * std**2) + elbo.view(len(x), -1).mean(1)


@pytest.mark.parametrize("process", [sdediff.VP(t_min=1e-3), sdediff.Cosine()], ids=repr)
@pytest.mark.parametrize("variance", ["posterior", "forward"])
def test_the_bound_tends_to_the_continuous_one_with_slope_1(process, variance):
    data = gaussian()
    model, x = data.model(process), data.sample(4, seed=1).double()
    gaps = []
    for steps in (500, 1000, 2000, 4000):
        chain = Chain.of(process, steps)
        r = chain.bound(model, x, variance=variance, terms=1)
        gaps.append(float((continuous_limit(chain, model, x, r) - r.total).mean()))
    orders = torch.tensor(gaps).log2().diff()
    assert gaps[-1] > 0 and abs(float(orders[-1]) + 1) < 0.03, (gaps, orders)
    assert abs(float(2 * orders[-1] - orders[-2]) + 1) < 0.005, orders  # and the rest is of order 1/T


def test_some_terms_estimate_all_and_say_how_well():
    """Mean of 40 independent estimates from 6 of 39 terms against 400 draws of all; |z| < 5, and the errors
    stated explain the scatter (chi-squared of 40 within 5 standard deviations): once in
    a million runs by chance."""
    data = random_mixture(2, 3, seed=1, dtype=F64)
    model, chain = data.model(sdediff.VP()), Chain.of(sdediff.VP(), 40)
    x = data.sample(1, seed=3)
    full = chain.bound(model, x, draws=400)
    some = chain.bound(model, x.expand(40, -1), terms=6, draws=16, indices=torch.arange(100, 140))
    assert int(some.likelihood.nfe[0]) == 16 * 7 and int(full.likelihood.nfe) == 400 * 40
    z = (some.total - full.total) / (some.std_error.square() + full.std_error.square()).sqrt()
    assert abs(float(z.mean())) < 5 / math.sqrt(40)
    assert float(z.square().sum()) < 40 + 5 * math.sqrt(80)
    each = (some.transitions.mean(0) - full.transitions[0]).abs() / full.transitions[0].abs().mean()
    assert float(each.mean()) < 3
    one = chain.bound(model, x, draws=1)
    assert bool(one.std_error.isnan()) and bool(one.likelihood.degrees.isnan())


def test_noise_depends_on_seed_and_name_alone():
    data = random_mixture(2, 3, seed=1, dtype=F64)
    model, chain = data.model(sdediff.VP()), Chain.of(sdediff.VP(), 12)
    x = data.sample(5, seed=3)
    whole = chain.bound(model, x, seed=4, terms=3)
    part = chain.bound(model, x[2:4], seed=4, terms=3, indices=torch.tensor([2, 3]), batch_size=7)
    assert torch.allclose(part.total, whole.total[2:4], rtol=1e-12)
    assert not torch.allclose(chain.bound(model, x, seed=5, terms=3).total, whole.total, rtol=1e-6)


@pytest.mark.parametrize("centred", [True, False])
def test_the_decoder_of_levels_is_the_mass_of_their_cells(centred):
    """Probabilities of all levels sum to one, and the bound is just below the exact log-probability."""
    levels = sdediff.Quantisation(levels=5, low=-1.0, high=1.0, centred=centred)
    before = GaussianMixture([[-0.4, 0.3], [0.5, -0.2]], [[0.1, 0.05], [0.05, 0.2]])
    data = DiscretisedMixture(before, levels)
    process = sdediff.VP(t_min=1e-3)
    shift = 0.0 if centred else 0.5 * levels.width

    def denoise(x: Tensor, t: Tensor) -> Tensor:  # of the cells' middles, which are what is noised
        alpha, sigma = (c[:, None] for c in (process.alpha(t), process.sigma(t)))
        return shift + data._posterior(x - alpha * shift, alpha, sigma)[1]

    model = sdediff.from_callable(
        denoise, process, "x0", (2,), data_mean=data.mean + shift, data_cov=data.cov
    )
    chain = Chain.of(process, 300)
    grid = torch.cartesian_prod(levels.values, levels.values)
    noise = torch.zeros(25, 2, dtype=F64)

    class AtZero(Errors):
        def noise(self, row, k, draw):
            return noise[row]

    reverse = chain.reverse(model)
    given = torch.full((25, 2), 0.3, dtype=F64)  # one x_1 for all
    fixed = AtZero.of(model, reverse, given, None, 0, None, None)
    masses = _mass(fixed, 1, levels, levels.index(grid))
    assert float(masses.exp().sum()) == pytest.approx(1.0, rel=1e-9)

    best = reverse.fit_variances(data.sample(200, seed=0) + shift)
    r = chain.bound(model, grid, variance=best, quantisation=levels, draws=30)
    assert r.kind == "probability/lower bound"
    exact = data.log_probability(grid)
    weight = exact.exp()
    gap, error = float(weight @ (exact - r.total)), float((weight.square() @ r.std_error.square()).sqrt())
    assert -5 * error < gap < 0.05, (gap, error)
    assert torch.allclose(r.bits_per_dim(), -r.total / (2 * math.log(2)))
    integers = sdediff.Quantisation(levels=5)
    assert chain.bound(model, torch.tensor([[0, 4]]), quantisation=integers).total.isfinite().all()


def test_a_prior_of_ones_own_is_averaged_over():
    data, process = gaussian(), sdediff.VP()
    model, x, chain = data.model(process), data.sample(3, seed=1).double(), Chain.of(process, 5)
    held = model.prior_at(process.t_max, "matched")

    class Own:
        name = "own"
        log_prob, transform = staticmethod(held.log_prob), staticmethod(held.transform)

    own, exact = chain.bound(model, x, prior=Own(), draws=2000), chain.bound(model, x)
    z = (own.prior - exact.prior) / own.std_error  # |z| < 5 for 3 numbers: a false alarm in 6e5
    assert float(z.abs().max()) < 5 and own.likelihood.prior == "own"


@pytest.mark.parametrize("per_entry", [False, True])
def test_fitted_variances_are_the_optimal_ones_of_gaussian_data(per_entry):
    """Data at sigma points have the Gaussian's own mean and covariance, so nothing is random."""
    data, process = gaussian(), sdediff.VP()
    root = math.sqrt(3) * torch.linalg.cholesky(data.cov)
    x = data.mean + torch.cat([root.T, -root.T])
    model, chain = data.model(process), Chain.of(process, 8)
    best = chain.reverse(model).fit_variances(x, per_entry=per_entry)
    eye = torch.eye(3, dtype=F64)
    for k in range(1, 9):
        clock = float(chain.sigma[k] / chain.alpha[k]) ** 2
        left = clock * data.cov @ torch.linalg.inv(data.cov + clock * eye)  # Cov(x_0 | x_k)
        _, c_0, std = chain.posterior(k)
        left = left.diagonal() if per_entry else left.diagonal().mean()
        assert torch.allclose(best[k - 1], std**2 + c_0**2 * left, rtol=1e-9)
    value = chain.bound(model, x, variance=best).total.mean()
    for factor in (0.9, 1.1):
        assert value > chain.bound(model, x, variance=factor * best).total.mean()
    assert value > max(chain.bound(model, x, variance=v).total.mean() for v in ("posterior", "forward"))


def test_moments_of_every_kind_serve_as_control():
    """Full, diagonal, isotropic and low-rank covariances: the mean error against an average."""
    data = gaussian(4)
    chain = Chain.from_betas(cosine_betas(6))
    model = data.model(sdediff.VP())
    errors = Errors.of(model, chain.reverse(model), data.sample(2, seed=1).double(), None, 0, None, None)
    values, vectors = torch.linalg.eigh(data.cov)
    for moments in (
        Moments.of(data.mean, data.cov),
        Moments.of(data.mean, torch.arange(1.0, 5.0)),
        Moments.of(data.mean, torch.tensor(2.0)),
        Moments(data.mean, vectors[:, 2:], values[2:], values[:2].mean()),
    ):
        object.__setattr__(errors, "gaussian", GaussianReference(moments))
        k = torch.tensor([3])
        squares = errors.reference_squares(errors.z, k)[:, 0]
        points = 2.0 * torch.cat([torch.eye(4), -torch.eye(4)]).to(errors.z)  # E eps eps^T = I
        clock = errors.clock[2]
        noisy = errors.z[:, None] + clock.sqrt() * points
        left = errors.z[:, None] - noisy - clock * errors.gaussian.score(noisy, clock)
        assert torch.allclose(squares, left.square().mean(1), rtol=1e-9)


def test_what_does_not_fit_is_refused():
    data = random_mixture(2, 3, seed=1, dtype=F64)
    model, chain, x = data.model(sdediff.VP()), Chain.from_betas(linear_betas(30)), data.sample(3, seed=0)
    for options, kind, said in (
        ({"terms": 30}, ValueError, r"terms=30: give a whole number from 1 to 29"),
        ({"draws": 0}, ValueError, "draws=0: give a whole number of at least 1"),
        ({"quantisation": 256}, TypeError, "quantisation=256 is no description of levels"),
        ({"quantisation": sdediff.Quantisation(2)}, ValueError, "none of the 2 levels"),
        ({"variance": "large"}, ValueError, 'no variance .large.: give "posterior", "forward", "learned"'),
        ({"variance": torch.ones(29)}, ValueError, r"shape \(29,\).*\(30,\) or \(30, 2\)"),
        ({"variance": -torch.ones(30)}, ValueError, "not positive throughout"),
        ({"variance": "learned"}, TypeError, "says no variances: wrap it, sdediff.networks.WithVariance"),
    ):
        with pytest.raises(kind, match=said) as caught:
            chain.bound(model, x, **options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="give bin_width="):
        chain.bound(model, x).bits_per_dim()
    with pytest.raises(ValueError, match="there is no variance 'learned'"):
        chain.variances("learned")
