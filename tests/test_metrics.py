"""Energy distance and nearest neighbours against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from sdediff import metrics
from sdediff.metrics import energy_distance, nearest_neighbour_distance


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mean_absolute(mean: float, std: float) -> float:
    """E|Z| for Z ~ N(mean, std^2)."""
    return std * math.sqrt(2 / math.pi) * math.exp(-(mean**2) / (2 * std**2)) + mean * math.erf(
        mean / (std * math.sqrt(2))
    )


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.7, 1.0), (0.5, 2.0)])
def test_unbiased_distance_of_gaussians_is_the_closed_form(shift: float, scale: float) -> None:
    root = math.sqrt(1 + scale**2)
    exact = (
        2 * mean_absolute(shift, root)
        - mean_absolute(0, math.sqrt(2))
        - mean_absolute(0, scale * math.sqrt(2))
    )
    values = torch.stack(
        [
            energy_distance(
                normal(60, 1, seed=2 * k), shift + scale * normal(40, 1, seed=2 * k + 1), unbiased=True
            )
            for k in range(400)
        ]
    )
    # The mean of 400 unbiased estimates: beyond 4 standard errors with probability 6e-5.
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / 20
    assert float(values.std()) / 20 < 0.02


def test_floor_of_equal_laws_is_as_documented() -> None:
    values = torch.stack(
        [energy_distance(normal(50, 1, seed=2 * k), normal(30, 1, seed=2 * k + 1)) for k in range(400)]
    )
    floor = (1 / 50 + 1 / 30) * mean_absolute(0, math.sqrt(2))
    # Beyond 4 standard errors with probability 6e-5.
    assert abs(float(values.mean()) - floor) < 4 * float(values.std()) / 20
    assert bool((values > 0).all())


def test_one_dimension_agrees_with_scipy() -> None:
    x, y = normal(37, 1, seed=0), 0.3 + normal(23, 1, seed=1)
    assert float(energy_distance(x, y)) == pytest.approx(
        stats.energy_distance(x[:, 0], y[:, 0]) ** 2, rel=1e-12
    )


def test_invariances() -> None:
    x, y = normal(30, 2, 3, seed=0), 0.5 + normal(20, 2, 3, seed=1)
    value = energy_distance(x, y)
    turn = torch.linalg.qr(normal(6, 6, seed=2)).Q
    turned = [(v.flatten(1) @ turn).reshape(v.shape) for v in (x, y)]
    assert float(energy_distance(x, x)) == 0
    assert float(value) > 0
    for same in (energy_distance(y, x), energy_distance(x - 7, y - 7), energy_distance(*turned)):
        assert float(same) == pytest.approx(float(value), rel=1e-10)
    assert float(energy_distance(3 * x, 3 * y)) == pytest.approx(3 * float(value), rel=1e-12)
    # Far apart, all distances are the shift.
    assert float(energy_distance(x, x + 1e6)) == pytest.approx(2e6 * math.sqrt(6), rel=1e-5)


def test_the_two_statistics_differ_by_the_diagonal() -> None:
    x, y = normal(30, 4, seed=0), normal(20, 4, seed=1)
    inside = [torch.cdist(v, v).sum() / len(v) ** 2 for v in (x, y)]
    shift = inside[0] / 29 + inside[1] / 19
    difference = energy_distance(x, y) - energy_distance(x, y, unbiased=True)
    assert float(difference) == pytest.approx(float(shift), rel=1e-7)


def test_nearest_neighbours() -> None:
    reference = torch.tensor([[0.0, 0.0], [10.0, 0.0]])
    x = torch.tensor([[3.0, 4.0], [10.0, 0.0], [8.0, 0.0]])
    assert nearest_neighbour_distance(x, reference).tolist() == [5.0, 0.0, 2.0]
    # Near copies far from the origin keep their digits.
    close = nearest_neighbour_distance(torch.full((40, 3), 1e3), torch.full((50, 3), 1e3 + 1 / 1024))
    assert torch.allclose(close, torch.full((40,), math.sqrt(3) / 1024, dtype=torch.float64), rtol=1e-12)


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = normal(33, 3, seed=0), normal(21, 3, seed=1)
    whole = energy_distance(x, y), nearest_neighbour_distance(x, y)
    monkeypatch.setattr(metrics, "_PAIRS", 50)
    assert float(energy_distance(x, y)) == pytest.approx(float(whole[0]), rel=1e-12)
    assert torch.equal(nearest_neighbour_distance(x, y), whole[1])


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 4), r"rows of shape \(2,\) and .* of shape \(4,\)"),
        (torch.zeros(3), torch.zeros(3), r"x is \(3,\): give a tensor \(n, \*E\)"),
        ([[1.0]], torch.zeros(1, 1), "x is list"),
        (torch.zeros(1, 1), torch.full((1, 1), math.nan), "has NaN or infinite values"),
        (
            torch.zeros(0, 2),
            torch.zeros(3, 2),
            "0 and 3 rows: give at least (one|1)",
        ),
    ],
)
def test_errors_say_what_is_needed(x: Tensor, y: Tensor, message: str) -> None:
    for function in (energy_distance, nearest_neighbour_distance):
        with pytest.raises(ValueError, match=message):
            function(x, y)


def test_unbiased_needs_two_rows() -> None:
    with pytest.raises(ValueError, match="1 and 3 rows: give at least 2 of each"):
        energy_distance(torch.zeros(1, 2), torch.zeros(3, 2), unbiased=True)
