"""Log-probabilities of discrete data: bounds against closed forms, and what is refused."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from scipy.stats import truncnorm
from torch import Tensor, nn

import sdediff
from sdediff.likelihood import Dequantisation, TruncatedNormal, Uniform, Variational
from sdediff.likelihood.dequantiser import CellNetwork
from sdediff.likelihood.discrete import draw
from sdediff.reference import DiscretisedMixture, GaussianMixture, random_mixture

F64 = torch.float64
VP = sdediff.VP()
QUICK = {"rtol": 1e-5, "atol": 1e-5}


def mixture(dim: int, std: float = 1.0, centred: bool = False) -> DiscretisedMixture:
    """Three diagonal components on 9 levels."""
    generator = torch.Generator().manual_seed(dim)
    means = 2 + 4 * torch.rand(3, dim, generator=generator, dtype=F64)
    stds = std * (0.7 + 0.6 * torch.rand(3, dim, generator=generator, dtype=F64))
    before = GaussianMixture(means, stds.square(), [1, 2, 3])
    return DiscretisedMixture(before, sdediff.Quantisation(9, centred=centred))


def every(data: DiscretisedMixture) -> Tensor:
    return torch.cartesian_prod(*[data.quantisation.values] * data.dim)


# -- levels and cells ----------------------------------------------------------------------------------------


def test_levels_of_any_scaling_are_recognised():
    for levels, low, high in ((17, 0.0, 16.0), (256, -1.0, 1.0), (2, 0.0, 1.0), (65536, -1.0, 1.0)):
        numbers = torch.arange(levels, dtype=torch.float32)
        x = (numbers / (levels - 1) * (high - low) + low)[:, None]
        cells = sdediff.Quantisation(levels, low, high)
        assert torch.equal(cells.index(x), numbers[:, None])
        assert torch.allclose(cells.values.float(), x[:, 0], atol=1e-6)
        assert cells.edges[-1] - cells.edges[0] == pytest.approx(levels * cells.width)


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_points_stay_in_their_cells(dtype, centred):
    cells = sdediff.Quantisation(256, -1.0, 1.0, centred=centred)
    index = torch.arange(256, dtype=dtype)[:, None].expand(-1, 2)
    u = torch.tensor([0.0, 1.0], dtype=dtype)
    y = cells.point(index, u)
    assert bool((y[:, 0] < y[:, 1]).all()) and bool((y[1:, 0] > y[:-1, 1]).all())
    middle = cells.point(index, torch.full_like(u, 0.5))
    assert torch.equal(cells.cell_of(middle), index)


def test_uniform_draw_0_is_dequantise():
    x = torch.tensor([[0.0, 7.0], [16.0, 3.0]], dtype=F64)
    rows = torch.tensor([5, 2])
    seen = Recorder()
    model = random_mixture(2, 2, dtype=F64).model(VP)
    model.discrete_log_likelihood(
        x, sdediff.Quantisation(17), dequantisation=seen, seed=3, indices=rows, nodes=9, **QUICK
    )
    expected = sdediff.dequantise(x, seed=3, indices=rows)
    assert torch.equal(sdediff.Quantisation(17).point(x, seen.u[0]), expected)


class Recorder(Dequantisation):
    """Uniform, and remembers its draws."""

    def __init__(self) -> None:
        self.u: list[Tensor] = []

    def warp(self, v: Tensor, level: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        self.u.append(v)
        return v, v.new_zeros(len(v))


def test_one_draw_is_the_density_of_the_dequantised_point():
    data = mixture(2)
    model, x = data.continuous.model(VP), data.sample(3, seed=0)
    r = model.discrete_log_likelihood(x, data.quantisation, seed=4, **QUICK)
    plain = model.log_likelihood(sdediff.dequantise(x, seed=4), seed=4, **QUICK)
    assert torch.allclose(r.log_prob, plain.log_prob, rtol=0, atol=1e-12)
    assert torch.allclose(r.bits_per_dim(), plain.bits_per_dim(bin_width=1.0), atol=1e-12)
    assert r.kind == "probability/lower bound" and bool(r.std_error.isnan().all())


# -- dequantisations -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UniformPrior:
    """A constant density."""

    log_density: float
    name: str = "uniform"

    def log_prob(self, z: Tensor) -> Tensor:
        return torch.full((len(z),), z.shape[1] * self.log_density, dtype=F64)

    def transform(self, normal: Tensor) -> Tensor:
        return normal


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("levels", "low", "high"), [(17, 0.0, 16.0), (17, -1.0, 1.0), (256, 0.0, 1.0)])
def test_a_uniform_density_is_log2_of_the_levels(levels, low, high, centred):
    """A denoiser D(x) = x leaves points and densities where they are: the prior's density, over any span."""
    process = sdediff.EDM()
    model = sdediff.from_callable(lambda x, t: x, process=process, prediction="x0", data_shape=(3,))
    cells = sdediff.Quantisation(levels, low, high, centred=centred)
    generator = torch.Generator().manual_seed(0)
    x = cells.values[torch.randint(levels, (4, 3), generator=generator)]
    prior = UniformPrior(-math.log(levels * cells.width))
    for weighted in (False, True):
        r = model.discrete_log_likelihood(
            x, cells, draws=3, importance_weighted=weighted, prior=prior, t_span=(0.002, 0.00201)
        )
        assert torch.allclose(r.bits_per_dim(), torch.full((4,), math.log2(levels), dtype=F64), atol=1e-9)
        assert float(r.std_error.max()) < 1e-8 and bool((r.degrees == 2).all())


def variational(network: nn.Module) -> Variational:
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return Variational(network.requires_grad_(False))


@pytest.mark.parametrize(
    "dequantisation",
    [Uniform(), TruncatedNormal(), variational(CellNetwork((1,), 4))],
    ids=lambda d: type(d).__name__,
)
@pytest.mark.parametrize("tau", [0.2, 3.0, 30.0])
def test_log_q_is_the_density_of_the_draws(dequantisation, tau):
    """In one dimension the draw is a rising map of v: q(u) = dv/du, and u covers the cell."""
    v = torch.linspace(0, 1, 20002, dtype=F64)[1:-1, None]
    u, log_q = dequantisation.warp(v, torch.full_like(v, 0.3), torch.tensor(tau, dtype=F64))
    slope = (v[2:] - v[:-2]) / (u[2:] - u[:-2])
    middle = slice(100, -102)
    assert torch.allclose(log_q[1:-1][middle].exp(), slope[middle, 0], rtol=1e-3)
    assert bool((u.diff(dim=0) > 0).all()) and float(u.min()) >= 0 and float(u.max()) <= 1


def test_the_truncated_normal_is_scipys():
    v = torch.tensor([[0.01, 0.4, 0.99]], dtype=F64)
    tau = torch.tensor([0.5, 3.0, 6.0], dtype=F64)
    u, log_q = TruncatedNormal().warp(v, v, tau)
    eps = truncnorm.ppf(v.numpy(), -tau.numpy(), tau.numpy())
    assert u.numpy() == pytest.approx(0.5 + eps / (2 * tau.numpy()), abs=1e-12)
    expected = truncnorm.logpdf(eps, -tau.numpy(), tau.numpy()) + (2 * tau).log().numpy()
    assert float(log_q) == pytest.approx(expected.sum(), abs=1e-10)


@pytest.mark.parametrize("process", [sdediff.VP(), sdediff.Cosine(), sdediff.EDM()], ids=lambda p: p.grid)
def test_the_truncation_sets_the_noise_and_a_span_sets_the_truncation(process):
    data = mixture(2, centred=True)
    model, x = data.model(process), data.sample(2, seed=0)
    q, options = data.quantisation, {"nodes": 9, "rtol": 1e-3, "atol": 1e-3}
    r = model.discrete_log_likelihood(x, q, dequantisation=TruncatedNormal(4.0), **options)
    t = r.t_span[0]
    assert float(process.sigma(t) / process.alpha(t)) == pytest.approx(0.5 / 4.0, rel=1e-6)
    late = model.discrete_log_likelihood(x, q, dequantisation=TruncatedNormal(1e9), **options)
    assert late.t_span[0] == process.t_min  # more noise than that already
    own = (t, process.t_max)
    same = model.discrete_log_likelihood(x, q, dequantisation="truncated-normal", t_span=own, **options)
    assert same.t_span == own and torch.allclose(same.log_prob, r.log_prob, atol=1e-9)


def test_data_on_the_levels_lose_what_is_beyond_the_ends_and_nothing_else():
    """One point: its density at t_min is N(c, noise^2), so each weight is erf(tau / sqrt 2)^d exactly."""
    x = torch.tensor([[3.0, 5.0]], dtype=F64)
    data = GaussianMixture(x, torch.full((1, 2), 1e-12))
    for tau in (1.0, 3.0):
        r = data.model(VP).discrete_log_likelihood(
            x,
            sdediff.Quantisation(9, centred=True),
            dequantisation=TruncatedNormal(tau),
            draws=3,
            rtol=1e-7,
            atol=1e-7,
        )
        assert float(r.log_prob) == pytest.approx(2 * math.log(math.erf(tau / math.sqrt(2))), abs=1e-4)
        assert float(r.std_error) < 1e-4


@pytest.mark.parametrize("shape", [(5,), (1, 4, 3), (2, 6)])
def test_a_dequantiser_learns_the_cells_of_vectors_signals_and_images(shape):
    """A Gaussian of half a cell: the fit takes off most of what uniform noise loses, to the exact P(x)."""
    std, mean, dim = 0.7, 4.2, math.prod(shape)

    def score(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v.reshape(-1, *(1,) * len(shape)) for v in (VP.alpha(t), VP.sigma(t)))
        return (mean * alpha - x) / (alpha**2 * std**2 + sigma**2)

    model = sdediff.from_callable(
        score,
        process=VP,
        prediction="score",
        data_shape=shape,
    )
    cells = sdediff.Quantisation(9)
    generator = torch.Generator().manual_seed(0)
    x = cells.cell_of(mean + std * torch.randn(400, *shape, generator=generator, dtype=F64))
    truth = torch.distributions.Normal(torch.tensor(mean, dtype=F64), std)
    exact = (truth.cdf(x + 1) - truth.cdf(x)).log().flatten(1).sum(1)
    state = torch.get_rng_state()
    q = sdediff.fit_dequantiser(model, x, cells, steps=150, lr=1e-2)
    assert torch.equal(state, torch.get_rng_state())

    def gap(dequantisation: Dequantisation) -> float:
        v = torch.rand(400, *shape, generator=torch.Generator().manual_seed(1), dtype=F64)
        u, log_q = dequantisation.warp(v, cells.unit(x), torch.ones(()))
        log_p = truth.log_prob(cells.point(x, u)).flatten(1).sum(1)
        return float((exact - log_p + log_q).mean()) / dim

    assert gap(Uniform()) > 0.08  # 1/24 std^2
    assert -0.005 < gap(q) < 0.3 * gap(Uniform())
    again = sdediff.fit_dequantiser(model, x, cells, steps=150, lr=1e-2)
    for a, b in zip(q.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(a, b) and not a.requires_grad
    r = model.discrete_log_likelihood(x[:2], cells, dequantisation=q, nodes=9, rtol=1e-2, atol=1e-2)
    assert bool(r.log_prob.isfinite().all()) and r.t_span == (VP.t_min, VP.t_max)


# -- the bound -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rounded() -> tuple[DiscretisedMixture, Tensor, Tensor]:
    """Data of 3 dimensions, components about as wide as a cell; rows; the truth of the continuous model."""
    data = mixture(3, std=0.8)
    x = data.sample(24, seed=1)
    return data, x, data.log_continuous_cell_mass(VP, x, VP.t_min)


def bound(rounded, draws: int, **options) -> sdediff.LogLikelihood:
    data, x, _ = rounded
    model = data.continuous.model(VP)
    return model.discrete_log_likelihood(x, data.quantisation, draws=draws, **{**QUICK, **options})


def test_importance_weighting_closes_the_gap_from_below(rounded):
    """Below the truth within errors, at each of 24 rows: 4.5 standard errors, false alarms below 1e-3."""
    data, x, truth = rounded
    r = bound(rounded, 40, importance_weighted=True)
    assert bool((r.log_prob - truth <= 4.5 * r.std_error + r.solver_error).all())
    options = {"seed": 0, "cond": None, "indices": None, "t_span": None, **QUICK}
    _, w = draw(data.continuous.model(VP), x, data.quantisation, "dopri5", Uniform(), 40, **options)
    gaps = []
    for k in (1, 2, 4, 8, 40):  # in groups of the same draws, so that Jensen's inequality holds for each row
        groups = (w.unflatten(0, (-1, k)).logsumexp(1) - math.log(k)).mean(0)
        gaps.append(float((truth - groups).mean()))
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] == pytest.approx(float((truth - r.log_prob).mean()), abs=1e-12)
    assert gaps[0] == pytest.approx(float((truth - bound(rounded, 40).log_prob).mean()), abs=1e-12)
    assert abs(gaps[-1]) < 4.5 * float(r.std_error.square().sum().sqrt()) / len(x) < 0.15 < gaps[0]


def test_the_mean_weight_has_its_log_k(rounded):
    """Omitting -log K (as released code of a truncated-normal bound does) would overshoot by log 40."""
    r = bound(rounded, 40, importance_weighted=True)
    one = bound(rounded, 1, importance_weighted=True)
    assert float((r.log_prob - rounded[2]).max()) < 0.5 < math.log(40)
    assert torch.allclose(one.log_prob, bound(rounded, 1).log_prob, atol=1e-12)  # log 1 = 0


def test_draws_do_not_depend_on_batches_and_keep_the_first_ones(rounded):
    data, x, _ = rounded
    model = data.continuous.model(VP)
    options = {"draws": 3, "importance_weighted": True, "seed": 5, **QUICK}
    whole = model.discrete_log_likelihood(x, data.quantisation, **options)
    rows = torch.tensor([7, 2])
    part = model.discrete_log_likelihood(x[rows], data.quantisation, indices=rows, batch_size=1, **options)
    assert torch.allclose(part.log_prob, whole.log_prob[rows], rtol=0, atol=1e-10)
    assert torch.allclose(part.std_error, whole.std_error[rows], rtol=0, atol=1e-10)
    singles = torch.tensor([2, 2, 2])
    repeated = model.discrete_log_likelihood(x[singles], data.quantisation, indices=singles, **options)
    assert torch.allclose(repeated.log_prob, whole.log_prob[singles], rtol=0, atol=1e-10)


def test_standard_errors_cover_the_mean_of_the_bound(rounded):
    """95 % intervals with 4 degrees of freedom, 24 rows x 10 seeds, about the mean over 60 other draws.

    240 of which 95 % are 228: below 214 by chance in 2e-3; the reference's own error only lowers the cover.
    """
    reference = bound(rounded, 60, seed=99).log_prob
    covered = 0
    for seed in range(10):
        low, high = bound(rounded, 5, seed=seed, rtol=1e-3, atol=1e-3, nodes=33).interval(0.95)
        covered += int(((low <= reference) & (reference <= high)).sum())
    assert 214 <= covered <= 240


def test_random_probes_add_to_the_error_and_are_independent_between_draws():
    """The scatter of the draws holds that of the probes: the mean over rows agrees with the exact trace."""
    data = mixture(6, std=1.0)
    model, x = data.continuous.model(VP), data.sample(16, seed=1)
    options = {"draws": 8, "seed": 2, "nodes": 33, **QUICK}
    exact = model.discrete_log_likelihood(x, data.quantisation, **options)
    probed = model.discrete_log_likelihood(
        x, data.quantisation, divergence=sdediff.Hutchinson(probes=2), **options
    )
    assert probed.kind == exact.kind == "probability/lower bound"
    assert float(probed.std_error.mean()) > float(exact.std_error.mean())
    # Draws are the same, so the differences are the probes' alone: a mean of 16, each of 8 independent ones.
    extra = (probed.std_error.square() - exact.std_error.square()).mean().clamp(min=0).sqrt()
    difference = probed.log_prob - exact.log_prob
    assert abs(float(difference.mean())) < 4.5 * float(difference.std()) / 4
    assert 0.5 < float(difference.std() / extra) < 2


def test_a_condition_goes_with_every_draw():
    """p(x | c) = N(c, I): the log-ratio of two conditions, from the same draws."""

    class Shifted(nn.Module):
        def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
            noise = torch.exp(4 * t)[:, None]  # sigma / alpha
            z = x * (1 + noise**2).sqrt()
            return (z + noise**2 * cond) / (1 + noise**2)

    model = sdediff.DiffusionModel(Shifted(), sdediff.EDM(), "x0", (2,), prior="standard")
    x, cond = (
        torch.tensor([[3.0, 4.0]], dtype=F64).expand(2, 2),
        torch.tensor([[3.0, 4.0], [5.0, 6.0]], dtype=F64),
    )
    cells = sdediff.Quantisation(9)
    rows = torch.zeros(2, dtype=torch.long)
    seen = Recorder()
    options = {"draws": 3, "indices": rows, "dequantisation": seen, **QUICK}
    r = model.discrete_log_likelihood(x, cells, cond=cond, **options)
    y = x + torch.stack(seen.u)  # (3, 2, 2)
    z = cond + math.sqrt(6401) * (y - cond)  # where the flow takes y, under the prior N(0, 80^2)
    expected = (-z.square() / 12800 + 0.5 * math.log(6401 / 6400)).sum(-1).mean(0)
    assert float(r.log_prob.diff()) == pytest.approx(float(expected.diff()), abs=1e-3)


# -- the reference problem -----------------------------------------------------------------------------------


def test_probabilities_of_all_levels_sum_to_one_and_samples_follow_them():
    """Frequencies of 20000 samples: chi-squared over the cells expected more than 5 times, level 1e-3."""
    data = mixture(2)
    p = data.log_probability(every(data)).exp()
    assert float(p.sum()) == pytest.approx(1, abs=1e-12)
    x = data.sample(20000, seed=0, dtype=F64)
    counts = torch.bincount((x[:, 0] * 9 + x[:, 1]).long(), minlength=81).double()
    often = 20000 * p > 5
    chi = ((counts - 20000 * p).square() / (20000 * p))[often].sum()
    from scipy.stats import chi2

    assert float(chi) < chi2.ppf(0.999, int(often.sum()))
    assert torch.allclose(x.mean(0), data.mean, atol=0.05)
    mean = p @ every(data)
    centred = every(data) - mean
    assert torch.allclose(mean, data.mean, atol=1e-12)
    assert torch.allclose((p[:, None] * centred).mT @ centred, data.cov, atol=1e-12)


@pytest.mark.parametrize("centred", [False, True])
def test_cell_masses_are_integrals_of_the_densities(centred):
    data, t = mixture(1, centred=centred), 0.05
    cells, alpha = data.quantisation, VP.alpha(0.05)
    nodes = (torch.arange(2000, dtype=F64) + 0.5) / 2000
    x = every(data).reshape(-1, 1)
    for problem, masses in ((data, data.log_cell_mass), (data.continuous, data.log_continuous_cell_mass)):
        y = cells.point(cells.index(x), nodes).reshape(-1, 1)
        density = (problem.log_prob(VP, alpha * y, t) + alpha.log()).exp().reshape(len(x), -1)
        assert torch.allclose(density.mean(1) * cells.width, masses(VP, x, t).exp(), rtol=1e-5, atol=1e-9)
    tiny = data.log_cell_mass(VP, x, 1e-5)
    if centred:
        assert torch.allclose(tiny, data.log_probability(x), atol=1e-9)
    else:
        assert float((tiny - data.log_probability(x)).abs().max()) > 0.5  # half of each level is outside


def test_the_levels_law_has_consistent_scores():
    data, t = mixture(2, centred=True), 0.02
    x = (VP.alpha(t) * data.sample(6, seed=0, dtype=F64) + 0.05).requires_grad_()
    score = data.score(VP, x, t)
    (grad,) = torch.autograd.grad(data.log_prob(VP, x, t).sum(), x)
    assert torch.allclose(score, grad, rtol=1e-9)
    jacobian = torch.stack(
        [torch.autograd.grad(score[:, i].sum(), x, retain_graph=True)[0] for i in range(2)], dim=1
    )
    assert torch.allclose(data.jacobian(VP, x.detach(), t), jacobian.detach(), rtol=1e-8)
    with pytest.raises(ValueError, match="no density without noise"):
        data.log_prob(None, x, None)
    with pytest.raises(ValueError, match="entries off its diagonal"):
        DiscretisedMixture(random_mixture(2, 2), sdediff.Quantisation(9))


def test_truncated_normal_draws_reach_the_probability_of_levels():
    """Against the mass of its own density at t_min, and against P(x) but for what lies beyond the cells."""
    data = mixture(3, std=0.8, centred=True)
    x = data.sample(6, seed=1)
    r = data.model(VP).discrete_log_likelihood(
        x, data.quantisation, dequantisation=TruncatedNormal(4.0), draws=6, importance_weighted=True
    )
    own = data.log_cell_mass(VP, x, r.t_span[0])
    assert float((r.log_prob - own).abs().max()) < 0.01
    assert float((r.log_prob - data.log_probability(x)).abs().max()) < 0.01


@pytest.mark.slow
def test_the_gap_is_below_a_hundredth_of_a_bit_at_64_dimensions():
    """17 levels, d = 64, components of 2 cells, uniform noise, K = 20 (`tests/benchmarks/discrete.py`)."""
    generator = torch.Generator().manual_seed(0)
    means = 3 + 11 * torch.rand(4, 64, generator=generator, dtype=F64)
    data = DiscretisedMixture(GaussianMixture(means, torch.full((4, 64), 4.0)), sdediff.Quantisation(17))
    x = data.sample(4, seed=1)
    truth = data.log_continuous_cell_mass(VP, x, VP.t_min)
    r = data.continuous.model(VP).discrete_log_likelihood(
        x, data.quantisation, draws=20, importance_weighted=True, **QUICK
    )
    gap = (truth - r.log_prob) / (64 * math.log(2))
    assert float(gap.mean()) < 0.01
    assert bool((r.log_prob - truth <= 3 * r.std_error + r.solver_error).all())


# -- what is refused -----------------------------------------------------------------------------------------


def test_bits_of_raw_levels_are_never_silent():
    """A density at the levels themselves is no probability: bits per dimension of it would be negative.

    The number needs a width in words; the discrete value needs none, and is never above log 1 = 0.
    """
    data = mixture(2, std=0.8, centred=True)
    model, x = data.model(VP), data.sample(3, seed=0)
    density = model.log_likelihood(x, nodes=33, **QUICK)
    with pytest.raises(ValueError, match="these are densities: give bin_width"):
        density.bits_per_dim()
    assert float(density.bits_per_dim(bin_width=1.0).max()) < 0  # no bits: probabilities above one
    honest = model.discrete_log_likelihood(
        x, data.quantisation, dequantisation="truncated-normal", nodes=33, **QUICK
    )
    assert float(honest.bits_per_dim().min()) > 0
    with pytest.raises(ValueError, match="log-probabilities of discrete data: leave bin_width out"):
        honest.bits_per_dim(bin_width=1.0)
    with pytest.raises(ValueError, match="cannot be compared"):
        honest - density


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[3.0, 4.0], [3.5, 4.0]], "row 1 of x holds 3.5, which is none of the 9 levels from 0 to 8"),
        ([[3.0, 9.0]], "row 0 of x holds 9,"),
        ([[-1.0, 0.0]], "row 0 of x holds -1,"),
        ([[3.0]], "shape"),
    ],
)
def test_values_off_the_levels_are_refused(x, message):
    data = mixture(2)
    with pytest.raises(ValueError, match=message):
        data.continuous.model(VP).discrete_log_likelihood(torch.tensor(x, dtype=F64), data.quantisation)


def test_random_probes_are_refused_inside_the_logarithm():
    data = mixture(2)
    model, x = data.continuous.model(VP), data.sample(2, seed=0)
    probes = {"divergence": sdediff.Hutchinson(), "importance_weighted": True}
    with pytest.raises(ValueError, match="importance weighting needs the exact trace"):
        model.discrete_log_likelihood(x, data.quantisation, draws=2, **probes)
    assert model.discrete_log_likelihood(x, data.quantisation, draws=1, nodes=9, **probes).nfe.min() > 0
    wide = GaussianMixture(torch.zeros(1, 65), 1.0)
    with pytest.raises(ValueError, match=r"sdediff.Exact\(\)"):
        wide.model(VP).discrete_log_likelihood(
            torch.zeros(1, 65), sdediff.Quantisation(2), draws=2, importance_weighted=True
        )


def test_arguments_that_do_not_fit_are_told_in_a_sentence():
    data = mixture(2)
    model, x, cells = data.continuous.model(VP), data.sample(2, seed=0), data.quantisation

    def call(quantisation=cells, **options):
        return model.discrete_log_likelihood(x, quantisation, **options)

    for broken, error, message in (
        (lambda: call(17), TypeError, "quantisation=17 is no description of levels"),
        (lambda: call(draws=0), ValueError, "draws=0: give a whole number"),
        (lambda: call(dequantisation="variational"), ValueError, "'variational' is not known"),
        (lambda: call(dequantisation=3), TypeError, "dequantisation=3 is none"),
        (lambda: call(nonsense=1), TypeError, "nonsense"),
        (lambda: call(divergence="exact"), TypeError, "is no divergence"),
        (lambda: call(dequantisation=Variational(nn.Identity())), ValueError, "a shift and a log-scale"),
        (lambda: sdediff.Quantisation(1), ValueError, "levels=1: give a whole number"),
        (lambda: sdediff.Quantisation(4, 1.0, 1.0), ValueError, "low < high"),
        (lambda: TruncatedNormal(0.0), ValueError, "tau=0.0"),
        (lambda: sdediff.fit_dequantiser(model, x, cells, steps=0), ValueError, "give positive numbers"),
        (lambda: CellNetwork((2, 1, 1, 1, 1)), ValueError, "network= of your own"),
    ):
        with pytest.raises(error, match=message):
            broken()


def test_integers_and_float32_are_taken():
    data = mixture(2)
    model, x = data.continuous.model(VP), data.sample(2, seed=0)
    exact = model.discrete_log_likelihood(x, data.quantisation, **QUICK).log_prob
    whole = model.discrete_log_likelihood(x.to(torch.uint8), data.quantisation, **QUICK).log_prob
    assert torch.allclose(exact, whole, atol=1e-3)


def test_a_failed_draw_leaves_its_row_without_a_value():
    data = mixture(2)
    broken = sdediff.from_callable(
        lambda x, t: torch.where(x[:, :1] > 4, torch.nan, -x), process=VP, prediction="score", data_shape=(2,)
    )
    x = torch.tensor([[1.0, 1.0], [7.0, 1.0]], dtype=F64)
    r = broken.discrete_log_likelihood(x, data.quantisation, draws=2, on_failure="ignore", nodes=9)
    assert r.log_prob.isfinite().tolist() == [True, False] and r.status[1] != 0
