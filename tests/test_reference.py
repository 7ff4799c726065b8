"""Closed-form problems against autograd, quadrature, enumeration, exact arithmetic and a tight ODE solve."""

from __future__ import annotations

import itertools
import math

import mpmath
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sdediff import processes
from sdediff.reference import (
    ClosedForm,
    Empirical,
    Gaussian,
    GaussianMixture,
    RotatedProduct,
    eight_gaussians,
    random_mixture,
    random_product,
    rings,
)
from sdediff.reference.product import match_quantiles

F64 = torch.float64
PROCESSES = [getattr(processes, name)() for name in ("VP", "SubVP", "VE", "Cosine", "EDM", "RectifiedFlow")]
FRACTIONS = (0.0, 0.02, 0.3, 0.7, 1.0)


def gaussian(dim: int = 3) -> Gaussian:
    mixture = random_mixture(dim, 1, seed=3, dtype=F64)
    return Gaussian(mixture.means[0], mixture.covs[0])


def product(dim: int = 3) -> RotatedProduct:
    return random_product(dim, 3, seed=1, dtype=F64)


PROBLEMS: dict[str, ClosedForm] = {
    "gaussian": gaussian(),
    "mixture": random_mixture(3, 4, seed=0, dtype=F64),
    "product": product(),
    "empirical": Empirical(random_mixture(3, 4, seed=2, dtype=F64).sample(50, seed=0)),
}

every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
every_problem = pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())


def times(process: processes.GaussianProcess) -> list[float]:
    return [process.t_min + f * (process.t_max - process.t_min) for f in FRACTIONS]


def noised_points(problem: ClosedForm, process: processes.GaussianProcess, t: float, n: int = 6) -> Tensor:
    x0 = problem.sample(n, seed=5, dtype=F64)
    x0[-1] += 3.0  # one point off the data
    return process.perturb(x0, t, seed=1)[0]


def relative(a: Tensor, b: Tensor) -> float:
    return float(((a - b).abs().max() / b.abs().max()).detach())


# -- each view against the log-density -----------------------------------------------------------------------


@every_process
@every_problem
def test_score_and_jacobian_are_derivatives_of_log_prob(problem, process):
    for t in times(process):
        x = noised_points(problem, process, t).requires_grad_()
        (gradient,) = torch.autograd.grad(problem.log_prob(process, x, t).sum(), x)
        score = problem.score(process, x, t)
        assert relative(score, gradient) < 1e-8
        rows = [torch.autograd.grad(score[:, i].sum(), x, retain_graph=True)[0] for i in range(3)]
        assert relative(problem.jacobian(process, x, t), torch.stack(rows, 1)) < 1e-8


@every_process
@every_problem
def test_views_satisfy_their_definitions(problem, process):
    for t in times(process)[1:]:
        x = noised_points(problem, process, t)
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        eps, x0 = problem.eps(process, x, t), problem.denoise(process, x, t)
        assert torch.allclose(alpha * x0 + sigma * eps, x, rtol=1e-11, atol=1e-10)
        assert torch.allclose(-sigma * problem.score(process, x, t), eps, rtol=1e-12)
        assert torch.allclose(problem.v(process, x, t), alpha * eps - sigma * x0, rtol=1e-10, atol=1e-10)
        rate = float(process.d_alpha(t)) * x0 + float(process.d_sigma(t)) * eps
        assert relative(problem.velocity(process, x, t), rate) < 1e-12


@every_process
@every_problem
def test_density_satisfies_the_fokker_planck_equation(problem, process):
    """d log p/dt = -f (d + x.s) + g^2/2 (div s + |s|^2): links times, where autograd in x cannot look."""
    for t in times(process)[1:4]:
        x = noised_points(problem, process, t)
        clock = torch.full((len(x),), t, dtype=F64, requires_grad=True)
        (rate,) = torch.autograd.grad(problem.log_prob(process, x, clock).sum(), clock)
        s, div = (
            problem.score(process, x, t),
            problem.jacobian(process, x, t).diagonal(dim1=1, dim2=2).sum(-1),
        )
        f, g2 = process.drift_coefficient(t), process.diffusion(t) ** 2
        expected = -f * (3 + (x * s).sum(-1)) + 0.5 * g2 * (div + s.square().sum(-1))
        scale = (f.abs() * 3 + 0.5 * g2 * s.square().sum(-1)).max() + 1
        assert float((rate - expected).abs().max() / scale) < 1e-8


@every_problem
def test_times_per_row_equal_one_time_at_a_time(problem):
    process = processes.VP()
    t = torch.tensor([1e-3, 0.2, 1.0], dtype=F64)
    x = problem.sample(3, seed=0)
    for view in ("log_prob", "score", "denoise", "eps", "v", "velocity", "jacobian"):
        batch = getattr(problem, view)(process, x, t)
        single = [getattr(problem, view)(process, x[i : i + 1], float(t[i])) for i in range(3)]
        assert relative(batch, torch.cat(single)) < 1e-13, view


def test_density_integrates_to_one():
    process = processes.VP()
    line = torch.linspace(-12, 12, 4001, dtype=F64)[:, None]
    plane = torch.cartesian_prod(*[torch.linspace(-9, 9, 361, dtype=F64)] * 2)
    points = torch.tensor([[-1.0], [0.5], [2.0]])
    for problem in (random_mixture(1, 3, seed=1), product(1), Empirical(points)):
        assert math.isclose(
            float(problem.log_prob(process, line, 0.3).exp().sum() * 24 / 4000), 1, abs_tol=1e-9
        )
    for problem in (random_mixture(2, 3, seed=1), product(2), gaussian(2)):
        for t in (None, 0.3):
            mass = float(problem.log_prob(process, plane, t).exp().sum() * (18 / 360) ** 2)
            assert math.isclose(mass, 1, abs_tol=1e-9)


# -- independent formulas ------------------------------------------------------------------------------------


def dense_log_prob(x, means, covs, weights, alpha, sigma):
    """The noised mixture by torch.distributions: Cholesky factors instead of eigenvectors."""
    noised = alpha**2 * covs + sigma**2 * torch.eye(x.shape[1], dtype=F64)
    normal = torch.distributions.MultivariateNormal(alpha * means, noised)
    return (weights.log() + normal.log_prob(x[:, None])).logsumexp(-1)


def combinations(p: RotatedProduct) -> GaussianMixture:
    """The same product with all K^d components written out."""
    picks = list(itertools.product(range(p.means.shape[1]), repeat=p.dim))
    axes = torch.arange(p.dim)
    means = torch.stack([p.rotation @ p.means[axes, list(k)] + p.shift for k in picks])
    covs = torch.stack([(p.rotation * p.variances[axes, list(k)]) @ p.rotation.T for k in picks])
    return GaussianMixture(means, covs, torch.stack([p.weights[axes, list(k)].prod() for k in picks]))


@every_process
def test_mixture_gaussian_and_product_against_dense_formulas(process):
    mixture, single, axes = random_mixture(2, 3, seed=0), gaussian(2), product(2)
    written_out = combinations(axes)
    dense = {
        mixture: (mixture.means, mixture.covs, mixture.weights),
        single: (single.mean[None], single.cov[None], torch.ones(1, dtype=F64)),
        axes: (written_out.means, written_out.covs, written_out.weights),
    }
    for problem, (means, covs, weights) in dense.items():
        for t in times(process):
            x = noised_points(problem, process, t)
            expected = dense_log_prob(
                x, means, covs, weights, float(process.alpha(t)), float(process.sigma(t))
            )
            assert torch.allclose(problem.log_prob(process, x, t), expected, rtol=1e-9, atol=1e-9)
    t = times(process)[2]
    x = noised_points(axes, process, t)
    for view in ("score", "denoise", "jacobian"):
        assert relative(getattr(axes, view)(process, x, t), getattr(written_out, view)(process, x, t)) < 1e-10


def test_moments_of_the_data_agree_across_problems():
    axes = product(3)
    written_out = combinations(axes)
    assert torch.allclose(axes.mean, written_out.mean, atol=1e-12)
    assert torch.allclose(axes.cov, written_out.cov, atol=1e-12)
    points = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert torch.allclose(Empirical(points).cov, torch.cov(points.T, correction=0), atol=1e-14)


def test_covariance_shapes_mean_the_same():
    means, x, process = (
        torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=F64),
        torch.randn(4, 2, dtype=F64),
        processes.VP(),
    )
    full = GaussianMixture(means, torch.diag_embed(torch.tensor([[0.3, 0.3], [0.7, 0.7]], dtype=F64)))
    for covs in ([[0.3, 0.3], [0.7, 0.7]], [0.3, 0.7]):
        assert torch.allclose(
            GaussianMixture(means, covs).score(process, x, 0.2), full.score(process, x, 0.2)
        )
    equal = Gaussian([0.0, 1.0], 0.3)
    assert torch.allclose(equal.cov, Gaussian([0.0, 1.0], [0.3, 0.3]).cov)
    assert torch.allclose(equal.cov, Gaussian([0.0, 1.0], torch.eye(2) * 0.3).cov, atol=1e-7)


# -- flow and kernels ----------------------------------------------------------------------------------------


@every_process
@pytest.mark.parametrize("problem", [gaussian(), product()], ids=["gaussian", "product"])
def test_flow_solves_the_probability_flow_ode(problem, process):
    start, end = times(process)[1], process.t_max
    x = noised_points(problem, process, start, n=4)

    def drift(t, flat):
        return problem.velocity(process, torch.from_numpy(flat).reshape(-1, 3), float(t)).flatten().numpy()

    solved = solve_ivp(drift, (start, end), x.flatten().numpy(), method="DOP853", rtol=1e-11, atol=1e-11)
    assert relative(problem.flow(process, x, start, end).flatten(), torch.from_numpy(solved.y[:, -1])) < 1e-7


@every_process
@pytest.mark.parametrize("problem", [gaussian(), product()], ids=["gaussian", "product"])
def test_flow_is_a_bijection_and_composes(problem, process):
    _, start, middle, _, end = times(process)
    x = noised_points(problem, process, start, n=64)
    direct = problem.flow(process, x, start, end)
    assert torch.allclose(problem.flow(process, direct, end, start), x, rtol=0, atol=1e-9)
    assert torch.allclose(problem.flow(process, x, start, start), x, rtol=0, atol=1e-12)
    staged = problem.flow(process, problem.flow(process, x, start, middle), middle, end)
    assert relative(staged, direct) < 1e-11
    clock = torch.full((64,), end, dtype=F64)
    assert relative(problem.flow(process, x, torch.full((64,), start), clock), direct) < 1e-7
    data = problem.sample(8, seed=1, dtype=F64)
    assert torch.allclose(
        problem.flow(process, problem.flow(process, data, None, end), end, None), data, atol=1e-9
    )


@every_process
@pytest.mark.parametrize("problem", [gaussian(2), product(2)], ids=["gaussian", "product"])
def test_flow_carries_the_density(problem, process):
    s, t = times(process)[1], times(process)[3]
    for a, b in ((s, t), (t, s), (None, t)):
        x = noised_points(problem, process, a) if a is not None else problem.sample(6, seed=0, dtype=F64)
        x.requires_grad_()
        y = problem.flow(process, x, a, b)
        rows = [torch.autograd.grad(y[:, i].sum(), x, retain_graph=True)[0] for i in range(2)]
        log_det = torch.stack(rows, 1).det().abs().log()
        pushed = problem.log_prob(process, y, b) + log_det
        assert torch.allclose(problem.log_prob(process, x, a), pushed, rtol=0, atol=1e-8)


def test_quantiles_match_in_tails_and_gaps():
    """Against 250-digit arithmetic, at points no float64 distribution function can tell apart."""
    log_weight = torch.tensor([[0.3, 0.7]], dtype=F64).log()
    at_s = (torch.tensor([[[-2.0, 2.0]]], dtype=F64), torch.tensor([[[0.1, 0.15]]], dtype=F64))
    at_t = (torch.tensor([[[-1.0, 1.0]]], dtype=F64), torch.tensor([[[0.4, 0.45]]], dtype=F64))
    z = torch.tensor([-40.0, -6.0, -2.0, -1.2, -0.5, 0.1, 0.9, 2.1, 8.0, 60.0], dtype=F64)[:, None]
    found = match_quantiles(z, log_weight, at_s, at_t)
    weights = [mpmath.mpf(math.exp(w)) for w in log_weight[0].tolist()]

    def tails(y, at):
        pairs = list(zip(weights, at[0][0, 0].tolist(), at[1][0, 0].tolist(), strict=True))
        lower = sum(w * mpmath.erfc(-(y - m) / s / mpmath.sqrt(2)) / 2 for w, m, s in pairs)
        upper = sum(w * mpmath.erfc((y - m) / s / mpmath.sqrt(2)) / 2 for w, m, s in pairs)
        return lower, upper

    with mpmath.workdps(250):
        for z_i, y_i in zip(z[:, 0].tolist(), found[:, 0].tolist(), strict=True):
            side = 0 if z_i < 0.5 else 1
            target = mpmath.log(tails(mpmath.mpf(z_i), at_s)[side])
            root = mpmath.findroot(
                lambda y, k=side, c=target: mpmath.log(tails(y, at_t)[k]) - c, (y_i, y_i + 1e-6)
            )
            assert abs(float(root) - y_i) < 1e-12 * max(1, abs(y_i)), (z_i, y_i, float(root))


def test_flow_survives_extreme_noise_ratios():
    p, process = RotatedProduct([[-3.0, 0.5, 3.0]], [0.01, 0.02, 0.01], weights=[1, 0, 2]), processes.VP()
    x = torch.tensor([[-50.0], [-3.0], [0.0], [3.05], [50.0]], dtype=F64, requires_grad=True)
    noise = p.flow(process, x, None, 1.0)
    (slope,) = torch.autograd.grad(noise.sum(), x)
    assert bool(torch.isfinite(noise).all() and (noise.diff(dim=0) > 0).all() and torch.isfinite(slope).all())
    back = p.flow(process, torch.tensor([[-30.0], [0.0], [30.0]], dtype=F64, requires_grad=True), 1.0, None)
    (slope,) = torch.autograd.grad(back.sum(), back)
    assert bool(torch.isfinite(back).all() and (back.diff(dim=0) > 0).all())


@every_process
def test_transition_kernels_of_gaussian_data(process):
    """Two-sided Bayes: p_s(x) q(y at t | x) = p_t(y) q(x at s | y), and forward is the process's kernel."""
    problem = gaussian()
    s, t = times(process)[2:4]
    x, y = noised_points(problem, process, s), noised_points(problem, process, t)
    normal = torch.distributions.MultivariateNormal
    mean, cov = problem.transition(process, x, s, t)
    scale, std = process.transition(s, t)
    assert torch.allclose(mean, scale * x, atol=1e-12)
    assert torch.allclose(cov, std**2 * torch.eye(3, dtype=F64), rtol=1e-12, atol=1e-12)
    forward = problem.log_prob(process, x, s) + normal(mean, cov).log_prob(y)
    reverse = problem.log_prob(process, y, t) + normal(*problem.transition(process, y, t, s)).log_prob(x)
    assert torch.allclose(forward, reverse, rtol=1e-10, atol=1e-9)
    one_way = problem.transition(process, x[:1], s, t), problem.transition(process, x[1:2], t, s)
    rows = problem.transition(
        process, x[:2], torch.tensor([s, t], dtype=F64), torch.tensor([t, s], dtype=F64)
    )
    for row, (mean, cov) in enumerate(one_way):
        assert torch.allclose(rows[0][row], mean[0], atol=1e-12) and torch.allclose(
            rows[1][row], cov, atol=1e-12
        )


# -- precision and extremes ----------------------------------------------------------------------------------


@every_problem
def test_float32_agrees_with_float64(problem):
    process = processes.VP()
    for t in times(process)[1:]:
        x = noised_points(problem, process, t).float()
        for view in ("log_prob", "score", "denoise", "eps", "velocity", "jacobian"):
            single, double = (getattr(problem, view)(process, y, t) for y in (x, x.double()))
            assert single.dtype == torch.float32
            assert relative(single.double(), double) < 3e-4, (view, t)
        half = problem.denoise(process, x.bfloat16(), t)
        assert half.dtype == torch.bfloat16
        assert relative(half.double(), problem.denoise(process, x.bfloat16().double(), t)) < 1e-2


@every_problem
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_tiny_noise_and_far_points_stay_finite(problem, dtype):
    process = processes.EDM()
    x = torch.cat(
        [problem.sample(2, dtype=dtype), torch.full((1, 3), 1e4, dtype=dtype), torch.zeros(1, 3, dtype=dtype)]
    )
    for sigma in (1e-6, 1e6):
        for view in ("log_prob", "score", "denoise", "eps", "jacobian"):
            assert bool(torch.isfinite(getattr(problem, view)(process, x, sigma)).all()), (view, sigma)


def test_far_points_at_low_noise_denoise_to_the_nearest_point():
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 5.0]], dtype=F64)
    x = torch.tensor([[-900.0, -1.0], [1000.0, 3.0], [-7.0, 4000.0]], dtype=F64)
    assert torch.equal(Empirical(points).denoise(processes.EDM(), x, 1e-6), points)


def test_large_noise_denoises_to_the_mean():
    for problem in PROBLEMS.values():
        x0 = problem.denoise(processes.EDM(), torch.zeros(1, 3, dtype=F64), 1e7)
        assert torch.allclose(x0[0], problem.mean, atol=1e-9)


def test_alpha_zero_is_pure_noise():
    class End:
        def alpha(self, t):
            return torch.zeros_like(t)

        def sigma(self, t):
            return torch.ones_like(t)

    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    for problem in PROBLEMS.values():
        assert torch.allclose(problem.score(End(), x, 1.0), -x)
        assert torch.allclose(problem.denoise(End(), x, 1.0), problem.mean.expand(4, 3))


def test_chunks_of_rows_do_not_change_empirical(monkeypatch):
    problem, process = PROBLEMS["empirical"], processes.VP()
    x, t = problem.sample(7, seed=0), torch.linspace(0.1, 0.9, 7, dtype=F64)
    views = ("log_prob", "score", "jacobian")
    whole = [getattr(problem, view)(process, x, t) for view in views]
    monkeypatch.setattr("sdediff.reference.empirical.CHUNK", 300)
    for view, expected in zip(views, whole, strict=True):
        assert torch.allclose(getattr(problem, view)(process, x, t), expected, rtol=1e-12)


def test_functional_transforms_work():
    process = processes.VP()
    for problem in PROBLEMS.values():
        x = problem.sample(4, seed=0)
        v = torch.ones_like(x)
        _, pushed = torch.func.jvp(lambda y, p=problem: p.score(process, y, 0.4), (x,), (v,))
        assert torch.allclose(pushed, problem.jacobian(process, x, 0.4).sum(-1), rtol=1e-9, atol=1e-9)


# -- sampling ------------------------------------------------------------------------------------------------


@every_problem
def test_samples_have_the_stated_moments(problem):
    """9 statistics a problem within 5 standard errors; false alarm 36 * 6e-7 = 2e-5 in all."""
    n = 40_000
    centred = problem.sample(n, seed=11, dtype=F64) - problem.mean
    assert bool((centred.mean(0).abs() < 5 * (problem.cov.diagonal() / n).sqrt()).all())
    products = centred[:, :, None] * centred[:, None, :]
    assert bool(((products.mean(0) - problem.cov).abs() < 5 * products.std(0) / n**0.5).all())


def test_samples_follow_the_density():
    """KS test of the mixture's first coordinate on 20000 draws against its exact law; false alarm 1e-6."""
    from scipy.stats import kstest, norm

    problem = random_mixture(3, 4, seed=0)
    axis = list(
        zip(
            problem.weights.tolist(),
            problem.means[:, 0].tolist(),
            problem.covs[:, 0, 0].sqrt().tolist(),
            strict=True,
        )
    )
    result = kstest(
        problem.sample(20_000, seed=2, dtype=F64)[:, 0].numpy(),
        lambda z: sum(w * norm.cdf(z, m, s) for w, m, s in axis),
    )
    assert result.pvalue > 1e-6


@every_problem
def test_samples_are_a_function_of_seed_and_row(problem):
    state = torch.get_rng_state()
    x = problem.sample(9, seed=4)
    assert torch.equal(x[:5], problem.sample(5, seed=4))
    assert not torch.equal(x, problem.sample(9, seed=5))
    assert torch.equal(x.float(), problem.sample(9, seed=4, dtype=torch.float32))
    assert torch.equal(state, torch.get_rng_state())
    assert problem.sample(0).shape == (0, 3)


def test_sample_dtype_is_that_of_the_parameters():
    assert GaussianMixture([[0.0]], [1.0]).sample(1).dtype == torch.get_default_dtype()
    assert GaussianMixture(torch.zeros(1, 1, dtype=F64), [1.0]).sample(1).dtype == F64
    assert random_mixture(2, dtype=F64).sample(1).dtype == F64


def test_ready_made_problems():
    assert torch.allclose(eight_gaussians(radius=3.0).means.norm(dim=1), torch.full((8,), 3.0, dtype=F64))
    assert rings().components == 24
    assert float(random_mixture(4, 2, seed=1).mean.norm()) > 0.1
    assert not torch.equal(random_mixture(4, 2, seed=1).means, random_mixture(4, 2, seed=2).means)
    assert torch.equal(random_product(4, 2, seed=1).rotation, random_product(4, 2, seed=1).rotation)


# -- the model -----------------------------------------------------------------------------------------------


@every_process
@pytest.mark.parametrize("prediction", ["score", "eps", "x0", "v", "velocity"])
def test_model_is_exact_whatever_it_predicts(process, prediction):
    problem = random_mixture(3, 2, seed=0, dtype=F64)
    model = problem.model(process, prediction)
    for t in times(process)[1:4]:
        x = noised_points(problem, process, t)
        clock = torch.full((len(x),), t, dtype=F64)
        assert relative(model.score(x, clock), problem.score(process, x, t)) < 1e-6
        assert relative(model.denoise(x, clock), problem.denoise(process, x, t)) < 1e-6


# -- errors --------------------------------------------------------------------------------------------------


def indefinite():
    return GaussianMixture([[0.0, 0.0]], [[[1.0, 2.0], [2.0, 1.0]]])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: GaussianMixture([0.0, 1.0], [1.0, 1.0]), "means has shape"),
        (lambda: GaussianMixture([[0.0, 1.0]], [1.0, 1.0]), "covs has shape"),
        (indefinite, "not positive definite"),
        (lambda: GaussianMixture([[0.0, 0.0]], [[[1.0, 0.5], [0.0, 1.0]]]), "not symmetric"),
        (lambda: GaussianMixture([[0.0]], [0.0]), "not positive definite"),
        (lambda: GaussianMixture([[math.nan]], [1.0]), "NaN or infinite"),
        (lambda: GaussianMixture([[0.0], [1.0]], [1.0, 1.0], [0.0, 0.0]), "non-negative with a positive sum"),
        (
            lambda: GaussianMixture([[0.0], [1.0]], [1.0, 1.0], [2.0, -1.0]),
            "non-negative with a positive sum",
        ),
        (lambda: GaussianMixture([[0.0], [1.0]], [1.0, 1.0], [1.0]), "weights have shape"),
        (lambda: Gaussian([[0.0]], 1.0), "mean has shape"),
        (lambda: RotatedProduct([[0.0, 1.0]], [[1.0]]), "variances has shape"),
        (lambda: RotatedProduct([[0.0, 1.0]], -1.0), "give positive ones"),
        (lambda: RotatedProduct([[0.0], [0.0]], 1.0, rotation=[[1.0, 1.0], [0.0, 1.0]]), "not orthogonal"),
        (lambda: RotatedProduct([[0.0], [0.0]], 1.0, shift=[1.0]), "shift has shape"),
        (lambda: Empirical([1.0, 2.0]), "points has shape"),
        (lambda: Empirical(torch.zeros(0, 2)), "points has shape"),
        (lambda: random_mixture(0), "must both be positive"),
        (lambda: rings((1.0,), (3, 4)), "one positive count per radius"),
    ],
)
def test_bad_parameters_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bad_calls_are_refused():
    problem, process = PROBLEMS["mixture"], processes.VP()
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"need \(B, 3\)"):
        problem.score(process, torch.zeros(2, 4), 0.5)
    with pytest.raises(ValueError, match=r"need \(B, 3\)"):
        problem.score(process, torch.zeros(3), 0.5)
    with pytest.raises(ValueError, match=r"need \(\) or \(2,\)"):
        problem.score(process, x, torch.full((3,), 0.5))
    with pytest.raises(TypeError, match="floating-point"):
        problem.score(process, x.long(), 0.5)
    with pytest.raises(ValueError, match="a time needs a process"):
        problem.score(None, x, 0.5)
    with pytest.raises(ValueError, match="no density without noise"):
        PROBLEMS["empirical"].log_prob(None, x, None)
    with pytest.raises(ValueError, match="n >= 0"):
        problem.sample(-1)
    with pytest.raises(ValueError, match="choose one of score, eps, x0, v, velocity"):
        problem.model(process, "edm")
