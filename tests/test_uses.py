"""Uses of log-likelihoods: Bayes' rule, anomaly scores, ROC curves, interpolation; against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import binom, norm
from torch import Tensor
from torch.distributions import MultivariateNormal

import sdediff
from sdediff import viz
from sdediff.interpolation import slerp
from sdediff.prior import GaussianPrior, Moments
from sdediff.reference import Gaussian, GaussianMixture, random_mixture

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
TIGHT = {"rtol": 1e-7, "atol": 1e-7}
REPEATS = 200
PROBES = {"divergence": sdediff.Hutchinson(2), "nodes": 33, "rtol": 1e-4, "atol": 1e-4}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# -- conditional densities -----------------------------------------------------------------------------------


class LinearGaussian:
    """x ~ N(m, C), y = A x + noise: p(x | y) is Gaussian, with a mean linear in y and one covariance."""

    mean = torch.tensor([0.5, -1.0, 0.2], dtype=F64)
    cov = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.8, -0.2], [0.0, -0.2, 0.6]], dtype=F64)
    forward = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.9, 0.0]], dtype=F64)
    noise = 0.25 * torch.eye(2, dtype=F64)

    def __init__(self) -> None:
        joint = self.forward @ self.cov @ self.forward.T + self.noise
        self.gain = torch.linalg.solve(joint, self.forward @ self.cov).T
        self.posterior_cov = self.cov - self.gain @ self.forward @ self.cov

    def draw(self, n: int, seed: int) -> tuple[Tensor, Tensor]:
        x = self.mean + normal(n, 3, seed=seed) @ torch.linalg.cholesky(self.cov).T
        return x, x @ self.forward.T + 0.5 * normal(n, 2, seed=seed + 1)

    def posterior_mean(self, y: Tensor) -> Tensor:
        return self.mean + (y - self.mean @ self.forward.T) @ self.gain.T

    def given(self, y: Tensor, process: sdediff.GaussianProcess, t: float) -> MultivariateNormal:
        """The law of x_t given y."""
        alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
        cov = alpha**2 * self.posterior_cov + sigma**2 * torch.eye(3, dtype=F64)
        return MultivariateNormal(alpha * self.posterior_mean(y), cov)

    def model(self, process: sdediff.GaussianProcess) -> sdediff.DiffusionModel:
        def score(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            alpha, sigma = (v[:, None, None] for v in (process.alpha(t), process.sigma(t)))
            cov = alpha**2 * self.posterior_cov + sigma**2 * torch.eye(3, dtype=F64)
            return torch.linalg.solve(cov, alpha[:, 0] * self.posterior_mean(y) - x)

        return sdediff.from_callable(score, process, data_shape=(3,), data_mean=self.mean, data_cov=self.cov)


@every_process
def test_a_conditional_log_prob_is_the_conditional_density(process):
    """With the condition's own prior at t_max, to 1e-4 nats; with the model's, off by the priors' ratio."""
    problem = LinearGaussian()
    x, y = problem.draw(24, seed=0)
    model, t = problem.model(process), process.t_min
    alpha = float(process.alpha(t))
    exact = problem.given(y, process, t).log_prob(alpha * x) + 3 * math.log(alpha)
    end = problem.given(y, process, process.t_max)

    class OfEach:  # every row's own end of the path
        name = "conditional"

        def log_prob(self, z: Tensor) -> Tensor:
            return end.log_prob(z)

        def transform(self, normal: Tensor) -> Tensor:
            return end.loc + normal @ torch.linalg.cholesky(end.covariance_matrix[0]).T

    own = model.log_prob(x, cond=y, prior=OfEach(), **TIGHT)
    assert float((own - exact).abs().max()) < 1e-4
    r = model.log_likelihood(x, cond=y, **TIGHT)
    gap = model.prior_at(process.t_max).log_prob(r.latent) - end.log_prob(r.latent)
    assert float((r.log_prob - exact - gap).abs().max()) < 1e-4
    if float(process.sigma(t)) / alpha < 3e-3:  # the noise left at t_min is small: all but VE's
        clean = MultivariateNormal(problem.posterior_mean(y), problem.posterior_cov)
        assert float((own - clean.log_prob(x)).abs().mean()) < 1e-4


def test_one_condition_serves_all_rows():
    process = sdediff.VP()
    problem = LinearGaussian()
    x, y = problem.draw(5, seed=3)
    model = problem.model(process)
    prior = Moments.of(problem.posterior_mean(y[0]), problem.posterior_cov).noised(
        float(process.alpha(process.t_max)), float(process.sigma(process.t_max))
    )
    got = model.log_prob(x, cond=y[0], prior=prior, **TIGHT)
    alpha = float(process.alpha(process.t_min))
    want = problem.given(y[0], process, process.t_min).log_prob(alpha * x) + 3 * math.log(alpha)
    assert float((got - want).abs().max()) < 1e-4


# -- Bayes' rule ---------------------------------------------------------------------------------------------

CLASSES = [random_mixture(4, 3, seed=s, dtype=F64) for s in range(3)]


@pytest.fixture(scope="module")
def conditional() -> sdediff.DiffusionModel:
    """Three mixtures in 4 dimensions, by label; their common mean and covariance give the prior."""
    process = sdediff.VP()

    def score(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        if bool((label == label[0]).all()):  # as a class at a time is asked for
            return CLASSES[int(label[0])].score(process, x, t)
        each = torch.stack([data.score(process, x, t) for data in CLASSES])
        return each[label, torch.arange(len(x))]

    pool = torch.cat([data.sample(4000, seed=9) for data in CLASSES])
    return sdediff.from_callable(
        score, process, data_shape=(4,), data_mean=pool.mean(0), data_cov=torch.cov(pool.T)
    )


@pytest.fixture(scope="module")
def labelled() -> tuple[Tensor, Tensor]:
    x = torch.cat([data.sample(20, seed=4) for data in CLASSES])
    return x, torch.arange(3).repeat_interleave(20)


def test_the_posterior_is_bayes_rule(conditional, labelled):
    """Against the densities evaluated: noised to t_min, with one prior at t_max for all classes."""
    x, labels = labelled
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    result = conditional.classify(x, range(3), class_prior=10 * weights, **TIGHT)
    process, prior = conditional.process, conditional.prior_at(1.0)
    alpha = process.alpha(process.t_min)
    columns = []
    for data, r in zip(CLASSES, result.likelihoods, strict=True):
        noised = data.log_prob(process, alpha * x, process.t_min) + 4 * alpha.log()
        columns.append(noised + prior.log_prob(r.latent) - data.log_prob(process, r.latent, 1.0))
    exact = torch.stack(columns, dim=1) + weights.log()
    near = exact > exact.max(dim=1, keepdim=True).values - 20  # far from a class all errors grow
    assert float((result.log_joint - exact).abs()[near].max()) < 1e-3
    assert float((result.posterior - exact.softmax(1)).abs().max()) < 1e-4
    assert torch.allclose(result.log_evidence, exact.logsumexp(1), atol=1e-3)
    assert torch.allclose(result.posterior.sum(1), torch.ones(60, dtype=F64), atol=1e-12)
    assert torch.equal(result.predicted, exact.argmax(1))
    clean = torch.stack([data.log_prob(None, x, None) for data in CLASSES], dim=1) + weights.log()
    assert float((result.posterior - clean.softmax(1)).abs().max()) < 0.02
    assert float((result.predicted == labels).double().mean()) > 0.8
    assert result.posterior.shape == (60, 3) and result.conds.tolist() == [0, 1, 2]
    assert [r.kind for r in result.likelihoods] == ["density/exact"] * 3


def test_a_class_has_the_likelihood_it_has_alone(conditional, labelled):
    x, probes = labelled[0][::12], PROBES
    result = conditional.classify(x, [2, 0], seed=5, **probes)
    for label, r in zip((2, 0), result.likelihoods, strict=True):
        alone = conditional.log_likelihood(x, cond=torch.tensor(label), seed=5, **probes)
        assert torch.allclose(r.log_prob, alone.log_prob, rtol=1e-10)
        assert torch.allclose(r.std_error, alone.std_error, rtol=1e-8)


def test_the_class_prior_shifts_the_log_odds_and_no_more(conditional, labelled):
    x = labelled[0][:6]
    coarse = {"nodes": 17, "rtol": 1e-3, "atol": 1e-3}
    equal = conditional.classify(x, range(3), **coarse)
    skewed = conditional.classify(x, range(3), class_prior=[1, 2, 5], **coarse)
    for a, b, ratio in ((0, 1, 1 / 2), (2, 1, 5 / 2)):
        shift = skewed.log_odds(a, b).log_prob - equal.log_odds(a, b).log_prob
        assert torch.allclose(shift, torch.full((6,), math.log(ratio), dtype=F64), atol=1e-12)
    never = conditional.classify(x, range(3), class_prior=[1, 0, 1], **coarse)
    assert float(never.posterior[:, 1].max()) == 0 and bool((never.predicted != 1).all())


def test_log_odds_and_their_errors(conditional, labelled):
    x = labelled[0]
    tight = conditional.classify(x, range(3), rtol=1e-8, atol=1e-8)
    loose = conditional.classify(x, range(3), rtol=1e-4, atol=1e-4)
    best, rows = tight.predicted, range(len(x))
    for other in (tight.log_joint.topk(2).indices[:, 1], tight.log_joint.argmin(1), 1):
        odds = loose.log_odds(best, other)
        assert torch.allclose(odds.log_prob, -loose.log_odds(other, best).log_prob, atol=1e-12)
        truth = tight.log_odds(best, other).log_prob
        assert torch.allclose(truth, tight.log_joint[rows, best] - tight.log_joint[rows, other])
        low, high = odds.interval(0.95)
        assert float(((low <= truth) & (truth <= high)).double().mean()) >= 0.95
    assert bool((tight.predicted == loose.predicted)[loose.sure()].all())


@pytest.mark.parametrize("row", [0, 25, 45])
def test_intervals_of_log_odds_cover_whatever_the_correlation(conditional, labelled, row):
    """200 sets of probes a point, whose errors under two classes correlate by -0.6 to 0.8.

    Below what a 95 % interval covers once in 1000 times: failure. A root mean square of 200 standard errors,
    and a standard deviation of 200 draws, are known to 5 % or 10 %.
    """
    point = labelled[0][row : row + 1]
    exact = conditional.classify(point, range(3), **TIGHT)
    common = conditional.classify(point.expand(REPEATS, -1), range(3), **PROBES)
    for a, b in ((0, 1), (1, 2)):
        odds, truth = common.log_odds(a, b), exact.log_odds(a, b).log_prob
        low, high = odds.interval(0.95)
        assert int(((low <= truth) & (truth <= high)).sum()) >= binom.ppf(1e-3, REPEATS, 0.95)
        assert float(odds.log_prob.std()) < 1.2 * float(odds.std_error.square().mean().sqrt())


def test_common_probes_sharpen_the_differences_of_similar_classes():
    """Two mixtures, one a little shifted: their traces err alike, and the difference hardly errs."""
    process, data = sdediff.VP(), CLASSES[0]

    def score(x: Tensor, t: Tensor, shift: Tensor) -> Tensor:
        return data.score(process, x - process.alpha(t)[:, None] * shift, t)

    model = sdediff.from_callable(score, process, data_shape=(4,), data_mean=data.mean, data_cov=data.cov)
    x = data.sample(1, seed=4).expand(100, -1)
    result = model.classify(x, [[0.0] * 4, [0.05] * 4], **PROBES)
    assert float(result.log_odds(0, 1).log_prob.std()) < 0.2 * float(result.log_prob[:, 0].std())


def test_sure_is_what_the_intervals_say(conditional, labelled):
    x = labelled[0][:20]
    result = conditional.classify(x, range(3), divergence=sdediff.Hutchinson(2), nodes=33)
    sure = result.sure(0.95)
    for i in range(20):
        best = int(result.predicted[i])
        lower = [float(result.log_odds(best, c).interval(0.95)[0][i]) for c in range(3) if c != best]
        assert bool(sure[i]) == (min(lower) > 0)
    # One probe has no error: nothing is sure, whatever the margin.
    one = conditional.classify(x[:4], range(3), divergence=sdediff.Hutchinson(1), nodes=17)
    assert not bool(one.sure().any())


def test_a_network_knows_its_labels_and_rows_stay_apart():
    torch.manual_seed(0)
    net = sdediff.networks.MLP(dim=4, hidden=16, blocks=1, num_classes=5)
    torch.nn.init.normal_(net.output.weight, std=0.05)
    model = sdediff.DiffusionModel(net.double(), sdediff.VP(), "edm", (2, 2))
    x = normal(6, 2, 2, seed=0)
    probes = {"divergence": sdediff.Hutchinson(2), "nodes": 17}
    result = model.classify(x, **probes)
    assert result.posterior.shape == (6, 5) and result.conds.tolist() == list(range(5))
    order = torch.tensor([4, 0, 5, 2])
    some = model.classify(x[order], indices=order, batch_size=3, **probes)
    assert torch.allclose(some.log_prob, result.log_prob[order], rtol=1e-9)
    vectors = sdediff.networks.MLP(dim=4, hidden=16, blocks=1, cond_dim=2).double()
    model = sdediff.DiffusionModel(vectors, sdediff.VP(), "edm", (4,))
    assert model.classify(normal(2, 4, seed=1), torch.eye(2), nodes=17).posterior.shape == (2, 2)


def test_a_row_that_failed_has_no_class():
    process = sdediff.VP()

    def score(x: Tensor, t: Tensor, mean: Tensor) -> Tensor:
        return process.alpha(t)[:, None] * mean - x + torch.where((x > 50) & (mean > 0), math.nan, 0.0)

    model = sdediff.from_callable(score, process, data_shape=(1,))
    x = torch.tensor([[0.5], [60.0], [-0.5]], dtype=F64)
    result = model.classify(x, [[-1.0], [1.0]], on_failure="ignore")
    assert result.predicted.tolist() == [1, -1, 0] and result.sure().tolist() == [True, False, True]
    assert bool(result.posterior[1].isnan().all()) and math.isnan(float(result.log_odds(0, 0).log_prob[1]))
    assert "2 rows known" in repr(result)


# -- anomaly scores ------------------------------------------------------------------------------------------


def test_scores_are_what_they_are_called(conditional):
    data = random_mixture(4, 3, seed=0, dtype=F64)
    model, x, held_out = data.model(sdediff.VP()), data.sample(30, seed=1), data.sample(80, seed=2)
    log_p, reference = model.log_prob(x), model.log_likelihood(held_out)
    plain = model.anomaly_score(x)
    assert torch.equal(plain.value, -log_p) and plain.reference is None
    typical = model.anomaly_score(x, reference, kind="typicality")
    assert torch.allclose(typical.value, (log_p - reference.log_prob.mean()).abs(), rtol=1e-12)
    again = model.anomaly_score(x, held_out, kind="typicality")
    assert torch.allclose(again.value, typical.value, atol=1e-9) and "typicality" in repr(again)


@pytest.mark.parametrize("kind", ["log-density", "typicality"])
def test_intervals_of_scores_hold_the_score_and_cover(kind):
    data = random_mixture(8, 3, seed=0, dtype=F64)
    model, x = data.model(sdediff.VP()), data.sample(200, seed=1)
    reference = model.log_likelihood(data.sample(60, seed=2))
    exact = model.anomaly_score(x, reference, kind=kind).value
    probes = sdediff.Hutchinson(2)
    likelihood = model.log_likelihood(x, divergence=probes)
    scores = sdediff.AnomalyScores(kind, likelihood, reference)
    low, high = scores.interval(0.95)
    assert bool(((low <= scores.value) & (scores.value <= high)).all())
    # 200 points: below what a 95 % interval covers once in 1000 times.
    assert int(((low <= exact) & (exact <= high)).sum()) >= binom.ppf(1e-3, 200, 0.95)
    if kind == "typicality":
        assert bool((low >= 0).all()) and bool((low == 0).any())
    with pytest.raises(ValueError, match="cannot be compared or averaged"):
        model.anomaly_score(x[:2], reference, kind=kind, divergence=probes)


@pytest.mark.parametrize("kind", ["log-density", "typicality"])
def test_p_values_of_normal_data_are_uniform_and_of_odd_data_small(kind):
    """Normal data: at most q of 2000 below q, within 4 standard deviations (1 in 30,000 a level)."""
    data = Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64))
    model = data.model(sdediff.VP())
    settings = {"solver": "ddim", "steps": 12}  # monotone in |x|: enough to rank
    reference = model.log_likelihood(data.sample(1999, seed=2), **settings)
    p = model.anomaly_score(data.sample(2000, seed=1), reference, kind=kind, **settings).p_value()
    for q in (0.05, 0.2, 0.5):
        spread = math.sqrt(q * (1 - q) * (1 / 2000 + 1 / 1999))  # of the data, and of the reference
        assert abs(float((p <= q).double().mean()) - q) < 4 * spread
    odd = model.anomaly_score(torch.full((1, 2), 5.0, dtype=F64), reference, kind=kind, **settings).p_value()
    assert odd.tolist() == [1 / 2000]


def test_failed_rows_have_no_score_and_no_p_value():
    process = sdediff.VP()
    model = sdediff.from_callable(
        lambda x, t: -x + torch.where(x > 50, math.nan, 0.0), process, data_shape=(1,)
    )
    x = torch.tensor([[0.5], [60.0]], dtype=F64)
    scores = model.anomaly_score(x, normal(20, 1, seed=0), on_failure="ignore")
    assert scores.value.isnan().tolist() == [False, True] == scores.p_value().isnan().tolist()


# -- ROC -----------------------------------------------------------------------------------------------------


def delong(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Area and variance by their definitions, over all pairs."""
    pairs = (y > x[:, None]).double() + 0.5 * (y == x[:, None]).double()
    placements = pairs.mean(1).var() / len(x) + pairs.mean(0).var() / len(y)
    return float(pairs.mean()), float(placements)


def test_the_area_and_its_error_are_those_of_all_pairs():
    for ties in (False, True):
        x, y = normal(37, seed=0), normal(23, seed=1) + 0.8
        x, y = (torch.round(v) if ties else v for v in (x, y))
        curve, (area, variance) = sdediff.roc(x, y), delong(x, y)
        assert curve.auc == pytest.approx(area, abs=1e-14)
        assert curve.std_error == pytest.approx(math.sqrt(variance), rel=1e-12)
        assert curve.auc == pytest.approx(float(torch.trapezoid(curve.tpr, curve.fpr)), abs=1e-12)
        back = sdediff.roc(y, x)
        assert back.auc == pytest.approx(1 - area, abs=1e-14)
        low, high = curve.interval()
        assert back.interval() == pytest.approx((1 - high, 1 - low), abs=1e-7)
        for threshold, fpr, tpr in zip(curve.thresholds, curve.fpr, curve.tpr, strict=True):
            assert (float((x >= threshold).double().mean()), float((y >= threshold).double().mean())) == (
                pytest.approx((float(fpr), float(tpr)))
            )


def test_a_small_curve_by_hand():
    """Scores 1 3 5 and 2 4 6 8: 9 of 12 pairs in order; placements 1/3 2/3 1 1 and 1 3/4 1/2."""
    curve = sdediff.roc(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([2.0, 4.0, 6.0, 8.0]))
    assert curve.auc == pytest.approx(9 / 12) and curve.sizes == (3, 4)
    assert curve.std_error**2 == pytest.approx((11 / 36) / 3 / 4 + (1 / 16) / 3)
    assert curve.fpr.tolist()[0] == 0 and curve.tpr.tolist()[-1] == 1 and math.isinf(curve.thresholds[0])


def test_sets_perfectly_apart_leave_room_for_doubt():
    """Newcombe's bound solves (1 - a) = z^2 a h(a) / (n m), which for n = m = 10 lies near 0.82."""
    curve = sdediff.roc(torch.arange(10.0), torch.arange(10.0) + 20)
    assert (curve.auc, curve.std_error) == (1.0, 0.0)
    low, high = curve.interval(0.95)
    assert high == 1.0 and 0.7 < low < 0.9
    shape = 1 + 9 * ((1 - low) / (2 - low) + low / (1 + low))
    assert 1 - low == pytest.approx(norm.ppf(0.975) ** 2 * low * shape / 100, rel=1e-7)
    assert curve.interval(0.5)[0] > low and "auc=1.0000" in repr(curve)


@pytest.mark.parametrize("spread", [1.0, 3.0])
@pytest.mark.parametrize(("area", "n", "m"), [(0.8, 20, 60), (0.95, 40, 40), (0.99, 60, 20)])
def test_intervals_of_the_area_cover(spread, area, n, m):
    """Two Gaussians: area = Phi(shift / |spread|). 200 pairs of sets; fails once in 1000 times at 94 %."""
    shift = float(norm.ppf(area)) * math.hypot(1, spread)
    x, y = normal(200, n, seed=5), shift + spread * normal(200, m, seed=6)
    held = 0
    for a, b in zip(x, y, strict=True):
        low, high = sdediff.roc(a, b).interval(0.95)
        held += low <= area <= high
    assert held >= binom.ppf(1e-3, 200, 0.94)


def test_curves_are_drawn_with_their_areas():
    curve = sdediff.roc(normal(30, seed=0), normal(30, seed=1) + 1)
    figure = viz.roc_curves({"one": curve, "two": curve}, title="title")
    lines = figure.axes[0].lines
    assert len(lines) == 3 and lines[1].get_xdata().tolist() == curve.fpr.tolist()
    assert lines[2].get_label().startswith(f"two: {curve.auc:.3f}")


# -- interpolation -------------------------------------------------------------------------------------------


def priors() -> list:
    rows = normal(50, 6, seed=0) @ normal(6, 6, seed=1)
    low_rank = Moments(
        normal(6, seed=2),
        torch.linalg.qr(normal(6, 2, seed=3)).Q,
        torch.tensor([3.0, 0.5]),
        torch.tensor(0.1),
    )
    return [
        Moments.learn(rows).noised(0.7, 0.4),
        Moments.of(normal(6, seed=4), torch.rand(6) + 0.1).noised(0.7, 0.4),
        Moments.of(normal(6, seed=4), torch.tensor(2.0)).noised(0.7, 0.4),
        low_rank.noised(0.7, 0.4),
        sdediff.reference.eight_gaussians().model(sdediff.VE()).prior_at(1.0, "standard"),
    ]


@pytest.mark.parametrize("prior", priors(), ids=["full", "diagonal", "isotropic", "low rank", "standard"])
def test_whitening_is_the_inverse_of_the_transform(prior):
    w = normal(9, 6, seed=7)
    z = prior.transform(w)
    assert torch.allclose(prior.whiten(z), w, atol=1e-12)
    base = MultivariateNormal(torch.zeros(6, dtype=F64), torch.eye(6, dtype=F64))
    jacobian = prior.log_prob(z) - base.log_prob(prior.whiten(z))  # constant: the map is linear
    assert torch.allclose(jacobian, jacobian[:1].expand(9), atol=1e-10)


@every_process
def test_between_gaussian_data_the_closed_form(process):
    """The flow is linear and its whitened latents are those of the data: x = m + L slerp(L^-1 (x - m))."""
    data = Gaussian([1.0, -2.0, 0.5], [[1.0, 0.6, 0.0], [0.6, 1.5, 0.3], [0.0, 0.3, 0.4]])
    model = data.model(process)
    x_a, x_b = data.sample(4, seed=0).double(), data.sample(4, seed=1).double()
    got = model.interpolate(x_a, x_b, n=5, rtol=1e-8, atol=1e-8)
    noise = float(process.sigma(process.t_min) / process.alpha(process.t_min))
    root: GaussianPrior = Moments.of(data.mean, data.cov).noised(1.0, noise)
    between = slerp(root.whiten(x_a), root.whiten(x_b), torch.linspace(0, 1, 5, dtype=F64))
    want = torch.stack([root.transform(w) for w in between], dim=1)
    assert got.shape == (4, 5, 3)
    assert float((got - want).abs().max()) < 1e-6


def test_the_ends_come_back_and_exchanging_them_reverses():
    data = GaussianMixture([[-2.0, 0.5], [2.0, 0.0], [0.0, 3.0]], [0.2, 0.1, 0.3], [1, 2, 1])
    model = data.model(sdediff.VP())
    x_a, x_b = data.sample(5, seed=0).double(), data.sample(5, seed=1).double()
    there = model.interpolate(x_a, x_b, n=6, rtol=1e-7, atol=1e-7)
    assert float((there[:, 0] - x_a).abs().max()) < 1e-5 and float((there[:, -1] - x_b).abs().max()) < 1e-5
    back = model.interpolate(x_b, x_a, n=6, rtol=1e-7, atol=1e-7)
    assert float((back.flip(1) - there).abs().max()) < 1e-5
    chunked = model.interpolate(x_a, x_b, n=6, rtol=1e-7, atol=1e-7, batch_size=4)
    assert torch.allclose(chunked, there, atol=1e-9)
    fixed = model.interpolate(x_a, x_b, n=3, solver="rk4", steps=100, prior="standard")
    assert float((fixed[:, 0] - x_a).abs().max()) < 1e-3


def test_conditions_go_along():
    process = sdediff.VP()

    def score(x: Tensor, t: Tensor, mean: Tensor) -> Tensor:  # x_0 ~ N(mean, 1): only a shift
        return process.alpha(t)[:, None] * mean - x

    model = sdediff.from_callable(score, process, data_shape=(2,))
    x_a, x_b = normal(3, 2, seed=0), normal(3, 2, seed=1)
    means = torch.tensor([[0.0, 0.0], [5.0, 1.0], [-3.0, 2.0]], dtype=F64)
    options = {"n": 3, "rtol": 1e-8, "atol": 1e-8, "prior": "standard"}
    got = model.interpolate(x_a, x_b, cond=means, **options)
    each = [model.interpolate(x_a[i : i + 1], x_b[i : i + 1], cond=means[i], **options) for i in range(3)]
    assert torch.allclose(got, torch.cat(each), atol=1e-7)
    assert float((got[:, 0] - x_a).abs().max()) < 1e-5


def test_slerp_keeps_to_the_sphere_and_is_straight_where_it_must_be():
    a, b = normal(7, 12, seed=0), normal(7, 12, seed=1)
    b = b * (a.norm(dim=1) / b.norm(dim=1))[:, None]
    f = torch.linspace(0, 1, 9, dtype=F64)
    path = slerp(a, b, f)
    assert torch.allclose(path.norm(dim=2), a.norm(dim=1).expand(9, 7), rtol=1e-12)
    step = torch.nn.functional.cosine_similarity(path[1:], path[:-1], dim=2).clamp(max=1).acos()
    assert torch.allclose(step, step[:1].expand(8, 7), rtol=1e-8)  # equal angles
    for other in (2 * a, -a, a + 1e-7 * b):  # parallel, opposite, nearly parallel
        straight = (1 - f)[:, None, None] * a + f[:, None, None] * other
        assert torch.allclose(slerp(a, other, f), straight, atol=1e-12)
    one = slerp(torch.tensor([[-1.0]]), torch.tensor([[3.0]]), torch.tensor([0.25]))
    assert one.tolist() == [[[0.0]]]


# -- messages ------------------------------------------------------------------------------------------------


class NoWhitening:
    name = "mine"

    def log_prob(self, z: Tensor) -> Tensor:
        return -z.square().sum(1)

    def transform(self, normal: Tensor) -> Tensor:
        return normal


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m, x: m.classify(x), ValueError, "knows no number of classes: give conds="),
        (lambda m, x: m.classify(x, 3), ValueError, "give the conditions of two classes or more"),
        (lambda m, x: m.classify(x, [0]), ValueError, "give the conditions of two classes or more"),
        (
            lambda m, x: m.classify(x, [0, 1], class_prior=[1, 2, 3]),
            ValueError,
            "give 2 numbers that are not negative",
        ),
        (
            lambda m, x: m.classify(x, [0, 1], class_prior=[1, -1]),
            ValueError,
            "give 2 numbers that are not negative",
        ),
        (
            lambda m, x: m.classify(x, [0, 1], class_prior="standard"),
            ValueError,
            r"the prior at t_max is prior=",
        ),
        (lambda m, x: m.classify(x[:, :1], [0, 1]), ValueError, "x has shape"),
        (lambda m, x: m.anomaly_score(x, kind="odd"), ValueError, "take one of log-density, typicality"),
        (lambda m, x: m.anomaly_score(x, kind="typicality"), ValueError, "give reference=, data not trained"),
        (lambda m, x: m.anomaly_score(x).p_value(), ValueError, "give anomaly_score a reference="),
        (
            lambda m, x: sdediff.roc(x, x[:, 0]),
            ValueError,
            r"scores_normal is \(4, 2\): give a tensor of two",
        ),
        (lambda m, x: sdediff.roc(x[:, 0], x[:1, 0]), ValueError, "scores_anomalous is"),
        (lambda m, x: sdediff.roc(x[:, 0], math.nan * x[:, 0]), ValueError, "has NaN: leave out the rows"),
        (
            lambda m, x: sdediff.roc(x[:, 0], x[:, 1]).interval(95),
            ValueError,
            "between 0 and 1, such as 0.95",
        ),
        (lambda m, x: viz.roc_curves({}), ValueError, "give at least one label with its curve"),
        (lambda m, x: m.interpolate(x, x, n=1), ValueError, "points of at least 2, both ends included"),
        (lambda m, x: m.interpolate(x, x[:2]), ValueError, "x_a has 4 rows and x_b 2: give pairs"),
        (lambda m, x: m.interpolate(x, x, prior=NoWhitening()), TypeError, "give it a method whiten"),
        (lambda m, x: m.interpolate(x, x, solver="pc"), TypeError, "follows the probability-flow ODE"),
    ],
)
def test_wrong_arguments_get_one_sentence(call, error, said):
    data = random_mixture(2, 3, seed=0, dtype=F64)
    with pytest.raises(error, match=said) as caught:
        call(data.model(sdediff.VP()), data.sample(4, seed=0))
    assert "\n" not in str(caught.value)


def test_a_class_that_is_none(conditional, labelled):
    result = conditional.classify(labelled[0][:3], range(3), nodes=17)
    for wrong in (3, -1, torch.tensor([0, 1])):
        with pytest.raises(ValueError, match="give a number from 0 to 2, or 3 of them"):
            result.log_odds(wrong, 0)


def test_rows_of_likelihoods_can_be_taken(labelled):
    data = CLASSES[0]
    r = data.model(sdediff.VP()).log_likelihood(data.sample(6, seed=0))
    mask = torch.tensor([True, False, True, False, False, True])
    for rows in (slice(1, 4), mask, torch.tensor([5, 0, 0])):
        part = r.take(rows)
        for name in ("log_prob", "std_error", "solver_error", "nfe", "status", "latent"):
            assert torch.equal(getattr(part, name), getattr(r, name)[rows])
        assert (part.kind, part.prior, part.t_span, part.dim) == (r.kind, r.prior, r.t_span, r.dim)
