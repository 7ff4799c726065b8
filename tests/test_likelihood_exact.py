"""The exact trace: every way of differentiating gives it, and the quickest is found once a network."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.functional import jacobian

import sdediff
from sdediff import Exact
from sdediff.likelihood import exact

F64 = torch.float64
every_way = pytest.mark.parametrize("method", list(exact.WAYS))


def points(rows: int, *shape: int) -> Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(0), dtype=F64)


def traces(function, x: Tensor, method: str) -> Tensor:
    names = torch.arange(len(x))
    return Exact(method).traces(function, x, names, torch.zeros(len(x)), 0)


class Unbatched(torch.autograd.Function):
    """A sine without rules for batches or forward mode."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * torch.from_numpy(x.detach().cos().numpy())


class Wrong(torch.autograd.Function):
    """A sine whose forward-mode derivative lacks a factor of 2."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return (2 * x).sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return grad * 2 * (2 * ctx.saved_tensors[0]).cos()

    @staticmethod
    def jvp(ctx, tangent):
        return tangent * (2 * ctx.saved_tensors[0]).cos()


class Net(nn.Module):
    """A perceptron around a nonlinearity that counts its calls."""

    def __init__(self, dim: int, nonlinearity=torch.sin) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(dim, 16), nn.Linear(16, dim)
        self.nonlinearity, self.calls = nonlinearity, 0
        self.double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.second(self.nonlinearity(self.first(x) + t[:, None]))


def model_of(dim: int, nonlinearity=torch.sin) -> sdediff.DiffusionModel:
    return sdediff.DiffusionModel(Net(dim, nonlinearity), sdediff.VP(), "edm", (dim,))


@every_way
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3, 4)])
def test_every_way_gives_the_trace_of_the_jacobian_and_the_value(method, shape):
    x = points(5, *shape)
    d = x[0].numel()
    a, b = (torch.randn(d, d, generator=torch.Generator().manual_seed(s), dtype=F64) for s in (1, 2))

    def function(x: Tensor) -> Tensor:
        return (torch.tanh(x.flatten(1) @ a) @ b + x.flatten(1) ** 3).reshape(x.shape)

    true = [jacobian(function, row[None]).reshape(d, d).trace() for row in x]
    names = torch.arange(len(x))
    value, trace = Exact(method).with_value(function, x, names, torch.zeros(len(x)), 0)
    assert torch.allclose(trace, torch.stack(true)[None], rtol=1e-12, atol=1e-12)
    assert torch.equal(value, function(x)) and not trace.requires_grad and not value.requires_grad


@every_way
def test_a_constant_has_no_trace(method):
    assert traces(lambda x: torch.ones_like(x), points(4, 3), method).tolist() == [[0.0] * 4]


@every_way
def test_unit_vectors_in_several_batches(method, monkeypatch):
    monkeypatch.setattr(exact, "_TOGETHER", 60)
    x = points(4, 7)
    limited = exact._diagonal(lambda v: v * x, x, 60)
    assert torch.allclose(limited, x.sum(dim=1))
    assert torch.allclose(traces(lambda x: x**2, x, method), 2 * x.sum(dim=1)[None])


def test_likelihoods_agree_whatever_the_way():
    model, x = model_of(6), points(5, 6)
    values = [model.log_prob(x, divergence=Exact(m), nodes=33) for m in ("auto", *exact.WAYS)]
    for value in values[1:]:
        assert torch.allclose(value, values[0], rtol=0, atol=1e-10)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_the_quickest_way_is_found_once_and_forgotten_with_the_network(monkeypatch):
    found = []
    monkeypatch.setattr(exact, "quickest", lambda at: found.append(exact_quickest(at)) or found[-1])
    model, x = model_of(3), points(64, 3)
    model.log_prob(x, nodes=17)
    model.log_prob(x + 1, nodes=17)
    assert len(found) == 1 and found[0] in exact.WAYS and model.network in exact._KNOWN
    model.log_prob(x[:4], nodes=17)  # too few points for a trial to pay
    assert len(found) == 1
    network = weakref.ref(model.network)
    del model
    gc.collect()
    assert network() is None


exact_quickest = exact.quickest


def test_the_quickest_of_stated_times_is_taken(monkeypatch):
    clock = iter([0.0, 3.0, 10.0, 12.0, 20.0, 21.0, 30.0, 35.0])  # begin and end of each way in turn
    monkeypatch.setattr(exact.time, "perf_counter", lambda: next(clock))
    x = points(40, 3)
    assert exact.quickest(lambda here: (torch.sin, x[here])) == list(exact.WAYS)[2]


def test_ways_that_cannot_do_an_operation_are_left_out():
    model, x = model_of(3, Unbatched.apply), points(4, 3)
    times = torch.full((4,), 0.5, dtype=F64)

    def at(here: slice):
        return lambda z: model.problem(0.0).denoise(times[: len(z)], z), x[here]

    assert exact.quickest(at) in ("vjp", "loop")  # the first falls back on the second
    reference = model_of(3)
    reference.network.load_state_dict(model.network.state_dict())
    assert torch.allclose(model.log_prob(x, nodes=17), reference.log_prob(x, nodes=17), rtol=0, atol=1e-10)


def test_ways_that_disagree_are_told():
    model, x = model_of(3, Wrong.apply), points(64, 3)
    with pytest.raises(RuntimeError, match=r'by "vjp" and "jvp" differ by .*mend it, or say which is right'):
        model.log_prob(x, nodes=17)
    model.log_prob(x[:2], nodes=17, divergence=Exact("vjp"))


def test_a_failing_network_says_so_itself():
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("out of order")

    with pytest.raises(RuntimeError, match="out of order"):
        exact.quickest(lambda here: (broken, points(4, 3)[here]))


def test_an_unknown_method_names_the_known_ones():
    with pytest.raises(
        ValueError, match=r"method='best' is not known: take .auto., .vjp., .vmap., .loop. or .jvp."
    ):
        Exact("best")
