"""The two loops, tableaus, registry and grids: what happens when things go wrong, and what must not."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import solvers
from sdediff.processes import EDM, VE, VP, Cosine, RectifiedFlow, SubVP
from solvers import ODE, Dopri5, SemiLinear, Status, Tableau, registry, solve
from solvers.noise import Noise
from solvers.runge_kutta import DOPRI5, HEUN
from solvers.solver import Request, Step, StepSolver

F64 = torch.float64

F32, F64 = torch.float32, torch.float64
PROCESSES = (VP(), SubVP(), VE(), EDM(), Cosine(), RectifiedFlow())
every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def rows(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64)[:, None]


def alone(problem: Callable[[Tensor], ODE], x: Tensor, keep: list[int], **options: Any) -> Any:
    kept = torch.tensor(keep)
    return solve(problem(kept), x[kept], **options)


# -- failures of some samples ----------------------------------------------------------------------------


def nan_beyond(t: Tensor, x: Tensor) -> Tensor:
    """NaN where x > 2: only rows that grow past it."""
    return torch.where(x > 2, torch.nan, x)


FAILURES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Dopri5, Status, float, str]] = {
    "nan": (nan_beyond, Dopri5(), Status.NON_FINITE, math.log(2), "NaN or infinite"),
    "infinite at once": (
        lambda t, x: torch.where(x >= 1, math.inf, -x), Dopri5(), Status.NON_FINITE, 0.0, "NaN or infinite",
    ),
    "blow-up": (
        lambda t, x: torch.where(x > 0.5, x**2, -x), Dopri5(), Status.STEP_TOO_SMALL, 1.0, "below min_step",
    ),
    "max_nfe": (
        lambda t, x: torch.where(x.abs() > 0.5, 30 * torch.cos(300 * t)[:, None], -x),
        Dopri5(max_nfe=500), Status.MAX_NFE, math.nan, "500|max_nfe",
    ),
    "min_step": (
        lambda t, x: torch.where(x > 0.5, torch.sign(0.3 - t)[:, None] * 1e3, -x),
        Dopri5(rtol=1e-12, atol=1e-12, min_step=1e-4), Status.STEP_TOO_SMALL, math.nan, "min_step",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_a_failing_sample_is_reported_and_disturbs_no_other(case: str) -> None:
    drift, solver, status, when, words = FAILURES[case]
    x = rows(0.1, 1.0, -0.2, 0.3, -0.4)
    sol = solve(ODE(drift), x, (0.0, 1.5), solver)
    others = [0, 2, 3, 4]
    assert sol.status.tolist() == [0, int(status), 0, 0, 0]
    assert sol.ok.tolist() == [True, False, True, True, True]
    kept = solve(ODE(drift), x[others], (0.0, 1.5), solver)
    for field in ("x", "t", "nfe", "accepted", "rejected"):
        assert torch.equal(getattr(sol, field)[others], getattr(kept, field)), field
    # The partial result is where the sample got to.
    assert 0 <= float(sol.t[1]) < 1.5 and bool(torch.isfinite(sol.x[1]).all())
    if not math.isnan(when):
        assert math.isclose(float(sol.t[1]), when, abs_tol=1e-3)
    message = sol.describe_failure()
    assert message.startswith("1 of 5 samples failed, the first at row 1, t = ")
    assert f"t = {float(sol.t[1]):.6g}" in message
    assert any(w in message for w in words.split("|"))


def test_partial_result_is_the_solution_so_far() -> None:
    sol = solve(ODE(nan_beyond), rows(1.0), (0.0, 1.5), Dopri5(rtol=1e-9, atol=1e-9))
    assert math.isclose(float(sol.x), math.exp(float(sol.t)), rel_tol=1e-7) and 1.99 < float(sol.x) <= 2


def test_path_of_a_failing_sample_ends_in_nan_and_others_are_whole() -> None:
    times = [0.0, 0.3, 0.6, 0.9, 1.2]
    sol = solve(ODE(nan_beyond), rows(0.1, 1.0), (0.0, 1.2), Dopri5(), save_at=times)
    assert sol.path is not None
    assert torch.isfinite(sol.path[:, :, 0]).tolist() == [[True, k < 3] for k in range(5)]
    torch.testing.assert_close(
        sol.path[:, 0, 0], 0.1 * torch.exp(torch.tensor(times, dtype=F64)), rtol=1e-4, atol=0
    )


def test_fixed_grid_reports_the_rows_that_became_nan() -> None:
    sol = solve(ODE(nan_beyond), rows(0.1, 1.0, 0.2), (0.0, 1.5), "rk4", steps=30)
    assert sol.status.tolist() == [0, int(Status.NON_FINITE), 0]
    assert torch.equal(sol.x[[0, 2]], solve(ODE(nan_beyond), rows(0.1, 0.2), (0.0, 1.5), "rk4", steps=30).x)
    assert "the first at row 1" in sol.describe_failure()
    exploding = solve(ODE(lambda t, x: x**2), rows(0.1, 5.0), (0.0, 2.0), "euler", steps=100)
    assert exploding.status.tolist() == [0, int(Status.NON_FINITE)]


def test_all_failing_at_once() -> None:
    sol = solve(ODE(lambda t, x: x * math.nan), rows(1.0, 2.0), (0.0, 1.0), "dopri5")
    assert sol.status.tolist() == [1, 1] and sol.t.tolist() == [0, 0] and torch.equal(sol.x, rows(1.0, 2.0))


# -- what travels with a sample --------------------------------------------------------------------------


def test_rows_of_per_sample_travel_with_their_samples() -> None:
    rate, label = rows(0.1, 30.0, 2.0, 7.0), torch.tensor([3, 1, 0, 2])
    offset = rows(10.0, 20.0, 30.0, 40.0)[:, 0]
    sizes: list[int] = []

    def drift(t: Tensor, x: Tensor, rate: Tensor, label: Tensor) -> Tensor:
        sizes.append(len(x))
        assert t.shape == (len(x),) and len(rate) == len(label) == len(x)
        return -rate * (x - offset[label][:, None])

    sol = solve(ODE(drift, (rate, label)), rows(1.0, 1.0, 1.0, 1.0), (0.0, 1.0), Dopri5(1e-9, 1e-9))
    target = offset[label][:, None]
    torch.testing.assert_close(sol.x, target + (1 - target) * torch.exp(-rate), rtol=1e-7, atol=1e-7)
    assert sizes[0] == 4 and sizes[-1] == 1, "finished samples leave the batch"
    assert len(sizes) == int(sol.nfe.max()) and sum(sizes) == int(sol.nfe.sum())


@pytest.mark.parametrize("solver", ("rk4", "dopri5"))
def test_gradients_flow_through(solver: str) -> None:
    def end(x: Tensor, rate: Tensor) -> Tensor:
        problem = ODE(lambda t, y, r: -r * torch.sin(y), (rate,))
        options = {"steps": 4} if solver == "rk4" else {"rtol": 1e-10, "atol": 1e-10}
        sol = solve(problem, x, (0.0, 0.5), solver, save_at=[0.25, 0.5], **options)
        assert sol.path is not None
        return torch.stack([sol.path[0], sol.x])

    x, rate = rows(0.4, 1.2).requires_grad_(), rows(1.0, 2.0).requires_grad_()
    # Accepted steps move with x, by as much as the tolerance lets the result move.
    assert torch.autograd.gradcheck(end, (x, rate), eps=1e-5, atol=1e-6, rtol=1e-5)


def test_gradients_flow_through_gaussian_coordinates() -> None:
    def end(x: Tensor, weight: Tensor) -> Tensor:
        problem = SemiLinear(VP(t_min=0.05), lambda t, y: weight * torch.tanh(y))
        return solve(problem, x, (0.8, 0.2), Dopri5(1e-10, 1e-10)).x

    x, weight = rows(0.4, 1.2).requires_grad_(), torch.tensor(0.7, dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(end, (x, weight), eps=1e-5, atol=1e-6, rtol=1e-5)


# -- time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "span", ((0, 1), (1.0, 0.0), (1e6, 1e6 + 1), (-1e6, -1e6 - 1), (0, 1e-9), (3.0, 3.0 - 1e-9), (0.0, 1e7)),
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("solver", ("rk4", "heun", "dopri5", "adaptive heun"))
def test_intervals_of_any_length_and_place(solver: str, span: tuple[float, float]) -> None:
    start, end = span
    length = end - start
    seen: list[Tensor] = []

    def drift(t: Tensor, x: Tensor) -> Tensor:
        seen.append(t.reshape(-1))
        phase = (t - start) / length
        return ((1 + phase)[:, None] if t.ndim else 1 + phase) * x / length

    method = solvers.AdaptiveRungeKutta(HEUN, 1e-5, 1e-5) if solver == "adaptive heun" else solver
    fixed = {"rk4": {"steps": 20}, "heun": {"steps": 100}}.get(solver, {})
    sol = solve(ODE(drift), rows(0.5, 1.0), span, method, **fixed)
    assert bool(sol.ok.all()) and sol.t.tolist() == [end, end]
    torch.testing.assert_close(sol.x, rows(0.5, 1.0) * math.exp(1.5), rtol=2e-4, atol=0)
    times = torch.cat(seen)
    assert float(times.min()) >= min(span) and float(times.max()) <= max(span)
    if not fixed:
        assert int(sol.nfe.max()) < 3000


def test_an_interval_too_short_for_steps_ends() -> None:
    """Rounding leaves no room between two neighbouring floats: one step or a failure, no endless loop."""
    span = (1e6, math.nextafter(1e6, 2e6))
    sol = solve(ODE(lambda t, x: -x * 1e12), rows(1.0), span, Dopri5(max_nfe=5000))
    assert int(sol.nfe) <= 5000
    assert solve(ODE(lambda t, x: -x), rows(1.0), span, "dopri5").t.tolist() == [span[1]]


def test_single_precision_states_keep_time_in_double() -> None:
    sol = solve(ODE(lambda t, x: -x), rows(1.0, 2.0).float(), (0.0, 1.0), Dopri5(1e-5, 1e-6))
    assert sol.x.dtype == F32 and sol.t.dtype == F64 and bool(sol.ok.all())
    torch.testing.assert_close(sol.x, rows(1.0, 2.0).float() * math.exp(-1), rtol=2e-5, atol=0)
    impossible = solve(
        ODE(lambda t, x: -x), rows(1.0).float(), (0.0, 1.0), Dopri5(1e-12, 1e-14, max_nfe=3000)
    )
    assert int(impossible.status) in (Status.STEP_TOO_SMALL, Status.MAX_NFE), "float32 cannot, and says so"


# -- the fixed-grid loop ---------------------------------------------------------------------------------


class Recorder(StepSolver):
    """Notes the steps it is asked for."""

    order = 1.0
    stochastic = True

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, Any, int]] = []

    def step(self, problem: Any, t: float, t_next: float, x: Tensor, state: Any, noise: Noise) -> Step:
        assert type(t) is float and type(t_next) is float
        self.seen.append((t, t_next, state, noise.counter))
        return Step(x + problem.velocity(t, x) * (t_next - t), None, len(self.seen))


def test_march_hands_each_step_its_times_state_and_counter() -> None:
    solver = Recorder()
    sol = solve(ODE(lambda t, x: x), rows(1.0), solver=solver, grid=[0.0, 0.5, 2.0, 2.5])
    assert solver.seen == [(0.0, 0.5, None, 0), (0.5, 2.0, 1, 1), (2.0, 2.5, 2, 2)]
    assert float(sol.x) == 1.5 * 2.5 * 1.5 and sol.nfe.tolist() == sol.accepted.tolist() == [3]


class NoReadback(TorchDispatchMode):
    """Counts reads of a tensor's value."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(
            word in name for word in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal.default", "item")
        ):
            self.reads.append(name)
        return func(*args, **(kwargs or {}))


def test_the_recorder_of_reads_works() -> None:
    with NoReadback() as mode:
        float(torch.ones(()) + 1)
    assert mode.reads == ["aten._local_scalar_dense.default"]


FIXED = [n for n in sorted(registry._FACTORIES) if isinstance(solvers.get(n), StepSolver)]


@pytest.mark.parametrize("name", [*FIXED, "step-doubling", "pc(heun)"])
def test_the_fixed_grid_loop_reads_nothing_back(name: str) -> None:
    made = {
        "step-doubling": solvers.StepDoubling(solvers.Heun()),
        "pc(heun)": solvers.PredictorCorrector(solvers.Heun(), solvers.Langevin()),
    }
    solver = made.get(name) or solvers.get(name)
    process = VP(t_min=1e-2)
    problem = SemiLinear(process, lambda t, x: 0.5 * torch.tanh(x), solver.default_eta)
    x, times = rows(0.3, 1.0), tuple(process.default_grid(5).tolist())
    with NoReadback() as mode:
        sol = solver.integrate(problem, x, Request(times, Noise.like(x, 0), times[::2]))
    assert mode.reads == []
    assert bool(sol.ok.all())
    if isinstance(solver, solvers.PredictorCorrector) or solver.needs_linear_part:
        return
    ode = ODE(lambda t, x: torch.cos(t) * x)
    with NoReadback() as mode:
        solver.integrate(ode, x, Request(times, Noise.like(x, 0)))
    assert mode.reads == []


# -- tableaus --------------------------------------------------------------------------------------------

BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "nodes": ({"c": (0.0,)}, "a tableau of 2 stages needs 2 nodes"),
    "rows": ({"a": ((), (1.0, 0.0))}, "rows of 0, 1"),
    "implicit": ({"a": ((0.5,), (0.5, 0.5))}, "rows of 0, 1"),
    "row sums": ({"a": ((), (0.9,))}, "must sum to its node"),
    "weights": ({"b": (0.5, 0.4)}, "order conditions of order 2"),
    "order": ({"order": 3}, "order conditions of order 3"),
    "error sum": ({"b_error": (0.5, 0.5)}, "error weights must sum to 0"),
    "error length": ({"b_error": (0.0,)}, "needs 2 error weights"),
    "dense length": ({"dense": ((1.0, -0.5),)}, "needs as many dense rows"),
    "dense end": ({"dense": ((1.0, -0.4), (0.0, 0.5))}, "must end in the solution"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_tableaus_are_refused(case: str) -> None:
    changes, message = BROKEN[case]
    whole = {"order": 2, "c": (0.0, 1.0), "a": ((), (1.0,)), "b": (0.5, 0.5), "b_error": (-0.5, 0.5)}
    Tableau(**whole, dense=((1.0, -0.5), (0.0, 0.5)))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        Tableau(**(whole | changes))  # type: ignore[arg-type]


def test_only_dopri5_reuses_its_last_stage() -> None:
    assert DOPRI5.fsal and not HEUN.fsal and not solvers.RungeKutta4().tableau.fsal


def test_an_adaptive_method_needs_error_weights_and_tolerances() -> None:
    with pytest.raises(ValueError, match="needs a tableau with error weights"):
        solvers.AdaptiveRungeKutta(solvers.RungeKutta4().tableau)
    bad: tuple[dict[str, Any], ...] = (
        {"rtol": 0.0}, {"atol": -1e-3}, {"rtol": math.nan}, {"rtol": math.inf},
        {"atol": math.inf}, {"rtol": "a"},
    )  # fmt: skip
    for wrong in bad:
        with pytest.raises(ValueError, match="give positive tolerances"):
            Dopri5(**wrong)
        with pytest.raises(ValueError, match="give positive tolerances"):
            solve(ODE(lambda t, x: x), rows(1.0), (0.0, 1.0), "dopri5", **wrong)


def test_solvers_that_cannot_be_composed_are_refused() -> None:
    with pytest.raises(TypeError, match="does not step on a fixed grid"):
        solvers.PredictorCorrector(Dopri5(), solvers.Langevin())  # type: ignore[arg-type]
    for inner in (Dopri5(), solvers.get("pc"), "heun"):
        with pytest.raises(TypeError, match="not seen by halving"):
            solvers.StepDoubling(inner)  # type: ignore[arg-type]

    class Unordered(solvers.DDIM):
        orders = solvers.Orders(strong=1)

    with pytest.raises(TypeError, match="states no order for ODEs"):
        solvers.StepDoubling(Unordered())
    for wrong in ({"snr": 0.0}, {"iterations": 0}):
        with pytest.raises(ValueError, match="give a positive snr"):
            solvers.Langevin(**wrong)  # type: ignore[arg-type]


# -- the registry ----------------------------------------------------------------------------------------


def test_names_are_unique_and_lead_to_new_objects() -> None:
    names = solvers.available()
    assert names == sorted(set(names)) and {"dopri5", "heun", "pc", "ddim"} <= set(names)
    assert solvers.get("heun") is not solvers.get("heun")
    assert solvers.get("dopri5", rtol=1e-7).rtol == 1e-7  # type: ignore[attr-defined]
    for options, words in (
        ({"order": 2}, "heun was given order=2 and takes no options: leave them out"),
        ({"rtol": 1e-7, "atol": 1e-7}, "heun was given rtol=1e-07, atol=1e-07 and takes no options"),
    ):
        with pytest.raises(TypeError, match=words):
            solvers.get("heun", **options)
    for name, takes in (
        ("dopri5", "rtol, atol, max_nfe, min_step"),
        ("pc", "snr"),
        ("scipy/RK45", "rtol, atol, per_sample"),
    ):
        with pytest.raises(TypeError, match=f"{name} was given order=2 and takes the options {takes} only"):
            solvers.get(name, order=2)
    for wrong in (None, 3, solvers.Heun()):
        with pytest.raises(TypeError, match='is no name of a solver: give a string such as "dopri5"'):
            solvers.get(wrong)  # type: ignore[arg-type]


def test_registering_and_taking_away() -> None:
    solvers.register("mine", lambda: Recorder())
    try:
        assert "mine" in solvers.available() and isinstance(solvers.get("mine"), Recorder)
        assert bool(solve(ODE(lambda t, x: x), rows(1.0), (0.0, 1.0), "mine", steps=2).ok.all())
        for taken in ("mine", "heun", "scipy/RK45"):
            with pytest.raises(ValueError, match="exists already: register yours under another name"):
                solvers.register(taken, Recorder)
    finally:
        solvers.unregister("mine")
    assert "mine" not in solvers.available()


@pytest.mark.parametrize(
    ("wrong", "near"), (("dopri", "dopri5"), ("Heun", "heun"), ("torchdiffeq/dopri", "torchdiffeq/dopri5"),
                        ("eulermaruyama", "euler-maruyama"), ("zzzzzz", "solvers.available()")),
)  # fmt: skip
def test_unknown_names_are_told_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(ValueError, match="there is no solver named") as caught:
        solvers.get(wrong)
    assert near in str(caught.value)
    with pytest.raises(TypeError, match="neither a name nor a solver"):
        solve(ODE(lambda t, x: x), rows(1.0), (0.0, 1.0), 3)  # type: ignore[arg-type]


def test_entry_points_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "theirs"

        def load(self) -> type[Recorder]:
            return Recorder

    asked: list[dict[str, str]] = []

    def entry_points(**where: str) -> list[Point]:
        asked.append(where)
        return [Point()] if where.get("name", "theirs") == "theirs" else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    assert "theirs" in solvers.available()
    assert isinstance(solvers.get("theirs"), Recorder)
    assert all(where["group"] == "solvers.methods" for where in asked)
    with pytest.raises(ValueError, match="there is no solver named"):
        solvers.get("nobody's")


def test_entry_points_that_lead_to_no_solver_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "theirs"

        def __init__(self, found: Any) -> None:
            self.found = found

        def load(self) -> Any:
            if isinstance(self.found, Exception):
                raise self.found
            return self.found

    missing = ModuleNotFoundError("No module named 'theirs'")
    cases: tuple[tuple[Any, type[Exception], str], ...] = (
        (missing, ImportError, "'theirs' of 'solvers.methods' does not load, for a ModuleNotFoundError"),
        (3, TypeError, "'theirs' of 'solvers.methods' names a int"),
        (dict, TypeError, "'theirs' returned a dict, not a solver"),
    )
    for found, error, words in cases:
        points = [Point(found)]
        monkeypatch.setattr(registry, "entry_points", lambda _points=points, **where: _points)
        with pytest.raises(error, match=words) as caught:
            solvers.get("theirs")
        assert caught.value.__cause__ is (missing if found is missing else None)


# -- grids and arguments ---------------------------------------------------------------------------------


@every_process
@pytest.mark.parametrize("n", (1, 2, 17))
@pytest.mark.parametrize("partial", (False, True), ids=("whole", "part"))
def test_grids_end_exactly_and_are_even_in_what_they_promise(process: Any, n: int, partial: bool) -> None:
    a, b = process.t_max, process.t_min
    span = (a - 0.1 * (a - b), b + 0.2 * (a - b)) if partial else None
    promised: dict[str, Callable[[Tensor], Tensor]] = {
        "uniform": lambda t: t,
        "log-snr": process.lam,
        "rho": lambda t: torch.exp(-process.lam(t) / 7),
        "quadratic": torch.sqrt,
        "logistic": lambda t: torch.sigmoid(process.lam(t) / 1.25),
        "cosine": lambda t: torch.atan(torch.exp(-process.lam(t))),
    }
    assert set(promised) == set(solvers.GRIDS)
    for name, variable in promised.items():
        grid = solvers.GRIDS[name](process, n, span)
        assert grid.shape == (n + 1,) and grid.dtype == F64
        assert (float(grid[0]), float(grid[-1])) == (span or (a, b))
        assert bool((grid.diff() < 0).all())
        steps = variable(grid).diff()
        torch.testing.assert_close(steps, steps.mean().expand(n), rtol=1e-6, atol=1e-9)
    default = process.default_grid(n, span)
    assert (float(default[0]), float(default[-1])) == (span or (a, b)) and bool((default.diff() < 0).all())


@pytest.mark.parametrize("steps", (0, -3, 2.5, math.nan, math.inf, True, "7"))
def test_step_counts_that_are_none_are_refused(steps: Any) -> None:
    with pytest.raises(ValueError, match="give a whole number of at least 1"):
        solve(ODE(lambda t, x: x), rows(1.0), (0.0, 1.0), "heun", steps=steps)
    with pytest.raises(ValueError, match="give a whole number of at least 1"):
        solvers.uniform_grid(VP(), steps)


@every_process
def test_default_grids_of_partial_and_reversed_intervals(process: Any) -> None:
    a, b = 0.8 * process.t_max, 0.3 * process.t_max
    seen: list[float] = []

    def denoiser(t: float, x: Tensor) -> Tensor:
        seen.append(t)
        return 0.5 * x

    for start, end in ((a, b), (b, a)):
        for grid in (None, *solvers.GRIDS):
            seen.clear()
            sol = solve(SemiLinear(process, denoiser), rows(1.0), (start, end), "euler", steps=6, grid=grid)
            assert len(seen) == 6 and seen[0] == start and sol.t.tolist() == [end]
            assert seen == sorted(seen, reverse=start > end) and bool(sol.ok.all())


BAD_ARGUMENTS: dict[str, tuple[dict[str, Any], str]] = {
    "grid not monotone": ({"grid": [0.0, 0.5, 0.5, 1.0]}, "strictly rising or strictly falling"),
    "grid turning": ({"grid": [0.0, 0.5, 0.2]}, "strictly rising or strictly falling"),
    "grid infinite": ({"grid": [math.inf, 0.5, 0.2]}, "finite times"),
    "grid nan": ({"grid": [0.0, math.nan, 1.0]}, "finite times"),
    "grid of one": ({"grid": [0.5]}, "at least two"),
    "grid against t": (
        {"grid": [0.0, 0.5], "t": (0.0, 1.0)},
        "the grid runs from 0 to 0.5 and t from 0 to 1",
    ),
    "no interval": ({"t": None}, "no interval was given"),
    "empty interval": ({"t": (1.0, 1.0)}, "two different finite times"),
    "infinite interval": ({"t": (0.0, math.inf)}, "two different finite times"),
    "three times": ({"t": (0.0, 0.5, 1.0)}, r"give two times, \(start, end\)"),
    "one time": ({"t": 1.0}, r"t=1.0 is not an interval: give two times, \(start, end\)"),
    "one time beside a grid": ({"grid": [0.0, 1.0], "t": 1.0}, r"give two times, \(start, end\)"),
    "no room": ({"t": (1e6, math.nextafter(1e6, 2e6)), "steps": 4}, "take fewer steps"),
    "save outside": ({"save_at": [0.5, 1.5]}, "times between 0 and 1"),
    "save disordered": ({"save_at": [0.5, 0.25]}, "in the order of the solve"),
    "save twice": ({"save_at": [0.5, 0.5]}, "each once"),
    "save nothing": ({"save_at": []}, "save_at must hold times"),
    "save off the grid": ({"save_at": [0.3], "steps": 4}, "keeps states at grid times only"),
    "indices short": ({"indices": torch.tensor([1])}, "give 2 integers, one a sample"),
    "indices fractional": ({"indices": torch.tensor([1.0, 2.0])}, "give 2 integers, one a sample"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_misfitting_arguments_are_refused(case: str) -> None:
    changes, message = BAD_ARGUMENTS[case]
    options = {"t": None if "grid" in changes else (0.0, 1.0), "solver": "heun"} | changes
    with pytest.raises(ValueError, match=message):
        solve(ODE(lambda t, x: -x), rows(1.0, 2.0), **options)


def test_misfitting_states_are_refused() -> None:
    problem = ODE(lambda t, x: -x)
    for x, words in (
        (torch.ones(3), "shape"), (torch.ones(2, 2, dtype=torch.int64), "floating"), (rows(), "B >= 1"),
        ([[1.0]], "list"), (rows(1.0, math.nan, 2.0), "first in row 1"), (rows(math.inf), "first in row 0"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            solve(problem, x, (0.0, 1.0))  # type: ignore[arg-type]


def test_misfitting_problems_are_refused() -> None:
    with pytest.raises(ValueError, match="eta=-1 is negative"):
        SemiLinear(VP(), lambda t, x: x, eta=-1)
    with pytest.raises(ValueError, match="not a kind of noise"):
        solvers.SDE(lambda t, x: x, lambda t, x: x, noise="general")  # type: ignore[arg-type]
    task = SemiLinear(VP(t_min=1e-2), lambda t, x: 0.5 * x)
    with pytest.raises(ValueError, match="there is no grid named 'karras'"):
        solve(task, rows(1.0), solver="heun", grid="karras")
    with pytest.raises(TypeError, match="needs a SemiLinear problem"):
        solve(ODE(lambda t, x: x), rows(1.0), (0.0, 1.0), "heun", grid="rho")
    singular = SemiLinear(RectifiedFlow(), lambda t, x: 0.5 * x)
    with pytest.raises(ValueError, match='grid="uniform"'):
        solve(singular, rows(1.0), (1.0, 0.1), "heun", grid="rho")
    assert bool(solve(singular, rows(1.0), (1.0, 0.1), "heun", grid="uniform", steps=4).ok.all())


@pytest.mark.parametrize(
    "eta", (lambda t: 0.5, lambda t: torch.full_like(t, 0.5), lambda t: torch.tensor(0.5))
)
def test_eta_may_be_a_function_of_time(eta: Any) -> None:
    x, process = rows(0.3, 1.0), VP(t_min=1e-2)
    for name in ("euler-maruyama", "ddim", "stochastic-heun", "torchsde/euler"):
        constant, function = (
            solve(SemiLinear(process, lambda t, x: 0.5 * x, e), x, solver=name, steps=5).x for e in (0.5, eta)
        )
        torch.testing.assert_close(function, constant, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shape", ((3, 1), (2,), ()))
@pytest.mark.parametrize("name", ("dopri5", "dopri8", "tsit5", "rk4", "euler-maruyama"))
def test_a_drift_that_broadcasts_counts_for_every_component(name: str, shape: tuple[int, ...]) -> None:
    sol = solve(
        ODE(lambda t, x: torch.full(shape, 0.5, dtype=F64)), torch.zeros(3, 2, dtype=F64), (0.0, 1.0), name
    )
    assert bool(sol.ok.all())
    torch.testing.assert_close(sol.x, torch.full((3, 2), 0.5, dtype=F64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ("dopri5", "heun"))
def test_a_drift_of_another_shape_is_told(name: str) -> None:
    with pytest.raises(ValueError, match=r"the drift returned shape \(3, 5\) for a state of shape \(3, 1\)"):
        solve(ODE(lambda t, x: torch.ones(3, 5)), torch.zeros(3, 1), (0.0, 1.0), name)


@pytest.mark.parametrize("name", ("bosh3", "dopri5", "tsit5", "dopri8"))
def test_a_state_at_rest_stays(name: str) -> None:
    """Where every error estimate is exactly zero."""
    sol = solve(ODE(lambda t, x: -x), torch.zeros(2, 2), (0.0, 1.0), name)
    assert bool(sol.ok.all()) and torch.equal(sol.x, torch.zeros(2, 2))


def test_a_step_of_another_shape_is_told() -> None:
    class Cut(solvers.StepSolver):
        orders = solvers.Orders(ode=1)

        def step(self, problem, t, t_next, x, state, noise):  # type: ignore[no-untyped-def]
            return solvers.Step(x[:, :1])

    with pytest.raises(ValueError, match=r"Cut.step returned shape \(3, 1\) for a state of shape \(3, 2\)"):
        solvers.solve(solvers.ODE(lambda t, x: x), torch.zeros(3, 2), (0.0, 1.0), Cut(), steps=2)
