"""ELBO, I-MMSE, Itô density and the report that compares them with the flow, against closed forms."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scipy.stats import binom
from torch import Tensor

import sdediff
from sdediff.likelihood import elbo, i_mmse, likelihood_report, sample_with_ito_density, score_asymmetry
from sdediff.likelihood.bounds import GaussianReference
from sdediff.prior import Moments
from sdediff.reference import Gaussian, GaussianMixture, eight_gaussians, random_mixture

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
both = pytest.mark.parametrize("estimate", [elbo, i_mmse], ids=lambda f: f.__name__)


def mixture(dim: int) -> GaussianMixture:
    """Modes well apart, far from zero."""
    data = random_mixture(dim, 3 if dim == 2 else 4, seed=0, dtype=F64)
    return GaussianMixture(data.means + 5 / dim**0.5, data.covs, data.weights)


def gaussian(dim: int) -> Gaussian:
    g = torch.Generator().manual_seed(dim)
    a = torch.randn(dim, dim, generator=g, dtype=F64)
    mean = torch.randn(dim, generator=g, dtype=F64)
    return Gaussian(mean, a @ a.T / dim + 0.05 * torch.eye(dim, dtype=F64))


def noised(data: GaussianMixture, process, x: Tensor, t: float | None = None) -> Tensor:
    """Log-density at x of x_0 + (sigma/alpha) eps at t_min."""
    t = process.t_min if t is None else t
    alpha = process.alpha(torch.tensor(t, dtype=F64))
    return data.log_prob(process, alpha * x, t) + data.dim * alpha.log()


def truth(estimate, data: GaussianMixture, process, x: Tensor) -> Tensor:
    return noised(data, process, x) if estimate is elbo else data.log_prob(None, x, None)


# -- exact where it can be -----------------------------------------------------------------------------------


@every_process
@both
@pytest.mark.parametrize("dim", [2, 16, 64])
def test_gaussian_data_are_exact(estimate, process, dim):
    data = gaussian(dim)
    x = data.sample(4, seed=0)
    r = estimate(data.model(process), x, draws=32)
    assert float((r.log_prob - truth(estimate, data, process, x)).abs().max()) < 1e-8
    assert float(r.std_error.max()) < 1e-8 and bool((r.solver_error == 0).all())


def test_the_offset_at_t_min_has_its_entropy():
    """A large t_min: without the entropy of the noise there, the bound would be off by nats."""
    data, process = gaussian(3), sdediff.VP()
    x, t = data.sample(5, seed=0), 0.2
    noise = float(process.sigma(torch.tensor(t)) / process.alpha(torch.tensor(t)))
    assert abs(1.5 * math.log(2 * math.pi * math.e * noise**2)) > 1
    r = data.model(process).elbo(x, t_span=(t, 1.0), draws=32)
    assert float((r.log_prob - noised(data, process, x, t)).abs().max()) < 1e-9
    assert r.t_span == (t, 1.0)


@both
def test_the_units_count(estimate):
    """Scaling a column by 1000 takes log 1000 off, draw by draw."""
    data = mixture(2)
    x, factor = data.sample(100, seed=0), torch.tensor([1.0, 1000.0], dtype=F64)
    torch.manual_seed(0)
    model = sdediff.DiffusionModel(
        sdediff.networks.MLP(dim=2, hidden=16, blocks=1).double(), sdediff.VP(), data_shape=(2,)
    )
    model.set_units(x)
    before = estimate(model, x[:8], draws=32).log_prob
    model.set_units(x * factor)
    after = estimate(model, (x * factor)[:8], draws=32).log_prob
    assert float((after - before + math.log(1000)).abs().max()) < 1e-8


C = 0.3


def turning(moments: bool = True) -> sdediff.DiffusionModel:
    """The score of standard normal data and a rotation, which moves no mass: flow and SDE keep N(0, I)."""

    def score(x: Tensor, t: Tensor) -> Tensor:
        turned = x.flip(1) * x.new_tensor([1.0, -1.0])
        return (C * turned - x) / (1 + t[:, None] ** 2)

    given = {"data_mean": torch.zeros(2), "data_cov": torch.eye(2)} if moments else {}
    return sdediff.from_callable(score, sdediff.EDM(), prediction="score", data_shape=(2,), **given)


@pytest.mark.parametrize("moments", [True, False])
def test_the_slack_of_a_field_that_is_no_gradient(moments):
    r"""It is :math:`\tfrac12\int E|s-s_N|^2 dv`, here in closed form: 4 standard errors, 1 alarm in 3000."""
    model, x = (
        turning(moments),
        1.5 * torch.randn(50, 2, dtype=F64, generator=torch.Generator().manual_seed(0)),
    )
    w, end = (1 + t**2 for t in (model.process.t_min, model.process.t_max))
    square = x.square().sum(1)
    density = -0.5 * square / w - math.log(2 * math.pi * w)
    slack = 0.5 * C**2 * ((square - 2 * w) * (1 / w - 1 / end) + 2 * math.log(end / w))
    r = model.elbo(x, seed=1)
    if not moments:  # the textbook prior N(0, T^2 I) in place of N(0, (1 + T^2) I)
        r = model.elbo(
            x, seed=1, prior=Moments.of(torch.zeros(2), torch.ones(2)).noised(1, math.sqrt(end - 1))
        )
    error = r.log_prob - (density - slack)
    assert abs(float(error.sum())) < 4 * float(r.std_error.square().sum().sqrt())
    flow = model.log_prob(x, prior=Moments.of(torch.zeros(2), torch.ones(2)).noised(1, math.sqrt(end - 1)))
    assert float((flow - density).abs().max()) < 1e-4
    assert float(slack.min()) > 0.1


@pytest.mark.parametrize("kind", ["full", "diagonal", "isotropic", "low rank"])
def test_the_score_of_the_reference(kind):
    g = torch.Generator().manual_seed(0)
    mean, basis = (
        torch.randn(5, generator=g, dtype=F64),
        torch.linalg.qr(torch.randn(5, 5, generator=g)).Q.double(),
    )
    rank = {"full": 5, "low rank": 2, "isotropic": 0, "diagonal": 5}[kind]
    vectors = basis.new_zeros(0, 0) if kind == "diagonal" else torch.linalg.qr(basis).Q[:, :rank]
    moments = Moments(mean, vectors, torch.arange(1.0, 1 + rank, dtype=F64), torch.tensor(0.5, dtype=F64))
    reference, x = GaussianReference(moments), torch.randn(3, 5, generator=g, dtype=F64).requires_grad_()
    (want,) = torch.autograd.grad(reference.log_prob(x, 0.7).sum(), x)
    assert torch.allclose(reference.score(x, torch.full((3, 1), 0.7, dtype=F64)), want, atol=1e-12)


# -- how wrong they say they are -----------------------------------------------------------------------------


@both
@pytest.mark.parametrize("dim", [2, 16])
def test_intervals_cover_and_nothing_is_biased(estimate, dim):
    """480 (point, seed) pairs on six processes.

    Coverage lies where a true one of 93 to 97 % leaves it but once in 1000; the pooled error, in standard
    errors, within 4.
    """
    data = mixture(dim)
    hits, error, variance = 0, 0.0, 0.0
    for number, process in enumerate(PROCESSES):
        model = data.model(process)
        x = data.sample(80, seed=number)
        want = truth(estimate, data, process, x)
        r = estimate(model, x, seed=50 + number)
        low, high = r.interval()
        hits += int(((low <= want) & (want <= high)).sum())
        error += float((r.log_prob - want).sum())
        variance += float(r.std_error.square().sum())
    assert binom.ppf(1e-3, 480, 0.93) <= hits <= binom.ppf(1 - 1e-3, 480, 0.97)
    assert abs(error) < 4 * math.sqrt(variance)


@both
def test_the_standard_error_falls_as_the_root_of_the_draws(estimate):
    """A ratio of mean variances over 64 rows is known to about 10 %."""
    data = mixture(2)
    x, model = data.sample(64, seed=0), data.model(sdediff.VP())
    few, many = (estimate(model, x, draws=d, seed=3).std_error.square().mean() for d in (256, 1024))
    assert float(few / many) == pytest.approx(4, rel=0.35)


# -- rows and reports ----------------------------------------------------------------------------------------


@both
def test_a_row_does_not_depend_on_its_batch(estimate):
    data = mixture(2)
    model, x = data.model(sdediff.VP()), data.sample(12, seed=1)
    whole = estimate(model, x, draws=64, seed=3)
    parts = estimate(model, x, draws=64, seed=3, batch_size=5)
    alone = estimate(model, x[7:8], draws=64, seed=3, indices=[7])
    assert torch.allclose(parts.log_prob, whole.log_prob, rtol=1e-10)
    assert torch.allclose(parts.std_error, whole.std_error, rtol=1e-8)
    assert torch.allclose(alone.log_prob, whole.log_prob[7:8], rtol=1e-10)


@both
def test_what_is_reported(estimate):
    data = mixture(2)
    x = data.sample(3, seed=0)
    r = estimate(data.model(sdediff.VP()), x.float(), draws=16)
    assert r.kind.estimator == "lower bound"
    assert r.kind.estimand == ("density" if estimate is elbo else "extrapolated density")
    assert r.nfe.tolist() == [32] * 3 and r.divergence_evaluations.tolist() == [0] * 3
    assert bool(r.std_error.isnan().all()) and bool(r.log_prob.isfinite().all())
    assert r.log_prob.dtype == F64 and (r.prior, r.dim) == ("matched", 2)
    wide = estimate(data.model(sdediff.VP()), x.float().double(), draws=16)
    assert float((wide.log_prob - r.log_prob).abs().max()) < 1e-3  # x is float32 in both


def test_the_two_draw_noise_of_their_own():
    """Else their difference would have another error than the two say: 256 rows, within 4 deviations."""
    data = mixture(2)
    x, model = data.sample(256, seed=0), data.model(sdediff.VP())
    want = data.log_prob(None, x, None)
    a, b = (((r := f(model, x)).log_prob - want) / r.std_error for f in (elbo, i_mmse))
    assert abs(float(torch.corrcoef(torch.stack([a, b]))[0, 1])) < 4 / 16


def test_conditions_go_with_their_rows():
    model = sdediff.from_callable(
        lambda x, t, c: (c - x) / (1 + t[:, None] ** 2), sdediff.EDM(), prediction="score", data_shape=(2,)
    )
    means = torch.arange(6, dtype=F64).view(3, 2)
    prior = Moments.of(torch.zeros(2), torch.ones(2)).noised(1, model.process.t_max)
    r = model.i_mmse(means, cond=means, prior=prior, draws=512, batch_size=7)
    assert bool(((r.log_prob + math.log(2 * math.pi)).abs() < 5 * r.std_error + 1e-2).all())
    swapped = model.i_mmse(means, cond=means.flip(0), prior=prior, draws=512)
    assert float(swapped.log_prob[0]) < float(r.log_prob[0]) - 5


@both
@pytest.mark.parametrize("draws", [0, 8, 40, True])
def test_draws_that_do_not_fit(estimate, draws):
    data = mixture(2)
    with pytest.raises(ValueError, match=r"draws=.*give a multiple of 16"):
        estimate(data.model(sdediff.VP()), data.sample(2), draws=draws)


def test_a_network_that_fails_is_told():
    model = sdediff.from_callable(
        lambda x, t: torch.where(x > 30, math.nan, -x), sdediff.VP(), prediction="score", data_shape=(1,)
    )
    r = model.elbo(torch.tensor([[0.0], [60.0]], dtype=F64), draws=32)
    assert r.status.tolist() == [0, 1] and r.log_prob.isnan().tolist() == [False, True]


# -- Itô -----------------------------------------------------------------------------------------------------


@every_process
def test_itos_density_is_exact_for_gaussian_data(process):
    data = gaussian(3)
    r = sample_with_ito_density(data.model(process), 6, steps=20, dtype=F64)
    assert float((r.log_prob - noised(data, process, r.x)).abs().max()) < 1e-7
    assert r.likelihood.kind == "density/biased" and float(r.likelihood.std_error.max()) < 1e-7
    assert r.likelihood.nfe.tolist() == [40] * 6


@pytest.mark.parametrize("solver", ["euler-maruyama", "ancestral"])
def test_itos_density_converges_and_says_how_far_it_is(solver):
    """Order 1/2 at least; at 400 steps intervals hold for 93 %, and the standard error fits."""
    data, process = mixture(2), sdediff.VP()
    model, size = data.model(process), {}
    for steps in (50, 400):
        r = model.sample_with_ito_density(300, solver, steps=steps, grid="log-snr", seed=1, dtype=F64)
        error = r.log_prob - noised(data, process, r.x)
        size[steps] = float(error.square().mean().sqrt())
    assert size[50] / size[400] > 8**0.5
    low, high = r.likelihood.interval()
    want = r.log_prob - error
    assert float(((low <= want) & (want <= high)).double().mean()) >= 0.93
    assert float(r.likelihood.std_error.square().mean().sqrt()) == pytest.approx(size[400], rel=0.25)


def test_itos_samples_are_the_solvers_own():
    model = mixture(2).model(sdediff.VP())
    r = model.sample_with_ito_density(7, steps=30, seed=4, batch_size=3, indices=torch.arange(3, 10))
    x = model.sample(7, "euler-maruyama", steps=30, seed=4, indices=torch.arange(3, 10))
    assert torch.equal(r.x, x)


@pytest.mark.parametrize(
    ("solver", "why"),
    [
        ("gotta-go-fast", "chooses its own steps"),
        ("pc", "adds noise of its own"),
        ("rk4", "solves no SDEs"),
    ],
)
def test_solvers_without_an_ito_path(solver, why):
    with pytest.raises(TypeError, match=why):
        sample_with_ito_density(mixture(2).model(sdediff.VP()), 2, solver)


# -- the report ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES[:3], ids=lambda p: type(p).__name__)
def test_the_report_agrees_on_an_exact_score(process):
    """Three gaps of which each is out of its interval once in 20, and out of twice that once in 16,000."""
    data = eight_gaussians(dtype=F64)
    report = data.model(process).likelihood_report(data.sample(40, seed=2), seed=5)
    assert len(report.gaps) == 3 and max(report.asymmetry.values()) < 1e-10
    for gap in report.gaps:
        assert abs(gap.value) < 2 * gap.margin + 1e-2  # VE leaves noise of 1e-4 at t_min
    page = str(report)
    assert "density/exact" in page and "extrapolated density/lower bound" in page and "gradient" in page
    assert page.count(" less ") == 3 and "noise left at t_min" in page


def test_the_report_tells_a_field_that_is_no_gradient():
    x = torch.randn(60, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    report = likelihood_report(turning(), x)
    ode_elbo, ode_mmse, _ = report.gaps
    assert ode_elbo.significant and ode_mmse.significant and ode_elbo.value > 0.1
    assert "slack" in ode_elbo.parts and ": significant." in str(ode_elbo)
    want = C / math.sqrt(1 + C**2)  # J = (C R - I)/(1 + v) at every level; probes: 3 standard deviations
    assert all(share == pytest.approx(want, rel=0.25) for share in report.asymmetry.values())


def test_the_report_leaves_out_failed_rows_and_unknown_errors():
    data = eight_gaussians(dtype=F64)
    report = likelihood_report(data.model(sdediff.VP()), data.sample(6, seed=0), draws=16)
    assert report.gaps[0].significant is None and "unknown significance" in str(report)
    broken = report.ode.log_prob.clone()
    broken[2] = math.nan
    report = replace(report, ode=replace(report.ode, log_prob=broken))
    assert report.rows.tolist() == [True, True, False, True, True, True]
    assert (
        "(left out without a value: 1)" in str(report) and "nan nats" not in str(report).split("less")[1][:20]
    )


def test_the_report_compares_no_extrapolated_flow():
    data = eight_gaussians()
    with pytest.raises(TypeError, match="leave extrapolate out"):
        likelihood_report(data.model(sdediff.VP()), data.sample(2), extrapolate=True)


def test_the_probes_are_named_where_there_are_any():
    data = mixture(2)
    report = likelihood_report(
        data.model(sdediff.VP()), data.sample(4, seed=0), divergence=sdediff.Hutchinson(2), draws=32
    )
    assert "the flow's probes" in report.gaps[0].parts and "probes" not in report.gaps[2].parts


def test_levels_outside_the_interval_are_left_out():
    found = score_asymmetry(turning(), torch.zeros(4, 2, dtype=F64), t_span=(0.05, 2.0))
    assert sorted(found) == [0.1, 0.3, 1.0]
