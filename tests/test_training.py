"""Training: losses, weightings, times, averages, data order, resume, failures."""

from __future__ import annotations

import csv
import logging
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from sdediff import processes, training
from sdediff.model import DiffusionModel
from sdediff.networks import MLP
from sdediff.training import DenoisingLoss, fit
from sdediff.training.checkpoint import Checkpoint
from sdediff.training.folder import RunFolder
from sdediff.training.sources import Shuffle
from sdediff.training.validation import Validation
from sdediff.training.weightings import network_weight, noise_error_weight
from solvers.problems import expand

PROCESSES = [cls() for cls in processes.REGISTRY.values()]
TIMES = [
    training.UniformTime(),
    training.UniformLogSNR(),
    training.LogNormal(),
    training.LogNormal(-1.0, 2.0),
]
PREDICTIONS = ["eps", "x0", "v", "velocity", "score", "edm"]


def make_model(
    seed: int = 0, prediction: str = "eps", process: Any = None, dim: int = 2, **options: Any
) -> DiffusionModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = MLP(dim=dim, hidden=16, blocks=1, time_dim=8, **options)
        nn.init.normal_(net.output.weight, std=0.1)
    return DiffusionModel(net, process=process or processes.VP(), prediction=prediction, data_shape=(dim,))


def make_data(n: int = 300, dim: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) * 2 + 1


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def quick(model: DiffusionModel, x: Any, **options: Any) -> training.TrainingResult:
    return fit(model, x, **{"steps": 10, "batch_size": 32, "progress": False, **options})


# -- times --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("times", TIMES, ids=repr)
def test_times_invert_the_integral_of_their_density(times: Any, process: Any) -> None:
    u = torch.linspace(0, 1, 2001, dtype=torch.float64)
    t = times.sample(u, process)
    assert float(t[0]) == pytest.approx(process.t_min, rel=1e-4, abs=1e-9)
    assert float(t[-1]) == pytest.approx(process.t_max, rel=1e-4)
    assert bool((t.diff() > 0).all())
    # Between neighbours the density integrates to the difference of u (Gauss-Legendre, 5 nodes, in log-SNR).
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(5))
    lam = process.lam(t[1:-1])
    middle, half = (lam[1:] + lam[:-1]) / 2, -lam.diff() / 2
    s = process.time(middle[:, None] + half[:, None] * nodes)
    mass = (times.density(s, process) / -process.d_lam(s) * weights).sum(1) * half
    assert torch.allclose(mass, u[1:-1].diff(), rtol=1e-6, atol=1e-12)


def test_stratified_numbers_hit_every_stratum_once() -> None:
    for u in (0.0, 0.3, 0.999):
        numbers = training.stratified(u, 64)
        assert numbers.dtype == torch.float64
        assert sorted((numbers * 64).floor().long().tolist()) == list(range(64))


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("proposal", [training.UniformLogSNR(), training.LogNormal(-0.5, 1.8)], ids=repr)
def test_importance_weights_leave_the_mean_as_it_is(process: Any, proposal: Any) -> None:
    u = training.stratified(0.5 / 20000, 20000)
    loss = DenoisingLoss(times=training.LogNormal(-1.0, 1.2), proposal=proposal)
    t, importance = loss.draw(process, u)
    plain = DenoisingLoss(times=training.LogNormal(-1.0, 1.2)).draw(process, u)[0]
    for h in (torch.ones_like, lambda t: torch.tanh(process.lam(t)), lambda t: torch.sin(3 * process.lam(t))):
        assert float((importance * h(t)).mean()) == pytest.approx(float(h(plain).mean()), abs=2e-5)


# -- weightings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_every_network_error_is_the_noise_error_in_other_units(prediction: str, process: Any) -> None:
    model = make_model(prediction=prediction, process=process).double()
    t = training.UniformLogSNR().sample(training.stratified(0.5, 16), process)
    z_0, eps = make_data(16).double(), make_data(16, seed=1).double()
    alpha, sigma = (expand(c, z_0) for c in (process.alpha(t), process.sigma(t)))
    z_t = alpha * z_0 + sigma * eps
    c_skip, c_out = (expand(c, z_0) for c in model.coefficients(t)[:2])
    # The exact target gives back the data ...
    scale = (alpha / sigma).clamp(min=1)
    assert torch.allclose((c_skip * z_t + c_out * model.target(z_0, eps, t)) * scale, z_0 * scale, atol=1e-7)
    # ... and the error of any other output is the noise error, weighted.
    noise_estimate = (z_t - alpha * (c_skip * z_t + c_out * model(z_t, t))) / sigma
    expected = (eps - noise_estimate).square().mean(1)
    error = training.squared_error(model, z_0, eps, t)
    assert torch.allclose(noise_error_weight(model, t) * error, expected, rtol=1e-6, atol=1e-8)
    # Weightings in terms of what they are defined by.
    denoiser_error = expected * process.sigma(t) ** 2 / process.alpha(t) ** 2
    ratio = process.sigma(t) / process.alpha(t)
    cases: list[tuple[Any, Tensor]] = [
        (training.Native(), error),
        (training.Eps(), expected),
        (training.X0(), denoiser_error),
        (training.Likelihood(), process.diffusion(t) ** 2 * expected / process.sigma(t) ** 2),
        (training.Karras(), (ratio**2 + 1) / ratio**2 * denoiser_error),
        (lambda process, t: process.sigma(t), process.sigma(t) * expected),
    ]
    for weighting, value in cases:
        assert torch.allclose(network_weight(weighting, model, t) * error, value, rtol=1e-5, atol=1e-8)


def test_the_mean_weight_is_the_integral_of_the_weight() -> None:
    model = make_model(prediction="eps", process=processes.VE())  # -2 lam' = 2 ln(sigma_max / sigma_min)
    loss = training.LOSSES["likelihood"]
    assert loss.mean_weight(model) == pytest.approx(2 * math.log(50 / 0.01), rel=1e-12)
    model = make_model(prediction="eps", process=processes.EDM())
    uniform = DenoisingLoss(training.Likelihood(), training.UniformTime(), training.UniformLogSNR())
    # -2 lam' = 2/t, averaged over [t_min, t_max]
    assert uniform.mean_weight(model) == pytest.approx(2 * math.log(80 / 0.002) / (80 - 0.002), rel=1e-12)


def test_losses_by_name() -> None:
    with pytest.raises(ValueError, match=r"no loss 'likelyhood' \(did you mean 'likelihood'\?\)"):
        quick(make_model(), make_data(), loss="likelyhood")
    for name in training.LOSSES:
        assert math.isfinite(quick(make_model(), make_data(), loss=name, steps=2).history[-1]["loss"])


# -- the average --------------------------------------------------------------------------------------------


def test_the_average_is_its_closed_form() -> None:
    layer = nn.Linear(1, 1, bias=False).double()
    path = torch.randn(40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer.weight.data.fill_(path[0])
    ema = training.EMA(layer, decay=0.6)
    for value in path[1:]:
        layer.weight.data.fill_(value)
        ema.update()
    decays = [min(0.6, (1 + k) / (10 + k)) for k in range(1, 40)]
    assert decays[0] == 2 / 11 and decays[-1] == 0.6
    weights = [1.0, *(1 - d for d in decays)]
    expected = sum(path[k] * weights[k] * math.prod(decays[k:]) for k in range(40))
    assert float(ema.shadow["weight"]) == pytest.approx(float(expected), rel=1e-12)
    with ema.averaged():
        assert torch.equal(layer.weight, ema.shadow["weight"])
    assert torch.equal(layer.weight, path[-1].reshape(1, 1))
    with pytest.raises(ValueError, match=r"decay=1\.0"):
        training.EMA(layer, decay=1.0)


def test_the_average_does_not_lag_after_500_steps() -> None:
    """At most 1.2 times the raw weights' loss on the same times and noise, and better than not training."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 2, generator=g) * 0.1 + torch.randint(0, 2, (2000, 2), generator=g) * 2.0
    model = make_model()
    result = quick(model, x, steps=500, batch_size=64, val=x[:1000])
    check = Validation(model, x[:1000], None, training.LOSSES["balanced"].objective(model), 1)
    averaged = check.loss()
    model.load_state_dict(model.state_dict() | result.raw_weights)
    assert averaged <= 1.2 * check.loss()
    assert averaged < 0.7 * 1.0  # a network that says 0 has loss 1
    assert result.noise_levels is not None and result.noise_levels.eps_error.shape == (8,)
    assert float(result.noise_levels.eps_error[-1]) < 0.05  # at the noisy end the noise is known
    assert float(result.noise_levels.eps_error[0]) > 0.5  # at the clean end it cannot be
    assert result.val_loss is not None and result.val_loss < 0.7


# -- what is learnt -----------------------------------------------------------------------------------------


class Linear(nn.Module):
    """A linear network that ignores the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 2))

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return x @ self.weight.T


class OneTime:
    """All of the loss at one time."""

    def __init__(self, t: float) -> None:
        self.t = t

    def sample(self, u: Tensor, process: Any) -> Tensor:
        return torch.full_like(u, self.t)

    def density(self, t: Tensor, process: Any) -> Tensor:
        raise AssertionError("not needed without a proposal")


@pytest.mark.parametrize("prediction", ["eps", "x0", "edm"])
def test_a_linear_network_learns_the_closed_form(prediction: str) -> None:
    """Least squares of F* on z_t: W = E[F* z'] E[z z']^-1. Error 0.006 at these sizes; 0.02 is asserted."""
    process, t = processes.VP(), 0.35
    x = make_data(20000) @ torch.tensor([[1.0, 0.3], [0.0, 0.4]])
    model = DiffusionModel(Linear(), process=process, prediction=prediction, data_shape=(2,))
    loss = DenoisingLoss(training.Eps(), OneTime(t))
    quick(model, x, steps=350, batch_size=256, loss=loss, lr=training.Cosine(0.02, 350))
    z = model.to_model(x).double()
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    c_skip, c_out, c_in, _ = (float(c) for c in model.coefficients(torch.tensor(t, dtype=torch.float64)))
    cov = z.T @ z / len(z)
    noised = alpha**2 * cov + sigma**2 * torch.eye(2)
    # Best denoiser D = alpha C (alpha^2 C + sigma^2)^-1 z, and F = (D - c_skip z) / c_out, of the input c_in
    # z.
    expected = (alpha * cov @ noised.inverse() - c_skip * torch.eye(2)) / (c_out * c_in)
    assert torch.allclose(model.network.weight.double(), expected, atol=0.02)


def test_a_condition_is_learnt() -> None:
    """x = cond exactly: with the condition the noise is known at every level but the lowest."""
    cond = make_data(500, 1)
    model = make_model(dim=1, cond_dim=1)
    result = quick(model, cond, cond=cond, val=cond, val_cond=cond, steps=300, batch_size=128, lr=1e-2)
    assert result.noise_levels is not None and float(result.noise_levels.eps_error[4]) < 0.1
    labels = torch.arange(300) % 3
    quick(make_model(num_classes=3), make_data(), cond=labels.numpy(), val=make_data(9), val_cond=labels[:9])


# -- randomness and resume ----------------------------------------------------------------------------------


def test_the_order_is_a_permutation_an_epoch() -> None:
    order = Shuffle(10, seed=3)
    whole = torch.cat([order(k, 7) for k in range(0, 70, 7)])
    for epoch in range(7):
        assert sorted(whole[10 * epoch : 10 * epoch + 10].tolist()) == list(range(10))
    assert not torch.equal(whole[:10], whole[10:20])
    assert torch.equal(Shuffle(10, seed=3)(35, 7), whole[35:42])  # from anywhere
    assert not torch.equal(Shuffle(10, seed=4)(0, 10), whole[:10])


class Jittered(Dataset):
    """Items with randomness of their own."""

    def __init__(self) -> None:
        self.x = make_data()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Tensor:
        return self.x[i] + 0.1 * torch.randn(2)


SOURCES: dict[str, Callable[[], Any]] = {
    "tensor": make_data,
    "array": lambda: make_data().double().numpy(),
    "dataset": Jittered,
    "loader": lambda: DataLoader(Jittered(), batch_size=32, shuffle=True),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_resuming_is_exact(kind: str, tmp_path: Path) -> None:
    """Weights, average, optimiser and history, with dropout and random data; global generators untouched."""
    data = SOURCES[kind]
    torch.manual_seed(123)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    straight, halved = make_model(dropout=0.3), make_model(dropout=0.3)
    options: dict[str, Any] = {"log_every": 5, "checkpoint_every": 7, "val": make_data(20, seed=1)}
    one = quick(straight, data(), steps=30, out=tmp_path / "one", **options)
    quick(halved, data(), steps=15, out=tmp_path / "two", **options)
    fresh = make_model(seed=5, dropout=0.3)  # its own weights must not matter
    two = quick(fresh, data(), steps=30, out=tmp_path / "two", resume=True, **options)
    assert same(straight.state_dict(), fresh.state_dict())
    assert same(one.raw_weights, two.raw_weights) and not same(
        one.raw_weights, dict(fresh.named_parameters())
    )
    for a, b in zip(one.history, two.history, strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}
    stored = [Checkpoint.load(tmp_path / run / "checkpoints/000000030.safetensors") for run in ("one", "two")]
    assert same(stored[0].weights, stored[1].weights) and same(stored[0].averages, stored[1].averages)
    states = [s.optimizer["state"] for s in stored]
    assert all(same(states[0][i], states[1][i]) for i in states[0]) and len(states[0]) > 4
    assert stored[0].step == 30 and stored[0].progress["updates"] == 30
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)


def test_the_seed_decides_everything_and_the_global_generator_nothing() -> None:
    models = [make_model(dropout=0.3) for _ in range(3)]
    for model, seed, noise in zip(models, (0, 0, 1), (1, 2, 1), strict=True):
        torch.manual_seed(noise)
        quick(model, make_data(), seed=seed)
    assert same(models[0].state_dict(), models[1].state_dict())
    assert not same(models[0].state_dict(), models[2].state_dict())


def test_a_resumed_run_must_be_the_same_run(tmp_path: Path) -> None:
    quick(make_model(), make_data(), out=tmp_path, checkpoint_every=4, keep=2)
    for options, name in (
        ({"seed": 1}, "seed"),
        ({"lr": 1e-4}, "rate"),
        ({"batch_size": 8}, "data.batch_size"),
    ):
        with pytest.raises(ValueError, match=rf"it differs in {name} \(.*, now .*\): resume with the same"):
            quick(make_model(), make_data(), out=tmp_path, resume=True, **options)
    with pytest.raises(ValueError, match=r"it differs in model\.network\.args\.dropout \(0\.0, now 0\.5\)"):
        quick(make_model(dropout=0.5), make_data(), out=tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"damaged.*remove it to go on from .*000000008"):
        (tmp_path / "checkpoints/000000010.safetensors").write_bytes(b"x" * 100)
        quick(make_model(), make_data(), out=tmp_path, resume=True)
    with pytest.raises(TypeError, match="resume=True needs to know where from"):
        quick(make_model(), make_data(), resume=True)


def test_resuming_from_nothing_starts_afresh_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "sdediff"):
        result = quick(make_model(), make_data(), out=tmp_path / "new", resume=True)
    assert result.steps == 10 and "training starts afresh" in caplog.text
    again = make_model(seed=3)
    finished = quick(again, make_data(), out=tmp_path / "new", resume=True)  # nothing left to do
    assert finished.steps == 10 and finished.history == result.history
    assert same(again.state_dict(), result.model.state_dict())


def test_an_interrupted_run_can_go_on(tmp_path: Path) -> None:
    calls: list[int] = []

    def augment(x: Tensor, seed: int) -> Tensor:
        calls.append(seed)
        if len(calls) == 8:  # one call learns the units
            os.kill(os.getpid(), signal.SIGINT)
        return x

    straight, model = make_model(), make_model()
    calls += [0] * 100
    quick(straight, make_data(), augment=augment)
    calls.clear()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        quick(model, make_data(), augment=augment, out=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    stored = RunFolder(tmp_path).load()
    assert stored is not None and stored.step == 7  # the step was finished
    quick(model, make_data(), augment=augment, out=tmp_path, resume=True)
    assert same(straight.state_dict(), model.state_dict())


def test_what_cannot_be_saved_is_refused_before_training(tmp_path: Path) -> None:
    class Special(DiffusionModel):
        pass

    model = Special(Linear(), process=processes.VP(), prediction="eps", data_shape=(2,))
    with pytest.raises(TypeError, match="a Special is a model class of your own"):
        quick(model, make_data(), out=tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert quick(model, make_data()).steps == 10


def test_the_folder_holds_checkpoint_log_and_model(tmp_path: Path) -> None:
    model = make_model()
    result = quick(model, make_data(), val=make_data(50), steps=12, log_every=5, out=tmp_path / "a" / "b")
    folder = tmp_path / "a" / "b"
    models = ["best.safetensors", "model.safetensors"]
    texts = ["config.json", "environment.json", "log.csv"]
    assert sorted(os.listdir(folder)) == sorted([*models, *texts, "checkpoints"])
    with open(folder / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [5, 10, 12]
    assert [float(row["val_loss"]) for row in rows] == [line["val_loss"] for line in result.history]


# -- units, modes, what is trained --------------------------------------------------------------------------


def test_units_are_learnt_or_kept() -> None:
    x = make_data()
    model = make_model()
    quick(model, x)
    z = model.to_model(x)
    assert torch.allclose(z.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(z.square().mean(0), torch.ones(2), atol=0.01)
    units = [model.shift.clone(), model.scale.clone()]
    quick(model, x * 7, units="keep")
    assert torch.equal(model.shift, units[0]) and torch.equal(model.scale, units[1])
    quick(model, x, augment=lambda x, seed: x + 5)
    assert torch.allclose(model.to_model(x + 5).mean(0), torch.zeros(2), atol=1e-5)


def test_data_far_from_zero_are_shifted_before_they_are_rounded() -> None:
    """In float32, 1e7 + noise of size 1 has three bits left; float64 data are as good as centred ones."""
    x = make_data().double()
    losses = [quick(make_model(), x + offset).history[-1]["loss"] for offset in (0, 1e7)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_is_restored(mode: bool) -> None:
    model = make_model(dropout=0.1).train(mode)
    quick(model, make_data(), val=make_data(9))
    assert model.training is mode and model.network.training is mode


def test_frozen_parameters_stay_and_a_model_without_any_is_refused() -> None:
    model = make_model()
    model.network.input.weight.requires_grad_(False)
    frozen, moving = model.network.input.weight.clone(), model.network.output.weight.clone()
    quick(model, make_data())
    assert torch.equal(model.network.input.weight, frozen)
    assert not torch.equal(model.network.output.weight, moving)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameters to train"):
        quick(model, make_data())


def test_float64_and_other_optimisers() -> None:
    model = make_model().double()
    quick(model, make_data().numpy(), optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    assert all(p.dtype == torch.float64 for p in model.parameters())
    with pytest.raises(TypeError, match="weight_decay= goes with the default optimiser"):
        quick(model, make_data(), weight_decay=0.1, optimizer=lambda p: torch.optim.SGD(p, lr=0.1))


def test_the_rate_is_set_at_every_step() -> None:
    seen = []
    quick(make_model(), make_data(), steps=3, log_every=1, lr=lambda k: seen.append(k) or 0.0)
    assert sorted(set(seen)) == [0, 1, 2]
    model, still = make_model(), make_model()
    quick(model, make_data(), lr=lambda k: 0.0)
    assert same(dict(model.named_parameters()), dict(still.named_parameters()))


# -- failures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("wrap", [lambda x: x, TensorDataset, lambda x: DataLoader(TensorDataset(x), 32)])
def test_bad_values_name_their_row(wrap: Any, bad: float) -> None:
    x = make_data()
    x[17, 1] = bad
    x[40] = bad
    rows = "row 17" if wrap(x) is not None and not isinstance(wrap(x), Dataset) else "row [0-9]+"
    with pytest.raises(
        ValueError, match=rf"x_train has NaN or infinite values in 2 of 300 rows, first in {rows}"
    ):
        quick(make_model(), wrap(x))


@pytest.mark.parametrize(
    ("x", "options", "error", "message"),
    [
        (
            make_data(9, 3),
            {},
            ValueError,
            r"x_train has shape \(9, 3\) and the model needs \(N, 2\): reshape",
        ),
        (make_data(9)[:, 0], {}, ValueError, r"x_train has shape \(9,\) and the model needs"),
        (make_data(0), {}, ValueError, "x_train is empty"),
        (make_data(9), {"val": make_data(4, 3)}, ValueError, r"val has shape \(4, 3\)"),
        (make_data(9), {"val": make_data(0)}, ValueError, "val is empty"),
        (make_data(9), {"cond": torch.zeros(8, 1)}, ValueError, r"cond has shape \(8, 1\) for 9 rows"),
        (make_data(9), {"cond": torch.full((9, 1), math.nan)}, ValueError, "cond has NaN .* first in row 0"),
        (
            make_data(9),
            {"cond": torch.zeros(9, 1), "val": make_data(4)},
            TypeError,
            "without val_cond=: give",
        ),
        (make_data(9), {"steps": 0}, ValueError, "steps=0: give at least 1"),
        (make_data(9), {"batch_size": 0}, ValueError, "batch_size=0"),
        (make_data(9), {"units": "yes"}, ValueError, "units='yes'"),
        (make_data(9), {"clip": -1.0}, ValueError, "clip=-1.0"),
        ({"x": 1}, {}, TypeError, "x_train is a dict"),
        (TensorDataset(make_data(9)), {"cond": torch.zeros(9, 1)}, TypeError, "cond= goes with a tensor"),
        (
            DataLoader(make_data(9), 3),
            {"batch_size": 4},
            TypeError,
            "DataLoader of batch_size=3: leave it out",
        ),
    ],
)
def test_wrong_arguments_get_one_sentence(x: Any, options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        quick(make_model(), x, **options)


def test_a_constant_column_is_named() -> None:
    x = make_data()
    x[:, 1] = 3.0
    with pytest.raises(ValueError, match=r"column.*\b1\b"):
        quick(make_model(), x)


@pytest.mark.parametrize(
    ("rate", "message"),
    [(1e30, r"at step 1[0-9]: the (loss|gradient) is"), (3.0, "has grown from .* and diverges")],
)
def test_divergence_stops_and_leaves_the_checkpoint(tmp_path: Path, rate: float, message: str) -> None:
    x, good = make_data(), 10 if rate > 1e10 else 25
    options: dict[str, Any] = {"out": tmp_path, "checkpoint_every": good, "clip": None, "loss": "edm"}
    model = make_model()
    with pytest.raises(RuntimeError, match=message):
        quick(model, x, steps=3000, lr=lambda k: 1e-3 if k < good else rate, **options)
    stored = RunFolder(tmp_path).load()
    assert stored is not None and stored.step >= good
    kept = (*stored.weights.values(), *stored.averages.values())
    assert all(bool(torch.isfinite(value).all()) for value in kept)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_nan_that_appears_later_names_step_and_row() -> None:
    def augment(x: Tensor, seed: int) -> Tensor:
        calls.append(seed)
        return x if len(calls) < 5 else x.index_fill(0, torch.tensor([3]), math.nan)

    calls: list[int] = []
    model = make_model()
    with pytest.raises(ValueError, match="step 3: row 3 of the batch has NaN"):
        quick(model, make_data(), augment=augment)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


def test_progress_goes_to_stderr_and_can_be_silent(capsys: pytest.CaptureFixture[str]) -> None:
    quick(make_model(), make_data(), progress=True, val=make_data(9))
    shown = capsys.readouterr()
    assert shown.out == "" and "10/10" in shown.err and "val=" in shown.err
    quick(make_model(), make_data())
    assert capsys.readouterr().err == ""


def test_validation_is_fixed_and_does_not_depend_on_training() -> None:
    model, x = make_model(dropout=0.5), make_data(50)
    model.set_units(x)
    losses = {
        Validation(model, x, None, training.LOSSES["native"].objective(model), 0).loss() for _ in range(2)
    }
    assert len(losses) == 1 and model.training
    other = Validation(model, x, None, training.LOSSES["native"].objective(model), 1).loss()
    assert other not in losses
    # Against a plain average over uniform times: both have a standard error of about 3 %; 5 of them.
    n = 4096
    t = training.UniformTime().sample(training.stratified(0.5, n), model.process)
    eps = torch.randn(n, 2, generator=torch.Generator().manual_seed(0))
    z = model.to_model(x)[torch.arange(n) % 50]
    with torch.no_grad():
        plain = float(training.squared_error(model.eval(), z, eps, t).mean())
    assert other == pytest.approx(plain, rel=0.2)
