"""A whitened network: the Gaussian of the moments until trained, for any network, process and covariance."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.func import jvp, vjp

import sdediff
from sdediff.networks import MLP, TableMLP, Whitened
from sdediff.prior import Moments

PROCESSES = [sdediff.VP(), sdediff.VE(sigma_max=20.0), sdediff.EDM(), sdediff.RectifiedFlow()]
SMALL = {"hidden": 8, "blocks": 1}


@pytest.fixture(autouse=True)
def _keep_generator():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def rows(n: int = 200, d: int = 3) -> Tensor:
    """Correlated, off-centre data, nearly flat in one direction."""
    mix, x = (torch.randn(n, d, dtype=torch.float64) for n in (d, n))
    mix[0] *= 0.01
    return 3 + x @ mix


def fitted(net: nn.Module, x: Tensor, process=PROCESSES[0]) -> sdediff.DiffusionModel:
    model = sdediff.DiffusionModel(net.double(), process, data_shape=tuple(x.shape[1:]))
    model.set_units(x)
    return model


def noised(model: sdediff.DiffusionModel, x: Tensor, t: float) -> MultivariateNormal:
    """The Gaussian of the moments of ``x_t = shift + alpha (x - shift) + sigma scale eps``."""
    t = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = model.process.alpha(t), model.process.sigma(t)
    mean = model.shift + alpha * (x.mean(0) - model.shift)
    return MultivariateNormal(
        mean, alpha**2 * torch.cov(x.T, correction=0) + torch.diag(sigma * model.scale) ** 2
    )


def stir(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 / math.sqrt(p[0].numel()) * torch.randn_like(p))
    return net


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_untrained_score_is_the_gaussians(process) -> None:
    x = rows()
    model = fitted(TableMLP(3, **SMALL), x, process)
    for t in torch.linspace(process.t_min, process.t_max, 5, dtype=torch.float64).tolist():
        g = noised(model, x, t)
        x_t = g.mean + torch.randn(7, 3, dtype=torch.float64) @ g.scale_tril.T
        expected = -(x_t - g.mean) @ g.precision_matrix
        assert torch.allclose(model.score(x_t, t), expected, rtol=1e-6, atol=1e-6 * expected.abs().max())


def test_untrained_model_is_the_gaussian_of_the_moments() -> None:
    x = rows()
    model = fitted(TableMLP(3, **SMALL), x, sdediff.VP(t_min=1e-7))
    g, exact = noised(model, x, 1e-7), {"rtol": 1e-9, "atol": 1e-9}
    r = model.log_likelihood(x[:4], divergence=sdediff.Exact(), **exact)
    assert torch.allclose(r.log_prob, g.log_prob(x[:4]), rtol=0, atol=1e-7)
    y, logp = model.sample(4, return_log_prob=True, denoise=False, **exact)
    assert torch.allclose(logp, g.log_prob(y), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "moments",
    [
        Moments.of(torch.ones(6), torch.tensor(0.3)),
        Moments.of(torch.ones(6), torch.linspace(0.1, 2, 6)),
        Moments(
            torch.ones(6).double(),
            torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()).Q,
            torch.tensor([3.0, 2.0]).double(),
            torch.tensor(0.2).double(),
        ),
    ],
    ids=["isotropic", "diagonal", "low-rank"],
)
def test_every_kind_of_covariance_is_its_full_matrix(moments: Moments) -> None:
    eye = torch.eye(6, dtype=torch.float64)
    basis = moments.basis if len(moments.basis) else eye
    cov = basis @ torch.diag(moments.variances - moments.rest) @ basis.T + moments.rest * eye
    short, full = (Whitened(stir(MLP(6, **SMALL))).double() for _ in range(2))
    full.network.load_state_dict(short.network.state_dict())
    for net, m in ((short, moments), (full, Moments.of(moments.mean, cov))):
        net.set_moments(m.mean, m.basis, m.variances, m.rest)
    x, t = torch.randn(4, 6, dtype=torch.float64), torch.linspace(-1, 1, 4, dtype=torch.float64)
    assert torch.allclose(short(x, t), full(x, t), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("t", [1e-3, 0.3, 0.9])
def test_input_and_target_of_the_inner_network_have_unit_variance(t: float) -> None:
    x = rows(10000)
    model = fitted(TableMLP(3, **SMALL), x)
    seen: list[Tensor] = []
    model.network.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    z, eps, m = model.to_model(x), torch.randn_like(x), model.moments
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = model.process.alpha(time), model.process.sigma(time)
    left = model.target(z, eps, time) - model(alpha * z + sigma * eps, time)
    gain = (m.variances * (alpha**2 + sigma**2) / (alpha**2 * m.variances + sigma**2)).sqrt()
    # Entries of a sample covariance err by 0.014 at most; 5 standard deviations: a false alarm in 1e5 runs.
    for white in (seen[0], left @ m.basis / gain):
        assert (torch.cov(white.T) - torch.eye(3)).abs().max() < 0.07


@pytest.mark.parametrize("make", [lambda: TableMLP(6, **SMALL), lambda: Whitened("UNet", base=4)])
def test_derivatives_agree_and_rows_are_independent(make) -> None:
    x = torch.randn(40, 1, 2, 3, dtype=torch.float64) @ torch.randn(3, 3, dtype=torch.float64)
    net = stir(make().double())
    fitted(net, x)
    x, t = x[:4], torch.linspace(-2, 1, 4, dtype=torch.float64)
    v, w = torch.randn_like(x), torch.randn_like(x)
    y, tangent = jvp(lambda x: net(x, t), (x,), (v,))
    pulled = vjp(lambda x: net(x, t), x)[1](w)[0]
    assert torch.allclose((w * tangent).flatten(1).sum(1), (pulled * v).flatten(1).sum(1), rtol=1e-10)
    slope = jvp(lambda t: net(x, t), (t,), (torch.ones_like(t),))[1]
    assert torch.allclose(slope, (net(x, t + 1e-5) - net(x, t - 1e-5)) / 2e-5, rtol=1e-5, atol=1e-7)
    one = torch.func.vmap(lambda x, t: net(x[None], t[None])[0])(x, t)
    assert torch.allclose(one, y, rtol=1e-11, atol=1e-11)
    single = copy.deepcopy(net).float()(x.float(), t.float()).double()
    assert torch.allclose(single, y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TableMLP(4, **SMALL, num_classes=3, optional_cond=True, augment_dim=2),
        lambda: Whitened("MLP", dim=4, **SMALL, num_classes=3, optional_cond=True, augment_dim=2),
    ],
)
def test_moments_survive_files_and_state_dicts(make, tmp_path) -> None:
    x, cond, augment = rows(50, 4), torch.tensor([0, -1, 2, 1]), torch.ones(4, 2).double()
    model = fitted(stir(make()), x)
    model.save(tmp_path / "model.safetensors")
    again = sdediff.load(tmp_path / "model.safetensors")
    y = model(x[:4], 0.5, cond, augment)
    assert again.config == model.config and torch.equal(again(x[:4], 0.5, cond, augment), y)
    assert not torch.equal(again(x[:4], 0.5, None, augment), y)
    fresh = make().double()
    fresh.load_state_dict(model.network.state_dict())
    for name in ("mean", "basis", "variances", "rest"):
        assert torch.equal(getattr(fresh, name), getattr(model.network, name))


def test_a_network_of_ones_own_can_be_whitened(tmp_path) -> None:
    class Mine(nn.Linear):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x)

    x = rows(50)
    model = fitted(Whitened(Mine(3, 3)), x)
    model.save(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="pass the same one"):
        sdediff.load(tmp_path / "model.safetensors")
    again = sdediff.load(tmp_path / "model.safetensors", network=Whitened(Mine(3, 3)))
    assert torch.equal(again.score(x, 0.2), model.score(x, 0.2))


def test_autocast_leaves_the_gaussian_exact() -> None:
    x = rows()
    net = TableMLP(3, **SMALL)
    fitted(net, x)
    net.float()
    z, t = torch.randn(5, 3), torch.zeros(5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net(z, t)
    assert torch.equal(y, net(z, t)) and y.dtype == torch.float32


def test_moments_are_asked_for_and_checked() -> None:
    net = TableMLP(3, **SMALL)
    with pytest.raises(ValueError, match=r"does not know the data's moments yet: fit the model"):
        net(torch.zeros(2, 3), torch.zeros(2))
    fitted(net, rows())
    with pytest.raises(ValueError, match=r"data of total size 3 but was given x of shape \(2, 4\)"):
        net(torch.zeros(2, 4).double(), torch.zeros(2).double())
    with pytest.raises(ValueError, match="needs prediction='edm' and was given prediction='eps'"):
        sdediff.DiffusionModel(net, sdediff.VP(), prediction="eps", data_shape=(3,))
    with pytest.raises(ValueError, match=r"network='Mlp': name one of .*MLP"):
        Whitened("Mlp")
    with pytest.raises(TypeError, match="give a module alone"):
        Whitened(MLP(3), dim=3)
    with pytest.raises(TypeError, match="given int"):
        Whitened(3)


def test_learns_what_the_moments_leave_out() -> None:
    # Data +-1 under noise sigma/alpha = 0.48: the best linear denoiser errs by 0.19, the best by half.
    x = 2.0 * (torch.arange(2000).double() % 2).unsqueeze(1) - 1
    model = fitted(TableMLP(1, hidden=32, blocks=2), x)
    x_t, _ = model.perturb(x, 0.14, seed=1)
    before = (model.denoise(x_t, 0.14) - x).square().mean()
    sdediff.fit(model, x, steps=150, batch_size=128, progress=False)
    after = (model.denoise(x_t, 0.14) - x).square().mean()
    assert after < 0.5 * before


def test_waves_are_of_the_columns_themselves() -> None:
    x = rows()
    net = TableMLP(3, **SMALL, frequencies=2).double()
    fitted(net, x)
    seen: list[Tensor] = []
    net.network.waves.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(x, torch.zeros(len(x), dtype=x.dtype))
    assert torch.equal(seen[0], x)


def test_waves_find_values_that_recur() -> None:
    # Multiples of 0.2 under noise of 0.02 standard deviations of the column: the best denoiser hardly errs.
    x = 0.2 * (torch.arange(2000) % 20).double().unsqueeze(1)
    errors = {}
    for frequencies in (0, 16):
        net = TableMLP(1, hidden=32, blocks=1, frequencies=frequencies, highest=50.0)
        model = fitted(net, x, sdediff.EDM(t_min=0.005))
        x_t, _ = model.perturb(x, 0.02, seed=1)
        sdediff.fit(model, x, steps=200, batch_size=128, progress=False)
        with torch.no_grad():
            left = (model.denoise(x_t, 0.02) - x).square().mean() / (x_t - x).square().mean()
        errors[frequencies] = float(left)
    assert errors[0] > 0.8 and errors[16] < 0.5, errors
