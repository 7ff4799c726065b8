"""Counter-based noise and the Brownian path: pure functions of their names, with the right law.

Seeds are fixed, so a test always says the same. The statistical ones bound what a correct generator would
violate with a probability (over seeds) of at most 1e-3 each, all comparisons of a test taken together.
"""

from __future__ import annotations

import gc
import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from solvers import BrownianPath, Noise, Stream
from solvers.noise import normal, uniform

F32, F64 = torch.float32, torch.float64
ALARM = 1e-3
SEEDS = (0, 1, 2, 41, -1, -2, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 3, 123456789012345678901)


def bound(comparisons: int) -> float:
    """What none of so many standard normals exceeds, with probability 1 - ALARM."""
    return float(stats.norm.isf(ALARM / (2 * comparisons)))


# -- a function of its names ----------------------------------------------------------------------------


@pytest.mark.parametrize("draw", (normal, uniform), ids=("normal", "uniform"))
@pytest.mark.parametrize("dtype", (F64, F32), ids=("float64", "float32"))
@pytest.mark.parametrize("shape", ((), (1,), (3,), (2, 5), (1, 3, 3), (64,)))
def test_a_row_depends_on_its_own_name_only(draw, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    names = torch.tensor([5, 0, 7, 2**40, 1, 999])
    whole = draw(3, names, Stream.STEP, 11, shape, dtype)
    assert whole.shape == (6, *shape) and whole.dtype == dtype
    for order in ([2], [4, 3, 2, 1, 0, 5], [1, 1], [0, 2, 4]):
        rows = torch.tensor(order)
        assert torch.equal(draw(3, names[rows], Stream.STEP, 11, shape, dtype), whole[rows])
    assert len(whole.reshape(6, -1).unique(dim=0)) == 6


def test_every_name_counts() -> None:
    """Draws for other seeds, rows, streams and counters have no number in common."""
    drawn = [
        uniform(seed, torch.arange(20), stream, counter, (10,), F64)
        for seed in SEEDS
        for stream in (Stream.PRIOR, Stream.STEP, Stream.RESTART)
        for counter in (0, 1, 2, 1000)
    ]
    numbers = torch.stack(drawn).flatten()
    assert len(numbers.unique()) == len(numbers)


def test_the_low_64_bits_of_a_seed_count() -> None:
    rows = torch.arange(3)
    for seed in SEEDS:
        a, b = (normal(s, rows, Stream.STEP, 0, (4,), F64) for s in (seed, seed + 2**64))
        assert torch.equal(a, b)


def test_counters_follow_each_other_without_a_gap() -> None:
    """Uniform draws are consecutive pieces of one sequence: nothing is used twice, whatever the shape."""
    rows = torch.arange(3)
    whole = uniform(9, rows, Stream.DATA, 0, (60,), F64)
    pieces = [uniform(9, rows, Stream.DATA, k, (5,), F64) for k in range(12)]
    assert torch.equal(torch.cat(pieces, dim=1), whole)


def test_single_and_double_precision_are_the_same_numbers() -> None:
    """float32 has 31 random bits, float64 53, the same leading ones.

    A radius near 0 stretches the difference: sqrt(-2 log u) moves by 2^-25 / radius, and radii below 3e-3 are
    one in 2e5.
    """
    rows = torch.arange(200)
    a, b = (uniform(1, rows, Stream.STEP, 0, (501,), dtype).double() for dtype in (F32, F64))
    assert float((a - b).abs().max()) <= 2.0**-24
    a, b = (normal(1, rows, Stream.STEP, 0, (501,), dtype).double() for dtype in (F32, F64))
    assert float((a - b).abs().max()) < 5e-5 and float((a - b).abs().median()) < 2e-7
    half = normal(1, rows, Stream.STEP, 0, (3,), torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, normal(1, rows, Stream.STEP, 0, (3,), F32).bfloat16())


@pytest.mark.parametrize("shape", ((), (1,), (3,), (2, 2), (5, 1, 3), (70000,)))
@pytest.mark.parametrize("draws", (1, 3))
def test_a_solves_noise_is_the_function_over_several_blocks(shape: tuple[int, ...], draws: int) -> None:
    names = torch.tensor([4, 9])
    noise = Noise(6, names, shape, F64)
    counters = range(45) if math.prod(shape) < 1000 else (0, 1, 2, 19, 20, 21)
    for k, draw in itertools.product(counters, range(draws)):
        expected = normal(6, names, Stream.CORRECTOR, k * draws + draw, shape, F64)
        assert torch.equal(noise.at(k).normal(Stream.CORRECTOR, draw, draws), expected), (k, draw)
    for k in (44, 0, 20, 19):  # out of order, and another stream between
        noise.at(3).normal(Stream.STEP)
        assert torch.equal(noise.at(k).normal(), normal(6, names, Stream.STEP, k, shape, F64))
    assert torch.equal(noise.at(2).path(-0.25), 0.5 * noise.at(2).normal())


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state(), repr(np.random.get_state(legacy=False))
    normal(0, torch.arange(4), Stream.STEP, 0, (3,))
    uniform(0, torch.arange(4), Stream.STEP, 0, (3,))
    path = BrownianPath(Noise(0, torch.arange(4), (3,)), (0.0, 1.0))
    path(0.1, 0.4)
    assert (
        torch.equal(torch.get_rng_state(), before[0]) and repr(np.random.get_state(legacy=False)) == before[1]
    )


# -- the law --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (F64, F32), ids=("float64", "float32"))
def test_uniforms_are_uniform(dtype: torch.dtype) -> None:
    """KS and chi-square (1024 cells) on 2e5 numbers of each of 4 seeds: 8 tests."""
    for seed in (0, 1, -7, 2**63):
        u = uniform(seed, torch.arange(1000), Stream.DATA, 5, (200,), dtype)
        assert float(u.min()) > 0 and float(u.max()) < 1
        flat = u.flatten().double().numpy()
        assert stats.kstest(flat, "uniform").pvalue > ALARM / 8
        counts, _ = np.histogram(flat, bins=1024, range=(0, 1))
        assert stats.chisquare(counts).pvalue > ALARM / 8


def test_uniforms_stay_inside_at_the_extremes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The smallest and largest words there are."""
    from solvers import noise

    for word in (0, -1):
        monkeypatch.setattr(noise, "_mix", lambda x, w=word: torch.full_like(x, w))
        for dtype in (F64, F32):
            u = noise.uniform(0, torch.arange(1), Stream.DATA, 0, (2,), dtype)
            assert float(u.min()) > 0 and float(u.max()) < 1
            assert bool(torch.isfinite(noise.normal(0, torch.arange(1), Stream.DATA, 0, (2,), dtype)).all())


@pytest.mark.parametrize("dtype", (F64, F32), ids=("float64", "float32"))
def test_normals_are_normal(dtype: torch.dtype) -> None:
    """KS, chi-square (200 equal cells) and four moments, on 2e5 numbers of each of 4 seeds: 24 tests."""
    edges = stats.norm.ppf(np.linspace(0, 1, 201))
    for seed in (0, 1, -7, 2**63):
        z = normal(seed, torch.arange(1000), Stream.STEP, 5, (200,), dtype).double().flatten()
        flat, n = z.numpy(), len(z)
        assert stats.kstest(flat, "norm").pvalue > ALARM / 24
        counts = np.histogram(flat, bins=edges)[0]
        assert stats.chisquare(counts).pvalue > ALARM / 24
        for power, variance in ((1, 1), (2, 2), (3, 15), (4, 96)):  # Var z^p
            expected = (0, 1, 0, 3)[power - 1]
            error = (float((z**power).mean()) - expected) / math.sqrt(variance / n)
            assert abs(error) < bound(24), f"moment {power}"


def correlations(rows: Tensor) -> float:
    """Largest correlation between two rows of (K, n), in standard deviations."""
    n = rows.shape[1]
    c = rows @ rows.T / n
    return float((c - torch.diag(c.diagonal())).abs().max()) * math.sqrt(n)


def test_nothing_is_correlated() -> None:
    """Between samples, streams, counters and seeds, as they are and squared; and along one sequence."""
    n = 8192
    one = lambda seed, row, stream, counter: normal(seed, torch.tensor([row]), stream, counter, (n,), F64)[0]  # noqa: E731
    families = {
        "samples": normal(
            0, torch.cat([torch.arange(48), 2 ** torch.arange(8, 24)]), Stream.STEP, 0, (n,), F64
        ),
        "streams": torch.stack([one(0, 0, s, 0) for s in Stream]),
        "counters": torch.stack([one(0, 0, Stream.STEP, k) for k in (*range(30), 1000, 10**6, 2**31)]),
        "seeds": torch.stack([one(s, 0, Stream.STEP, 0) for s in SEEDS]),
        # Whether adding to the seed, the row or the stream can undo one another.
        "diagonals": torch.stack([one(a, b, c, 0) for a in range(4) for b in range(4) for c in range(4)]),
    }
    pairs = sum(2 * len(z) * (len(z) - 1) // 2 for z in families.values())
    for name, z in families.items():
        assert correlations(z) < bound(pairs), name
        assert correlations((z**2 - 1) / math.sqrt(2)) < 1.15 * bound(pairs), (
            f"squares of {name}"
        )  # heavier tails
    z = one(0, 0, Stream.STEP, 0)
    lags = [float((z[:-k] * z[k:]).mean()) * math.sqrt(n - k) for k in range(1, 200)]
    assert max(map(abs, lags)) < bound(len(lags))


# -- the Brownian path ----------------------------------------------------------------------------------

TIMES = (0.0, 1.0, 1.5, 2.0, 4.0)


def path_of(
    rows: int = 3, times: tuple[float, ...] = TIMES, seed: int = 0, dtype: torch.dtype = F64
) -> BrownianPath:
    return BrownianPath(Noise(seed, torch.arange(rows), (2,), dtype), times)


def test_increments_add_up_and_so_do_integrals() -> None:
    path = path_of()
    points = [0.0, 0.3, 0.71, 1.0, 1.1, 1.75, 4.0]
    for a, b, c in itertools.combinations(points, 3):
        (w1, a1), (w2, a2), (w, area) = (path.with_integral(*s) for s in ((a, b), (b, c), (a, c)))
        torch.testing.assert_close(w1 + w2, w, rtol=0, atol=1e-12)
        # Times are resolved to 2^-20 of a cell.
        torch.testing.assert_close(a1 + a2 + w1 * (c - b), area, rtol=0, atol=2e-5)
    (w1, a1), (w2, a2) = path.with_integral(0.25, 0.75), path.with_integral(0.75, 1.25)
    torch.testing.assert_close(a1 + a2 + w1 * 0.5, path.with_integral(0.25, 1.25)[1], rtol=0, atol=1e-12)
    assert torch.equal(path(0.3, 0.3), torch.zeros(3, 2, dtype=F64))


def test_answers_do_not_depend_on_what_was_asked_before() -> None:
    rng = np.random.default_rng(0)
    queries = [tuple(sorted(rng.uniform(0, 4, 2))) for _ in range(12)] + [(0.0, 4.0), (1.0, 1.5), (1.2, 1.2)]
    first = path_of()
    asked = {q: first.with_integral(*q) for q in queries}
    second = path_of()
    for q in reversed(queries):
        for mine, theirs in zip(second.with_integral(*q), asked[q], strict=True):
            assert torch.equal(mine, theirs)
        fresh = path_of().with_integral(*q)
        assert torch.equal(fresh[0], asked[q][0]) and torch.equal(fresh[1], asked[q][1])


def test_rows_of_a_path_do_not_depend_on_each_other() -> None:
    whole = path_of(5)
    part = BrownianPath(Noise(0, torch.tensor([3, 1]), (2,), F64), TIMES)
    for query in ((0.1, 0.2), (0.3, 3.3), (1.0, 4.0)):
        assert torch.equal(part(*query), whole(*query)[[3, 1]])


@pytest.mark.parametrize(
    "times", (TIMES, (4.0, 2.0, 1.5, 1.0, 0.0), (-3.0, 1e3)), ids=("rising", "falling", "far")
)
def test_cells_carry_the_noise_of_steps(times: tuple[float, ...]) -> None:
    path, noise = path_of(times=times), Noise(0, torch.arange(3), (2,), F64)
    for k, (a, b) in enumerate(itertools.pairwise(times)):
        torch.testing.assert_close(path(a, b), noise.at(k).path(b - a), rtol=1e-12, atol=1e-12)


def test_falling_times_mirror_rising_ones() -> None:
    falling, rising = path_of(times=(2.0, 1.0, 0.0)), path_of(times=(-2.0, -1.0, 0.0))
    for a, b in ((1.7, 1.2), (1.3, 0.4), (2.0, 0.0)):
        for mine, theirs in zip(falling.with_integral(a, b), rising.with_integral(-a, -b), strict=True):
            assert torch.equal(mine, theirs)
    torch.testing.assert_close(falling(1.9, 0.7) + falling(0.7, 0.2), falling(1.9, 0.2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "points",
    ((0.0, 1.0, 1.5, 4.0), (0.0, 0.3, 0.7, 1.6), (0.25, 0.5, 0.501, 0.52)),
    ids=("cells", "across", "inside"),
)
def test_law_of_increments_and_integrals(points: tuple[float, ...]) -> None:
    """Var W = h, Cov(W, A) = h^2/2, Var A = h^3/3, stretches independent: 21 moments of 2e4 paths."""
    n = 10000
    path = BrownianPath(Noise(5, torch.arange(n), (2,), F64), TIMES)
    columns = []
    for a, b in itertools.pairwise(points):
        h = b - a
        w, area = (v.flatten() for v in path.with_integral(a, b))
        # Whitened by the law: W / sqrt(h) and what is left of A, both standard normal.
        columns += [w / math.sqrt(h), (area - h / 2 * w) / math.sqrt(h**3 / 12)]
    z = torch.stack(columns)
    error = (z @ z.T / z.shape[1] - torch.eye(len(z), dtype=F64)) * math.sqrt(z.shape[1])
    error -= torch.diag(error.diagonal()) * (1 - math.sqrt(0.5))  # variances have twice the spread
    assert float(error.abs().max()) < bound(21)
    for column in z:
        assert stats.kstest(column.numpy(), "norm").pvalue > ALARM / 6


def test_memory_does_not_grow() -> None:
    path, rng = path_of(), np.random.default_rng(1)

    def ask(n: int) -> int:
        for _ in range(n):
            path(*sorted(rng.uniform(0, 4, 2)))
        gc.collect()
        return sum(v.numel() for v in gc.get_objects() if type(v) is Tensor)

    ask(5)
    before = ask(5)
    assert ask(30) <= before + 2000


def test_queries_outside_and_broken_times_are_refused() -> None:
    path = path_of()
    for query in ((-0.1, 1.0), (1.0, 4.1), (2.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="the path runs from 0 to 4"):
            path(*query)
    for times in ((0.0,), (), (0.0, 1.0, 1.0), (0.0, 1.0, 0.5), (0.0, math.nan)):
        with pytest.raises(ValueError, match="at least two strictly rising"):
            path_of(times=times)


def test_single_precision_path_follows_the_double_one() -> None:
    a, b = path_of(dtype=F32), path_of()
    for query in ((0.0, 4.0), (0.3, 0.9), (1.1, 3.3)):
        assert a(*query).dtype == F32
        torch.testing.assert_close(a(*query).double(), b(*query), rtol=0, atol=1e-4)
