"""A model as a torch distribution."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, MultivariateNormal, constraints, kl_divergence

import sdediff

F64 = torch.float64
DATA = sdediff.reference.Gaussian(
    torch.tensor([0.5, -1.0], dtype=F64), torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)
)
MODEL = DATA.model(sdediff.RectifiedFlow())
EXACT = MultivariateNormal(DATA.mean, DATA.cov)


def conditional() -> sdediff.DiffusionModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = sdediff.networks.MLP(dim=3, hidden=16, blocks=1, cond_dim=2).double()
        nn.init.normal_(net.output.weight, std=0.3)
    return sdediff.DiffusionModel(net, sdediff.VP(), "edm", (3,))


def test_its_shapes_are_those_of_torch():
    p = MODEL.distribution()
    assert isinstance(p, Distribution) and p.event_shape == (2,) and p.batch_shape == ()
    for shape in ((), (3,), (2, 3), (0,), (2, 0)):
        x = p.sample(shape)
        assert x.shape == (*shape, 2) and not x.requires_grad
        assert p.log_prob(x).shape == shape
    image = sdediff.DiffusionModel(sdediff.networks.MLP(dim=16, hidden=8), sdediff.VP(), "edm", (1, 4, 4))
    q = image.distribution(rtol=1e-2, atol=1e-2)
    assert q.event_shape == (1, 4, 4) and q.sample((2,)).shape == (2, 1, 4, 4)
    assert q.log_prob(torch.zeros(3, 2, 1, 4, 4)).shape == (3, 2)
    assert q.support.event_dim == 3


def test_densities_and_gradients_are_those_of_the_data():
    p, x = MODEL.distribution(), DATA.sample(6, seed=3).view(2, 3, 2).requires_grad_()
    value = p.log_prob(x)
    assert torch.allclose(value, EXACT.log_prob(x), atol=1e-5)
    got, want = (torch.autograd.grad(v.sum(), x)[0] for v in (value, EXACT.log_prob(x)))
    assert torch.allclose(got, want, atol=1e-4)
    assert not p.log_prob(x.detach()).requires_grad
    with torch.no_grad():
        assert not p.log_prob(x).requires_grad
    assert not MODEL.distribution(gradient=None).log_prob(x).requires_grad


def test_samples_are_numbered():
    p, q, r = (MODEL.distribution(seed=1) for _ in range(3))
    state = torch.get_rng_state()
    parts = [p.sample((2,)), p.sample((3,)), p.sample()[None]]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.allclose(torch.cat(parts), q.sample((3, 2)).reshape(6, 2), rtol=1e-12)
    assert torch.allclose(torch.cat(parts), MODEL.sample(6, seed=1), rtol=1e-12)
    assert not torch.allclose(r.sample((2,)), MODEL.distribution(seed=2).sample((2,)))
    torch.manual_seed(5)  # has no say
    assert torch.allclose(r.sample((4,)), torch.cat(parts)[2:], rtol=1e-12)


def test_samples_have_the_data_s_moments():
    """4000 samples: each of five moments within 4.5 standard errors, a false alarm once in 30,000."""
    x = MODEL.distribution(rtol=1e-3, atol=1e-3).sample((4000,)).double()
    assert bool(((x.mean(0) - DATA.mean) / (DATA.cov.diagonal() / 4000).sqrt()).abs().max() < 4.5)
    c = DATA.cov
    spread = ((c * c + c.diagonal()[:, None] * c.diagonal()) / 4000).sqrt()
    assert bool(((torch.cov(x.T) - c) / spread).abs().max() < 4.5)


def test_what_is_given_is_checked():
    p = MODEL.distribution()
    for value in (torch.zeros(3, dtype=F64), torch.zeros(2, 3, dtype=F64)):
        with pytest.raises(ValueError, match="any shape S"):
            p.log_prob(value)
    with pytest.raises(ValueError, match="within the support"):
        p.log_prob(torch.tensor([math.nan, 0.0], dtype=F64))
    unchecked = MODEL.distribution(validate_args=False)
    with pytest.raises(ValueError, match="x has NaN"):
        unchecked.log_prob(torch.tensor([math.nan, 0.0], dtype=F64))
    with pytest.raises(ValueError, match="one a sample, or a single one"):
        conditional().distribution(torch.zeros(4, 2, dtype=F64))
    with pytest.raises(NotImplementedError):
        kl_divergence(p, EXACT)


def test_its_support_is_all_real_tensors():
    p = MODEL.distribution()
    assert isinstance(p.support, constraints.independent) and p.support.event_dim == 1
    assert p.support.check(torch.zeros(4, 2)).tolist() == [True] * 4
    assert not p.has_rsample and not p.support.is_discrete


def test_expanded_it_is_so_many_copies():
    p = MODEL.distribution(seed=3)
    q = p.expand((4,))
    assert q.batch_shape == (4,) and q.event_shape == (2,)
    x = q.sample((3,))
    assert x.shape == (3, 4, 2) and q.log_prob(x).shape == (3, 4) and q.log_prob(x[0, 0]).shape == (4,)
    assert torch.allclose(q.log_prob(x), p.log_prob(x))
    following = p.sample()  # they count together
    assert torch.allclose(following, MODEL.sample(13, seed=3)[12], rtol=1e-12)
    whole = Independent(q, 1)
    assert torch.allclose(whole.log_prob(x), q.log_prob(x).sum(1))


def test_what_it_looks_like():
    text = repr(MODEL.distribution(seed=7).expand((2,)))
    assert text.startswith("ModelDistribution(") and "seed=7" in text and "batch_shape=(2,)" in text


@pytest.mark.parametrize("options", [{}, {"gradient": "checkpoint", "solver": "rk4", "steps": 8}], ids=str)
def test_conditions_and_parameters_have_gradients_where_asked(options):
    model, cond = conditional(), torch.tensor([0.3, -1.0], dtype=F64, requires_grad=True)
    x = torch.randn(4, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    p = model.distribution(cond, **options)
    assert p.sample((5,)).shape == (5, 3)
    value = p.log_prob(x)
    value.sum().backward()
    assert cond.grad.shape == (2,) and bool(cond.grad.any())
    assert all(v.grad is None for v in model.parameters())
    rest = {"cond": cond.detach(), "gradient": "adjoint"} | options
    assert torch.allclose(value, model.log_prob(x, **rest).detach(), rtol=1e-12)
    with torch.no_grad():
        assert torch.allclose(p.log_prob(x), value, rtol=1e-12)
    model.distribution(cond.detach(), parameters=True, **options).log_prob(x).sum().backward()
    assert all(v.grad is not None for v in model.parameters())


def test_random_probes_are_the_same_in_every_call():
    p = MODEL.distribution(divergence=sdediff.Hutchinson(1), nodes=33)
    x = DATA.sample(3, seed=0)
    assert torch.equal(p.log_prob(x), p.log_prob(x))


def log_posterior(x: Tensor, y: Tensor) -> Tensor:
    return MODEL.distribution().log_prob(x) - 0.5 * (y - x[..., 0]).square() / 0.2**2


def test_it_serves_as_a_prior():
    """Newton's step from the gradient of a Gaussian posterior lands on its mean, the closed form."""
    y, x = torch.tensor(1.4, dtype=F64), torch.zeros(2, dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(log_posterior(x, y), x)
    gain = DATA.cov[:, 0] / (DATA.cov[0, 0] + 0.04)
    mean, cov = DATA.mean + gain * (y - DATA.mean[0]), DATA.cov - gain[:, None] * DATA.cov[0]
    assert torch.allclose(x.detach() + cov @ slope, mean, atol=1e-4)


def test_hamiltonian_dynamics_keep_the_energy():
    """Leapfrog is of second order: a quarter of the step, a sixteenth of the error."""
    p = MODEL.distribution()

    def energy_error(step: float) -> float:
        q, v = torch.zeros(1, 2, dtype=F64), torch.tensor([[0.7, -0.4]], dtype=F64)

        def value_and_slope(q: Tensor) -> tuple[Tensor, Tensor]:
            q = q.detach().requires_grad_()
            value = p.log_prob(q)
            return value.detach(), torch.autograd.grad(value.sum(), q)[0]

        value, slope = value_and_slope(q)
        before = 0.5 * v.square().sum() - value
        for _ in range(round(1 / step)):
            v = v + 0.5 * step * slope
            q = q + step * v
            value, slope = value_and_slope(q)
            v = v + 0.5 * step * slope
        return abs(float(0.5 * v.square().sum() - value - before))

    assert energy_error(0.5) / energy_error(0.125) == pytest.approx(16, rel=0.3)
