"""Grids: exact ends, the defaults measured, and grids fitted to a model."""

import itertools
import json
import math
from functools import cache
from itertools import pairwise

import pytest
import torch

import sdediff
import solvers
from sdediff import reference
from solvers.grid_search import best_path, jump_costs

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


# -- the named grids -----------------------------------------------------------------------------------------


@every_process
@pytest.mark.parametrize("name", solvers.GRIDS)
@pytest.mark.parametrize("n", (1, 2, 13, 5000))
def test_grids_end_exactly_and_are_strictly_monotone_in_both_directions(process, name, n):
    ends = process.t_max, process.t_min
    middle = (0.7 * ends[0] + 0.3 * ends[1], 0.9 * ends[1] + 0.1 * ends[0])
    for span in (ends, middle):
        falling, rising = (solvers.GRIDS[name](process, n, s) for s in (span, span[::-1]))
        assert falling.shape == (n + 1,) and falling.dtype == F64
        assert (float(falling[0]), float(falling[-1])) == span
        assert (float(rising[0]), float(rising[-1])) == span[::-1]
        assert bool((falling.diff() < 0).all()) and bool((rising.diff() > 0).all())
        torch.testing.assert_close(rising.flip(0), falling, rtol=1e-9, atol=1e-12)
    assert torch.equal(solvers.GRIDS[name](process, n), solvers.GRIDS[name](process, n, ends))


@pytest.mark.parametrize("name", ("uniform", "quadratic", "logistic", "cosine"))
def test_grids_that_take_a_start_without_signal(name):
    """At t = 1 rectified flow has alpha = 0 and lam = -inf."""
    process = sdediff.RectifiedFlow()
    grid = solvers.GRIDS[name](process, 10, (1.0, 1e-3))
    assert bool(grid.isfinite().all()) and bool((grid.diff() < 0).all())


@pytest.mark.parametrize("scale", (0.7, 1.5, 3.0))
@every_process
def test_the_logistic_grid_has_equal_steps_of_the_logistic_law(process, scale):
    law = torch.distributions.TransformedDistribution(
        torch.distributions.Uniform(torch.zeros((), dtype=F64), 1.0),
        [torch.distributions.SigmoidTransform().inv, torch.distributions.AffineTransform(0.0, scale)],
    )
    steps = law.cdf(process.lam(solvers.logistic_grid(process, 12, scale=scale))).diff()
    torch.testing.assert_close(steps, steps.mean().expand(12), rtol=1e-9, atol=1e-12)


@every_process
def test_the_cosine_grid_has_equal_steps_of_the_angle(process):
    grid = solvers.cosine_grid(process, 12)
    steps = torch.atan2(process.sigma(grid), process.alpha(grid)).diff()
    torch.testing.assert_close(steps, steps.mean().expand(12), rtol=1e-9, atol=1e-12)


# -- the defaults --------------------------------------------------------------------------------------------


def flow_error(model, z, truth, solver, grid):
    """Root mean square error at the end of the probability flow."""
    x = solvers.solve(model.problem(), z, solver=solver, grid=grid).x
    return float((x - truth).square().mean().sqrt())


def flow_case(data, process, rows, seed=0):
    """A model, draws of its prior, and where the exact flow takes them."""
    model = data.model(process)
    noise = torch.randn(rows, data.dim, generator=torch.Generator().manual_seed(seed), dtype=F64)
    z = model.prior_at(process.t_max).transform(noise)
    if isinstance(data, reference.RotatedProduct):
        return model, z, data.flow(process, z, process.t_max, process.t_min)
    return model, z, solvers.solve(model.problem(), z, solver=solvers.Dopri5(rtol=1e-7, atol=1e-7)).x


def unit_variance(data):
    """The same data, centred and of variance 1 on average."""
    s = float(data.cov.diagonal().mean().sqrt())
    if isinstance(data, reference.GaussianMixture):
        return reference.GaussianMixture((data.means - data.mean) / s, data.covs / s**2, data.weights)
    shift = (data.shift - data.mean) / s
    return reference.RotatedProduct(data.means / s, data.variances / s**2, data.weights, data.rotation, shift)


@every_process
def test_the_default_grid_errs_least(process):
    """Of all named grids, to within 6 %, on unit-variance data of two kinds.

    Compared is the geometric mean of the error over both, solvers of order 1 to 3 and 6 to 40 evaluations.
    The factor is there for rectified flow and cosine, where equal steps of t come as close. Under VE methods
    in t, such as Heun's, would diverge on the logistic grid's first steps.
    """
    solver_costs = [("ddim", 1), ("dpm++2m", 1), ("dpm++3m", 1), ("heun", 2)]
    score = dict.fromkeys(solvers.GRIDS, 0.0)
    for data in (reference.random_product(8, seed=1, dtype=F64), reference.eight_gaussians(dtype=F64)):
        model, z, truth = flow_case(unit_variance(data), process, 64)
        for name, grid in solvers.GRIDS.items():
            for (solver, cost), nfe in itertools.product(solver_costs, (6, 10, 20, 40)):
                score[name] += math.log(flow_error(model, z, truth, solver, grid(process, nfe // cost))) / 32
    assert process.grid == ("log-snr" if isinstance(process, sdediff.VE) else "logistic")
    assert score[process.grid] < min(score.values()) + (0.4 if isinstance(process, sdediff.VE) else 0.06), (
        score
    )


class Stub:
    """Noise that is a given tensor."""

    def __init__(self, z):
        self.z = z

    def normal(self, *_):
        return self.z


@cache
def law_at(process, t):
    """Alpha and the noise's variance."""
    return float(process.alpha(t)), float(process.sigma(t)) ** 2


def variance_bias(solver, process, variance, eta, times):
    """Relative bias of the variance of samples of N(0, variance); there a step is affine, a x + c z."""

    def denoise(t, x):
        alpha, noise = law_at(process, t)
        return alpha * variance / (alpha**2 * variance + noise) * x

    def law(t):
        alpha, noise = law_at(process, t)
        return alpha**2 * variance + noise

    problem = solvers.SemiLinear(process, denoise, eta).tabulate(times)
    x, z = torch.eye(2, dtype=F64).unbind(1)
    now = law(times[0])
    for t, t_next in pairwise(times):
        a, c = solver.step(problem, t, t_next, x[:, None], None, Stub(z[:, None])).x.flatten().tolist()
        now = a**2 * now + c**2
    return now / law(times[-1]) - 1


GAUSSIAN_CASES = [
    (solvers.DDIM(), 0.0, 50),
    (solvers.Heun(), 0.0, 25),
    (solvers.Ancestral(), 1.0, 200),
    (solvers.EulerMaruyama(), 1.0, 200),
]


@pytest.mark.parametrize(
    "process", [p for p in PROCESSES if not isinstance(p, sdediff.VE)], ids=lambda p: type(p).__name__
)
def test_the_default_grid_suits_stochastic_solvers_and_fine_structure(process):
    """Mean |bias| over four solvers and variances 0.25, 0.05, 0.01, exactly.

    At most 1.55 times the best of the others, which is equal steps of the root of t where t is a fraction
    or an angle, and at most 1.1 times it where t is not. (Equal steps of t are no grid for every process:
    their bias is 34 under EDM.)
    """
    score = {}
    for name in ("quadratic", "log-snr", "rho", "logistic", "cosine"):
        biases = [
            abs(variance_bias(solver, process, variance, eta, solvers.GRIDS[name](process, n).tolist()))
            for solver, eta, n in GAUSSIAN_CASES
            for variance in (0.25, 0.05, 0.01)
        ]
        score[name] = sum(biases) / len(biases)
    limit = 1.55 if isinstance(process, sdediff.RectifiedFlow | sdediff.Cosine) else 1.1
    assert score["logistic"] < limit * min(score.values()), score


# -- dynamic programming -------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", (1, 2, 4, 7))
def test_dynamic_programming_finds_the_cheapest_path(seed, steps):
    """Against every path there is."""
    m = 7
    costs = torch.rand(m + 1, m + 1, generator=torch.Generator().manual_seed(seed), dtype=F64)
    paths = [(0, *inner, m) for inner in itertools.combinations(range(1, m), steps - 1)]
    cost = {path: sum(float(costs[i, j]) for i, j in pairwise(path)) for path in paths}
    assert tuple(best_path(costs, steps)) == min(cost, key=cost.get)


def test_costs_are_local_errors_in_units_of_the_spread():
    process, data = sdediff.VP(), reference.random_product(2, dtype=F64)
    model, z, _ = flow_case(data, process, 32)
    problem, times = model.problem(), tuple(solvers.logistic_grid(process, 5).tolist())
    path = torch.stack([data.flow(process, z, process.t_max, t) for t in times])
    costs = jump_costs(solvers.DDIM(), problem, path, times)
    step = solvers.DDIM().step(problem, times[1], times[3], path[1], None, None).x
    spread = float((process.alpha(times[3]) * problem.scale) ** 2 + process.sigma(times[3]) ** 2) ** 0.5
    wanted = float((step - path[3]).square().mean().sqrt()) / spread
    assert math.isclose(float(costs[1, 3]), wanted, rel_tol=1e-12)
    assert bool(costs.triu(1)[costs.triu(1) > 0].isfinite().all())
    assert all(math.isinf(float(costs[i, j])) for i in range(6) for j in range(i + 1))


def test_a_multistep_method_is_charged_with_a_history():
    """With a history of equal steps the local error of order 2 falls like h^3, without like h^2."""
    process, data = sdediff.VP(), reference.random_product(2, dtype=F64)
    model, z, _ = flow_case(data, process, 64)
    lam = torch.linspace(-1.0, 0.6, 33, dtype=F64)
    times = tuple(process.time(lam).tolist())
    path = torch.stack([data.flow(process, z, process.t_max, t) for t in times])
    costs = jump_costs(solvers.get("dpm++2m"), model.problem(), path, times)
    assert float(costs[16, 20] / costs[16, 18]) > 6 and float(costs[16, 18] / costs[16, 17]) > 6
    first = jump_costs(solvers.get("ddim"), model.problem(), path, times)
    assert float(first[16, 20] / first[16, 18]) < 5


# -- the fit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "steps", "factor"), [("ddim", 5, 0.9), ("dpm++3m", 5, 0.7), ("heun", 4, 0.8)]
)
def test_a_fitted_grid_errs_less_on_fresh_samples(solver, steps, factor):
    """The rotated product in 16 dimensions, whose flow is known exactly; samples the fit has not seen."""
    process, data = sdediff.VP(), reference.random_product(16, dtype=F64)
    model, z, truth = flow_case(data, process, 512, seed=1)
    grid = sdediff.fit_grid(model, steps, solver, seed=2, candidates=32)
    default = flow_error(model, z, truth, solver, process.default_grid(steps))
    fitted = flow_error(model, z, truth, solver, grid)
    assert fitted < factor * default
    assert grid.error <= grid.default_error
    assert grid.span == (process.t_min, process.t_max) and len(grid) == steps + 1


def test_the_fit_is_never_worse_than_the_default_on_its_samples():
    """Also where dynamic programming alone is."""
    model = reference.eight_gaussians(dtype=F64).model(sdediff.VP())
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    alone = solvers.fit_grid(model.problem(), z, 5, "dpm++2m", candidates=24, evaluations=0)
    whole = solvers.fit_grid(model.problem(), z, 5, "dpm++2m", candidates=24)
    assert alone.error > alone.default_error and whole.error < 0.8 * whole.default_error


def fitted():
    model = reference.eight_gaussians().model(sdediff.VP())
    return model, sdediff.fit_grid(model, 4, "ddim", samples=32, candidates=16, evaluations=400)


def test_a_fitted_grid_goes_wherever_a_grid_does():
    model, grid = fitted()
    times = torch.tensor(grid.times, dtype=F64)
    for solver in ("ddim", "heun"):
        assert torch.equal(
            model.sample(5, solver, grid=grid, seed=1), model.sample(5, solver, grid=times, seed=1)
        )
    x = model.sample(3, seed=0)
    assert torch.equal(
        model.log_prob(x, solver="heun", grid=grid), model.log_prob(x, solver="heun", grid=times)
    )
    assert torch.equal(model.encode(x, "heun", grid=grid), model.encode(x, "heun", grid=times.flip(0)))
    up = solvers.solve(model.problem(), x, (grid.span[0], grid.span[1]), "heun", grid=grid)
    assert float(up.t[0]) == 1.0


def test_a_fitted_grid_is_saved_and_loaded(tmp_path):
    _, grid = fitted()
    file = tmp_path / "grid.json"
    sdediff.save_grid(grid, file)
    assert sdediff.load_grid(file) == grid
    content = json.loads(file.read_text())
    assert content["steps"] == 4 and content["process"].startswith("VP(") and content["solver"] == "DDIM()"
    file.write_text(file.read_text()[:-30])
    with pytest.raises(ValueError, match="damaged or holds no grid"):
        sdediff.load_grid(file)
    file.write_text(json.dumps(content | {"version": 99}))
    with pytest.raises(ValueError, match="update sdediff"):
        sdediff.load_grid(file)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        sdediff.load_grid(tmp_path / "none.json")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        sdediff.save_grid(grid, tmp_path / "no" / "grid.json")


def test_a_fitted_grid_refuses_another_process_or_interval():
    model, grid = fitted()
    other = reference.eight_gaussians().model(sdediff.VP(beta_max=15.0))
    for call in (
        lambda: other.sample(2, "ddim", grid=grid),
        lambda: other.log_prob(torch.zeros(2, 2), solver="heun", grid=grid),
        lambda: solvers.solve(other.problem(), torch.zeros(2, 2), solver="ddim", grid=grid),
    ):
        with pytest.raises(ValueError, match=r"fitted to VP\(beta_min=0.1, beta_max=20.*: fit one for it"):
            call()
    short = reference.eight_gaussians().model(sdediff.VP(t_min=1e-3))
    with pytest.raises(ValueError, match=r"on \[1e-05, 1\] and the process here is VP"):
        short.sample(2, "ddim", grid=grid)
    with pytest.raises(ValueError, match=r"not from 0.001 to 1: fit one with that t_span"):
        model.sample(2, "ddim", grid=grid, t_span=(1e-3, 1.0))
    assert model.sample(2, "ddim", grid=grid, t_span=(1e-5, 1.0)).shape == (2, 2)


def test_what_has_no_grid_to_fit():
    model = reference.eight_gaussians().model(sdediff.VP())
    for solver in ("dopri5", "pc"):
        with pytest.raises(TypeError, match="give a solver of ODEs with fixed steps"):
            sdediff.fit_grid(model, 5, solver)
    with pytest.raises(TypeError, match="probability flow"):
        solvers.fit_grid(model.problem(1.0), torch.zeros(4, 2), 5)
    with pytest.raises(TypeError, match="probability flow"):
        solvers.fit_grid(solvers.ODE(lambda t, x: -x), torch.zeros(4, 2), 5)
    with pytest.raises(ValueError, match="candidates=4 are fewer than steps=5"):
        sdediff.fit_grid(model, 5, "ddim", candidates=4)
    with pytest.raises(ValueError, match="not a number of steps"):
        sdediff.fit_grid(model, 0, "ddim")
    with pytest.raises(ValueError, match="two or more falling times"):
        solvers.FittedGrid((0.1, 0.5), (1.0, 1.0), (1.0, 1.0), "", "", 0.0, 0.0)


def test_a_grid_fitted_on_a_wider_interval_serves_there():
    model = sdediff.reference.eight_gaussians().model(sdediff.VP())
    grid = sdediff.fit_grid(model, 4, "ddim", t_span=(1e-6, 1.0), samples=16)
    assert model.sample(3, "ddim", grid=grid, t_span=(1e-6, 1.0)).shape == (3, 2)
    with pytest.raises(ValueError, match="fitted to VP"):
        model.sample(3, "ddim", grid=grid)
