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

from solvers import BrownianPath, Driven, Noise, Stream
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
        largest = 2**63 - 1 if word else 0
        mixed = lambda x, fold=False, w=word, v=largest: torch.full_like(x, v if fold else w)  # noqa: E731
        monkeypatch.setattr(noise, "_mix", mixed)
        for dtype in (F64, F32):
            u = noise.uniform(0, torch.arange(1), Stream.DATA, 0, (2,), dtype)
            assert float(u.min()) > 0 and float(u.max()) < 1
            assert bool(torch.isfinite(noise.normal(0, torch.arange(1), Stream.DATA, 0, (2,), dtype)).all())


@pytest.mark.parametrize("dtype", (F64, F32), ids=("float64", "float32"))
def test_normals_of_every_stream_are_normal(dtype: torch.dtype) -> None:
    """KS, chi-square (200 equal cells), tails and four moments: 7 tests of 1e5 numbers of each stream."""
    edges = stats.norm.ppf(np.linspace(0, 1, 201))
    tests = 7 * len(Stream)
    for stream in Stream:
        z = normal(7 * stream - 3, torch.arange(500), stream, 5, (200,), dtype).double().flatten()
        flat, n = z.numpy(), len(z)
        assert stats.kstest(flat, "norm").pvalue > ALARM / tests, stream.name
        counts = np.histogram(flat, bins=edges)[0]
        assert stats.chisquare(counts).pvalue > ALARM / tests, stream.name
        far = int((np.abs(flat) > 3.5).sum())
        rare = stats.binomtest(far, n, 2 * stats.norm.sf(3.5))
        assert rare.pvalue > ALARM / tests, f"{stream.name}: {far} numbers beyond 3.5"
        for power, variance in ((1, 1), (2, 2), (3, 15), (4, 96)):  # Var z^p
            expected = (0, 1, 0, 3)[power - 1]
            error = (float((z**power).mean()) - expected) / math.sqrt(variance / n)
            assert abs(error) < bound(tests), f"{stream.name}, moment {power}"


def test_numbers_drawn_together_are_independent() -> None:
    """Chi-square on 20 x 20 equal cells of 2e5 pairs: of a word, of neighbours, steps, streams and seeds."""
    n = 2 * 10**5
    rows = torch.arange(n // 100)
    one = lambda seed=0, stream=Stream.STEP, k=0, shift=0: normal(seed, rows + shift, stream, k, (100,), F32)  # noqa: E731
    z = one()
    pairs = {
        "cosine and sine of one word": (z[:, :50], z[:, 50:]),
        "neighbours in a sample": (z[:, :-1], z[:, 1:]),
        "steps": (z, one(k=1)),
        "samples": (z, one(shift=1)),
        "streams": (z, one(stream=Stream.AREA)),
        "seeds": (z, one(seed=1)),
        "magnitudes over steps": (z.abs(), one(k=1).abs()),
    }
    for name, (a, b) in pairs.items():
        cells = [torch.special.ndtr(v.double()).flatten().mul(20).long().clamp(0, 19) for v in (a, b)]
        if name.startswith("magnitudes"):
            cells = [
                (torch.special.erf(v.double() / math.sqrt(2)).flatten() * 20).long().clamp(0, 19)
                for v in (a, b)
            ]
        counts = torch.bincount(20 * cells[0] + cells[1], minlength=400).numpy()
        assert stats.chisquare(counts).pvalue > ALARM / len(pairs), name


def test_words_avalanche() -> None:
    """One bit of the seed, the row, the stream or the counter changed flips half the bits of the output.

    Shares of 2000 words, 63 input bits each: all within the bound for that many binomials.
    """
    from solvers.noise import _keys, _mix

    rows = torch.arange(2000) * 7 + 1
    base = _mix(_keys(5, rows, Stream.STEP))

    def flipped(words: Tensor) -> Tensor:
        bits = (words ^ base)[:, None] >> torch.arange(64) & 1
        return bits.double().mean(dim=0)

    shares = [flipped(_mix(_keys(5 ^ 1 << i, rows, Stream.STEP))) for i in range(64)]
    shares += [flipped(_mix(_keys(5, rows ^ (1 << i), Stream.STEP))) for i in range(62)]
    shares += [flipped(_mix(_keys(5, rows, s))) for s in Stream if s != Stream.STEP]
    error = (torch.cat(shares) - 0.5) / math.sqrt(0.25 / len(rows))
    assert float(error.abs().max()) < bound(error.numel())


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


# -- the noise of a step, in parts ----------------------------------------------------------------------


@pytest.mark.parametrize("fraction", (0.5, 0.1, 0.9))
def test_a_split_adds_up_and_its_parts_are_independent_normals(fraction: float) -> None:
    """Parts' variances and covariance, of 2e5 numbers: 3 moments."""
    noise = Noise(4, torch.arange(1000), (200,), F64).at(3)
    first, rest = noise.split(fraction)
    whole = math.sqrt(fraction) * first + math.sqrt(1 - fraction) * rest
    torch.testing.assert_close(whole, noise.normal(), rtol=1e-13, atol=1e-13)
    n = first.numel()
    for value, spread in ((first**2 - 1, 2), (rest**2 - 1, 2), (first * rest, 1)):
        assert abs(float(value.mean())) < bound(3) * math.sqrt(spread / n)
    assert not torch.equal(first, noise.at(4).split(fraction)[0])


def test_a_split_inside_the_step_is_asked_for() -> None:
    for fraction in (0.0, 1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            Noise(0, torch.arange(2), (2,)).split(fraction)


def test_blocks_of_any_size_hold_the_same_numbers() -> None:
    """Batches so large that blocks are of 25, 5 and 1 steps."""
    for batch in (3, 6000, 40000):
        noise = Noise(0, torch.arange(batch), (2,))
        for k in (0, 24, 25, 4, 5):
            assert torch.equal(noise.at(k).normal()[:3], normal(0, torch.arange(3), Stream.STEP, k, (2,)))
    part = noise.take(torch.tensor([7, 2]))
    assert torch.equal(part.at(9).normal(), noise.at(9).normal()[[7, 2]])


def test_a_solves_noise_holds_one_block_a_stream() -> None:
    noise = Noise(0, torch.arange(512), (2,))

    def held(first: int, last: int) -> int:
        for k in range(first, last):
            noise.at(k).normal()
            noise.at(k).normal(Stream.AREA)
        return sum(b.keys.nbytes + sum(v.nbytes for v in b.values) for b in noise._blocks.values())

    assert held(0, 1) == held(1, 400) <= 2 * (25 * 512 * 2 * 4 + 512 * 8)


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
        torch.testing.assert_close(a1 + a2 + w1 * (c - b), area, rtol=0, atol=1e-12)
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


@pytest.mark.parametrize("dtype", (F64, F32), ids=("float64", "float32"))
@pytest.mark.parametrize("times", (TIMES, TIMES[::-1], (0.0, 4.0)), ids=("rising", "falling", "one cell"))
def test_each_sample_may_ask_for_times_of_its_own(times: tuple[float, ...], dtype: torch.dtype) -> None:
    a = torch.tensor([0.0, 1.0, 4.0, 1.25, 0.333, 0.0, 2.0], dtype=F64)
    b = torch.tensor([4.0, 1.5, 4.0, 1.25, 3.21, 1 / 3, 2 + 2.0**-20], dtype=F64)
    if times[0] > times[-1]:
        a, b = 4 - a, 4 - b
    whole = path_of(7, times, dtype=dtype)
    for mine, i in zip(zip(*whole.with_integral(a, b), strict=True), range(7), strict=True):
        theirs = path_of(7, times, dtype=dtype).with_integral(float(a[i]), float(b[i]))
        for u, v in zip(mine, theirs, strict=True):
            close = 1e-14 if dtype == F64 else 1e-6
            torch.testing.assert_close(u, v[i], rtol=close, atol=close)
    rows = torch.tensor([4, 1, 6])
    alone = BrownianPath(Noise(0, rows, (2,), dtype), times).with_integral(a[rows], b[rows])
    for taken in (
        whole.take(rows),
        path_of(7, times, dtype=dtype).take(rows),
    ):  # with what is known, and without
        for u, v, w in zip(
            taken.with_integral(a[rows], b[rows]), alone, whole.with_integral(a, b), strict=True
        ):
            assert torch.equal(u, v) and torch.equal(u, w[rows])


def test_a_shorter_step_from_a_known_time_finds_the_same_path() -> None:
    """As an adaptive solver asks: some samples go on, some try again."""
    path, n = path_of(6, (0.0, 1.0)), 6
    rng = np.random.default_rng(3)
    t, h = torch.zeros(n, dtype=F64), torch.full((n,), 0.125, dtype=F64)
    total = torch.zeros(n, 2, dtype=F64)
    for _ in range(40):
        accept = torch.tensor(rng.uniform(size=n) < 0.6)
        t_next = (t + h).clamp(max=1.0)
        w = path(t, t_next)
        total = torch.where(accept[:, None], total + w, total)
        t, h = torch.where(accept, t_next, t), torch.where(accept, 0.125, h / 2)
    assert float(t.min()) > 0.5
    torch.testing.assert_close(total, path_of(6, (0.0, 1.0))(torch.zeros_like(t), t), rtol=0, atol=1e-13)


def test_law_where_each_sample_has_its_own_times() -> None:
    """Whitened W and A of 2e4 numbers at random places and lengths: KS, and their correlation."""
    n = 10000
    path = BrownianPath(Noise(8, torch.arange(n), (2,), F64), TIMES)
    rng = torch.Generator().manual_seed(1)
    a = 3.9 * torch.rand(n, generator=rng, dtype=F64)
    h = torch.exp(torch.log(4 - a) * torch.rand(n, generator=rng, dtype=F64)).clamp(max=4 - a)
    w, area = path.with_integral(a, a + h)
    h = h[:, None]
    z = torch.stack([(w / h.sqrt()).flatten(), ((area - h / 2 * w) / (h**3 / 12).sqrt()).flatten()])
    for column in z:
        assert stats.kstest(column.numpy(), "norm").pvalue > ALARM / 3
    assert abs(float((z[0] * z[1]).mean())) * math.sqrt(z.shape[1]) < bound(3)


def test_between_its_finest_times_the_path_is_smooth() -> None:
    path, tick = path_of(times=(0.0, 1.0)), 2.0**-24
    a, b = (path(0.0, 0.5 + s * tick) - path(0.0, 0.5) for s in (0.25, 1.0))
    assert 0 < float(a.abs().max()) < float(b.abs().max()) < 6 * math.sqrt(tick)


@pytest.mark.usefixtures("new_objects")
def test_memory_does_not_grow() -> None:
    path, rng = path_of(), np.random.default_rng(1)
    each = path_of(50)

    def ask(n: int) -> int:
        for _ in range(n):
            path(*sorted(rng.uniform(0, 4, 2)))
            each(*torch.tensor(rng.uniform(0, 4, (2, 50))).sort(dim=0).values)
        gc.collect()
        return sum(v.numel() for v in gc.get_objects() if type(v) is Tensor)

    ask(5)
    before = ask(5)
    assert ask(30) <= before


def test_a_solve_is_driven_by_the_path() -> None:
    own = Noise(0, torch.arange(3), (2,), F64)
    path = BrownianPath(own, TIMES)
    driven = Driven(own, path, TIMES)
    for k, h in enumerate((1.0, 0.5, 0.5, 2.0)):
        for stream in (Stream.STEP, Stream.AREA, Stream.CHURN):
            torch.testing.assert_close(
                driven.at(k).normal(stream), own.at(k).normal(stream), rtol=1e-12, atol=1e-12
            )
        w, area = path.with_integral(TIMES[k], TIMES[k] + h)
        z, n = driven.at(k).normal(), driven.at(k).normal(Stream.AREA)
        torch.testing.assert_close(h * (0.5 * w + math.sqrt(h / 12) * n), area, rtol=1e-12, atol=1e-12)
        first, rest = driven.at(k).split(0.3)
        torch.testing.assert_close(first * math.sqrt(0.3 * h), path(TIMES[k], TIMES[k] + 0.3 * h))
        torch.testing.assert_close(math.sqrt(0.3) * first + math.sqrt(0.7) * rest, z)
    some = driven.take(torch.tensor([2, 0])).at(1)
    torch.testing.assert_close(some.normal(), driven.at(1).normal()[[2, 0]])
    torch.testing.assert_close(some.normal(Stream.CHURN), driven.at(1).normal(Stream.CHURN)[[2, 0]])
    with pytest.raises(TypeError, match="lies beyond a grid of 4 steps"):
        driven.at(4).normal()
    with pytest.raises(TypeError, match="one increment a step and 2 were asked for"):
        driven.at(0).normal(Stream.STEP, 1, 2)


def test_queries_outside_and_broken_times_are_refused() -> None:
    path = path_of()
    for query in ((-0.1, 1.0), (1.0, 4.1), (2.0, 1.0), (math.nan, 1.0)):
        with pytest.raises(ValueError, match="the path runs from 0 to 4"):
            path(*query)
        with pytest.raises(ValueError, match="the path runs from 0 to 4"):
            path(*(torch.tensor([0.5, s, 0.5], dtype=F64) for s in query))
    falling = path_of(times=(1.0, 0.0))
    with pytest.raises(ValueError, match=r"the path runs from 1 to 0: \[0.2, -0.5\] is not"):
        falling(0.2, -0.5)
    with pytest.raises(ValueError, match=r"the path runs from 1 to 0: \[0.2, -0.5\] is not"):
        falling(*torch.tensor([[0.2] * 3, [-0.5] * 3], dtype=F64))
    for times in ((0.0,), (), (0.0, 1.0, 1.0), (0.0, 1.0, 0.5), (0.0, math.nan)):
        with pytest.raises(ValueError, match="at least two strictly rising"):
            path_of(times=times)


def test_single_precision_path_follows_the_double_one() -> None:
    a, b = path_of(dtype=F32), path_of()
    for query in ((0.0, 4.0), (0.3, 0.9), (1.1, 3.3)):
        assert a(*query).dtype == F32
        torch.testing.assert_close(a(*query).double(), b(*query), rtol=0, atol=1e-4)
