"""Objectives: weightings and their published relations, times, adaptive draws, the bound, stable targets."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdediff
from sdediff import processes, training
from sdediff.model import DiffusionModel
from sdediff.training import DenoisingLoss, Draw, stratified
from sdediff.training.adaptive import AdaptiveTimes
from sdediff.training.weightings import network_weight

PROCESSES = [cls() for cls in processes.REGISTRY.values()]
PREDICTIONS = ["eps", "x0", "v", "velocity", "score", "edm"]
WEIGHTINGS = [
    training.Eps(),
    training.X0(),
    training.Score(),
    training.Likelihood(),
    training.TruncatedSNR(),
    training.MinSNR(),
    training.P2(),
    training.Sigmoid(),
    training.Karras(),
]


class Denoiser(nn.Module):
    """One denoiser, told as any prediction: the output is what is predicted for D = tanh(z_t / 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.model: Any = None

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        time = self.model.process.time(-4 * t)
        c = [part[:, None] for part in self.model.coefficients(time)]
        z_t = x / c[2]
        return (torch.tanh(z_t / 2) - c[0] * z_t) / c[1]


def make_denoiser(prediction: str, process: Any) -> DiffusionModel:
    model = DiffusionModel(Denoiser(), process, prediction, (2,))
    object.__setattr__(model.network, "model", model)  # no submodule: it would hold itself
    return model


class OneParameter(nn.Module):
    """Output w x: gradients in closed form."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return self.weight * x


def normal(n: int, dim: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(n: int, step: int = 0, seed: int = 0) -> Draw:
    return Draw(seed, step, torch.arange(n), n)


# -- weightings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=repr)
def test_a_weighted_loss_is_one_number_for_every_prediction(weighting: Any, process: Any) -> None:
    t = training.UniformLogSNR().sample(stratified(0.5, 32), process)
    z, eps = normal(32), normal(32, seed=1)
    values = []
    for prediction in PREDICTIONS:
        model = make_denoiser(prediction, process)
        error = training.squared_error(model, z, eps, t)
        values.append(network_weight(weighting, model, t) * error)
    # eps - eps_hat = (alpha / sigma)(D - z_0)
    alpha, sigma = (c[:, None] for c in (process.alpha(t), process.sigma(t)))
    error = (alpha / sigma * (torch.tanh((alpha * z + sigma * eps) / 2) - z)).square().mean(1)
    for value in values:
        assert torch.allclose(value, weighting(process, t) * error, rtol=1e-7)


def test_published_relations_of_weightings() -> None:
    process = processes.VP()
    t = training.UniformLogSNR().sample(stratified(0.5, 200), process)
    alpha2, sigma2 = process.alpha(t) ** 2, process.sigma(t) ** 2
    snr = alpha2 / sigma2

    def on(prediction: str, weighting: Any) -> Tensor:
        return network_weight(weighting, make_denoiser(prediction, process), t)

    def same(a: Tensor, b: Tensor) -> None:
        assert torch.allclose(a, b, rtol=1e-9)

    # Min-SNR (Hang et al.): min(SNR, g) on x0, over SNR on eps, over SNR + 1 on v.
    capped = snr.clamp(max=5.0)
    for prediction, divisor in (("x0", torch.ones_like(snr)), ("eps", snr), ("v", snr + 1), ("edm", snr + 1)):
        same(on(prediction, training.MinSNR()), capped / divisor)
    # Truncated SNR (Salimans & Ho): max(SNR, 1) on x0; SNR on x0 is 1 on eps, SNR + 1 on x0 is 1 on v.
    same(on("x0", training.TruncatedSNR()), snr.clamp(min=1.0))
    same(on("x0", training.Eps()), snr)
    same(on("score", training.Eps()), sigma2)
    same(on("v", training.Karras()), torch.ones_like(snr))
    same(on("edm", training.Karras()), torch.ones_like(snr))
    # P2 with k = gamma = 1 is the sigmoid without bias, and is sigma^2 under a variance-preserving process.
    same(training.P2()(process, t), training.Sigmoid(0.0)(process, t))
    same(training.P2()(process, t), sigma2)
    same(training.P2(k=2.0, gamma=0.5)(process, t), (2 + snr) ** -0.5)
    # Hoogeboom et al.: e^b sigmoid(log SNR - b) on the denoiser's error.
    same(on("x0", training.Sigmoid(-1.0)), math.exp(-1.0) * torch.sigmoid(snr.log() + 1.0))
    same(on("score", training.Score()), torch.ones_like(snr))
    same(on("score", training.Likelihood()), process.diffusion(t) ** 2)


# -- times --------------------------------------------------------------------------------------------------


def ramp(process: Any, t: Tensor) -> Tensor:
    return 1.0 + 3.0 * t


TIMES = [
    training.LogitNormal(0.3, 0.8),
    training.Mixture((training.UniformTime(), training.LogNormal()), (1.0, 2.0)),
    training.Tabulated(ramp),
]


@pytest.mark.parametrize("process", [processes.VP(), processes.RectifiedFlow(), processes.EDM()], ids=repr)
@pytest.mark.parametrize("times", TIMES, ids=lambda times: type(times).__name__)
def test_times_have_their_density(times: Any, process: Any) -> None:
    """Means of smooth functions over 20000 strata are integrals of the density (Gauss-Legendre in lam)."""
    t = times.sample(stratified(0.5 / 20000, 20000), process)
    assert float(t.min()) >= process.t_min and float(t.max()) <= process.t_max
    high, low = float(process.lam(process.t_min)), float(process.lam(process.t_max))
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(8))
    edges = torch.linspace(low, high, 4097, dtype=torch.float64)  # those of the table
    middle, half = (edges[1:] + edges[:-1]) / 2, edges.diff() / 2
    s = process.time(middle[:, None] + half[:, None] * nodes)
    mass = times.density(s, process) / -process.d_lam(s) * weights * half[:, None]
    assert float(mass.sum()) == pytest.approx(1.0, abs=1e-6)
    for h in (lambda t: torch.tanh(process.lam(t)), lambda t: torch.sin(2 * process.lam(t))):
        assert float((mass * h(s)).sum()) == pytest.approx(float(h(t).mean()), abs=1e-4)


def test_a_logit_normal_in_a_rectified_flow_is_log_normal_and_a_table_is_its_function() -> None:
    process, u = processes.RectifiedFlow(1e-9, 1 - 1e-9), stratified(0.5 / 50, 50)
    a = training.LogitNormal(0.4, 0.7).sample(u, process)
    assert torch.allclose(a, training.LogNormal(0.4, 0.7).sample(u, process), rtol=1e-6)
    process = processes.RectifiedFlow()
    # The table of 1 + 3t has the quadratic distribution function of it: its inverse in closed form.
    a, b, v = process.t_min, process.t_max, stratified(0.5 / 50, 50)
    area = (b - a) + 1.5 * (b**2 - a**2)
    expected = (torch.sqrt(1 + 6 * (a + 1.5 * a**2 + v * area)) - 1) / 3
    assert torch.allclose(training.Tabulated(ramp).sample(v, process), expected, atol=1e-6)


def test_wrong_times_get_one_sentence() -> None:
    with pytest.raises(ValueError, match="for 1 distributions: give at least one"):
        training.Mixture((training.UniformTime(),), (1.0, 2.0))
    with pytest.raises(ValueError, match="is no density of times: give a function"):
        training.Tabulated(lambda process, t: t - 0.5).sample(torch.zeros(1), processes.VP())
    with pytest.raises(ValueError, match=r"floor=0\.0, .*: give at least one cell, a floor above 0"):
        training.Adaptive(floor=0.0)


def test_independent_times_are_functions_of_the_row() -> None:
    whole = draw(64).uniform(low_discrepancy=False)
    part = Draw(0, 0, torch.arange(40, 64), 64).uniform(low_discrepancy=False)
    assert torch.equal(whole[40:], part)
    assert not torch.equal(whole, draw(64, step=1).uniform(low_discrepancy=False))
    assert sorted((whole * 64).long().tolist()) != list(range(64))
    assert sorted((draw(64).uniform() * 64).long().tolist()) == list(range(64))


# -- adaptive times -----------------------------------------------------------------------------------------


def learnt(process: Any) -> AdaptiveTimes:
    """Adaptive times that have seen a gradient which grows with the signal."""
    times = AdaptiveTimes(training.Adaptive(cells=16), process)
    t = training.UniformLogSNR().sample(stratified(0.1, 512), process)
    times.observe(t, 0.1 + torch.sigmoid(process.lam(t)))
    return times


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_adaptive_draws_leave_the_mean_gradient_as_it_is(process: Any) -> None:
    """Both sides by 100000 strata; noise and data the same function of the time."""
    model = DiffusionModel(OneParameter(), process, "edm", (2,))
    loss = DenoisingLoss(training.Sigmoid(), training.LogNormal(-1.0, 1.2), training.Adaptive(cells=16))
    objective: Any = loss.objective(model)
    plain = DenoisingLoss(training.Sigmoid(), training.LogNormal(-1.0, 1.2)).objective(model)
    gradients = []
    for each, proposal in ((objective, learnt(process)), (plain, None)):
        each.proposal = proposal or each.proposal
        t = each.proposal.sample(stratified(0.5 / 100000, 100000), process)
        importance = each.description.importance(process, t, each.proposal)
        angle = process.lam(t)[:, None] + torch.tensor([0.0, 1.0])
        values = importance * each.at(model, torch.sin(angle), torch.cos(2 * angle), t)
        (gradient,) = torch.autograd.grad(values.mean(), model.network.weight)
        gradients.append(float(gradient))
    assert gradients[0] == pytest.approx(gradients[1], abs=2e-5)


def test_adaptive_times_tend_to_the_best_proposal_and_forget() -> None:
    process = processes.VP()
    objective: Any = training.LOSSES["likelihood-adaptive"].objective(
        DiffusionModel(OneParameter(), process, "edm", (2,))
    )
    assert objective.learns and set(objective.state_dict()) == {"proposal.squares", "proposal.counts"}
    times = objective.proposal
    assert torch.equal(times.mass, torch.full((64,), 1 / 64, dtype=torch.float64))
    times = AdaptiveTimes(training.Adaptive(memory=50), process)
    levels = torch.linspace(1, 4, 64, dtype=torch.float64)
    for size in (levels.flip(0), levels):  # what was learnt first is forgotten
        for step in range(500):
            t = times.sample(draw(1024, step).uniform(), process)
            times.observe(t, size[times.cells.index(t)])
    expected = 0.1 / 64 + 0.9 * levels / levels.sum()
    assert torch.allclose(times.mass, expected, rtol=0.02)
    # Importance weights are bounded, and the batch that learns has no order.
    again = AdaptiveTimes(training.Adaptive(), process)
    t, size = times.sample(stratified(0.3, 500), process), torch.rand(500, dtype=torch.float64)
    again.observe(t, size)
    other = AdaptiveTimes(training.Adaptive(), process)
    other.observe(t.flip(0), size.flip(0))
    assert torch.allclose(again.mass, other.mass, rtol=1e-6)
    assert float((training.UniformLogSNR().density(t, process) / again.density(t, process)).max()) <= 10.0


# -- learned uncertainty ------------------------------------------------------------------------------------


def test_learned_uncertainty_is_the_log_of_the_mean_error_at_each_level() -> None:
    """Where u is at its minimum, exp(u) is the error; L-BFGS gets within 2 per cent."""
    process = processes.VP()
    model = DiffusionModel(OneParameter().requires_grad_(False), process, "edm", (2,))
    base = DenoisingLoss(training.Karras(), training.UniformLogSNR())
    objective: Any = training.LearnedUncertainty(base).objective(model).double()
    t = training.UniformLogSNR().sample(stratified(0.5 / 256, 256), process)
    angle = process.lam(t)[:, None] / 3 + torch.tensor([0.0, 1.0])
    z, eps = torch.sin(angle), 0.5 + torch.cos(angle / 2)
    optimiser = torch.optim.LBFGS(objective.parameters(), max_iter=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = objective.at(model, z, eps, t).mean()
        value.backward()
        return value

    optimiser.step(closure)
    with torch.no_grad():
        error, u = base.objective(model).at(model, z, eps, t), objective.uncertainty(model, t)
    assert float(error.max() / error.min()) > 3
    assert torch.allclose(u.exp() / error, torch.ones_like(u), atol=0.02)


# -- runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["likelihood-adaptive", "uncertainty"])
def test_what_a_loss_has_learnt_is_resumed(name: str, tmp_path: Any) -> None:
    """Straight and resumed runs end at the same weights, bit for bit; a loss that forgot would not."""
    ends = []
    for run, stops in (("one", (8,)), ("two", (4, 8))):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = sdediff.networks.MLP(dim=2, hidden=8, blocks=1, time_dim=4)
        model = DiffusionModel(net, processes.VP(), "edm", (2,))
        for steps in stops:
            options: dict[str, Any] = {"batch_size": 32, "out": tmp_path / run, "resume": steps != stops[0]}
            sdediff.fit(model, normal(64).float(), steps=steps, loss=name, progress=False, **options)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


# -- the variational bound ----------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [processes.VP(), processes.EDM()], ids=repr)
def test_the_bound_is_the_elbo_in_expectation(process: Any) -> None:
    """Of an untrained network, in nats and data units; within 5 standard errors of the elbo's, about 0.005.

    The objective's expectation is by quadrature: Gauss-Hermite in the noise, midpoints in lam.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = sdediff.networks.MLP(dim=1, hidden=16, blocks=1)
        nn.init.normal_(net.output.weight, std=0.05)
    model = DiffusionModel(net, process, "edm", (1,)).double()
    model.set_units(normal(500, 1) * 2 + 1)
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(24))
    weights = weights / weights.sum()
    x = torch.tensor([[1.5]], dtype=torch.float64)
    objective: Any = training.VariationalBound().objective(model)
    t, importance = objective.validation_times(stratified(0.5 / 256, 256), model)
    z, eps = model.to_model(x).expand(len(t) * 24, 1), nodes.repeat(len(t))[:, None]
    with torch.no_grad():
        values = objective.at(model, z, eps, t.repeat_interleave(24)).view(-1, 24) @ weights
    nats = float((importance * values).mean())
    # The elbo is of data with the least noise on.
    level = math.exp(-float(process.lam(process.t_min)))
    other = model.elbo(model.to_data(model.to_model(x) + level * nodes[:, None]), draws=1024)
    error = float((weights * other.std_error).square().sum().sqrt())
    assert abs(nats + float(weights @ other.log_prob)) < 5 * error < 0.1


def test_the_bound_of_discrete_data_is_their_entropy_for_the_exact_denoiser() -> None:
    """P = (0.2, 0.5, 0.3) on three levels; 5 standard errors and 2e-4 for what the noise's ends leave."""
    shares, values = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    process, quantisation = processes.EDM(0.05, 400.0), sdediff.Quantisation(levels=3)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        logits = -0.5 * ((x - values) / t[:, None]) ** 2 + shares.double().log()
        return (logits.softmax(1) @ values)[:, None]

    mean, var = float(shares @ values.float()), float(shares @ (values.float() - 1.1) ** 2)
    model = sdediff.from_callable(
        denoise, process=process, prediction="x0", data_shape=(1,), data_mean=[mean], data_cov=[[var]]
    )
    n = 20000
    x = values.repeat_interleave((shares * n).round().long())[
        torch.randperm(n, generator=torch.Generator().manual_seed(0))
    ]
    loss = training.VariationalBound(levels=quantisation, proposal=training.LogNormal(0.0, 2.0))
    nats = loss.objective(model)(model, model.to_model(x[:, None]), None, draw(n)).loss
    entropy = -float((shares * shares.log()).sum())
    assert abs(float(nats.mean()) - entropy) < 5 * float(nats.std()) / n**0.5 + 2e-4
    with pytest.raises(ValueError, match="none of the 3 levels"):
        loss.objective(model)(model, model.to_model(x[:4, None] + 0.3), None, draw(4))


def test_the_reconstruction_of_levels_is_its_closed_form() -> None:
    """Two levels: -log P(x|z) = softplus(-(h^2/2 + h n)), integrated by Gauss-Hermite."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(100))
    process = processes.EDM(0.4, 80.0)
    model = DiffusionModel(OneParameter(), process, "edm", (2,))
    model.scale = torch.tensor([1.0, 2.0], dtype=torch.float64)
    loss = training.VariationalBound(levels=sdediff.Quantisation(levels=2))
    table = loss.objective(model).table
    for column, h in enumerate((1 / 0.4, 0.5 / 0.4)):
        value = (weights * torch.nn.functional.softplus(-(h**2 / 2 + h * nodes))).sum() / weights.sum()
        assert torch.allclose(table[:, column], value.expand(2), rtol=1e-9)


# -- stable targets -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [processes.VP(), processes.EDM()], ids=repr)
def test_with_all_data_at_hand_targets_are_those_of_the_empirical_score(process: Any) -> None:
    z, eps = normal(50), normal(50, seed=1)
    t = training.UniformLogSNR().sample(stratified(0.5, 50), process)
    mean, noise = training.StableTargets()(z, eps, process.lam(t))
    alpha, sigma = (c[:, None] for c in (process.alpha(t), process.sigma(t)))
    z_t = alpha * z + sigma * eps
    exact = sdediff.reference.Empirical(z).denoise(process, z_t, t)
    assert torch.allclose(mean, exact, atol=1e-9)
    assert torch.allclose(alpha * mean + sigma * noise, z_t, rtol=1e-9)  # so that every prediction's fits


def test_stable_targets_have_no_bias_and_less_variance() -> None:
    """Data N(0, 1): E[z_0 | z_t] = alpha z_t under VP, and a row's own target scatters by sigma^2 around it.

    Projections on z_t, z_t^2 - 1 and sin z_t vanish within 5 standard errors: false alarms 6e-7 each.
    """
    process, rows = processes.VP(), 8192
    for lam in (-1.0, 0.0, 1.0):
        level = torch.full((rows,), lam, dtype=torch.float64)
        alpha, sigma = (float(c(process.time(level[0]))) for c in (process.alpha, process.sigma))
        spread = []
        for n in (4, 16, 64):
            z, eps = normal(rows, 1, n), normal(rows, 1, n + 1)
            parts = zip(z.split(n), eps.split(n), level.split(n), strict=True)
            mean = torch.cat([training.StableTargets()(*part)[0] for part in parts])
            z_t = alpha * z + sigma * eps
            for h in (z_t, z_t**2 - 1, torch.sin(z_t)):
                batches = ((mean - alpha * z_t) * h).view(-1, n).mean(1)  # independent of one another
                assert abs(float(batches.mean())) < 5 * float(batches.std()) / len(batches) ** 0.5
            spread.append(float((mean - alpha * z_t).square().mean()) / sigma**2)
        assert 1 > spread[0] > 2 * spread[1] > 4 * spread[2]


def test_stable_targets_keep_to_rows_of_the_same_condition() -> None:
    z, eps, lam = normal(6), normal(6, seed=1), torch.full((6,), -3.0, dtype=torch.float64)
    targets, labels = training.StableTargets(), torch.tensor([0, 0, 1, 1, -1, 1])
    mean, _ = targets(z, eps, lam, labels)
    rows = {0: [0, 1], 2: [2, 3, 5], 4: [0, 1, 2, 3, 4, 5]}  # row 4 has no condition
    for row, share in rows.items():
        alone, _ = targets(z[share], eps[share], lam[share])
        assert torch.allclose(mean[row], alone[share.index(row)])
    vectors = torch.randn(6, 3)
    assert torch.allclose(targets(z, eps, lam, vectors)[0], z)
    vectors[4] = math.nan
    assert torch.allclose(targets(z, eps, lam, vectors)[0][4], mean[4])
    assert torch.allclose(targets(z, eps, lam, None, torch.randn(6, 2))[0], z)


# -- conditions left out ------------------------------------------------------------------------------------


def test_conditions_are_left_out_by_row_whoever_holds_it() -> None:
    """The share is within 5 standard errors of p: false alarms 6e-7."""
    n, p = 20000, 0.1
    labels, vectors = torch.arange(n) % 7, torch.randn(n, 3)
    gone = training.drop(labels, p, draw(n)) == -1
    assert abs(float(gone.double().mean()) - p) < 5 * (p * (1 - p) / n) ** 0.5
    dropped = training.drop(vectors, p, draw(n))
    assert torch.equal(dropped.isnan().all(1), gone) and torch.equal(dropped[~gone], vectors[~gone])
    half = Draw(0, 0, torch.arange(n // 2, n), n)
    assert torch.equal(training.drop(labels[n // 2 :], p, half) == -1, gone[n // 2 :])
    assert not torch.equal(training.drop(labels, p, draw(n, step=1)) == -1, gone)
    assert torch.equal(training.drop(labels, 0.0, draw(n)), labels)
    assert bool((training.drop(labels, 1.0, draw(n)) == -1).all())
    with pytest.raises(ValueError, match=r"cond_dropout=1\.5: give a probability"):
        training.drop(labels, 1.5, draw(n))
