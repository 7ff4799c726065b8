"""The Gaussian multistep solver: exact for Gaussian data, indifferent to units, accurate in few steps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import sdediff
import solvers
from sdediff.reference import Gaussian, random_product
from solvers.exponential import GaussianMultistep

F64 = torch.float64
PROCESSES = [
    sdediff.VP(),
    sdediff.SubVP(),
    sdediff.VE(),
    sdediff.EDM(),
    sdediff.Cosine(),
    sdediff.RectifiedFlow(),
]
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
DATA = random_product(dim=16, components=3, seed=0, dtype=F64)


def noised(data: sdediff.reference.RotatedProduct, process: sdediff.GaussianProcess, n: int = 64) -> Tensor:
    return process.perturb(data.sample(n, seed=5), process.t_max, seed=1)[0]


def flow_error(
    name: str | solvers.Solver, steps: int, process: sdediff.GaussianProcess, seed: int = 0
) -> float:
    data = random_product(dim=16, components=3, seed=seed, dtype=F64)
    x = noised(data, process)
    exact = data.flow(process, x, process.t_max, process.t_min)
    end = solvers.solve(data.model(process).problem(), x, solver=name, steps=steps).x
    return float((end - exact).square().mean().sqrt())


@every_process
@pytest.mark.parametrize("up", (False, True), ids=("decode", "encode"))
def test_gaussian_data_take_one_step(process: sdediff.GaussianProcess, up: bool) -> None:
    """A mean away from zero; every entry has the variance that the model is told."""
    mean, variance = torch.tensor([1.5, -0.7, 0.3], dtype=F64), 0.6
    problem = Gaussian(mean, variance * torch.eye(3, dtype=F64)).model(process).problem()
    span = (process.t_min, process.t_max) if up else (process.t_max, process.t_min)
    (a, s), (b, r) = ((float(process.alpha(t)), float(process.sigma(t))) for t in span)
    z = torch.randn(8, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    start = a * mean + (a**2 * variance + s**2) ** 0.5 * z
    exact = b * mean + (b**2 * variance + r**2) ** 0.5 * z
    for steps in (1, 2, 7):
        end = solvers.solve(problem, start, span, "gaussian-multistep", steps=steps).x
        torch.testing.assert_close(end, exact, rtol=1e-9, atol=1e-9)


def test_shifting_and_scaling_the_data_shifts_and_scales_the_samples() -> None:
    """In clocks that scale with them: the exact denoiser of c x + m, noise levels c times as large."""
    x, factor, shift = noised(DATA, sdediff.EDM()), 3.0, 40.0
    plain, moved = sdediff.EDM(), sdediff.EDM(t_min=0.002 * factor, t_max=80.0 * factor)
    one = DATA.model(plain).problem()

    def denoiser(t: float, y: Tensor) -> Tensor:
        return shift + factor * DATA.denoise(plain, (y - shift) / factor, t / factor)

    two = solvers.SemiLinear(moved, denoiser, scale=one.scale * factor, centre=factor * one.centre + shift)
    grid = sdediff.EDM().default_grid(9)
    a = solvers.solve(one, x, solver=GaussianMultistep(), grid=grid).x
    b = solvers.solve(two, factor * x + shift, solver=GaussianMultistep(), grid=factor * grid).x
    torch.testing.assert_close(b, factor * a + shift, rtol=1e-9, atol=1e-7)


def test_wrong_moments_cost_accuracy_and_not_consistency() -> None:
    process = sdediff.VP()
    x = noised(DATA, process)
    exact = DATA.flow(process, x, process.t_max, process.t_min)
    problem = solvers.SemiLinear(process, lambda t, x: DATA.denoise(process, x, t), scale=3.0, centre=2.0)
    errors = [
        float((solvers.solve(problem, x, solver="gaussian-multistep", steps=n).x - exact).abs().max())
        for n in (100, 200, 400)
    ]
    assert errors[0] / errors[1] > 6 and errors[1] / errors[2] > 6, errors


@pytest.mark.parametrize("seed", (0, 1, 2))
@pytest.mark.parametrize("steps", (5, 8, 10, 15, 20))
def test_few_steps_are_more_accurate_than_by_any_published_method(steps: int, seed: int) -> None:
    process = sdediff.VP()
    own = flow_error("gaussian-multistep", steps, process, seed)
    for name in ("dpm++2m", "dpm++3m", "unipc-3"):
        assert flow_error(name, steps, process, seed) > 2.2 * own, name
    for name in ("deis-tab3", "ipndm"):
        assert flow_error(name, steps, process, seed) > 1.1 * own, name


@every_process
def test_errors_are_alike_under_every_process(process: sdediff.GaussianProcess) -> None:
    """Where noise starts at a hundred times the data's size and ends at a thousandth."""
    assert flow_error("gaussian-multistep", 20, process) < 0.004


def test_starts_where_alpha_vanishes() -> None:
    process = sdediff.RectifiedFlow()
    x = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=F64)
    problem = solvers.SemiLinear(
        process, lambda t, x: DATA.denoise(process, x, t), scale=1.3, centre=DATA.mean
    )
    fine, coarse = (
        solvers.solve(
            problem, x, (1.0, 1e-3), "gaussian-multistep", grid=torch.linspace(1.0, 1e-3, n + 1, dtype=F64)
        ).x
        for n in (400, 40)
    )
    assert bool(torch.isfinite(coarse).all()) and float((coarse - fine).abs().max()) < 0.02


@every_process
@pytest.mark.parametrize("up", (False, True), ids=("decode", "encode"))
def test_float32_follows_float64(process: sdediff.GaussianProcess, up: bool) -> None:
    """Also from data on, where D and x agree in all but the last digits."""
    problem = DATA.model(process).problem()
    x = process.perturb(DATA.sample(64, seed=5), process.t_min, seed=1)[0] if up else noised(DATA, process)
    span = (process.t_min, process.t_max) if up else (process.t_max, process.t_min)
    wide, narrow = (solvers.solve(problem, y, span, "gaussian-multistep", steps=10).x for y in (x, x.float()))
    assert narrow.dtype == torch.float32
    difference = (narrow.double() - wide).square().mean().sqrt() / wide.std()
    assert float(difference) < 1e-4


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"finest=1.5: give a fraction between 0 and 1"):
        GaussianMultistep(finest=1.5)
    with pytest.raises(ValueError, match=r"order=0"):
        GaussianMultistep(order=0)


def test_reaches_the_data_where_sigma_vanishes() -> None:
    process = sdediff.RectifiedFlow()
    x = process.perturb(DATA.sample(32, seed=0), 0.99, 0)[0]
    problem = solvers.SemiLinear(
        process, lambda t, x: DATA.denoise(process, x, t), scale=1.3, centre=DATA.mean
    )
    end = solvers.solve(problem, x, (0.99, 0.0), "gaussian-multistep", steps=40).x
    assert float((end - DATA.flow(process, x, 0.99, None)).square().mean().sqrt()) < 5e-3
    with pytest.raises(ValueError, match="sigma vanishes at t=0, where nothing tells the data"):
        solvers.solve(problem, end, (0.0, 0.99), "gaussian-multistep", steps=5)
