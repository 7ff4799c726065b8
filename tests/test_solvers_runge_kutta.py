"""Tableaus and their orders; adaptive solves: batch independence, memory, compaction; torchode's."""

from __future__ import annotations

import gc
import math
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

import solvers
from sdediff.processes import EDM, VE, VP, Cosine, GaussianProcess, RectifiedFlow, SubVP
from sdediff.reference import Gaussian, random_mixture
from solvers import ODE, Dopri5, Dopri8, SemiLinear, Status, Tableau, Tsit5, solve, tableaus
from solvers.coordinates import GaussianCoordinates
from solvers.dop853 import DOPRI8
from solvers.trees import Weights, density, size, trees

F64 = torch.float64
TABLEAUS = {
    name: getattr(tableaus, name)
    for name in ("EULER", "MIDPOINT", "HEUN", "RALSTON", "RK4", "BOSH3", "TSIT5", "DOPRI5")
} | {"DOPRI8": DOPRI8}
PAIRS = ("bosh3", "tsit5", "dopri5", "dopri8")
PROCESSES = (VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow())
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


# -- order conditions --------------------------------------------------------------------------------------


def test_rooted_trees_are_all_there_once() -> None:
    """Their numbers (OEIS A000081), and sum of n!/(gamma sigma) over trees, known for order 4."""
    assert [len(trees(n)) for n in range(1, 10)] == [1, 1, 2, 4, 9, 20, 48, 115, 286]
    for n in range(1, 8):
        assert len(set(trees(n))) == len(trees(n)) and {size(t) for t in trees(n)} == {n}
    assert sorted(density(t) for t in trees(4)) == [4, 8, 12, 24]


@pytest.mark.parametrize("name", TABLEAUS)
def test_tableaus_meet_their_order_and_no_more(name: str) -> None:
    tableau: Tableau = TABLEAUS[name]
    weights = Weights((*tableau.a, *tableau.extra))
    assert weights.order(tableau.b, 9) == tableau.order


@pytest.mark.parametrize(
    ("name", "dense", "errors"),
    (("BOSH3", 3, [2]), ("TSIT5", 4, [4]), ("DOPRI5", 4, [4]), ("DOPRI8", 7, [5, 3]), ("HEUN", 2, [1]),
     ("RK4", 3, [])),
)  # fmt: skip
def test_dense_outputs_and_error_estimates_have_their_orders(
    name: str, dense: int, errors: list[int]
) -> None:
    tableau: Tableau = TABLEAUS[name]
    assert tableau.dense_order == dense
    weights = Weights(tableau.a)
    rows = [row for row in (tableau.b_error, tableau.b_error_low) if row is not None]
    assert [weights.order(row, 8, error=True) for row in rows] == errors


def test_a_wrong_digit_is_seen() -> None:
    wrong = list(tableaus.TSIT5.a[5])
    wrong[2], wrong[3] = wrong[2] + 1e-9, wrong[3] - 1e-9  # the row still sums to its node
    with pytest.raises(ValueError, match="order conditions of order 5"):
        Tableau(
            5, tableaus.TSIT5.c, (*tableaus.TSIT5.a[:5], tuple(wrong), tableaus.TSIT5.a[6]), tableaus.TSIT5.b
        )
    with pytest.raises(ValueError, match="extra stages come after the 1 others"):
        Tableau(1, (0.0,), ((),), (1.0,), extra=((0.5, 0.5),))


# -- samples go their own way ------------------------------------------------------------------------------


def spinning(t: Tensor, x: Tensor, rate: Tensor) -> Tensor:
    return rate * torch.stack([x[:, 1], -torch.sin(x[:, 0])], 1)


@pytest.mark.parametrize("name", PAIRS)
def test_easy_and_stiff_samples_take_the_steps_each_takes_alone(name: str) -> None:
    rate = torch.full((20, 1), 1.0, dtype=F64)
    rate[3], rate[17] = 60.0, 40.0
    x = solvers.noise.normal(1, torch.arange(20), solvers.Stream.PRIOR, 0, (2,), F64)
    options = {"solver": name, "rtol": 1e-6, "atol": 1e-6}
    whole = solve(ODE(spinning, (rate,)), x, (0.0, 1.0), **options)
    assert bool(whole.ok.all()) and int(whole.nfe[3]) > 5 * int(whole.nfe[0])
    for i in (0, 3, 17, 19):
        alone = solve(ODE(spinning, (rate[i : i + 1],)), x[i : i + 1], (0.0, 1.0), **options)
        for field in ("nfe", "accepted", "rejected", "status", "t"):
            assert getattr(alone, field).tolist() == getattr(whole, field)[i : i + 1].tolist(), field
        torch.testing.assert_close(alone.x, whole.x[i : i + 1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PAIRS)
def test_finished_samples_leave_the_batch(name: str) -> None:
    rate = torch.ones(64, 1, dtype=F64)
    rate[:4] = 50.0
    sizes: list[int] = []

    def drift(t: Tensor, x: Tensor, rate: Tensor) -> Tensor:
        sizes.append(len(x))
        return spinning(t, x, rate)

    sol = solve(ODE(drift, (rate,)), torch.ones(64, 2, dtype=F64), (0.0, 1.0), name, rtol=1e-6, atol=1e-6)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == 4
    # What is evaluated beyond the samples' own need: less than an eighth, and the steps on which they leave.
    assert int(sol.nfe.sum()) <= sum(sizes) <= 1.15 * int(sol.nfe.sum())


@pytest.mark.usefixtures("new_objects")
@pytest.mark.parametrize(
    "name", ("dopri5", "dopri8")
)  # one loop for all; dopri8 has stages of its own for kept states
def test_live_memory_does_not_grow_with_the_steps(name: str) -> None:
    """Live tensor bytes seen by the drift, in a short solve and in one of many times the steps."""

    def peak(end: float) -> tuple[int, int]:
        seen: list[int] = []

        def drift(t: Tensor, x: Tensor) -> Tensor:
            if len(seen) < 15 or len(seen) % 997 == 0:
                tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
                seen.append(
                    sum(
                        {
                            o.untyped_storage().data_ptr(): o.untyped_storage().nbytes() for o in tensors
                        }.values()
                    )
                )
            else:
                seen.append(0)
            return torch.stack([x[:, 1], -x[:, 0]], 1)

        sol = solve(ODE(drift), torch.ones(200, 2, dtype=F64), (0.0, end), name, rtol=1e-7, atol=1e-7)
        return max(seen), int(sol.accepted.max())

    (short, few), (long, many) = peak(3.0), peak(60.0)
    assert many > 8 * few
    assert long <= short + 2000


def test_kept_states_of_dopri8_are_of_order_seven() -> None:
    x, times = torch.tensor([[1.0, 0.3]], dtype=F64), torch.linspace(0, 6, 41, dtype=F64)
    problem = ODE(lambda t, x: torch.stack([x[:, 1], -torch.sin(x[:, 0])], 1))
    exact = solve(problem, x, (0.0, 6.0), Tsit5(1e-13, 1e-13), save_at=times).path
    path = solve(problem, x, (0.0, 6.0), Dopri8(1e-9, 1e-9), save_at=times).path
    assert exact is not None and path is not None
    torch.testing.assert_close(path, exact, rtol=0, atol=2e-9)


# -- Gaussian coordinates ------------------------------------------------------------------------------------


@every_process
def test_a_gaussian_needs_no_steps(process: GaussianProcess) -> None:
    """In its own coordinates its flow stands still: the longest steps, and the closed form at the end."""
    mean = torch.tensor([0.5, -2.0], dtype=F64)
    data = Gaussian(mean, 0.49 * torch.eye(2, dtype=F64))
    problem = data.model(process).problem()
    start = process.perturb(data.sample(8, seed=0), process.t_max, seed=1)[0]
    sol = solve(problem, start, solver=Dopri5(1e-6, 1e-6))
    assert int(sol.nfe.max()) <= 2 + 6 * 8
    exact = data.flow(process, start, process.t_max, process.t_min)
    torch.testing.assert_close(sol.x, exact, rtol=1e-9, atol=1e-9)


@every_process
def test_rates_are_those_of_the_flow(process: GaussianProcess) -> None:
    """Check dy/du, from a denoiser, against differences of y along an exact flow."""
    data = random_mixture(2, 3, seed=0, dtype=F64)
    problem = data.model(process).problem()
    span = (0.7 * process.t_max, 0.7 * process.t_max - 1e-4 * (process.t_max - process.t_min))
    space = GaussianCoordinates(problem, span)
    x = process.perturb(data.sample(5, seed=2), span[0], seed=1)[0]
    later = solve(ODE(problem.velocity), x, span, Dopri8(1e-12, 1e-12)).x
    u = [space.clock(t) for t in span]
    _, _, a, b = space.rates(*(torch.tensor(v, dtype=F64) for v in (u, span)))
    assert all(
        math.isclose(float(space.time(torch.tensor(v, dtype=F64))), t, rel_tol=1e-9)
        for v, t in zip(u, span, strict=True)
    )
    slopes = []
    for i, (t, at) in enumerate(zip(span, (x, later), strict=True)):
        y = space.to_y(t, at)
        torch.testing.assert_close(space.to_x(torch.tensor(t, dtype=F64), y), at, rtol=1e-12, atol=1e-12)
        slopes.append(
            a[i] * y + b[i] * (problem.denoise(torch.full((5,), t, dtype=F64), at) - problem.centre)
        )
    difference = (space.to_y(span[1], later) - space.to_y(span[0], x)) / (u[1] - u[0])
    torch.testing.assert_close(difference, 0.5 * (slopes[0] + slopes[1]), rtol=1e-4, atol=1e-6)


@every_process
def test_coordinates_cost_no_more_evaluations_than_t(process: GaussianProcess) -> None:
    """At equal error (a fifth root of errors in evaluations); half as many where t suits the flow ill."""
    data = random_mixture(2, 3, seed=0, dtype=F64)
    problem = data.model(process).problem()
    x = process.perturb(data.sample(32, seed=1), process.t_max, seed=3)[0]
    span = (process.t_max, process.t_min)
    exact = solve(problem, x, span, Dopri8(1e-11, 1e-11)).x
    runs = [solve(p, x, span, Dopri5(1e-5, 1e-5)) for p in (problem, ODE(problem.velocity))]
    ours, plain = (float((r.x - exact).square().mean().sqrt()) for r in runs)
    cost, cost_in_t = (float(r.nfe.double().mean()) for r in runs)
    ratio = cost / cost_in_t * (ours / plain) ** (1 / 5)
    assert ours < 1e-4 and ratio < (0.8 if isinstance(process, VE | EDM) else 1.5)


def test_alpha_may_vanish_at_the_end() -> None:
    """RectifiedFlow from t = 1, where log-SNR is infinite: solved in t, with the same result."""
    problem = SemiLinear(RectifiedFlow(t_max=1.0 - 1e-12), lambda t, x: torch.tanh(3 * x))
    x = torch.randn(4, 2, dtype=F64, generator=torch.Generator().manual_seed(0))
    ends = [solve(problem, x, (t, 1e-3), Dopri8(1e-10, 1e-10)) for t in (1.0, 1 - 1e-9)]
    assert bool(ends[0].ok.all())
    torch.testing.assert_close(ends[0].x, ends[1].x, rtol=0, atol=1e-7)


def test_single_precision_is_not_lost_to_the_small_noise_at_the_end() -> None:
    """At t_min the drift is a difference over sigma = 1e-3; fused in float64, float32 states keep 1e-5."""
    process, data = VP(), random_mixture(2, 3, seed=0, dtype=F64)
    x = process.perturb(data.sample(32, seed=1), 1.0, seed=3)[0]
    model = data.model(process, "eps")
    exact = model.decode(x, rtol=1e-9, atol=1e-9)
    single = model.decode(x.float(), rtol=1e-6, atol=1e-6)
    assert float((single.double() - exact).square().mean().sqrt()) < 3e-5


# -- torchode ------------------------------------------------------------------------------------------------

needs_torchode = pytest.mark.skipif(find_spec("torchode") is None, reason="torchode is not installed")


@needs_torchode
@pytest.mark.parametrize("method", ("dopri5", "tsit5", "heun"))
def test_torchode_agrees(method: str) -> None:
    problem = SemiLinear(VP(t_min=1e-2), lambda t, x: torch.tanh(x))
    x = torch.linspace(-2, 2, 12, dtype=F64).view(3, 2, 2)
    tol = 3e-6 if method == "heun" else 1e-6
    theirs = solve(problem, x, solver=f"torchode/{method}", rtol=tol, atol=tol, save_at=[0.5, 0.01])
    ours = solve(problem, x, solver="dopri8", rtol=1e-10, atol=1e-10, save_at=[0.5, 0.01])
    assert theirs.path is not None and ours.path is not None and bool(theirs.ok.all())
    torch.testing.assert_close(theirs.path, ours.path, rtol=0, atol=1e-4)
    assert torch.equal(theirs.path[-1], theirs.x)


@needs_torchode
def test_torchode_failures_become_a_status_of_the_sample() -> None:
    drift = lambda t, x: torch.where(x > 2, torch.nan, x)  # noqa: E731
    x = torch.tensor([[0.1], [1.0], [0.2]], dtype=F64)
    sol = solve(ODE(drift), x, (0.0, 1.5), "torchode/dopri5", save_at=[0.3, 1.5])
    assert sol.status.tolist() == [0, int(Status.NON_FINITE), 0] and sol.path is not None
    torch.testing.assert_close(sol.x[[0, 2]], x[[0, 2]] * math.exp(1.5), rtol=1e-4, atol=0)
    assert 0 <= float(sol.t[1]) < 1.5 and bool(torch.isfinite(sol.x[1]).all())
    assert torch.isnan(sol.path[1, :, 0]).tolist() == [False, True, False]
    slow = solvers.get("torchode/tsit5", max_steps=5)
    sol = solve(ODE(lambda t, x: torch.cos(200 * t)[:, None] * x), x, (0.0, 1.5), slow)
    assert sol.status.tolist() == [int(Status.MAX_NFE)] * 3
    with pytest.raises(ValueError, match="torchode has no method 'rk4': take one of"):
        solvers.get("torchode/dopri5").__class__("rk4")
