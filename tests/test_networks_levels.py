"""The network that knows dequantised data: its denoiser against the exact one, its density, its limits."""

import math

import pytest
import torch
from torch import nn

import sdediff
from sdediff.networks import MLP, Levels
from sdediff.reference import GaussianMixture

F64 = torch.float64


class Fixed(nn.Module):
    """The same log-probabilities of levels whatever the input: right for independent entries."""

    def __init__(self, log_probs: torch.Tensor) -> None:
        super().__init__()
        self.log_probs = nn.Parameter(log_probs)  # (levels, d)

    def forward(self, x, t):
        return self.log_probs.expand(len(x), *self.log_probs.shape)


def independent(shift=0.0, scale=1.0, low=0.0, width=1.0):
    """A model of three independent entries on five levels, exact, and the levels' probabilities."""
    generator = torch.Generator().manual_seed(0)
    log_probs = torch.randn(5, 3, generator=generator, dtype=F64).log_softmax(dim=0)
    net = Levels(Fixed(log_probs), levels=5, low=low, width=width)
    model = sdediff.DiffusionModel(net, process=sdediff.EDM(t_min=1e-4, t_max=80.0), data_shape=(3,)).double()
    levels = torch.stack([p.exp().multinomial(4000, True, generator=generator) for p in log_probs.T], dim=1)
    x = low + width * (levels + torch.rand(4000, 3, generator=generator, dtype=F64))
    model.set_units(x)
    return model, log_probs, levels, x


def test_denoiser_is_the_posterior_mean():
    # A uniform density is a mixture of many narrow Gaussians, whose posterior mean is known.
    model, log_probs, *_ = independent(low=-1.0, width=0.5)
    fine = 1200
    centres = -1 + 0.5 * (torch.arange(5 * fine, dtype=F64) + 0.5) / fine
    weights = log_probs[:, 0].exp().repeat_interleave(fine) / fine
    mixture = GaussianMixture(centres[:, None], torch.full((5 * fine,), 1e-8, dtype=F64), weights)
    for sigma, margin in ((0.02, 0.1), (0.3, 1.5), (2.0, 10.0)):
        points = torch.linspace(-1 - margin, 1.5 + margin, 23, dtype=F64)
        expected = points + sigma**2 * mixture.score(sdediff.EDM(), points[:, None], sigma)[:, 0]
        got = model.denoise(points[:, None].expand(-1, 3), sigma / float(model.scale[0]))[:, 0]
        assert (got - expected).abs().max() < 2e-5


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_density_is_the_probability_of_the_level(dtype):
    model, log_probs, levels, x = independent()
    exact = log_probs[levels[:20], torch.arange(3)].sum(dim=1)
    inside = (x[:20] - levels[:20] - 0.5).abs().amax(dim=1) < 0.45  # within 5% of an edge p_0 is smoothed
    got = model.to(dtype).log_prob(x[:20].to(dtype), divergence=sdediff.Exact(), t_span=(1e-3, 80.0))
    assert int(inside.sum()) > 10
    assert (got - exact)[inside].abs().max() < 1e-3


def test_far_outside_it_comes_to_the_nearest_end_and_stays_finite():
    net = Levels(MLP(dim=2, hidden=8, values=4), levels=4)
    model = sdediff.DiffusionModel(net, process=sdediff.VP(), data_shape=(2,), scale_mode="none")
    x = torch.tensor([[1e4, -1e4], [30.0, -30.0]])
    for t in (1e-3, 0.5, 1.0):
        d = model.denoise(x * float(model.process.alpha(t)), t)
        assert torch.isfinite(d).all()
    d = model.denoise(x, 1e-3)
    assert torch.allclose(d, torch.tensor([[4.0, 0.0]]), atol=0.02)


def test_targets_without_the_noise_in_the_cells_have_the_same_mean():
    # Given x_t and the level, the position in the cell is a truncated normal: compare with
    # averages over a fine grid of positions. The noised data stay what they were.
    net = Levels(MLP(dim=1, values=4), levels=4, low=-1.0, width=0.5).double()
    net.set_units(torch.tensor(0.2, dtype=F64), torch.tensor(0.6, dtype=F64))
    generator = torch.Generator().manual_seed(0)
    x = -1 + 2 * torch.rand(50, 1, generator=generator, dtype=F64)
    z, eps = (x - 0.2) / 0.6, torch.randn(50, 1, generator=generator, dtype=F64)
    for lam in (-3.0, 0.0, 2.5):
        mean, noise = net.cell_means(z, eps, torch.full((50,), lam, dtype=F64))
        sigma = math.exp(-lam)
        assert (mean + sigma * noise - z - sigma * eps).abs().max() < 1e-12 * sigma + 1e-12
        cell = ((x + 1) / 0.5).floor()
        grid = (-1 + 0.5 * (cell + (torch.arange(4000, dtype=F64) + 0.5) / 4000) - 0.2) / 0.6
        weight = (-0.5 * ((z + sigma * eps - grid) / sigma) ** 2).softmax(dim=1)
        assert (mean - (weight * grid).sum(1, keepdim=True)).abs().max() < 1e-6


def test_trace_is_finite_at_the_very_edges():
    model, *_ = independent()
    x = torch.tensor([[0.0, 1.0, 5.0], [2.0, 2.0, 2.0]], dtype=F64)
    assert torch.isfinite(model.log_prob(x, divergence=sdediff.Exact(), t_span=(1e-3, 80.0))).all()


def test_saved_and_loaded(tmp_path):
    net = Levels("MLP", levels=17, low=-1.0, width=0.5, dim=4, hidden=8)
    model = sdediff.DiffusionModel(net, process=sdediff.EDM(), data_shape=(4,))
    x = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) * 8 - 1
    model.set_units(x)
    nn.init.normal_(net.network.output.weight, generator=torch.Generator().manual_seed(1))
    model.save(tmp_path / "m.safetensors")
    other = sdediff.load(tmp_path / "m.safetensors")
    assert torch.equal(other.denoise(x, 0.5), model.denoise(x, 0.5))
    assert other.network.config == net.config


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Levels("MPL", levels=3, dim=2), "name one of"),
        (lambda: Levels(MLP(dim=2), levels=3, dim=2), "give a module alone"),
        (lambda: Levels("MLP", levels=1, dim=2), "at least 2"),
        (lambda: Levels("MLP", levels=3, dim=2, width=0.0), "width > 0"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_network_of_one_number_an_entry_is_refused():
    with pytest.raises(ValueError, match=r"must return \(5, 3, 2\)"):
        Levels(MLP(dim=2), levels=3)(torch.zeros(5, 2), torch.zeros(5))
    assert math.prod(Levels("MLP", levels=3, dim=2)(torch.zeros(5, 2), torch.zeros(5)).shape) == 10
