"""Samples against the closed form's moments for every solver, and what a sample's noise depends on."""

from __future__ import annotations

import math
import warnings
from functools import cache

import pytest
import torch
from scipy.stats import chi2
from torch import Tensor, nn

import sdediff
import solvers
from sdediff.reference import GaussianMixture, random_mixture, random_product

F64 = torch.float64
VP = sdediff.VP()
PROCESSES = [VP, sdediff.SubVP(), sdediff.VE(), sdediff.Cosine(), sdediff.EDM(), sdediff.RectifiedFlow()]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
N = 50_000


def mixture() -> GaussianMixture:
    data = random_mixture(2, 3, seed=0, dtype=F64)
    return GaussianMixture(data.means + 1.0, data.covs, data.weights)


# -- one chi-square statistic a solver -----------------------------------------------------------------------


def features(x: Tensor, mean: Tensor) -> Tensor:
    """First and second centred moments of each row, (n, 5)."""
    c = x - mean
    return torch.stack([c[:, 0], c[:, 1], c[:, 0] ** 2, c[:, 0] * c[:, 1], c[:, 1] ** 2], dim=1)


@cache
def expected(process: sdediff.GaussianProcess) -> tuple[Tensor, Tensor]:
    """Expectation of the features of x_0 + (sigma/alpha) eps at t_min, and the covariance of one row's.

    The expectation is closed; the covariance needs fourth moments, which 500,000 exact draws give to 1 %.
    """
    data = mixture()
    ratio = float(process.sigma(process.t_min) / process.alpha(process.t_min))
    cov = data.cov + ratio**2 * torch.eye(2, dtype=F64)
    x = data.sample(500_000, seed=99)
    x = x + ratio * torch.randn(x.shape, dtype=F64, generator=torch.Generator().manual_seed(0))
    mean = torch.stack([torch.zeros((), dtype=F64)] * 2 + [cov[0, 0], cov[0, 1], cov[1, 1]])
    return mean, torch.cov(features(x, data.mean).T)


def statistic(x: Tensor, process: sdediff.GaussianProcess) -> float:
    """Chi-square with 5 degrees of freedom of mean and covariance together."""
    mean, covariance = expected(process)
    gap = features(x.double(), mixture().mean).mean(0) - mean
    return float(len(x) * gap @ torch.linalg.solve(covariance, gap))


#: name, options, whether it runs by default. Steps keep the bias of the discretisation below the noise.
CASES = [
    ("dopri5", {"rtol": 1e-4, "atol": 1e-4}, True),
    ("heun", {"steps": 60}, True),
    ("ancestral", {"steps": 250}, True),
    ("stochastic-heun", {"steps": 200}, False),
    ("torchdiffeq/dopri5", {"rtol": 1e-4, "atol": 1e-4}, True),
    ("scipy/RK45", {"rtol": 1e-3, "atol": 1e-3}, True),
    ("torchsde/srk", {"steps": 60}, False),
    ("euler", {"steps": 750}, False),
    ("rk4", {"steps": 40}, False),
    ("ddim", {"steps": 750}, False),
    ("ddim", {"steps": 400, "eta": 0.7}, False),
    ("euler-maruyama", {"steps": 1000}, False),
    # torchsde/euler takes the same steps, to rounding (test_solvers_backends.py), and where noise is additive
    # milstein adds nothing to them.
    ("torchdiffeq/dopri8", {"rtol": 1e-4, "atol": 1e-4}, False),
    ("torchdiffeq/rk4", {"steps": 40}, False),
    ("torchdiffeq/heun3", {"steps": 80}, False),
    ("scipy/LSODA", {"rtol": 1e-4, "atol": 1e-4, "batch_size": 1000}, False),
    ("scipy/DOP853", {"rtol": 1e-3, "atol": 1e-3}, False),
]
#: Family-wise false alarm 1e-3 (Bonferroni).
LIMIT = float(chi2.isf(1e-3 / len(CASES), df=5))


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        pytest.param(name, options, id=f"{name}-{i}", marks=[] if default else [pytest.mark.slow])
        for i, (name, options, default) in enumerate(CASES)
    ],
)
def test_mean_and_covariance_are_those_of_the_data(solver, options):
    data = mixture()
    x = data.model(VP).sample(N, solver=solver, seed=11, dtype=torch.float32, **options)
    assert statistic(x, VP) < LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES[1:], ids=lambda p: type(p).__name__)
def test_mean_and_covariance_under_every_process(process):
    """The ODE and the SDE, 10 statistics at 1e-4 each."""
    data, limit = mixture(), float(chi2.isf(1e-4, df=5))
    for solver, options in (("dopri5", {"rtol": 1e-4, "atol": 1e-4}), ("ancestral", {"steps": 350})):
        x = data.model(process).sample(N, solver=solver, seed=12, dtype=torch.float32, **options)
        assert statistic(x, process) < limit, solver


class Louder:
    """Noise that is 6 % too large."""

    def __init__(self, noise) -> None:
        self.noise = noise

    def normal(self) -> Tensor:
        return 1.06 * self.noise.normal()


class TooMuchNoise(solvers.Ancestral):
    """A diffusion 6 % too strong."""

    def step(self, problem, t, t_next, x, state, noise):
        return super().step(problem, t, t_next, x, state, Louder(noise))


class TooFast(solvers.Heun):
    """A probability flow that goes 3 % too far."""

    def step(self, problem, t, t_next, x, state, noise):
        right = super().step(problem, t, t_next, x, state, noise)
        return solvers.Step(right.x + 0.03 * (right.x - x))


@pytest.mark.parametrize(
    ("wrong", "steps"), [(TooMuchNoise(), 250), (TooFast(), 60)], ids=["diffusion", "velocity"]
)
def test_a_wrong_sampler_is_caught(wrong, steps):
    """The statistic sees such errors, with steps at which the right solver passes."""
    data = mixture()
    x = data.model(VP).sample(N, solver=wrong, steps=steps, seed=11, dtype=torch.float32)
    assert statistic(x, VP) > 1.5 * LIMIT


def test_exact_draws_pass():
    data = mixture()
    ratio = float(VP.sigma(VP.t_min) / VP.alpha(VP.t_min))
    x = data.sample(N, seed=5) + ratio * torch.randn(N, 2, generator=torch.Generator().manual_seed(1))
    assert statistic(x, VP) < LIMIT


@pytest.mark.parametrize(
    ("solver", "steps"),
    [("heun", 40), pytest.param("ancestral", 250, marks=pytest.mark.slow)],
)
def test_halving_the_step_moves_the_result_by_less_than_the_noise(solver, steps):
    """The same prior draws; the statistic's own yardstick, of which the noise takes 5 on average."""
    data = mixture()
    model, covariance = data.model(VP), expected(VP)[1]
    coarse, fine = (
        features(
            model.sample(N, solver=solver, steps=n, seed=11, dtype=torch.float32).double(), data.mean
        ).mean(0)
        for n in (steps, 2 * steps)
    )
    gap = fine - coarse
    # A stochastic solver draws other noise on another grid: twice the variance.
    noise = 5.0 if solver == "heun" else 2 * float(chi2.isf(1e-4, df=5))
    assert float(N * gap @ torch.linalg.solve(covariance, gap)) < noise


@pytest.mark.slow
def test_the_predictor_corrector_has_a_small_bias_of_its_own():
    """Variances within 3 %: the Langevin corrector adds 2 snr^2 of its own, which no small step removes."""
    data = mixture()
    x = data.model(VP).sample(N, solver="pc", steps=500, seed=11, dtype=torch.float32).double()
    assert torch.allclose(torch.cov(x.T).diagonal(), data.cov.diagonal(), rtol=0.03)
    assert torch.allclose(x.mean(0), data.mean, atol=0.06)


# -- what a sample's noise depends on ------------------------------------------------------------------------

STOCHASTIC = ["euler-maruyama", "ancestral", "stochastic-heun", "pc", "torchsde/srk"]


@pytest.mark.parametrize("solver", [*STOCHASTIC, "heun", "ddim", "dopri5"])
def test_a_sample_depends_on_seed_and_index_alone(solver):
    """To 1e-10 whatever the chunks; the analytic score rounds by batch, the noise does not (next test)."""
    model = mixture().model(VP)
    options = {"solver": solver, "seed": 3, "dtype": F64} | ({} if solver == "dopri5" else {"steps": 10})
    x = model.sample(7, **options)
    for other in (
        model.sample(7, batch_size=4, **options),
        torch.cat(
            [model.sample(2, batch_size=1, **options), model.sample(5, indices=range(2, 7), **options)]
        ),
        model.sample(7, indices=torch.arange(6, -1, -1), **options).flip(0),
    ):
        assert float((other - x).abs().max()) < 1e-10 * float(x.abs().max())
    assert not torch.allclose(model.sample(7, **options | {"seed": 4}), x)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("solver", STOCHASTIC)
def test_the_noise_is_bit_identical_whatever_the_chunks(solver, dtype):
    """With a score that is computed entry by entry nothing rounds by batch, so equality is exact."""
    model = sdediff.from_callable(lambda x, t: -x, VP, data_shape=(3,))
    options = {"solver": solver, "seed": 3, "steps": 8, "dtype": dtype}
    x = model.sample(19, **options)
    for size in (5, 16):
        assert torch.equal(model.sample(19, batch_size=size, **options), x)
    assert torch.equal(model.sample(3, batch_size=1, **options), x[:3])
    assert torch.equal(model.sample(2, indices=[18, 5], **options), x[[18, 5]])


def test_dtypes_share_their_noise_and_the_global_generator_is_left_alone():
    model = mixture().model(VP)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    wide = model.sample(50, solver="ancestral", steps=30, seed=1, dtype=F64)
    narrow = model.sample(50, solver="ancestral", steps=30, seed=1, dtype=torch.float32)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert float((wide - narrow).abs().max()) < 1e-3


# -- the arguments -------------------------------------------------------------------------------------------


@every_process
def test_decode_inverts_encode_and_samples_are_decoded_priors(process):
    data = mixture()
    model, x = data.model(process), data.sample(8, seed=1)
    tight = {"rtol": 1e-9, "atol": 1e-9}
    z = model.encode(x, **tight)
    assert float((model.decode(z, **tight) - x).abs().max()) < 1e-5
    prior = model.prior_at(process.t_max)
    normal = solvers.noise.normal(4, torch.arange(8), solvers.Stream.PRIOR, 0, (2,), F64)
    sample = model.sample(8, seed=4, dtype=F64, **tight)
    assert torch.allclose(model.decode(prior.transform(normal), **tight), sample, atol=1e-7)


def test_decode_inverts_encode_in_units_and_on_a_grid():
    torch.manual_seed(0)
    net = sdediff.networks.MLP(dim=12, hidden=16, blocks=1).double()
    nn.init.normal_(net.output.weight, std=0.1)
    model = sdediff.DiffusionModel(net, VP, "v", (3, 4), scale_mode="scalar")
    x = 5 + 3 * torch.randn(40, 3, 4, dtype=F64)
    model.set_units(x)
    z = model.encode(x[:3], solver="rk4", steps=200)
    assert z.shape == (3, 3, 4)
    assert float((model.decode(z, solver="rk4", steps=200) - x[:3]).abs().max()) < 1e-3
    grid = VP.default_grid(200)
    assert torch.equal(model.encode(x[:3], solver="rk4", grid=grid), z)
    assert torch.equal(model.encode(x[:3], solver="rk4", grid=grid.flip(0).tolist()), z)


def test_grids_by_name_and_by_times():
    model = mixture().model(VP)
    options = {"solver": "heun", "seed": 1, "dtype": F64}
    for name, grid in solvers.GRIDS.items():
        by_name = model.sample(4, grid=name, steps=15, **options)
        assert torch.equal(model.sample(4, grid=grid(VP, 15), **options), by_name)
        assert torch.equal(model.sample(4, grid=grid(VP, 15).flip(0), **options), by_name)
    assert torch.equal(
        model.sample(4, steps=15, **options), model.sample(4, grid=VP.default_grid(15), **options)
    )
    seen = model.sample(4, solver="heun", grid=[0.9, 0.5, 0.01], return_solution=True)[1]
    assert seen.t.tolist() == [0.01] * 4 and seen.nfe.tolist() == [4] * 4


def test_t_span_prior_and_denoise():
    data = mixture()
    model = data.model(VP)
    options = {"seed": 1, "dtype": F64, "rtol": 1e-8, "atol": 1e-8}
    span = (1e-3, 0.8)
    x, solution = model.sample(6, t_span=span, return_solution=True, **options)
    assert solution.t.tolist() == [1e-3] * 6 and torch.equal(solution.x, x)
    normal = solvers.noise.normal(1, torch.arange(6), solvers.Stream.PRIOR, 0, (2,), F64)
    start = model.prior_at(0.8).transform(normal)
    path = solvers.solve(model.problem(), start, (0.8, 1e-3), rtol=1e-8, atol=1e-8)
    assert torch.allclose(path.x / VP.alpha(1e-3), x, rtol=1e-9)
    assert torch.allclose(
        model.sample(6, t_span=span, denoise=True, **options), data.denoise(VP, path.x, 1e-3), rtol=1e-6
    )
    standard = model.sample(6, t_span=span, prior="standard", **options)
    assert torch.allclose(standard, model.decode(normal, t_span=span, rtol=1e-8, atol=1e-8), rtol=1e-9)


def test_eta_interpolates_and_may_be_a_function():
    model = mixture().model(VP)
    options = {"steps": 30, "seed": 1, "dtype": F64}
    ode = model.sample(5, solver="ddim", **options)
    assert torch.equal(model.sample(5, solver="ddim", eta=0.0, **options), ode)
    assert torch.equal(
        model.sample(5, solver="ddim", eta=1.0, **options), model.sample(5, solver="ancestral", **options)
    )
    half = model.sample(5, solver="ddim", eta=0.5, **options)
    assert torch.allclose(
        model.sample(5, solver="ddim", eta=lambda t: 0.5 + 0 * t, **options), half, rtol=1e-12
    )
    assert not torch.allclose(half, ode)
    late = model.sample(5, solver="euler-maruyama", eta=lambda t: (t < 0.1).to(t) * 0, **options)
    assert torch.allclose(late, model.sample(5, solver="euler-maruyama", eta=0.0, **options), rtol=1e-12)


def test_a_solution_has_a_row_a_sample():
    model = mixture().model(VP)
    x, solution = model.sample(7, batch_size=3, return_solution=True)
    for statistic_ in (solution.t, solution.nfe, solution.accepted, solution.rejected, solution.status):
        assert statistic_.shape == (7,)
    assert len(set(solution.nfe.tolist())) > 1 and bool(solution.ok.all()) and x.shape == (7, 2)
    done: list[int] = []
    model.sample(7, solver="ddim", steps=2, batch_size=3, progress=done.append)
    assert done == [3, 6, 7]


@pytest.mark.parametrize("solver", ["dopri5", "heun", "scipy/RK45", "torchdiffeq/dopri5"])
def test_failures_are_told_as_asked(solver):
    """A score that is NaN in one region; with per-sample solvers the others are not touched."""
    data = mixture()
    model = sdediff.from_callable(
        lambda x, t: data.score(VP, x, t) + torch.where((x[:, :1] > 1.5) & (t[:, None] < 0.3), math.nan, 0.0),
        VP,
        data_shape=(2,),
    )
    options = {"solver": solver, "seed": 0, "dtype": F64} | ({"steps": 30} if solver == "heun" else {})
    with pytest.raises(solvers.SolverError, match=r"of 20 samples failed, the first at row") as caught:
        model.sample(20, on_failure="raise", **options)
    assert not bool(caught.value.solution.ok.all())
    with pytest.warns(UserWarning, match="rows hold the last state reached"):
        model.sample(20, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x, solution = model.sample(20, on_failure="ignore", return_solution=True, **options)
    if solver in ("dopri5", "heun"):
        whole = data.model(VP).sample(20, prior="standard", **options)
        assert 0 < int(solution.ok.sum()) < 20
        assert torch.allclose(x[solution.ok], whole[solution.ok], atol=1e-3)


# -- conditions ----------------------------------------------------------------------------------------------


class Tilted(nn.Module):
    """The raw score of N(cond, 0.3^2): another Gaussian a row."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        assert len(cond) == len(x) == len(t)
        alpha, sigma = VP.alpha(t)[:, None].to(x), VP.sigma(t)[:, None].to(x)
        return -(x - alpha * cond) / (0.09 * alpha**2 + sigma**2)


@pytest.mark.parametrize("solver", ["dopri5", "heun", "ancestral", "scipy/RK45", "torchdiffeq/dopri5"])
def test_conditions_travel_with_their_rows(solver):
    """Through compaction (rows of unequal difficulty) and chunks: each row is its own Gaussian's flow map."""
    model = sdediff.from_callable(Tilted(), VP, data_shape=(2,))
    cond = torch.cat([torch.zeros(9, 2), torch.full((4, 2), 40.0), -8 * torch.ones(4, 2)]).double()
    options = {"solver": solver, "seed": 2, "dtype": F64}
    options |= {"steps": 100} if solver in ("heun", "ancestral") else {"rtol": 1e-7, "atol": 1e-7}
    x = model.sample(17, cond=cond, **options)
    assert float((x - cond).abs().max()) < 0.3 * 5.5
    tolerance = 1e-10 if solver in ("dopri5", "heun", "ancestral") else 1e-4
    parts = model.sample(17, cond=cond, batch_size=5, **options)
    assert torch.allclose(parts, x, rtol=tolerance, atol=tolerance)
    order = torch.randperm(17, generator=torch.Generator().manual_seed(0))
    shuffled = model.sample(17, cond=cond[order], indices=order, **options)
    assert torch.allclose(shuffled, x[order], rtol=tolerance, atol=tolerance)
    one = model.sample(3, cond=cond[-1:], **options)
    assert torch.allclose(one, model.sample(3, cond=cond[-3:], **options), rtol=tolerance, atol=tolerance)
    if solver == "ancestral":
        return
    exact = {k: v for k, v in options.items() if k not in ("seed", "dtype")}
    flow = torch.distributions.Normal(cond, math.sqrt(0.09 + float(VP.sigma(VP.t_min)) ** 2))
    if solver == "dopri5":
        logp = model.log_prob(x, cond=cond, **exact)
        # The textbook prior: its mean is off by alpha(1) * 40 = 0.26 at most.
        assert float((logp - flow.log_prob(x).sum(1))[:9].abs().max()) < 1e-3
        back = model.encode(x, cond=cond, **exact)
        assert torch.allclose(model.decode(back, cond=cond, **exact), x, atol=1e-4)
        assert torch.allclose(model.log_prob(x[order], cond=cond[order], **exact), logp[order], rtol=1e-10)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"steps": 10}, TypeError, "chooses its own steps"),
        ({"solver": "heun", "rtol": 1e-3}, TypeError, "takes steps= or grid="),
        ({"solver": "heun", "grid": "linear"}, ValueError, "there is no grid named 'linear': take one of"),
        ({"solver": "heun", "grid": [1.0, 0.5], "steps": 3}, TypeError, "steps= and grid= were both given"),
        ({"solver": "heun", "grid": [1.0, 0.5, 0.6]}, ValueError, "strictly rising or strictly falling"),
        ({"solver": "heun", "grid": [1.0, 0.5, -1.0]}, ValueError, "t_span=.* is not usable"),
        ({"t_span": (0.9, 0.1)}, ValueError, "give .t_min, t_max. with t_min < t_max"),
        ({"t_span": 0.5}, ValueError, "is no interval"),
        ({"eta": 1.0}, TypeError, "solves ODEs only"),
        ({"solver": "ddim", "eta": -1.0}, ValueError, "negative"),
        ({"solver": "ancestral", "return_log_prob": True}, TypeError, "follows the probability-flow ODE"),
        ({"solver": "pc", "eta": 0.0, "return_log_prob": True}, TypeError, "noise of its own"),
        ({"return_log_prob": True, "denoise": True}, TypeError, "goes with neither denoise"),
        ({"return_log_prob": True, "return_solution": True}, TypeError, "nor return_solution"),
        ({"batch_size": 0}, ValueError, "positive number of rows"),
        ({"indices": [0, 1]}, ValueError, "give 4 integers"),
        ({"indices": [0.0, 1.0, 2.0, 3.0]}, ValueError, "give 4 integers"),
        ({"on_failure": "stop"}, ValueError, 'take "warn", "raise" or "ignore"'),
        ({"prior": "laplace"}, ValueError, "prior='laplace' is not known"),
    ],
)
def test_wrong_arguments_get_one_sentence(options, error, said):
    with pytest.raises(error, match=said) as caught:
        mixture().model(VP).sample(4, **options)
    assert "\n" not in str(caught.value)


def test_global_error_is_in_data_units_whatever_the_chunks() -> None:
    """Richardson's estimate against the exact flow, for a model whose data are scaled and shifted."""
    data = random_product(dim=4, seed=0, dtype=F64)
    process = sdediff.VP()

    def denoiser(z: Tensor, t: Tensor) -> Tensor:
        return data.denoise(process, z, t)

    model = sdediff.from_callable(denoiser, process, "x0", (4,), data_mean=data.mean, data_cov=data.cov)
    model.scale, model.shift = torch.tensor(10.0, dtype=F64), torch.tensor(5.0, dtype=F64)
    solver = solvers.Richardson(solvers.Heun())
    options = {"solver": solver, "steps": 200, "seed": 3, "dtype": F64}
    x, solution = model.sample(20, return_solution=True, **options)
    _, chunked = model.sample(20, return_solution=True, batch_size=7, **options)
    exact = model.sample(20, solver="dopri8", rtol=1e-11, atol=1e-11, seed=3, dtype=F64)
    torch.testing.assert_close(solution.global_error, x - exact, rtol=0.2, atol=1e-5)
    torch.testing.assert_close(chunked.global_error, solution.global_error, rtol=1e-9, atol=1e-12)


def test_a_path_that_does_not_fit_is_told() -> None:
    model = sdediff.reference.eight_gaussians().model(sdediff.VP())
    path = solvers.BrownianPath(solvers.Noise(0, torch.arange(4), (2,)), (1.0, 1e-5))
    for asked in ({"n": 8}, {"n": 2}, {"n": 4, "indices": [9, 8, 7, 6]}):
        with pytest.raises(ValueError, match="the Brownian path is one of 4 samples"):
            model.sample(solver="euler-maruyama", steps=5, brownian=path, **asked)
    with pytest.raises(
        ValueError, match=r"the Brownian path is of torch.float32 on cpu and the state of torch"
    ):
        model.sample(4, solver="euler-maruyama", steps=5, brownian=path, dtype=F64)
    whole = model.sample(4, solver="euler-maruyama", steps=5, brownian=path)
    parts = model.sample(4, solver="euler-maruyama", steps=5, brownian=path, batch_size=3)
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
