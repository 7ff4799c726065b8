"""Log-likelihoods against closed forms, and what they say of their own errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn

import sdediff
import solvers
from sdediff.likelihood.quadrature import clustered_rule, spline_weights
from sdediff.prior import Moments
from sdediff.reference import GaussianMixture, eight_gaussians, random_mixture

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


def mixture(dim: int) -> GaussianMixture:
    """Modes well apart, far from zero: the mean has norm about 5."""
    data = random_mixture(dim, 3 if dim == 2 else 4, seed=0, dtype=F64)
    return GaussianMixture(data.means + 5 / dim**0.5, data.covs, data.weights)


def noised(data: GaussianMixture, process: sdediff.GaussianProcess, x: Tensor) -> Tensor:
    """Log-density at x of x_0 + (sigma/alpha) eps at t_min: exactly what is evaluated, but for the prior."""
    alpha = process.alpha(process.t_min)
    return data.log_prob(process, alpha * x, process.t_min) + data.dim * alpha.log()


# -- the truth -----------------------------------------------------------------------------------------------

#: Mean |error| in nats allowed against the data's density, d = 2 and 16. It is the noise left at t_min,
#: of variance 1e-6 (VP), 1e-8 (SubVP), 1e-6 (RectifiedFlow), 2e-6 (Cosine), 4e-6 (EDM), 1e-4 (VE); for EDM
#: and VE also the prior, whose third moment fades as (std / sigma_max)^3.
LIMITS = {
    "VP": (2e-5, 1e-4),
    "SubVP": (2e-5, 1e-4),
    "Cosine": (3e-5, 2e-4),
    "RectifiedFlow": (2e-5, 1e-4),
    "EDM": (1e-4, 1e-3),
    "VE": (1e-3, 5e-3),
}


@every_process
@pytest.mark.parametrize("dim", [2, 16])
def test_log_prob_is_the_density_of_the_data(process, dim):
    data = mixture(dim)
    x = data.sample(48, seed=1)
    r = data.model(process).log_likelihood(x, **TIGHT)
    error = (r.log_prob - data.log_prob(None, x, None)).abs()
    assert float(error.mean()) < LIMITS[type(process).__name__][dim == 16]
    own = (r.log_prob - noised(data, process, x)).abs()  # without the noise left at t_min
    assert float(own.mean()) < {"VE": 2e-3, "EDM": 5e-4}.get(type(process).__name__, 5e-5)
    assert r.log_prob.dtype == F64 and bool((r.std_error == 0).all())


@every_process
def test_the_textbook_prior_is_seen_and_as_wrong_as_it_must_be(process):
    """Its error is log N(z; 0, std^2) - log p_T(z) at each latent z, far above the matched prior's."""
    data, d = mixture(2), 2
    x = data.sample(32, seed=1)
    model = data.model(process)
    truth = noised(data, process, x)
    matched = (model.log_prob(x, **TIGHT) - truth).abs().mean()
    r = model.log_likelihood(x, prior="standard", **TIGHT)
    assert r.prior == "standard"
    z, std = r.latent, process.prior_std
    textbook = -0.5 * (z / std).square().sum(1) - d * math.log(std * math.sqrt(2 * math.pi))
    predicted = textbook - data.log_prob(process, z, process.t_max)
    assert torch.allclose(r.log_prob - truth, predicted, atol=2e-5)
    assert float(predicted.abs().mean()) > 10 * float(matched)


def test_the_density_integrates_to_one():
    """On a grid out to 8 standard deviations; the trapezoidal rule is exact to 1e-10 for these widths."""
    data = GaussianMixture(
        [[-1.0, 0.3], [1.2, -0.4]], [[[0.4, 0.1], [0.1, 0.3]], [[0.3, 0.0], [0.0, 0.5]]], [1, 2]
    )
    axis = torch.linspace(-6, 6, 41, dtype=F64)
    points = torch.cartesian_prod(axis, axis)
    p = data.model(sdediff.VP()).log_prob(points).exp()
    assert float(p.sum() * (axis[1] - axis[0]) ** 2) == pytest.approx(1, abs=1e-4)


@pytest.fixture(scope="module")
def solved() -> tuple[sdediff.DiffusionModel, Tensor, Tensor]:
    """A model, points, and their log-density to 1e-9."""
    data = mixture(2)
    model, x = data.model(sdediff.VP()), data.sample(6, seed=4)
    return model, x, model.log_prob(x, rtol=1e-9, atol=1e-9, nodes=257)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("solver", "options", "limit"),
    [
        ("dopri5", {"rtol": 1e-8, "atol": 1e-8}, 1e-5),
        ("scipy/RK45", {"rtol": 1e-8, "atol": 1e-8}, 1e-5),
        slow("scipy/LSODA", {"rtol": 1e-8, "atol": 1e-8}, 1e-5),
        ("torchdiffeq/dopri5", {"rtol": 1e-8, "atol": 1e-8}, 1e-5),
        slow("torchdiffeq/dopri8", {"rtol": 1e-8, "atol": 1e-8}, 1e-4),
        ("rk4", {"steps": 300, "grid": "log-snr"}, 1e-5),
        slow("torchdiffeq/rk4", {"steps": 300, "grid": "log-snr"}, 1e-4),
        # A stochastic solver takes its ODE twin's steps here: stochastic-heun heun's, ancestral ddim's.
        ("heun", {"steps": 300, "grid": "log-snr"}, 1e-3),
        ("ddim", {"steps": 300, "grid": "log-snr"}, 5e-2),
        slow("euler-maruyama", {"steps": 300, "grid": "log-snr"}, 1e-1),
    ],
)
def test_every_solver_of_odes_agrees(solved, solver, options, limit):
    model, x, tight = solved
    r = model.log_likelihood(x, solver=solver, **options)
    assert float((r.log_prob - tight).abs().max()) < limit
    if not solver.startswith(("scipy", "torchdiffeq")):  # those tell no error of their own
        assert bool((r.solver_error >= (r.log_prob - tight).abs() - 1e-7).all())


@every_process
def test_a_samples_log_prob_is_its_log_prob(process):
    model = mixture(16).model(process)
    x, logp = model.sample(12, return_log_prob=True, seed=2, dtype=F64, rtol=1e-6, atol=1e-6)
    assert torch.equal(x, model.sample(12, seed=2, dtype=F64, rtol=1e-6, atol=1e-6))
    assert float((logp - model.log_prob(x)).abs().max()) < 1e-3
    model = mixture(2).model(process)
    x, logp = model.sample(48, return_log_prob=True, seed=2, dtype=F64)  # the default tolerance
    assert float((logp - model.log_prob(x)).abs().mean()) < 1e-3
    assert logp.dtype == F64


@pytest.mark.parametrize(("solver", "steps"), [("ddim", 150), ("rk4", 150), ("torchdiffeq/rk4", 150)])
def test_a_samples_log_prob_on_a_fixed_grid(solver, steps):
    """To the solver's own accuracy, by its own path."""
    data = mixture(2)
    model = data.model(sdediff.VP())
    x, logp = model.sample(
        32, solver=solver, steps=steps, grid="log-snr", return_log_prob=True, dtype=F64, seed=0
    )
    limit = 5e-2 if solver == "ddim" else 1e-3
    assert float((logp - noised(data, sdediff.VP(), x)).abs().mean()) < limit


# -- rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("divergence", [sdediff.Exact(), sdediff.Hutchinson(2)])
def test_a_row_does_not_depend_on_its_batch(divergence):
    data = mixture(2)
    model, x = data.model(sdediff.VP()), data.sample(64, seed=1)
    r = model.log_likelihood(x, divergence=divergence, seed=3)
    for i in (0, 63):
        alone = model.log_likelihood(x[i : i + 1], divergence=divergence, seed=3, indices=[i])
        assert float((alone.log_prob - r.log_prob[i]).abs()) < 1e-10 * float(r.log_prob[i].abs())
        assert torch.equal(alone.nfe[0], r.nfe[i])
    for size in (3, 7):
        chunked = model.log_likelihood(x[:8], divergence=divergence, seed=3, batch_size=size)
        assert torch.allclose(chunked.log_prob, r.log_prob[:8], rtol=1e-10, atol=1e-11)
        assert torch.allclose(chunked.std_error, r.std_error[:8], rtol=1e-8)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    mixed = model.log_likelihood(x[order], divergence=divergence, seed=3, indices=order)
    assert torch.allclose(mixed.log_prob, r.log_prob[order], rtol=1e-10, atol=1e-11)


# -- units ---------------------------------------------------------------------------------------------------


def trained_like(process, data_shape, dtype=F64) -> sdediff.DiffusionModel:
    """A frozen network with random weights: nothing is known of its density but that it has one."""
    torch.manual_seed(1)
    net = sdediff.networks.MLP(dim=math.prod(data_shape), hidden=24, blocks=1).to(dtype)
    nn.init.normal_(net.output.weight, std=0.05)
    return sdediff.DiffusionModel(net, process, "edm", data_shape)


@pytest.mark.parametrize("process", PROCESSES[:3], ids=lambda p: type(p).__name__)
def test_rescaling_a_feature_shifts_log_prob_by_its_log(process):
    data = mixture(2)
    x = data.sample(200, seed=0)
    factor = torch.tensor([1.0, 1000.0], dtype=F64)
    model, other = trained_like(process, (2,)), trained_like(process, (2,))
    model.set_units(x)
    other.set_units(x * factor)
    shift = other.log_prob(x[:16] * factor) - model.log_prob(x[:16])
    assert float((shift + math.log(1000)).abs().max()) < 1e-9


class UnitVariance(nn.Module):
    """eps of standard normal data in model units."""

    def __init__(self, process) -> None:
        super().__init__()
        self.process = process

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        time = self.process.time(-4 * t)
        sigma, norm = (
            self.process.sigma(time),
            torch.hypot(self.process.alpha(time), self.process.sigma(time)),
        )
        return x * (sigma / norm).reshape(-1, *(1,) * (x.ndim - 1))


@pytest.mark.parametrize(
    ("shape", "mode", "units"),
    [
        ((3,), "column", (3,)),
        ((2, 3, 4), "scalar", ()),
        ((2, 3, 4), "channel", (2, 1, 1)),
        ((1, 5), "scalar", ()),
    ],
)
def test_the_jacobian_of_the_units_counts_every_entry(shape, mode, units):
    """Data N(m, S^2) under shift m and scale S, of any shape: log N at x, once an entry."""
    process = sdediff.RectifiedFlow(t_min=1e-4)
    model = sdediff.DiffusionModel(UnitVariance(process), process, "eps", shape, scale_mode=mode)
    model.shift = torch.full(units, 3.0, dtype=F64)
    model.scale = 0.2 * torch.arange(1, 1 + math.prod(units), dtype=F64).reshape(units)
    model.moments = Moments.of(torch.zeros(math.prod(shape)), torch.ones(math.prod(shape)))
    noise = torch.randn(4, *shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    x = model.shift + model.scale * noise
    want = torch.distributions.Normal(model.shift, model.scale).log_prob(x).flatten(1).sum(1)
    assert float((model.log_prob(x) - want).abs().max()) < 1e-5  # the noise left at t_min is of variance 1e-8
    r = model.log_likelihood(x)
    assert r.latent.shape == x.shape and r.dim == math.prod(shape) and r.log_prob.shape == (4,)


def test_what_is_reported():
    data = mixture(2)
    model, x = data.model(sdediff.VP()), data.sample(5, seed=0)
    r = model.log_likelihood(x, t_span=(1e-4, 0.9))
    assert (r.kind, r.prior, r.t_span) == ("density/exact", "matched", (1e-4, 0.9))
    assert r.divergence_evaluations.tolist() == [65 * 2] * 5 and bool((r.nfe > 20).all())
    assert torch.allclose(r.latent, model.encode(x, t_span=(1e-4, 0.9), rtol=1e-6, atol=1e-6), atol=1e-9)
    # The state at t_max in model units: x_T ~ N(alpha m, ...), not divided by alpha.
    path = solvers.solve(
        model.problem(), x * sdediff.VP().alpha(1e-4), (1e-4, 0.9), solver="dopri5", rtol=1e-8, atol=1e-8
    )
    assert float((r.latent - path.x).abs().max()) < 1e-4
    r = model.log_likelihood(x, divergence=sdediff.Hutchinson(3), nodes=33)
    assert r.kind == "density/unbiased" and r.divergence_evaluations.tolist() == [99] * 5
    fixed = model.log_likelihood(x, solver="rk4", steps=20)
    assert fixed.divergence_evaluations.tolist() == [42] * 5


# -- bits a dimension ----------------------------------------------------------------------------------------


def test_a_uniform_density_takes_8_bits_of_256_levels():
    """On [0, 1] and on [-1, 1], whatever the dimension: exactly."""
    for dim in (1, 12, 3072):
        assert sdediff.bits_per_dim(torch.zeros(3, dtype=F64), dim, 1 / 256).tolist() == [8.0] * 3
        wide = torch.full((3,), -dim * math.log(2), dtype=F64)
        assert torch.allclose(
            sdediff.bits_per_dim(wide, dim, 2 / 256), torch.full((3,), 8.0, dtype=F64), rtol=1e-15
        )


def test_bits_of_a_result_take_its_own_dimension():
    data = mixture(16)
    x = data.sample(3, seed=0)
    r = data.model(sdediff.VP()).log_likelihood(x)
    assert torch.equal(r.bits_per_dim(0.1), sdediff.bits_per_dim(r.log_prob, 16, 0.1))
    assert torch.allclose(r.bits_per_dim(0.1), -(r.log_prob / 16 + math.log(0.1)) / math.log(2), rtol=1e-14)


# -- random probes -------------------------------------------------------------------------------------------

REPEATS = 400


@pytest.fixture(scope="module")
def estimates() -> dict[tuple[int, str], tuple[sdediff.LogLikelihood, float]]:
    """400 estimates of one point's log-density for several kinds of probes, and the exact value."""
    data = mixture(16)
    model, point = data.model(sdediff.VP()), data.sample(1, seed=5)
    exact = float(model.log_prob(point, nodes=33))
    x = point.expand(REPEATS, -1)
    kinds = ((1, "rademacher"), (2, "rademacher"), (4, "rademacher"), (2, "gaussian"))
    return {
        (n, kind): (
            model.log_likelihood(x, divergence=sdediff.Hutchinson(n, kind, "fresh"), seed=7, nodes=33),
            exact,
        )
        for n, kind in kinds
    }


@pytest.mark.parametrize("kind", [(1, "rademacher"), (2, "rademacher"), (4, "rademacher"), (2, "gaussian")])
def test_hutchinson_is_unbiased(estimates, kind):
    """Within 4 standard errors of the exact trace: a false alarm in 16,000 a case."""
    r, exact = estimates[kind]
    assert abs(float(r.log_prob.mean()) - exact) < 4 * float(r.log_prob.std()) / REPEATS**0.5


def test_the_variance_falls_as_one_over_the_probes(estimates):
    """A ratio of two variances of 400 draws has a relative standard deviation of 10 %: within 4 of them."""
    variance = {n: float(estimates[n, "rademacher"][0].log_prob.var()) for n in (1, 2, 4)}
    assert variance[1] / variance[2] == pytest.approx(2, rel=0.4)
    assert variance[1] / variance[4] == pytest.approx(4, rel=0.4)


@pytest.mark.parametrize("kind", [(2, "rademacher"), (4, "rademacher"), (2, "gaussian")])
def test_the_standard_error_is_calibrated(estimates, kind):
    """Its mean square is the estimates' variance, and both are known to about 8 %: within 4 of these."""
    r, exact = estimates[kind]
    assert float(r.std_error.square().mean()) == pytest.approx(float(r.log_prob.var()), rel=0.35)
    z = (r.log_prob - exact) / r.std_error
    assert 0.85 < float(z.std()) < 1.5  # Student's t with 4 to 25 degrees of freedom: 1.04 to 1.41


@pytest.mark.parametrize("kind", [(2, "rademacher"), (4, "rademacher"), (2, "gaussian")])
def test_intervals_cover(estimates, kind):
    """200 seeds: below what a 95 % interval covers once in 1000 times; nor do half-width ones cover all."""
    r, exact = estimates[kind]
    low, high = (bound[:200] for bound in r.interval(0.95))
    assert int(((low <= exact) & (exact <= high)).sum()) >= binom.ppf(1e-3, 200, 0.95)
    low, high = r.interval(0.5)
    assert int(((low <= exact) & (exact <= high)).sum()) <= binom.ppf(1 - 1e-3, REPEATS, 0.7)


def test_one_probe_has_no_standard_error(estimates):
    r, _ = estimates[1, "rademacher"]
    assert bool(r.std_error.isnan().all()) and bool(r.log_prob.isfinite().all())
    assert bool(torch.stack(r.interval()).isnan().all())


def test_rademacher_probes_are_exact_for_a_diagonal_jacobian():
    data = GaussianMixture([[1.0, -2.0, 0.0]], [[1.0, 4.0, 0.25]])
    model, x = (
        data.model(sdediff.VP()),
        torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0)),
    )
    r = model.log_likelihood(x, divergence=sdediff.Hutchinson(2))
    assert torch.allclose(r.log_prob, model.log_prob(x), atol=1e-10) and float(r.std_error.max()) < 1e-10


@pytest.mark.parametrize("probes", [1, 3])
def test_a_trace_is_the_trace_of_the_jacobian(probes):
    """x -> A x + sin(x): exact by autograd's Jacobian, Hutchinson's mean over many rows within 5 s.e."""
    a = torch.randn(5, 5, dtype=F64, generator=torch.Generator().manual_seed(0))

    def function(x: Tensor) -> Tensor:
        return x @ a.T + x.sin()

    x = torch.randn(1, 5, dtype=F64, generator=torch.Generator().manual_seed(1)).expand(4000, 5)
    want = float(torch.autograd.functional.jacobian(lambda v: function(v[None])[0], x[0]).trace())
    rows, node = torch.arange(4000), torch.zeros(4000, dtype=torch.int64)
    exact = sdediff.Exact().traces(function, x, rows, node, 0)
    assert torch.allclose(exact, torch.full((1, 4000), want, dtype=F64), rtol=1e-12)
    for kind in ("rademacher", "gaussian"):
        estimate = sdediff.Hutchinson(probes, kind).traces(function, x, rows, node, 0)
        estimate = estimate.reshape(len(estimate), 4000, -1).sum(dim=2).mean(dim=0)
        assert abs(float(estimate.mean()) - want) < 5 * float(estimate.std()) / 4000**0.5


def test_the_default_divergence_changes_at_64_dimensions():
    for dim, kind in ((64, "density/exact"), (65, "density/unbiased")):
        model = sdediff.from_callable(lambda x, t: -x, sdediff.VP(), data_shape=(dim,))
        assert model.log_likelihood(torch.zeros(1, dim, dtype=F64), nodes=5).kind == kind


# -- how wrong it says it is ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["m2", "eight", "m16"])
def test_the_solver_error_bounds_the_error_at_loose_tolerances(name):
    """At 1e-3, for 95 % of the points over three processes; and within a factor of 30 at the median."""
    data = {"m2": mixture(2), "m16": mixture(16), "eight": eight_gaussians(dtype=F64)}[name]
    x = data.sample(40, seed=2)
    held, ratio = [], []
    for process in (sdediff.VP(), sdediff.VE(), sdediff.RectifiedFlow()):
        model = data.model(process)
        tight = model.log_prob(x, rtol=1e-8, atol=1e-8, nodes=129)
        r = model.log_likelihood(x, rtol=1e-3, atol=1e-3)
        error = (r.log_prob - tight).abs()
        held.append(r.solver_error >= error)
        ratio.append(r.solver_error / error)
    assert float(torch.cat(held).double().mean()) >= 0.95
    assert 1 < float(torch.cat(ratio).median()) < 30


@pytest.mark.parametrize(("solver", "steps"), [("heun", 40), ("rk4", 20), ("ddim", 60)])
def test_the_solver_error_bounds_the_error_of_fixed_grids(solver, steps):
    data = mixture(2)
    x = data.sample(60, seed=2)
    for process in (sdediff.VP(), sdediff.EDM()):
        model = data.model(process)
        tight = model.log_prob(x, rtol=1e-8, atol=1e-8, nodes=129)
        r = model.log_likelihood(x, solver=solver, steps=steps)
        assert float((r.solver_error >= (r.log_prob - tight).abs()).double().mean()) >= 0.95


def test_a_failed_row_is_nan_and_told_and_the_others_are_not_touched():
    data = mixture(2)
    model = sdediff.from_callable(
        lambda x, t: data.score(sdediff.VP(), x, t) + torch.where(x[:, :1] > 50, math.nan, 0.0),
        sdediff.VP(),
        data_shape=(2,),
        data_mean=data.mean,
        data_cov=data.cov,
    )
    x = data.sample(4, seed=0)
    bad = torch.cat([x, torch.full((1, 2), 60.0, dtype=F64)])
    with pytest.warns(UserWarning, match=r"1 of 5 samples failed, the first at row 4"):
        r = model.log_likelihood(bad)
    assert torch.allclose(r.log_prob[:4], model.log_prob(x), rtol=1e-10) and math.isnan(float(r.log_prob[4]))
    with pytest.raises(solvers.SolverError, match="1 of 5 samples failed"):
        model.log_prob(bad, on_failure="raise")
    assert math.isnan(float(model.log_prob(bad, on_failure="ignore")[4]))


# -- quadrature ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centre", [-9.0, -0.9, 4.0, 12.0])
def test_the_rule_integrates_what_it_is_made_for(centre):
    """A bump around the centre that dies out at both ends, and the steps of a Gaussian's own trace."""
    s, w, _ = clustered_rule(-7.0, 5.0, centre, 65)
    assert s[0] == -7.0 and s[-1] == 5.0 and bool((np.diff(s) > 0).all())
    for peak, width in ((-1.0, 0.7), (0.5, 1.0), (-3.0, 1.2)):
        want = width * math.sqrt(2 * math.pi)  # all but 1e-4 of the widest inside
        inside = want * (math.erf((5 - peak) / width / 2**0.5) + math.erf((7 + peak) / width / 2**0.5)) / 2
        assert float(w @ np.exp(-0.5 * ((s - peak) / width) ** 2)) == pytest.approx(inside, abs=2e-5)
    want = 0.5 * math.log((1 + math.exp(10)) / (1 + math.exp(-14)))  # of e^{2s}/(1 + e^{2s})
    assert float(w @ (1 / (1 + np.exp(-2 * s)))) == pytest.approx(want, abs=2e-5)


def test_the_coarse_rule_uses_every_other_node():
    s, _, coarse = clustered_rule(-7.0, 5.0, -1.0, 33)
    for row, stride in zip(coarse, (2, 4), strict=True):
        nodes, weights, _ = clustered_rule(-7.0, 5.0, -1.0, 32 // stride + 1)
        assert np.allclose(s[::stride], nodes, atol=1e-9)
        assert np.allclose(row[::stride], weights, atol=1e-9)
        assert np.count_nonzero(row) == len(nodes)


def test_the_spline_rule_is_exact_for_cubics_and_of_order_4():
    nodes = np.sort(np.concatenate([[0.0, 2.0], np.random.default_rng(0).uniform(0, 2, 9)]))
    for power in range(4):
        assert spline_weights(nodes) @ nodes**power == pytest.approx(
            2 ** (power + 1) / (power + 1), rel=1e-12
        )
    errors = [
        abs(spline_weights(n) @ np.exp(n) - (math.e**2 - 1))
        for n in (np.linspace(0, 2, k + 1) for k in (16, 32))
    ]
    assert math.log2(errors[0] / errors[1]) > 3.8
    assert spline_weights(np.array([0.0, 1.0, 3.0])).tolist() == [0.5, 1.5, 1.0]


def clenshaw_curtis(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights on [-1, 1]: the weights integrate the Chebyshev interpolant."""
    theta = np.pi * np.arange(n) / (n - 1)
    moments = np.array([0.0 if k % 2 else 2 / (1 - k * k) for k in range(n)])
    return -np.cos(theta), np.linalg.solve(np.cos(np.outer(np.arange(n), np.pi - theta)), moments)


def test_clustered_nodes_beat_classical_ones_on_mixtures():
    """65 nodes for the trace left over a Gaussian's, along exact paths; measured 60 to 2000 times smaller."""
    process, many, n = sdediff.VP(), 513, 65
    low, high = -float(process.lam(process.t_min)), -float(process.lam(process.t_max))
    ours = {}
    for data in (mixture(2), mixture(16), eight_gaussians(dtype=F64)):
        level = float(data.cov.trace()) / data.dim
        rules = {
            "clustered": clustered_rule(low, high, math.log(0.4 * level**0.5), n)[:2],
            "reference": clustered_rule(low, high, math.log(0.4 * level**0.5), many)[:2],
        }
        for name, (u, w) in {
            "gauss": np.polynomial.legendre.leggauss(n),
            "clenshaw-curtis": clenshaw_curtis(n),
        }.items():
            rules[name] = (low + (u + 1) * (high - low) / 2, w * (high - low) / 2)
        every = np.unique(np.concatenate([s for s, _ in rules.values()]))
        times = process.time(-torch.from_numpy(every))
        times[0], times[-1] = process.t_min, process.t_max
        x = data.sample(12, seed=6) * process.alpha(process.t_min)
        path = solvers.solve(
            data.model(process).problem(),
            x,
            (process.t_min, process.t_max),
            rtol=1e-8,
            atol=1e-8,
            save_at=times,
        ).path
        points, when = path.flatten(0, 1), times.repeat_interleave(len(x))
        jacobian = data.jacobian(process, points, when).diagonal(0, 1, 2).sum(1).reshape(len(times), -1)
        trace = data.dim + process.sigma(times)[:, None] ** 2 * jacobian
        rest = (data.dim * level / (level + torch.exp(2 * torch.from_numpy(every))))[:, None] - trace
        value = {
            name: torch.from_numpy(w) @ rest[np.searchsorted(every, s)] for name, (s, w) in rules.items()
        }
        for name in ("clustered", "gauss", "clenshaw-curtis"):
            error = (value[name] - value["reference"]).abs().mean()
            ours.setdefault(name, []).append(float(error))
    print({name: [f"{e:.1e}" for e in errors] for name, errors in ours.items()})
    for name in ("gauss", "clenshaw-curtis"):
        assert all(a < b / 5 for a, b in zip(ours["clustered"], ours[name], strict=True))


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda m, x: m.log_prob(x, nodes=64), ValueError, "give a multiple of 4 plus 1"),
        (
            lambda m, x: m.log_prob(x, solver="rk4", nodes=65),
            TypeError,
            "nodes=65 belongs to adaptive solvers",
        ),
        (lambda m, x: m.log_prob(x, divergence="exact"), TypeError, r"such as sdediff\.Exact\(\)"),
        (lambda m, x: m.log_prob(x, solver="pc"), TypeError, "follows the probability-flow ODE"),
        (lambda m, x: m.log_prob(x, rtol=0.0), ValueError, "positive"),
        (lambda m, x: m.log_likelihood(x).interval(1.0), ValueError, "give a coverage between 0 and 1"),
        (lambda m, x: sdediff.Hutchinson(0), ValueError, "at least 1"),
        (lambda m, x: sdediff.Hutchinson(2, "uniform"), ValueError, 'take "rademacher" or "gaussian"'),
        (lambda m, x: sdediff.bits_per_dim(x[:, 0], 2, 0.0), ValueError, "positive width of a bin"),
    ],
)
def test_wrong_arguments_get_one_sentence(call, error, said):
    data = mixture(2)
    with pytest.raises(error, match=said) as caught:
        call(data.model(sdediff.VP()), data.sample(2, seed=0))
    assert "\n" not in str(caught.value)
