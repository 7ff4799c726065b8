"""Defects that were found once: each test fails on the code that had them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import sdediff
import solvers
from sdediff.prior import Moments
from sdediff.reference import Gaussian, random_mixture

F64 = torch.float64


@pytest.fixture
def mixture():
    return random_mixture(3, 3, seed=0, dtype=F64)


def test_traces_survive_inference_mode(mixture):
    """Autograd is off in inference mode: the trace was silently zero, 23 nats wrong."""
    x = mixture.sample(4, seed=0)
    model = mixture.model(sdediff.VP())
    with torch.inference_mode():
        inside = model.log_prob(x)
        sampled, log_prob = model.sample(3, return_log_prob=True, dtype=F64, rtol=1e-6, atol=1e-6)
        rate = sdediff.GaussianProcess(lambda t: 1 - t, lambda t: t, 1e-3, 0.99).drift_coefficient(0.5)
    assert torch.allclose(inside, mixture.log_prob(None, x, None), atol=1e-3)
    assert torch.allclose(log_prob, model.log_prob(sampled), atol=1e-3)
    assert float(rate) == pytest.approx(-2.0)


def test_a_function_that_cuts_the_graph_is_refused_and_a_constant_is_not(mixture):
    def cut(x, t):
        return mixture.score(sdediff.VP(), x.detach(), t)

    model = sdediff.from_callable(cut, sdediff.VP(), "score", (3,))
    with pytest.raises(ValueError, match="cuts the graph of its input"):
        model.log_prob(mixture.sample(2, seed=0))
    # The denoiser of a point mass at the origin is the constant 0: no graph, and nothing wrong.
    point = sdediff.from_callable(
        lambda x, t: torch.zeros_like(x), sdediff.VE(), "x0", (3,), prior="standard"
    )
    r = point.log_likelihood(torch.zeros(1, 3, dtype=F64), rtol=1e-9, atol=1e-9)
    exact = -1.5 * np.log(2 * np.pi * sdediff.VE().sigma_min ** 2)
    assert float(r.log_prob) == pytest.approx(exact, abs=1e-3)


def test_units_are_taken_off_before_rounding_and_kept_when_the_network_is_cast():
    """float64 data far from 0 with a float32 network; `.half()` must not round the units."""
    x = torch.randn(500, 1, dtype=F64, generator=torch.Generator().manual_seed(0)) + 1e8
    model = sdediff.DiffusionModel(sdediff.networks.MLP(dim=1, hidden=8), sdediff.VP(), data_shape=(1,))
    model.set_units(x)
    z = model.as_state(x)
    assert z.dtype == torch.float32
    assert torch.allclose(z.double().mean(), torch.zeros((), dtype=F64), atol=1e-5)
    assert torch.allclose(z.double().std(), torch.ones((), dtype=F64), atol=2e-3)
    shift, moments = model.shift.clone(), copy.deepcopy(model.moments)
    model.bfloat16()
    assert next(model.parameters()).dtype == torch.bfloat16
    assert torch.equal(model.shift, shift) and torch.equal(model.moments.basis, moments.basis)


def test_a_corrector_spoils_the_predictors_first_slope():
    """Dormand-Prince hands its last slope to the next step: after a correction it is of another point."""
    problem = solvers.SemiLinear(sdediff.VP(), lambda t, x: 0 * x, 0.0)
    solver = solvers.PredictorCorrector(solvers.RungeKutta(solvers.runge_kutta.DOPRI5), solvers.Langevin())
    sol = solvers.solve(problem, torch.ones(2, 1, dtype=F64), solver=solver, steps=5)
    assert sol.nfe.tolist() == [5 * (7 + 1)] * 2


def test_a_second_corrector_and_multistep_doubling_are_refused():
    with pytest.raises(TypeError, match="corrects already"):
        solvers.PredictorCorrector(solvers.get("pc"), solvers.Langevin())

    class TwoStep(solvers.Euler):
        multistep = True

    with pytest.raises(TypeError, match="take a one-step ODE solver"):
        solvers.StepDoubling(TwoStep())


def test_coefficients_do_not_travel_to_another_eta():
    problem = solvers.SemiLinear(sdediff.VP(), lambda t, x: 0 * x, 0.0)
    x = torch.ones(1, 1)
    assert problem.at(0.5, x).noise == 0.0
    assert replace(problem, eta=1.0).at(0.5, x).noise == pytest.approx(float(sdediff.VP().diffusion(0.5)))


def test_integer_times_are_numbers():
    assert float(sdediff.VP().alpha(torch.tensor(1))) == pytest.approx(float(sdediff.VP().alpha(1.0)))


def test_other_tolerances_leave_a_solver_as_it_was_otherwise():
    class Careful(solvers.Dopri5):
        def __init__(self, safety=1.0, **options):
            super().__init__(**options)
            self._safety = safety

    changed = solvers.registry.resolve(Careful(safety=5.0), rtol=1e-7)
    assert (changed._safety, changed.rtol, changed.atol) == (5.0, 1e-7, 1e-5)


def test_random_probes_say_so_when_samples_are_weighed():
    mixing = torch.randn(80, 80, dtype=F64, generator=torch.Generator().manual_seed(0)) / 9
    gaussian = Gaussian(torch.zeros(80, dtype=F64), mixing @ mixing.T + 0.1 * torch.eye(80, dtype=F64))
    result = gaussian.model(sdediff.VP()).sample(3, return_log_prob=True, dtype=F64)
    assert result.likelihood.kind == "density/unbiased"
    assert bool((result.likelihood.std_error > 0).all())
    exact = gaussian.model(sdediff.VP()).sample(
        3, return_log_prob=True, dtype=F64, divergence=sdediff.Exact(), rtol=1e-7, atol=1e-7
    )
    x, log_prob = exact
    assert exact.likelihood.kind == "density/exact"
    assert torch.allclose(log_prob, gaussian.log_prob(None, x, None), atol=1e-3)


def test_views_rest_dropout_and_leave_the_generator_alone():
    net = sdediff.networks.MLP(dim=2, hidden=16, dropout=0.5)
    torch.nn.init.normal_(net.output.weight, generator=torch.Generator().manual_seed(0))
    model = sdediff.DiffusionModel(net, sdediff.VP(), data_shape=(2,)).train()
    state = torch.get_rng_state()
    assert torch.equal(model.score(torch.ones(3, 2), 0.5), model.score(torch.ones(3, 2), 0.5))
    assert model.training and torch.equal(torch.get_rng_state(), state)


class NoBatchRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.from_numpy(2 * x.detach().numpy())


def test_a_trace_without_a_batching_rule_falls_back_to_a_loop():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=F64)
    trace = sdediff.Exact().traces(NoBatchRule.apply, x, torch.arange(2), torch.zeros(2), 0)
    assert torch.equal(trace[0], 2 * x.sum(dim=1))


def test_diagonal_and_scalar_moments_take_no_matrix_and_agree_with_the_full_one():
    variances = torch.tensor([0.5, 2.0, 1.0], dtype=F64)
    z = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    mean = torch.ones(3, dtype=F64)
    full = Moments.of(mean, variances.diag()).noised(0.8, 0.6)
    diagonal = Moments.of(mean, variances).noised(0.8, 0.6)
    assert diagonal.basis.numel() == 0
    assert torch.allclose(full.log_prob(z), diagonal.log_prob(z), rtol=1e-12)
    scalar = Moments.of(mean, torch.tensor(2.0, dtype=F64)).noised(0.8, 0.6)
    assert scalar.basis.numel() == 0
    same = Moments.of(mean, 2 * torch.eye(3, dtype=F64)).noised(0.8, 0.6)
    assert torch.allclose(scalar.log_prob(z), same.log_prob(z), rtol=1e-12)
    assert torch.allclose(diagonal.transform(z), 0.8 + z * (0.64 * variances + 0.36).sqrt(), rtol=1e-12)
    assert torch.allclose(scalar.transform(z), 0.8 + z * (0.64 * 2 + 0.36) ** 0.5, rtol=1e-12)


def test_low_rank_moments_do_not_depend_on_the_order_of_the_rows(monkeypatch):
    monkeypatch.setattr("sdediff.prior.LOW_RANK_ROWS", 800)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1000, 1030, generator=generator) * 0.1
    z[900:, 0] += 20  # a direction that only the last rows have
    moments = Moments.learn(z)
    true = z[:, 0].double().var(correction=0)
    assert float(moments.variances.max()) == pytest.approx(float(true), rel=0.1)


def test_a_users_own_process_class_is_saved_and_comes_back_by_name(tmp_path):
    class Mine(sdediff.GaussianProcess):
        def __init__(self):
            super().__init__(alpha=lambda t: 1 - t, sigma=lambda t: t, t_min=1e-3, t_max=0.99)

    model = sdediff.DiffusionModel(sdediff.networks.MLP(dim=2, hidden=8), Mine(), data_shape=(2,))
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match=r"process=\.\.\."):
        sdediff.load(tmp_path / "m.safetensors")
    again = sdediff.load(tmp_path / "m.safetensors", process=Mine())
    assert torch.equal(again.score(torch.ones(2, 2), 0.5), model.score(torch.ones(2, 2), 0.5))


@pytest.mark.parametrize("prediction", ["score", "velocity"])
def test_the_default_loss_weighs_targets_that_grow(prediction):
    """Score and velocity (under VE) have targets of every size; the noise estimate's error has one."""
    model = sdediff.DiffusionModel(
        sdediff.networks.MLP(dim=1, hidden=8), sdediff.VE(), prediction=prediction, data_shape=(1,)
    )
    weight = sdediff.training.weightings.network_weight
    t = torch.linspace(0.1, 0.9, 5, dtype=F64)
    balanced = sdediff.training.LOSSES["balanced"].weighting
    assert torch.equal(weight(balanced, model, t), weight(sdediff.training.Eps(), model, t))


def test_arrays_grids_and_one_condition_for_all(mixture):
    model = mixture.model(sdediff.VP())
    x = mixture.sample(3, seed=0)
    assert torch.equal(model.log_prob(x.numpy()), model.log_prob(x))
    grid = np.linspace(1.0, 0.01, 6)
    assert torch.equal(
        model.sample(2, "heun", grid=grid), model.sample(2, "heun", grid=torch.from_numpy(grid))
    )
    net = sdediff.networks.MLP(dim=2, hidden=8, cond_dim=3)
    conditional = sdediff.DiffusionModel(net, sdediff.VP(), data_shape=(2,))
    one = torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(
        conditional.sample(4, "ddim", steps=3, cond=one),
        conditional.sample(4, "ddim", steps=3, cond=one.expand(4, 3)),
    )


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"seed": 1.5}, TypeError, "give a whole number"),
        ({"batch_size": 2.5}, ValueError, "positive number of rows"),
        ({"prior": 3}, TypeError, "is no prior"),
        ({"eta": "a", "solver": "ddim"}, TypeError, "give a number, or a function of t"),
    ],
)
def test_odd_arguments_get_a_sentence(mixture, options, error, match):
    with pytest.raises(error, match=match):
        mixture.model(sdediff.VP()).sample(2, **options)


def test_noising_in_data_units_is_the_inverse_of_the_views():
    x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * 3 + 7
    model = sdediff.DiffusionModel(sdediff.networks.MLP(dim=2, hidden=8), sdediff.VP(), data_shape=(2,))
    model.set_units(x)
    x_t, eps = model.perturb(x, 0.3, seed=0)
    z_t = model.to_model(x_t)
    alpha, sigma = float(model.process.alpha(0.3)), float(model.process.sigma(0.3))
    assert torch.allclose(z_t, alpha * model.to_model(x) + sigma * eps, atol=1e-5)


def test_a_dense_matrix_that_cannot_fit_is_refused_before_it_is_made(mixture):
    with pytest.raises(ValueError, match=r"dense matrix of the whole batch.*give batch_size=6666 or less"):
        mixture.model(sdediff.VP()).sample(7000, "scipy/LSODA")


def test_a_formula_in_float64_takes_the_states_dtype():
    model = sdediff.from_callable(lambda x, t: -x.double(), sdediff.VP(), "score", (3,))
    for solver in ("dopri5", "heun", "pc", "scipy/RK45", "torchdiffeq/dopri5"):
        assert model.sample(2, solver).dtype == torch.float32, solver
    x = torch.zeros(1, 3)
    assert float(model.log_prob(x)) == pytest.approx(-1.5 * np.log(2 * np.pi), abs=1e-4)
    with pytest.raises(TypeError, match="the network returned a ndarray"):
        sdediff.from_callable(lambda x, t: x.numpy(), sdediff.VP(), "score", (3,)).sample(2, "heun", steps=2)


def test_one_condition_vector_serves_as_many_samples_as_it_has_entries():
    model = sdediff.DiffusionModel(
        sdediff.networks.MLP(dim=2, hidden=8, cond_dim=3), sdediff.VP(), data_shape=(2,)
    )
    assert model.sample(3, "ddim", steps=2, cond=torch.ones(3)).shape == (3, 2)


def test_a_step_that_is_no_step_is_named():
    class Bare(solvers.Euler):
        def step(self, problem, t, t_next, x, state, noise):
            return x

    with pytest.raises(TypeError, match=r"Bare.step returned a Tensor: return solvers.Step\(x\)"):
        solvers.solve(solvers.ODE(lambda t, x: -x), torch.ones(3, 1), t=(0.0, 1.0), solver=Bare(), steps=2)


def test_a_constant_schedule_may_be_a_number():
    process = sdediff.GaussianProcess(alpha=lambda t: 1.0, sigma=lambda t: t, t_min=1e-3, t_max=20.0)
    edm = sdediff.EDM(t_min=1e-3, t_max=20.0)
    t = torch.linspace(0.1, 10, 5, dtype=F64)
    for name in ("alpha", "lam", "diffusion", "drift_coefficient"):
        assert torch.allclose(getattr(process, name)(t), getattr(edm, name)(t), atol=1e-12), name
    assert repr(process) == "GaussianProcess(t_min=0.001, t_max=20)"


def test_dequantise_takes_arrays_and_names_match_whatever_their_case():
    levels = np.arange(6, dtype=np.uint8).reshape(2, 3)
    assert torch.equal(sdediff.dequantise(levels, seed=0).floor(), torch.arange(6.0).reshape(2, 3))
    with pytest.raises(ValueError, match="did you mean scipy/LSODA"):
        solvers.get("scipy/lsoda")
