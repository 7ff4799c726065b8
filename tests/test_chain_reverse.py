"""The reverse chain: steps against diffusers and the exponential SDE step, losses, learned variances."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import sdediff
from sdediff.chain import (
    Chain,
    Indices,
    VariationalLoss,
    cosine_betas,
    hybrid_loss,
    linear_betas,
    sigmoid_betas,
    simple_loss,
)
from sdediff.networks import MLP, WithVariance
from sdediff.reference import GaussianMixture, random_mixture
from sdediff.training import Draw
from solvers.noise import Stream, normal

F64 = torch.float64


class Affine(torch.nn.Module):
    """A head that is no constant: v = 0.8 sin(x + t) for every entry."""

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return 0.8 * torch.sin(x + t[:, None])


def learned(process: sdediff.GaussianProcess) -> sdediff.DiffusionModel:
    """A model in float64 with a mean that is no trained one and a variance that depends on the state."""
    torch.manual_seed(0)
    net = MLP(dim=2, hidden=16, blocks=1).double()
    torch.nn.init.normal_(net.output.weight, std=0.1)
    return sdediff.DiffusionModel(WithVariance(net, Affine()), process, "eps", (2,), prior="standard")


# -- schedules and conversions -------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [40, 1000])
def test_schedules_are_those_of_the_papers(steps):
    k = torch.arange(steps + 1, dtype=F64) / steps
    f = torch.cos((k + 0.008) / 1.008 * math.pi / 2) ** 2
    chain = Chain.from_betas(cosine_betas(steps))
    assert torch.allclose(chain.alpha[1:-1] ** 2, (f / f[0])[1:-1], rtol=1e-9)
    assert float(chain.betas[-1]) == pytest.approx(0.999, rel=1e-9)
    gamma = (torch.sigmoid(torch.tensor(3.0, dtype=F64)) - torch.sigmoid(6 * k - 3)) / math.tanh(1.5)
    assert torch.allclose(Chain.from_betas(sigmoid_betas(steps)).alpha[1:-1] ** 2, gamma[1:-1], rtol=1e-9)


def test_schedules_are_those_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    assert torch.allclose(scheduler.betas.double(), cosine_betas(1000), rtol=1e-6, atol=1e-8)
    scheduler = diffusers.DDPMScheduler(rescale_betas_zero_snr=True)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        Chain.from_betas(scheduler.betas)
    assert Chain.from_betas(scheduler.betas[:-1]).steps == 999


def test_a_chain_and_its_process_are_one_at_every_index():
    """There and back: alpha-bars, betas, a chain of the process at the chain's own times."""
    chain = Chain.from_betas(cosine_betas(50))
    for again in (
        Chain.from_alpha_bars(chain.alpha[1:] ** 2),
        Chain.from_betas(chain.betas),
        Chain(chain.process, chain.times),
    ):
        assert torch.allclose(again.alpha, chain.alpha, rtol=1e-9) and again.steps == 50
        assert torch.allclose(again.times, chain.times, rtol=1e-6)
    for process in (sdediff.VE(), sdediff.EDM(), sdediff.RectifiedFlow()):
        ends = Chain.of(process, 7).times[[0, -1]].tolist()
        assert ends == [process.t_min, process.t_max]
    # A model of the chain's own process is one in continuous time.
    data = random_mixture(2, 3, seed=1, dtype=F64)
    model, x = data.model(chain.process), data.sample(4, seed=0)
    assert torch.allclose(model.log_prob(x), data.log_prob(None, x, None), atol=2e-2)
    assert model.sample(3, solver="dpm++2m", steps=10).shape == (3, 2)


def test_the_bound_and_the_variances_do_not_depend_on_the_process():
    """A chain scores a model of any process at the log-SNR they share, and scales its steps along."""
    data = random_mixture(2, 3, seed=1, dtype=F64)
    x, chain = data.sample(4, seed=0), Chain.from_betas(linear_betas(40))
    ve = sdediff.VE(sigma_max=1e3)
    moved = Chain(ve, ve.time(chain.lam[1:]))
    factor = (chain.alpha.square()[:-1] ** -1).clone()  # from the chain's units at k - 1 to VE's
    for kind in ("posterior", "forward"):
        assert torch.allclose(moved.variances(kind), factor * chain.variances(kind), rtol=1e-9)
        values = [
            c.bound(data.model(p), x, variance=kind, prior="matched").total
            for c in (chain, moved)
            for p in (sdediff.VP(), ve)
        ]
        assert all(torch.allclose(v, values[0], rtol=1e-7) for v in values)
        samples = [c.sample(data.model(ve), 3, variance=kind, dtype=F64) for c in (chain, moved)]
        assert torch.allclose(*samples, rtol=1e-9)


# -- ancestral sampling --------------------------------------------------------------------------------------


def test_posterior_variance_is_the_exponential_step_at_eta_1():
    data = random_mixture(2, 3, seed=1, dtype=F64)
    for process in (sdediff.VP(), sdediff.SubVP(), sdediff.VE(), sdediff.RectifiedFlow()):
        model, chain = data.model(process), Chain.of(process, 30)
        x = chain.sample(model, 6, seed=3, dtype=F64)
        options = {"grid": chain.times.flip(0), "denoise": True, "seed": 3, "dtype": F64}
        for solver, eta in (("ddim", 1.0), ("ancestral", None)):
            theirs = model.sample(6, solver=solver, eta=eta, **options)
            assert float((x - theirs).abs().max()) < 1e-6 * float(x.abs().max())


@pytest.mark.parametrize(
    ("kind", "theirs"),
    [("posterior", "fixed_small"), ("forward", "fixed_large"), ("learned", "learned_range")],
)
@torch.no_grad()
def test_samples_are_those_of_diffusers(kind, theirs, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    from diffusers.schedulers import scheduling_ddpm

    steps, rows = 60, torch.arange(5)
    scheduler = diffusers.DDPMScheduler(
        num_train_timesteps=steps, beta_start=2e-3, beta_end=0.3, variance_type=theirs, clip_sample=False
    )
    chain = Chain.from_betas(scheduler.betas)
    model = learned(chain.process)
    x = normal(4, rows, Stream.PRIOR, 0, (2,), F64)
    scheduler.set_timesteps(steps)
    for step, index in enumerate(scheduler.timesteps.tolist()):
        t = chain.times[index].expand(5)
        output = model(x, t)
        if kind == "learned":
            c = model.coefficients(t)
            v = model.network.variance(x * c.c_in[:, None], c.c_noise)
            output = torch.cat([output, v], dim=1)
        z = normal(4, rows, Stream.STEP, step, (2,), F64)
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *_, z=z, **__: z)
        x = scheduler.step(output, index, x).prev_sample
    ours = chain.sample(model, 5, variance=kind, seed=4)
    assert float((ours - x).abs().max()) < 1e-5 * float(x.abs().max())


def test_samples_of_any_variance_have_it():
    """Given the noise, x_{k-1} is mean + std z: checked against `step` by hand, with variances an entry."""
    data = random_mixture(2, 3, seed=1, dtype=F64)
    chain, rows = Chain.from_betas(linear_betas(30)), torch.arange(4)
    table = chain.variances("forward")[:, None] * torch.tensor([0.2, 3.0], dtype=F64)
    for model in (data.model(sdediff.VP()), data.model(sdediff.EDM(t_max=300.0))):
        reverse = chain.reverse(model, table)
        x = model.prior_at(float(reverse.times[-1])).transform(normal(7, rows, Stream.PRIOR, 0, (2,), F64))
        x = x / reverse.ratio[-1]
        for step, k in enumerate(range(30, 0, -1)):
            mean, variance = reverse.step(x, torch.full((4,), k))
            assert torch.allclose(variance, table[k - 1].expand(4, 2))
            x = mean + variance.sqrt() * normal(7, rows, Stream.STEP, step, (2,), F64) * (k > 1)
        assert torch.allclose(reverse.sample(4, seed=7, dtype=F64), x, rtol=1e-9)
        assert torch.equal(
            reverse.sample(4, seed=7, dtype=F64)[1:3], reverse.sample(2, seed=7, indices=rows[1:3], dtype=F64)
        )


def test_conditions_and_images_go_through():
    """Rows with labels of their own have the bounds and samples they would have alone; shapes are kept."""
    torch.manual_seed(0)
    nets = [MLP(dim=6, hidden=8, blocks=1, num_classes=3) for _ in range(2)]
    for net in nets:
        torch.nn.init.normal_(net.output.weight, std=0.3)
    chain = Chain.from_betas(cosine_betas(6))
    model = sdediff.DiffusionModel(WithVariance(*nets), chain.process, data_shape=(1, 2, 3))
    x, labels = normal(0, torch.arange(4), Stream.DATA, 0, (1, 2, 3)), torch.tensor([2, 0, 1, 2])
    r = chain.bound(model, x, variance="learned", cond=labels, seed=1)
    drawn = chain.sample(model, 4, variance="learned", cond=labels, seed=1)
    assert r.transitions.shape == (4, 5) and drawn.shape == (4, 1, 2, 3)
    for label in range(3):
        rows = (labels == label).nonzero().flatten()
        one = chain.bound(model, x[rows], variance="learned", cond=torch.tensor(label), seed=1, indices=rows)
        assert torch.allclose(one.total, r.total[rows], rtol=1e-5)
        alone = chain.sample(
            model, len(rows), variance="learned", cond=torch.tensor(label), seed=1, indices=rows
        )
        assert torch.allclose(alone, drawn[rows], atol=1e-5)
    fitted = chain.reverse(model).fit_variances(x, cond=labels, per_entry=True)
    assert (
        fitted.shape == (6, 1, 2, 3)
        and chain.sample(model, 2, variance=fitted, cond=labels[:2]).isfinite().all()
    )


# -- losses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [None, sdediff.VE(sigma_max=1e3)])
@pytest.mark.parametrize("variance", ["posterior", "forward", "learned"])
def test_the_bound_as_a_loss_is_the_divergence_of_the_step(process, variance):
    """Against torch's own Gaussian divergences of q and p at the same x_k, and the decoder's density."""
    chain = Chain.from_betas(linear_betas(25))
    model = learned(process or chain.process)
    objective = VariationalLoss(chain, variance).objective(model)
    reverse = chain.reverse(model, variance)
    k = torch.arange(1, 26)
    z, eps = (normal(s, k, Stream.DATA, 0, (2,), F64) for s in (0, 1))
    value = objective.at(model, z, eps, reverse.times)
    x = chain.alpha[1:, None] * z + chain.sigma[1:, None] * eps
    mean, var = reverse.step(x, k)
    p, c = Normal(mean, var.sqrt()), chain.posterior(k)
    q = Normal(c.c_t[:, None] * x + c.c_0[:, None] * z, c.std[:, None].clamp(min=1e-300))
    terms = kl_divergence(q, p).sum(1)
    terms[0] = -p.log_prob(z)[0].sum()
    assert torch.allclose(value, 25 / 2 * terms, rtol=1e-7)
    t, importance = objective.validation_times((torch.arange(50, dtype=F64) + 0.5) / 50, model)
    assert torch.allclose(t, reverse.times.repeat_interleave(2), rtol=1e-12) and bool((importance == 1).all())


def test_the_hybrid_loss_teaches_means_by_the_simple_one_alone():
    chain = Chain.from_betas(cosine_betas(20))
    model = learned(chain.process)
    model.network.head = MLP(dim=2, hidden=8, blocks=1).double()
    z, draw = normal(0, torch.arange(60), Stream.DATA, 0, (2,), F64), Draw(0, 0, torch.arange(60), 60)
    gradients = []
    for loss in (hybrid_loss(chain), simple_loss(chain)):
        objective = loss.objective(model)
        out = objective(model, z, None, draw)
        assert float((out.t[:, None] - chain.times).abs().amin(1).max()) < 1e-12
        model.zero_grad()
        out.loss.mean().backward()
        gradients.append([p.grad.clone() for p in model.network.network.parameters()])
        head = [p.grad for p in model.network.head.parameters()]
        assert any(g is not None and bool(g.any()) for g in head) == isinstance(loss, VariationalLoss)
    scale = simple_loss(chain).mean_weight(model)
    assert all(torch.allclose(a, scale * b, rtol=1e-9) for a, b in zip(*gradients, strict=True))


def test_indices_of_the_bound_are_drawn_where_it_is_large_and_weights_divide_that_out():
    """Draws in equal shares of the mass; losses are those of `at` over T times the mass; the spread falls."""
    chain = Chain.from_betas(linear_betas(1000))
    model, loss = learned(chain.process), VariationalLoss(chain, "forward")
    objective, mass = loss.objective(model), loss.mass
    assert float(mass.sum()) == pytest.approx(1, rel=1e-12) and float(mass.min()) >= 0.5e-3
    assert torch.equal(hybrid_loss(chain).mass, torch.full((1000,), 1e-3, dtype=F64))
    rows = torch.arange(2000)
    z = normal(0, rows, Stream.DATA, 0, (2,), F64)
    draw = Draw(0, 0, rows, 2000)
    out = objective(model, z, None, draw)
    plain = objective.at(model, z, objective.noise(draw, z), out.t)
    k = objective.index(out.t)
    assert torch.allclose(out.loss, plain / (1000 * mass[k - 1]), rtol=1e-12)
    count = torch.bincount(k - 1, minlength=1000)
    assert float((count - 2000 * mass).abs().max()) < 2  # one draw in each of 2000 equal shares
    z, eps = (normal(s, torch.arange(1000), Stream.DATA, 0, (2,), F64) for s in (1, 2))
    squares = objective.at(model, z, eps, objective.reverse.times).detach().square()
    assert float((squares / mass).sum()) < 0.3 * float((squares * 1000).sum())


def test_indices_are_drawn_equally_often_and_their_density_integrates_to_one():
    chain = Chain.from_betas(cosine_betas(50))
    times = Indices(chain)
    u = (torch.arange(5000, dtype=F64) + 0.5) / 5000
    for process in (chain.process, sdediff.VE(sigma_min=1e-3, sigma_max=1e6)):
        t, count = times.sample(u, process).unique(return_counts=True)
        assert torch.allclose(process.lam(t), chain.lam[1:], rtol=1e-6) and bool((count == 100).all())
    process = sdediff.VE(sigma_min=1e-4, sigma_max=1e7)
    t = torch.linspace(0, 1, 200_001, dtype=F64)
    assert float(torch.trapezoid(times.density(t, process), t)) == pytest.approx(1, abs=1e-3)


def test_learned_variances_have_the_better_bound_at_few_steps(tmp_path):
    """Hybrid training at T = 8 on a tight and a wide cluster: better on held-out data than both fixed choices
    and than the best variance a step, by more than five standard errors; and a file brings the head back."""
    data = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], [[0.01, 0.001], [0.3, 1.0]])
    chain = Chain.of(sdediff.VP(t_min=1e-2), 8)
    torch.manual_seed(0)
    net = WithVariance(MLP(dim=2, hidden=32, blocks=2), MLP(dim=2, hidden=32, blocks=1))
    model = sdediff.DiffusionModel(net, chain.process, data_shape=(2,))
    sdediff.fit(
        model,
        data.sample(4000, seed=0),
        loss=hybrid_loss(chain, 0.1),
        steps=250,
        batch_size=128,
        progress=False,
    )
    x, best = data.sample(600, seed=1), chain.reverse(model).fit_variances(data.sample(500, seed=2))
    ours = chain.bound(model, x, variance="learned", draws=4).total
    for variance in ("posterior", "forward", best):
        gain = ours - chain.bound(model, x, variance=variance, draws=4).total  # with the same noise
        assert float(gain.mean()) > 5 * float(gain.std()) / math.sqrt(len(x)), variance
    model.save(tmp_path / "model.safetensors")
    again = sdediff.load(tmp_path / "model.safetensors")
    assert torch.equal(chain.bound(again, x[:9], variance="learned", draws=4).total, ours[:9])


def test_what_is_no_loss_or_network_is_refused():
    chain = Chain.from_betas(linear_betas(30))
    with pytest.raises(ValueError, match="give weights that are not negative, and one above 0"):
        VariationalLoss(chain, simple=0.0, weight=0.0)
    plain = sdediff.DiffusionModel(MLP(dim=2, hidden=8), chain.process, data_shape=(2,))
    with pytest.raises(TypeError, match="says no variances: wrap it"):
        hybrid_loss(chain).objective(plain)
    with pytest.raises(TypeError, match=r"WithVariance was given head=3: give a torch\.nn\.Module"):
        WithVariance(MLP(dim=2), 3)
    wrong = WithVariance(MLP(dim=2, hidden=8), torch.nn.Module())
    wrong.head.forward = lambda x, t: x[:, :1]
    model = sdediff.DiffusionModel(wrong, chain.process, data_shape=(2,))
    with pytest.raises(ValueError, match="return one number an entry"):
        chain.sample(model, 2, variance="learned")
    assert "config" not in vars(wrong)
