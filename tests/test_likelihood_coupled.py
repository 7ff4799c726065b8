"""The trace in the solver's state: the same values as the engine's, by any solver, and counted honestly."""

from __future__ import annotations

import pytest
import torch
from scipy import integrate
from torch import Tensor, nn

import sdediff
import solvers
from sdediff import Exact, Hutchinson

F64 = torch.float64
TIGHT = {"rtol": 1e-8, "atol": 1e-8}


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def solved() -> tuple[sdediff.DiffusionModel, Tensor, Tensor]:
    """A model, points, and their log-density to 1e-9."""
    data = sdediff.reference.random_mixture(2, 3, seed=0, dtype=F64)
    model, x = data.model(sdediff.VP()), data.sample(6, seed=4)
    return model, x, model.log_prob(x, rtol=1e-9, atol=1e-9, nodes=257)


class Net(nn.Module):
    """A conditional perceptron on images that counts its calls and rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.calls, self.rows = nn.Linear(4, 4).double(), 0, 0

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.calls, self.rows = self.calls + 1, self.rows + len(x)
        return torch.sin(self.layer(x.flatten(1)) + t[:, None] + cond).reshape(x.shape)


def conditional() -> tuple[sdediff.DiffusionModel, Tensor, Tensor]:
    model = sdediff.DiffusionModel(Net(), sdediff.VP(), "edm", (1, 2, 2))
    draw = torch.Generator().manual_seed(1)
    x, cond = (torch.randn(5, *shape, generator=draw, dtype=F64) for shape in ((1, 2, 2), (4,)))
    return model, x, cond


@pytest.mark.parametrize(
    ("solver", "options", "limit"),
    [
        ("dopri5", TIGHT, 1e-5),
        ("scipy/RK45", TIGHT, 1e-5),
        ("torchdiffeq/dopri5", TIGHT, 1e-5),
        slow("tsit5", TIGHT, 1e-5),
        ("rk4", {"steps": 100, "grid": "log-snr"}, 1e-3),
        slow("heun", {"steps": 400, "grid": "log-snr"}, 1e-2),
    ],
)
def test_every_solver_agrees_with_the_engine(solved, solver, options, limit):
    model, x, tight = solved
    r = model.log_likelihood(x, solver, coupled=True, **options)
    assert float((r.log_prob - tight).abs().max()) < limit
    assert r.kind == "density/exact" and bool((r.std_error == 0).all())
    assert r.latent.shape == x.shape and bool((r.divergence_evaluations == 2 * r.nfe).all())
    if solver in ("dopri5", "tsit5"):
        assert bool((r.solver_error < 1e-4).all())
    else:  # a foreign solver, or a fixed grid, tells no error
        assert bool(r.solver_error.isnan().all())


def test_the_stated_error_of_a_native_adaptive_solver_bounds_the_true_one():
    """For 95 % of points, once steps are short enough for estimates to leading order."""
    data = sdediff.reference.random_mixture(2, 3, seed=0, dtype=F64)
    model, x = data.model(sdediff.VP()), data.sample(60, seed=4)
    tight = model.log_prob(x, rtol=1e-9, atol=1e-9, nodes=129)
    for tolerance in (1e-5, 1e-6):
        r = model.log_likelihood(x, coupled=True, rtol=tolerance, atol=tolerance)
        assert float(((r.log_prob - tight).abs() <= r.solver_error + 1e-8).double().mean()) >= 0.95


@pytest.mark.parametrize(
    "process", [sdediff.VE(), sdediff.RectifiedFlow(), slow(sdediff.SubVP()), slow(sdediff.EDM())]
)
def test_other_processes(process):
    data = sdediff.reference.random_mixture(2, 3, seed=0, dtype=F64)
    model, x = data.model(process), data.sample(4, seed=4)
    r = model.log_likelihood(x, coupled=True, **TIGHT)
    assert float((r.log_prob - model.log_prob(x, **TIGHT, nodes=129)).abs().max()) < 1e-4


def test_the_published_recipe_to_its_digits(solved):
    """SciPy's RK45 at 1e-5 on the whole batch with the standard prior, written by hand."""
    model, x, _ = solved
    problem, process = model.problem(0.0), model.process

    def slope(t: float, y):
        z = torch.from_numpy(y[:12]).view(6, 2)
        when = torch.full((6,), t, dtype=F64)
        # Rows are independent: the derivative of their sum is each row's own, (2, 6, 2).
        jacobian = torch.autograd.functional.jacobian(lambda v: problem.velocity(when, v).sum(dim=0), z)
        traces = jacobian.diagonal(dim1=0, dim2=2).sum(dim=1)
        return torch.cat([problem.velocity(when, z).flatten(), traces]).numpy()

    alpha = process.alpha(process.t_min)
    start = torch.cat([(alpha * x).flatten(), torch.zeros(6, dtype=F64)]).numpy()
    end = integrate.solve_ivp(slope, (process.t_min, process.t_max), start, rtol=1e-5, atol=1e-5)
    z, integral = torch.from_numpy(end.y[:12, -1]).view(6, 2), torch.from_numpy(end.y[12:, -1])
    hand = torch.distributions.Normal(0, 1).log_prob(z).sum(dim=1) + integral + 2 * alpha.log()
    r = model.log_likelihood(x, "scipy/RK45", coupled=True, prior="standard", rtol=1e-5, atol=1e-5)
    # The state's entries lie in another order, so that norms round otherwise.
    assert torch.allclose(r.log_prob, hand, rtol=0, atol=1e-8) and r.prior == "standard"
    assert r.nfe.tolist() == [end.nfev] * 6


def test_steps_may_follow_the_state_alone(solved):
    """Without the trace in the norm the steps are those of the state's own solve, at d/(d+1) of its norm."""
    model, x, tight = solved
    alone = model.log_likelihood(x, coupled=True, trace_in_norm=False, rtol=1e-6, atol=1e-6)
    both = model.log_likelihood(x, coupled=True, rtol=1e-6, atol=1e-6)
    assert float((alone.log_prob - tight).abs().max()) < 1e-2
    assert bool((alone.nfe <= both.nfe).all()) and int(alone.nfe.sum()) < int(both.nfe.sum())
    flow = solvers.ODE(lambda t, z: model.problem(0.0).velocity(t.double().expand(len(z)), z))
    start = x * float(model.process.alpha(model.process.t_min))
    wider = (3 / 2) ** 0.5 * 1e-6
    state = solvers.solve(
        flow, start, (model.process.t_min, model.process.t_max), solvers.Dopri5(wider, wider)
    )
    assert int((alone.nfe - state.nfe).abs().max()) <= 12  # the first step's size sees the trace


def test_probes_are_fixed_and_their_scatter_is_the_error():
    data = sdediff.reference.random_mixture(4, 3, seed=0, dtype=F64)
    model, x = data.model(sdediff.VP()), data.sample(36, seed=4)
    options = {"coupled": True, "rtol": 1e-3, "atol": 1e-3}
    exact = model.log_prob(x, **options)
    for probes in (Hutchinson(4, pattern="fixed"), Hutchinson(2, "gaussian"), Hutchinson(2)):
        r = model.log_likelihood(x, divergence=probes, **options)
        # Errors of 36 samples are independent: their mean and spread; false alarms below 1 % each.
        pooled = float(r.std_error.square().mean().sqrt())
        assert abs(float((r.log_prob - exact).mean())) < 4 * pooled / 6 + 3e-3
        assert 0.6 < float((r.log_prob - exact).square().mean().sqrt()) / pooled < 1.6
        assert r.kind == "density/unbiased"
        assert bool((r.degrees == (3 if probes.probes == 4 else 1)).all())
        assert bool((r.divergence_evaluations == probes.probes * r.nfe).all())
    again = model.log_likelihood(x, divergence=Hutchinson(2), **options)
    other = model.log_likelihood(x, divergence=Hutchinson(2), seed=1, **options)
    assert torch.equal(again.log_prob, r.log_prob) and not torch.equal(other.log_prob, r.log_prob)
    single = model.log_likelihood(x, divergence=Hutchinson(1), **options)
    assert bool(single.std_error.isnan().all() and single.degrees.isnan().all())


def test_rows_do_not_depend_on_their_mates_under_a_native_solver():
    data = sdediff.reference.random_mixture(4, 3, seed=0, dtype=F64)
    model, x = data.model(sdediff.VP()), data.sample(5, seed=4)
    for divergence in (Exact(), Hutchinson(2)):
        options = {"coupled": True, "divergence": divergence, "rtol": 1e-3, "atol": 1e-3}
        whole = model.log_prob(x, **options)
        rows = torch.tensor([3, 1])
        part = model.log_prob(x[rows], indices=rows, **options)
        chunked = model.log_prob(x, batch_size=2, **options)
        assert torch.allclose(part, whole[rows], rtol=0, atol=1e-10)
        assert torch.allclose(chunked, whole, rtol=0, atol=1e-10)


def test_images_with_conditions_and_an_honest_count():
    model, x, cond = conditional()
    model.network.calls = model.network.rows = 0
    r = model.log_likelihood(x, "rk4", steps=40, grid="log-snr", cond=cond, coupled=True)
    # One row more finds out how many numbers the probes take.
    assert model.network.calls == 160 + 1 and model.network.rows == 160 * 5 + 1
    assert r.nfe.tolist() == [160] * 5 and r.divergence_evaluations.tolist() == [640] * 5
    tight = model.log_prob(x, cond=cond, **TIGHT)
    assert torch.allclose(model.log_prob(x, cond=cond, coupled=True, **TIGHT), tight, rtol=0, atol=1e-5)
    assert r.latent.shape == x.shape


def test_float32_networks_and_units():
    data = sdediff.reference.random_mixture(3, 3, seed=0, dtype=F64)
    x = data.sample(200, seed=0)
    net = sdediff.networks.MLP(3, 16, 2)
    torch.manual_seed(0)
    nn.init.normal_(net.output.weight, std=0.1)
    model = sdediff.DiffusionModel(net, sdediff.VP(), "edm", (3,))
    model.set_units(5 + 3 * x)
    r = model.log_likelihood(5 + 3 * x[:8], coupled=True, rtol=1e-6, atol=1e-6)
    assert r.log_prob.dtype == F64 and r.latent.dtype == torch.float32 and r.prior == "matched"
    assert torch.allclose(r.log_prob, model.log_prob(5 + 3 * x[:8], rtol=1e-6, atol=1e-6), rtol=0, atol=1e-3)


def test_what_does_not_fit_is_told(solved):
    model, x, _ = solved
    with pytest.raises(TypeError, match="a log-likelihood follows the probability-flow ODE"):
        model.log_likelihood(x, "pc", coupled=True)
    with pytest.raises(TypeError, match="no divergence"):
        model.log_likelihood(x, coupled=True, divergence="exact")
    with pytest.raises(TypeError, match="steps"):
        model.log_likelihood(x, "dopri5", coupled=True, steps=10)
