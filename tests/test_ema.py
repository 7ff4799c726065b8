"""Averages of weights: profiles in closed form, several at once, any length from snapshots."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdediff
from sdediff.training import squared_error
from sdediff.training.ema import Averages, Exponential, Power, Profile
from sdediff.training.posthoc import (
    _weighted,
    combine,
    reconstruct,
    reconstruct_model,
    save_snapshot,
    snapshots,
)

PROFILES = [
    Power(0.05),
    Power(0.15),
    Power(12**-0.5),
    Exponential(0.6),
    Exponential(0.05),
    Exponential(0.95),
    Exponential(0.999),
    Exponential(0.9, warmup=False),
    Exponential(0.0),
]


def weights(profile: Profile, updates: int) -> np.ndarray:
    """Weights of theta_0, ..., theta_T in the average, by running it."""
    w = np.zeros(updates + 1)
    w[0] = 1
    for k in range(1, updates + 1):
        w *= profile.decay_at(k)
        w[k] += 1 - profile.decay_at(k)
    return w


def relative(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    x, y = (torch.cat([d[k].detach().flatten().double() for k in a]) for d in (a, b))
    return float((x - y).norm() / y.norm())


# -- profiles -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma_rel", [1e-3, 0.05, 0.1, 0.2, 0.28, 12**-0.5])
def test_the_exponent_gives_the_relative_length(sigma_rel: float) -> None:
    """Against the formula, and against the moments of the weights themselves."""
    profile = Power(sigma_rel)
    g = profile.gamma
    assert math.sqrt(g + 1) / ((g + 2) * math.sqrt(g + 3)) == pytest.approx(sigma_rel, rel=1e-9)
    k = np.arange(1, 20001)
    w = k ** (g + 1) - (k - 1.0) ** (g + 1) if sigma_rel > 0.01 else np.array([])
    if len(w):
        mean = np.average(k - 0.5, weights=w)
        spread = math.sqrt(np.average((k - 0.5 - mean) ** 2, weights=w)) / len(k)
        assert spread == pytest.approx(sigma_rel, rel=1e-5)


@pytest.mark.parametrize("profile", PROFILES, ids=repr)
def test_products_of_decays_have_a_closed_form(profile: Profile) -> None:
    """An average lacks the part prod_{j >= k} d_j of the move at k: the weights before k, by brute force."""
    for end in (1, 2, 7, 300):
        before = np.cumsum(weights(profile, end))[:-1]
        assert profile.remainder(np.arange(1, end + 1), end) == pytest.approx(before, rel=1e-11, abs=1e-300)
        assert profile.remainder(np.array([end + 1]), end) == pytest.approx([1.0], rel=1e-14)


def test_power_weights_are_those_of_the_continuous_profile() -> None:
    """Weight of step k: the integral of (gamma + 1) tau^gamma / t^(gamma + 1) over (k - 1, k]."""
    profile, k = Power(0.1), np.arange(1, 201)
    closed = (k / 200) ** (profile.gamma + 1) - ((k - 1) / 200) ** (profile.gamma + 1)
    assert weights(profile, 200)[1:] == pytest.approx(closed, rel=1e-11)
    assert weights(profile, 200)[0] == 0


@pytest.mark.parametrize("bad", [0, -0.1, 0.3, math.nan])
def test_impossible_profiles_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"sigma_rel=.*: give the length .* in \(0, 0\.288\]"):
        Power(bad)
    with pytest.raises(ValueError, match=r"decay=1\.5: give a decay of the average in \[0, 1\)"):
        Exponential(1.5)


# -- averages -----------------------------------------------------------------------------------------------


def test_several_averages_at_once() -> None:
    path = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(3, 1, bias=False).double()
    layer.weight.data.copy_(path[:1])
    averages = Averages(layer, PROFILES)
    for row in path[1:]:
        layer.weight.data.copy_(row[None])
        averages.update()
    for index, profile in enumerate(PROFILES):
        expected = torch.from_numpy(weights(profile, 29)) @ path
        assert torch.allclose(averages.shadows[index]["weight"], expected, rtol=1e-13, atol=1e-13)
        with averages.averaged(index):
            assert torch.equal(layer.weight, averages.shadows[index]["weight"])
        assert torch.equal(layer.weight, path[-1:])
    with pytest.raises(RuntimeError, match="stop"), averages.averaged(1):
        raise RuntimeError("stop")
    assert torch.equal(layer.weight, path[-1:])
    other = Averages(nn.Linear(3, 1, bias=False).double(), PROFILES)
    other.load(averages.state(), averages.updates)
    assert other.updates == 29
    assert all(torch.equal(v, averages.state()[k]) for k, v in other.state().items())
    for state in ({}, averages.state() | {"9.weight": path}, {k: v[:, :2] for k, v in other.state().items()}):
        with pytest.raises(ValueError, match=r"the stored averages do not fit, first in '[09]\.weight'"):
            other.load(state, 29)


def test_frozen_parameters_and_buffers_are_left_alone_and_half_precision_is_not_lost() -> None:
    module = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)).bfloat16()
    module[0].bias.requires_grad_(False)
    module[0].weight.data.fill_(1.0)
    averages = Averages(module, (Exponential(0.999, warmup=False),))
    assert set(averages.shadows[0]) == {"0.weight", "1.weight", "1.bias"}
    module[0].weight.data.fill_(2.0)
    for _ in range(1000):  # each moves the average by less than bfloat16 resolves
        averages.update()
    average = averages.shadows[0]["0.weight"]
    assert average.dtype == torch.float32 and float(average) == pytest.approx(2 - 0.999**1000, rel=1e-4)
    averages.copy_to_module()
    assert module[0].weight.dtype == torch.bfloat16 and module[0].weight.item() == 1.6328125


# -- reconstruction -----------------------------------------------------------------------------------------

RECORDED = (Power(0.05), Power(0.1))
TRACKED = (*RECORDED, Power(0.075), Power(0.15), Power(0.2), Exponential(0.95), Exponential(0.999))
EVERY, STEPS = 10, 300


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[int, Averages]]:
    """A short real training: snapshots of two averages, others tracked to steps 200 and 300."""
    folder, g = tmp_path_factory.mktemp("run"), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    net = sdediff.networks.MLP(dim=2, hidden=16, blocks=1, time_dim=8)
    model = sdediff.DiffusionModel(net, sdediff.VP(), data_shape=(2,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    averages, others, tracked = Averages(model, RECORDED), Averages(model, TRACKED), {}
    for step in range(1, STEPS + 1):
        z = torch.randn(32, 2, generator=g) * 0.1 + torch.randint(0, 2, (32, 2), generator=g)
        t, eps = torch.rand(32, generator=g).double() * 0.99 + 0.01, torch.randn(32, 2, generator=g)
        optimizer.zero_grad()
        squared_error(model, z, eps, t).mean().backward()
        optimizer.step()
        averages.update()
        others.update()
        if step % EVERY == 0:
            save_snapshot(folder, averages, step)
        if step in (STEPS - 100, STEPS):
            tracked[step] = Averages(model, TRACKED)
            tracked[step].load(others.state(), step)
    model.save(folder / "model.safetensors")
    return folder, tracked


def test_reconstruction_equals_the_tracked_average(run: tuple[Path, dict[int, Averages]]) -> None:
    """Profiles between and beyond the two recorded, and exponential ones, to 1e-4 relative."""
    folder, tracked = run
    assert [s.step for s in snapshots(folder)] == list(range(EVERY, STEPS + 1, EVERY))
    for step, averages in tracked.items():
        for index, profile in enumerate(averages.profiles):
            error = relative(reconstruct(folder, profile, step), averages.shadows[index])
            assert error < (1e-6 if profile in RECORDED else 1e-4)
    last = tracked[STEPS]
    apart = relative(last.shadows[0], last.shadows[3])
    assert apart > 1e-2  # the averages differ by much more than that


def test_a_step_between_snapshots_serves_too(run: tuple[Path, dict[int, Averages]]) -> None:
    """Of the snapshots up to the next one: later ones change nothing."""
    folder, tracked = run
    a, b = reconstruct(folder, 0.1, STEPS - 3), reconstruct(folder, Power(0.1))
    assert relative(b, tracked[STEPS].shadows[1]) < 1e-6
    known = [(Power(s), n) for n in range(EVERY, STEPS + 1, EVERY) for s in (0.05, 0.1)]
    c, error = combine(known, Power(0.1), STEPS - 3)
    assert float(c.sum()) == pytest.approx(1, abs=1e-12) and error < 0.02
    assert 1e-6 < relative(a, b) < 0.1


def test_the_model_of_a_run_with_another_average(run: tuple[Path, dict[int, Averages]]) -> None:
    folder, tracked = run
    model = reconstruct_model(folder, 0.15)
    assert not model.training
    assert relative(dict(model.named_parameters()), tracked[STEPS].shadows[3]) < 1e-4


def test_the_best_combination_beats_matching_profiles(run: tuple[Path, dict[int, Averages]]) -> None:
    """Least squares of the profiles themselves, without a constraint, errs several times more."""
    folder, tracked = run
    used = snapshots(folder)[1::2]
    known = [(p, s.updates) for s in used for p in s.profiles]
    rows = np.stack([np.pad(weights(p, n), (0, STEPS - n)) for p, n in known], 1)
    target = Power(0.15)
    plain = np.linalg.lstsq(rows, weights(target, STEPS), rcond=None)[0]
    ours, error = combine(known, target, STEPS)
    exact = tracked[STEPS].shadows[3]
    errors = [relative(_weighted(used, list(c)), exact) for c in (plain, ours.tolist())]
    assert errors[1] < errors[0] / 5 and error < 0.01


def test_what_snapshots_cannot_give_is_said(
    run: tuple[Path, dict[int, Averages]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = run
    reconstruct(folder, 0.1)
    assert not caplog.records
    reconstruct(folder, Exponential(0.5))  # two steps, where snapshots are 10 apart
    assert "miss about" in caplog.text and "too far apart" in caplog.text
    for step in (0, STEPS + 1):
        with pytest.raises(ValueError, match=rf"step={step}: the snapshots in .* serve steps 1 to {STEPS}"):
            reconstruct(folder, 0.1, step)
    with pytest.raises(
        FileNotFoundError, match=r"there are no snapshots in .*ema: train with power averages"
    ):
        reconstruct(tmp_path, 0.1)
    layer = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"none of the averages .* has a power profile"):
        save_snapshot(tmp_path, Averages(layer), 1)
    averages = Averages(layer, (Power(0.1),))
    averages.update()
    save_snapshot(tmp_path, averages, 1)
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"do not fit the model beside them, first in (weight|bias)"):
        reconstruct_model(tmp_path, 0.1)
    other = Averages(nn.Linear(3, 2), (Power(0.1),))
    for _ in range(2):
        other.update()
    save_snapshot(tmp_path, other, 2)
    with pytest.raises(ValueError, match=r"000000002.* is of another network than .*000000001"):
        reconstruct(tmp_path, 0.1)
