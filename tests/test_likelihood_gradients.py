"""Gradients of log_prob: closed-form scores, finite differences, memory, and what they leave untouched."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import sdediff
import solvers
from sdediff.reference import GaussianMixture, random_mixture

F64 = torch.float64
Hutchinson = sdediff.Hutchinson
PROCESSES = [
    sdediff.VP(),
    sdediff.SubVP(),
    sdediff.VE(),
    sdediff.Cosine(),
    sdediff.EDM(),
    sdediff.RectifiedFlow(),
]
TIGHT = {"rtol": 1e-8, "atol": 1e-8, "nodes": 129}
ROUGH = {"gradient": "adjoint", "rtol": 1e-3, "atol": 1e-3, "nodes": 17}  # where accuracy is no matter
ACCURATE = pytest.mark.parametrize(
    "options",
    [{"gradient": "adjoint"}, {"gradient": "checkpoint", "steps": 8}],
    ids=["adjoint", "checkpoint"],
)
WAYS = pytest.mark.parametrize(
    "options",
    [ROUGH, {"gradient": "checkpoint", "steps": 8}],
    ids=["adjoint", "checkpoint"],
)


@dataclass
class Noised:
    """The noised data's own law at t_max as the prior: nothing is then left of the prior's error."""

    data: GaussianMixture
    process: Any
    name: str = "noised data"

    def log_prob(self, z: Tensor) -> Tensor:
        return self.data.log_prob(self.process, z, self.process.t_max)

    def transform(self, normal: Tensor) -> Tensor:
        raise NotImplementedError


def mixture(dim: int) -> GaussianMixture:
    """Modes well apart, far from zero."""
    data = random_mixture(dim, 3 if dim == 2 else 4, seed=0, dtype=F64)
    return GaussianMixture(data.means + 5 / dim**0.5, data.covs, data.weights)


def network_model(
    process: Any = None, dim: int = 3, hidden: int = 24, cond_dim: int = 2, dtype: torch.dtype = F64
) -> sdediff.DiffusionModel:
    """A network with random weights, not the gradient of anything, in units that differ by column."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        net = sdediff.networks.MLP(dim=dim, hidden=hidden, blocks=1, cond_dim=cond_dim).to(dtype)
        nn.init.normal_(net.output.weight, std=0.3)
    model = sdediff.DiffusionModel(net, process or sdediff.VP(), "edm", (dim,))
    model.set_units(randn(0, 200, dim) * torch.tensor([1.0, 20.0, 0.3], dtype=F64)[:dim] + 3)
    return model


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def inputs(model: sdediff.DiffusionModel, rows: int = 5) -> tuple[Tensor, Tensor]:
    """Data in their units, and conditions."""
    return model.to_data(randn(2, rows, model.dim)), randn(3, rows, 2)


# -- against closed forms ------------------------------------------------------------------------------------


def error(process: Any, dim: int, rows: int, options: dict[str, Any]) -> float:
    """Largest error of the gradient against the noised data's score at t_min, relative to the largest."""
    data = mixture(dim)
    model, x = data.model(process), data.sample(rows, seed=1)
    alpha = process.alpha(process.t_min)
    exact = alpha * data.score(process, alpha * x, process.t_min)
    x.requires_grad_()
    (score,) = torch.autograd.grad(model.log_prob(x, prior=Noised(data, process), **options).sum(), x)
    return float((score - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_gradient_is_the_score(process):
    assert error(process, 2, 4, {"gradient": "adjoint", "rtol": 1e-7, "atol": 1e-7}) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("dim", [2, 16])
def test_the_gradient_is_the_score_to_the_tolerance_asked_for(process, dim):
    for options, limit in ((TIGHT, 2e-5), ({}, 1e-3)):
        assert error(process, dim, 8, {"gradient": "adjoint", **options}) < limit


@pytest.mark.parametrize("process", PROCESSES[::2], ids=lambda p: type(p).__name__)
def test_the_checkpointed_gradient_is_the_score(process):
    assert error(process, 2, 4, {"gradient": "checkpoint", "steps": 80, "grid": "log-snr"}) < 1e-4


# -- against finite differences ------------------------------------------------------------------------------


def central(f: Callable[[float], Tensor], eps: float = 1e-5) -> Tensor:
    return (f(eps) - f(-eps)) / (2 * eps)


def close(value: Tensor, want: Tensor, limit: float) -> bool:
    return float((value - want).abs().max()) < limit * float(want.abs().max())


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("gradient", "options", "limit"),
    [
        ("adjoint", {}, 1e-4),
        ("adjoint", {"divergence": Hutchinson(2)}, 1e-4),
        slow("adjoint", {"divergence": Hutchinson(3, pattern="fresh")}, 1e-4),
        slow("adjoint", {"divergence": Hutchinson(1, pattern="fixed")}, 1e-4),
        slow("adjoint", {"divergence": Hutchinson(2, "gaussian"), "nodes": 129}, 1e-4),
        ("checkpoint", {"steps": 12}, 1e-7),
        ("checkpoint", {"steps": 12, "solver": "heun", "divergence": Hutchinson(2)}, 1e-7),
    ],
    ids=str,
)
def test_gradients_are_finite_differences(gradient, options, limit):
    """By data, conditions and parameters, in random directions; of one seed, so of one function."""
    model = network_model()
    x, cond = inputs(model)
    weights = torch.arange(1, 6, dtype=F64)
    options = options | {"seed": 3, "gradient": gradient}

    def value(x: Tensor, cond: Tensor) -> Tensor:
        with torch.no_grad():
            return model.log_prob(x, cond=cond, **options)

    a, c = x.clone().requires_grad_(), cond.clone().requires_grad_()
    (weights * model.log_prob(a, cond=c, **options)).sum().backward()
    along_x, along_c = randn(4, *x.shape) * model.scale, randn(5, *cond.shape)
    assert close((a.grad * along_x).sum(1), weights * central(lambda e: value(x + e * along_x, cond)), limit)
    assert close((c.grad * along_c).sum(1), weights * central(lambda e: value(x, cond + e * along_c)), limit)

    along = {name: randn(6 + i, *p.shape) for i, (name, p) in enumerate(model.named_parameters())}

    def moved(eps: float) -> Tensor:
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.add_(along[name], alpha=eps)
        log_prob = value(x, cond)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.sub_(along[name], alpha=eps)
        return (weights * log_prob).sum()

    found = sum((p.grad * along[name]).sum() for name, p in model.named_parameters())
    assert close(found, central(moved), limit)


@pytest.mark.parametrize("process", [sdediff.VE(), sdediff.Cosine()], ids=lambda p: type(p).__name__)
@ACCURATE
def test_other_processes_and_one_condition_for_all(process, options):
    model = network_model(process)
    x, _ = inputs(model)
    cond = randn(3, 2)

    def value(cond: Tensor) -> Tensor:
        with torch.no_grad():
            return model.log_prob(x, cond=cond, **options).sum()

    c = cond.clone().requires_grad_()
    model.log_prob(x, cond=c, **options).sum().backward()
    along = randn(4, 2)
    assert close((c.grad * along).sum(), central(lambda e: value(cond + e * along)), 1e-4)


@pytest.mark.slow
def test_an_image_network():
    """Convolutions, normalisation and attention, differentiated twice."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = sdediff.networks.UNet(base=8).double()
        for p in net.parameters():
            nn.init.normal_(p, std=0.1)
    model = sdediff.DiffusionModel(net, sdediff.RectifiedFlow(), "v", (1, 4, 4))
    x, along = randn(0, 2, 1, 4, 4), randn(1, 2, 1, 4, 4)
    options = {"gradient": "adjoint", "divergence": Hutchinson(2)}

    def value(e: float) -> Tensor:
        with torch.no_grad():
            return model.log_prob(x + e * along, **options)

    a = x.clone().requires_grad_()
    model.log_prob(a, **options).sum().backward()
    assert close((a.grad * along).flatten(1).sum(1), central(value, 1e-4), 1e-3)


# -- values --------------------------------------------------------------------------------------------------


def test_values_are_those_without_a_gradient():
    model = network_model()
    x, cond = inputs(model)
    for options in ({}, {"divergence": Hutchinson(2), "seed": 5}, {"solver": "rk4", "steps": 20}):
        plain = model.log_prob(x, cond=cond, **options)
        assert not plain.requires_grad
        assert torch.equal(plain, model.log_prob(x, cond=cond, gradient="adjoint", **options).detach())
    coupled = model.log_prob(x, solver="rk4", cond=cond, coupled=True, steps=20)
    recomputed = model.log_prob(x, cond=cond, gradient="checkpoint", steps=20)
    assert torch.equal(coupled, recomputed.detach())
    with torch.no_grad():
        without = model.log_prob(x, cond=cond, gradient="checkpoint", steps=20)
    assert torch.equal(without, coupled) and not without.requires_grad


def test_single_precision():
    double, single = network_model(), network_model().float()
    x, cond = inputs(double)
    scores = []
    for model, dtype in ((double, F64), (single, torch.float32)):
        a = x.to(dtype, copy=True).requires_grad_()
        model.log_prob(a, cond=cond.to(dtype), gradient="adjoint", rtol=1e-5, atol=1e-5).sum().backward()
        assert a.grad.dtype == dtype
        scores.append(a.grad.double() * double.scale)
    assert close(scores[1], scores[0], 1e-3)


# -- what gets a gradient ------------------------------------------------------------------------------------


@WAYS
def test_every_parameter_gets_a_gradient(options):
    model = network_model()
    x, cond = inputs(model)
    model.log_prob(x, cond=cond, **options).sum().backward()  # x itself wants none
    for name, p in model.named_parameters():
        assert p.grad is not None and bool(torch.isfinite(p.grad).all()) and bool(p.grad.any()), name
    model.zero_grad()
    model.log_prob(x, cond=cond, parameters=False, **options)
    assert all(p.grad is None for p in model.parameters())


@ACCURATE
def test_what_a_function_closes_over_gets_a_gradient(options):
    """A Gaussian score of learnable variance exp(w) and mean root^2, whose graph steps share, and a prior."""
    process, x = sdediff.VP(), randn(0, 3, 2)

    @dataclass
    class Learnable:
        log_std: Tensor
        name: str = "learnable"

        def log_prob(self, z: Tensor) -> Tensor:
            return torch.distributions.Normal(0.0, torch.exp(self.log_std)).log_prob(z).sum(dim=1)

        def transform(self, normal: Tensor) -> Tensor:
            return normal * torch.exp(self.log_std).detach()

    def log_prob(w: Tensor, root: Tensor, log_std: Tensor) -> Tensor:
        mean = root**2

        def fn(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
            return -(x - alpha * mean) / (alpha**2 * torch.exp(w) + sigma**2)

        model = sdediff.from_callable(fn, process, "score", (2,))
        return model.log_prob(x, prior=Learnable(log_std), **options).sum()

    values = torch.tensor([0.3, 0.5, 0.1], dtype=F64)
    free = [v.clone().requires_grad_() for v in values]
    log_prob(*free).backward()
    for i, v in enumerate(free):

        def moved(e: float, i: int = i) -> Tensor:
            with torch.no_grad():
                return log_prob(*(values + e * torch.eye(3, dtype=F64)[i]))

        assert close(v.grad, central(moved), 1e-4)


def test_a_gradient_of_the_data_alone_asks_for_no_other(monkeypatch):
    """And both together solve the adjoint once."""
    from sdediff.likelihood import adjoint

    calls = []
    sweep = adjoint.sweep
    monkeypatch.setattr(adjoint, "sweep", lambda *a: calls.append(len(a)) or sweep(*a))
    model = network_model()
    x, cond = inputs(model)
    x.requires_grad_()
    (alone,) = torch.autograd.grad(model.log_prob(x, cond=cond, **ROUGH).sum(), x)
    assert calls == [2] and all(p.grad is None for p in model.parameters())
    model.log_prob(x, cond=cond, **ROUGH).sum().backward()
    assert calls == [2, 3] and torch.equal(x.grad, alone)


@WAYS
def test_a_backward_pass_may_be_repeated_with_other_weights(options):
    model = network_model()
    x, cond = inputs(model)
    x.requires_grad_()
    log_prob, bias = model.log_prob(x, cond=cond, **options), model.network.output.bias
    both = torch.autograd.grad(log_prob.sum(), (x, bias), retain_graph=True)
    first = torch.autograd.grad(log_prob[:2].sum(), (x, bias), retain_graph=True)
    rest = torch.autograd.grad(log_prob[2:].sum(), (x, bias))
    for a, b, c in zip(both, first, rest, strict=True):
        assert torch.allclose(a, b + c, rtol=1e-10, atol=1e-12)
    assert not bool(first[0][2:].any())


@WAYS
def test_a_step_up_the_gradient_raises_the_likelihood(options):
    model = network_model()
    x, cond = inputs(model, 16)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = -model.log_prob(x, cond=cond, **options).mean()
    before.backward()
    optimiser.step()
    assert float(-model.log_prob(x, cond=cond, **options).detach().mean()) < float(before.detach()) - 0.1


# -- rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        ROUGH,
        {**ROUGH, "divergence": Hutchinson(1), "rtol": 1e-5, "nodes": 33},
        {"gradient": "checkpoint", "steps": 6, "divergence": Hutchinson(1)},
    ],
    ids=["adjoint", "adjoint, random", "checkpoint"],
)
def test_a_row_does_not_depend_on_its_batch(options):
    """To 1e-10 of each row's largest component."""
    model = network_model()
    x, cond = inputs(model, 8)

    def grads(rows: Any, **more: Any) -> tuple[Tensor, ...]:
        a = x[rows].clone().requires_grad_()
        log_prob = model.log_prob(a, cond=cond[rows], indices=rows, **options, **more)
        return torch.autograd.grad(log_prob.sum(), (a, model.network.output.weight))

    whole, weight = grads(torch.arange(8))
    for rows in (torch.tensor([4]), torch.tensor([7, 0, 5])):
        part, _ = grads(rows)
        for got, want in zip(part, whole[rows], strict=True):
            assert close(got, want, 1e-10)
    chunked, other = grads(torch.arange(8), batch_size=5)
    for got, want in zip((*chunked, other), (*whole, weight), strict=True):
        assert close(got, want, 1e-10)


class Broken(nn.Module):
    """NaN where the first condition is negative."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        nan = torch.where(cond[:, :1] < 0, torch.nan, 1.0)
        return self.network(x, t, cond) * nan


@WAYS
def test_a_failed_sample_spoils_no_other(options):
    model = network_model()
    x, cond = inputs(model)
    cond[:, 0] = 1
    a = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(model.log_prob(a, cond=cond, **options).sum(), a)
    model.network = Broken(model.network)
    cond[2, 0] = -1
    with pytest.warns(UserWarning, match="1 of 5 samples failed"):
        log_prob = model.log_prob(a, cond=cond, **options)
    assert torch.isnan(log_prob).tolist() == [i == 2 for i in range(5)]
    weight = model.network.network.output.weight
    (got,) = torch.autograd.grad(log_prob.sum(), a, retain_graph=True)
    kept = [0, 1, 3, 4]
    assert bool(torch.isnan(got[2]).all()) and torch.allclose(got[kept], want[kept], rtol=1e-10, atol=1e-12)
    if options["gradient"] == "adjoint":  # a sample that does not count has no say
        assert bool(
            torch.isfinite(torch.autograd.grad(log_prob[kept].sum(), weight, retain_graph=True)[0]).all()
        )
    assert bool(torch.isnan(torch.autograd.grad(log_prob.sum(), weight)[0]).all())


# -- state ---------------------------------------------------------------------------------------------------


@WAYS
def test_modes_and_generators_are_left_alone(options):
    """Dropout is off within, in the backward pass too, and on again afterwards."""
    model = network_model()
    model.network.dropout = 0.5
    x, cond = inputs(model)
    scores = []
    for training in (False, True):
        model.train(training)
        state = torch.get_rng_state()
        a = x.clone().requires_grad_()
        log_prob = model.log_prob(a, cond=cond, **options)
        assert torch.is_grad_enabled() and model.training == training
        scores.append(torch.autograd.grad(log_prob.sum(), a)[0])
        assert torch.is_grad_enabled() and model.training == training
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*scores)


class Live(TorchDispatchMode):
    """Bytes of the storages that operations have made and that are still there, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Any] = {}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.seen:
                    self.seen[key] = weakref.ref(storage, lambda _, key=key, size=size: self.gone(key, size))
                    self.bytes += size
        self.peak = max(self.peak, self.bytes)
        return out

    def gone(self, key: int, size: int) -> None:
        del self.seen[key]
        self.bytes -= size


@pytest.mark.parametrize("steps", [(10, 50), slow((50, 250))])
def test_memory_does_not_grow_with_the_steps(steps):
    """Of the checkpointed backward pass, in bytes of live tensors: 5 %, for the states it keeps."""
    model = network_model(hidden=160)
    x, cond = inputs(model, 8)

    def peak(steps: int) -> int:
        with Live() as live:
            a = x.clone().requires_grad_()
            log_prob = model.log_prob(a, cond=cond, gradient="checkpoint", solver="euler", steps=steps)
            log_prob.sum().backward()
        return live.peak

    peak(2)
    few, many = (peak(n) for n in steps)
    assert few > 8 * 160 * 8 * 3 and many < 1.05 * few


@pytest.mark.slow
def test_memory_of_the_adjoint_does_not_grow_with_the_steps():
    """From a loose tolerance to a tight one, of many times the steps: 5 %."""
    model = network_model(hidden=64)
    x, cond = inputs(model, 8)

    def peak(tolerance: float) -> tuple[int, int]:
        options = {"cond": cond, "rtol": tolerance, "atol": tolerance}
        with Live() as live:
            a = x.clone().requires_grad_()
            model.log_prob(a, gradient="adjoint", **options).sum().backward()
        return live.peak, int(model.log_likelihood(x, **options).nfe.max())

    (loose, few), (tight, many) = peak(1e-3), peak(1e-8)
    assert many > 4 * few and tight < 1.05 * loose


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"gradient": "ajoint"}, ValueError, "gradient='ajoint' is not known: take"),
        ({"gradient": "adjoint", "coupled": True}, TypeError, "coupled=True has no gradient"),
        ({"gradient": "adjoint", "extrapolate": True}, TypeError, "extrapolate=True has no gradient"),
        ({"gradient": "adjoint", "divergence": Hutchinson(std_error=0.1)}, TypeError, "number of probes"),
        ({"gradient": "checkpoint", "solver": "dopri5"}, TypeError, "fixed grid"),
        ({"gradient": "checkpoint", "solver": "torchdiffeq/rk4"}, TypeError, "fixed grid"),
        ({"gradient": "checkpoint", "solver": "dpm++2m"}, TypeError, "one-step solver"),
        ({"gradient": "checkpoint", "solver": "ddim"}, TypeError, "SemiLinear"),
    ],
    ids=str,
)
def test_what_has_no_gradient_is_said(options, error, match):
    model = network_model()
    x, cond = inputs(model)
    with pytest.raises(error, match=match):
        model.log_prob(x, cond=cond, **options)


@WAYS
def test_second_derivatives_are_refused(options):
    model = network_model()
    x, cond = inputs(model)
    log_prob = model.log_prob(x.requires_grad_(), cond=cond, **options)
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.autograd.grad(log_prob.sum(), x, create_graph=True)


@WAYS
def test_parameters_changed_in_between_are_noticed(options):
    model = network_model()
    x, cond = inputs(model)
    log_prob = model.log_prob(x, cond=cond, **options)
    with torch.no_grad():
        model.network.output.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        log_prob.sum().backward()


def test_a_prior_that_cuts_the_graph_is_told():
    class Cut(Noised):
        def log_prob(self, z: Tensor) -> Tensor:
            return super().log_prob(z).detach()

    data = mixture(2)
    x = data.sample(2, seed=0).requires_grad_()
    log_prob = data.model(sdediff.VP()).log_prob(x, gradient="adjoint", prior=Cut(data, sdediff.VP()))
    with pytest.raises(ValueError, match="cuts the graph"):
        log_prob.sum().backward()


@pytest.mark.slow
def test_any_solver_serves_the_forward_pass():
    """The adjoint then has a tolerance of its own."""
    data = mixture(2)
    model, x = data.model(sdediff.VP()), data.sample(3, seed=0).requires_grad_()
    (want,) = torch.autograd.grad(model.log_prob(x, gradient="adjoint", **TIGHT).sum(), x)
    tight = {"rtol": 1e-8, "atol": 1e-8}
    for solver, options in (
        ("scipy/RK45", tight),
        (solvers.Tsit5(1e-8, 1e-8), {}),
        ("rk4", {"steps": 200, "grid": "log-snr"}),
    ):
        (got,) = torch.autograd.grad(model.log_prob(x, gradient="adjoint", solver=solver, **options).sum(), x)
        assert close(got, want, 1e-4)
